//! External nodes against the kernel: TAP devices, interfaces of the host, VXLAN.

mod common;
#[path = "common/netns.rs"]
mod netns;

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::driver::{Guest, Shape};
use common::frontend::Connection;
use common::lab::{Lab, Running};
use common::{eventually, frame, mac};
use netns::{Namespace, available};
use topology::model::{Completion, Direction, External, Queue};
use vswitch::stats::ExternalStats;

fn interface(name: &str) -> External {
    External::Interface { name: name.into() }
}

fn tap(name: &str) -> External {
    External::Tap {
        name: name.into(),
        mtu: 1500,
    }
}

fn external(lab: &Running, name: &str) -> ExternalStats {
    let all = lab.stats().externals;
    all.into_iter().find(|e| e.name == name).unwrap()
}

/// A shaped link: 50 Mbit/s and 5 ms each way.
fn shaped() -> Direction {
    Direction {
        rate: Some(50_000_000),
        delay: Duration::from_millis(5),
        queue: Queue::default(),
        ..Direction::default()
    }
}

/// A guest that answers ARP and ping for 10.9.0.1.
struct Responder {
    guest: Guest,
    _connection: Connection,
}

const ADDRESS: [u8; 4] = [10, 9, 0, 1];

impl Responder {
    fn new(lab: &Running, name: &str) -> Self {
        let guest = Guest::new(Shape::default());
        let connection = Connection::start(&lab.socket(name), &guest);
        Self {
            guest,
            _connection: connection,
        }
    }

    fn answer(&mut self) {
        while let Some(frame) = self.guest.receive() {
            let mut reply = frame.clone();
            reply.copy_within(6..12, 0);
            reply[6..12].copy_from_slice(&mac(1));
            match u16::from_be_bytes([frame[12], frame[13]]) {
                0x0806 if frame[38..42] == ADDRESS && frame[21] == 1 => {
                    reply[21] = 2;
                    reply[32..42].copy_from_slice(&frame[22..32]);
                    reply[22..28].copy_from_slice(&mac(1));
                    reply[28..32].copy_from_slice(&ADDRESS);
                }
                0x0800 if frame[23] == 1 && frame[34] == 8 => {
                    reply.copy_within(26..30, 30);
                    reply[26..30].copy_from_slice(&frame[30..34]);
                    // From echo request to reply the checksum grows by what the type has lost.
                    reply[34] = 0;
                    let sum = u32::from(u16::from_be_bytes([frame[36], frame[37]])) + 0x0800;
                    let sum = ((sum & 0xffff) + (sum >> 16)) as u16;
                    reply[36..38].copy_from_slice(&sum.to_be_bytes());
                }
                _ => continue,
            }
            self.guest.send(&reply);
        }
    }
}

/// Pings 10.9.0.1 from `peer`, which `responder` answers; the least round-trip time in ms.
#[track_caller]
fn ping(peer: &Namespace, responder: &mut Responder, options: &str) -> f64 {
    let mut ping = peer.command(&format!("ping -n -c 5 -i 0.05 -W 5 {options} 10.9.0.1"));
    let mut ping = ping.stdout(Stdio::piped()).spawn().unwrap();
    while ping.try_wait().unwrap().is_none() {
        responder.answer();
        std::thread::sleep(Duration::from_micros(200));
    }
    let output = ping.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}");
    assert!(said.contains(" 0% packet loss"), "{said}");
    least(&said)
}

/// `rtt min/avg/max/mdev = 10.2/…`.
fn least(said: &str) -> f64 {
    let (_, times) = said.split_once("mdev = ").unwrap();
    times.split('/').next().unwrap().parse().unwrap()
}

/// Sends by TCP for a second; what arrived, in bit/s.
#[track_caller]
fn tcp(from: &Namespace, to: &Namespace, address: &str, options: &str) -> f64 {
    let mut server = to.iperf3_server();
    let said = from.run(&format!("iperf3 -J -t 2 -c {address} {options}"));
    server.wait().unwrap();
    let result: serde_json::Value = serde_json::from_str(&said).unwrap();
    result["end"]["sum_received"]["bits_per_second"]
        .as_f64()
        .unwrap()
}

