//! Labs whose zones have a switch each.

use rustix::process::Signal;
use serde_json::Value;

use crate::harness::{Place, kill, text};

/// `a` and `b` in one zone, `c` and `d` in another, `e` in none; `more` are further links.
fn lab(delay: &str, more: &str) -> String {
    format!(
        r#"{{"name": "two", "nodes": {{
            "a": {{"kind": "host", "zone": "red"}}, "b": {{"kind": "host"}},
            "c": {{"kind": "host", "zone": "blue"}}, "d": {{"kind": "host"}}, "e": {{"kind": "host"}}}},
        "links": [{{"endpoints": ["a:eth0", "b:eth0"], "delay": "{delay}"}}, {{"endpoints": ["c:eth0", "d:eth0"]}}{more}]}}"#
    )
}

fn place() -> Place {
    let place = Place::with_real_switch();
    place.topology(&lab("1ms", ""));
    place.launch();
    place
}

fn shown(place: &Place) -> Value {
    let labs: Value = serde_json::from_str(&place.ok(&["ls", "--json"])).unwrap();
    labs[0].clone()
}

/// The process of each zone's switch.
fn switches(place: &Place) -> Vec<(String, u32)> {
    let shown = shown(place);
    let switches = shown["switches"].as_array().unwrap().iter();
    switches
        .map(|switch| {
            let pid = switch["pid"].as_u64().unwrap();
            let zone = switch["zone"].as_str().unwrap();
            (zone.to_owned(), u32::try_from(pid).unwrap())
        })
        .collect()
}

#[test]
fn each_zone_has_a_switch_and_its_links() {
    let place = place();
    let switches = switches(&place);
    let zones: Vec<_> = switches.iter().map(|(zone, _)| zone.as_str()).collect();
    assert_eq!(zones, ["", "blue", "red"]);
    assert_eq!(shown(&place)["switch_pid"], switches[0].1);
    // Each sees the folder of its own ports.
    for (zone, node) in [("red", "a"), ("red", "b"), ("blue", "c"), ("blue", "d")] {
        let ports = place
            .run_folder()
            .join("two/zones")
            .join(zone)
            .join("ports");
        assert!(
            ports.join(node).join("eth0.sock").exists(),
            "{zone}: {node}"
        );
    }
    let links = place.ok(&["link", "ls"]);
    assert!(
        links.contains("a:eth0  b:eth0") && links.contains("c:eth0  d:eth0"),
        "{links}"
    );
    // Each link is set in its zone.
    place.ok(&["link", "set", "c:eth0", "delay=7ms"]);
    place.ok(&["link", "set", "a:eth0", "delay=9ms"]);
    let delay = |end: &str| {
        let link: Value = serde_json::from_str(&place.ok(&["link", "ls", end, "--json"])).unwrap();
        link[0]["forward"]["attributes"]["delay"].clone()
    };
    assert_eq!([delay("a:eth0"), delay("c:eth0")], ["9ms", "7ms"]);
    place.ok(&["link", "reset", "a:eth0"]);
    assert_eq!([delay("a:eth0"), delay("c:eth0")], ["1ms", "7ms"]);
    place.ok(&["inspect"]);
    place.ok(&["stop"]);
    place.assert_clean();
}

#[test]
fn the_end_of_one_switch_is_nothing_to_the_others() {
    let place = place();
    let before = switches(&place);
    place.ok(&["link", "set", "c:eth0", "delay=7ms"]);
    kill(before[1].1, Signal::KILL);
    place.wait_until("it is started again", || {
        shown(&place)["switch_restarts"] == 1
    });
    let after = switches(&place);
    assert_eq!([&after[0], &after[2]], [&before[0], &before[2]]);
    assert_ne!(after[1], before[1]);
    // What was set by hand is set again.
    let links = place.ok(&["link", "ls"]);
    assert!(links.contains("7ms"), "{links}");
    place.ok(&["stop"]);
    place.assert_clean();
}

#[test]
fn a_running_lab_keeps_its_zones() {
    let place = place();
    let before = switches(&place);
    let apply = |text: &str| {
        std::fs::write(place.path("new.json"), text).unwrap();
        place.run(&["apply", "new.json"])
    };
    // Within zones anything goes.
    let output = apply(&lab("3ms", r#", {"endpoints": ["a:eth1", "b:eth1"]}"#));
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(switches(&place), before);
    let refused = [
        (
            lab("3ms", r#", {"endpoints": ["a:eth2", "c:eth2"]}"#),
            "node a would be in zone blue",
        ),
        (
            lab("3ms", "").replace("red", "green"),
            "node a would be in zone green",
        ),
        (
            lab("3ms", "").replace(r#", "zone": "red""#, ""),
            "node a would be in no zone",
        ),
    ];
    for (text_of, words) in refused {
        let output = apply(&text_of);
        assert!(
            !output.status.success() && text(&output).contains(words),
            "{}",
            text(&output)
        );
    }
    let links = place.ok(&["link", "ls"]);
    assert!(
        links.contains("a:eth1  b:eth1") && links.contains("3ms"),
        "{links}"
    );
    place.ok(&["stop"]);
    place.assert_clean();
}

#[test]
fn a_capture_is_of_one_zone() {
    let place = place();
    let said = place.fails(&["capture", "-w", "all.pcapng"], 1);
    assert!(said.contains("links of one zone"), "{said}");
    place.ok(&["stop"]);
    place.assert_clean();
}
