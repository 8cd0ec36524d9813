//! Machines that try to hold up others: how long those wait is bounded.

mod common;

use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::arena::{ATTACKED, Arena};
use common::driver::{BASE, DriverRing, Guest, INDIRECT, NEXT, SIZE, Shape, WRITE};
use common::frontend::{Connection, addresses};
use common::lab::Lab;
use common::{eventually, frame, mac};
use jail::attempt::held;
use rustix::fs::{OFlags, fcntl_setfl};
use topology::model::{Completion, Direction, Limit, Queue};
use vhost::vhost_user::VhostUserFrontend;
use vhost::{VhostBackend, VhostUserMemoryRegionInfo};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

/// Both of a port's call descriptors are full and block, whatever the switch does to their flags, until the switch closes the connection.
#[test]
fn a_call_descriptor_that_blocks() {
    let mut lab = Lab::default();
    let machines = ["a", "b", "c", "d"].map(|n| lab.machine(n));
    lab.wire(machines[0], machines[1]);
    lab.wire(machines[2], machines[3]);
    let lab = lab.run();
    let guests = ["a.eth0", "b.eth0", "c.eth0", "d.eth0"].map(|name| {
        let guest = Guest::new(Shape::default());
        let connection = Connection::start(&lab.socket(name), &guest);
        (guest, connection)
    });
    let [(mut a, at_a), at_b, (mut other, _c), (mut neighbour, _d)] = guests;
    // The first interrupt after a start is not the one that counts.
    a.send(&frame(mac(2), mac(1), 100, 1));
    eventually("the first completion", || a.tx.used_index() == 1);

    let calls = [&a.tx.call, &a.rx.call].map(|call| {
        let fd = call.try_clone().unwrap().into_raw_fd();
        // SAFETY: the clone owned it and has given it up.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let _ = call.read();
        fcntl_setfl(&fd, OFlags::empty()).unwrap();
        // A writer that blocks is all that could fill it up entirely.
        assert_eq!(rustix::io::write(&fd, &(u64::MAX - 1).to_ne_bytes()), Ok(8));
        fd
    });
    let ended = Arc::new(AtomicBool::new(false));
    let stubborn = {
        let (ended, calls) = (Arc::clone(&ended), calls);
        std::thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                for fd in &calls {
                    fcntl_setfl(fd, OFlags::empty()).unwrap();
                }
            }
        })
    };

    a.send(&frame(mac(2), mac(1), 100, 2));
    let begin = Instant::now();
    let mut longest = Duration::ZERO;
    let mut tag = 10;
    while begin.elapsed() < Duration::from_millis(500) || lab.port("a.eth0").connected {
        tag += 1;
        let f = frame(mac(4), mac(3), 300, tag);
        let sent = Instant::now();
        other.send(&f);
        eventually("traffic of others", || {
            neighbour.receive() == Some(f.clone())
        });
        longest = longest.max(sent.elapsed());
    }
    let port = lab.port("a.eth0");
    let told = port.last_error.unwrap_or_default();
    assert!(told.contains("made to block"), "{told}");
    assert_eq!(port.violations, 1);
    drop((at_a, at_b));
    // It does not get another try.
    assert!(UnixStream::connect(lab.socket("a.eth0")).is_err());
    ended.store(true, Ordering::Relaxed);
    stubborn.join().unwrap();
    held(
        "a front-end's call descriptor blocks: its port is shut, others wait",
        1,
        Some(longest),
    );
}

const TABLE: u64 = BASE + SIZE / 2;

/// Frames from the attacker's neighbour, as fast as they go.
fn flood(arena: &mut Arena, frames: u32) {
    let f = frame(mac(1), mac(2), 1500, 0);
    for _ in 0..frames {
        if arena.b.0.queue(&f) {
            arena.b.0.tx.publish();
        }
    }
}

/// Posts the same chain under each head.
fn post_everywhere(r: &mut DriverRing, lay: fn(&DriverRing, u16)) {
    for head in 0..r.size {
        lay(r, head);
        r.push(head);
    }
    r.publish();
}

