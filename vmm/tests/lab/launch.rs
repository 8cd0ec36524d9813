//! Launching, listing, logs and the end that is wished for.

use std::process::Stdio;

use rustix::process::Signal;
use serde_json::Value;

use crate::harness::{Place, line_of};

#[test]
fn a_detached_lab_goes_on_until_it_is_stopped() {
    let place = Place::new();
    let table = place.ok(&["launch", "-d", "--engine", "qemu", "lab.json"]);
    assert!(table.contains("NODE") && table.contains("ready"), "{table}");
    assert!(place.ok(&["ls"]).contains("two"));
    let nodes = place.nodes();
    assert_eq!(
        (&nodes[0]["name"], &nodes[0]["state"]),
        (&"a".into(), &"ready".into())
    );
    assert_eq!(nodes[1]["kernel"], "6.12.0-fake");
    assert!(nodes[0]["boot"]["ready_ms"].is_u64());
    assert_eq!(place.ok(&["stop"]), "ended two\n");
    place.assert_clean();
    assert_eq!(place.ok(&["ls"]), "no lab runs\n");
}

#[test]
fn a_lab_in_the_foreground_ends_with_a_signal() {
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        let place = Place::new();
        let lab = place.stay(&[]);
        lab.signal(signal);
        let (status, said) = lab.end();
        assert_eq!(status, Some(0), "{said}");
        assert!(
            said.contains("a: ready after") && said.contains("Ctrl-C ends the lab"),
            "{said}"
        );
        place.assert_clean();
    }
}

#[test]
fn an_interrupt_before_the_nodes_are_ready_is_told_apart() {
    let place = Place::with_faults("b=silent");
    let lab = place.begin(&[]);
    place.wait_until("a is ready", || {
        place
            .run(&["ls", "two"])
            .stdout
            .windows(5)
            .any(|w| w == b"ready")
    });
    lab.signal(Signal::INT);
    let (status, said) = lab.end();
    assert_eq!(status, Some(130), "{said}");
    place.assert_clean();
}

#[test]
fn an_interrupt_at_any_moment_leaves_nothing() {
    for milliseconds in [0, 1, 2, 5, 10, 20, 30, 50, 80, 120] {
        let place = Place::new();
        let lab = place.begin(&[]);
        std::thread::sleep(std::time::Duration::from_millis(milliseconds));
        lab.signal(Signal::INT);
        lab.end();
        place.assert_clean();
    }
}

#[test]
fn an_interrupted_detached_launch_ends_its_lab() {
    let place = Place::with_faults("b=silent");
    let mut launch = place.vmm(&["launch", "-d", "--engine", "qemu", "lab.json"]);
    let launch = launch
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    place.wait_until("a is ready", || {
        place
            .run(&["ls", "two"])
            .stdout
            .windows(5)
            .any(|w| w == b"ready")
    });
    crate::harness::kill(launch.id(), Signal::INT);
    let output = launch.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    place.assert_clean();
}

#[test]
fn several_labs_run_at_once_but_not_two_of_one_name() {
    let place = Place::new();
    place.launch();
    let said = place.fails(&["launch", "-d", "--engine", "qemu", "lab.json"], 1);
    assert!(
        said.contains("a lab called two runs already") && said.contains("lab.json"),
        "{said}"
    );
    place.ok(&[
        "launch", "-d", "--engine", "qemu", "--name", "other", "lab.json",
    ]);
    let said = place.fails(&["exec", "a", "--", "true"], 125);
    assert!(said.contains("several labs run: other, two"), "{said}");
    place.ok(&["exec", "--lab", "other", "a", "--", "true"]);
    let status = place
        .vmm(&["exec", "a", "--", "true"])
        .env("HOPYARD_LAB", "two")
        .status()
        .unwrap();
    assert!(status.success());
    place.ok(&["stop", "other"]);
    place.ok(&["exec", "a", "--", "true"]);
    assert_eq!(place.ok(&["stop", "--all"]), "ended two\n");
    place.assert_clean();
}

#[test]
fn nodes_in_the_switch_are_listed_and_have_no_kernel() {
    let place = Place::new();
    place.topology(
        r#"{"name": "two", "nodes": {"a": {"kind": "host"}, "s": {"kind": "switch"}, "h": {"kind": "hub"}}}"#,
    );
    place.launch();
    let nodes = place.nodes();
    assert_eq!(
        (&nodes[1]["kind"], &nodes[1]["state"]),
        (&"switch".into(), &"ready".into())
    );
    let said = place.fails(&["exec", "s", "--", "true"], 125);
    assert!(said.contains("inside the switch"), "{said}");
}

