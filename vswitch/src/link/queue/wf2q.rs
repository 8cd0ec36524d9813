//! WF²Q+: Bennett and Zhang, "Hierarchical Packet Fair Queueing Algorithms", SIGCOMM 1996, §3.
//!
//! Of the flows that the ideal fluid server would already have begun to serve, the one whose oldest frame it would finish first. A flow
//! is never ahead of its fair share by more than one frame. All flows have the same weight.

use topology::model::{self, DropFrom, Limit};

use super::flows::{Flows, Room};
use super::heap::Heap;
use super::{Context, Discipline, Header, Packet};
use crate::link::Reason;

/// Tags are bytes of the flow's own service in units of 2^-SCALE.
const SCALE: u32 = 20;

/// Flows with start and finish tags: S = max(F of the frame before it in its flow, V), F = S + length.
#[derive(Debug)]
pub(super) struct Wf2q<T> {
    flows: Flows<T>,
    /// Flows the ideal server has begun to serve (S ≤ V), by F.
    eligible: Heap<u128>,
    /// The others that have something waiting, by S.
    early: Heap<u128>,
    start: Vec<u128>,
    finish: Vec<u128>,
    /// V. In 128 bits it does not overflow in any busy period.
    virtual_time: u128,
    /// The greatest F so far.
    latest: u128,
}

impl<T> Wf2q<T> {
    pub(super) fn new(limit: Limit, drop: DropFrom, flows: u32, salt: u32) -> Self {
        let flows = Flows::new(limit, drop, flows, salt);
        let count = flows.count();
        Self {
            flows,
            eligible: Heap::new(count),
            early: Heap::new(count),
            start: vec![0; count as usize],
            finish: vec![0; count as usize],
            virtual_time: 0,
            latest: 0,
        }
    }

    /// A flow's oldest frame is one of `len` bytes whose service begins at `start`.
    fn place(&mut self, flow: u32, start: u128, len: u32) {
        let finish = start + (u128::from(len) << SCALE);
        self.start[flow as usize] = start;
        self.finish[flow as usize] = finish;
        self.latest = self.latest.max(finish);
        if start <= self.virtual_time {
            self.early.remove(flow);
            self.eligible.set(flow, finish);
        } else {
            self.eligible.remove(flow);
            self.early.set(flow, start);
        }
    }

    fn backlogged(&self) -> usize {
        self.eligible.len() + self.early.len()
    }
}

impl<T> Discipline<T> for Wf2q<T> {
    fn admit(&mut self, header: Header, context: &mut Context<'_, T>) -> Result<bool, Reason> {
        loop {
            match self.flows.make_room(header, context) {
                Room::There => return Ok(false),
                Room::None => return Err(Reason::Full),
                Room::Made(flow) => {
                    let start = self.start[flow as usize];
                    if let Some(len) = self.flows.head_len(flow) {
                        self.place(flow, start, len);
                    } else {
                        self.finish[flow as usize] = start;
                        self.eligible.remove(flow);
                        self.early.remove(flow);
                    }
                }
            }
        }
    }

    fn enqueue(&mut self, packet: Packet<T>) {
        let len = packet.header.len;
        let flow = self.flows.push(packet);
        if self.flows.list(flow).len == 1 {
            let start = self.finish[flow as usize].max(self.virtual_time);
            self.place(flow, start, len);
        }
    }

    fn dequeue(&mut self, _: &mut Context<'_, T>) -> Option<Packet<T>> {
        if self.backlogged() == 0 {
            // Nobody waits: everybody starts anew, whatever they have had.
            self.virtual_time = self.virtual_time.max(self.latest);
            return None;
        }
        // V = max(V, least S): somebody is always eligible.
        if self.eligible.top().is_none()
            && let Some((start, _)) = self.early.top()
        {
            self.virtual_time = self.virtual_time.max(start);
        }
        while let Some((start, flow)) = self.early.top()
            && start <= self.virtual_time
        {
            self.early.remove(flow);
            self.eligible.set(flow, self.finish[flow as usize]);
        }
        let (finish, flow) = self.eligible.top()?;
        let backlogged = self.backlogged() as u128;
        let packet = self.flows.pop(flow)?;
        // V grows by the service given, shared among those who wait for it.
        self.virtual_time += (u128::from(packet.header.len) << SCALE) / backlogged;
        if let Some(len) = self.flows.head_len(flow) {
            self.place(flow, finish, len);
        } else {
            self.eligible.remove(flow);
        }
        Some(packet)
    }

    fn change(&mut self, attributes: &model::Queue) -> bool {
        match attributes.discipline {
            model::Discipline::Wf2q { drop, flows } if flows == self.flows.count() => {
                self.flows.limit = attributes.limit;
                self.flows.drop = drop;
                true
            }
            _ => false,
        }
    }

    super::holds!(flows);
}
