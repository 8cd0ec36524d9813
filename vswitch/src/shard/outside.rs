//! Frames from and to the outside world.
//!
//! Only here does a frame cost system calls; they are shared by as many frames as there are at a time.

use std::sync::Arc;

use rustix::io::Errno;

use super::engine::Engine;
use super::lay_out::{ROOM, lay_out, pieces};
use super::{KEPT, Notice, Slot};
use crate::capture::Point;
use crate::classify::{self, Class, classify};
use crate::clock::Time;
use crate::config::{ShardPort, Sink};
use crate::counters::{Drop, PortCounters};
use crate::external::{
    Arrival, BATCH, Device, Inbox, Incomplete, Left, MAX_PIECES, Outbox, segments,
};
use crate::frame::{self, Info, Place};
use crate::guard::Guard;
use crate::l2::{HEAD_BYTES, Head, Tag};
use crate::offload::{MAX_HEADERS, Offload};
use crate::ring::Content;

/// The external nodes of a shard.
#[derive(Debug)]
pub(super) struct Outside {
    externals: Vec<External>,
    /// Those that may have something to read.
    ready: Vec<usize>,
    /// Those that have something to send.
    dirty: Vec<usize>,
    /// Made when there is a device to read from.
    inbox: Option<Box<Inbox>>,
    /// Buffers of the pool for the next frames.
    spare: Vec<Slot>,
}

#[derive(Debug)]
struct External {
    device: Option<Box<Device>>,
    outbox: Outbox,
    is_ready: bool,
    is_dirty: bool,
    egress: Option<usize>,
    guard: Guard,
    counters: Arc<PortCounters>,
}

impl External {
    fn new(plan: ShardPort) -> Self {
        Self {
            device: None,
            outbox: Outbox::default(),
            is_ready: false,
            is_dirty: false,
            egress: plan.egress,
            guard: plan.guard,
            counters: plan.counters,
        }
    }
}

impl Outside {
    pub(super) fn new(externals: Vec<ShardPort>) -> Self {
        Self {
            ready: Vec::with_capacity(externals.len()),
            dirty: Vec::with_capacity(externals.len()),
            externals: externals.into_iter().map(External::new).collect(),
            inbox: None,
            spare: Vec::with_capacity(BATCH),
        }
    }

    /// One more, without a device.
    pub(super) fn add(&mut self, plan: ShardPort) {
        self.externals.push(External::new(plan));
    }

    /// Takes the device of one that is gone. Nothing waits to be sent.
    pub(super) fn remove(&mut self, external: usize) -> Option<Device> {
        self.ready.retain(|other| *other != external);
        self.externals[external].is_ready = false;
        self.externals[external].device.take().map(|device| *device)
    }

    /// What is read goes this way from now on, as far as `guard` lets it; the old one is in its place afterwards.
    pub(super) fn lead(&mut self, external: usize, egress: Option<usize>, guard: &mut Guard) {
        let external = &mut self.externals[external];
        external.egress = egress;
        std::mem::swap(&mut external.guard, guard);
    }

    /// Whether there may be something to read.
    pub(super) fn is_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Buffers of the pool that wait for frames.
    pub(super) fn spare(&self) -> usize {
        self.spare.len()
    }
}

impl Engine {
    /// Carries frames in and out of a node by `device` from now on.
    pub fn add_external(&mut self, external: usize, device: Box<Device>) {
        self.outside.inbox.get_or_insert_default();
        self.outside.externals[external].device = Some(device);
        self.outside_ready(external);
    }

    /// A device may have something to read.
    pub fn outside_ready(&mut self, external: usize) {
        let e = &mut self.outside.externals[external];
        if e.device.is_some() && !std::mem::replace(&mut e.is_ready, true) {
            self.outside.ready.push(external);
        }
    }

    /// Reads a batch from each device that may have something.
    pub(super) fn poll_outside(&mut self, now: Time) -> bool {
        let mut busy = false;
        let mut i = 0;
        while let Some(external) = self.outside.ready.get(i).copied() {
            let (read, more) = self.read_outside(external, now);
            if read > 0 {
                busy = true;
                self.publish();
            }
            if more {
                i += 1;
            } else {
                self.outside.externals[external].is_ready = false;
                self.outside.ready.swap_remove(i);
            }
        }
        busy
    }

