//! The shard's end of a capture.
//!
//! Records go through a ring of bytes with one writer and one reader. A shard never waits for the reader: what does not fit is
//! counted.

use std::sync::Arc;

use rtrb::{Consumer, Producer, RingBuffer};
use serde::{Deserialize, Serialize};

use super::bpf::Program;
use super::view::View;
use crate::clock::Time;
use crate::counters::{Counter, Drop};

/// Bytes of records that may wait for the reader, for each shard.
pub const RING_BYTES: usize = 16 << 20;

/// Where on its way a frame is captured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Point {
    /// When it enters the link, before its queue: every frame that `in_frames` counts.
    Before,
    /// When it is delivered at the other end: every frame that `out_frames` counts.
    After,
    /// When it is dropped: every frame that `drops` counts.
    Drops,
}

impl Point {
    /// All, in the order of the way.
    pub const ALL: [Self; 3] = [Self::Before, Self::After, Self::Drops];

    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Before => "before",
            Self::After => "after",
            Self::Drops => "drops",
        }
    }
}

/// A set of [`Point`]s.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Points(u8);

impl Points {
    /// Whether `point` is in it.
    #[inline]
    pub fn has(self, point: Point) -> bool {
        self.0 & 1 << point as u8 != 0
    }

    /// With `point`.
    #[must_use]
    pub fn with(self, point: Point) -> Self {
        Self(self.0 | 1 << point as u8)
    }

    /// With all of `other`.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// What is counted of an interface of a capture: a point of a link's direction.
#[derive(Debug, Default)]
pub struct InterfaceCounters {
    /// Frames that passed the point.
    pub seen: Counter,
    /// Of these, those the filter let through.
    pub accepted: Counter,
    /// Of these, those the reader was too slow for.
    pub lost: Counter,
}

/// The interfaces of a capture for the directions of one shard: for each direction the number of the one at each point.
#[derive(Debug, Clone, Default)]
pub struct Interfaces(Vec<[Option<u32>; 3]>);

impl Interfaces {
    /// Adds an interface with its number in the capture.
    pub fn add(&mut self, lane: usize, point: Point, number: u32) {
        if self.0.len() <= lane {
            self.0.resize(lane + 1, [None; 3]);
        }
        self.0[lane][point as usize] = Some(number);
    }

    /// At which points a direction is captured.
    pub fn points(&self, lane: usize) -> Points {
        let all = Point::ALL.into_iter();
        let there = all.filter(|point| self.get(lane, *point).is_some());
        there.fold(Points::default(), Points::with)
    }

    fn get(&self, lane: usize, point: Point) -> Option<u32> {
        *self.0.get(lane)?.get(point as usize)?
    }
}

/// What all taps of a capture have in common.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Tells the captures of a switch apart.
    pub number: u64,
    /// Which frames.
    pub filter: Option<Arc<Program>>,
    /// The most bytes kept of a frame.
    pub snaplen: u32,
    /// By number of interface.
    pub counters: Arc<[InterfaceCounters]>,
}

/// What a shard has of a capture.
#[derive(Debug)]
pub struct Tap {
    settings: Settings,
    interfaces: Interfaces,
    /// For each interface, how many have been lost since the last that was not.
    lost: Vec<u32>,
    ring: Producer<u8>,
}

/// The fixed part of a record in the ring; the bytes of the frame follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// When, on the clock of the shards.
    pub at: Time,
    /// The number of the interface.
    pub interface: u32,
    /// Bytes of the frame.
    pub len: u32,
    /// Bytes of it that follow.
    pub kept: u32,
    /// Frames of this interface lost since the one before.
    pub lost: u32,
    /// Why it was dropped.
    pub reason: Option<Drop>,
}

const RECORD_BYTES: usize = 28;

