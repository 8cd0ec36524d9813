//! Captures by the program, read back with tshark and tcpdump, which nobody here wrote. `.ci/setup test` installs both.

mod common;
#[path = "common/program.rs"]
mod process;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use common::driver::{Guest, Shape};
use common::frontend::Connection;
use common::{eventually, frame, mac};
use nix::sys::signal::Signal;
use pcap_file::pcapng::PcapNgReader;
use pcap_file::pcapng::blocks::block_common::Block;
use pcap_file::pcapng::blocks::interface_statistics::InterfaceStatisticsOption;
use process::{Program, TOPOLOGY, files, signal, vswitch};

/// Every third frame from `a` to `b` is lost.
const LOSSY: &str = r#"{
  "nodes": { "a": { "kind": "host" }, "b": { "kind": "host" }, "c": { "kind": "host" }, "d": { "kind": "host" } },
  "links": [
    { "endpoints": ["a:eth0", "b:eth0"], "forward": { "loss": { "every": 3 } } },
    { "endpoints": ["c:eth0", "d:eth0"], "name": "other", "delay": "1us" }
  ]
}"#;

/// A guest at an interface.
struct Station {
    guest: Guest,
    _connection: Connection,
}

impl Station {
    fn new(program: &Program, interface: &str) -> Self {
        let guest = Guest::new(Shape::default());
        let connection = Connection::start(
            &program.path(&format!("{}.sock", interface.replace('.', "/"))),
            &guest,
        );
        Self {
            guest,
            _connection: connection,
        }
    }

    fn send(&mut self, frame: &[u8]) {
        eventually("a free descriptor", || self.guest.queue(frame));
        self.guest.tx.publish();
        self.guest.tx.kick.write(1).unwrap();
    }
}

/// A running `vswitch capture` with its standard output in a file.
fn capture(program: &Program, file: &str, args: &[&str]) -> Child {
    let out = File::create(program.path(file)).unwrap();
    let child = program
        .client("capture")
        .args(args)
        .stdout(out)
        .spawn()
        .unwrap();
    // The first blocks are there when the capture has begun.
    let running = || std::fs::metadata(program.path(file)).unwrap().len() > 0;
    eventually("the beginning of the capture", running);
    child
}

fn finish(mut child: Child) {
    signal(&child, Signal::SIGINT);
    assert!(child.wait().unwrap().success());
}

fn output(command: &mut Command) -> String {
    let name = command.get_program().to_owned();
    let output = command.output();
    let output =
        output.unwrap_or_else(|e| panic!("{}: {e}; `.ci/setup test` installs it", name.display()));
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
    String::from_utf8(output.stdout).unwrap()
}

/// For each interface the frames tshark sees: their lengths, captured lengths and comments, in order.
fn tshark(file: &Path) -> BTreeMap<String, Vec<(u64, u64, String)>> {
    let mut command = Command::new("tshark");
    command.args(["-n", "-T", "fields", "-r"]).arg(file);
    for field in [
        "frame.interface_name",
        "frame.len",
        "frame.cap_len",
        "frame.comment",
        "frame.time_epoch",
    ] {
        command.args(["-e", field]);
    }
    let mut frames: BTreeMap<_, Vec<_>> = BTreeMap::new();
    let mut last = String::new();
    for line in output(&mut command).lines() {
        let fields: Vec<_> = line.split('\t').collect();
        let [interface, len, kept, comment, time] = fields[..] else {
            panic!("{line}");
        };
        assert!(time >= last.as_str(), "{time} after {last}");
        assert_eq!(
            time.split_once('.').unwrap().1.len(),
            9,
            "nanoseconds: {time}"
        );
        time.clone_into(&mut last);
        let frame = (
            len.parse().unwrap(),
            kept.parse().unwrap(),
            comment.to_owned(),
        );
        frames.entry(interface.to_owned()).or_default().push(frame);
    }
    frames
}