fn with_receive_ring(arena: &mut Arena, lay: fn(&DriverRing, u16)) {
    let mut guest = Guest::new(Shape::default());
    guest.rx.reset();
    let _connection = Connection::start(&arena.lab.socket(ATTACKED), &guest);
    post_everywhere(&mut guest.rx, lay);
    for _ in 0..20 {
        flood(arena, 300);
        arena.others_pass_traffic("a flood into small buffers");
    }
    assert_eq!(guest.rx.used_index(), 0, "nothing fits there");
    assert_eq!(arena.lab.port(ATTACKED).violations, 0);
    assert!(arena.lab.direction("b.eth0", ATTACKED).drops.too_big > 0);
}

/// A small generator; what matters is only that it is quick and always the same.
fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// Lets a thread of the guest write into its memory while the rings are served, over and over again.
fn while_writing(arena: &mut Arena, write: fn(&Guest, &mut u64)) {
    let until = Instant::now() + Duration::from_millis(400);
    while Instant::now() < until {
        let mut guest = Guest::new(Shape::default());
        let connection = Connection::start(&arena.lab.socket(ATTACKED), &guest);
        let f = arena.frame();
        while guest.queue(&f) {}
        guest.tx.publish();
        let ended = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut state = 0x9e37_79b9_7f4a_7c15;
                while !ended.load(Ordering::Relaxed) {
                    write(&guest, &mut state);
                    let _ = guest.tx.kick.write(1);
                }
            });
            for _ in 0..5 {
                flood(arena, 50);
                arena.others_pass_traffic("memory that changes");
            }
            ended.store(true, Ordering::Relaxed);
        });
        connection.stop_rings();
    }
}

type Attack = fn(&mut Arena);

/// What a guest, or a front-end, may do to its neighbour, with whom it shares a thread of the switch.
const ATTACKS: &[(&str, Attack)] = &[
    ("buffers that hold a header and no more", |arena| {
        with_receive_ring(arena, |r, head| r.descriptor(head, TABLE, 12, WRITE, 0));
    }),
    (
        "buffers of 256 pieces without a byte but in the last",
        |arena| {
            with_receive_ring(arena, |r, head| {
                if head == 0 {
                    for i in 0..254 {
                        r.descriptor_in(TABLE, i, TABLE, 0, WRITE | NEXT, i + 1);
                    }
                    r.descriptor_in(TABLE, 254, TABLE + 8192, 12, WRITE, 0);
                }
                r.descriptor(head, TABLE, 16 * 255, INDIRECT, 0);
            });
        },
    ),
    ("no buffers any more", |arena| {
        let guest = Guest::new(Shape::default());
        let _connection = Connection::start(&arena.lab.socket(ATTACKED), &guest);
        for _ in 0..20 {
            flood(arena, 200);
            arena.others_pass_traffic("no buffers");
        }
        eventually("the drops", || {
            arena.lab.direction("b.eth0", ATTACKED).drops.no_rx_buffer > 0
        });
    }),
    ("frames without kicks", |arena| {
        let mut guest = Guest::new(Shape::default());
        let _connection = Connection::start(&arena.lab.socket(ATTACKED), &guest);
        eventually("sleep", || {
            !guest.tx.publish() || guest.tx.kick.read().is_err()
        });
        let f = arena.frame();
        while guest.queue(&f) {}
        guest.tx.set_index(guest.tx.size);
        arena.others_pass_traffic("frames without kicks");
    }),
    ("event indices at random", |arena| {
        while_writing(arena, |guest, state| {
            guest.tx.set_used_event(random(state) as u16);
            guest.rx.set_used_event(random(state) as u16);
        });
    }),
    ("descriptors that change while they are read", |arena| {
        while_writing(arena, |guest, state| {
            for ring in [&guest.tx, &guest.rx] {
                let r = random(state);
                let (index, flags) = ((r % 256) as u16, (r >> 8) as u16 & 7);
                let near = TABLE + (r >> 20) % 4096;
                let address = if r >> 60 == 0 { u64::MAX - 5 } else { near };
                let len = (r >> 32) as u32 % 3000;
                ring.descriptor(index, address, len, flags, (r >> 44) as u16 % 257);
            }
        });
    }),
    (
        "lengths and directions that change while they are read",
        |arena| {
            while_writing(arena, |guest, state| {
                let r = random(state);
                let index = (r % 256) as u16;
                let long = (r >> 8) & 1 == 0;
                let len = if long { 1 << 24 } else { 100 };
                guest
                    .tx
                    .descriptor(index, guest.tx_buffer(index), len, 0, 0);
                guest.rx.descriptor(index, TABLE, len, WRITE, 0);
            });
        },
    ),
    ("indices that change while they are read", |arena| {
        while_writing(arena, |guest, state| {
            let r = random(state);
            guest.tx.set_index(r as u16);
            let slot = GuestAddress(guest.tx.available + 4 + (r >> 16) % 512);
            guest.memory.write_obj((r >> 32) as u8, slot).unwrap();
        });
    }),
    ("rings on top of each other and of buffers", |arena| {
        let mut guest = Guest::new(Shape::default());
        let mut c = Connection::open(&arena.lab.socket(ATTACKED), &guest);
        c.share(&guest.memory).unwrap();
        for index in 0..2 {
            let mut at = addresses(&guest, &guest.tx);
            at.used_ring_addr = at.desc_table_addr;
            at.avail_ring_addr = at.desc_table_addr + 8;
            c.frontend.set_vring_num(index, guest.tx.size).unwrap();
            c.frontend.set_vring_base(index, 0).unwrap();
            c.frontend.set_vring_addr(index, &at).unwrap();
            c.frontend.set_vring_call(index, &guest.tx.call).unwrap();
            c.frontend.set_vring_kick(index, &guest.tx.kick).unwrap();
            c.frontend.set_vring_enable(index, true).unwrap();
        }
        let f = arena.frame();
        for _ in 0..50 {
            guest.queue(&f);
            guest.tx.descriptor(0, guest.tx.descriptors, 2000, 0, 0);
            guest.tx.publish();
            guest.tx.kick.write(1).unwrap();
            flood(arena, 20);
            arena.others_pass_traffic("rings on top of each other");
        }
    }),
    ("a base far from the index", |arena| {
        let guest = Guest::new(Shape::default());
        let mut c = Connection::open(&arena.lab.socket(ATTACKED), &guest);
        c.share(&guest.memory).unwrap();
        c.start_rings(&guest, [30_000, 40_000]).unwrap();
        flood(arena, 10);
        eventually("both violations", || {
            arena.lab.port(ATTACKED).violations >= 2
        });
    }),
    ("rings that start and stop without end", |arena| {
        let mut guest = Guest::new(Shape::default());
        let mut c = Connection::start(&arena.lab.socket(ATTACKED), &guest);
        let f = arena.frame();
        for n in 0..300 {
            c.frontend.set_vring_enable(n % 2, false).unwrap();
            guest.queue(&f);
            guest.tx.publish();
            flood(arena, 5);
            c.frontend.set_vring_enable(n % 2, true).unwrap();
        }
    }),
    ("call descriptors without end", |arena| {
        let guest = Guest::new(Shape::default());
        let c = Connection::start(&arena.lab.socket(ATTACKED), &guest);
        for n in 0..1000 {
            c.frontend.set_vring_call(n % 2, &guest.tx.call).unwrap();
        }
    }),
];

