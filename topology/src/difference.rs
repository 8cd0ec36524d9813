//! What differs between two topologies of one lab: what there is to do to make one into the other.

use std::collections::HashMap;

use crate::link::{Direction, Patch};
use crate::model::{
    Completion, Endpoint, Interface, Link, Machine, Node, NodeKind, SwitchPort, Topology,
};

/// What differs between an old topology and a new one; nodes and links by their indexes there.
///
/// A node is the same as before if it has the same name and is of the same kind, where hosts and routers are one kind. A link is the
/// same if it joins the same ends in the same order and completes buffers at the same moment: machines' interfaces by their names, other
/// nodes as a whole, since the ports of a switch are numbered by the links there are. So a link can have another name than
/// before.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Difference {
    /// First those that are gone, in the old order, then the others in the new.
    pub nodes: Vec<NodeChange>,
    /// Of nodes that stay, the old and the new index.
    pub kept_nodes: Vec<(usize, usize)>,
    /// First those that are gone, in the old order, then the others in the new.
    pub links: Vec<LinkChange>,
    /// Of links that stay, the old and the new index.
    pub kept_links: Vec<(usize, usize)>,
}

/// A node that is not as before.
#[derive(Debug, Clone, PartialEq)]
pub enum NodeChange {
    /// It is gone; its index in the old topology.
    Removed(usize),
    /// It is new; its index in the new topology.
    Added(usize),
    /// It stays, with other attributes.
    Changed {
        /// Its index in the old topology.
        old: usize,
        /// Its index in the new topology.
        new: usize,
        /// What is different.
        aspects: Vec<Aspect>,
    },
}

/// Something about a node that is different.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Aspect {
    /// As the file calls it: `memory`, `interfaces`, `routes`, ….
    pub field: &'static str,
    /// More about it, for people; may be empty.
    pub detail: String,
}

/// A link that is not as before.
#[derive(Debug, Clone, PartialEq)]
pub enum LinkChange {
    /// It is gone; its index in the old topology.
    Removed(usize),
    /// It is new; its index in the new topology.
    Added(usize),
    /// It stays, with another name, other attributes or another schedule.
    Changed {
        /// Its index in the old topology.
        old: usize,
        /// Its index in the new topology.
        new: usize,
        /// The attributes that are different, for each direction.
        set: Box<[Patch; 2]>,
        /// Its schedule is different.
        schedule: bool,
    },
}

impl Difference {
    /// What makes `old` into `new`.
    pub fn between(old: &Topology, new: &Topology) -> Self {
        let mut difference = Self::default();
        difference.compare_nodes(old, new);
        difference.compare_links(old, new);
        difference
    }

    /// Whether nothing differs.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty() && self.links.is_empty()
    }

    fn compare_nodes(&mut self, old: &Topology, new: &Topology) {
        let before: HashMap<&str, usize> = names(&old.nodes);
        let after: HashMap<&str, usize> = names(&new.nodes);
        for (index, node) in old.nodes.iter().enumerate() {
            let stays = after.get(node.name.as_str());
            if !stays.is_some_and(|to| same_kind(&node.kind, &new.nodes[*to].kind)) {
                self.nodes.push(NodeChange::Removed(index));
            }
        }
        for (index, node) in new.nodes.iter().enumerate() {
            let known = before.get(node.name.as_str()).copied();
            let known = known.filter(|from| same_kind(&old.nodes[*from].kind, &node.kind));
            let Some(from) = known else {
                self.nodes.push(NodeChange::Added(index));
                continue;
            };
            self.kept_nodes.push((from, index));
            let aspects = aspects((old, from), (new, index));
            if !aspects.is_empty() {
                self.nodes.push(NodeChange::Changed {
                    old: from,
                    new: index,
                    aspects,
                });
            }
        }
    }

    fn compare_links(&mut self, old: &Topology, new: &Topology) {
        // Nodes of the new topology by their number in the old one, so that ends can be compared.
        let stays: HashMap<usize, usize> = self.kept_nodes.iter().map(|(o, n)| (*n, *o)).collect();
        let mut before: HashMap<Identity<'_>, Vec<usize>> = HashMap::new();
        for (index, link) in old.links.iter().enumerate() {
            if let Some(identity) = identity(old, link, Some) {
                before.entry(identity).or_default().push(index);
            }
        }
        // Several links may join the same two switches: their names tell them apart, then their order.
        let mut take = |link: &Link, by_name: bool| {
            let there = before.get_mut(&identity(new, link, |n| stays.get(&n).copied())?)?;
            let mut places = there.iter();
            let place = places.position(|o| !by_name || old.links[*o].name == link.name)?;
            Some(there.remove(place))
        };
        let named: Vec<_> = new.links.iter().map(|link| take(link, true)).collect();
        let mut kept = vec![false; old.links.len()];
        let mut changes = Vec::new();
        for (index, (link, named)) in new.links.iter().zip(named).enumerate() {
            let Some(from) = named.or_else(|| take(link, false)) else {
                changes.push(LinkChange::Added(index));
                continue;
            };
            kept[from] = true;
            self.kept_links.push((from, index));
            let before = &old.links[from];
            let set =
                [0, 1].map(|way| Patch::between(&before.directions[way], &link.directions[way]));
            let schedule = before.schedule != link.schedule;
            if schedule || before.name != link.name || set.iter().any(|patch| !patch.is_empty()) {
                changes.push(LinkChange::Changed {
                    old: from,
                    new: index,
                    set: Box::new(set),
                    schedule,
                });
            }
        }
        let gone = (0..old.links.len()).filter(|index| !kept[*index]);
        self.links = gone.map(LinkChange::Removed).chain(changes).collect();
    }
}

