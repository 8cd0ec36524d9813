//! `kill -9` of every process of a lab: nothing stays behind, and other labs do not notice.

use rustix::process::Signal;

use crate::harness::{Place, kill};

/// A lab `two` and a lab `other`, which has to be as good as new at the end.
fn with_neighbour(test: impl FnOnce(&Place)) {
    let place = Place::new();
    place.launch();
    place.ok(&[
        "launch", "-d", "--engine", "qemu", "--name", "other", "lab.json",
    ]);
    let neighbours = place.processes().len() / 2;
    test(&place);
    assert_eq!(place.processes().len(), neighbours);
    place.ok(&["exec", "--lab", "other", "a", "--", "true"]);
    assert!(!place.run_folder().join("two").exists());
    place.ok(&["stop", "other"]);
    place.assert_clean();
}

fn pid_of(place: &Place, lab: &str, word: &str) -> u32 {
    let folder = place.run_folder().join(lab);
    let folder = folder.to_str().unwrap();
    let processes = place.processes();
    let found = processes
        .iter()
        .find(|(_, line)| line.contains(folder) && line.contains(word));
    found
        .unwrap_or_else(|| panic!("no {word} of {lab} among {processes:?}"))
        .0
}

fn wait_for_half(place: &Place, all: usize) {
    place.wait_until("the lab is gone", || {
        place.processes().len() == all / 2 && !place.run_folder().join("two").exists()
    });
}

#[test]
fn of_a_detached_lab() {
    with_neighbour(|place| {
        let all = place.processes().len();
        kill(pid_of_lab(place, "two"), Signal::KILL);
        wait_for_half(place, all);
    });
}

#[test]
fn of_a_lab_and_its_janitor() {
    with_neighbour(|place| {
        let lab = pid_of_lab(place, "two");
        // Stopped, the lab cannot start another janitor.
        kill(lab, Signal::STOP);
        kill(pid_of(place, "two", "janitor"), Signal::KILL);
        kill(lab, Signal::KILL);
        place.wait_until("the processes are gone", || place.processes().len() == 5);
        // The folder is swept by whoever looks next.
        place.ok(&["ls"]);
    });
}

/// A lab as `vmm ls` shows it.
fn shown(place: &Place, lab: &str) -> serde_json::Value {
    let labs: serde_json::Value = serde_json::from_str(&place.ok(&["ls", "--json"])).unwrap();
    let mut labs = labs.as_array().unwrap().iter();
    labs.find(|shown| shown["name"] == lab).unwrap().clone()
}

/// Kills the switch of the lab and waits for the next one.
fn kill_switch(place: &Place, lab: &str) {
    let restarts = shown(place, lab)["switch_restarts"].as_u64();
    let pid = shown(place, lab)["switch_pid"].as_u64().unwrap();
    kill(u32::try_from(pid).unwrap(), Signal::KILL);
    place.wait_until("the switch serves again", || {
        shown(place, lab)["switch_restarts"].as_u64() > restarts
    });
}

#[test]
fn of_the_switch() {
    let place = Place::new();
    let lab = place.stay(&[]);
    let before = place.nodes();
    let processes = place.processes().len();
    kill_switch(&place, "two");
    assert_eq!(place.nodes(), before);
    assert_eq!(place.processes().len(), processes);
    lab.signal(Signal::INT);
    let (status, said) = lab.end();
    assert_eq!(status, Some(0), "{said}");
    assert!(
        said.contains("the switch was killed") && said.contains("it is started again"),
        "{said}"
    );
    place.assert_clean();
}

#[test]
fn of_the_switch_again_and_again() {
    let place = Place::new();
    let lab = place.stay(&[]);
    for _ in 0..5 {
        kill_switch(&place, "two");
    }
    kill(place.process("sleep"), Signal::KILL);
    let (status, said) = lab.end();
    assert_eq!(status, Some(6), "{said}");
    assert!(
        said.contains("error: the switch was killed")
            && said.contains("it was started again 5 times in a row"),
        "{said}"
    );
    place.assert_clean();
}

#[test]
fn of_a_node() {
    let place = Place::new();
    let lab = place.stay(&[]);
    let nodes: serde_json::Value =
        serde_json::from_str(&place.ok(&["ls", "two", "--json"])).unwrap();
    let pid = nodes[0]["pid"].as_u64().unwrap();
    kill(u32::try_from(pid).unwrap(), Signal::KILL);
    place.wait_until("a has failed", || place.nodes()[0]["state"] == "failed");
    let message = place.nodes()[0]["message"].to_string();
    assert!(message.contains("killed"), "{message}");
    place.ok(&["exec", "b", "--", "true"]);
    lab.signal(Signal::INT);
    let (status, said) = lab.end();
    assert_eq!(status, Some(0), "{said}");
    assert!(said.contains("a: failed"), "{said}");
    place.assert_clean();
}

#[test]
fn of_a_lab_in_the_foreground() {
    let place = Place::new();
    let lab = place.stay(&[]);
    kill(lab.pid(), Signal::KILL);
    lab.end();
    place.assert_clean();
}

#[test]
fn of_a_launch_at_any_moment() {
    for milliseconds in [0, 1, 2, 5, 10, 20, 30, 50, 80, 120] {
        let place = Place::new();
        let lab = place.begin(&[]);
        std::thread::sleep(std::time::Duration::from_millis(milliseconds));
        kill(lab.pid(), Signal::KILL);
        lab.end();
        // What was created before there was a janitor is swept by whoever looks next.
        place.wait_until("all is gone", || {
            place.ok(&["ls"]);
            place.processes().is_empty()
                && std::fs::read_dir(place.run_folder()).map_or(0, Iterator::count) == 0
        });
    }
}

#[test]
fn of_a_lab_makes_way_for_the_next_of_its_name() {
    let place = Place::new();
    for _ in 0..3 {
        place.launch();
        kill(pid_of_lab(&place, "two"), Signal::KILL);
    }
    place.launch();
    place.ok(&["stop"]);
    place.assert_clean();
}

#[test]
fn of_the_janitor() {
    let place = Place::new();
    place.launch();
    let janitor = pid_of(&place, "two", "janitor");
    kill(janitor, Signal::KILL);
    // The lab notices when it has something to tell, and starts another.
    place.run(&["exec", "a", "--", "reboot"]);
    place.wait_until("there is another", || {
        let processes = place.processes();
        processes
            .iter()
            .any(|(pid, line)| *pid != janitor && line.contains("janitor"))
    });
    kill(pid_of_lab(&place, "two"), Signal::KILL);
    place.assert_clean();
}

fn pid_of_lab(place: &Place, name: &str) -> u32 {
    let labs: serde_json::Value = serde_json::from_str(&place.ok(&["ls", "--json"])).unwrap();
    let lab = labs
        .as_array()
        .unwrap()
        .iter()
        .find(|lab| lab["name"] == name)
        .unwrap();
    u32::try_from(lab["pid"].as_u64().unwrap()).unwrap()
}
