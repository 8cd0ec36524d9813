//! DPDK's virtio-user, a front-end and driver that nobody here wrote: testpmd with a port at each end of a link sends on
//! each what it receives on the other.

mod common;
#[path = "common/program.rs"]
mod process;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitCode, Stdio};

use common::eventually;
use common::lab::{Running, pair};
use libtest_mimic::{Arguments, Trial};
use process::{Program, vswitch};
use rustix::thread::{CpuSet, sched_getaffinity};
use vswitch::port::Policy;
use vswitch::stats::{DirectionStats, PortStats};

const PROGRAM: &str = "dpdk-testpmd";
/// In each direction, before a case is content.
const ENOUGH: u64 = 20_000;

/// How a virtio-user port is set up.
#[derive(Clone, Copy)]
struct Shape {
    mergeable: bool,
    size: u16,
    packed: bool,
    /// The lengths of the pieces of each frame.
    pieces: &'static str,
}

const PLAIN: Shape = Shape {
    mergeable: true,
    size: 256,
    packed: false,
    pieces: "64",
};

struct Testpmd {
    child: Child,
    stdin: ChildStdin,
}

impl Testpmd {
    /// At the sockets of `lab`, under way.
    fn start(lab: &Running, shape: Shape) -> Self {
        let mut testpmd = Self::connect(lab, shape);
        testpmd.send(|| are_ready(&ports(lab)));
        testpmd
    }

    fn connect(lab: &Running, shape: Shape) -> Self {
        let sockets = ["a.eth0", "b.eth0"].map(|name| lab.socket(name));
        Self::spawn(lab.dir.path(), &sockets, false, shape)
    }

    /// In `folder`; with `listens` it makes the sockets.
    fn spawn(folder: &Path, sockets: &[PathBuf; 2], listens: bool, shape: Shape) -> Self {
        let allowed = sched_getaffinity(None).unwrap();
        let cpu = (0..CpuSet::MAX_CPU)
            .find(|cpu| allowed.is_set(*cpu))
            .unwrap();
        let mut command = Command::new(PROGRAM);
        command.arg("--lcores").arg(format!("0@{cpu},1@{cpu}"));
        command.args(["--no-huge", "-m", "128", "--no-pci", "--no-telemetry"]);
        // Nothing is left behind, and two do not meet.
        let prefix = folder.file_name().unwrap().display().to_string();
        command.arg(format!("--file-prefix=hopyard{prefix}"));
        for (n, socket) in sockets.iter().enumerate() {
            command.arg("--vdev").arg(format!(
                "net_virtio_user{n},path={},server={},queues=1,queue_size={},mrg_rxbuf={},packed_vq={},in_order=0",
                socket.display(),
                u8::from(listens),
                shape.size,
                u8::from(shape.mergeable),
                u8::from(shape.packed),
            ));
        }
        let size = shape.size;
        command.args(["--", "-i", "--forward-mode=io", "--total-num-mbufs=8192"]);
        command.args([format!("--txd={size}"), format!("--rxd={size}")]);
        command.args(["--tx-offloads=0x8000"]);
        let null = || Stdio::null();
        command.stdin(Stdio::piped()).stdout(null()).stderr(null());
        let mut child = command.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let pieces = shape.pieces;
        writeln!(stdin, "set txpkts {pieces}").unwrap();
        Self { child, stdin }
    }

    /// Sends 16 bursts of 32 frames from each end and keeps them going round: once the switch has both ports, for what it
    /// takes from one while the other is not there is lost, and nothing might be left to go round.
    fn send(&mut self, are_ready: impl FnMut() -> bool) {
        eventually("both ports", are_ready);
        self.stdin.write_all(b"stop\nstart tx_first 16\n").unwrap();
    }

