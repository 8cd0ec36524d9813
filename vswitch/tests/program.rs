//! The program: starting, asking, ending.

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use common::driver::{Guest, Shape};
use common::frontend::Connection;
use common::{eventually, frame, mac};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use vswitch::stats::Stats;

const TOPOLOGY: &str = r#"{
  "nodes": {
    "a": { "kind": "host", "interfaces": { "eth0": { "addresses": ["10.0.0.1/24"] } } },
    "b": { "kind": "host", "interfaces": { "eth0": { "addresses": ["10.0.0.2/24"] } } }
  },
  "links": [ { "endpoints": ["a:eth0", "b:eth0"] } ]
}"#;

struct Program {
    child: Child,
    dir: tempfile::TempDir,
}

impl Program {
    /// Starts the switch and waits until it is ready.
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("topo.json"), TOPOLOGY).unwrap();
        let mut child = run(dir.path()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert_eq!(line, "{\"event\":\"ready\"}\n");
        Self { child, dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn stats(&self, more: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_vswitch"))
            .args(["stats", "--control"])
            .arg(self.path("control.sock"))
            .args(more)
            .output()
            .unwrap()
    }

    fn ask(&self, request: &[u8]) -> String {
        let mut stream = UnixStream::connect(self.path("control.sock")).unwrap();
        stream.write_all(request).unwrap();
        let mut answer = String::new();
        let _ = BufReader::new(stream).read_line(&mut answer);
        answer
    }

    fn end(&mut self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn run(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vswitch"));
    command
        .arg("run")
        .arg("--config")
        .arg(dir.join("topo.json"));
    command
        .arg("--sockets")
        .arg(dir)
        .arg("--control")
        .arg(dir.join("control.sock"));
    command.stderr(Stdio::piped());
    command
}

fn files(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn runs_until_a_signal_and_leaves_nothing() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut p = Program::start();
        assert_eq!(
            files(p.dir.path()),
            ["a.eth0.sock", "b.eth0.sock", "control.sock", "topo.json"]
        );
        let guest = Guest::new(Shape::default());
        let _connection = Connection::start(&p.path("a.eth0.sock"), &guest);
        kill(Pid::from_raw(p.child.id() as i32), signal).unwrap();
        assert!(p.child.wait().unwrap().success());
        assert_eq!(files(p.dir.path()), ["topo.json"]);
    }
}

/// What SIGKILL leaves behind does not keep the next one from starting; a living one does.
#[test]
fn sockets_have_one_owner() {
    let mut p = Program::start();
    let second = run(p.dir.path()).output().unwrap();
    assert!(!second.status.success());
    let told = String::from_utf8(second.stderr).unwrap();
    assert!(told.contains("control.sock is in use"), "{told}");
    p.end(Signal::SIGKILL);
    assert_eq!(files(p.dir.path()).len(), 4);
    let mut third = run(p.dir.path()).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(third.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert!(line.contains("ready"));
    kill(Pid::from_raw(third.id() as i32), Signal::SIGTERM).unwrap();
    assert!(third.wait().unwrap().success());
}

#[test]
fn counters_as_json_and_as_a_table() {
    let p = Program::start();
    let mut a = Guest::new(Shape::default());
    let mut b = Guest::new(Shape::default());
    let _a = Connection::start(&p.path("a.eth0.sock"), &a);
    let _b = Connection::start(&p.path("b.eth0.sock"), &b);
    for tag in 0..7 {
        let f = frame(mac(2), mac(1), 100, tag);
        a.send(&f);
        eventually("a frame", || b.receive() == Some(f.clone()));
    }
    let json = p.stats(&["--json"]);
    assert!(json.status.success());
    let stats: Stats = serde_json::from_slice(&json.stdout).unwrap();
    let there = &stats.links[0].directions[0];
    assert_eq!(
        (there.from.as_str(), there.to.as_str()),
        ("a.eth0", "b.eth0")
    );
    assert_eq!(
        (there.in_frames, there.out_bytes, there.bytes_copied),
        (7, 700, 700)
    );
    assert!(
        stats
            .ports
            .iter()
            .all(|p| p.connected && p.sending && p.receiving)
    );
    let table = String::from_utf8(p.stats(&[]).stdout).unwrap();
    let row = table
        .lines()
        .find(|l| l.starts_with("a.eth0 > b.eth0"))
        .unwrap();
    let cells: Vec<_> = row.split_whitespace().collect();
    assert_eq!(cells[3..7], ["7", "700", "7", "700"]);
}

#[test]
fn stats_without_a_switch_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let out = Command::new(env!("CARGO_BIN_EXE_vswitch"))
        .args(["stats", "--control"])
        .arg(dir.path().join("none.sock"))
        .output()
        .unwrap();
    assert!(!out.status.success());
    assert!(
        String::from_utf8(out.stderr)
            .unwrap()
            .contains("cannot reach a switch")
    );
}

#[test]
fn a_faulty_topology_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("topo.json"), r#"{ "nodes": 7 }"#).unwrap();
    let out = run(dir.path()).output().unwrap();
    assert!(!out.status.success());
    assert!(String::from_utf8(out.stderr).unwrap().contains("topo.json"));
    assert_eq!(files(dir.path()), ["topo.json"]);
}

#[test]
fn control_requests_are_bounded() {
    let p = Program::start();
    for bad in [
        &b"\n"[..],
        b"stats\n",
        b"{\"op\":\"fly\"}\n",
        b"{\"op\":\"stats\",\"x\":1}\n",
        b"\xff\xfe\n",
    ] {
        let answer = p.ask(bad);
        assert!(answer.starts_with("{\"error\":"), "{answer}");
    }
    // Two requests on one connection, in pieces.
    let mut stream = UnixStream::connect(p.path("control.sock")).unwrap();
    stream.write_all(b"{\"op\":\"stats\"}\n{\"op\":").unwrap();
    let mut answers = BufReader::new(stream.try_clone().unwrap());
    let mut first = String::new();
    answers.read_line(&mut first).unwrap();
    stream.write_all(b"\"stats\"}\n").unwrap();
    let mut second = String::new();
    answers.read_line(&mut second).unwrap();
    assert!(first.starts_with("{\"stats\":") && second.starts_with("{\"stats\":"));
    // A request without end is cut off.
    let mut stream = UnixStream::connect(p.path("control.sock")).unwrap();
    let _ = stream.write_all(&vec![b'x'; 100_000]);
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    assert!(rest.is_empty());
    // Clients that say nothing hold up nobody, as long as there are not too many of them.
    let silent: Vec<_> = (0..10)
        .map(|_| UnixStream::connect(p.path("control.sock")).unwrap())
        .collect();
    assert!(p.stats(&["--json"]).status.success());
    drop(silent);
}