/// Frames seen, let through by the filter, and lost, as the statistics at the end of a capture tell them.
fn statistics(file: &Path) -> Vec<[u64; 3]> {
    let mut reader = PcapNgReader::new(File::open(file).unwrap()).unwrap();
    let mut all = Vec::new();
    while let Some(block) = reader.next_block() {
        if let Block::InterfaceStatistics(statistics) = block.unwrap().0 {
            let mut told = [None; 3];
            for option in statistics.options {
                match option {
                    InterfaceStatisticsOption::IsbIfRecv(n) => told[0] = Some(n),
                    InterfaceStatisticsOption::IsbFilterAccept(n) => told[1] = Some(n),
                    InterfaceStatisticsOption::IsbIfDrop(n) => told[2] = Some(n),
                    _ => {}
                }
            }
            all.push(told.map(Option::unwrap));
        }
    }
    all
}

/// Several links in one file, every point, compared with the counters exactly.
#[test]
fn tshark_sees_what_the_counters_say() {
    let p = Program::run(LOSSY, &[]);
    let mut stations = ["a.eth0", "b.eth0", "c.eth0", "d.eth0"].map(|name| Station::new(&p, name));
    let child = capture(&p, "all.pcapng", &["--point", "before,after,drops"]);
    assert_eq!(p.counters().captures, 1);
    for tag in 0..50 {
        stations[0].send(&frame(mac(2), mac(1), 60 + tag as usize, tag));
        stations[2].send(&frame(mac(4), mac(3), 200, tag));
        stations[1].send(&frame(mac(1), mac(2), 100, tag));
        for station in &mut stations {
            station.guest.receive_all();
        }
    }
    eventually("all frames", || {
        let out = |from, to| p.direction(from, to).out_frames;
        (
            out("a.eth0", "b.eth0"),
            out("b.eth0", "a.eth0"),
            out("c.eth0", "d.eth0"),
        ) == (34, 50, 50)
    });
    finish(child);
    eventually("the end of the capture", || p.counters().captures == 0);
    let file = p.path("all.pcapng");
    let frames = tshark(&file);
    let stats = p.counters();
    let mut compared = 0;
    for d in stats.links.iter().flat_map(|l| &l.directions) {
        let at = |point: &str| {
            let name = format!("{} > {} ({point})", d.from, d.to);
            frames.get(&name).cloned().unwrap_or_default()
        };
        let total = |frames: &[(u64, u64, String)]| {
            (frames.len() as u64, frames.iter().map(|f| f.0).sum::<u64>())
        };
        assert_eq!(total(&at("before")), (d.in_frames, d.in_bytes));
        assert_eq!(total(&at("after")), (d.out_frames, d.out_bytes));
        let drops = at("drops");
        assert_eq!(drops.len() as u64, d.drops.total());
        assert!(
            drops.iter().all(|f| f.2 == "loss" && f.0 == f.1),
            "{drops:?}"
        );
        compared += d.in_frames;
    }
    assert_eq!(compared, 150);
    let told = statistics(&file);
    let seen: Vec<u64> = told.iter().map(|t| t[0]).collect();
    assert_eq!(seen, [50, 34, 16, 50, 50, 0, 50, 50, 0, 0, 0, 0]);
    assert!(told.iter().all(|t| t[1] == t[0] && t[2] == 0), "{told:?}");
}

