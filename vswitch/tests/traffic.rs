//! Guests and switch over real sockets.

mod common;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;

use common::driver::{Guest, Shape};
use common::frontend::{Connection, addresses};
use common::lab::{Lab, Running, pair};
use common::{BROADCAST, eventually, frame, mac};
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vswitch::control::Server;
use vswitch::port::features::OFFERED;
use vswitch::socket::Socket;

/// A connected guest.
struct Station {
    guest: Guest,
    connection: Connection,
}

impl Station {
    fn new(lab: &Running, name: &str, shape: Shape) -> Self {
        let guest = Guest::new(shape);
        let connection = Connection::start(&lab.socket(name), &guest);
        Self { guest, connection }
    }

    /// Waits for a frame.
    #[track_caller]
    fn expect(&mut self, frame: &[u8]) {
        let mut got = None;
        eventually("a frame", || {
            got = self.guest.receive();
            got.is_some()
        });
        assert_eq!(got.as_deref(), Some(frame));
    }
}

fn shapes() -> Vec<Shape> {
    let mut all = Vec::new();
    for event_idx in [false, true] {
        for mergeable in [false, true] {
            for size in [64, 256] {
                all.push(Shape {
                    size,
                    event_idx,
                    mergeable,
                    ..Shape::default()
                });
            }
        }
    }
    all
}

/// Every byte is copied exactly once on an unshaped link, with every combination of features, far around the rings.
#[test]
fn one_copy_on_a_plain_link() {
    for shape in shapes() {
        let lab = pair().run();
        let (mut a, mut b) = (
            Station::new(&lab, "a.eth0", shape),
            Station::new(&lab, "b.eth0", shape),
        );
        let mut bytes = 0;
        for tag in 0..1000 {
            let f = frame(mac(2), mac(1), 14 + (tag as usize * 37) % 1500, tag);
            bytes += f.len() as u64;
            a.guest.send(&f);
            b.expect(&f);
        }
        eventually("counters", || {
            lab.direction("a.eth0", "b.eth0").out_frames == 1000
        });
        let d = lab.direction("a.eth0", "b.eth0");
        assert_eq!((d.in_frames, d.in_bytes, d.out_bytes), (1000, bytes, bytes));
        assert_eq!(
            (d.bytes_copied, d.pool_copies, d.drops.total()),
            (bytes, 0, 0)
        );
        assert_eq!(lab.direction("b.eth0", "a.eth0").in_frames, 0);
    }
}

/// Batches in both directions at once; nothing is lost or reordered as long as there are buffers.
#[test]
fn both_ways_in_batches() {
    let lab = pair().run();
    let shape = Shape::default();
    let (mut a, mut b) = (
        Station::new(&lab, "a.eth0", shape),
        Station::new(&lab, "b.eth0", shape),
    );
    for round in 0..50u32 {
        let batch: Vec<_> = (0..100)
            .map(|i| frame(mac(2), mac(1), 64 + i as usize, round * 100 + i))
            .collect();
        for f in &batch {
            assert!(a.guest.queue(f) && b.guest.queue(f));
        }
        a.guest.tx.publish();
        b.guest.tx.publish();
        for f in &batch {
            a.expect(f);
            b.expect(f);
        }
    }
}

#[test]
fn a_switch_learns_and_a_hub_repeats() {
    for learning in [true, false] {
        let mut lab = Lab::default();
        let machines = ["a", "b", "c"].map(|n| lab.machine(n));
        // A chain of two nodes, so that one passes references on to the other.
        let (first, second) = if learning {
            (lab.switch("x"), lab.switch("y"))
        } else {
            (lab.hub("x"), lab.hub("y"))
        };
        lab.wire(machines[0], first);
        lab.wire(first, second);
        lab.wire(second, machines[1]);
        lab.wire(second, machines[2]);
        let lab = lab.run();
        let [mut a, mut b, mut c] =
            ["a.eth0", "b.eth0", "c.eth0"].map(|n| Station::new(&lab, n, Shape::default()));

        let hello = frame(BROADCAST, mac(1), 60, 1);
        a.guest.send(&hello);
        b.expect(&hello);
        c.expect(&hello);
        let answer = frame(mac(1), mac(2), 60, 2);
        b.guest.send(&answer);
        a.expect(&answer);
        if !learning {
            c.expect(&answer);
        }
        let data = frame(mac(2), mac(1), 1000, 3);
        a.guest.send(&data);
        b.expect(&data);
        if !learning {
            c.expect(&data);
        }
        let last = frame(mac(3), BROADCAST, 60, 4);
        a.guest.send(&last);
        b.expect(&last);
        c.expect(&last);
        assert!(
            a.guest.receive().is_none(),
            "nothing comes back to its sender"
        );

        // Copies are made at the receivers only, however many nodes are in between.
        let stats = lab.stats();
        for d in stats.links.iter().flat_map(|l| &l.directions) {
            let to_machine = d.to.contains('.');
            assert_eq!(
                d.bytes_copied,
                if to_machine { d.out_bytes } else { 0 },
                "{} > {}",
                d.from,
                d.to
            );
            assert_eq!((d.pool_copies, d.drops.total()), (0, 0));
        }
        assert!(
            stats
                .nodes
                .iter()
                .all(|n| n.kind == if learning { "switch" } else { "hub" } && n.frames > 0)
        );
    }
}

