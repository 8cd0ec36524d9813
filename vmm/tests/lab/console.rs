//! `vmm console` and `vmm attach`.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use rustix::process::Signal;

use crate::harness::{Place, kill, text};

/// Reads from `out` until it has all of `words`.
fn read_until(out: &mut impl Read, words: &str) -> String {
    let mut seen = String::new();
    let mut byte = [0];
    while !seen.ends_with(words) {
        assert_eq!(out.read(&mut byte).unwrap(), 1, "{seen}");
        seen.push(char::from(byte[0]));
    }
    seen
}

#[test]
fn what_is_typed_arrives_and_what_is_written_is_seen_at_once() {
    let place = Place::new();
    place.launch();
    let mut child = place
        .vmm(&["console", "a"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    stdin.write_all(b"hello\n").unwrap();
    // The prompt has no line end, and the escape sequence is left out.
    assert_eq!(read_until(&mut stdout, "# "), "hello\n# ");
    // Two people see the same.
    let mut other = place
        .vmm(&["console", "--raw", "a"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut seen = other.stdout.take().unwrap();
    other.stdin.as_mut().unwrap().write_all(b"again\n").unwrap();
    assert!(read_until(&mut seen, "# ").contains("again\u{1b}[31m\r\n# "));
    assert_eq!(read_until(&mut stdout, "# "), "again\n# ");
    kill(other.id(), Signal::KILL);
    other.wait().unwrap();
    // It outlives the guest, which boots again on the same port.
    place.ok(&["node", "restart", "a"]);
    read_until(&mut stdout, "booting 2");
    stdin.write_all(b"still\n").unwrap();
    read_until(&mut stdout, "still\n# ");
    place.ok(&["stop"]);
    assert!(child.wait().unwrap().success(), "the lab's end is its end");
    place.assert_clean();
}

#[test]
fn a_node_that_is_down_has_no_console() {
    let place = Place::new();
    place.launch();
    place.ok(&["node", "stop", "a"]);
    let said = place.fails(&["console", "a"], 1);
    assert!(said.contains("node a is stopped"), "{said}");
    let said = place.fails(&["console", "aa"], 4);
    assert!(said.contains("did you mean a?"), "{said}");
}

#[test]
fn attach_passes_on_output_and_status() {
    let place = Place::new();
    let program = place.path("bin");
    std::fs::create_dir(&program).unwrap();
    let program = program.join("agent-program");
    std::fs::write(
        &program,
        "#!/bin/sh\n[ $1 = attach ] || exit 1\nprintf 'command %s \\033[31mred\\n' \"$2\"; echo which >&2; exit 9\n",
    )
    .unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!(
        "{}:{}",
        place.path("bin").display(),
        std::env::var("PATH").unwrap()
    );
    let mut launch = place.vmm(&["launch", "-d", "--engine", "qemu", "lab.json"]);
    assert!(launch.env("PATH", path).status().unwrap().success());
    let output = place.run(&["attach", "a", "2"]);
    assert_eq!(output.status.code(), Some(9), "{}", text(&output));
    assert_eq!(output.stdout, b"command 2 red\n");
    assert_eq!(output.stderr, b"which\n");
    let output = place.run(&["attach", "--raw", "a"]);
    assert_eq!(output.stdout, b"command  \x1b[31mred\n");
    let said = place.fails(&["attach", "c", "1"], 125);
    assert!(said.contains("no node called c"), "{said}");
}