/// A guest and a TAP device that was made for the lab, over a shaped link; the device vanishes with the switch.
#[test]
fn tap_device() {
    if !available() {
        return;
    }
    let (here, peer) = (Namespace::new(), Namespace::new());
    here.enter();
    let mut lab = Lab::default();
    let (a, up) = (lab.machine("a"), lab.external("up", tap("hop0")));
    lab.link(a, up, &shaped(), Completion::Network);
    let lab = lab.run();
    assert!(external(&lab, "up").connected);
    assert_eq!(external(&lab, "up").leads_to, "tap hop0");
    assert!(here.run("ip link show hop0").contains("UP"));
    here.ip(&format!("link set hop0 netns {}", peer.name()));
    peer.ip("addr add 10.9.0.2/24 dev hop0");
    peer.ip("link set hop0 up");
    let mut a = Responder::new(&lab, "a.eth0");
    let rtt = ping(&peer, &mut a, "");
    assert!((10.0..500.0).contains(&rtt), "{rtt} ms");
    // Larger than a buffer of the pool.
    peer.ip("link set hop0 mtu 9000");
    let d = lab.direction("a.eth0", "up");
    assert!(d.out_frames >= 5 && d.drops.total() == 0, "{d:?}");
    drop(lab);
    assert!(!peer.run("ip -o link").contains("hop0"));
}

/// What a guest sends arrives bit for bit, and the other way round, whatever VLAN tags it has and however it lies in memory.
#[test]
fn frames_through_an_interface_are_what_they_were() {
    if !available() {
        return;
    }
    let here = Namespace::new();
    here.enter();
    here.ip("link add v0 mtu 1800 type veth peer name v1 mtu 1800");
    here.ip("link set v0 up");
    here.ip("link set v1 up");
    let mut lab = Lab::default();
    let (a, b) = (lab.machine("a"), lab.machine("b"));
    let ends = ["v0", "v1"].map(|v| lab.external(v, interface(v)));
    // One way directly, the other through a switch.
    let switch = lab.switch("sw");
    lab.wire(a, ends[0]);
    lab.wire(ends[1], switch);
    lab.wire(switch, b);
    let lab = lab.run();
    let shape = Shape::default();
    let mut guests = ["a.eth0", "b.eth0"].map(|name| {
        let guest = Guest::new(shape);
        let connection = Connection::start(&lab.socket(name), &guest);
        (guest, connection)
    });
    let tags: [&[u8]; 5] = [
        &[],
        &[0x81, 0, 0x20, 5],
        &[0x81, 0, 0xe0, 0],
        &[0x88, 0xa8, 0, 7, 0x81, 0, 0, 9],
        &[0x81, 0, 0, 7, 0x81, 0, 0, 9],
    ];
    let mut tag = 0;
    let mut sent = 0u64;
    for tags in tags {
        for len in [60, 64, 590, 1514, 1790] {
            for way in [0, 1] {
                tag += 1;
                let mut f = frame(mac(2 - way), mac(1 + way), len - tags.len(), tag);
                f.splice(12..12, tags.iter().copied());
                guests[usize::from(way)].0.send(&f);
                let mut got = None;
                eventually("a frame", || {
                    got = guests[usize::from(1 - way)].0.receive();
                    got.is_some()
                });
                assert_eq!(
                    got.as_deref(),
                    Some(&f[..]),
                    "{tags:02x?}, {len} bytes, way {way}"
                );
                sent += 1;
            }
        }
    }
    let d = lab.direction("a.eth0", "v0");
    assert_eq!((d.out_frames, d.drops.total()), (sent / 2, 0));
    assert_eq!(
        d.bytes_copied, 0,
        "the kernel takes frames from the guest's pages"
    );
    // One in more pieces than the system takes, or longer than the interface takes, is another matter.
    let long = frame(mac(2), mac(1), 1900, 0);
    guests[0].0.send(&long);
    eventually("a drop", || {
        lab.direction("a.eth0", "v0").drops.too_big == 1
    });
}