#[test]
fn logs_are_shown_without_what_acts_on_a_terminal() {
    let place = Place::new();
    place.launch();
    assert_eq!(
        place.ok(&["logs", "a"]),
        "Linux version 6.12 of a\nbooting 1\n"
    );
    assert!(place.ok(&["logs", "--raw", "a"]).contains("a\x1b[31m\r\n"));
    let mut follow = place
        .vmm(&["logs", "-f", "b"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    assert_eq!(line_of(&mut follow), "Linux version 6.12 of b\n");
    place.ok(&["stop"]);
    assert!(follow.wait().unwrap().success());
}

#[test]
fn errors_are_json_when_that_was_asked_for() {
    let place = Place::new();
    let said = place.fails(&["ls", "--json", "nowhere"], 4);
    let error: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(
        (&error["status"], &error["error"]),
        (&4.into(), &"no lab called nowhere runs".into())
    );
    assert_eq!(place.ok(&["ls", "--json"]).trim(), "[]");
}

#[test]
fn checks_tell_what_is_wrong_with_a_topology() {
    let place = Place::new();
    assert!(
        place
            .ok(&["check", "lab.json"])
            .contains("lab two with 2 machines")
    );
    place.topology(r#"{"name": "two", "nodes": {"a": {"kind": "hots"}}}"#);
    let said = place.fails(&["check", "lab.json"], 3);
    assert!(said.contains("lab.json:1"), "{said}");
    let said = place.fails(&["launch", "--engine", "qemu", "lab.json"], 3);
    assert!(said.contains("lab.json:1"), "{said}");
    let output = place.run(&["check", "--json", "lab.json"]);
    let verdict: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(verdict["valid"], false);
    assert!(
        verdict["report"]["findings"]
            .as_array()
            .is_some_and(|findings| !findings.is_empty())
    );
}

#[test]
fn a_node_boots_after_those_it_waits_for() {
    let place = Place::new();
    place.topology(
        r#"{"name": "two", "nodes": {"a": {"kind": "host", "after": ["b", "c"]},
            "b": {"kind": "host", "after": ["c"]}, "c": {"kind": "host"}}}"#,
    );
    let output = place.run(&["launch", "-d", "--engine", "qemu", "lab.json"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    let at = |line: &str| {
        said.find(line)
            .unwrap_or_else(|| panic!("no '{line}' in {said}"))
    };
    assert!(at("c: ready") < at("b: booting"), "{said}");
    assert!(at("b: ready") < at("a: booting"), "{said}");
    // What boots again does not wait.
    place.ok(&["node", "stop", "c"]);
    place.ok(&["node", "restart", "a"]);
    place.ok(&["stop"]);
    place.assert_clean();
}

#[test]
fn a_node_that_fails_does_not_hold_up_those_that_wait_for_it() {
    let place = Place::with_faults("b=fail");
    place.topology(
        r#"{"name": "two", "nodes": {"a": {"kind": "host", "after": ["b"]}, "b": {"kind": "host"}}}"#,
    );
    let said = place.fails(&["launch", "-d", "--engine", "qemu", "lab.json"], 6);
    assert!(
        said.contains("boots although b did not get ready"),
        "{said}"
    );
    let states = place.nodes();
    assert_eq!(
        (&states[0]["state"], &states[1]["state"]),
        (&"ready".into(), &"failed".into())
    );
    place.ok(&["stop"]);
    place.assert_clean();
}

/// What is common is 1024 descriptors, which a larger lab needs more than.
#[test]
fn a_lab_takes_as_many_descriptors_as_it_may() {
    let place = Place::new();
    let nodes: Vec<_> = (0..12)
        .map(|n| format!("\"n{n}\": {{\"kind\": \"host\"}}"))
        .collect();
    place.topology(&format!(
        "{{\"name\": \"two\", \"nodes\": {{{}}}}}",
        nodes.join(", ")
    ));
    let launch = place.vmm(&["launch", "-d", "--engine", "qemu", "lab.json"]);
    let mut limited = std::process::Command::new("/bin/sh");
    limited.args(["-c", "ulimit -Sn 40; exec \"$@\"", "sh"]);
    limited.arg(launch.get_program()).args(launch.get_args());
    limited.current_dir(launch.get_current_dir().unwrap());
    for (name, value) in launch.get_envs() {
        match value {
            Some(value) => limited.env(name, value),
            None => limited.env_remove(name),
        };
    }
    let output = limited.output().unwrap();
    assert!(output.status.success(), "{}", crate::harness::text(&output));
    place.ok(&["exec", "n11", "--", "true"]);
    place.ok(&["stop"]);
    place.assert_clean();
}
