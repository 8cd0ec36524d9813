//! The address table of a learning switch (IEEE 802.1D-2004 §7.8, §7.9).

use std::collections::HashMap;
use std::time::Duration;

use super::{Addresses, Verdict};
use crate::clock::Time;

/// An IEEE 802 address.
pub type Mac = [u8; 6];

/// How often a full table is searched for entries that are out of date.
const SWEEP: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy)]
struct Entry {
    port: usize,
    seen: Time,
}

/// Learns from source addresses where stations are.
///
/// The map's hash is keyed at random, so a guest cannot choose addresses that collide.
#[derive(Debug)]
pub struct MacTable {
    entries: HashMap<Mac, Entry>,
    ageing: Duration,
    limit: usize,
    swept: Time,
}

impl MacTable {
    /// A table that forgets after `ageing` and holds `limit` addresses.
    pub fn new(ageing: Duration, limit: usize) -> Self {
        Self {
            entries: HashMap::new(),
            ageing,
            limit,
            swept: Time::ZERO,
        }
    }

    /// Learns the source and looks the destination up.
    pub fn decide(&mut self, port: usize, addresses: &Addresses, now: Time) -> Verdict {
        let (destination, source) = split(addresses);
        self.learn(source, port, now);
        if is_group(destination) {
            return if is_link_local(destination) {
                Verdict::Filter
            } else {
                Verdict::Flood
            };
        }
        match self.entries.get(&destination) {
            Some(e) if now.since(e.seen) > self.ageing => {
                self.entries.remove(&destination);
                Verdict::Flood
            }
            Some(e) if e.port == port => Verdict::Filter,
            Some(e) => Verdict::Forward(e.port),
            None => Verdict::Flood,
        }
    }

    fn learn(&mut self, source: Mac, port: usize, now: Time) {
        if is_group(source) || source == [0; 6] {
            return;
        }
        if let Some(entry) = self.entries.get_mut(&source) {
            *entry = Entry { port, seen: now };
            return;
        }
        if self.entries.len() >= self.limit && now.since(self.swept) >= SWEEP {
            self.swept = now;
            let ageing = self.ageing;
            self.entries.retain(|_, e| now.since(e.seen) <= ageing);
        }
        if self.entries.len() < self.limit {
            self.entries.insert(source, Entry { port, seen: now });
        }
    }

    /// Entries, those out of date included.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing was learnt.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

fn split(a: &Addresses) -> (Mac, Mac) {
    let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5] = *a;
    ([d0, d1, d2, d3, d4, d5], [s0, s1, s2, s3, s4, s5])
}

fn is_group(mac: Mac) -> bool {
    mac[0] & 1 != 0
}

/// 01-80-C2-00-00-00 to -0F, which no bridge forwards (IEEE 802.1D-2004 §7.12.6).
fn is_link_local(mac: Mac) -> bool {
    mac[..5] == [0x01, 0x80, 0xc2, 0, 0] && mac[5] < 0x10
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Mac = [2, 0, 0, 0, 0, 1];
    const B: Mac = [2, 0, 0, 0, 0, 2];
    const BROADCAST: Mac = [0xff; 6];

    fn frame(to: Mac, from: Mac) -> Addresses {
        let mut a = [0; 12];
        a[..6].copy_from_slice(&to);
        a[6..].copy_from_slice(&from);
        a
    }

    fn at(s: u64) -> Time {
        Time::from_nanos(s * 1_000_000_000)
    }

    fn table(limit: usize) -> MacTable {
        MacTable::new(Duration::from_mins(5), limit)
    }

    #[test]
    fn learns_forwards_filters() {
        let mut t = table(8);
        assert_eq!(t.decide(0, &frame(B, A), at(0)), Verdict::Flood);
        assert_eq!(t.decide(1, &frame(A, B), at(0)), Verdict::Forward(0));
        assert_eq!(t.decide(0, &frame(B, A), at(0)), Verdict::Forward(1));
        assert_eq!(
            t.decide(1, &frame(B, A), at(0)),
            Verdict::Filter,
            "A has moved to port 1, where B is"
        );
        assert_eq!(t.decide(0, &frame(BROADCAST, B), at(0)), Verdict::Flood);
        assert_eq!(
            t.decide(0, &frame([1, 0x80, 0xc2, 0, 0, 0], B), at(0)),
            Verdict::Filter
        );
    }

    #[test]
    fn ages() {
        let mut t = table(8);
        t.decide(0, &frame(B, A), at(0));
        assert_eq!(t.decide(1, &frame(A, B), at(300)), Verdict::Forward(0));
        assert_eq!(t.decide(1, &frame(A, B), at(301)), Verdict::Flood);
    }

    #[test]
    fn a_flood_of_addresses_is_bounded_and_passes() {
        let mut t = table(4);
        for i in 0..100u8 {
            t.decide(0, &frame(BROADCAST, [2, 0, 0, 0, 1, i]), at(1));
        }
        assert_eq!(t.len(), 4);
        assert_eq!(t.decide(1, &frame(A, B), at(2)), Verdict::Flood);
        t.decide(1, &frame(A, B), at(400));
        assert_eq!(
            t.decide(0, &frame(B, A), at(400)),
            Verdict::Forward(1),
            "old entries make room"
        );
    }

    #[test]
    fn groups_and_zero_are_not_learnt() {
        let mut t = table(8);
        t.decide(0, &frame(A, BROADCAST), at(0));
        t.decide(0, &frame(A, [0; 6]), at(0));
        assert!(t.is_empty());
    }
}