/// TCP between two namespaces by two interfaces over a shaped link. Their kernels leave checksums and the cutting of
/// superframes to what they take for hardware.
#[test]
fn tcp_between_interfaces() {
    if !available() {
        return;
    }
    let (here, left, right) = (Namespace::new(), Namespace::new(), Namespace::new());
    here.enter();
    for (side, name, address) in [(&left, "l", "10.9.0.1/24"), (&right, "r", "10.9.0.2/24")] {
        here.ip(&format!("link add {name}0 type veth peer name {name}1"));
        here.ip(&format!("link set {name}0 up"));
        here.ip(&format!("link set {name}1 netns {}", side.name()));
        side.ip(&format!("addr add {address} dev {name}1"));
        side.ip(&format!("link set {name}1 up"));
    }
    let mut lab = Lab::default();
    let (l, r) = (
        lab.external("l", interface("l0")),
        lab.external("r", interface("r0")),
    );
    lab.link(l, r, &shaped(), Completion::Network);
    let lab = lab.run();
    let rtt = least(&left.run("ping -n -c 5 -i 0.05 -W 5 10.9.0.2"));
    assert!((10.0..500.0).contains(&rtt), "{rtt} ms");
    let rate = tcp(&left, &right, "10.9.0.2", "");
    assert!((5e6..50e6).contains(&rate), "{rate} bit/s");
    let d = lab.direction("l", "r");
    assert!(d.out_frames > 500, "{d:?}");
    let other = d.drops.total() - d.drops.queue;
    assert_eq!((other, external(&lab, "l").malformed), (0, 0), "{d:?}");
    // No frame was longer than an interface with an MTU of 1500 can send.
    assert!(d.in_bytes <= d.in_frames * 1514, "{d:?}");
}

