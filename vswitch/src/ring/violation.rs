//! What is wrong with a ring.

use thiserror::Error;

use super::{MAX_CHAIN, MAX_SIZE};

/// What a guest did that no driver may do. The ring it happened on stops; nothing else does.
#[expect(missing_docs, reason = "the messages say it")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Violation {
    #[error("the available index jumped by more than the ring's size")]
    AvailableIndex,
    #[error("a head index is not in the descriptor table")]
    Head,
    #[error("a head was made available again before it was returned")]
    HeadTwice,
    #[error("a chain points outside its descriptor table")]
    Next,
    #[error("a chain loops or has more than {MAX_CHAIN} descriptors")]
    ChainTooLong,
    #[error("the buffers of a chain add up to 4 GiB or more")]
    ChainTooLarge,
    #[error("a buffer lies outside the guest's memory")]
    Address,
    #[error("a buffer has the wrong direction for this ring")]
    Direction,
    #[error("an indirect descriptor was used although it was not agreed on")]
    IndirectNotAgreed,
    #[error("an indirect table inside an indirect table, or followed by more descriptors")]
    IndirectNested,
    #[error(
        "an indirect table is empty, is not a multiple of 16 bytes long, or lies outside the guest's memory"
    )]
    IndirectTable,
    #[error("a buffer is shorter than the virtio-net header")]
    ShortHeader,
    #[error("its call descriptor was made to block")]
    CallBlocks,
}

/// Why a ring cannot be started.
#[expect(missing_docs, reason = "the messages say it")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum RingError {
    #[error("its size {0} is not a power of two from 1 to {MAX_SIZE}")]
    Size(u32),
    #[error("its {0} is not aligned as virtio 1.2 §2.7 demands")]
    Alignment(&'static str),
    #[error("its {0} does not lie inside one region of the guest's memory")]
    Address(&'static str),
}
