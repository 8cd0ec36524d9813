//! Links and their ends.

use std::collections::HashMap;

use super::{Resolver, attributes};
use crate::de::nearest;
use crate::document::Path;
use crate::file::{self, AttributesRef};
use crate::model::{self, Completion, Endpoint, Link, Lock, NodeKind, Patch};

impl Resolver<'_> {
    pub(super) fn links(&mut self) {
        let lab = self.lab;
        let mut base = model::Direction::default();
        let path = Path::of("defaults").at("link");
        self.patch(lab.defaults.link.attributes(), &path)
            .apply(&mut base);

        // By interface: the place of the link that has it.
        let mut linked: HashMap<Endpoint, Path> = HashMap::new();
        let mut ports: HashMap<usize, usize> = HashMap::new();
        let mut names: HashMap<String, usize> = HashMap::new();
        for (index, written) in lab.links.iter().enumerate() {
            let path = Path::of("links").at(index);
            let directions = self.directions(&base, written, &path);
            let schedule = attributes::schedule(
                written.schedule.as_deref().unwrap_or_default(),
                &path.at("schedule"),
                self.folder,
                &mut self.findings,
            );
            let places = [0, 1].map(|end| path.at("endpoints").at(end));
            let [first, second] =
                [0, 1].map(|end| self.endpoint(&written.endpoints[end], &mut ports, &places[end]));
            let (Some(first), Some(second)) = (first, second) else {
                continue;
            };
            if first == second || (first.node == second.node && self.is_bridge(first.node)) {
                self.findings.error(
                    &places[1],
                    format!("the link joins `{}` to itself", written.endpoints[1]),
                    "the two ends must differ",
                );
                continue;
            }
            let mut free = true;
            for (end, place) in [first, second].into_iter().zip(places) {
                if self.is_bridge(end.node) {
                    continue;
                }
                if let Some(other) = linked.get(&end) {
                    let name = self.end_name(end);
                    let help = match self.out.topology.nodes[end.node].kind {
                        NodeKind::External(_) => {
                            "an external node has one link; put a switch between"
                        }
                        _ => "an interface has one link; add an interface, or put a switch between",
                    };
                    self.findings.error(
                        &place,
                        format!("`{name}` has a link already: {other}"),
                        help,
                    );
                    free = false;
                } else {
                    linked.insert(end, path.clone());
                }
            }
            if !free {
                continue;
            }
            let name = self.link_name(written, [first, second], &path);
            if let Some(other) = names.insert(name.clone(), index) {
                self.findings.error(
                    &path.at("name"),
                    format!("links[{other}] is called `{name}` as well"),
                    "give each link a name of its own, or none",
                );
            }
            let completion = match written.completion.or(lab.defaults.link.completion) {
                Some(file::Completion::Nic) => Completion::Nic,
                Some(file::Completion::Network) | None => Completion::Network,
            };
            let locked = [first, second].iter().any(|end| self.is_locked(*end));
            if completion == Completion::Nic && locked {
                self.findings.error(
                    &path.at("completion"),
                    "frames of an interface with a `lock` are copied before they wait for the transmitter",
                    "take `network`, or remove the `lock`",
                );
            }
            self.out.link_places.push(index);
            self.out.topology.links.push(Link {
                name,
                ends: [first, second],
                directions,
                completion,
                schedule,
            });
        }
        self.interfaces_without_link(&linked);
    }

    pub(super) fn is_bridge(&self, node: usize) -> bool {
        let kind = &self.out.topology.nodes[node].kind;
        matches!(kind, NodeKind::Switch(_) | NodeKind::Hub)
    }

    fn is_locked(&self, end: Endpoint) -> bool {
        match &self.out.topology.nodes[end.node].kind {
            NodeKind::Machine(machine) => machine.interfaces[end.port].lock != Lock::None,
            NodeKind::Switch(_) | NodeKind::Hub | NodeKind::External(_) => false,
        }
    }

    fn link_name(&mut self, written: &file::Link, ends: [Endpoint; 2], path: &Path) -> String {
        let Some(name) = &written.name else {
            let [first, second] = ends.map(|end| self.end_name(end));
            return format!("{first}--{second}");
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.:".contains(c);
        if name.is_empty() || name.len() > 64 || !name.chars().all(plain) || name.starts_with('-') {
            self.findings.error(
                &path.at("name"),
                format!("`{name}` cannot be the name of a link"),
                "1 to 64 letters, digits, `-`, `_`, `.` and `:`, the first not a `-`",
            );
        }
        name.clone()
    }

    pub(super) fn end_name(&self, end: Endpoint) -> String {
        let node = &self.out.topology.nodes[end.node];
        match &node.kind {
            NodeKind::Machine(machine) => {
                format!("{}:{}", node.name, machine.interfaces[end.port].name)
            }
            NodeKind::Switch(_) | NodeKind::Hub => format!("{}:{}", node.name, end.port),
            NodeKind::External(_) => node.name.clone(),
        }
    }

    fn endpoint(
        &mut self,
        text: &str,
        ports: &mut HashMap<usize, usize>,
        path: &Path,
    ) -> Option<Endpoint> {
        let (node_name, interface) = match text.split_once(':') {
            Some((node, interface)) => (node, Some(interface)),
            None => (text, None),
        };
        let nodes = Path::of("nodes");
        let Some(node) = self
            .out
            .topology
            .nodes
            .iter()
            .position(|node| node.name == node_name)
        else {
            // A node that is there but could not be read has its own error.
            if !self.findings.document.lost_member(&nodes, node_name) {
                let known = self
                    .out
                    .topology
                    .nodes
                    .iter()
                    .map(|node| node.name.as_str());
                let known: Vec<&str> = known.collect();
                let help = hint(node_name, &known, |node| match interface {
                    Some(interface) => format!("{node}:{interface}"),
                    None => node.to_owned(),
                });
                self.findings
                    .error(path, format!("there is no node `{node_name}`"), help);
            }
            return None;
        };
        let NodeKind::Machine(machine) = &self.out.topology.nodes[node].kind else {
            let external = matches!(self.out.topology.nodes[node].kind, NodeKind::External(_));
            if interface.is_some() {
                let message = if external {
                    format!("`{node_name}` is an external node: it has no interfaces")
                } else {
                    format!("`{node_name}` is a switch or hub: its ports have no names")
                };
                let help = format!("write \"{node_name}\"");
                self.findings.error(path, message, help);
                return None;
            }
            if external {
                return Some(Endpoint { node, port: 0 });
            }
            let count = ports.entry(node).or_default();
            let port = *count;
            *count += 1;
            return Some(Endpoint { node, port });
        };
        let known: Vec<&str> = machine
            .interfaces
            .iter()
            .map(|known| known.name.as_str())
            .collect();
        let Some(interface) = interface else {
            let example = known.first().unwrap_or(&"eth0");
            self.findings.error(
                path,
                format!("`{node_name}` is a machine: the link must name one of its interfaces"),
                format!("write for example \"{node_name}:{example}\""),
            );
            return None;
        };
        if let Some(port) = known.iter().position(|known| *known == interface) {
            return Some(Endpoint { node, port });
        }
        let declared = match self.lab.nodes.get(node_name) {
            Some(file::Node::Host(machine) | file::Node::Router(machine)) => {
                machine.interfaces.is_some()
            }
            _ => false,
        };
        if declared {
            let interfaces = nodes.at(node_name).at("interfaces");
            if !self.findings.document.lost_member(&interfaces, interface) {
                let help = hint(interface, &known, |known| format!("{node_name}:{known}"));
                let message = format!("`{node_name}` has no interface `{interface}`");
                self.findings.error(path, message, help);
            }
            return None;
        }
        let created = self.create_interface(interface, path);
        let NodeKind::Machine(machine) = &mut self.out.topology.nodes[node].kind else {
            return None;
        };
        machine.interfaces.push(created);
        Some(Endpoint {
            node,
            port: machine.interfaces.len() - 1,
        })
    }

    fn interfaces_without_link(&mut self, linked: &HashMap<Endpoint, Path>) {
        for (node, entry) in self.out.topology.nodes.iter().enumerate() {
            let place = Path::of("nodes").at(entry.name.as_str());
            let machine = match &entry.kind {
                NodeKind::Machine(machine) => machine,
                NodeKind::External(_) if !linked.contains_key(&Endpoint { node, port: 0 }) => {
                    self.findings.warning(
                        &place,
                        format!("no link ends at `{}`", entry.name),
                        "nothing will come out of it; remove it, or add a link",
                    );
                    continue;
                }
                NodeKind::External(_) | NodeKind::Switch(_) | NodeKind::Hub => continue,
            };
            for (port, interface) in machine.interfaces.iter().enumerate() {
                if !linked.contains_key(&Endpoint { node, port }) {
                    let place = place.at("interfaces").at(interface.name.as_str());
                    self.findings.warning(
                        &place,
                        format!("no link ends at `{}:{}`", entry.name, interface.name),
                        "its carrier will be down; remove it, or add a link",
                    );
                }
            }
        }
    }

    fn directions(
        &mut self,
        base: &model::Direction,
        written: &file::Link,
        path: &Path,
    ) -> [model::Direction; 2] {
        let mut both = base.clone();
        self.patch(written.attributes(), path).apply(&mut both);
        let sides = [
            ("forward", &written.forward),
            ("backward", &written.backward),
        ];
        sides.map(|(name, side)| {
            let mut direction = both.clone();
            if let Some(side) = side {
                let patch = self.patch(side.attributes(), &path.at(name));
                patch.apply(&mut direction);
            }
            direction
        })
    }

    fn patch(&mut self, written: AttributesRef<'_>, path: &Path) -> Patch {
        attributes::patch(written, path, self.folder, &mut self.findings)
    }
}

/// What a person who wrote `written` may have meant.
pub(super) fn hint(written: &str, known: &[&str], as_written: impl Fn(&str) -> String) -> String {
    match nearest(written, known.iter().copied()) {
        Some(meant) => format!("did you mean \"{}\"?", as_written(meant)),
        None if known.is_empty() => String::new(),
        None if known.len() > 10 => format!("there are {} and others", known[..10].join(", ")),
        None => format!("there are: {}", known.join(", ")),
    }
}