/// A broadcast in a loop of switches ends.
#[test]
fn a_loop_does_not_stop_the_switch() {
    let mut lab = Lab::default();
    let machines = ["a", "b"].map(|n| lab.machine(n));
    let nodes = ["x", "y", "z"].map(|n| lab.hub(n));
    lab.wire(machines[0], nodes[0]);
    lab.wire(machines[1], nodes[1]);
    for (x, y) in [(0, 1), (1, 2), (2, 0)] {
        lab.wire(nodes[x], nodes[y]);
    }
    let lab = lab.run();
    let [mut a, mut b] = ["a.eth0", "b.eth0"].map(|n| Station::new(&lab, n, Shape::default()));
    for tag in 0..10 {
        let f = frame(BROADCAST, mac(1), 60, tag);
        a.guest.send(&f);
        eventually("the frame", || b.guest.receive_all().contains(&f));
    }
    let stats = lab.stats();
    assert!(stats.nodes.iter().any(|n| n.looped > 0));
    for d in stats.links.iter().flat_map(|l| &l.directions) {
        assert!(
            d.in_frames <= 10,
            "{} > {} carried {} frames",
            d.from,
            d.to,
            d.in_frames
        );
    }
}

#[test]
fn jumbo_frames_are_spread_over_mergeable_buffers() {
    let lab = pair().run();
    let small = Shape {
        rx_buffer: 256,
        ..Shape::default()
    };
    let (mut a, mut b) = (
        Station::new(&lab, "a.eth0", Shape::default()),
        Station::new(&lab, "b.eth0", small),
    );
    for tag in 0..200 {
        let f = frame(mac(2), mac(1), 1500, tag);
        a.guest.send(&f);
        let mut got = None;
        eventually("a frame", || {
            got = b.guest.receive_and_keep();
            b.guest.rx.publish();
            got.is_some()
        });
        // 12 + 1500 bytes in buffers of 256.
        assert_eq!(got, Some((f, 6)));
    }
}

/// What does not fit the receiver's buffers is dropped and counted, and what fits goes on.
#[test]
fn too_big_without_mergeable_buffers() {
    let lab = pair().run();
    let small = Shape {
        rx_buffer: 256,
        mergeable: false,
        ..Shape::default()
    };
    let (mut a, mut b) = (
        Station::new(&lab, "a.eth0", Shape::default()),
        Station::new(&lab, "b.eth0", small),
    );
    a.guest.send(&frame(mac(2), mac(1), 245, 0));
    let fits = frame(mac(2), mac(1), 244, 1);
    a.guest.send(&fits);
    b.expect(&fits);
    assert_eq!(lab.direction("a.eth0", "b.eth0").drops.too_big, 1);
}

/// A line to the control socket, and its answer.
fn ask(stream: &UnixStream, request: &str) -> String {
    let mut line = request.as_bytes().to_vec();
    line.push(b'\n');
    (&mut &*stream).write_all(&line).unwrap();
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).unwrap();
    answer
}