/// Between TAP devices superframes stay whole, over IPv4 and IPv6, as long as nothing on the link has to see segments; to an interface
/// they are cut.
#[test]
fn superframes_of_tap_devices() {
    if !available() {
        return;
    }
    let (here, left, right, far) = (
        Namespace::new(),
        Namespace::new(),
        Namespace::new(),
        Namespace::new(),
    );
    here.enter();
    here.ip("link add i0 type veth peer name i1");
    here.ip("link set i0 up");
    here.ip(&format!("link set i1 netns {}", far.name()));
    let mut lab = Lab::default();
    let ends = ["l", "r", "t"].map(|name| lab.external(name, tap(&format!("hop-{name}"))));
    let i = lab.external("i", interface("i0"));
    lab.link(ends[0], ends[1], &Direction::default(), Completion::Network);
    lab.link(ends[2], i, &Direction::default(), Completion::Network);
    let lab = lab.run();
    let on = "sysctl -qw net.ipv6.conf.all.disable_ipv6=0 net.ipv6.conf.default.disable_ipv6=0";
    for side in [&left, &right, &far] {
        side.run(on);
    }
    for (side, device, addresses) in [
        (&left, "hop-l", ["10.9.0.1/24", "fd09::1/64", "10.8.0.1/24"]),
        (
            &right,
            "hop-r",
            ["10.9.0.2/24", "fd09::2/64", "10.7.0.1/24"],
        ),
        (&left, "hop-t", ["10.6.0.1/24", "fd06::1/64", "10.5.0.1/24"]),
        (&far, "i1", ["10.6.0.2/24", "fd06::2/64", "10.5.0.2/24"]),
    ] {
        if device != "i1" {
            here.ip(&format!("link set {device} netns {}", side.name()));
        }
        for address in addresses {
            side.ip(&format!("addr add {address} dev {device} nodad"));
        }
        side.ip(&format!("link set {device} up"));
    }
    let frames = |of: &Namespace, device: &str| -> u64 {
        let said = of.run("cat /proc/net/dev");
        let line = said
            .lines()
            .find(|line| line.trim().starts_with(&format!("{device}:")));
        line.unwrap()
            .split_whitespace()
            .nth(2)
            .unwrap()
            .parse()
            .unwrap()
    };
    let whole = |d: &vswitch::stats::DirectionStats| {
        // What a kernel says when its interface comes up may find the other still down.
        assert_eq!(d.drops.total(), d.drops.disconnected, "{d:?}");
        d.out_frames
    };
    for address in ["10.9.0.2", "fd09::2"] {
        for options in ["-t 1", "-t 1 -R"] {
            let (to, device, from, name) = match options {
                "-t 1" => (&right, "hop-r", "l", "r"),
                _ => (&left, "hop-l", "r", "l"),
            };
            let before = (frames(to, device), whole(&lab.direction(from, name)));
            assert!(tcp(&left, &right, address, options) > 0.0);
            let after = (frames(to, device), whole(&lab.direction(from, name)));
            let (received, segments) = (after.0 - before.0, after.1 - before.1);
            assert!(
                segments > 4 * received,
                "{address} {options}: {segments} segments in {received} frames"
            );
        }
    }
    for address in ["10.6.0.2", "fd06::2"] {
        for options in ["-t 1", "-t 1 -R"] {
            let before = lab.direction("t", "i");
            assert!(tcp(&left, &far, address, options) > 0.0);
            let after = lab.direction("t", "i");
            let (bytes, count) = (
                after.out_bytes - before.out_bytes,
                after.out_frames - before.out_frames,
            );
            assert!(bytes <= count * 1514, "{address} {options}: {after:?}");
        }
    }
    for name in ["l", "r", "t", "i"] {
        assert_eq!(external(&lab, name).malformed, 0, "{name}");
    }
}

fn vxlan(vni: u32, remote: &str, local: &str) -> External {
    let address = |ip: &str| SocketAddr::new(ip.parse().unwrap(), 4789);
    External::Vxlan {
        vni,
        remote: address(remote),
        local: address(local),
    }
}

/// A tunnel to a `vxlan` device of Linux, and frames that are not of it.
#[test]
fn vxlan_with_linux() {
    if !available() {
        return;
    }
    let (here, peer) = (Namespace::new(), Namespace::new());
    here.enter();
    here.ip("link add u0 type veth peer name u1");
    here.ip(&format!("link set u1 netns {}", peer.name()));
    here.ip("addr add 192.0.2.1/24 dev u0");
    here.ip("link set u0 up");
    peer.ip("addr add 192.0.2.2/24 dev u1");
    peer.ip("link set u1 up");
    let device = "link add vx0 type vxlan id 42 dstport 4789 local 192.0.2.2 remote 192.0.2.1";
    let mut ip = Command::new("ip");
    ip.args(["-n", peer.name()]).args(device.split(' '));
    if !ip.output().unwrap().status.success() {
        eprintln!("skipped: the kernel has no vxlan devices");
        return;
    }
    peer.ip("addr add 10.9.0.2/24 dev vx0");
    peer.ip("link set vx0 up");
    let mut lab = Lab::default();
    let a = lab.machine("a");
    let far = lab.external("far", vxlan(42, "192.0.2.2", "192.0.2.1"));
    lab.link(a, far, &shaped(), Completion::Network);
    let lab = lab.run();
    let mut a = Responder::new(&lab, "a.eth0");
    let rtt = ping(&peer, &mut a, "");
    assert!((10.0..500.0).contains(&rtt), "{rtt} ms");
    // A frame of 1514 bytes does not fit the path with what the tunnel adds: both sides cut the datagram.
    peer.ip("link set vx0 mtu 1500");
    // The sender's kernel learns of that from the first packet, and cuts the next ones itself.
    ping(&peer, &mut a, "-c 1 -s 1472");
    assert_eq!(external(&lab, "far").malformed, 0);
    // Of another network.
    let before = lab.direction("far", "a.eth0").in_frames;
    peer.ip("link set vx0 down");
    peer.ip("link del vx0");
    peer.ip("link add vx1 type vxlan id 43 dstport 4789 local 192.0.2.2 remote 192.0.2.1");
    peer.ip("addr add 10.9.0.2/24 dev vx1");
    peer.ip("link set vx1 up");
    let _ = peer.command("ping -n -c 2 -i 0.05 -W 1 10.9.0.1").output();
    assert!(external(&lab, "far").malformed > 0);
    assert_eq!(lab.direction("far", "a.eth0").in_frames, before);
}

