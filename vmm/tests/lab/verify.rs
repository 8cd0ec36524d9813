//! `vmm verify` and `vmm save`, with scripts in the place of the programs of a node.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use crate::harness::{Place, kill, text};

const LAB: &str = r#"{"name": "two", "nodes": {
    "a": {"kind": "host", "interfaces": {"eth0": {"addresses": ["10.0.0.1/24"]}}},
    "b": {"kind": "host", "interfaces": {"eth0": {"addresses": ["10.0.0.2/24"]}}}},
  "links": [{"endpoints": ["a:eth0", "b:eth0"]}],
  "checks": [
    {"kind": "ping", "from": "a", "to": "b", "count": 2},
    {"kind": "path", "from": "a", "to": "b", "via": []},
    {"kind": "throughput", "from": "a", "to": "b", "min": "1Mbit"},
    {"kind": "reachability", "except": [["b", "a"]]}]}"#;

const PING: &str = r#"
for last; do :; done
[ -e DOWN ] && exit 1
case $last in 10.0.0.1) exit 1;; esac
echo "64 bytes from $last: icmp_seq=1 ttl=64 time=1.5 ms"
echo "64 bytes from $last: icmp_seq=2 ttl=64 time=2.5 ms""#;
const TRACEROUTE: &str = r#"echo " 1  10.0.0.2  1 ms  1 ms""#;
const IPERF3: &str = r#"
case $* in
*-s*) echo "Server listening on 47211"; exec sleep 1000;;
*) echo '{"end": {"sum_received": {"bits_per_second": 5000000}}}';;
esac"#;