/// What makes a link the same: for each end the node, by its index in the old topology, and the name of the interface, if it has
/// one; and whether it completes buffers as a NIC does.
type Identity<'a> = ([(usize, Option<&'a str>); 2], bool);

/// `None` if a node at an end was not there before.
fn identity<'a>(
    topology: &'a Topology,
    link: &Link,
    old: impl Fn(usize) -> Option<usize>,
) -> Option<Identity<'a>> {
    let end = |Endpoint { node, port }: Endpoint| {
        let interface = match &topology.nodes[node].kind {
            NodeKind::Machine(machine) => Some(machine.interfaces[port].name.as_str()),
            NodeKind::Switch(_) | NodeKind::Hub | NodeKind::External(_) => None,
        };
        Some((old(node)?, interface))
    };
    let ends = [end(link.ends[0])?, end(link.ends[1])?];
    Some((ends, link.completion == Completion::Nic))
}

fn names(nodes: &[Node]) -> HashMap<&str, usize> {
    let named = nodes.iter().enumerate();
    named
        .map(|(index, node)| (node.name.as_str(), index))
        .collect()
}

fn same_kind(old: &NodeKind, new: &NodeKind) -> bool {
    std::mem::discriminant(old) == std::mem::discriminant(new)
}

/// What differs about a node of two topologies, each with its index there.
fn aspects(old: (&Topology, usize), new: (&Topology, usize)) -> Vec<Aspect> {
    let mut aspects = Vec::new();
    match (&old.0.nodes[old.1].kind, &new.0.nodes[new.1].kind) {
        (NodeKind::Machine(before), NodeKind::Machine(after)) => {
            let waits = after_of(old.0, before) != after_of(new.0, after);
            machine(before, after, waits, &mut aspects);
        }
        (NodeKind::Switch(old), NodeKind::Switch(new)) => {
            let mut note = |field, differs: bool| {
                if differs {
                    aspects.push(Aspect::of(field));
                }
            };
            note("ageing", old.ageing != new.ageing);
            note("table-limit", old.table_limit != new.table_limit);
            note("reserved", old.forward_reserved != new.forward_reserved);
            // Without VLANs and limits, only the number of ports differs, by the links.
            let plain = |ports: &[SwitchPort]| ports.iter().all(|p| *p == SwitchPort::default());
            note(
                "ports",
                old.ports != new.ports && !(plain(&old.ports) && plain(&new.ports)),
            );
        }
        (NodeKind::External(old), NodeKind::External(new)) if old != new => aspects.push(Aspect {
            field: new.kind(),
            detail: format!("{old} → {new}"),
        }),
        _ => {}
    }
    aspects
}