/// TCP through a tunnel of ours to one of ours, to a TAP device at each end.
#[test]
fn tcp_through_a_tunnel() {
    if !available() {
        return;
    }
    let (here, left, right) = (Namespace::new(), Namespace::new(), Namespace::new());
    here.enter();
    let side = |name: &str, local: &str, remote: &str| {
        let mut lab = Lab::default();
        let up = lab.external("up", tap(name));
        let far = lab.external("far", vxlan(0xff_fffe, remote, local));
        lab.link(up, far, &shaped(), Completion::Network);
        lab.run()
    };
    let labs = [
        side("l0", "127.0.0.1", "127.0.0.2"),
        side("r0", "127.0.0.2", "127.0.0.1"),
    ];
    for (side, name, address) in [(&left, "l0", "10.9.0.1/24"), (&right, "r0", "10.9.0.2/24")] {
        here.ip(&format!("link set {name} netns {}", side.name()));
        side.ip(&format!("addr add {address} dev {name}"));
        side.ip(&format!("link set {name} up"));
    }
    let rate = tcp(&left, &right, "10.9.0.2", "");
    assert!((5e6..50e6).contains(&rate), "{rate} bit/s");
    for lab in &labs {
        assert_eq!(external(lab, "far").malformed, 0);
    }
}

/// An interface that goes away is told, costs nothing but frames, and is taken again when it is back, even as another of the same
/// name.
#[test]
fn an_interface_goes_and_comes_back() {
    if !available() {
        return;
    }
    let here = Namespace::new();
    here.enter();
    let make = || {
        here.ip("link add v0 type veth peer name v1");
        here.ip("link set v0 up");
        here.ip("link set v1 up");
    };
    make();
    let mut lab = Lab::default();
    let (a, b) = (lab.machine("a"), lab.machine("b"));
    let ends = ["v0", "v1"].map(|v| lab.external(v, interface(v)));
    lab.wire(a, ends[0]);
    lab.wire(ends[1], b);
    let lab = lab.run();
    let mut a = Guest::new(Shape::default());
    let mut b = Guest::new(Shape::default());
    let _connections = [
        Connection::start(&lab.socket("a.eth0"), &a),
        Connection::start(&lab.socket("b.eth0"), &b),
    ];
    let mut passes = |tag| {
        let f = frame(mac(2), mac(1), 100, tag);
        eventually("a frame that passes", || {
            a.send(&f);
            std::thread::sleep(Duration::from_millis(5));
            b.receive_all().contains(&f)
        });
    };
    passes(1);
    for (tag, go) in [(2, "link set v0 down"), (3, "link del v0")] {
        here.ip(go);
        eventually("the switch notices", || !external(&lab, "v0").connected);
        let said = external(&lab, "v0").last_error.unwrap();
        assert!(said.contains("interface v0 is down or gone"), "{said}");
        if tag == 2 {
            here.ip("link set v0 up");
        } else {
            make();
        }
        eventually("the switch takes it again", || {
            external(&lab, "v0").connected && external(&lab, "v1").connected
        });
        passes(tag);
    }
}

