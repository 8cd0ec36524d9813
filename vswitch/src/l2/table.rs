//! The address table of a learning switch (IEEE 802.1D-2004 §7.8, §7.9).

use std::collections::HashMap;
use std::time::Duration;

use super::{Flapping, Mac};
use crate::clock::Time;

/// How often a full table is searched for entries that are out of date.
const SWEEP: Duration = Duration::from_secs(1);

/// An address that moves so often between ports in a [`WINDOW`] is in a loop: stations do not, and a loop makes it move with
/// every round.
const MOVES: u16 = 8;
const WINDOW: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy)]
struct Entry {
    port: usize,
    seen: Time,
    /// How often it has moved since `since`.
    moves: u16,
    since: Time,
}

/// A station and its VLAN; 0 in switches without.
type Key = u64;

fn key(vlan: u16, mac: Mac) -> Key {
    let mut bytes = [0; 8];
    bytes[..2].copy_from_slice(&vlan.to_be_bytes());
    bytes[2..].copy_from_slice(&mac);
    Key::from_be_bytes(bytes)
}

/// Where a station is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Behind this port.
    Port(usize),
    /// Not known.
    Unknown,
}

/// Learns from source addresses where stations are.
///
/// The map's hash is keyed at random, so a guest cannot choose addresses that collide.
#[derive(Debug)]
pub struct MacTable {
    entries: HashMap<Key, Entry>,
    ageing: Duration,
    limit: usize,
    swept: Time,
    moved: u64,
}

impl MacTable {
    /// A table that forgets after `ageing` and holds `limit` addresses.
    pub fn new(ageing: Duration, limit: usize) -> Self {
        Self {
            entries: HashMap::new(),
            ageing,
            limit,
            swept: Time::ZERO,
            moved: 0,
        }
    }

    /// Has another ageing and limit, and other ports, from now on; `moved` says for each port, which it is now. What is behind ports that
    /// are gone is forgotten.
    pub fn rewire(&mut self, ageing: Duration, limit: usize, moved: &[Option<usize>]) {
        (self.ageing, self.limit) = (ageing, limit);
        self.entries.retain(|_, entry| {
            let to = moved.get(entry.port).copied().flatten();
            entry.port = to.unwrap_or(entry.port);
            to.is_some()
        });
    }

    /// Where `mac` is.
    pub fn find(&mut self, vlan: u16, mac: Mac, now: Time) -> Place {
        let key = key(vlan, mac);
        match self.entries.get(&key) {
            Some(e) if now.since(e.seen) > self.ageing => {
                self.entries.remove(&key);
                Place::Unknown
            }
            Some(e) => Place::Port(e.port),
            None => Place::Unknown,
        }
    }

    /// Notes that `source` is behind `port`. Tells if it moves so often that there must be a loop, once in a while.
    pub fn learn(&mut self, vlan: u16, source: Mac, port: usize, now: Time) -> Option<Flapping> {
        if is_group(source) || source == [0; 6] {
            return None;
        }
        if let Some(entry) = self.entries.get_mut(&key(vlan, source)) {
            let from = std::mem::replace(&mut entry.port, port);
            let idle = now.since(entry.seen) > self.ageing;
            entry.seen = now;
            if from == port || idle {
                return None;
            }
            self.moved += 1;
            if now.since(entry.since) >= WINDOW {
                (entry.moves, entry.since) = (0, now);
            }
            entry.moves = entry.moves.saturating_add(1);
            return (entry.moves == MOVES).then_some(Flapping {
                mac: source,
                vlan,
                ports: [from, port],
            });
        }
        if self.entries.len() >= self.limit && now.since(self.swept) >= SWEEP {
            self.swept = now;
            let ageing = self.ageing;
            self.entries.retain(|_, e| now.since(e.seen) <= ageing);
        }
        if self.entries.len() < self.limit {
            let entry = Entry {
                port,
                seen: now,
                moves: 0,
                since: now,
            };
            self.entries.insert(key(vlan, source), entry);
        }
        None
    }

    /// How often stations have moved from one port to another.
    pub fn moved(&self) -> u64 {
        self.moved
    }

    /// Entries, those out of date included.
    pub fn len(&self) -> usize {
        self.entries.len()
    }
}

pub(super) fn is_group(mac: Mac) -> bool {
    mac[0] & 1 != 0
}

/// 01-80-C2-00-00-00 to -0F, which no bridge forwards (IEEE 802.1D-2004 §7.12.6).
pub(super) fn is_reserved(mac: Mac) -> bool {
    mac[..5] == [0x01, 0x80, 0xc2, 0, 0] && mac[5] < 0x10
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Mac = [2, 0, 0, 0, 0, 1];
    const B: Mac = [2, 0, 0, 0, 0, 2];
    fn at(s: u64) -> Time {
        Time::from_nanos(s * 1_000_000_000)
    }

    fn table(limit: usize) -> MacTable {
        MacTable::new(Duration::from_mins(5), limit)
    }

    #[test]
    fn learns_and_forgets() {
        let mut t = table(8);
        assert_eq!(t.find(0, A, at(0)), Place::Unknown);
        t.learn(0, A, 0, at(0));
        assert_eq!(t.find(0, A, at(300)), Place::Port(0));
        assert_eq!(t.find(7, A, at(300)), Place::Unknown, "another VLAN");
        assert_eq!(t.find(0, A, at(301)), Place::Unknown);
        assert_eq!(t.len(), 0);
        t.learn(0, A, 1, at(302));
        t.learn(0, A, 2, at(303));
        assert_eq!((t.find(0, A, at(303)), t.moved()), (Place::Port(2), 1));
    }

    #[test]
    fn a_flood_of_addresses_is_bounded() {
        let mut t = table(4);
        for i in 0..100u8 {
            t.learn(0, [2, 0, 0, 0, 1, i], 0, at(1));
        }
        assert_eq!(t.len(), 4);
        t.learn(0, B, 1, at(2));
        assert_eq!(t.find(0, B, at(2)), Place::Unknown);
        t.learn(0, B, 1, at(400));
        assert_eq!(
            t.find(0, B, at(400)),
            Place::Port(1),
            "old entries make room"
        );
    }

    #[test]
    fn groups_and_zero_are_not_learnt() {
        let mut t = table(8);
        t.learn(0, [0xff; 6], 0, at(0));
        t.learn(0, [0; 6], 0, at(0));
        assert_eq!(t.len(), 0);
    }

    #[test]
    fn a_station_that_moves_all_the_time_is_in_a_loop() {
        let ms = |n: u64| Time::from_nanos(n * 1_000_000);
        let mut t = table(8);
        // Once a second is a person with a laptop.
        for n in 0..20 {
            assert_eq!(t.learn(0, A, n % 2, at(n as u64)), None);
        }
        let told: Vec<_> = (0..100)
            .filter_map(|n: u64| t.learn(3, B, n as usize % 2, ms(100_000 + n)))
            .collect();
        let flapping = Flapping {
            mac: B,
            vlan: 3,
            ports: [1, 0],
        };
        assert_eq!(told, [flapping], "once in a second");
        assert_eq!(t.moved(), 19 + 99);
    }
}
