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
