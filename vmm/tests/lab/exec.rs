//! `vmm exec`: a command in a node as if it ran here.

use std::io::{Read, Write};
use std::process::Stdio;
use std::time::Duration;

use crate::harness::{Place, kill, line_of};
use rustix::process::Signal;

fn launched() -> Place {
    let place = Place::new();
    place.launch();
    place
}

#[test]
fn output_and_status_pass_through() {
    let place = launched();
    let output = place.run(&[
        "exec",
        "a",
        "--",
        "sh",
        "-c",
        "echo out; echo err >&2; exit 7",
    ]);
    assert_eq!(output.status.code(), Some(7));
    assert_eq!(
        (output.stdout.as_slice(), output.stderr.as_slice()),
        (&b"out\n"[..], &b"err\n"[..])
    );
    place.fails(&["exec", "a", "sh", "-c", "kill -9 $$"], 137);
    let said = place.fails(&["exec", "a", "no-such-program"], 127);
    assert!(said.starts_with("vmm: node a: "), "{said}");
    place.ok(&[
        "exec",
        "-e",
        "GREETING=hi",
        "b",
        "--",
        "sh",
        "-c",
        "test $GREETING = hi",
    ]);
}

#[test]
fn standard_input_works_with_its_end_and_in_bulk() {
    let place = launched();
    let bytes: Vec<u8> = (0..5_000_000_u32).map(|n| (n % 251) as u8).collect();
    let mut child = place
        .vmm(&["exec", "a", "--", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let sent = bytes.clone();
    let writer = std::thread::spawn(move || stdin.write_all(&sent).unwrap());
    let mut back = Vec::new();
    child.stdout.take().unwrap().read_to_end(&mut back).unwrap();
    writer.join().unwrap();
    assert!(child.wait().unwrap().success());
    assert!(
        back == bytes,
        "{} of {} bytes came back",
        back.len(),
        bytes.len()
    );
}

#[test]
fn signals_are_passed_on() {
    let place = launched();
    for (signal, name) in [
        (Signal::INT, "INT"),
        (Signal::TERM, "TERM"),
        (Signal::HUP, "HUP"),
        (Signal::USR1, "USR1"),
    ] {
        let script = format!("trap 'exit 3' {name}; echo ready; while :; do sleep 0.05; done");
        let mut child = place
            .vmm(&["exec", "a", "--", "sh", "-c", &script])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        assert_eq!(line_of(&mut child), "ready\n");
        kill(child.id(), signal);
        assert_eq!(child.wait().unwrap().code(), Some(3), "{name}");
    }
    let mut child = place.vmm(&["exec", "a", "--", "sh", "-c", "echo ready; exec sleep 1000"]);
    let mut child = child.stdout(Stdio::piped()).spawn().unwrap();
    assert_eq!(line_of(&mut child), "ready\n");
    kill(child.id(), Signal::TERM);
    assert_eq!(child.wait().unwrap().code(), Some(128 + 15));
}

#[test]
fn a_reader_that_pauses_holds_up_nobody_else() {
    let place = launched();
    let mut stuck = place
        .vmm(&["exec", "a", "--", "yes"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    assert_eq!(line_of(&mut stuck), "y\n");
    // Its pipe and both windows fill up.
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(place.ok(&["exec", "a", "--", "echo", "hi"]), "hi\n");
    kill(stuck.id(), Signal::INT);
    // `yes` is dead; what it wrote is still to be read.
    let mut rest = Vec::new();
    stuck.stdout.take().unwrap().read_to_end(&mut rest).unwrap();
    assert_eq!(stuck.wait().unwrap().code(), Some(130));
}

#[test]
fn a_client_that_dies_takes_its_command_along() {
    let place = launched();
    let mut child = place.vmm(&["exec", "a", "--", "sh", "-c", "echo $$; exec sleep 1000"]);
    let mut child = child.stdout(Stdio::piped()).spawn().unwrap();
    let command = line_of(&mut child);
    let command = format!("/proc/{}", command.trim());
    child.kill().unwrap();
    child.wait().unwrap();
    place.wait_until("the command ends", || {
        !std::path::Path::new(&command).exists()
    });
    assert_eq!(place.ok(&["exec", "a", "--", "echo", "hi"]), "hi\n");
}

#[test]
fn output_that_nobody_reads_ends_the_client() {
    let place = launched();
    let mut child = place
        .vmm(&["exec", "a", "--", "yes"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(128 + 13));
}

#[test]
fn a_node_that_ends_ends_its_commands() {
    let place = launched();
    let mut child = place.vmm(&["exec", "a", "--", "sh", "-c", "echo ready; exec sleep 1000"]);
    let mut child = child
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    assert_eq!(line_of(&mut child), "ready\n");
    kill(place.process("guest=a"), Signal::KILL);
    let mut said = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut said)
        .unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(125));
    assert!(said.contains("node a"), "{said}");
    // Nor can new ones be started, and the message says why.
    place.wait_until("the node has failed", || {
        place.nodes()[0]["state"] == "failed"
    });
    let said = place.fails(&["exec", "a", "--", "true"], 125);
    assert!(said.contains("node a has no agent"), "{said}");
}

#[test]
fn names_that_do_not_exist_are_answered_with_the_nearest() {
    let place = launched();
    let said = place.fails(&["exec", "aa", "--", "true"], 125);
    assert!(said.contains("did you mean a?"), "{said}");
    let said = place.fails(&["exec", "--lab", "tow", "a", "--", "true"], 125);
    assert!(said.contains("did you mean two?"), "{said}");
    let said = place.fails(&["shell", "a"], 125);
    assert!(said.contains("not a terminal"), "{said}");
}

/// A lab of three machines, two of them labelled, and a switch.
fn several() -> Place {
    let place = Place::new();
    place.topology(
        r#"{"name": "two", "nodes": {
            "a": {"kind": "host", "labels": {"role": "edge", "site": "north"}},
            "b": {"kind": "router", "labels": {"role": "core"}},
            "c": {"kind": "host"},
            "sw": {"kind": "switch"}}}"#,
    );
    place.launch();
    place
}

fn lines(out: &str) -> Vec<&str> {
    let mut lines: Vec<_> = out.lines().collect();
    lines.sort_unstable();
    lines
}

#[test]
fn several_nodes_run_a_command_at_once() {
    let place = several();
    let out = place.ok(&["exec", "--all", "--", "printf", "one\\ntwo"]);
    assert_eq!(
        lines(&out),
        ["a: one", "a: two", "b: one", "b: two", "c: one", "c: two"]
    );
    let out = place.ok(&["exec", "c,a,c", "echo", "hi"]);
    assert_eq!(lines(&out), ["a: hi", "c: hi"]);
    let out = place.ok(&[
        "exec",
        "--label",
        "role",
        "--label",
        "site=north",
        "echo",
        "hi",
    ]);
    assert_eq!(out, "a: hi\n");
    let out = place.ok(&["exec", "--label", "role=core", "--", "echo", "hi"]);
    assert_eq!(out, "b: hi\n");
    // They wait for each other: one after the other that would never end.
    let meet = place.path("meet");
    std::fs::create_dir(&meet).unwrap();
    let script = format!(
        "cd {}; touch $$; while [ $(ls | wc -l) -lt 3 ]; do sleep 0.05; done",
        meet.display()
    );
    place.ok(&["exec", "--all", "--", "sh", "-c", &script]);
}

#[test]
fn the_status_of_several_is_the_highest() {
    let place = several();
    let script = "read line; case $line in '') exit 3;; esac";
    let said = place.fails(&["exec", "a,b", "--", "sh", "-c", script], 3);
    assert!(
        said.contains("vmm: status other than 0: a (3), b (3)"),
        "{said}"
    );
    let said = place.fails(&["exec", "a,b", "--", "sh", "-c", "echo oh >&2; exit 7"], 7);
    assert!(
        said.contains("a: oh\n") && said.contains("b: oh\n"),
        "{said}"
    );
    let said = place.fails(&["exec", "--all", "--", "no-such-program"], 127);
    assert!(said.contains("a (127), b (127), c (127)"), "{said}");
    // A node that cannot does not keep the others from it.
    place.ok(&["node", "stop", "b"]);
    let output = place.run(&["exec", "--all", "--", "echo", "hi"]);
    assert_eq!(output.status.code(), Some(125));
    assert_eq!(
        lines(std::str::from_utf8(&output.stdout).unwrap()),
        ["a: hi", "c: hi"]
    );
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.contains("node b is stopped") && said.contains("b (125)"),
        "{said}"
    );
}

