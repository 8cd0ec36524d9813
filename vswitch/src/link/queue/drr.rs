//! Deficit round robin: Shreedhar and Varghese, "Efficient Fair Queueing using Deficit Round Robin", SIGCOMM 1995.

use std::collections::VecDeque;

use topology::model::{self, DropFrom, Limit};

use super::flows::{Flows, Room};
use super::{Context, Discipline, Header, Packet};
use crate::link::Reason;

/// Flows take turns; in each a flow may send its quantum of bytes and what it has left from the last.
///
/// The time per frame is constant if the quantum is not smaller than the frames (§3); else it grows with the rounds that a frame needs.
#[derive(Debug)]
pub(super) struct Drr<T> {
    flows: Flows<T>,
    quantum: u64,
    /// Flows that have something to send, the one whose turn it is first (§3, `ActiveList`).
    active: VecDeque<u32>,
    deficit: Vec<u64>,
    is_active: Vec<bool>,
    /// The first of `active` has had its quantum for this turn.
    begun: bool,
}

impl<T> Drr<T> {
    pub(super) fn new(limit: Limit, drop: DropFrom, flows: u32, quantum: u32, salt: u32) -> Self {
        let flows = Flows::new(limit, drop, flows, salt);
        let count = flows.count() as usize;
        Self {
            flows,
            quantum: u64::from(quantum.max(1)),
            active: VecDeque::with_capacity(count),
            deficit: vec![0; count],
            is_active: vec![false; count],
            begun: false,
        }
    }

    /// The first active flow has nothing left.
    fn retire(&mut self, flow: u32) {
        self.deficit[flow as usize] = 0;
        self.is_active[flow as usize] = false;
        self.active.pop_front();
        self.begun = false;
    }
}

impl<T> Discipline<T> for Drr<T> {
    fn admit(&mut self, header: Header, context: &mut Context<'_, T>) -> Result<bool, Reason> {
        loop {
            match self.flows.make_room(header, context) {
                Room::There => return Ok(false),
                Room::None => return Err(Reason::Full),
                // A flow that has lost its last frame is retired when its turn comes.
                Room::Made(_) => {}
            }
        }
    }

    fn enqueue(&mut self, packet: Packet<T>) {
        let flow = self.flows.push(packet);
        if !std::mem::replace(&mut self.is_active[flow as usize], true) {
            self.deficit[flow as usize] = 0;
            self.active.push_back(flow);
        }
    }

    fn dequeue(&mut self, _: &mut Context<'_, T>) -> Option<Packet<T>> {
        loop {
            let flow = *self.active.front()?;
            let Some(len) = self.flows.head_len(flow) else {
                self.retire(flow);
                continue;
            };
            let deficit = &mut self.deficit[flow as usize];
            if !std::mem::replace(&mut self.begun, true) {
                *deficit += self.quantum;
            }
            if u64::from(len) > *deficit {
                // A frame of many quanta waits as many rounds; if nobody else is there they pass at once.
                if self.active.len() == 1 {
                    let missing = u64::from(len) - *deficit;
                    *deficit += missing.div_ceil(self.quantum) * self.quantum;
                } else {
                    self.active.rotate_left(1);
                    self.begun = false;
                    continue;
                }
            }
            *deficit -= u64::from(len);
            let packet = self.flows.pop(flow);
            if self.flows.list(flow).is_empty() {
                self.retire(flow);
            }
            return packet;
        }
    }

    fn change(&mut self, attributes: &model::Queue) -> bool {
        match attributes.discipline {
            model::Discipline::Drr {
                drop,
                flows,
                quantum,
            } if flows == self.flows.count() => {
                self.flows.limit = attributes.limit;
                self.flows.drop = drop;
                self.quantum = u64::from(quantum.max(1));
                true
            }
            _ => false,
        }
    }

    super::holds!(flows);
}