#[test]
fn a_link_is_changed_by_request() {
    let lab = pair().run();
    let path = lab.dir.path().join("control.sock");
    let socket = Socket::listen(&path).unwrap();
    let server =
        Server::start(socket, lab.switch.view(), jail::filter::Confine::default()).unwrap();
    let stream = UnixStream::connect(&path).unwrap();
    let mut a = Station::new(&lab, "a.eth0", Shape::default());
    let mut b = Station::new(&lab, "b.eth0", Shape::default());
    let (there, back) = (frame(mac(2), mac(1), 100, 1), frame(mac(1), mac(2), 100, 2));
    let set = |what: &str| {
        let request = format!(r#"{{"op":"set","link":"link0","set":{what}}}"#);
        assert_eq!(ask(&stream, &request), "{\"set\":\"done\"}\n");
    };
    set(r#"{"rate": "1Gbit", "queue": {"kind": "fq_codel"}, "backward": {"up": false}}"#);
    a.guest.send(&there);
    b.expect(&there);
    b.guest.send(&back);
    eventually("a drop", || {
        lab.direction("b.eth0", "a.eth0").drops.carrier == 1
    });
    set(r#"{"up": true, "rate": "unlimited"}"#);
    b.guest.send(&back);
    a.expect(&back);
    for (request, says) in [
        (
            r#"{"op":"set","link":"no","set":{"up":true}}"#,
            "no link `no`",
        ),
        (
            r#"{"op":"set","link":"link0","set":{"loss":1}}"#,
            "needs a unit",
        ),
        (r#"{"op":"set","link":"link0","set":{}}"#, "nothing is set"),
        (r#"{"op":"set","link":"link0"}"#, "not a request"),
        (r#"{"op":"stop"}"#, "unknown variant `stop`"),
    ] {
        let answer = ask(&stream, request);
        assert!(
            answer.starts_with("{\"error\":") && answer.contains(says),
            "{answer}"
        );
    }
    assert!(ask(&stream, r#"{"op":"stats"}"#).starts_with("{\"stats\":{"));
    assert!(ask(&stream, r#"{"op":"brief"}"#).starts_with("{\"stats\":{"));
    drop(server);
}

/// A receiver that posts nothing costs a counted drop per frame, and the sender's buffers come back.
#[test]
fn no_buffer_is_a_counted_drop() {
    let lab = pair().run();
    let shape = Shape {
        size: 64,
        ..Shape::default()
    };
    let mut a = Station::new(&lab, "a.eth0", shape);
    let b = Station::new(&lab, "b.eth0", shape);
    for tag in 0..100 {
        let f = frame(mac(2), mac(1), 100, tag);
        eventually("room", || a.guest.queue(&f));
        a.guest.tx.publish();
    }
    eventually("drops", || {
        lab.direction("a.eth0", "b.eth0").drops.no_rx_buffer == 36
    });
    assert_eq!(b.guest.rx.used_index(), 64);
}

#[test]
fn nobody_there_is_a_counted_drop() {
    let mut lab = pair();
    let lonely = lab.machine("c");
    lab.unlinked(lonely);
    let lab = lab.run();
    let mut a = Station::new(&lab, "a.eth0", Shape::default());
    let mut c = Station::new(&lab, "c.eth0", Shape::default());
    a.guest.send(&frame(mac(2), mac(1), 100, 0));
    c.guest.send(&frame(mac(2), mac(1), 100, 0));
    eventually("the drop", || {
        lab.direction("a.eth0", "b.eth0").drops.disconnected == 1
    });
    eventually("the count", || lab.port("c.eth0").unlinked == 1);
    eventually("the buffer", || {
        a.guest.tx.used_index() == 1 && c.guest.tx.used_index() == 1
    });
}

/// Interrupts come when they are asked for and not otherwise.
#[test]
fn interrupts_by_flag() {
    let lab = pair().run();
    let shape = Shape {
        event_idx: false,
        ..Shape::default()
    };
    let (mut a, mut b) = (
        Station::new(&lab, "a.eth0", shape),
        Station::new(&lab, "b.eth0", shape),
    );
    let f = frame(mac(2), mac(1), 60, 0);
    a.guest.send(&f);
    b.expect(&f);
    eventually("an interrupt", || b.guest.rx.interrupted());
    b.guest.rx.set_no_interrupt(true);
    for _ in 0..20 {
        a.guest.send(&f);
        b.expect(&f);
    }
    // The last one is surely over when the next has been through.
    assert!(!b.guest.rx.interrupted());
    b.guest.rx.set_no_interrupt(false);
    a.guest.send(&f);
    b.expect(&f);
    eventually("an interrupt", || b.guest.rx.interrupted());
}

#[test]
fn interrupts_by_index() {
    let lab = pair().run();
    let shape = Shape::default();
    let (mut a, b) = (
        Station::new(&lab, "a.eth0", shape),
        Station::new(&lab, "b.eth0", shape),
    );
    let f = frame(mac(2), mac(1), 60, 0);
    a.guest.send(&f);
    eventually("an interrupt", || b.guest.rx.interrupted());
    // The tenth from the start, no earlier.
    b.guest.rx.set_used_event(9);
    for n in 2..=9u16 {
        a.guest.send(&f);
        eventually("the frame", || b.guest.rx.used_index() == n);
    }
    std::thread::sleep(std::time::Duration::from_millis(20));
    assert!(!b.guest.rx.interrupted());
    a.guest.send(&f);
    eventually("an interrupt", || b.guest.rx.interrupted());
}

/// An idle switch sleeps, and a kick wakes it.
#[test]
fn sleeps_when_idle() {
    for timing in [
        topology::model::Timing::Eco,
        topology::model::Timing::Balanced,
    ] {
        let mut lab = pair();
        lab.timing = timing;
        let lab = lab.run();
        let (mut a, mut b) = (
            Station::new(&lab, "a.eth0", Shape::default()),
            Station::new(&lab, "b.eth0", Shape::default()),
        );
        for tag in 0..5 {
            let mut turns = u64::MAX;
            eventually("rest", || {
                std::thread::sleep(std::time::Duration::from_millis(20));
                let now = lab.stats().shards[0].turns;
                std::mem::replace(&mut turns, now) == now
            });
            let f = frame(mac(2), mac(1), 60, tag);
            assert!(a.guest.queue(&f));
            assert!(a.guest.tx.publish(), "an idle switch asks for kicks");
            b.expect(&f);
        }
    }
}

/// With `exact` the switch looks by itself, however long nothing has come.
#[test]
fn exact_does_not_sleep() {
    let mut lab = pair();
    lab.timing = topology::model::Timing::Exact;
    let lab = lab.run();
    let (mut a, mut b) = (
        Station::new(&lab, "a.eth0", Shape::default()),
        Station::new(&lab, "b.eth0", Shape::default()),
    );
    std::thread::sleep(std::time::Duration::from_millis(20));
    let f = frame(mac(2), mac(1), 60, 0);
    assert!(a.guest.queue(&f));
    assert!(!a.guest.tx.publish(), "no kick is asked for");
    b.expect(&f);
    let before = lab.stats().shards[0].turns;
    eventually("another turn", || lab.stats().shards[0].turns > before);
}

/// After stopping and starting, rings go on where they were.
#[test]
fn rings_stop_and_go_on() {
    let lab = pair().run();
    let (mut a, mut b) = (
        Station::new(&lab, "a.eth0", Shape::default()),
        Station::new(&lab, "b.eth0", Shape::default()),
    );
    let mut sent = 0u32;
    for round in 0..5 {
        for _ in 0..7 {
            let f = frame(mac(2), mac(1), 200, sent);
            a.guest.send(&f);
            b.expect(&f);
            sent += 1;
        }
        let bases = a.connection.stop_rings();
        assert_eq!(bases, [0, sent as u16]);
        assert!(!lab.port("a.eth0").sending);
        // Sent while it is stopped; taken as soon as it goes on.
        let f = frame(mac(2), mac(1), 200, sent);
        a.guest.send(&f);
        std::thread::sleep(std::time::Duration::from_millis(5));
        assert!(b.guest.receive().is_none(), "round {round}");
        a.connection.start_rings(&a.guest, bases).unwrap();
        b.expect(&f);
        sent += 1;
    }
    // Disabling keeps a ring; enabling goes on with it.
    a.connection.frontend.set_vring_enable(1, false).unwrap();
    let f = frame(mac(2), mac(1), 200, sent);
    a.guest.send(&f);
    a.connection.frontend.set_vring_enable(1, true).unwrap();
    b.expect(&f);
}

/// The memory table may be sent again while rings run.
#[test]
fn memory_is_replaced_under_running_rings() {
    let lab = pair().run();
    let (mut a, mut b) = (
        Station::new(&lab, "a.eth0", Shape::default()),
        Station::new(&lab, "b.eth0", Shape::default()),
    );
    for tag in 0..20 {
        a.connection.share(&a.guest.memory).unwrap();
        b.connection.share(&b.guest.memory).unwrap();
        let f = frame(mac(2), mac(1), 300, tag);
        a.guest.send(&f);
        b.expect(&f);
    }
}

/// A guest that is gone without a word loses its rings at once; the next one is served.
#[test]
fn killed_and_back() {
    let lab = pair().run();
    let mut b = Station::new(&lab, "b.eth0", Shape::default());
    for round in 0..5 {
        let mut a = Station::new(&lab, "a.eth0", Shape::default());
        let f = frame(mac(2), mac(1), 300, round);
        a.guest.send(&f);
        b.expect(&f);
        // As the kernel does for a killed process: the connection is closed, the memory is left as it is.
        drop(a.connection);
        eventually("the end", || !lab.port("a.eth0").connected);
        let port = lab.port("a.eth0");
        assert!(!port.sending && !port.receiving);
        assert_eq!(port.last_error, None);
        let before = a.guest.tx.used_index();
        a.guest.send(&f);
        b.guest.send(&f);
        eventually("the drop", || {
            lab.direction("b.eth0", "a.eth0").drops.disconnected == u64::from(round) + 1
        });
        assert_eq!(
            a.guest.tx.used_index(),
            before,
            "the memory of a guest that is gone is not touched"
        );
    }
    assert_eq!(lab.port("a.eth0").connections, 5);
    assert!(b.guest.receive().is_none());
}

/// The same guest comes back to a new switch and goes on from its used indices, as after a crash of the switch; also if its front-end
/// does not know them.
#[test]
fn a_guest_outlives_the_switch() {
    let mut a = Guest::new(Shape::default());
    let mut b = Guest::new(Shape::default());
    for round in 0..4u32 {
        let lab = pair().run();
        let mut ca = Connection::open(&lab.socket("a.eth0"), &a);
        let mut cb = Connection::open(&lab.socket("b.eth0"), &b);
        for (connection, guest) in [(&mut ca, &a), (&mut cb, &b)] {
            connection.share(&guest.memory).unwrap();
            let known = [guest.rx.used_index(), guest.tx.used_index()];
            let bases = if round < 2 { known } else { [0, 0] };
            connection.start_rings(guest, bases).unwrap();
        }
        for tag in 0..300 {
            let f = frame(mac(2), mac(1), 100, round * 1000 + tag);
            a.send(&f);
            eventually("a frame", || b.receive() == Some(f.clone()));
        }
    }
}

/// Groups of links run on threads of their own.
#[test]
fn several_shards() {
    let mut lab = Lab::default();
    for i in 0..4 {
        let (a, b) = (lab.machine(&format!("a{i}")), lab.machine(&format!("b{i}")));
        lab.wire(a, b);
    }
    let lab = lab.run_with(vswitch::port::Policy::default(), 3);
    for i in 0..4 {
        let mut a = Station::new(&lab, &format!("a{i}.eth0"), Shape::default());
        let mut b = Station::new(&lab, &format!("b{i}.eth0"), Shape::default());
        let f = frame(mac(2), mac(1), 300, i);
        a.guest.send(&f);
        b.expect(&f);
    }
    assert!(lab.stats().shards.iter().all(|s| s.busy_turns > 0));
}

/// Ending the switch closes connections and removes sockets.
#[test]
fn the_end_leaves_nothing() {
    let lab = pair().run();
    let a = Station::new(&lab, "a.eth0", Shape::default());
    let Running { switch, dir } = lab;
    drop(switch);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    assert!(a.connection.frontend.get_features().is_err());
}

/// QEMU enables its rings before it sets features, and not again.
#[test]
fn rings_enabled_before_features() {
    let lab = pair().run();
    let mut b = Station::new(&lab, "b.eth0", Shape::default());
    let mut guest = Guest::new(Shape::default());
    let mut stream = UnixStream::connect(lab.socket("a.eth0")).unwrap();
    for ring in [0u32, 1] {
        // SET_VRING_ENABLE, version 1, 8 bytes.
        let message = [18, 1, 8, ring, 1];
        let bytes: Vec<u8> = message.iter().flat_map(|w| w.to_le_bytes()).collect();
        stream.write_all(&bytes).unwrap();
    }
    let mut connection = Connection::on(stream);
    connection.negotiate(OFFERED).unwrap();
    connection.share(&guest.memory).unwrap();
    for (i, ring) in [&guest.rx, &guest.tx].into_iter().enumerate() {
        let f = &connection.frontend;
        f.set_vring_num(i, ring.size).unwrap();
        f.set_vring_addr(i, &addresses(&guest, ring)).unwrap();
        f.set_vring_kick(i, &ring.kick).unwrap();
        // The call may come, and change, while the ring runs.
        f.set_vring_call(i, &ring.call).unwrap();
    }
    let f = frame(mac(2), mac(1), 300, 1);
    guest.send(&f);
    b.expect(&f);
    eventually("an interrupt", || guest.tx.interrupted());
    b.guest.send(&f);
    eventually("a frame", || guest.receive() == Some(f.clone()));
}