impl Record {
    fn to_bytes(self) -> [u8; RECORD_BYTES] {
        let reason = self.reason.map_or(0, |reason| reason as u32 + 1);
        let words = [self.interface, self.len, self.kept, self.lost, reason];
        let mut bytes = [0; RECORD_BYTES];
        bytes[..8].copy_from_slice(&self.at.as_nanos().to_ne_bytes());
        for (word, to) in words.into_iter().zip(bytes[8..].chunks_exact_mut(4)) {
            to.copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }

    fn from_bytes(bytes: [u8; RECORD_BYTES]) -> Self {
        let mut at = [0; 8];
        at.copy_from_slice(&bytes[..8]);
        let word = |i: usize| {
            let mut word = [0; 4];
            word.copy_from_slice(&bytes[8 + 4 * i..12 + 4 * i]);
            u32::from_ne_bytes(word)
        };
        Self {
            at: Time::from_nanos(u64::from_ne_bytes(at)),
            interface: word(0),
            len: word(1),
            kept: word(2),
            lost: word(3),
            reason: (word(4) as usize).checked_sub(1).map(|i| Drop::ALL[i]),
        }
    }
}

impl Tap {
    /// A tap, and where its records come out.
    pub fn new(settings: Settings, interfaces: Interfaces, ring_bytes: usize) -> (Self, Records) {
        let (ring, records) = RingBuffer::new(ring_bytes);
        let lost = vec![0; settings.counters.len()];
        let tap = Self {
            settings,
            interfaces,
            lost,
            ring,
        };
        (tap, Records(records))
    }

    /// The number of its capture.
    pub fn capture(&self) -> u64 {
        self.settings.number
    }

    /// At which points it captures a direction.
    pub fn points(&self, lane: usize) -> Points {
        self.interfaces.points(lane)
    }

    /// Captures a frame, if this is a point of this capture and the filter lets it through. `edit` makes of its bytes what is to
    /// be shown.
    pub fn record(
        &mut self,
        (lane, point): (usize, Point),
        at: Time,
        frame: &View<'_>,
        reason: Option<Drop>,
        edit: &dyn Fn(Bytes<'_>),
    ) {
        let Some(interface) = self.interfaces.get(lane, point) else {
            return;
        };
        let counters = &self.settings.counters[interface as usize];
        counters.seen.add(1);
        let filter = self.settings.filter.as_ref();
        let wanted = filter.map_or(u32::MAX, |filter| filter.run(frame));
        if wanted == 0 {
            return;
        }
        counters.accepted.add(1);
        let lost = &mut self.lost[interface as usize];
        let record = Record {
            at,
            interface,
            len: frame.length(),
            kept: frame.present().min(self.settings.snaplen).min(wanted),
            lost: *lost,
            reason,
        };
        let needed = RECORD_BYTES + record.kept as usize;
        let Ok(mut chunk) = self.ring.write_chunk(needed) else {
            counters.lost.add(1);
            *lost = lost.saturating_add(1);
            return;
        };
        *lost = 0;
        let (first, second) = chunk.as_mut_slices();
        let mut bytes = Bytes(first, second);
        bytes.write(&record.to_bytes());
        let (first, second) = (&mut bytes.0, &mut bytes.1);
        frame.read(0, first);
        frame.read(first.len() as u32, second);
        edit(bytes);
        chunk.commit_all();
    }
}

/// Bytes in two pieces, the end and the beginning of a ring.
#[derive(Debug)]
pub struct Bytes<'a>(&'a mut [u8], &'a mut [u8]);

impl Bytes<'_> {
    /// Writes to the front, and goes on to what follows.
    fn write(&mut self, from: &[u8]) {
        let n = from.len().min(self.0.len());
        let (to, rest) = std::mem::take(&mut self.0).split_at_mut(n);
        to.copy_from_slice(&from[..n]);
        self.0 = rest;
        let more = &from[n..];
        let (to, rest) = std::mem::take(&mut self.1).split_at_mut(more.len());
        to.copy_from_slice(more);
        self.1 = rest;
    }