/// What the switch lets through is what libpcap lets through.
#[test]
fn filters_as_libpcap_has_them() {
    let p = Program::start();
    let mut a = Station::new(&p, "a.eth0");
    let mut b = Station::new(&p, "b.eth0");
    let expressions = [
        "udp",
        "ip6",
        "arp or vlan",
        "vlan 5 and udp dst port 53",
        "udp port 53 or tcp[tcpflags] & tcp-syn != 0",
        "greater 200 and not ip proto 17",
        "ether src 02:00:00:00:00:01 and ether[20] > 128",
        "ip[2:2] - 20 > 100",
    ];
    let names: Vec<String> = (0..expressions.len())
        .map(|n| format!("{n}.pcapng"))
        .collect();
    let captures: Vec<_> = expressions
        .iter()
        .zip(&names)
        .map(|(filter, file)| {
            capture(
                &p,
                file,
                &["a.eth0>b.eth0", "--snaplen", "64", "--filter", filter],
            )
        })
        .collect();
    let all = capture(&p, "all.pcapng", &["a.eth0>b.eth0"]);
    for tag in 0..400u32 {
        a.send(&packet(tag));
        eventually("the frame", || b.guest.receive().is_some());
    }
    captures.into_iter().for_each(finish);
    finish(all);
    for (filter, name) in expressions.iter().zip(&names) {
        let mut tcpdump = Command::new("tcpdump");
        tcpdump
            .arg("-nr")
            .arg(p.path("all.pcapng"))
            .args(["--count", filter]);
        let told = output(&mut tcpdump);
        let expected: u64 = told.split(' ').next().unwrap().parse().unwrap();
        let [[seen, accepted, lost]] = statistics(&p.path(name))[..] else {
            panic!("{name}");
        };
        assert_eq!((seen, accepted, lost), (400, expected, 0), "{filter}");
        assert!((1..400).contains(&expected), "{filter}: {expected}");
        let frames = tshark(&p.path(name))
            .remove("a.eth0 > b.eth0 (after)")
            .unwrap();
        assert_eq!(frames.len() as u64, expected, "{filter}");
        assert!(frames.iter().all(|f| f.1 == f.0.min(64)), "{filter}");
    }
}

/// Frames of several protocols, all different.
fn packet(tag: u32) -> Vec<u8> {
    let mut f = frame(mac(2), mac(1), 80 + (tag as usize * 7) % 400, tag);
    let vlan = tag % 4 == 1;
    let ip = if vlan {
        f[12..16].copy_from_slice(&[0x81, 0, 0, 5 + (tag % 3) as u8]);
        18
    } else {
        14
    };
    let kind = match tag % 5 {
        0 => [0x08, 0x06],
        1 | 2 => [0x08, 0x00],
        3 => [0x86, 0xdd],
        _ => [0x88, 0xb5],
    };
    f[ip - 2..ip].copy_from_slice(&kind);
    let protocol = if tag % 7 < 3 { 6 } else { 17 };
    match kind {
        [0x08, 0x00] => {
            // Some with options, so that the transport header moves.
            let header = 5 + (tag % 2) as u8;
            f[ip] = 0x40 | header;
            let len = (f.len() - ip) as u16;
            f[ip + 2..ip + 4].copy_from_slice(&len.to_be_bytes());
            f[ip + 6..ip + 8].copy_from_slice(&[0, 0]);
            f[ip + 9] = protocol;
            let port = ip + usize::from(header) * 4 + 2;
            f[port..port + 2].copy_from_slice(&(50 + (tag % 6) as u16).to_be_bytes());
        }
        [0x86, 0xdd] => {
            f[ip] = 0x60;
            f[ip + 6] = protocol;
            f[ip + 42..ip + 44].copy_from_slice(&(50 + (tag % 6) as u16).to_be_bytes());
        }
        _ => {}
    }
    f
}

