//! Ports, links and layer-2 nodes that come and go while traffic runs.

mod common;

use std::path::Path;
use std::time::Duration;

use common::driver::{Guest, Shape};
use common::frontend::Connection;
use common::lab::Running;
use common::virtual_lab::VirtualLab;
use common::{BROADCAST, eventually, frame, mac};
use proptest::prelude::*;
use topology::model::Topology;
use vswitch::filters::Filters;
use vswitch::port::Policy;
use vswitch::switch::{Options, RewireError, Sockets, StartError, Switch};

const MS: u64 = 1_000_000;

/// Machines of the names given, and `links`; `s` and `t` are switches, `u` is a hub.
fn topology(machines: &str, links: &[&str]) -> Topology {
    let machine = |name| {
        format!(r#""{name}": {{"kind": "host", "interfaces": {{"eth0": {{}}, "eth1": {{}}}}}}, "#)
    };
    let machines: String = machines.chars().map(machine).collect();
    let text = format!(
        r#"{{"name": "lab", "seed": 7, "nodes": {{{machines} "s": {{"kind": "switch"}}, "t": {{"kind": "switch"}}, "u": {{"kind": "hub"}}}}, "links": [{}]}}"#,
        links.join(", ")
    );
    let loaded = Topology::parse(&text, Path::new("lab.json"));
    loaded.unwrap_or_else(|report| panic!("{report}")).topology
}

fn link(a: &str, b: &str, attributes: &str) -> String {
    format!(r#"{{"endpoints": ["{a}", "{b}"]{attributes}}}"#)
}

fn lab(topology: &Topology) -> VirtualLab {
    VirtualLab::new(topology, Shape::default())
}

fn data(tag: u32) -> Vec<u8> {
    frame(mac(2), mac(1), 1000, tag)
}

/// All there is of luck and time in a link, full of frames.
const SHAPED: &str = r#", "rate": "8Mbit", "delay": "3ms", "jitter": "1ms", "loss": "10%", "corrupt": "5%", "duplicate": "5%",
    "queue": {"kind": "fq_codel", "limit": "20packets"}"#;

/// Frames from `a` to `b` and when they arrive, with `between` happening in the middle.
fn run(lab: &mut VirtualLab, mut between: impl FnMut(&mut VirtualLab, u32)) -> Vec<(u64, Vec<u8>)> {
    let mut got = Vec::new();
    for tag in 0..300 {
        lab.send("a.eth0", &data(tag));
        lab.send("b.eth0", &frame(mac(1), mac(2), 500, tag));
        between(lab, tag);
        got.extend(lab.collect("b.eth0", MS * 9 / 10));
        lab.guest("a.eth0").receive_all();
    }
    got.extend(lab.collect("b.eth0", 100 * MS));
    got
}

#[test]
fn what_stays_notices_nothing() {
    for nic in ["", r#", "completion": "nic""#] {
        let ab = link("a:eth0", "b:eth0", &format!("{SHAPED}{nic}"));
        let before = topology(
            "abcd",
            &[&link("c:eth0", "s", ""), &ab, &link("d:eth0", "s", "")],
        );
        let undisturbed = run(&mut lab(&before), |_, _| {});
        assert!(undisturbed.len() > 150, "{}", undisturbed.len());

        let other = topology(
            "xaeb",
            &[
                &link("x:eth0", "t", SHAPED),
                &link("e:eth0", "t", ""),
                &link("s", "t", ""),
                &ab,
            ],
        );
        let mut changed = lab(&before);
        let got = run(&mut changed, |lab, tag| match tag {
            100 => lab.rewire(&other),
            150 => lab.send("x.eth0", &data(0)),
            200 => lab.rewire(&before),
            _ => {}
        });
        assert_eq!(got, undisturbed, "{nic}");
        let d = changed.direction("a.eth0", "b.eth0");
        assert_eq!(d.in_frames, 300, "counters go on");
    }
}

/// A link that is new does not draw what another has drawn or will draw.
#[test]
fn new_links_have_draws_of_their_own() {
    let lossy = |a: &str, b: &str| link(a, b, r#", "loss": "50%", "delay": "1ms""#);
    let ab = lossy("a:eth0", "b:eth0");
    let cd = lossy("c:eth0", "d:eth0");
    let fates = |lab: &mut VirtualLab, from: &str, to: &str| {
        let mut arrived = Vec::new();
        for tag in 0..64 {
            lab.send(from, &data(tag));
            arrived.push(lab.collect(to, 2 * MS).len());
        }
        arrived
    };
    let mut lab = lab(&topology("ab", &[&ab]));
    lab.rewire(&topology("abcd", &[&cd, &ab]));
    let [first, second] = [("a.eth0", "b.eth0"), ("c.eth0", "d.eth0")];
    assert_ne!(
        fates(&mut lab, first.0, first.1),
        fates(&mut lab, second.0, second.1)
    );
}

/// Frames that are anywhere inside a link give back what they occupy when it goes.
#[test]
fn a_link_that_goes_takes_its_frames_along() {
    let slow = r#", "rate": "1Mbit", "delay": "50ms""#;
    for more in [
        "",
        r#", "completion": "nic""#,
        r#", "queue": {"kind": "drr"}"#,
        r#", "jitter": "40ms", "reorder": true"#,
        r#", "duplicate": "50%""#,
    ] {
        let wired = topology(
            "abc",
            &[&link("a:eth0", "b:eth0", &format!("{slow}{more}"))],
        );
        let apart = topology(
            "abc",
            &[&link("a:eth0", "c:eth0", ""), &link("b:eth0", "c:eth1", "")],
        );
        let mut lab = lab(&wired);
        for round in 0..6 {
            for tag in 0..60 {
                lab.send("a.eth0", &data(1000 * round + tag));
                lab.pass(MS);
            }
            let before = lab.collect("b.eth0", 0).len();
            assert!(before < 60, "{more}: {before}");
            lab.rewire(&apart);
            assert!(lab.engine.is_empty(), "{more}");
            assert_eq!(lab.collect("b.eth0", 1000 * MS), [], "{more}");
            // Every buffer is there for the next, of the sender and of the receiver.
            for tag in 0..500 {
                lab.send("a.eth0", &data(tag));
                assert_eq!(lab.receive("c.eth0"), Some(data(tag)), "{more}");
                lab.send("c.eth1", &data(tag));
                assert_eq!(lab.receive("b.eth0"), Some(data(tag)), "{more}");
            }
            lab.rewire(&wired);
        }
    }
}

/// Buffers that frames wait in while others, which have overtaken them, are done.
#[test]
fn a_link_that_goes_in_the_middle_of_disorder() {
    let delayed = topology("ab", &[&link("a:eth0", "b:eth0", r#", "delay": "50ms""#)]);
    let disordered = topology("ab", &[&link("a:eth0", "b:eth0", r#", "reorder": true"#)]);
    let apart = topology("ab", &[]);
    let mut lab = lab(&delayed);
    for round in 0..10 {
        for tag in 0..20 {
            lab.send("a.eth0", &data(tag));
        }
        lab.rewire(&disordered);
        for tag in 20..40 {
            lab.send("a.eth0", &data(tag));
            lab.pass(1000);
        }
        if round % 2 == 0 {
            lab.rewire(&apart);
        }
        let got = lab.collect("b.eth0", 100 * MS);
        assert!(got.len() >= 20, "{}", got.len());
        lab.rewire(&apart);
        lab.rewire(&delayed);
        for tag in 0..300 {
            lab.send("a.eth0", &data(tag));
            assert_eq!(lab.collect("b.eth0", 50 * MS).len(), 1, "{tag}");
        }
    }
}

/// The ports of a switch are numbered by its links; when they move, stations move with them.
#[test]
fn a_switch_knows_its_stations_by_their_new_ports() {
    let to_s = ["a", "b", "c"].map(|n| link(&format!("{n}:eth0"), "s", ""));
    let [a, b, c] = to_s.each_ref().map(String::as_str);
    let mut lab = lab(&topology("abc", &[a, b, c]));
    for (n, name) in [(1, "a.eth0"), (2, "b.eth0"), (3, "c.eth0")] {
        lab.send(name, &frame(BROADCAST, mac(n), 60, 0));
    }
    let receive_all = |lab: &mut VirtualLab| {
        ["a.eth0", "b.eth0", "c.eth0"].map(|n| lab.guest(n).receive_all().len())
    };
    receive_all(&mut lab);
    lab.rewire(&topology("abc", &[c, b]));
    lab.send("b.eth0", &frame(mac(3), mac(2), 60, 1));
    lab.send("c.eth0", &frame(mac(2), mac(3), 60, 2));
    assert_eq!(receive_all(&mut lab), [0, 1, 1], "not flooded");
    lab.rewire(&topology("abc", &[a, b, c]));
    lab.send("b.eth0", &frame(mac(1), mac(2), 60, 3));
    assert_eq!(
        receive_all(&mut lab),
        [1, 0, 1],
        "what was behind a port that went is forgotten"
    );
    lab.send("b.eth0", &frame(mac(3), mac(2), 60, 4));
    assert_eq!(receive_all(&mut lab), [0, 0, 1]);
    // The last port goes, and none takes its number.
    lab.rewire(&topology("abc", &[a, b]));
    lab.send("b.eth0", &frame(mac(3), mac(2), 60, 5));
    assert_eq!(receive_all(&mut lab), [1, 0, 0], "flooded");
}

#[test]
fn attributes_and_schedules_are_exchanged() {
    let ab = |more: &str| topology("ab", &[&link("a:eth0", "b:eth0", more)]);
    let down = |at: &str| format!(r#", "schedule": [{{"at": "{at}", "set": {{"up": false}}}}]"#);
    let mut lab = lab(&ab(&format!(r#", "delay": "10ms"{}"#, down("100ms"))));
    let arrives = |lab: &mut VirtualLab| {
        lab.send("a.eth0", &data(0));
        lab.collect("b.eth0", 20 * MS).len()
    };
    assert_eq!(arrives(&mut lab), 1);
    lab.send("a.eth0", &data(1));
    lab.rewire(&ab(&format!(r#", "delay": "5ms"{}"#, down("300ms"))));
    assert_eq!(
        lab.collect("b.eth0", 9 * MS),
        [],
        "it is on its way already"
    );
    assert_eq!(lab.collect("b.eth0", MS).len(), 1);
    lab.pass(170 * MS);
    assert_eq!(arrives(&mut lab), 1, "at 200 ms: the old schedule is gone");
    lab.pass(100 * MS);
    assert_eq!(arrives(&mut lab), 0, "at 320 ms");
    // What is new is what its schedule has made of it.
    let mut with = |schedule: &str| {
        lab.rewire(&topology("ab", &[]));
        lab.rewire(&ab(schedule));
        arrives(&mut lab)
    };
    assert_eq!(with(&down("100ms")), 0);
    assert_eq!(with(&down("1s")), 1);
    lab.pass(1000 * MS);
    assert_eq!(arrives(&mut lab), 0);
}

const MACHINES: &str = "abcdef";

/// A lab of machines on three layer-2 nodes in a row.
#[derive(Debug, Clone)]
struct Design {
    /// For each machine the layer-2 node it is linked with, if any.
    homes: Vec<Option<usize>>,
    /// Whether the first two and the last two are joined.
    joined: [bool; 2],
    /// Attributes of the machines' links.
    attributes: usize,
    /// The links in the opposite order.
    turned: bool,
    /// There is only every other machine.
    thinned: bool,
}

impl Design {
    fn machines(&self) -> impl Iterator<Item = (usize, char)> {
        let (thinned, all) = (self.thinned, MACHINES.chars().enumerate());
        all.filter(move |(n, _)| !thinned || n % 2 == 0)
    }

    fn topology(&self) -> Topology {
        let attributes = [
            "",
            r#", "delay": "1ms""#,
            r#", "rate": "10Mbit", "completion": "nic""#,
            r#", "rate": "10Mbit", "queue": {"kind": "drr"}"#,
        ];
        let nodes = ["s", "t", "u"];
        let mut links = Vec::new();
        for (n, name) in self.machines() {
            if let Some(home) = self.homes[n] {
                let end = format!("{name}:eth0");
                links.push(link(&end, nodes[home], attributes[self.attributes]));
            }
        }
        for (n, joined) in self.joined.iter().enumerate() {
            links.extend(joined.then(|| link(nodes[n], nodes[n + 1], "")));
        }
        if self.turned {
            links.reverse();
        }
        let names: String = self.machines().map(|(_, name)| name).collect();
        topology(
            &names,
            &links.iter().map(String::as_str).collect::<Vec<_>>(),
        )
    }

    fn connected(&self, a: usize, b: usize) -> bool {
        let (Some(a), Some(b)) = (self.homes[a], self.homes[b]) else {
            return false;
        };
        (a.min(b)..a.max(b)).all(|n| self.joined[n])
    }
}

fn designs() -> impl Strategy<Value = Design> {
    let homes = prop::collection::vec(prop::option::of(0..3usize), MACHINES.len());
    let joined = any::<[bool; 2]>();
    (homes, joined, 0..4usize, any::<bool>(), any::<bool>()).prop_map(
        |(homes, joined, attributes, turned, thinned)| Design {
            homes,
            joined,
            attributes,
            turned,
            thinned,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever there was, and whatever is inside: afterwards a frame to all goes where there is a way, once.
    #[test]
    fn a_switch_is_what_it_was_made(all in prop::collection::vec(designs(), 2..8)) {
        let mut lab = lab(&all[0].topology());
        for design in &all {
            lab.rewire(&design.topology());
            lab.pass(50 * MS);
            for (_, name) in design.machines() {
                lab.guest(&format!("{name}.eth0")).receive_all();
            }
            prop_assert!(lab.engine.is_empty());
            for (n, name) in design.machines() {
                lab.send(&format!("{name}.eth0"), &frame(BROADCAST, mac(n as u8), 60, 7));
                lab.pass(5 * MS);
                for (other, name) in design.machines() {
                    let got = lab.guest(&format!("{name}.eth0")).receive_all().len();
                    let expected = other != n && design.connected(n, other);
                    prop_assert_eq!(got, usize::from(expected), "{:?} from {} to {}", design, n, other);
                }
            }
            // Some frames are inside everywhere when the next comes.
            for tag in 0..8 {
                for (n, name) in design.machines() {
                    lab.send(&format!("{name}.eth0"), &frame(BROADCAST, mac(n as u8), 600, tag));
                }
            }
        }
    }
}

fn start(topology: &Topology, shards: usize) -> Running {
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        elapsed: Duration::ZERO,
        sockets: Sockets::Folder(dir.path().to_owned()),
        shards,
        cpus: Vec::new(),
        policy: Policy::default(),
        captures: Vec::new(),
        filters: Filters::default(),
    };
    let switch = Switch::start(topology, &options).unwrap();
    Running { switch, dir }
}

struct Station {
    guest: Guest,
    _connection: Connection,
}

impl Station {
    fn new(lab: &Running, name: &str) -> Self {
        let guest = Guest::new(Shape::default());
        let connection = Connection::start(&lab.socket(name), &guest);
        Self {
            guest,
            _connection: connection,
        }
    }

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

/// Traffic over a link that stays, while others come and go and new guests plug in.
#[test]
fn over_sockets() {
    let ab = link("a:eth0", "b:eth0", r#", "delay": "1ms", "rate": "100Mbit""#);
    let small = topology("ab", &[&ab]);
    let large = topology(
        "xaby",
        &[
            &link("x:eth0", "s", ""),
            &ab,
            &link("s", "t", ""),
            &link("y:eth0", "t", ""),
        ],
    );
    let lab = start(&small, 1);
    let view = lab.switch.view();
    let (mut a, mut b) = (Station::new(&lab, "a.eth0"), Station::new(&lab, "b.eth0"));
    let mut tag = 0;
    for _ in 0..5 {
        // Each batch is inside the link when the switch changes.
        let batch: Vec<_> = (0..100).map(|i| data(tag + i)).collect();
        for f in &batch {
            assert!(a.guest.queue(f));
        }
        a.guest.tx.publish();
        view.rewire(&large).unwrap();
        for f in &batch {
            b.expect(f);
        }

        let (mut x, mut y) = (Station::new(&lab, "x.eth0"), Station::new(&lab, "y.eth0"));
        for i in 0..100 {
            x.guest.send(&data(i));
            y.expect(&data(i));
        }
        let names: Vec<_> = lab.stats().links.into_iter().map(|l| l.name).collect();
        assert_eq!(
            names,
            ["x:eth0--s:0", "a:eth0--b:eth0", "s:1--t:0", "y:eth0--t:1"]
        );
        for f in &batch {
            assert!(a.guest.queue(f));
        }
        a.guest.tx.publish();
        view.rewire(&small).unwrap();
        for f in &batch {
            b.expect(f);
        }
        assert!(!lab.socket("x.eth0").exists() && !lab.socket("y.eth0").exists());
        tag += 100;
    }
    let direction = lab.direction("a.eth0", "b.eth0");
    assert_eq!((direction.in_frames, direction.drops.total()), (1000, 0));
    assert_eq!(lab.port("a.eth0").connections, 1);
}

/// Whatever cannot be had, nothing has changed then.
#[test]
fn what_fails_changes_nothing() {
    let (as_, bt) = (link("a:eth0", "s", ""), link("b:eth0", "t", ""));
    let lab = start(&topology("ab", &[&as_, &bt]), 2);
    let view = lab.switch.view();
    let before = lab.stats().links;
    // Somebody else has the socket of one of the new ports.
    let socket = lab.socket("d.eth0");
    std::fs::create_dir(socket.parent().unwrap()).unwrap();
    let taken = std::os::unix::net::UnixListener::bind(socket).unwrap();
    let more = topology("abcd", &[&as_, &bt, &link("c:eth0", "d:eth0", "")]);
    let refused = view.rewire(&more).unwrap_err();
    assert!(
        matches!(refused, RewireError::Start(StartError::Socket(_))),
        "{refused}"
    );
    assert_eq!(lab.stats().links, before);
    assert!(!lab.socket("c.eth0").exists());
    drop(taken);
    // Their groups are on different threads.
    let joined = topology("ab", &[&as_, &bt, &link("s", "t", "")]);
    let refused = view.rewire(&joined).unwrap_err().to_string();
    assert!(
        refused.contains("would be connected, but different threads"),
        "{refused}"
    );
    assert_eq!(lab.stats().links, before);
    let (mut a, _b) = (Station::new(&lab, "a.eth0"), Station::new(&lab, "b.eth0"));
    a.guest.send(&data(0));
    eventually("a frame", || lab.direction("a.eth0", "s").in_frames == 1);
}

#[test]
fn over_the_control_socket() {
    use std::io::{BufRead, BufReader, Write};

    let ab = link("a:eth0", "b:eth0", "");
    let lab = start(&topology("ab", &[&ab]), 1);
    let path = lab.dir.path().join("control.sock");
    let socket = vswitch::socket::Socket::listen(&path).unwrap();
    let _server = vswitch::control::Server::start(
        socket,
        lab.switch.view(),
        jail::filter::Confine::default(),
    )
    .unwrap();
    let mut stream = std::os::unix::net::UnixStream::connect(&path).unwrap();
    let mut ask = |request: &str| {
        stream.write_all(format!("{request}\n").as_bytes()).unwrap();
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line).unwrap();
        line
    };
    let text = r#"{"nodes": {"a": {"kind": "host"}, "c": {"kind": "host"}}, "links": [{"endpoints": ["a:eth0", "c:eth0"]}]}"#;
    let file = lab.dir.path().join("file.json");
    std::fs::write(&file, text).unwrap();
    let request = format!(r#"{{"op":"apply","config":{file:?}}}"#);
    assert_eq!(ask(&request), "{\"apply\":\"done\"}\n");
    assert!(lab.socket("c.eth0").exists() && !lab.socket("b.eth0").exists());
    // The text of a file that is nowhere, or out of sight, with what it copies from.
    let trace = r#""a:eth0", "c:eth0"], "trace": "trace.txt""#;
    let text = text.replace(r#""a:eth0", "c:eth0"]"#, trace);
    let request = |text: &str, trace: &str| {
        let files = serde_json::json!({trace: "1\n2\n"});
        let text = serde_json::json!({"file": "/somewhere/lab.json", "text": text, "files": files});
        serde_json::json!({"op": "apply", "text": text}).to_string()
    };
    let said = ask(&request(&text, "/else/trace.txt"));
    assert!(said.contains("cannot read /somewhere/trace.txt"), "{said}");
    let trace = "/somewhere/trace.txt";
    assert_eq!(ask(&request(&text, trace)), "{\"apply\":\"done\"}\n");
    let shown = &lab.stats().links[0].attributes[0]["trace"];
    assert_eq!(shown, "(2 delivery opportunities)");
    let said = ask(&request(&text.replace("c:eth0", "q:eth0"), trace));
    assert!(
        said.contains("/somewhere/lab.json") && said.contains("there is no node `q`"),
        "{said}"
    );
    assert_eq!(lab.stats().links[0].name, "a:eth0--c:eth0");
}