    /// Changes one byte, if it is there; returns what it was.
    pub fn update(&mut self, offset: u32, change: impl FnOnce(u8) -> u8) -> Option<u8> {
        let offset = offset as usize;
        let first = self.0.len();
        let byte = match self.0.get_mut(offset) {
            Some(byte) => byte,
            None => self.1.get_mut(offset - first)?,
        };
        Some(std::mem::replace(byte, change(*byte)))
    }
}

/// The reader's end.
#[derive(Debug)]
pub struct Records(Consumer<u8>);

impl Records {
    /// The next record; its bytes are put into `data`.
    pub fn next(&mut self, data: &mut Vec<u8>) -> Option<Record> {
        let mut fixed = [0; RECORD_BYTES];
        self.0.pop_entire_slice(&mut fixed).ok()?;
        let record = Record::from_bytes(fixed);
        data.clear();
        data.resize(record.kept as usize, 0);
        // A record is put in as a whole.
        self.0.pop_entire_slice(data).ok()?;
        Some(record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use capture_filter::Instruction;

    fn tap(ring: usize, snaplen: u32, filter: Option<&[Instruction]>) -> (Tap, Records) {
        let mut interfaces = Interfaces::default();
        interfaces.add(2, Point::After, 0);
        interfaces.add(2, Point::Drops, 1);
        let filter = filter.map(|code| Arc::new(Program::new(code).unwrap()));
        let settings = Settings {
            number: 1,
            filter,
            snaplen,
            counters: [InterfaceCounters::default(), InterfaceCounters::default()].into(),
        };
        Tap::new(settings, interfaces, ring)
    }

    fn counted(tap: &Tap, interface: usize) -> [u64; 3] {
        let c = &tap.settings.counters[interface];
        [&c.seen, &c.accepted, &c.lost].map(Counter::get)
    }

    const AT: Time = Time::from_nanos(77);

    #[test]
    fn records_around_the_end_of_the_ring() {
        let (mut tap, mut records) = tap(100, 1000, None);
        let mut data = Vec::new();
        for n in 0..50u32 {
            let frame: Vec<u8> = (0..n % 60).map(|i| (n + i) as u8).collect();
            let reason = (n % 2 == 0).then_some(Drop::Pool);
            let point = if n % 2 == 0 {
                Point::Drops
            } else {
                Point::After
            };
            let flip = |mut bytes: Bytes<'_>| {
                let was = bytes.update(3, |byte| !byte);
                assert_eq!(was, frame.get(3).copied());
            };
            tap.record((2, point), AT, &View::of(&frame), reason, &flip);
            let record = records.next(&mut data).unwrap();
            let mut wanted = frame.clone();
            if let Some(byte) = wanted.get_mut(3) {
                *byte = !*byte;
            }
            assert_eq!(data, wanted);
            let len = n % 60;
            let interface = u32::from(n % 2 == 0);
            let expected = Record {
                at: AT,
                interface,
                len,
                kept: len,
                lost: 0,
                reason,
            };
            assert_eq!(record, expected);
        }
        assert_eq!(records.next(&mut data), None);
    }

    /// What the reader is too slow for is counted, and the next record says how many are missing.
    #[test]
    fn nothing_is_lost_silently() {
        let (mut tap, mut records) = tap(100, 10, None);
        let frame = [1; 64];
        let send = |tap: &mut Tap, point| {
            tap.record((2, point), AT, &View::of(&frame), None, &|_| ());
        };
        for _ in 0..5 {
            send(&mut tap, Point::After);
        }
        send(&mut tap, Point::Drops);
        assert_eq!(counted(&tap, 0), [5, 5, 3]);
        assert_eq!(counted(&tap, 1), [1, 1, 1]);
        let mut data = Vec::new();
        let first = records.next(&mut data).unwrap();
        assert_eq!((first.len, first.kept, data.len()), (64, 10, 10));
        send(&mut tap, Point::After);
        let lost = std::iter::from_fn(|| records.next(&mut data)).map(|r| (r.interface, r.lost));
        assert_eq!(lost.collect::<Vec<_>>(), [(0, 0), (0, 3)]);
    }

    #[test]
    fn other_points_and_filtered_frames_are_not_kept() {
        let longer_than_20 = [
            Instruction(0x80, 0, 0, 0),
            Instruction(0x25, 0, 1, 20),
            Instruction(0x06, 0, 0, 15),
            Instruction(0x06, 0, 0, 0),
        ];
        let (mut tap, mut records) = tap(1000, 1000, Some(&longer_than_20));
        let mut data = Vec::new();
        for (lane, point, len) in [
            (2, Point::Before, 30),
            (1, Point::After, 30),
            (9, Point::After, 30),
            (2, Point::After, 20),
            (2, Point::After, 21),
        ] {
            tap.record((lane, point), AT, &View::of(&vec![5; len]), None, &|_| ());
        }
        assert_eq!(counted(&tap, 0), [2, 1, 0]);
        let record = records.next(&mut data).unwrap();
        assert_eq!(
            (record.len, record.kept),
            (21, 15),
            "the program says how much"
        );
        assert_eq!(records.next(&mut data), None);
        assert_eq!(
            tap.points(2),
            Points::default().with(Point::After).with(Point::Drops)
        );
        assert_eq!(tap.points(1), Points::default());
    }
}