/// A killed switch leaves no device behind, and the next one starts on what it does leave.
#[test]
fn a_killed_switch_leaves_no_device() {
    if !available() {
        return;
    }
    let here = Namespace::new();
    let dir = tempfile::tempdir().unwrap();
    let text = r#"{"nodes": {"a": {"kind": "host"}, "up": {"kind": "external", "tap": "hop0"}},
                    "links": [{"endpoints": ["a:eth0", "up"]}]}"#;
    std::fs::write(dir.path().join("topo.json"), text).unwrap();
    let is_there = || here.run("ip -o link").contains("hop0");
    for _ in 0..2 {
        let mut command = here.command(env!("CARGO_BIN_EXE_vswitch"));
        command
            .arg("run")
            .arg("--config")
            .arg(dir.path().join("topo.json"));
        command.arg("--sockets").arg(dir.path());
        command
            .arg("--control")
            .arg(dir.path().join("control.sock"));
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut ready = String::new();
        let stdout = child.stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut ready).unwrap();
        assert!(ready.contains("ready") && is_there());
        // `ip netns exec` has become the switch.
        child.kill().unwrap();
        child.wait().unwrap();
        eventually("the device is gone", || !is_there());
    }
}

/// Runs the program on a topology in `dir` in a namespace; what it says when it fails.
fn refusal(here: &Namespace, dir: &Path, node: &str, before: &[&str]) -> String {
    let text = format!(
        r#"{{"nodes": {{"a": {{"kind": "host"}}, "up": {{"kind": "external", {node}}}}},
           "links": [{{"endpoints": ["a:eth0", "up"]}}]}}"#
    );
    std::fs::write(dir.join("topo.json"), text).unwrap();
    let mut command = here.command("");
    command.args(before).arg(env!("CARGO_BIN_EXE_vswitch"));
    command
        .arg("run")
        .arg("--config")
        .arg(dir.join("topo.json"));
    command.arg("--sockets").arg(dir);
    command.arg("--control").arg(dir.join("control.sock"));
    let output = command.output().unwrap();
    assert!(!output.status.success());
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// What cannot be opened names the node, the device, the reason and the remedy.
#[test]
fn what_cannot_be_opened() {
    if !available() {
        return;
    }
    let here = Namespace::new();
    let dir = tempfile::tempdir().unwrap();
    let said = |node: &str, before: &[&str]| refusal(&here, dir.path(), node, before);
    let without = ["setpriv", "--bounding-set", "-net_admin,-net_raw"];
    let cases: [(&str, &[&str], &str, &str); 5] = [
        (
            r#""tap": "hop0""#,
            &without,
            "node up: cannot use the TAP device hop0",
            "CAP_NET_ADMIN",
        ),
        (
            r#""interface": "lo""#,
            &without,
            "node up: cannot open a packet socket on the interface lo",
            "CAP_NET_RAW",
        ),
        (
            r#""interface": "nix0""#,
            &[],
            "node up: cannot find the interface nix0",
            "ip link",
        ),
        (
            r#""tap": "lo""#,
            &[],
            "node up: cannot use the TAP device lo",
            "no TAP device",
        ),
        (
            r#""vxlan": {"vni": 1, "remote": "192.0.2.1", "local": "192.0.2.7"}"#,
            &[],
            "node up: cannot listen on UDP 192.0.2.7:4789",
            "must be an address of this host",
        ),
    ];
    for (node, before, what, remedy) in cases {
        let said = said(node, before);
        assert!(
            said.contains(what) && said.contains(remedy),
            "{node}: {said}"
        );
    }
    let device = "ip link add vx0 type vxlan id 9 dstport 4789 local 127.0.0.1 remote 127.0.0.2";
    if here.command(device).output().unwrap().status.success() {
        here.ip("link set vx0 up");
        let said = said(r#""vxlan": {"vni": 1, "remote": "192.0.2.1"}"#, &without);
        assert!(said.contains("cannot listen on UDP 0.0.0.0:4789"), "{said}");
        assert!(said.contains("another `port`"), "{said}");
    }
}
