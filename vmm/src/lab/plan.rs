//! What makes a running lab into another one, step by step, for people to look at first.

use std::collections::BTreeSet;

use topology::difference::{Aspect, Difference, LinkChange, NodeChange, describe_set};
use topology::model::Topology;

use super::faults;
use crate::api::types::{Action, Step, Subject};

/// What about a machine changes while its guest runs: it only matters to its lab.
const LIVE: [&str; 5] = ["ready", "after", "on", "labels", "save"];

/// The steps from `old` to `new`: what goes, then nodes, then links. `drifted` are links that people have set to something else than `old`
/// says, and that are to be as `new` says.
pub fn steps(
    old: &Topology,
    new: &Topology,
    difference: &Difference,
    drifted: &BTreeSet<String>,
) -> Vec<Step> {
    let mut steps = Vec::new();
    for change in &difference.links {
        if let LinkChange::Removed(index) = change {
            let name = &old.links[*index].name;
            steps.push(step(Action::Remove, Subject::Link, name, Vec::new()));
        }
    }
    for change in &difference.nodes {
        steps.push(match change {
            NodeChange::Removed(index) => {
                let name = &old.nodes[*index].name;
                step(Action::Remove, Subject::Node, name, Vec::new())
            }
            NodeChange::Added(index) => {
                let name = &new.nodes[*index].name;
                step(Action::Add, Subject::Node, name, Vec::new())
            }
            NodeChange::Changed {
                new: index,
                aspects,
                ..
            } => {
                let node = &new.nodes[*index];
                let action = if restarts(new, *index, aspects) {
                    Action::Restart
                } else {
                    Action::Change
                };
                let details = aspects.iter().map(detail).collect();
                step(action, Subject::Node, &node.name, details)
            }
        });
    }
    let mut changed: Vec<Vec<String>> = new.links.iter().map(|_| Vec::new()).collect();
    for change in &difference.links {
        match change {
            LinkChange::Removed(_) => {}
            LinkChange::Added(index) => {
                let name = &new.links[*index].name;
                steps.push(step(Action::Add, Subject::Link, name, Vec::new()));
            }
            LinkChange::Changed {
                old: from,
                new: to,
                set,
                schedule,
            } => {
                let (before, after) = (&old.links[*from], &new.links[*to]);
                let details = &mut changed[*to];
                if before.name != after.name {
                    details.push(format!("it was called {}", before.name));
                }
                let words = describe_set(&before.directions, &after.directions);
                if words.is_empty() && set.iter().any(|patch| !patch.is_empty()) {
                    details.push("attributes".into());
                }
                details.extend(words);
                if *schedule {
                    details.push("schedule, as far as it is to come".into());
                }
            }
        }
    }
    for (from, to) in &difference.kept_links {
        if drifted.contains(&old.links[*from].name) {
            changed[*to].push("what was set by hand is set back".into());
        }
    }
    for (link, details) in new.links.iter().zip(changed) {
        if !details.is_empty() {
            steps.push(step(Action::Change, Subject::Link, &link.name, details));
        }
    }
    steps
}

/// What else differs.
pub fn notes(old: &Topology, new: &Topology) -> Vec<String> {
    let fields = [
        ("seed", old.seed != new.seed),
        ("timing", old.timing != new.timing),
        ("orphaned", old.orphaned != new.orphaned),
    ];
    let differs = fields.iter().filter(|(_, differs)| *differs);
    let mut notes: Vec<_> = differs
        .map(|(field, _)| format!("`{field}` stays as it is until the lab is launched again"))
        .collect();
    if faults::of(old) != faults::of(new) {
        notes.push("`faults` of nodes are those of the file, as far as they are to come".into());
    }
    notes
}

/// Whether a node that has changed in this way has to boot again.
pub fn restarts(new: &Topology, node: usize, aspects: &[Aspect]) -> bool {
    let live = |aspect: &Aspect| LIVE.contains(&aspect.field);
    new.nodes[node].machine().is_some() && !aspects.iter().all(live)
}

fn step(action: Action, subject: Subject, name: &str, details: Vec<String>) -> Step {
    let name = name.to_owned();
    Step {
        action,
        subject,
        name,
        details,
    }
}

