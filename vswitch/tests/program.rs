//! The program: starting, asking, ending.

mod common;
#[path = "common/program.rs"]
mod process;

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::panic::AssertUnwindSafe;
use std::process::Stdio;
use std::time::Duration;

use common::driver::{Guest, Shape};
use common::frontend::Connection;
use common::{eventually, frame, mac};
use jail::attempt::{Starved, held};
use nix::sys::signal::Signal;
use process::{Program, TOPOLOGY, files, run, signal, vswitch};
use rustix::process::{Resource, Rlimit, getrlimit, prlimit};
use vswitch::stats::Stats;

#[test]
fn runs_until_a_signal_and_leaves_nothing() {
    for with in [Signal::SIGTERM, Signal::SIGINT] {
        let mut p = Program::start();
        assert_eq!(files(p.dir.path()), ["a", "b", "control.sock", "topo.json"]);
        let guest = Guest::new(Shape::default());
        let _connection = Connection::start(&p.path("a/eth0.sock"), &guest);
        assert!(p.end(with).success());
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
    signal(&third, Signal::SIGTERM);
    assert!(third.wait().unwrap().success());
}

#[test]
fn counters_as_json_and_as_a_table() {
    let p = Program::start();
    let mut a = Guest::new(Shape::default());
    let mut b = Guest::new(Shape::default());
    let _a = Connection::start(&p.path("a/eth0.sock"), &a);
    let _b = Connection::start(&p.path("b/eth0.sock"), &b);
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
    let shard = &stats.shards[0];
    assert_eq!(shard.batch_frames, 7);
    assert!(shard.busy_ns > 0 && shard.sleeps > 0);
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
    let out = vswitch(["stats", "--control"])
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

#[test]
fn pinning_is_checked() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("topo.json"), TOPOLOGY).unwrap();
    for (list, complaint) in [
        ("1000", "processor 1000"),
        ("1-", "is not the number"),
        ("3-2", "is no range"),
    ] {
        let output = run(dir.path()).arg("--pin").arg(list).output().unwrap();
        assert!(!output.status.success());
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(error.contains(complaint), "{error}");
    }
}

/// The threads of the packet path run where they are told to.
#[test]
fn pinned() {
    let allowed = std::fs::read_to_string("/proc/self/status").unwrap();
    let list = allowed
        .lines()
        .find_map(|l| l.strip_prefix("Cpus_allowed_list:"));
    let first: String = list
        .unwrap()
        .trim()
        .chars()
        .take_while(char::is_ascii_digit)
        .collect();
    let p = Program::run(TOPOLOGY, &["--shards", "2", "--pin", &first]);
    let allowed = format!("Cpus_allowed_list:\t{first}\n");
    let is_pinned = |task: &std::path::Path| {
        let name = std::fs::read_to_string(task.join("comm")).unwrap();
        let status = std::fs::read_to_string(task.join("status")).unwrap();
        name.starts_with("shard-") && status.contains(&allowed)
    };
    // The first thing a thread does, which may be after the switch is ready.
    eventually("two pinned threads", || {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", p.child.id())).unwrap();
        tasks
            .filter(|task| is_pinned(&task.as_ref().unwrap().path()))
            .count()
            == 2
    });
}

/// Lets the process have so many of `what`; `None`: as many as it had.
fn limit(p: &Program, what: Resource, current: Option<u64>) {
    let maximum = getrlimit(what).maximum;
    let pid = rustix::process::Pid::from_raw(p.child.id().cast_signed());
    let current = current.or(maximum);
    prlimit(pid, what, Rlimit { current, maximum }).unwrap();
}

/// Two hosts exchange frames, and a third comes when the switch has nothing left of `what`: that is named, the others go on, and when there
/// is more again the third is served.
fn runs_out(what: Resource, named: &str) {
    let topology = TOPOLOGY.replace(
        r#""b": {"#,
        r#""c": { "kind": "host", "interfaces": { "eth0": {} } }, "b": {"#,
    );
    let p = Program::run(&topology, &[]);
    let mut guests = [(), (), ()].map(|()| Guest::new(Shape::default()));
    let ports = ["a/eth0.sock", "b/eth0.sock", "c/eth0.sock"].map(|name| p.path(name));
    let _connections = [0, 1].map(|n| Connection::start(&ports[n], &guests[n]));
    let starved = (what == Resource::Nofile).then(|| Starved::of(p.child.id(), 8));
    if starved.is_none() {
        limit(&p, what, Some(1 << 20));
    }
    // Each takes a descriptor, as long as there are.
    let connect = |_| UnixStream::connect(p.path("control.sock")).unwrap();
    let idle: Vec<_> = (0..15).map(connect).collect();
    let [sender, receiver, third] = &mut guests;
    let late = std::thread::scope(|scope| {
        let late = scope.spawn(|| {
            loop {
                // It gives up when its connection is closed, and comes again.
                let attempt = std::panic::catch_unwind(AssertUnwindSafe(|| {
                    Connection::start(&ports[2], third)
                }));
                match attempt {
                    Ok(connection) => return connection,
                    Err(_) => std::thread::sleep(Duration::from_millis(20)),
                }
            }
        });
        for tag in 0..20 {
            let f = frame(mac(2), mac(1), 100, tag);
            sender.send(&f);
            eventually("a frame", || receiver.receive() == Some(f.clone()));
            std::thread::sleep(Duration::from_millis(20));
        }
        if what == Resource::Nofile {
            let said = p.stats(&[]);
            assert!(!said.status.success());
            let said = String::from_utf8_lossy(&said.stderr).into_owned();
            assert!(said.contains("no file descriptor left"), "{said}");
        }
        limit(&p, what, None);
        drop((starved, idle));
        late.join().unwrap()
    });
    eventually("the third is served", || {
        // Those that waited are still being told that there is nothing.
        let said = p.stats(&["--json"]);
        let Ok(stats) = serde_json::from_slice::<Stats>(&said.stdout) else {
            return false;
        };
        let port = stats.ports.into_iter().find(|port| port.name == "c.eth0");
        let port = port.unwrap();
        port.receiving && port.last_error.unwrap_or_default().contains(named)
    });
    drop(late);
    let what = match what {
        Resource::Nofile => "descriptors",
        _ => "address space",
    };
    held(
        &format!("the switch has no {what} left: it says so, others go on"),
        1,
        None,
    );
}

#[test]
fn descriptors_run_out() {
    runs_out(Resource::Nofile, "Too many open files");
}

#[test]
fn address_space_runs_out() {
    runs_out(Resource::As, "Cannot allocate memory");
}