/// A lab whose nodes have these programs.
fn launched(topology: &str, programs: &[(&str, &str)]) -> Place {
    let place = Place::new();
    place.topology(topology);
    let bin = place.path("bin");
    fs::create_dir(&bin).unwrap();
    for (name, script) in programs {
        let path = bin.join(name);
        let script = script.replace("DOWN", place.path("down").to_str().unwrap());
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let mut launch = place.vmm(&["launch", "-d", "--engine", "qemu", "lab.json"]);
    let output = launch.env("PATH", path).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    place
}

fn checked() -> Place {
    launched(
        LAB,
        &[
            ("ping", PING),
            ("traceroute", TRACEROUTE),
            ("iperf3", IPERF3),
        ],
    )
}

/// Processes that sleep: one is the double of the switch.
fn sleeping(place: &Place) -> usize {
    let processes = place.processes();
    let sleeping = processes
        .iter()
        .filter(|(_, line)| line.starts_with("sleep 1000"));
    sleeping.count()
}

#[test]
fn checks_that_hold_are_shown_and_counted() {
    let place = checked();
    let shown = place.ok(&["verify", "--junit", "out.xml"]);
    for words in [
        "ping a b        passed",
        "2 of 2 answered, median 2.000 ms",
        "path a b        passed",
        "5.00 Mbit/s",
        "2 of 2 pairs as they should be",
        "4 of 4 checks hold",
    ] {
        assert!(shown.contains(words), "no '{words}' in\n{shown}");
    }
    let junit = fs::read_to_string(place.path("out.xml")).unwrap();
    assert!(
        junit.contains(r#"tests="4""#) && junit.contains(r#"failures="0""#),
        "{junit}"
    );
    // The server of the throughput is gone with the check.
    place.wait_until("iperf3 has ended", || sleeping(&place) == 1);
    let shown = place.ok(&["verify", "--check", "path a b", "--json"]);
    let results: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(results.as_array().unwrap().len(), 1);
    assert_eq!(results[0]["outcome"], "passed");
    assert_eq!(results[0]["measured"]["nodes"][0], "b");
}

#[test]
fn a_check_that_does_not_hold_is_the_status() {
    let place = checked();
    fs::write(place.path("down"), "").unwrap();
    let output = place.run(&["verify", "--junit", "out.xml"]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    let shown = text(&output);
    assert!(shown.contains("ping a b        FAILED"), "{shown}");
    assert!(
        shown.contains("a does not reach b") && shown.contains("NO, wrong"),
        "{shown}"
    );
    assert!(shown.contains("2 of 4 checks hold"), "{shown}");
    let junit = fs::read_to_string(place.path("out.xml")).unwrap();
    assert!(junit.contains(r#"failures="2""#), "{junit}");
    // What cannot be measured is an error.
    place.ok(&["node", "stop", "a"]);
    let output = place.run(&["verify", "--check", "ping a b", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let results: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(results[0]["outcome"], "error");
    assert!(
        results[0]["detail"]
            .as_str()
            .unwrap()
            .contains("a is stopped")
    );
}

#[test]
fn a_check_has_time_to_come_true() {
    let place = checked();
    fs::write(place.path("down"), "").unwrap();
    let patient = LAB.replace(r#""count": 2"#, r#""count": 2, "within": "60s""#);
    fs::write(place.path("patient.json"), patient).unwrap();
    let verify = place
        .vmm(&["verify", "patient.json", "--check", "ping a b", "--json"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(300));
    fs::remove_file(place.path("down")).unwrap();
    let output = verify.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let results: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(results[0]["tries"].as_u64().unwrap() >= 1);

    // A person may have enough of waiting; nothing is left of what was measured.
    let forever = "exec sleep 1000";
    fs::write(place.path("bin/ping"), format!("#!/bin/sh\n{forever}\n")).unwrap();
    let mut verify = place
        .vmm(&["verify", "--check", "ping a b"])
        .spawn()
        .unwrap();
    place.wait_until("ping runs", || sleeping(&place) > 1);
    kill(verify.id(), Signal::INT);
    assert_eq!(verify.wait().unwrap().code(), Some(130));
    place.wait_until("ping has ended", || sleeping(&place) == 1);
}

#[test]
fn what_cannot_be_checked_is_named() {
    let place = launched(
        r#"{"name": "two", "nodes": {"a": {"kind": "host"}, "b": {"kind": "host"}}}"#,
        &[],
    );
    let said = place.fails(&["verify"], 4);
    assert!(said.contains("the topology has no checks"), "{said}");
    fs::write(place.path("other.json"), LAB).unwrap();
    let said = place.fails(&["verify", "other.json", "--check", "pin a b"], 4);
    assert!(said.contains("did you mean ping a b?"), "{said}");
    fs::write(place.path("bad.json"), LAB.replace("ping", "pong")).unwrap();
    let said = place.fails(&["verify", "bad.json"], 3);
    assert!(said.contains("vmm check bad.json"), "{said}");
    let said = place.fails(&["verify", "--junit", "no/where.xml"], 1);
    assert!(said.contains("no such folder"), "{said}");
    let said = place.fails(&["verify", "none.json", "--json"], 3);
    assert!(serde_json::from_str::<Value>(&said).is_ok(), "{said}");
}

#[test]
fn what_nodes_have_become_is_saved() {
    let folder = tempfile::tempdir().unwrap();
    let guest = folder.path().to_str().unwrap();
    let topology = |guest: &str| {
        format!(
            r#"{{"name": "two", "nodes": {{
            "a": {{"kind": "host", "save": ["{guest}/db", "{guest}/one"]}},
            "b": {{"kind": "router", "routing": {{"ospf": true}}}},
            "c": {{"kind": "host"}}}}}}"#
        )
    };
    let vtysh =
        "printf 'Building configuration...\\n\\nCurrent configuration:\\n!\\nrouter ospf\\nend\\n'";
    fs::create_dir_all(format!("{guest}/db")).unwrap();
    fs::write(format!("{guest}/db/table"), "rows").unwrap();
    fs::write(format!("{guest}/one"), "1").unwrap();
    let place = launched(&topology(guest), &[("vtysh", vtysh)]);
    let shown = place.ok(&["save"]);
    let saved = place.path("two.saved");
    let read = |name: &str| fs::read_to_string(saved.join(name)).unwrap();
    assert_eq!(read("b/frr.conf"), "!\nrouter ospf\nend\n");
    assert_eq!(read(&format!("a{guest}/db/table")), "rows");
    assert_eq!(shown.lines().count(), 3, "{shown}");
    assert!(!saved.join("c").exists());

    // Again, into the same folder; and what goes wrong with one does not keep the others from it.
    fs::write(format!("{guest}/db/table"), "more rows").unwrap();
    fs::remove_file(format!("{guest}/one")).unwrap();
    let said = place.fails(&["save", "-o", "two.saved"], 1);
    assert!(
        said.contains("a:") && said.contains("no such file or folder"),
        "{said}"
    );
    assert_eq!(read(&format!("a{guest}/db/table")), "more rows");
    assert_eq!(place.ok(&["save", "c"]), "there was nothing to save\n");
    let shown = place.ok(&["save", "b", "-o", "other", "--json"]);
    let shown: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(shown[0]["files"][0], "other/b/frr.conf");
    let said = place.fails(&["save", "d"], 4);
    assert!(said.contains("no node called d"), "{said}");
}