fn detail(aspect: &Aspect) -> String {
    if aspect.detail.is_empty() {
        aspect.field.to_owned()
    } else if aspect.field == "interfaces" {
        format!("interfaces: {}", aspect.detail)
    } else {
        format!("{} {}", aspect.field, aspect.detail)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn topology(nodes: &str, links: &str) -> Topology {
        let text = format!(r#"{{"name": "lab", "nodes": {{{nodes}}}, "links": [{links}]}}"#);
        let loaded = Topology::parse(&text, Path::new("lab.json"));
        loaded.unwrap_or_else(|report| panic!("{report}")).topology
    }

    fn lines(old: &Topology, new: &Topology, drifted: &[&str]) -> Vec<String> {
        let difference = Difference::between(old, new);
        let drifted = drifted.iter().map(|name| (*name).to_owned()).collect();
        let steps = steps(old, new, &difference, &drifted).into_iter();
        let line = |step: Step| {
            let what = format!("{:?} {:?} {}", step.action, step.subject, step.name);
            format!("{what}: {}", step.details.join("; ")).to_lowercase()
        };
        steps.map(line).collect()
    }

    #[test]
    fn nothing_is_to_be_done_for_the_same() {
        let lab = topology(
            r#""a": {"kind": "host"}, "s": {"kind": "switch"}"#,
            r#"{"endpoints": ["a:eth0", "s"]}"#,
        );
        assert_eq!(lines(&lab, &lab, &[]), [""; 0]);
        let expected = ["change link a:eth0--s:0: what was set by hand is set back"];
        assert_eq!(lines(&lab, &lab, &["a:eth0--s:0"]), expected);
    }

    #[test]
    fn every_kind_of_step() {
        let old = topology(
            r#""a": {"kind": "host"}, "b": {"kind": "host"}, "c": {"kind": "host"}, "d": {"kind": "host"}, "s": {"kind": "switch"}"#,
            r#"{"endpoints": ["a:eth0", "s"]}, {"endpoints": ["b:eth0", "s"]}, {"endpoints": ["d:eth0", "s"], "delay": "1ms"}"#,
        );
        let new = topology(
            r#""b": {"kind": "host", "memory": "64MiB", "sysctls": {"net.ipv4.ip_forward": 1}},
               "c": {"kind": "host", "on": {"panic": "restart"}}, "d": {"kind": "host"}, "e": {"kind": "host"},
               "s": {"kind": "switch", "ageing": "10s"}"#,
            r#"{"endpoints": ["b:eth0", "s"]}, {"endpoints": ["d:eth0", "s"], "delay": "2ms", "schedule": [{"at": "9s", "set": {"up": false}}]},
               {"endpoints": ["e:eth0", "s"]}"#,
        );
        let expected = [
            "remove link a:eth0--s:0: ",
            "remove node a: ",
            "restart node b: memory 128mib → 64mib; sysctls",
            "change node c: on",
            "add node e: ",
            "change node s: ageing",
            "add link e:eth0--s:2: ",
            "change link b:eth0--s:0: it was called b:eth0--s:1",
            "change link d:eth0--s:1: it was called d:eth0--s:2; delay 1ms → 2ms; schedule, as far as it is to come",
        ];
        assert_eq!(lines(&old, &new, &["a:eth0--s:0"]), expected);
    }

    #[test]
    fn a_new_nic_takes_a_restart() {
        let nodes = r#""a": {"kind": "host"}, "b": {"kind": "host"}"#;
        let old = topology(nodes, r#"{"endpoints": ["a:eth0", "b:eth0"]}"#);
        let new = topology(
            nodes,
            r#"{"endpoints": ["a:eth0", "b:eth0"]}, {"endpoints": ["a:eth1", "b:eth1"]}"#,
        );
        let expected = [
            "restart node a: interfaces: eth1 is new",
            "restart node b: interfaces: eth1 is new",
            "add link a:eth1--b:eth1: ",
        ];
        assert_eq!(lines(&old, &new, &[]), expected);
    }
}