#[test]
fn others_do_not_suffer() {
    let mut arena = Arena::new();
    for (name, attack) in ATTACKS {
        attack(&mut arena);
        arena.others_pass_traffic(name);
        eventually("the end", || !arena.lab.port(ATTACKED).connected);
        arena.b.0.receive_all();
        arena.port_serves_the_next(name);
        arena.nothing_leaks(name);
    }
    held(
        "a guest or front-end keeps the switch busy: others do not wait",
        ATTACKS.len() as u64,
        None,
    );
}

/// A second of delay, so that what is done to frames in flight is done before they arrive.
fn long_link() -> Direction {
    Direction {
        delay: Duration::from_secs(1),
        ..Direction::default()
    }
}

type Removal = fn(&mut Connection, &Guest);

/// Ways of taking the receiver's memory from under frames that are already in its buffers.
const REMOVALS: &[(&str, Removal)] = &[
    ("its memory is removed", |c, guest| {
        let region = guest.memory.iter().next().unwrap();
        let region = VhostUserMemoryRegionInfo::from_guest_region(region).unwrap();
        c.frontend.remove_mem_region(&region).unwrap();
    }),
    ("its memory is replaced", |c, guest| {
        c.share(&guest.memory).unwrap();
    }),
    ("its ring is stopped", |c, _| {
        c.stop_rings();
    }),
    ("its ring is switched off and on", |c, _| {
        c.frontend.set_vring_enable(0, false).unwrap();
        c.frontend.set_vring_enable(0, true).unwrap();
    }),
    ("it resets itself", |c, _| c.frontend.reset_owner().unwrap()),
];

