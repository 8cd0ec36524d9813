//! Ports and links from the command line.

mod common;
#[path = "common/program.rs"]
mod process;

use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output};

use common::driver::{Guest, Shape};
use common::frontend::Connection;
use common::{BROADCAST, eventually, frame, mac};
use nix::sys::signal::Signal;
use process::{Program, files, vswitch};

fn start(args: &[&str]) -> Program {
    let dir = tempfile::tempdir().unwrap();
    Program::spawn(dir, |_: &Path| {
        let mut command = vswitch(["run", "--control", "control.sock"]);
        command.args(args);
        command
    })
}

fn plug(program: &Program, socket: &str) -> (Guest, Connection) {
    let guest = Guest::new(Shape::default());
    let connection = Connection::start(&program.path(socket), &guest);
    (guest, connection)
}

fn exchange(from: &mut Guest, to: &mut Guest, tag: u32) {
    let f = frame(mac(2), mac(1), 300, tag);
    from.send(&f);
    eventually("the frame", || to.receive() == Some(f.clone()));
}

/// Two ports and a link are a network; a front-end that comes back is taken back; SIGTERM leaves nothing behind.
#[test]
fn two_ports_and_a_link() {
    let mut p = start(&[
        "--port",
        "a=x.sock",
        "--port",
        "b=y.sock",
        "--link",
        "a,b,rate=1Gbit,delay=1us,backward.delay=2us",
        "--timing",
        "exact",
        "--seed",
        "7",
        "--capture",
        "all.pcapng",
    ]);
    assert_eq!(
        files(p.dir.path()),
        ["all.pcapng", "control.sock", "x.sock", "y.sock"]
    );
    let (mut a, _a) = plug(&p, "x.sock");
    let (mut b, connection) = plug(&p, "y.sock");
    exchange(&mut a, &mut b, 1);
    exchange(&mut b, &mut a, 2);
    drop(connection);
    let state = |p: &Program| p.counters().ports[1].clone();
    eventually("the end of the connection", || !state(&p).connected);
    let (mut b, _b) = plug(&p, "y.sock");
    exchange(&mut a, &mut b, 3);
    exchange(&mut b, &mut a, 4);
    assert_eq!(
        (state(&p).name.as_str(), state(&p).connections),
        ("b.eth0", 2)
    );
    assert_eq!(p.counters().links[0].name, "a:eth0--b:eth0");
    assert_eq!(p.direction("b.eth0", "a.eth0").out_frames, 2);
    assert!(p.end(Signal::SIGTERM).success());
    assert_eq!(files(p.dir.path()), ["all.pcapng"]);
}

/// A front-end that listens is connected to as soon as it does, and again; another that is refused is not asked without end.
#[test]
fn front_ends_that_listen() {
    let mut p = start(&[
        "--port",
        "a=x.sock,connect=true",
        "--port",
        "b=y.sock",
        "--link",
        "a,b",
    ]);
    assert_eq!(files(p.dir.path()), ["control.sock", "y.sock"]);
    let state = |p: &Program| p.counters().ports[0].clone();
    eventually("a reason", || {
        let error = state(&p).last_error;
        error.is_some_and(|e| e.contains("x.sock: no front-end listens there yet"))
    });
    let listener = UnixListener::bind(p.path("x.sock")).unwrap();
    let (mut b, _b) = plug(&p, "y.sock");
    for tag in 0..3 {
        let (stream, _) = listener.accept().unwrap();
        let mut a = Guest::new(Shape::default());
        let mut connection = Connection::on(stream);
        connection.agree(&a);
        connection.share(&a.memory).unwrap();
        connection.start_rings(&a, [0, 0]).unwrap();
        exchange(&mut a, &mut b, tag);
        exchange(&mut b, &mut a, tag);
    }
    assert_eq!(state(&p).connections, 3);
    // With the switch waiting for the next.
    assert!(p.end(Signal::SIGTERM).success());
    assert_eq!(files(p.dir.path()), ["x.sock"]);
}

/// Any number of ports, several of one machine, with a switch and a hub between them.
#[test]
fn switches_and_hubs() {
    let mut args = vec![
        "--switch",
        "s,ageing=60s",
        "--hub",
        "h",
        "--link",
        "s,h,rate=10Gbit",
    ];
    let ports: Vec<_> = (0..6).map(|n| format!("pc{n}=pc{n}.sock")).collect();
    let links: Vec<_> = (0..6)
        .map(|n| format!("pc{n},{}", if n < 4 { "s" } else { "h" }))
        .collect();
    for (port, link) in ports.iter().zip(&links) {
        args.extend(["--port", port, "--link", link]);
    }
    args.extend([
        "--port",
        "pc0:eth1=more.sock",
        "--link",
        "pc0:eth1,h,loss=100%",
    ]);
    let p = start(&args);
    let mut guests: Vec<_> = (0..6).map(|n| plug(&p, &format!("pc{n}.sock"))).collect();
    let hello = frame(BROADCAST, mac(3), 99, 3);
    guests[3].0.send(&hello);
    for (n, (guest, _)) in guests.iter_mut().enumerate() {
        if n != 3 {
            eventually("the broadcast", || guest.receive() == Some(hello.clone()));
        }
    }
    assert_eq!(p.direction("h", "pc0.eth1").drops.loss, 1);
    assert_eq!(p.counters().nodes.len(), 2);
}

fn refused(args: &[&str]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let Output { status, stderr, .. } = vswitch(["run"])
        .args(args)
        .current_dir(dir.path())
        .output()
        .unwrap();
    assert!(!status.success(), "{args:?}");
    assert_eq!(files(dir.path()), [""; 0], "{args:?}");
    String::from_utf8(stderr).unwrap()
}

#[test]
fn mistakes_are_explained() {
    let ab = ["--port", "a=a.sock", "--port", "beta=b.sock"];
    for (more, why) in [
        (&["--link", "a,bta"][..], "did you mean \"beta:eth0\"?"),
        (&["--link", "a,beta,dely=5ms"], "did you mean `delay`?"),
        (&["--link", "a,beta,rate=5Mbits"], "5Mbit"),
        (&["--link", "a"], "two ends first"),
        (&["--link", "a,beta", "--link", "a:eth0,beta"], "eth0"),
        (&["--timing", "exakt"], "'exact'"),
        (&["--config", "x", "--sockets", "."], "cannot be used with"),
        (
            &[
                "--capture",
                "c.pcapng,link=a:eth0--beta:eth1",
                "--link",
                "a,beta",
            ],
            "did you mean `a:eth0--beta:eth0`?",
        ),
    ] {
        let args: Vec<_> = ab.iter().chain(more).copied().collect();
        let told = refused(&args);
        assert!(told.contains(why), "{more:?}: {told}");
    }
    assert!(refused(&[]).contains("nothing to run"));
    assert!(refused(&["--config", "x"]).contains("--sockets"));
}

#[test]
fn help_has_examples() {
    for args in [&["--help"][..], &["run", "--help"], &["capture", "--help"]] {
        let mut command: Command = vswitch(args);
        let told = String::from_utf8(command.output().unwrap().stdout).unwrap();
        assert!(told.contains("--link a,b,rate=100Mbit,delay=5ms"), "{told}");
        assert!(told.contains("| wireshark -k -i -"), "{told}");
    }
}