    /// Reads a batch; how many frames there were, and whether there may be more.
    fn read_outside(&mut self, external: usize, now: Time) -> (usize, bool) {
        let Some(mut inbox) = self.outside.inbox.take() else {
            return (0, false);
        };
        let Some(device) = self.outside.externals[external].device.take() else {
            self.outside.inbox = Some(inbox);
            return (0, false);
        };
        while self.outside.spare.len() < BATCH {
            // Without memory the host keeps what it has.
            let Some(slot) = self.pool.store(KEPT, |_| ()) else {
                break;
            };
            self.outside.spare.push(slot);
        }
        inbox.clear();
        for slot in &self.outside.spare {
            // SAFETY: a spare buffer has no other user, and neither moves nor is released before it is taken out of `spare`, which is
            // after `receive` has returned.
            unsafe { inbox.offer(self.pool.bytes_mut(*slot)) };
        }
        let received = device.receive(&mut inbox);
        let offered = self.outside.spare.len();
        let mut device = Some(device);
        let result = match received {
            Ok(count) => {
                for n in 0..count {
                    let slot = self.outside.spare[n];
                    let arrival = device
                        .as_ref()
                        .map_or(Arrival::Other, |device| device.arrival(&inbox, n));
                    self.arrival(external, arrival, slot, (&mut inbox, n), now);
                }
                self.outside.spare.drain(..count);
                // Only when it says that it has nothing does it tell when it has something again.
                (count, count > 0 || offered == 0)
            }
            Err(Errno::AGAIN) => (0, false),
            Err(error) if is_gone(error) => {
                device = None;
                self.notice(Notice::Lost { external, error });
                (0, false)
            }
            // One frame that cannot be had.
            Err(_) => {
                self.malformed(external);
                (1, true)
            }
        };
        self.outside.externals[external].device = device;
        self.outside.inbox = Some(inbox);
        result
    }

    fn malformed(&self, external: usize) {
        self.outside.externals[external].counters.malformed.add(1);
    }

    /// Whether the device of an external node takes a superframe as it is.
    pub(super) fn exports_whole(&self, external: usize, info: &Info) -> bool {
        let device = self.outside.externals[external].device.as_ref();
        let layout = device.and_then(|device| device.layout());
        layout.is_some_and(|layout| layout.takes_whole(&info.offload))
    }

    /// Lets what was received into the lab; what the lab's machines do not take as it is, complete and as single frames. `slot` has its start, `inbox` the rest.
    fn arrival(
        &mut self,
        external: usize,
        arrival: Arrival,
        slot: Slot,
        (inbox, n): (&mut Inbox, usize),
        now: Time,
    ) {
        let Arrival::Frame { len, tag, left } = arrival else {
            self.malformed(external);
            return self.pool.release(slot);
        };
        let (incomplete, offload) = match left {
            Left::Nothing => (None, Offload::default()),
            Left::Complete(incomplete) => (Some(incomplete), Offload::default()),
            Left::Asked(request) => {
                let head = self.pool.bytes_mut(slot);
                let head = &head[..len.min(MAX_HEADERS).min(head.len())];
                let Ok(offload) = Offload::check(&request, len as u32, head) else {
                    self.malformed(external);
                    return self.pool.release(slot);
                };
                (None, offload)
            }
        };
        let is_superframe = incomplete.as_ref().is_some_and(Incomplete::is_superframe);
        if len <= KEPT && !is_superframe {
            self.pool.truncate(slot, len);
            let done = incomplete.map(|todo| todo.complete(self.pool.bytes_mut(slot)));
            return if done.is_some_and(|done| done.is_err()) {
                self.malformed(external);
                self.pool.release(slot);
            } else {
                self.import(external, slot, tag, offload, now);
            };
        }
        let whole = inbox.large(n, self.pool.bytes_mut(slot), len);
        self.pool.release(slot);
        let done = match incomplete {
            Some(todo) if todo.is_superframe() => segments(whole, todo, |headers, payload| {
                let fill = |bytes: &mut [u8]| {
                    bytes[..headers.len()].copy_from_slice(headers);
                    bytes[headers.len()..].copy_from_slice(payload);
                };
                let len = headers.len() + payload.len();
                match self.pool.store(len, fill) {
                    Some(slot) => self.import(external, slot, tag, offload, now),
                    None => self.no_memory(external, len),
                }
            }),
            todo => {
                let mut done = Ok(());
                let fill = |bytes: &mut [u8]| {
                    bytes.copy_from_slice(whole);
                    done = todo.map_or(Ok(()), |todo| todo.complete(bytes));
                };
                match (self.pool.store(len, fill), done) {
                    (Some(slot), Ok(())) => self.import(external, slot, tag, offload, now),
                    (Some(slot), Err(_)) => self.pool.release(slot),
                    (None, _) => self.no_memory(external, len),
                }
                done
            }
        };
        if done.is_err() {
            self.malformed(external);
        }
    }

