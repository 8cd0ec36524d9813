//! Flow queue CoDel, RFC 8290.

use std::collections::VecDeque;

use topology::model::{self, DropFrom, FqCodel as Settings, Limit};

use super::codel::Control;
use super::flows::Flows;
use super::{Context, Discipline, Header, Packet, exceeds};
use crate::link::Reason;

/// The most frames dropped at once when the queue is full (§4.1).
const DROP_BATCH: usize = 64;

/// Which list a flow is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Listed {
    No,
    New,
    Old,
}

#[derive(Debug, Clone)]
struct Flow {
    deficit: i64,
    listed: Listed,
    control: Control,
}

/// Flows take turns as in deficit round robin, those that have just begun before the others; each is controlled by CoDel.
#[derive(Debug)]
pub(super) struct FqCodel<T> {
    flows: Flows<T>,
    state: Vec<Flow>,
    new: VecDeque<u32>,
    old: VecDeque<u32>,
    settings: Settings,
    largest: u32,
}

impl<T> FqCodel<T> {
    pub(super) fn new(limit: Limit, settings: Settings, salt: u32) -> Self {
        let flows = Flows::new(limit, DropFrom::Head, settings.flows, salt);
        let count = flows.count() as usize;
        let idle = Flow {
            deficit: 0,
            listed: Listed::No,
            control: Control::default(),
        };
        Self {
            flows,
            state: vec![idle; count],
            new: VecDeque::with_capacity(count),
            old: VecDeque::with_capacity(count),
            settings,
            largest: 0,
        }
    }

    /// Drops half of what the flow with the most bytes has, from its head, but not more than a batch (§4.1).
    fn drop_from_fattest(
        &mut self,
        header: Header,
        context: &mut Context<'_, T>,
    ) -> Result<(), Reason> {
        let flow = self.flows.fattest(header);
        let half = self.flows.list(flow).bytes / 2;
        let mut dropped = 0;
        for n in 0..DROP_BATCH {
            if n > 0 && dropped >= half {
                break;
            }
            let Some(packet) = self.flows.pop(flow) else {
                return if n == 0 { Err(Reason::Full) } else { Ok(()) };
            };
            dropped += u64::from(packet.header.len);
            context.dropped.push((packet.item, Reason::Full));
        }
        Ok(())
    }
}

impl<T> Discipline<T> for FqCodel<T> {
    fn admit(&mut self, header: Header, context: &mut Context<'_, T>) -> Result<bool, Reason> {
        let exempt = context.unlimited || (context.idle && self.len() == 0);
        while !exempt && exceeds(self.flows.limit, self.len(), self.bytes(), header.len) {
            self.drop_from_fattest(header, context)?;
        }
        Ok(false)
    }

    fn enqueue(&mut self, packet: Packet<T>) {
        self.largest = self.largest.max(packet.header.len);
        let flow = self.flows.push(packet);
        let state = &mut self.state[flow as usize];
        if state.listed == Listed::No {
            state.listed = Listed::New;
            state.deficit = i64::from(self.settings.quantum);
            self.new.push_back(flow);
        }
    }

    /// §4.2.
    fn dequeue(&mut self, context: &mut Context<'_, T>) -> Option<Packet<T>> {
        loop {
            let from_new = !self.new.is_empty();
            let flow = *self.new.front().or(self.old.front())?;
            let state = &mut self.state[flow as usize];
            let list = if from_new {
                &mut self.new
            } else {
                &mut self.old
            };
            if state.deficit <= 0 {
                state.deficit += i64::from(self.settings.quantum);
                state.listed = Listed::Old;
                list.pop_front();
                self.old.push_back(flow);
                continue;
            }
            let flows = &mut self.flows;
            let packet = state
                .control
                .dequeue(self.settings.codel, self.largest, context, || {
                    let packet = flows.pop(flow)?;
                    Some((packet, flows.list(flow).bytes))
                });
            let Some(packet) = packet else {
                list.pop_front();
                // A new flow that is empty goes behind the old ones once, so that it cannot always come first.
                if from_new {
                    state.listed = Listed::Old;
                    self.old.push_back(flow);
                } else {
                    state.listed = Listed::No;
                }
                continue;
            };
            state.deficit -= i64::from(packet.header.len);
            return Some(packet);
        }
    }

    fn change(&mut self, attributes: &model::Queue) -> bool {
        match attributes.discipline {
            model::Discipline::FqCodel(settings) if settings.flows == self.flows.count() => {
                self.flows.limit = attributes.limit;
                self.settings = settings;
                true
            }
            _ => false,
        }
    }

    super::holds!(flows);
}
