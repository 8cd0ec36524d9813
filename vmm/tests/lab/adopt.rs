//! A lab whose process was killed goes on, is taken over, or is ended.

use rustix::process::Signal;
use serde_json::Value;

use crate::harness::{Place, kill};

const TWO: &str = r#"{"name": "two", "orphaned": "keep",
    "nodes": {"a": {"kind": "host"}, "b": {"kind": "host"}}}"#;

fn kept() -> Place {
    let place = Place::new();
    place.topology(TWO);
    place.launch();
    place
}

fn shown(place: &Place) -> Value {
    let labs: Value = serde_json::from_str(&place.ok(&["ls", "--json"])).unwrap();
    labs[0].clone()
}

fn number(value: &Value) -> u32 {
    u32::try_from(value.as_u64().unwrap()).unwrap()
}

/// Kills the lab process, and waits until the lab counts as orphaned.
fn orphan(place: &Place) {
    kill(number(&shown(place)["pid"]), Signal::KILL);
    place.wait_until("it is orphaned", || shown(place)["phase"] == "orphaned");
}

/// Processes and restarts of nodes and switch.
fn who(place: &Place) -> Value {
    let lab = shown(place);
    let nodes = lab["nodes"].as_array().unwrap().iter();
    let nodes: Vec<_> = nodes
        .map(|node| serde_json::json!([node["pid"], node["state"], node["restarts"], node["boot"]]))
        .collect();
    serde_json::json!([lab["switch_pid"], lab["switch_restarts"], nodes])
}

#[test]
fn everything_goes_on_in_another_process() {
    let place = kept();
    let before = who(&place);
    // More than once: what leads to the nodes is passed on each time.
    for _ in 0..3 {
        orphan(&place);
        assert_eq!(who(&place), before);
        let said = place.ok(&["adopt"]);
        assert!(said.contains("ready"), "{said}");
        assert_eq!(who(&place), before);
        assert_eq!(shown(&place)["phase"], "running");
        assert_eq!(place.ok(&["exec", "a", "--", "echo", "hello"]), "hello\n");
        place.ok(&["node", "pause", "a"]);
        place.ok(&["node", "resume", "a"]);
    }
    // A guest's end is told apart by who has taken it over.
    place.run(&["exec", "b", "--", "poweroff"]);
    place.wait_until("b has ended", || place.nodes()[1]["state"] == "ended");
    assert_eq!(place.nodes()[1]["last_end"]["reason"], "power-off");
    place.ok(&["node", "start", "b"]);
    place.ok(&["exec", "b", "--", "true"]);
    kill(number(&place.nodes()[0]["pid"]), Signal::KILL);
    place.wait_until("a has failed", || place.nodes()[0]["state"] == "failed");
    let message = place.nodes()[0]["message"].to_string();
    assert!(message.contains("could say how"), "{message}");
    place.ok(&["stop"]);
    place.assert_clean();
}

/// In a guest that is busy, the greeting can overtake the end of the former connection.
#[test]
fn an_agent_that_forgets_a_greeting_hears_another() {
    let place = Place::with_faults("b=forget");
    place.topology(TWO);
    place.launch();
    orphan(&place);
    place.ok(&["adopt"]);
    assert_eq!(place.ok(&["exec", "b", "--", "echo", "hello"]), "hello\n");
    place.ok(&["stop"]);
    place.assert_clean();
}

#[test]
fn without_its_process_a_lab_can_be_listed_and_ended_and_nothing_else() {
    let place = kept();
    orphan(&place);
    assert!(place.ok(&["ls"]).contains("orphaned"));
    for command in [
        &["exec", "a", "--", "true"][..],
        &["ls", "two"],
        &["launch", "--engine", "qemu", "lab.json"],
    ] {
        let output = place.run(command);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && said.contains("vmm adopt two"),
            "{command:?}: {said}"
        );
    }
    place.ok(&["stop", "two"]);
    place.assert_clean();
}

#[test]
fn only_an_orphan_can_be_taken_over() {
    let place = kept();
    let said = place.fails(&["adopt", "two"], 1);
    assert!(said.contains("has its process"), "{said}");
    let said = place.fails(&["adopt"], 4);
    assert!(said.contains("no lab has lost its process"), "{said}");
    place.fails(&["adopt", "three"], 4);
    place.ok(&["stop"]);
    place.assert_clean();
}

