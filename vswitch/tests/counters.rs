//! What is counted, on a virtual clock.

mod common;

use std::time::Duration;

use common::driver::Shape;
use common::lab::Lab;
use common::virtual_lab::VirtualLab;
use common::{BROADCAST, frame, mac};
use topology::model::{Completion, Direction, Limit, Queue, Reorder};

const MS: u64 = 1_000_000;

fn data(len: usize, tag: u32) -> Vec<u8> {
    frame(mac(2), mac(1), len, tag)
}

fn pair(direction: &Direction) -> VirtualLab {
    let mut lab = Lab::default();
    let (a, b) = (lab.machine("a"), lab.machine("b"));
    lab.link(a, b, direction, Completion::Network);
    VirtualLab::new(&lab.topology(), Shape::default())
}

/// 8 Mbit/s without overhead: a byte takes a microsecond.
fn microsecond_per_byte() -> Direction {
    Direction {
        rate: Some(8_000_000),
        overhead: 0,
        ..Direction::default()
    }
}

/// A turn that comes late makes its frames late by as much, and those that it is in time for not at all.
#[test]
fn lateness_is_actual_minus_ideal() {
    let direction = Direction {
        delay: Duration::from_millis(3),
        ..microsecond_per_byte()
    };
    let mut lab = pair(&direction);
    for tag in 0..4 {
        lab.send("a.eth0", &data(1000, tag));
    }
    // The first arrives after 4 ms, in time.
    lab.pass(4 * MS);
    // The switch is held up until 6.25 ms: the frames of 5 ms and 6 ms are late.
    lab.now = lab.now + Duration::from_nanos(2 * MS + MS / 4);
    let now = lab.now;
    lab.engine.turn(now);
    lab.pass(10 * MS);
    let d = lab.direction("a.eth0", "b.eth0");
    assert_eq!((d.out_frames, d.lateness.count), (4, 4));
    assert_eq!(d.lateness.max, MS + MS / 4);
    let [(0, 2), (quarter, 1), (most, 1)] = d.lateness.buckets[..] else {
        panic!("{:?}", d.lateness.buckets);
    };
    assert!((MS / 4..MS / 4 + MS / 100).contains(&quarter), "{quarter}");
    assert_eq!(most, MS + MS / 4);
    assert_eq!((d.lateness.p50, d.lateness.p999), (0, MS + MS / 4));
}

/// Frames that nothing holds up have no ideal time; lost ones have no actual one.
#[test]
fn what_has_no_lateness() {
    let mut lab = pair(&Direction::default());
    lab.send("a.eth0", &data(100, 0));
    assert_eq!(lab.direction("a.eth0", "b.eth0").out_frames, 1);
    assert_eq!(lab.direction("a.eth0", "b.eth0").lateness.count, 0);
    let dead = Direction {
        ber: 1.0,
        ..microsecond_per_byte()
    };
    let mut lab = pair(&dead);
    lab.send("a.eth0", &data(100, 0));
    lab.pass(MS);
    assert_eq!(lab.direction("a.eth0", "b.eth0").drops.bit_error, 1);
    assert_eq!(lab.direction("a.eth0", "b.eth0").lateness.count, 0);
}

/// On the way to a bridge each link has a lateness of its own.
#[test]
fn lateness_towards_a_bridge() {
    let mut lab = Lab::default();
    let hub = lab.hub("hub");
    let (a, b) = (lab.machine("a"), lab.machine("b"));
    let slow = Direction {
        delay: Duration::from_millis(1),
        ..Direction::default()
    };
    lab.link(a, hub, &slow, Completion::Network);
    lab.link(hub, b, &slow, Completion::Network);
    let mut lab = VirtualLab::new(&lab.topology(), Shape::default());
    lab.send("a.eth0", &frame(BROADCAST, mac(1), 100, 0));
    lab.now = lab.now + Duration::from_nanos(MS + 50);
    let now = lab.now;
    lab.engine.turn(now);
    lab.pass(2 * MS);
    assert_eq!(lab.direction("a.eth0", "hub").lateness.buckets, [(50, 1)]);
    // The second link reckons from the ideal time.
    assert_eq!(lab.direction("hub", "b.eth0").lateness.buckets, [(0, 1)]);
}

#[test]
fn queue_depth_and_its_maximum() {
    let direction = Direction {
        queue: Queue {
            limit: Limit::Packets(5),
            ..Queue::default()
        },
        ..microsecond_per_byte()
    };
    let mut lab = pair(&direction);
    for tag in 0..10 {
        lab.send("a.eth0", &data(1000, tag));
    }
    let depth = |lab: &VirtualLab| {
        let d = lab.direction("a.eth0", "b.eth0");
        (d.queued, d.queued_max, d.drops.queue)
    };
    assert_eq!(depth(&lab), (5, 5, 4));
    lab.pass(3 * MS);
    assert_eq!(depth(&lab), (2, 5, 4));
    lab.pass(10 * MS);
    assert_eq!(depth(&lab), (0, 5, 4));
}

#[test]
fn batches_and_the_pool() {
    // What may be overtaken waits in the pool.
    let direction = Direction {
        delay: Duration::from_millis(1),
        reorder: Some(Reorder {
            probability: 0.0,
            gap: 1,
        }),
        ..Direction::default()
    };
    let mut lab = pair(&direction);
    for tag in 0..3 {
        assert!(lab.guest("a.eth0").queue(&data(100, tag)));
    }
    lab.send("a.eth0", &data(100, 3));
    let shard = lab.shard();
    assert_eq!((shard.batches, shard.batch_frames), (1, 4));
    assert_eq!((shard.pool_frames, shard.pool_frames_max), (4, 4));
    assert!(shard.pool_bytes >= 400);
    lab.pass(2 * MS);
    let shard = lab.shard();
    assert_eq!((shard.pool_frames, shard.pool_frames_max), (0, 4));
    assert_eq!(lab.direction("a.eth0", "b.eth0").pool_copies, 4);
    assert!(shard.busy_turns <= shard.turns);
}