    /// Drops a frame that has come from outside because the pool is used up.
    fn no_memory(&mut self, external: usize, len: usize) {
        if let Some(lane) = self.outside.externals[external].egress {
            let info = Info::new(len as u32, Offload::default());
            self.lanes[lane].count_in(&info);
            self.drop(lane, info, Place::Nowhere, Drop::Pool);
        }
    }

    /// Sends a frame that has come from outside on its way.
    fn import(
        &mut self,
        external: usize,
        slot: Slot,
        tag: Option<Tag>,
        offload: Offload,
        now: Time,
    ) {
        let bytes = self.pool.bytes_mut(slot);
        let stored = bytes.len() as u32;
        if !(frame::MIN_LEN..=frame::MAX_LEN).contains(&stored) {
            self.malformed(external);
            return self.pool.release(slot);
        }
        let Some(lane) = self.outside.externals[external].egress else {
            self.outside.externals[external].counters.unlinked.add(1);
            return self.pool.release(slot);
        };
        let head = match (tag, self.lanes[lane].sink) {
            (Some(tag), _) => Head::with_tag_apart(bytes, tag),
            (None, Sink::Bridge { .. }) => Head::read(bytes),
            (None, Sink::Port(_) | Sink::External(_)) => None,
        };
        let class = if self.classifies {
            let mut headers = [0; classify::HEADER_BYTES];
            let (start, stored) = head.map_or((0, 0), |head| (head.len(), head.stored()));
            if let Some(head) = head {
                headers[..HEAD_BYTES].copy_from_slice(&head.bytes());
            }
            let rest = &bytes[stored..];
            let n = rest.len().min(headers.len() - start);
            headers[start..start + n].copy_from_slice(&rest[..n]);
            classify(&headers[..start + n])
        } else {
            Class::default()
        };
        let len = stored + head.map_or(0, |head| head.len() as u32 - head.stored() as u32);
        let info = Info {
            class,
            head,
            ..Info::new(len, offload)
        };
        let place = Place::Pool(slot);
        let guard = &self.outside.externals[external].guard;
        let gso = info.superframe();
        let allowed = guard.check_len(len, gso);
        match allowed.and_then(|()| guard.check(self.pool.bytes(slot))) {
            Ok(()) => self.send(lane, info, place, now),
            Err(reason) => self.turn_away(lane, info, place, reason),
        }
        self.release(place);
    }

    /// Puts a frame that leaves the lab with those to be sent.
    pub(super) fn export(
        &mut self,
        lane: usize,
        external: usize,
        info: Info,
        place: Place,
    ) -> Result<(), Drop> {
        let e = &self.outside.externals[external];
        let Some(device) = &e.device else {
            return Err(Drop::Disconnected);
        };
        let layout = device.layout();
        if e.outbox.is_full() {
            self.flush_external(external);
        }
        // What its device does not take as it is must be complete: its checksum written, cut.
        let pieces = match place {
            Place::Sender(sender) => self.tx[sender.port]
                .as_ref()
                .filter(|_| self.ports[sender.port].tx_generation == sender.generation)
                .map(|side| side.ring.pieces(sender.head).len())
                .ok_or(Drop::SenderGone)?,
            Place::Pool(_) => 1,
            Place::Receiver { .. } | Place::Nowhere => return Err(Drop::Disconnected),
        };
        let is_taken = info.segment.is_none()
            && layout.is_some_and(|l| l.takes_partial() && l.takes_whole(&info.offload));
        let is_complete = info.offload == Offload::default() || is_taken;
        let changes = info.marked || info.flipped.is_some() || !is_complete;
        let (place, info) = if changes || pieces > MAX_PIECES {
            let written = Info {
                offload: Offload::default(),
                segment: None,
                marked: false,
                flipped: None,
                head: None,
                ..info
            };
            (Place::Pool(self.put_together(lane, info, place)?), written)
        } else {
            if let Place::Pool(slot) = place {
                self.pool.share(slot);
            }
            (place, info)
        };
        let e = &mut self.outside.externals[external];
        let header;
        let prefix = match (layout, &e.device) {
            (Some(layout), _) => {
                header = layout.receive(1, &info.offload);
                &header[..layout.bytes()]
            }
            (None, Some(device)) => device.prefix(),
            (None, None) => &[],
        };
        let what = (lane, info, place);
        match place {
            Place::Sender(sender) => {
                if let Some(side) = &self.tx[sender.port] {
                    let pieces = side.ring.pieces(sender.head);
                    // SAFETY: the pieces are of the sender's memory, which its ring keeps mapped; the ring stays until `remove_tx`,
                    // before which the outbox is sent and cleared.
                    unsafe { e.outbox.push(what, prefix, pieces) };
                }
            }
            Place::Pool(slot) => {
                let piece = self.pool.segment(slot);
                // SAFETY: the outbox is a user of the buffer until it is cleared, so that it is neither changed nor freed.
                unsafe { e.outbox.push(what, prefix, &[piece]) };
            }
            Place::Receiver { .. } | Place::Nowhere => {}
        }
        if !std::mem::replace(&mut e.is_dirty, true) {
            self.outside.dirty.push(external);
        }
        Ok(())
    }