impl Aspect {
    fn of(field: &'static str) -> Self {
        let detail = String::new();
        Self { field, detail }
    }
}

/// The names of the machines that `machine` waits for.
fn after_of<'a>(topology: &'a Topology, machine: &Machine) -> Vec<&'a str> {
    let after = machine.after.iter();
    after.map(|n| topology.nodes[*n].name.as_str()).collect()
}

/// `after` says whether it waits for other machines than before.
fn machine(old: &Machine, new: &Machine, after: bool, aspects: &mut Vec<Aspect>) {
    let mut note = |field, differs: bool, detail: &dyn Fn() -> String| {
        if differs {
            let detail = detail();
            aspects.push(Aspect { field, detail });
        }
    };
    let nothing = &String::new;
    note("kind", old.role != new.role, &|| {
        format!("{:?} → {:?}", old.role, new.role).to_lowercase()
    });
    note("memory", old.memory != new.memory, &|| {
        format!("{}MiB → {}MiB", old.memory >> 20, new.memory >> 20)
    });
    note("vcpus", old.vcpus != new.vcpus, &|| {
        format!("{} → {}", old.vcpus, new.vcpus)
    });
    note("engine", old.engine != new.engine, nothing);
    note("zone", old.zone != new.zone, nothing);
    let group = |machine: &Machine| {
        (
            machine.limits.cpu,
            machine.limits.weight,
            machine.limits.processors.clone(),
        )
    };
    note("cpu", group(old) != group(new), nothing);
    note(
        "host-memory",
        old.limits.memory != new.limits.memory,
        nothing,
    );
    note("kernel", old.kernel != new.kernel, nothing);
    note("rootfs", old.rootfs != new.rootfs, nothing);
    note("interfaces", old.interfaces != new.interfaces, &|| {
        interfaces(&old.interfaces, &new.interfaces)
    });
    note("routes", old.routes != new.routes, nothing);
    // Those of its kind are among them.
    note(
        "sysctls",
        old.sysctls != new.sysctls && old.role == new.role,
        nothing,
    );
    note("files", old.files != new.files, nothing);
    note("commands", old.commands != new.commands, nothing);
    note("routing", old.frr != new.frr, nothing);
    note("ready", old.ready != new.ready, nothing);
    note("after", after, nothing);
    note("on", old.on != new.on, nothing);
    note("labels", old.labels != new.labels, nothing);
    note("save", old.save != new.save, nothing);
    // What is not told apart above differs all the same.
    let bare = |machine: &Machine| Machine {
        after: Vec::new(),
        ..machine.clone()
    };
    if aspects.is_empty() && old != new && bare(old) != bare(new) {
        aspects.push(Aspect::of("machine"));
    }
}

fn interfaces(old: &[Interface], new: &[Interface]) -> String {
    let find = |all: &[Interface], name: &str| all.iter().find(|i| i.name == name).cloned();
    let gone = old.iter().filter(|i| find(new, &i.name).is_none());
    let mut words: Vec<_> = gone.map(|i| format!("{} is gone", i.name)).collect();
    for interface in new {
        let Some(before) = find(old, &interface.name) else {
            words.push(format!("{} is new", interface.name));
            continue;
        };
        let fields = [
            ("addresses", before.addresses != interface.addresses),
            ("mac", before.mac != interface.mac),
            ("mtu", before.mtu != interface.mtu),
            ("queue-size", before.queue_size != interface.queue_size),
            ("offloads", before.offloads != interface.offloads),
            ("lock", before.lock != interface.lock),
        ];
        let changed = fields.iter().filter(|(_, differs)| *differs);
        words.extend(changed.map(|(field, _)| format!("{} of {}", field, interface.name)));
    }
    if words.is_empty() {
        words.push("their order".into());
    }
    words.join(", ")
}

