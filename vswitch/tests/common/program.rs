//! The program as a process.
#![allow(dead_code, reason = "each test program uses its own part of it")]

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use vswitch::stats::{DirectionStats, Stats};

/// Two hosts `a` and `b` with a link.
pub const TOPOLOGY: &str = r#"{
  "nodes": {
    "a": { "kind": "host", "interfaces": { "eth0": { "addresses": ["10.0.0.1/24"] } } },
    "b": { "kind": "host", "interfaces": { "eth0": { "addresses": ["10.0.0.2/24"] } } }
  },
  "links": [ { "endpoints": ["a:eth0", "b:eth0"] } ]
}"#;

/// A running switch in a folder of its own, whose control socket is `control.sock`.
pub struct Program {
    pub child: Child,
    pub dir: tempfile::TempDir,
}

impl Program {
    /// Runs [`TOPOLOGY`] and waits until it is ready.
    pub fn start() -> Self {
        Self::run(TOPOLOGY, &[])
    }

    /// Runs a topology.
    pub fn run(topology: &str, more: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("topo.json"), topology).unwrap();
        Self::spawn(dir, |dir| {
            let mut command = run(dir);
            command.args(more);
            command
        })
    }

    /// Starts what `command` makes of the folder.
    pub fn spawn(dir: tempfile::TempDir, command: impl FnOnce(&Path) -> Command) -> Self {
        let mut command = command(dir.path());
        command.current_dir(dir.path());
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert_eq!(line, "{\"event\":\"ready\"}\n");
        Self { child, dir }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A command that asks it for something.
    pub fn client(&self, verb: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vswitch"));
        command
            .args([verb, "--control"])
            .arg(self.path("control.sock"));
        command
    }

    pub fn stats(&self, more: &[&str]) -> Output {
        self.client("stats").args(more).output().unwrap()
    }

    pub fn counters(&self) -> Stats {
        serde_json::from_slice(&self.stats(&["--json"]).stdout).unwrap()
    }

    pub fn direction(&self, from: &str, to: &str) -> DirectionStats {
        let all = self.counters().links.into_iter().flat_map(|l| l.directions);
        all.into_iter()
            .find(|d| d.from == from && d.to == to)
            .unwrap()
    }

    pub fn ask(&self, request: &[u8]) -> String {
        let mut stream = UnixStream::connect(self.path("control.sock")).unwrap();
        stream.write_all(request).unwrap();
        let mut answer = String::new();
        let _ = BufReader::new(stream).read_line(&mut answer);
        answer
    }

    /// Kills it; its folder is left as it is.
    pub fn kill(&mut self) -> tempfile::TempDir {
        let _ = self.child.kill();
        let _ = self.child.wait();
        std::mem::replace(&mut self.dir, tempfile::tempdir().unwrap())
    }

    pub fn end(&mut self, with: Signal) -> ExitStatus {
        signal(&self.child, with);
        self.child.wait().unwrap()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(child.id() as i32), signal).unwrap();
}

/// The command that runs the topology of a folder.
pub fn run(dir: &Path) -> Command {
    let mut command = vswitch([OsStr::new("run"), OsStr::new("--config")]);
    command.arg(dir.join("topo.json"));
    command.arg("--sockets").arg(dir);
    command.arg("--control").arg(dir.join("control.sock"));
    command
}

/// The program.
pub fn vswitch(args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vswitch"));
    command.args(args).stderr(Stdio::piped());
    command
}

/// The names in a folder.
pub fn files(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}
