//! A learning switch: which port a frame goes on to (IEEE 802.1D-2004 §7.7, 802.1Q-2018 §8.6).

use std::time::Duration;

use topology::model::SwitchNode;

use super::storm::Storm;
use super::table::{MacTable, Place, is_group, is_reserved};
use super::vlan::Membership;
use super::{Decision, Head, Notice, Size, Verdict};
use crate::clock::Time;

/// A storm on a port is told again after so long.
const REMIND: Duration = Duration::from_secs(10);

/// A learning switch.
#[derive(Debug)]
pub struct Switch {
    table: MacTable,
    ports: Vec<Port>,
    forward_reserved: bool,
}

#[derive(Debug, Default)]
struct Port {
    vlan: Option<Membership>,
    storm: Option<Storm>,
    /// When people were told last.
    told: Option<Time>,
}

impl Switch {
    /// A switch that has learnt nothing.
    pub fn new(attributes: &SwitchNode) -> Self {
        let port = |port: &topology::model::SwitchPort| Port {
            vlan: port.vlan.as_ref().map(Membership::from),
            storm: port.storm.map(Storm::new),
            told: None,
        };
        Self {
            table: MacTable::new(attributes.ageing, attributes.table_limit as usize),
            ports: attributes.ports.iter().map(port).collect(),
            forward_reserved: attributes.forward_reserved,
        }
    }

    /// Has other attributes and ports from now on; `moved` says for each port it had, which it is now. What was learnt stays, except
    /// from ports that are gone.
    pub fn rewire(&mut self, attributes: &SwitchNode, moved: &[Option<usize>]) {
        let mut new = Self::new(attributes);
        for (old, to) in std::mem::take(&mut self.ports).into_iter().zip(moved) {
            if let Some(to) = to
                && let Some(port) = new.ports.get_mut(*to)
                && let (Some(storm), Some(before)) = (&mut port.storm, &old.storm)
            {
                storm.resume(before);
                port.told = old.told;
            }
        }
        self.table
            .rewire(attributes.ageing, attributes.table_limit as usize, moved);
        self.ports = new.ports;
        self.forward_reserved = new.forward_reserved;
    }

    /// Learns the source and looks the destination up.
    pub fn decide(&mut self, port: usize, head: &Head, size: Size, now: Time) -> Decision {
        let vlan = match self.vlan(port) {
            None => 0,
            Some(vlan) => match vlan.classify(head) {
                Some(vlan) => vlan,
                None => {
                    return Decision {
                        verdict: Verdict::WrongVlan,
                        vlan: 0,
                        notice: None,
                    };
                }
            },
        };
        let flapping = self.table.learn(vlan, head.source(), port, now);
        let mut notice = flapping.map(Notice::Flapping);
        let destination = head.destination();
        let place = if !is_group(destination) {
            self.table.find(vlan, destination, now)
        } else if is_reserved(destination) && !self.forward_reserved {
            Place::Port(port)
        } else {
            Place::Unknown
        };
        let verdict = match place {
            Place::Port(to) if to == port => Verdict::Filter,
            Place::Port(to) => Verdict::Forward(to),
            Place::Unknown => match self.storm(port, size, now) {
                Ok(()) => Verdict::Flood,
                Err(told) => {
                    notice = notice.or(told);
                    Verdict::Storm
                }
            },
        };
        Decision {
            verdict,
            vlan,
            notice,
        }
    }

    /// How a frame of `vlan` that is to go out of `port` begins; `None` if that port is not of its VLAN.
    #[inline]
    pub fn leave(&self, port: usize, vlan: u16, head: Head) -> Option<Head> {
        match self.vlan(port) {
            None => Some(head),
            Some(membership) => membership.leave(vlan, head),
        }
    }

    fn vlan(&self, port: usize) -> Option<&Membership> {
        self.ports.get(port)?.vlan.as_ref()
    }

    /// Whether `port` may send a frame to all; if not, perhaps what people should know.
    fn storm(&mut self, port: usize, size: Size, now: Time) -> Result<(), Option<Notice>> {
        let Some(state) = self.ports.get_mut(port) else {
            return Ok(());
        };
        let Some(storm) = &mut state.storm else {
            return Ok(());
        };
        if storm.passes(size, now) {
            return Ok(());
        }
        if state.told.is_some_and(|told| now.since(told) < REMIND) {
            return Err(None);
        }
        state.told = Some(now);
        Err(Some(Notice::Storm { port }))
    }