/// What a change of attributes looks like to people: `delay 10ms → 20ms`, by direction if they differ.
pub fn describe_set(old: &[Direction; 2], new: &[Direction; 2]) -> Vec<String> {
    let words = [0, 1].map(|way| {
        let (before, after) = (old[way].written(), new[way].written());
        let mut names: Vec<_> = before.keys().chain(after.keys()).collect();
        names.sort();
        names.dedup();
        let text = |value: Option<&serde_json::Value>| match value {
            None => "default".to_owned(),
            Some(serde_json::Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
        };
        let differs = names
            .into_iter()
            .filter(|name| before.get(*name) != after.get(*name));
        differs
            .map(|name| {
                format!(
                    "{name} {} → {}",
                    text(before.get(name)),
                    text(after.get(name))
                )
            })
            .collect::<Vec<_>>()
    });
    let [there, back] = words;
    if there == back {
        return there;
    }
    let named = |way: &str, words: Vec<String>| {
        let words = words.into_iter();
        words
            .map(|word| format!("{way} {word}"))
            .collect::<Vec<_>>()
    };
    let mut all = named("forward", there);
    all.extend(named("backward", back));
    all
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn topology(nodes: &str, links: &str) -> Topology {
        let text = format!(r#"{{"name": "lab", "nodes": {{{nodes}}}, "links": [{links}]}}"#);
        let loaded = Topology::parse(&text, Path::new("lab.json"));
        loaded
            .map_err(|report| panic!("{report}"))
            .unwrap()
            .topology
    }

    const HOSTS: &str = r#""a": {"kind": "host"}, "b": {"kind": "host"}"#;
    const AB: &str = r#"{"endpoints": ["a:eth0", "b:eth0"]}"#;

    fn with(nodes: &str) -> String {
        format!("{HOSTS}, {nodes}")
    }

    fn aspects_of(change: &NodeChange) -> Vec<(&'static str, &str)> {
        let NodeChange::Changed { aspects, .. } = change else {
            panic!("{change:?}");
        };
        let aspects = aspects.iter();
        aspects
            .map(|aspect| (aspect.field, aspect.detail.as_str()))
            .collect()
    }

    #[test]
    fn nothing_differs_from_itself_in_any_order() {
        let old = topology(&with(r#""s": {"kind": "switch"}"#), AB);
        assert!(Difference::between(&old, &old).is_empty());
        let turned = r#""s": {"kind": "switch"}, "b": {"kind": "host"}, "a": {"kind": "host"}"#;
        let new = topology(turned, AB);
        let difference = Difference::between(&old, &new);
        assert!(difference.is_empty());
        assert_eq!(difference.kept_nodes, [(2, 0), (1, 1), (0, 2)]);
    }

    #[test]
    fn nodes_come_and_go() {
        let old = topology(&with(r#""h": {"kind": "hub"}"#), AB);
        let new = topology(
            &with(r#""h": {"kind": "switch"}, "c": {"kind": "host"}"#),
            AB,
        );
        let expected = [
            NodeChange::Removed(2),
            NodeChange::Added(2),
            NodeChange::Added(3),
        ];
        let difference = Difference::between(&old, &new);
        assert_eq!(
            difference.nodes, expected,
            "a hub that becomes a switch is another node"
        );
        assert_eq!(difference.links, []);
        assert_eq!(difference.kept_links, [(0, 0)]);
    }

    #[test]
    fn what_is_different_about_a_machine() {
        let old = topology(HOSTS, AB);
        let new = topology(
            r#""a": {"kind": "router", "memory": "256MiB"},
               "b": {"kind": "host", "interfaces": {"eth0": {"mtu": 9000}, "eth1": {}}, "commands": ["true"]}"#,
            AB,
        );
        let changes = Difference::between(&old, &new).nodes;
        let [a, b] = changes.as_slice() else {
            panic!("{changes:?}");
        };
        let expected = [("kind", "host → router"), ("memory", "128MiB → 256MiB")];
        assert_eq!(aspects_of(a), expected);
        let expected = [("interfaces", "mtu of eth0, eth1 is new"), ("commands", "")];
        assert_eq!(aspects_of(b), expected);
    }

    #[test]
    fn what_is_different_about_a_switch() {
        let switch =
            |ports: &str| topology(&with(&format!(r#""s": {{"kind": "switch"{ports}}}"#)), AB);
        let more = topology(
            &with(r#""s": {"kind": "switch"}"#),
            r#"{"endpoints": ["a:eth0", "s"]}, {"endpoints": ["b:eth0", "s"]}"#,
        );
        let nodes = |new| Difference::between(&switch(""), new).nodes;
        assert_eq!(
            nodes(&more),
            [],
            "it has more ports because there are more links"
        );
        assert_eq!(
            aspects_of(&nodes(&switch(r#", "ageing": "10s""#))[0]),
            [("ageing", "")]
        );
    }

    #[test]
    fn links_are_known_by_their_ends() {
        let nodes = with(r#""s": {"kind": "switch"}"#);
        let ends = |from: &str, more: &str| format!(r#"{{"endpoints": ["{from}", "s"]{more}}}"#);
        let old = topology(&nodes, &[ends("a:eth0", ""), ends("b:eth0", "")].join(", "));
        let new = topology(&nodes, &ends("b:eth0", ""));
        let difference = Difference::between(&old, &new);
        let renamed = LinkChange::Changed {
            old: 1,
            new: 0,
            set: Box::default(),
            schedule: false,
        };
        assert_eq!(difference.links, [LinkChange::Removed(0), renamed]);
        assert_eq!(new.links[0].name, "b:eth0--s:0", "it was s:1");

        let nic = topology(&nodes, &ends("a:eth0", r#", "completion": "nic""#));
        let old = topology(&nodes, &ends("a:eth0", ""));
        let expected = [LinkChange::Removed(0), LinkChange::Added(0)];
        assert_eq!(Difference::between(&old, &nic).links, expected);
        let turned = topology(&nodes, r#"{"endpoints": ["s", "a:eth0"]}"#);
        assert_eq!(Difference::between(&old, &turned).links, expected);
    }

    #[test]
    fn parallel_links_keep_their_names_then_their_order() {
        let nodes = with(r#""s": {"kind": "switch"}, "t": {"kind": "switch"}"#);
        let link = |name: &str| format!(r#"{{"endpoints": ["s", "t"], "name": "{name}"}}"#);
        let old = topology(&nodes, &[link("x"), link("y"), link("z")].join(", "));
        let new = topology(&nodes, &[link("new"), link("x")].join(", "));
        let difference = Difference::between(&old, &new);
        assert_eq!(difference.kept_links, [(1, 0), (0, 1)]);
        assert_eq!(difference.links[0], LinkChange::Removed(2));
    }

    #[test]
    fn attributes_are_set_and_no_others() {
        let link = |attributes: &str| {
            topology(
                HOSTS,
                &format!(r#"{{"endpoints": ["a:eth0", "b:eth0"]{attributes}}}"#),
            )
        };
        let old = link(r#", "delay": "10ms", "rate": "1Mbit""#);
        let new = link(
            r#", "delay": "20ms", "rate": "1Mbit", "forward": {"loss": "1%"}, "schedule": [{"at": "1s", "set": {"up": false}}]"#,
        );
        let difference = Difference::between(&old, &new);
        let [LinkChange::Changed { set, schedule, .. }] = difference.links.as_slice() else {
            panic!("{:?}", difference.links);
        };
        assert!(*schedule);
        let mut directions = old.links[0].directions.clone();
        for (direction, patch) in directions.iter_mut().zip(&**set) {
            assert_eq!((&patch.rate, &patch.up), (&None, &None));
            patch.apply(direction);
        }
        assert_eq!(directions, new.links[0].directions);
        assert_eq!(
            describe_set(&old.links[0].directions, &new.links[0].directions),
            [
                "forward delay 10ms → 20ms",
                "forward loss default → 1%",
                "backward delay 10ms → 20ms"
            ]
        );
        let slow = link(r#", "delay": "10ms", "rate": "1kbit""#);
        assert_eq!(
            describe_set(&old.links[0].directions, &slow.links[0].directions),
            ["rate 1Mbit → 1kbit"]
        );
    }

    #[test]
    fn a_trace_becomes_a_rate() {
        let trace = Direction {
            trace: Some(std::sync::Arc::new(crate::model::Trace {
                opportunities: vec![std::time::Duration::from_millis(1)],
            })),
            ..Direction::default()
        };
        for (old, new) in [
            (trace.clone(), Direction::default()),
            (Direction::default(), trace),
        ] {
            let mut direction = old.clone();
            Patch::between(&old, &new).apply(&mut direction);
            assert_eq!(direction, new);
        }
    }
}