/// From the first frame to the last, and complete although the switch is ended under it.
#[test]
fn from_start_to_end() {
    let options = "run.pcapng,link=b.eth0>a.eth0,point=before,point=after,filter=ether[0] = 2";
    let mut p = Program::run(TOPOLOGY, &["--capture", options, "--capture", "all.pcapng"]);
    let mut a = Station::new(&p, "a.eth0");
    let mut b = Station::new(&p, "b.eth0");
    let live = capture(&p, "live.pcapng", &[]);
    for tag in 0..20 {
        b.send(&frame(
            if tag % 4 == 0 { [1; 6] } else { mac(1) },
            mac(2),
            90,
            tag,
        ));
        eventually("the frame", || a.guest.receive().is_some());
    }
    a.send(&frame(mac(2), mac(1), 90, 0));
    eventually("the frame", || b.guest.receive().is_some());
    assert_eq!(p.counters().captures, 3);
    assert!(p.end(Signal::SIGTERM).success());
    let mut live = live;
    assert!(live.wait().unwrap().success(), "it ends with the switch");
    assert_eq!(
        statistics(&p.path("run.pcapng")),
        [[20, 15, 0], [20, 15, 0]]
    );
    for complete in ["all.pcapng", "live.pcapng"] {
        assert_eq!(
            statistics(&p.path(complete)),
            [[1, 1, 0], [20, 20, 0]],
            "{complete}"
        );
    }
    let frames = tshark(&p.path("run.pcapng"));
    let counts: Vec<_> = frames
        .iter()
        .map(|(name, f)| (name.as_str(), f.len()))
        .collect();
    assert_eq!(
        counts,
        [
            ("b.eth0 > a.eth0 (after)", 15),
            ("b.eth0 > a.eth0 (before)", 15)
        ]
    );
    assert_eq!(
        files(p.dir.path()),
        ["all.pcapng", "live.pcapng", "run.pcapng", "topo.json"]
    );
}

/// Nobody has to say goodbye: a client that is gone, or whose reader is, ends its capture.
#[test]
fn readers_that_leave() {
    let p = Program::start();
    let mut killed = capture(&p, "killed.pcapng", &[]);
    assert_eq!(p.counters().captures, 1);
    killed.kill().unwrap();
    killed.wait().unwrap();
    eventually("the end of the capture", || p.counters().captures == 0);

    let mut piped = p.client("capture").stdout(Stdio::piped()).spawn().unwrap();
    let mut pipe = piped.stdout.take().unwrap();
    pipe.read_exact(&mut [0; 100]).unwrap();
    assert_eq!(p.counters().captures, 1);
    drop(pipe);
    assert!(
        piped.wait().unwrap().success(),
        "like any program in a pipe"
    );
    eventually("the end of the capture", || p.counters().captures == 0);
}

#[test]
fn mistakes_are_explained() {
    let p = Program::start();
    let told = |args: &[&str]| {
        let output = p
            .client("capture")
            .args(args)
            .stdout(Stdio::null())
            .output()
            .unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    for (args, why) in [
        (&["a:eth0--b:eth1"][..], "did you mean `a:eth0--b:eth0`?"),
        (&["--filter", "udp prot 5"], "`udp prot 5` is refused"),
        (&["--filter", "ip6 protochain 17"], "jumps backward"),
        (&["--point", "afer"], "there are before, after and drops"),
        (&["--snaplen", "0"], "can be 1 to 262144"),
        (&["-w", "/nonexistent/x"], "cannot write /nonexistent/x"),
    ] {
        let told = told(args);
        assert!(told.contains(why), "{args:?}: {told}");
    }
    for bad in [
        r#"{"op":"capture"}"#,
        r#"{"op":"capture","capture":{"links":["x"]}}"#,
        r#"{"op":"capture","capture":{"filter":[[6,0,0]]}}"#,
        r#"{"op":"capture","capture":{"filter":[[5,0,0,9],[6,0,0,0]]}}"#,
        r#"{"op":"capture","capture":{"snaplen":4294967295}}"#,
        r#"{"op":"capture","capture":{"what":1}}"#,
    ] {
        let answer = p.ask(format!("{bad}\n").as_bytes());
        assert!(answer.starts_with("{\"error\":"), "{bad}: {answer}");
    }
    let started = vswitch([
        "run",
        "--config",
        "x",
        "--sockets",
        ".",
        "--control",
        "c",
        "--capture",
        "f,lnk=x",
    ])
    .output();
    let told = String::from_utf8(started.unwrap().stderr).unwrap();
    assert!(told.contains("`lnk=x` is no option of a capture"), "{told}");
}