    /// Addresses learnt, some of them perhaps out of date.
    pub fn learnt(&self) -> usize {
        self.table.len()
    }

    /// How often stations have moved from one port to another.
    pub fn moved(&self) -> u64 {
        self.table.moved()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::l2::Mac;
    use topology::model::{PortVlan, SwitchPort};
    use topology::quantity::StormLimit;

    const A: Mac = [2, 0, 0, 0, 0, 1];
    const B: Mac = [2, 0, 0, 0, 0, 2];
    const BROADCAST: Mac = [0xff; 6];
    const RESERVED: Mac = [1, 0x80, 0xc2, 0, 0, 0x0e];

    fn attributes() -> SwitchNode {
        SwitchNode {
            ageing: Duration::from_mins(5),
            table_limit: 8,
            forward_reserved: false,
            ports: Vec::new(),
        }
    }

    fn head(to: Mac, from: Mac) -> Head {
        let mut frame = [0; 16];
        frame[..6].copy_from_slice(&to);
        frame[6..12].copy_from_slice(&from);
        Head::read(&frame).unwrap()
    }

    const SIZE: Size = Size {
        frames: 1,
        bytes: 60,
    };

    fn at(s: u64) -> Time {
        Time::from_nanos(s * 1_000_000_000)
    }

    fn decide(s: &mut Switch, port: usize, head: &Head, time: u64) -> Verdict {
        s.decide(port, head, SIZE, at(time)).verdict
    }

    #[test]
    fn learns_forwards_filters() {
        let mut s = Switch::new(&attributes());
        assert_eq!(decide(&mut s, 0, &head(B, A), 0), Verdict::Flood);
        assert_eq!(decide(&mut s, 1, &head(A, B), 0), Verdict::Forward(0));
        assert_eq!(decide(&mut s, 0, &head(B, A), 0), Verdict::Forward(1));
        assert_eq!(
            decide(&mut s, 1, &head(B, A), 0),
            Verdict::Filter,
            "A has moved to port 1, where B is"
        );
        assert_eq!(decide(&mut s, 0, &head(BROADCAST, B), 0), Verdict::Flood);
        assert_eq!(decide(&mut s, 1, &head(A, B), 301), Verdict::Flood, "aged");
    }

    #[test]
    fn reserved_addresses() {
        let mut s = Switch::new(&attributes());
        assert_eq!(decide(&mut s, 0, &head(RESERVED, A), 0), Verdict::Filter);
        let mut s = Switch::new(&SwitchNode {
            forward_reserved: true,
            ..attributes()
        });
        assert_eq!(decide(&mut s, 0, &head(RESERVED, A), 0), Verdict::Flood);
    }

    #[test]
    fn learns_by_vlan() {
        let port = |vlan| SwitchPort {
            vlan: Some(PortVlan::Access(vlan)),
            storm: None,
        };
        let mut s = Switch::new(&SwitchNode {
            ports: vec![port(10), port(20), port(10)],
            ..attributes()
        });
        decide(&mut s, 0, &head(B, A), 0);
        assert_eq!(
            decide(&mut s, 1, &head(A, B), 0),
            Verdict::Flood,
            "another VLAN"
        );
        assert_eq!(decide(&mut s, 2, &head(A, B), 0), Verdict::Forward(0));
        assert!(s.leave(0, 10, head(A, B)).is_some() && s.leave(1, 10, head(A, B)).is_none());
        let tagged = head(A, B).tagged(10);
        assert_eq!(decide(&mut s, 0, &tagged, 0), Verdict::WrongVlan);
    }

    #[test]
    fn storms_are_cut_and_told() {
        let ports = vec![SwitchPort {
            vlan: None,
            storm: Some(StormLimit::Packets(10)),
        }];
        let mut s = Switch::new(&SwitchNode {
            ports,
            ..attributes()
        });
        let mut told = 0;
        let mut flooded = 0;
        for _ in 0..1000 {
            let decision = s.decide(0, &head(BROADCAST, A), SIZE, at(1));
            flooded += u32::from(decision.verdict == Verdict::Flood);
            told += u32::from(decision.notice == Some(Notice::Storm { port: 0 }));
        }
        assert_eq!((flooded, told), (2, 1));
        decide(&mut s, 1, &head(BROADCAST, B), 1);
        assert_eq!(
            decide(&mut s, 0, &head(B, A), 1),
            Verdict::Forward(1),
            "what goes to one port passes"
        );
        assert_eq!(decide(&mut s, 0, &head(BROADCAST, A), 3), Verdict::Flood);
    }
}