#[test]
fn a_signal_reaches_all_and_a_client_that_dies_takes_all_along() {
    let place = several();
    let script = "trap 'exit 4' INT; echo $$; while :; do sleep 0.05; done";
    let start = || {
        let mut child = place.vmm(&["exec", "--all", "--", "sh", "-c", script]);
        let mut child = child.stdout(Stdio::piped()).spawn().unwrap();
        let mut reader = std::io::BufReader::new(child.stdout.take().unwrap());
        let mut commands = Vec::new();
        for _ in 0..3 {
            let mut line = String::new();
            std::io::BufRead::read_line(&mut reader, &mut line).unwrap();
            commands.push(line.trim().rsplit(' ').next().unwrap().to_owned());
        }
        (child, commands)
    };
    let (mut child, _) = start();
    kill(child.id(), Signal::INT);
    assert_eq!(child.wait().unwrap().code(), Some(4));
    let (mut child, commands) = start();
    child.kill().unwrap();
    child.wait().unwrap();
    place.wait_until("the commands end", || {
        let gone = |pid: &String| !std::path::Path::new("/proc").join(pid).exists();
        commands.iter().all(gone)
    });
}

#[test]
fn whom_several_are_is_checked_before_anything_runs() {
    let place = several();
    let script = format!("touch {}", place.path("ran").display());
    for (args, words) in [
        (&["a,bb"][..], "did you mean b?"),
        (&["--label", "role=cor"], "no node has the label role=cor"),
        (&["-t", "a,b"], "a terminal is for one node alone"),
    ] {
        let args = [&["exec"], args, &["sh", "-c", &script]].concat();
        let said = place.fails(&args, 125);
        assert!(said.contains(words), "{said}");
    }
    let said = place.fails(&["exec", "a,sw", "--", "true"], 125);
    assert!(said.contains("sw is a node inside the switch"), "{said}");
    let said = place.fails(&["exec", "a"], 125);
    assert!(said.contains("there is no command to run"), "{said}");
    place.fails(&["exec", "--all", "--label", "x", "true"], 2);
    assert!(!place.path("ran").exists());
}