#[test]
fn a_receiver_goes_with_frames_in_its_buffers() {
    let mut arena = Arena::with(&long_link(), Completion::Network);
    for (name, remove) in REMOVALS {
        let guest = Guest::new(Shape::default());
        let mut connection = Connection::start(&arena.lab.socket(ATTACKED), &guest);
        let before = arena.lab.direction("b.eth0", ATTACKED);
        flood(&mut arena, 10);
        eventually("the frames in its buffers", || {
            arena.lab.direction("b.eth0", ATTACKED).in_frames == before.in_frames + 10
        });
        let taken = Instant::now();
        remove(&mut connection, &guest);
        assert!(
            taken.elapsed() < Duration::from_millis(900),
            "too slow to show anything"
        );
        assert_eq!(guest.rx.used_index(), 0);
        eventually(name, || {
            arena.lab.direction("b.eth0", ATTACKED).drops.disconnected
                == before.drops.disconnected + 10
        });
        assert_eq!(guest.rx.used_index(), 0, "{name}");
        arena.others_pass_traffic(name);
        drop((connection, guest));
        arena.nothing_leaks(name);
    }
}

#[test]
fn a_sender_goes_with_frames_in_its_buffers() {
    // A frame of 1000 bytes takes a second.
    let slow = Direction {
        rate: Some(8192),
        queue: Queue {
            limit: Limit::Packets(100),
            ..Queue::default()
        },
        ..Direction::default()
    };
    let mut arena = Arena::with(&slow, Completion::Nic);
    let mut guest = Guest::new(Shape::default());
    let connection = Connection::start(&arena.lab.socket(ATTACKED), &guest);
    let f = frame(mac(2), mac(1), 1000, 1);
    for _ in 0..5 {
        guest.send(&f);
    }
    eventually("frames in the link", || {
        arena.lab.direction(ATTACKED, "b.eth0").in_frames == 5
    });
    drop((connection, guest));
    // Its memory is free long before the frames have had their time.
    arena.nothing_leaks("frames in the buffers of a sender that is gone");
    arena.others_pass_traffic("a sender is gone");
    eventually("their end", || {
        arena.lab.direction(ATTACKED, "b.eth0").drops.sender_gone > 0
    });
    assert_eq!(arena.b.0.receive(), None);
}

/// A guest changes the addresses of frames while the learning switch forwards them: each arrives where its addresses say.
#[test]
fn addresses_that_change_while_they_are_read() {
    let mut lab = Lab::default();
    let machines = ["a", "b", "c"].map(|n| lab.machine(n));
    let switch = lab.switch("s");
    for m in machines {
        lab.wire(m, switch);
    }
    let lab = lab.run();
    let [(mut a, _a), (mut b, _b), (mut c, _c)] = ["a.eth0", "b.eth0", "c.eth0"].map(|name| {
        let guest = Guest::new(Shape::default());
        let connection = Connection::start(&lab.socket(name), &guest);
        (guest, connection)
    });
    // The switch learns where they are.
    b.send(&frame(mac(1), mac(2), 60, 1));
    c.send(&frame(mac(1), mac(3), 60, 1));
    eventually("both", || a.receive().is_some());
    eventually("both", || a.receive().is_some());
    b.receive_all();
    c.receive_all();
    let ended = AtomicBool::new(false);
    let buffers: Vec<u64> = (0..256).map(|i| a.tx_buffer(i) + 12 + 5).collect();
    let memory = Arc::clone(&a.memory);
    let (mut at_b, mut at_c) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut last = 2u8;
            while !ended.load(Ordering::Relaxed) {
                last = 5 - last;
                for at in &buffers {
                    memory.write_obj(last, GuestAddress(*at)).unwrap();
                }
            }
        });
        let until = Instant::now() + Duration::from_millis(300);
        while Instant::now() < until || at_b == 0 || at_c == 0 {
            if a.queue(&frame(mac(2), mac(1), 1000, 7)) {
                a.tx.publish();
            }
            for (guest, n, count) in [(&mut b, 2, &mut at_b), (&mut c, 3, &mut at_c)] {
                for f in guest.receive_all() {
                    assert_eq!(f[..6], mac(n), "it arrived at the wrong place");
                    *count += 1;
                }
            }
        }
        ended.store(true, Ordering::Relaxed);
    });
    held(
        "a guest changes addresses of frames while they are read: each arrives where they say",
        at_b + at_c,
        None,
    );
}
