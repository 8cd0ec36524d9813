//! Network namespaces for real kernel peers.
#![allow(dead_code, reason = "each test program uses its own part of it")]

use std::fs::File;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sched::{CloneFlags, setns};

/// A network namespace, gone with its interfaces when it is dropped.
pub struct Namespace(String);

/// Whether namespaces can be made here; says why not.
pub fn available() -> bool {
    let missing = ["ip", "ping", "iperf3"]
        .into_iter()
        .find(|program| Command::new(program).arg("-h").output().is_err());
    if let Some(program) = missing {
        eprintln!("skipped: there is no `{program}` here");
        return false;
    }
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: network namespaces need root");
        return false;
    }
    let works = std::panic::catch_unwind(Namespace::new).is_ok();
    if !works {
        eprintln!("skipped: network namespaces cannot be made here");
    }
    works
}

impl Namespace {
    /// A new one, with a loopback interface that is up and without IPv6, whose neighbour discovery would come in between.
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("vswitch-{}-{number}", std::process::id());
        run(Command::new("ip").args(["netns", "add", &name]));
        let new = Self(name);
        new.ip("link set lo up");
        new.run("sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1");
        new
    }

    pub fn name(&self) -> &str {
        &self.0
    }

    /// `ip` with these arguments, inside.
    #[track_caller]
    pub fn ip(&self, arguments: &str) {
        let mut ip = Command::new("ip");
        run(ip.args(["-n", &self.0]).args(arguments.split_whitespace()));
    }

    /// A command that runs inside.
    pub fn command(&self, line: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.0]);
        command.args(line.split_whitespace());
        command
    }

    /// What a command, which has to succeed, says.
    #[track_caller]
    pub fn run(&self, line: &str) -> String {
        let output = run(&mut self.command(line));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Moves the thread that calls, and those it starts, there.
    pub fn enter(&self) {
        let file = File::open(format!("/run/netns/{}", self.0)).unwrap();
        setns(file, CloneFlags::CLONE_NEWNET).unwrap();
    }

    /// An iperf3 server that takes one test.
    pub fn iperf3_server(&self) -> std::process::Child {
        let mut server = self.command("iperf3 -s -1");
        server.stdout(Stdio::null()).stderr(Stdio::null());
        let server = server.spawn().unwrap();
        crate::common::eventually("the iperf3 server", || {
            self.run("ss -Hltn sport = 5201").contains("5201")
        });
        server
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).output();
    }
}

#[track_caller]
fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}
