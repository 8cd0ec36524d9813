//! Fault scripts: what they become, and what is wrong with them.

use std::path::Path;
use std::time::Duration;

use topology::model::{NodeOrder, Topology};

/// A chain a – r – b with a switch at the end, and `more` of the lab.
fn lab(more: &str, link: &str) -> Result<Topology, String> {
    let text = format!(
        r#"{{"nodes": {{"a": {{"kind": "host"}}, "r": {{"kind": "router"}}, "b": {{"kind": "host"}}, "s": {{"kind": "switch"}}}},
"links": [{{"endpoints": ["a:eth0", "r:eth0"]{link}}}, {{"endpoints": ["r:eth1", "b:eth0"], "name": "rb"}}, {{"endpoints": ["b:eth1", "s"]}}],
{more}}}"#
    );
    match Topology::parse(&text, Path::new("lab.json")) {
        Ok(loaded) => Ok(loaded.topology),
        Err(report) => Err(report.to_string()),
    }
}

fn faults(faults: &str) -> Topology {
    lab(&format!(r#""faults": [{faults}]"#), "").unwrap()
}

/// For each link when its carrier comes or goes, in ms.
fn carriers(topology: &Topology) -> Vec<Vec<(u64, bool)>> {
    let links = topology.links.iter();
    links
        .map(|link| {
            let changes = link.schedule.iter();
            changes
                .map(|change| {
                    assert_eq!(change.set[0], change.set[1]);
                    (change.at.as_millis() as u64, change.set[0].up.unwrap())
                })
                .collect()
        })
        .collect()
}

#[test]
fn changes_that_come_again() {
    let schedule = r#", "schedule": [{"at": "1s", "every": "10s", "count": 3, "set": {"delay": "1ms"}},
        {"at": "6s", "every": "10s", "count": 2, "set": {"delay": "2ms"}}, {"at": "11s", "set": {"delay": "3ms"}}]"#;
    let topology = lab(r#""seed": 1"#, schedule).unwrap();
    let changes = topology.links[0].schedule.iter();
    let changes: Vec<_> = changes
        .map(|c| (c.at.as_secs(), c.set[0].delay.unwrap().as_millis()))
        .collect();
    assert_eq!(
        changes,
        [(1, 1), (6, 2), (11, 1), (11, 3), (16, 2), (21, 1)]
    );
}

#[test]
fn a_schedule_is_bounded() {
    let change = r#"{"at": "1s", "every": "1s", "count": 10000, "set": {"delay": "1ms"}}"#;
    let schedule = format!(r#", "schedule": [{}]"#, [change; 11].join(", "));
    let said = lab(r#""seed": 1"#, &schedule).unwrap_err();
    assert!(said.contains("changes more than 100000 times"), "{said}");
}

#[test]
fn links_flap() {
    let topology = faults(
        r#"{"at": "10s", "flap": {"links": ["a:eth0", "rb"], "down": "2s", "up": "500ms", "count": 2}}"#,
    );
    let flaps = vec![
        (10_000, false),
        (12_000, true),
        (12_500, false),
        (14_500, true),
    ];
    assert_eq!(carriers(&topology), [flaps.clone(), flaps, vec![]]);
    let once = faults(
        r#"{"at": "1s", "every": "1min", "count": 2, "flap": {"links": ["b:eth1"], "down": "1ms"}}"#,
    );
    let twice = vec![(1000, false), (1001, true), (61_000, false), (61_001, true)];
    assert_eq!(carriers(&once), [vec![], vec![], twice]);
}

#[test]
fn a_partition_cuts_what_leads_out_of_it() {
    let topology = faults(r#"{"at": "5s", "partition": {"nodes": ["b", "s"], "for": "30s"}}"#);
    let cut = vec![(5000, false), (35_000, true)];
    assert_eq!(carriers(&topology), [vec![], cut, vec![]]);
    let links = faults(r#"{"at": "5s", "partition": {"links": ["r:eth0", "rb"], "for": "1s"}}"#);
    let cut = vec![(5000, false), (6000, true)];
    assert_eq!(carriers(&links), [cut.clone(), cut, vec![]]);
}

/// A link is down as long as anything holds it down.
#[test]
fn faults_overlap() {
    let topology = faults(
        r#"{"at": "10s", "partition": {"nodes": ["a"], "for": "10s"}},
           {"at": "5s", "flap": {"links": ["a:eth0"], "down": "3s", "up": "3s", "count": 4}},
           {"at": "26s", "partition": {"links": ["r:eth0"], "for": "1s"}}"#,
    );
    let expected = vec![
        (5000, false),
        (8000, true),
        (10_000, false),
        (20_000, true),
        (23_000, false),
        (27_000, true),
    ];
    // The flap is down from 5, 11, 17 and 23 on; the last touches the second partition.
    assert_eq!(carriers(&topology)[0], expected);
}

#[test]
fn a_direction_that_is_down_anyway_stays_so() {
    let fault = r#""faults": [{"at": "1s", "partition": {"nodes": ["a"], "for": "1s"}}]"#;
    let topology = lab(fault, r#", "forward": {"up": false}"#).unwrap();
    let [down, up] = topology.links[0].schedule.as_slice() else {
        panic!("{:?}", topology.links[0].schedule);
    };
    assert_eq!(
        [&down.set, &up.set].map(|set| [set[0].up, set[1].up]),
        [[None, Some(false)], [None, Some(true)]]
    );
    let topology = lab(fault, r#", "up": false"#).unwrap();
    assert!(topology.links[0].schedule.is_empty());
}

#[test]
fn machines_are_stopped_and_started() {
    let topology = faults(
        r#"{"at": "9s", "nodes": ["a"], "do": "start"}, {"at": "3s", "every": "4s", "count": 2, "nodes": ["r", "b"], "do": "restart"}"#,
    );
    let faults = topology.node_faults.iter();
    let faults: Vec<_> = faults.map(|f| (f.at, f.node, f.order)).collect();
    let at = Duration::from_secs;
    let expected = [
        (at(3), 1, NodeOrder::Restart),
        (at(3), 2, NodeOrder::Restart),
        (at(7), 1, NodeOrder::Restart),
        (at(7), 2, NodeOrder::Restart),
        (at(9), 0, NodeOrder::Start),
    ];
    assert_eq!(faults, expected);
}

#[test]
fn what_is_wrong_is_said_with_its_place() {
    // What is written, where it is wrong, and what is said.
    let cases = [
        (r#"{"at": "1s"}"#, "{", "a fault is one of"),
        (
            r#"{"at": "1s", "nodes": ["a"], "do": "stop", "flap": {"links": ["rb"], "down": "1s"}}"#,
            "{",
            "a fault is one of",
        ),
        (r#"{"at": "1s", "nodes": ["a"]}"#, "{", "belong together"),
        (
            r#"{"at": "1s", "nodes": ["x"], "do": "stop"}"#,
            r#""x""#,
            "there is no node `x`",
        ),
        (
            r#"{"at": "1s", "nodes": ["s"], "do": "stop"}"#,
            r#""s""#,
            "a node inside the switch",
        ),
        (
            r#"{"at": "1s", "nodes": [], "do": "stop"}"#,
            r#""nodes""#,
            "nothing is named",
        ),
        (
            r#"{"at": "1s", "nodes": ["a"], "do": "explode"}"#,
            r#""do""#,
            "explode",
        ),
        (
            r#"{"at": "1s", "flap": {"links": ["r:eth9"], "down": "1s"}}"#,
            r#""r:eth9""#,
            "there is no link `r:eth9`",
        ),
        (
            r#"{"at": "1s", "flap": {"links": ["rb"], "down": "0s"}}"#,
            r#""down""#,
            "`down` is 0",
        ),
        (
            r#"{"at": "1s", "flap": {"links": ["rb"], "down": "1s", "count": 2}}"#,
            r#""count""#,
            "without `up`",
        ),
        (
            r#"{"at": "1s", "flap": {"links": ["rb"], "down": "1s", "up": "1s", "count": 0}}"#,
            r#""count""#,
            "from 1 to 10000",
        ),
        (
            r#"{"at": "1s", "partition": {"for": "1s"}}"#,
            r#""partition""#,
            "either `nodes` or `links`",
        ),
        (
            r#"{"at": "1s", "partition": {"links": ["rb"], "for": "0s"}}"#,
            r#""for""#,
            "`for` is 0",
        ),
        (
            r#"{"at": "1s", "every": "1s", "nodes": ["a"], "do": "stop"}"#,
            r#""every""#,
            "`every` without `count`",
        ),
        (
            r#"{"at": "1s", "count": 2, "nodes": ["a"], "do": "stop"}"#,
            r#""count""#,
            "`count` without `every`",
        ),
        (
            r#"{"at": "1s", "every": "1s", "count": 1, "nodes": ["a"], "do": "stop"}"#,
            r#""count""#,
            "from 2 to 10000",
        ),
    ];
    for (fault, at, message) in cases {
        let faults = format!(r#""faults": [{fault}]"#);
        let said = lab(&faults, "").unwrap_err();
        let column = faults.find(at).unwrap() + 1;
        assert!(said.contains(message), "{fault}\n{said}");
        let place = |column| said.contains(&format!("lab.json:3:{column}\n"));
        // The value, or its key as well.
        assert!(
            place(column) || place(column + at.len() + 2),
            "{fault}\n{said}"
        );
    }
    let both = r#""faults": [{"at": "1s", "partition": {"nodes": ["a"], "for": "1s"}}]"#;
    let schedule = r#", "schedule": [{"at": "1s", "set": {"up": false}}]"#;
    let said = lab(both, schedule).unwrap_err();
    assert!(said.contains("sets `up` as well"), "{said}");
    let many = r#""faults": [{"at": "1s", "every": "1s", "count": 10000, "flap": {"links": ["rb"], "down": "1ms", "up": "1ms", "count": 10000}}]"#;
    let said = lab(many, "").unwrap_err();
    assert!(said.contains("more than 100000 outages"), "{said}");
}

#[test]
fn a_partition_that_cuts_nothing_is_a_warning() {
    let text = r#"{"nodes": {"a": {"kind": "host"}, "b": {"kind": "host"}}, "links": [{"endpoints": ["a:eth0", "b:eth0"]}],
        "faults": [{"at": "1s", "partition": {"nodes": ["a", "b"], "for": "1s"}}]}"#;
    let loaded = Topology::parse(text, Path::new("lab.json")).unwrap();
    assert!(
        loaded
            .warnings
            .to_string()
            .contains("this cuts nothing off")
    );
}