    /// Copies a frame to the pool as it is to arrive: in one piece, with its checksum, marked, with a bit flipped.
    fn put_together(&mut self, lane: usize, info: Info, place: Place) -> Result<Slot, Drop> {
        let in_pool;
        let pieces = match place {
            Place::Sender(_) => pieces(&self.tx, &self.ports, place)?,
            Place::Pool(slot) => {
                in_pool = self.pool.segment(slot);
                std::slice::from_ref(&in_pool)
            }
            Place::Receiver { .. } | Place::Nowhere => return Err(Drop::Disconnected),
        };
        let mut room = [0; ROOM];
        let (start, rest) = lay_out(&info, pieces, &mut room)?;
        let content = Content {
            start,
            rest,
            offload: info.offload,
        };
        let fill = |bytes: &mut [u8]| {
            let (head, tail) = bytes.split_at_mut(start.len());
            head.copy_from_slice(start);
            rest.copy(tail);
            let mut update = |at: u32, change: &dyn Fn(u8) -> u8| {
                let byte = bytes.get_mut(at as usize)?;
                Some(std::mem::replace(byte, change(*byte)))
            };
            for (at, byte) in content
                .checksum()
                .into_iter()
                .flat_map(|(at, sum)| (at..).zip(sum.to_be_bytes()))
            {
                update(at, &|_| byte);
            }
            if let Some(ecn) = info.class.ecn.filter(|_| info.marked) {
                ecn.mark(&mut update);
            }
            if let Some(bit) = info.flipped {
                update(bit / 8, &|byte| byte ^ 1 << (bit % 8));
            }
        };
        let slot = self.pool.store(info.len as usize, fill).ok_or(Drop::Pool)?;
        let counters = &self.lanes[lane].counters;
        counters.bytes_copied.add(info.len.into());
        counters.pool_copies.add(1);
        Ok(slot)
    }

    /// Sends all that is to be sent. Senders get their buffers back after this.
    pub(super) fn flush_outside(&mut self) {
        while let Some(external) = self.outside.dirty.pop() {
            self.outside.externals[external].is_dirty = false;
            self.flush_external(external);
        }
    }

    fn flush_external(&mut self, external: usize) {
        let e = &mut self.outside.externals[external];
        let mut outbox = std::mem::take(&mut e.outbox);
        match &e.device {
            Some(device) => device.send(&mut outbox),
            None => outbox.fail(Errno::NODEV),
        }
        for sent in outbox.frames() {
            match sent.result {
                Ok(()) => {
                    self.lanes[sent.lane].count_out(&sent.info);
                    self.tap(sent.lane, Point::After, &sent.info, &sent.place);
                }
                Err(error) => self.drop(sent.lane, sent.info, sent.place, reason(error)),
            }
            if let Place::Pool(slot) = sent.place {
                self.pool.release(slot);
            }
        }
        outbox.clear();
        self.outside.externals[external].outbox = outbox;
    }
}

/// Whether a device that fails like this is of no use any more.
fn is_gone(error: Errno) -> bool {
    matches!(
        error,
        Errno::NETDOWN | Errno::NODEV | Errno::NXIO | Errno::BADFD | Errno::BADF
    )
}

/// Why the host did not send a frame.
fn reason(error: Errno) -> Drop {
    match error {
        Errno::MSGSIZE => Drop::TooBig,
        Errno::NOBUFS | Errno::AGAIN | Errno::NOMEM => Drop::NoRxBuffer,
        // A TAP device that is down fails with EIO.
        Errno::IO => Drop::Disconnected,
        error if is_gone(error) => Drop::Disconnected,
        _ => Drop::Refused,
    }
}
