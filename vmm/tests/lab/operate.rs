//! What a person does to the nodes of a running lab.

use rustix::process::Signal;
use serde_json::Value;

use crate::harness::{Place, kill};

fn node(place: &Place, name: &str) -> Value {
    let nodes = place.nodes();
    let mut nodes = nodes.as_array().unwrap().iter();
    nodes.find(|node| node["name"] == name).unwrap().clone()
}

/// The state letter of a process: `T` if it is stopped.
fn process_state(pid: &Value) -> String {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, rest) = stat.rsplit_once(") ").unwrap();
    rest[..1].to_owned()
}

#[test]
fn a_node_stops_and_starts_while_the_rest_goes_on() {
    let place = Place::new();
    place.launch();
    let bystander = node(&place, "b")["pid"].clone();
    assert_eq!(place.ok(&["node", "stop", "a"]), "a is stopped\n");
    let stopped = node(&place, "a");
    assert_eq!(
        (&stopped["state"], &stopped["pid"]),
        (&"stopped".into(), &Value::Null)
    );
    let said = place.fails(&["exec", "a", "--", "true"], 125);
    assert!(said.contains("node a is stopped"), "{said}");
    let said = place.fails(&["node", "stop", "a"], 1);
    assert!(
        said.contains("it is stopped, and cannot be stopped"),
        "{said}"
    );

    assert_eq!(place.ok(&["node", "start", "a"]), "a is ready\n");
    place.ok(&["exec", "a", "--", "true"]);
    let said = place.fails(&["node", "start", "a"], 1);
    assert!(
        said.contains("it is running, and cannot be started"),
        "{said}"
    );
    assert_eq!(node(&place, "b")["pid"], bystander);
    place.ok(&["stop"]);
    place.assert_clean();
}

#[test]
fn nodes_restart_and_are_waited_for() {
    let place = Place::new();
    place.launch();
    let before = [
        node(&place, "a")["pid"].clone(),
        node(&place, "b")["pid"].clone(),
    ];
    assert_eq!(
        place.ok(&["node", "restart", "a", "b"]),
        "a is ready\nb is ready\n"
    );
    for (name, before) in ["a", "b"].into_iter().zip(before) {
        let now = node(&place, name);
        assert_eq!(
            (&now["state"], &now["restarts"]),
            (&"ready".into(), &1.into())
        );
        assert_ne!(now["pid"], before);
    }
    let told = place.ok(&["node", "restart", "a", "--json"]);
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!(
        (&told[0]["state"], &told[0]["restarts"]),
        (&"ready".into(), &2.into())
    );
    place.ok(&["stop"]);
    place.assert_clean();
}

#[test]
fn a_paused_node_stands_still() {
    let place = Place::new();
    place.launch();
    let pid = node(&place, "a")["pid"].clone();
    place.ok(&["node", "pause", "a"]);
    assert_eq!(process_state(&pid), "T");
    assert_eq!(node(&place, "a")["state"], "paused");
    let said = place.fails(&["exec", "a", "--", "true"], 125);
    assert!(said.contains("vmm node resume a"), "{said}");
    place.fails(&["node", "pause", "a"], 1);
    assert_eq!(place.ok(&["node", "resume", "a"]), "a goes on\n");
    assert_ne!(process_state(&pid), "T");
    place.ok(&["exec", "a", "--", "true"]);
    // A paused node is no obstacle to anything.
    place.ok(&["node", "pause", "a"]);
    place.ok(&["node", "restart", "a"]);
    place.ok(&["node", "pause", "a"]);
    place.ok(&["stop"]);
    place.assert_clean();
}

#[test]
fn a_node_that_ended_or_failed_is_started_again() {
    let place = Place::with_faults("a=babble");
    // Whether the launch still finds it ready is a matter of moments.
    place.run(&["launch", "-d", "--engine", "qemu", "lab.json"]);
    place.wait_until("a fails", || node(&place, "a")["state"] == "failed");
    // It does so every time.
    place.run(&["node", "start", "a", "--no-wait"]);
    place.wait_until("a is started again", || node(&place, "a")["restarts"] == 1);
    place.wait_until("a fails again", || node(&place, "a")["state"] == "failed");
    place.ok(&["exec", "b", "--", "true"]);
    place.ok(&["stop"]);
    place.assert_clean();
}

#[test]
fn a_node_whose_monitor_is_killed_is_what_the_topology_says() {
    let place = Place::new();
    place.topology(
        r#"{"name": "two", "nodes": {"a": {"kind": "host", "on": {"crash": "restart"}}, "b": {"kind": "host"}}}"#,
    );
    place.launch();
    for name in ["a", "b"] {
        let pid = node(&place, name)["pid"].as_u64().unwrap();
        kill(u32::try_from(pid).unwrap(), Signal::KILL);
    }
    place.wait_until("a is back", || {
        let a = node(&place, "a");
        (&a["state"], &a["restarts"]) == (&"ready".into(), &1.into())
    });
    place.wait_until("b is not", || node(&place, "b")["state"] == "failed");
    place.ok(&["stop"]);
    place.assert_clean();
}

#[test]
fn what_is_no_machine_is_named() {
    let place = Place::new();
    place.topology(
        r#"{"name": "two", "nodes": {"a": {"kind": "host"}, "lan": {"kind": "switch"}}, "links": [{"endpoints": ["a:eth0", "lan"]}]}"#,
    );
    place.launch();
    let said = place.fails(&["node", "stop", "lan"], 1);
    assert!(said.contains("inside the switch"), "{said}");
    let said = place.fails(&["node", "stop", "lam"], 4);
    assert!(said.contains("did you mean lan?"), "{said}");
    let said = place.fails(&["node", "stop", "lam", "--json"], 4);
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(said["status"], 4);
    // The switch of this lab is a double that answers nothing.
    let said = place.fails(&["link", "ls"], 1);
    assert!(said.contains("the switch does not answer"), "{said}");
    place.ok(&["stop"]);
    place.assert_clean();
}