    fn quit(mut self) {
        self.stdin.write_all(b"quit\n").unwrap();
        assert!(self.child.wait().unwrap().success());
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Testpmd {
    fn drop(&mut self) {
        self.kill();
    }
}

fn lab() -> Running {
    // virtio-user does not seal its memory.
    let policy = Policy {
        allow_unsealed: true,
    };
    pair().run_with(policy, 1)
}

fn ports(lab: &Running) -> [PortStats; 2] {
    ["a.eth0", "b.eth0"].map(|name| lab.port(name))
}

fn are_ready(ports: &[PortStats]) -> bool {
    ports.iter().all(|p| p.receiving && p.sending)
}

fn directions(lab: &Running) -> [DirectionStats; 2] {
    [
        lab.direction("a.eth0", "b.eth0"),
        lab.direction("b.eth0", "a.eth0"),
    ]
}

/// Waits until enough frames have gone both ways.
fn traffic(lab: &Running) {
    let before = directions(lab).map(|d| d.out_frames);
    eventually("frames both ways", || {
        let now = directions(lab).map(|d| d.out_frames);
        before.iter().zip(now).all(|(b, n)| n > b + ENOUGH)
    });
    for port in ports(lab) {
        assert_eq!((port.malformed, port.violations), (0, 0), "{port:?}");
        assert_eq!(port.last_error, None);
    }
}

/// All frames were as long as they should be, and each was copied once.
fn assert_lengths(lab: &Running, len: u64) {
    for d in directions(lab) {
        assert_eq!(d.out_bytes, d.out_frames * len, "{d:?}");
        assert_eq!(d.bytes_copied, d.out_bytes, "{d:?}");
        assert_eq!((d.pool_copies, d.drops.too_big), (0, 0), "{d:?}");
    }
}

fn forwards(shape: Shape, len: u64) {
    let lab = lab();
    let testpmd = Testpmd::start(&lab, shape);
    traffic(&lab);
    let features = lab.port("a.eth0").features;
    let has = |name: &str| features.iter().any(|f| f == name);
    assert!(has("version-1") && has("indirect"), "{features:?}");
    assert_eq!(has("mrg-rxbuf"), shape.mergeable);
    testpmd.quit();
    assert_lengths(&lab, len);
}

/// Frames in three pieces are sent by indirect descriptors.
fn indirect() {
    let pieces = "64,300,1100";
    forwards(Shape { pieces, ..PLAIN }, 1464);
}

/// Packed rings are not offered: the driver falls back to split ones, or gives up, and nothing else happens.
fn packed() {
    let lab = lab();
    let packed = Shape {
        packed: true,
        ..PLAIN
    };
    let mut testpmd = Testpmd::connect(&lab, packed);
    eventually("an end, or both ports", || {
        testpmd.child.try_wait().unwrap().is_some() || are_ready(&ports(&lab))
    });
    testpmd.kill();
    eventually("nobody", || !lab.port("a.eth0").connected);
    let _testpmd = Testpmd::start(&lab, PLAIN);
    traffic(&lab);
}

/// A front-end that dies under traffic is taken back when it comes again.
fn killed() {
    let lab = lab();
    for round in 1..=3 {
        let mut testpmd = Testpmd::start(&lab, PLAIN);
        traffic(&lab);
        assert_eq!(lab.port("a.eth0").connections, round);
        testpmd.kill();
        eventually("nobody", || !lab.port("b.eth0").connected);
    }
}

/// Two ports that connect to who listens on `a.sock` and `b.sock`.
fn connecting(dir: tempfile::TempDir) -> Program {
    Program::spawn(dir, |_: &Path| {
        let mut command = vswitch(["run", "--allow-unsealed", "--control", "control.sock"]);
        command.args(["--port", "a=a.sock,connect=true"]);
        command.args(["--port", "b=b.sock,connect=true"]);
        command.args(["--link", "a,b"]);
        command
    })
}

/// A front-end that listens outlives the switch, which goes on with its rings at their used indices; and the switch outlives a
/// front-end.
fn switch_killed(shape: Shape) {
    let mut dir = tempfile::tempdir().unwrap();
    let sockets = ["a.sock", "b.sock"].map(|name| dir.path().join(name));
    let mut testpmd = Testpmd::spawn(dir.path(), &sockets, true, shape);
    let round = |program: &Program, testpmd: &mut Testpmd| {
        let directions = || {
            let both = [("a.eth0", "b.eth0"), ("b.eth0", "a.eth0")];
            both.map(|(from, to)| program.direction(from, to).out_frames)
        };
        let before = directions();
        testpmd.send(|| are_ready(&program.counters().ports));
        eventually("frames both ways", || {
            before.iter().zip(directions()).all(|(b, n)| n > b + ENOUGH)
        });
        for port in program.counters().ports {
            assert_eq!((port.malformed, port.violations), (0, 0), "{port:?}");
        }
    };
    for _ in 0..3 {
        let mut program = connecting(dir);
        round(&program, &mut testpmd);
        dir = program.kill();
    }
    let program = connecting(dir);
    round(&program, &mut testpmd);
    testpmd.kill();
    for socket in &sockets {
        // virtio-user does not replace what a dead one has left.
        std::fs::remove_file(socket).unwrap();
    }
    eventually("nobody", || {
        program.counters().ports.iter().all(|p| !p.connected)
    });
    let mut testpmd = Testpmd::spawn(program.dir.path(), &sockets, true, shape);
    round(&program, &mut testpmd);
    assert!(program.counters().ports.iter().all(|p| p.connections == 2));
}

/// Without `--allow-unsealed` its memory is refused, and it is said why.
fn unsealed() {
    let lab = pair().run();
    let _testpmd = Testpmd::connect(&lab, PLAIN);
    eventually("a reason", || {
        let error = lab.port("a.eth0").last_error;
        error.is_some_and(|e| e.contains("--allow-unsealed"))
    });
    assert_eq!(directions(&lab)[0].in_frames, 0);
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let is_there = Command::new(PROGRAM)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok();
    if !is_there {
        eprintln!("SKIP peers: there is no {PROGRAM} (package dpdk-dev)");
    }
    let mut trials = Vec::new();
    let mut add = |name: String, run: Box<dyn FnOnce() + Send>| {
        let trial = Trial::test(name, move || {
            run();
            Ok(())
        });
        trials.push(trial.with_ignored_flag(!is_there));
    };
    for mergeable in [true, false] {
        for size in [256, 1024] {
            let shape = Shape {
                mergeable,
                size,
                ..PLAIN
            };
            let kind = if mergeable { "mergeable" } else { "single" };
            let name = format!("split_{kind}_{size}");
            add(name, Box::new(move || forwards(shape, 64)));
        }
    }
    add("indirect".into(), Box::new(indirect));
    add("packed".into(), Box::new(packed));
    add("killed".into(), Box::new(killed));
    for size in [256, 1024] {
        let shape = Shape { size, ..PLAIN };
        let name = format!("switch_killed_{size}");
        add(name, Box::new(move || switch_killed(shape)));
    }
    add("unsealed".into(), Box::new(unsealed));
    libtest_mimic::run(&arguments, trials).exit_code()
}
