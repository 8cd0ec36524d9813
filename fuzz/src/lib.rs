//! What the fuzz targets do with an input.
//!
//! Each target is an ordinary function of bytes, so that the corpora and random inputs also run in `tests/replay.rs`, without a fuzzer.
//! A target fails by panicking, by a fault, or by not ending.

#[path = "../../vswitch/tests/common/mod.rs"]
mod common;

use arbitrary::{Arbitrary, Unstructured};

pub mod agent_protocol;
pub mod chain;
pub mod machine;
pub mod messages;
pub mod pci;
pub mod requests;
pub mod ring;
pub mod topology_file;
pub mod virtio_blk;

/// As many as the bytes give; `Vec` of itself ends after each with even odds.
fn all<'a, T: Arbitrary<'a>>(bytes: &mut Unstructured<'a>) -> Vec<T> {
    let mut all = Vec::new();
    while !bytes.is_empty()
        && let Ok(next) = T::arbitrary(bytes)
    {
        all.push(next);
    }
    all
}

/// Runs one input.
pub type Run = fn(&[u8]);

/// All targets by name.
pub const TARGETS: [(&str, Run); 8] = [
    ("ring", ring::run),
    ("chain", chain::run),
    ("messages", messages::run),
    ("topology_file", topology_file::run),
    ("agent_protocol", agent_protocol::run),
    ("pci", pci::run),
    ("virtio_blk", virtio_blk::run),
    ("requests", requests::run),
];
