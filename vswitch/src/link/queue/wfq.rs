//! Fair queueing with self-clocked virtual time: Golestani, "A Self-Clocked Fair Queueing Scheme for Broadband Applications",
//! INFOCOM 1994.
//!
//! Weighted fair queueing (Demers, Keshav and Shenker 1989) reckons finish tags in the virtual time of an ideal
//! fluid server, which needs the rate of the link. Here virtual time is the tag of the frame in transmission, so it works at any rate, also one that
//! changes or follows a trace. All flows have the same weight.

use topology::model::{self, DropFrom, Limit};

use super::flows::{Flows, Room};
use super::heap::Heap;
use super::{Context, Discipline, Header, Packet};
use crate::link::Reason;

/// The frame with the least finish tag leaves first: F = max(F of the frame before it in its flow, v) + length.
#[derive(Debug)]
pub(super) struct Wfq<T> {
    flows: Flows<T>,
    /// Flows with something waiting, by the finish tag of their oldest frame; of equal ones the lower bucket.
    ready: Heap<u64>,
    /// The last tag of each flow that is not ready.
    finished: Vec<u64>,
    /// The tag of the last frame that left.
    virtual_time: u64,
}

impl<T> Wfq<T> {
    pub(super) fn new(limit: Limit, drop: DropFrom, flows: u32, salt: u32) -> Self {
        let flows = Flows::new(limit, drop, flows, salt);
        Self {
            ready: Heap::new(flows.count()),
            finished: vec![0; flows.count() as usize],
            virtual_time: 0,
            flows,
        }
    }

    /// The oldest frame of a flow has become another.
    fn renew(&mut self, flow: u32, before: u64) {
        if let Some(len) = self.flows.head_len(flow) {
            self.ready.set(flow, before + u64::from(len));
        } else {
            self.finished[flow as usize] = before;
            self.ready.remove(flow);
        }
    }
}

impl<T> Discipline<T> for Wfq<T> {
    fn admit(&mut self, header: Header, context: &mut Context<'_, T>) -> Result<bool, Reason> {
        loop {
            match self.flows.make_room(header, context) {
                Room::There => return Ok(false),
                Room::None => return Err(Reason::Full),
                Room::Made(flow) => {
                    // What comes next in the flow takes the place of what was dropped, so its tag starts from the same.
                    let before = self.finished[flow as usize];
                    self.renew(flow, before);
                }
            }
        }
    }

    fn enqueue(&mut self, packet: Packet<T>) {
        let len = packet.header.len;
        let flow = self.flows.push(packet);
        if self.flows.list(flow).len == 1 {
            let start = &mut self.finished[flow as usize];
            *start = (*start).max(self.virtual_time);
            self.ready.set(flow, *start + u64::from(len));
        }
    }

    fn dequeue(&mut self, _: &mut Context<'_, T>) -> Option<Packet<T>> {
        let (tag, flow) = self.ready.top()?;
        self.virtual_time = tag;
        self.finished[flow as usize] = tag;
        let packet = self.flows.pop(flow);
        self.renew(flow, tag);
        packet
    }

    fn change(&mut self, attributes: &model::Queue) -> bool {
        match attributes.discipline {
            model::Discipline::Wfq { drop, flows } if flows == self.flows.count() => {
                self.flows.limit = attributes.limit;
                self.flows.drop = drop;
                true
            }
            _ => false,
        }
    }

    super::holds!(flows);
}