/// What is down stays down, what has ended meanwhile has ended, and what was paused still is.
#[test]
fn each_node_goes_on_from_where_it_is() {
    let place = Place::new();
    place.topology(
        r#"{"name": "two", "orphaned": "keep", "nodes": {
            "a": {"kind": "host"}, "b": {"kind": "host"}, "c": {"kind": "host", "on": {"crash": "restart"}}, "d": {"kind": "host"}}}"#,
    );
    place.launch();
    place.ok(&["node", "stop", "a"]);
    place.ok(&["node", "pause", "d"]);
    let paused = number(&place.nodes()[3]["pid"]);
    let before = place.nodes();
    orphan(&place);
    for node in [1, 2] {
        kill(number(&before[node]["pid"]), Signal::KILL);
    }
    place.ok(&["adopt", "two"]);
    place.wait_until("c has booted again", || {
        place.nodes()[2]["state"] == "ready" && place.nodes()[2]["pid"] != before[2]["pid"]
    });
    let states = |place: &Place| {
        let nodes = place.nodes();
        let nodes = nodes.as_array().unwrap().iter();
        nodes
            .map(|node| node["state"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(states(&place), ["stopped", "failed", "ready", "paused"]);
    assert_eq!(number(&place.nodes()[3]["pid"]), paused);
    place.ok(&["node", "resume", "d"]);
    place.wait_until("d answers", || {
        place.run(&["exec", "d", "--", "true"]).status.success()
    });
    place.ok(&["node", "start", "a"]);
    place.ok(&["exec", "a", "--", "true"]);
    place.ok(&["stop"]);
    place.assert_clean();
}

/// A switch that was killed with the lab is started by the next, as what people had made of it.
#[test]
fn links_are_what_they_were_made() {
    let place = Place::with_real_switch();
    place.topology(
        r#"{"name": "two", "orphaned": "keep", "nodes": {"a": {"kind": "host"}, "b": {"kind": "host"}},
            "links": [{"endpoints": ["a:eth0", "b:eth0"]}]}"#,
    );
    place.launch();
    place.ok(&["link", "set", "a:eth0", "delay=20ms"]);
    let delay = |place: &Place| {
        let links: Value = serde_json::from_str(&place.ok(&["link", "ls", "--json"])).unwrap();
        links[0]["forward"]["attributes"]["delay"].clone()
    };
    let set = delay(&place);
    let switch = shown(&place)["switch_pid"].clone();
    orphan(&place);
    place.ok(&["adopt"]);
    assert_eq!(delay(&place), set);
    assert_eq!(shown(&place)["switch_pid"], switch);
    orphan(&place);
    kill(number(&switch), Signal::KILL);
    place.ok(&["adopt"]);
    place.wait_until("the switch is another", || {
        shown(&place)["switch_restarts"] == 1
    });
    assert_eq!(delay(&place), set);
    // What the topology was changed to is what goes on.
    let text = std::fs::read_to_string(place.path("lab.json")).unwrap();
    place.topology(&text.replace(
        r#""b": {"kind": "host"}"#,
        r#""b": {"kind": "host"}, "c": {"kind": "host"}"#,
    ));
    place.ok(&["apply", "--yes", "lab.json"]);
    place.wait_until("c is ready", || place.nodes()[2]["state"] == "ready");
    orphan(&place);
    place.ok(&["adopt"]);
    place.ok(&["exec", "c", "--", "true"]);
    assert_eq!(shown(&place)["revision"], 1);
    place.ok(&["stop"]);
    place.assert_clean();
}

#[test]
fn a_lab_of_which_nothing_runs_is_taken_over_too() {
    let place = kept();
    place.ok(&["node", "stop", "a", "b"]);
    orphan(&place);
    place.ok(&["adopt"]);
    place.ok(&["node", "start", "a"]);
    place.ok(&["exec", "a", "--", "true"]);
    place.ok(&["stop"]);
    place.assert_clean();
}

/// The janitor that keeps an orphan can be killed too: then all ends, at the latest when somebody looks.
#[test]
fn nothing_outlives_lab_and_janitor() {
    let place = kept();
    orphan(&place);
    kill(place.process("janitor"), Signal::KILL);
    place.ok(&["ls"]);
    place.assert_clean();
}

/// A janitor that is started again knows all that leads to the nodes.
#[test]
fn a_second_janitor_keeps_as_the_first() {
    let place = kept();
    let janitor = place.process("janitor");
    kill(janitor, Signal::KILL);
    place.wait_until("there is another", || {
        let processes = place.processes();
        let mut others = processes.iter().filter(|(pid, _)| *pid != janitor);
        others.any(|(_, line)| line.contains("janitor"))
    });
    // It has been told of all by now, or the lab would not answer.
    let before = who(&place);
    orphan(&place);
    place.ok(&["adopt"]);
    assert_eq!(who(&place), before);
    place.ok(&["exec", "a", "--", "true"]);
    place.ok(&["stop"]);
    place.assert_clean();
}

/// Killed at any moment of its launch, a lab can be taken over and comes up, or was not there yet.
#[test]
fn a_launch_that_was_killed_is_finished_by_another() {
    for milliseconds in [20, 50, 80, 120, 200] {
        let place = Place::new();
        place.topology(TWO);
        let lab = place.begin(&[]);
        std::thread::sleep(std::time::Duration::from_millis(milliseconds));
        kill(lab.pid(), Signal::KILL);
        lab.end();
        let mut is_orphaned = false;
        place.wait_until("it is orphaned, or gone", || {
            place.ok(&["ls"]);
            is_orphaned = place.run_folder().join("two/orphan.sock").exists();
            is_orphaned || place.processes().is_empty()
        });
        if is_orphaned {
            place.ok(&["adopt"]);
            place.ok(&["exec", "a", "--", "true"]);
            place.ok(&["exec", "b", "--", "true"]);
            place.ok(&["stop"]);
        }
        place.assert_clean();
    }
}
