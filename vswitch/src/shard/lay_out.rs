//! A frame as it is on the wire, from the bytes that lie in memory.

use super::engine::{Port, TxSide};
use crate::counters::Drop;
use crate::frame::{Info, Place};
use crate::l2;
use crate::memory::Segment;
use crate::offload::{MAX_HEADERS, Offload};
use crate::ring::Part;

/// The sender's buffers a frame is in.
pub(super) fn pieces<'a>(
    tx: &'a [Option<TxSide>],
    ports: &[Port],
    place: Place,
) -> Result<&'a [Segment], Drop> {
    let Place::Sender(sender) = place else {
        return Err(Drop::Disconnected);
    };
    tx[sender.port]
        .as_ref()
        .filter(|_| ports[sender.port].tx_generation == sender.generation)
        .map(|side| side.ring.pieces(sender.head))
        .ok_or(Drop::SenderGone)
}

/// Bytes for the start of a frame as [`lay_out`] makes it: the headers of a superframe and a tag that was added.
pub(super) const ROOM: usize = MAX_HEADERS + size_of::<l2::Tag>();

/// The bytes of a frame as they are on the wire, from those that lie in `pieces`: private ones, made in `room`, and the rest.
pub(super) fn lay_out<'r, 'p>(
    info: &Info,
    pieces: &'p [Segment],
    room: &'r mut [u8; ROOM],
) -> Result<(&'r [u8], Part<'p>), Drop> {
    // What is on the wire from `new` on lies in memory from `stored` on.
    let (new, stored) = info.head.map_or((0, 0), |h| (h.len(), h.stored()));
    if let Some(head) = &info.head {
        room[..new].copy_from_slice(&head.bytes()[..new]);
    }
    let behind = |at: u32, len: u32| Part {
        pieces,
        skip: at - new as u32 + stored as u32,
        len,
    };
    let Offload {
        gso: Some(gso),
        checksum: Some(checksum),
    } = &info.offload
    else {
        let rest = behind(new as u32, info.len - new as u32);
        return Ok((&room[..new], rest));
    };
    let whole = info.segment.map_or(info.len, |segment| segment.whole);
    let n = behind(new as u32, (ROOM - new) as u32).copy(&mut room[new..]);
    // Both the switch and the receiver rely on what was found there at first.
    if !info.offload.still_holds(whole, &room[..new + n]) {
        return Err(Drop::Changed);
    }
    let start = &mut room[..usize::from(gso.headers)];
    let Some(segment) = info.segment else {
        let headers = u32::from(gso.headers);
        return Ok((&*start, behind(headers, info.len - headers)));
    };
    gso.cut(start, *checksum, segment, info.len);
    let (at, len) = gso.payload(whole, segment.index);
    Ok((start, behind(at, len)))
}
