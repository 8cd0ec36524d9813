//! Checks on the whole: what is wrong, or looks wrong, between nodes.

use std::collections::HashMap;
use std::net::IpAddr;

use crate::document::Path;
use crate::model::{Endpoint, Interface, Machine, NodeKind, Topology};
use crate::net::Cidr;
use crate::resolve::{Findings, PlacedAddress, Resolved};
use crate::segment::{Segment, segments};

/// Runs every check.
pub fn check(resolved: &Resolved, findings: &mut Findings<'_>) {
    let segments = segments(&resolved.topology);
    let checker = Checker {
        resolved,
        segments: &segments,
    };
    for segment in &segments {
        checker.loops(segment, findings);
        checker.duplicate_addresses(segment, findings);
        checker.networks(segment, findings);
        checker.mtu(segment, findings);
    }
    checker.own_duplicates(findings);
    checker.routes(findings);
}

struct Checker<'a> {
    resolved: &'a Resolved,
    segments: &'a [Segment],
}

impl Checker<'_> {
    fn topology(&self) -> &Topology {
        &self.resolved.topology
    }

    fn machine(&self, node: usize) -> Option<&Machine> {
        match &self.topology().nodes[node].kind {
            NodeKind::Machine(machine) => Some(machine),
            NodeKind::Switch(_) | NodeKind::Hub | NodeKind::External(_) => None,
        }
    }

    fn interface(&self, end: Endpoint) -> Option<&Interface> {
        self.machine(end.node)?.interfaces.get(end.port)
    }

    fn name(&self, end: Endpoint) -> String {
        let interface = self.interface(end).map_or("", |interface| &interface.name);
        format!("{}:{interface}", self.topology().nodes[end.node].name)
    }

    fn link_path(&self, link: usize) -> Path {
        Path::of("links").at(self.resolved.link_places[link])
    }

    fn loops(&self, segment: &Segment, findings: &mut Findings<'_>) {
        if !segment.has_loop() {
            return;
        }
        let names: Vec<&str> = segment
            .bridges
            .iter()
            .map(|node| self.topology().nodes[*node].name.as_str())
            .collect();
        if let Some(last) = segment.links.iter().max() {
            findings.warning(
                &self.link_path(*last).at("endpoints"),
                format!("the links between {} form a loop", names.join(", ")),
                "a broadcast will circle in it for ever: switches here have no spanning tree",
            );
        }
    }

    fn addresses<'b>(&'b self, end: &'b Endpoint) -> impl Iterator<Item = &'b PlacedAddress> {
        self.resolved
            .addresses
            .iter()
            .filter(move |placed| placed.node == end.node && placed.interface == end.port)
    }

    fn duplicate_addresses(&self, segment: &Segment, findings: &mut Findings<'_>) {
        let mut placed: Vec<&PlacedAddress> = segment
            .interfaces
            .iter()
            .flat_map(|end| self.addresses(end))
            .collect();
        // In the order of the file, so that the later one is the one reported.
        placed.sort_by_key(|placed| (placed.node, placed.interface));
        let mut owners: HashMap<IpAddr, &PlacedAddress> = HashMap::new();
        for place in placed {
            let address = place.address.address;
            match owners.get(&address) {
                // Within one node that is reported wherever it occurs.
                Some(first) if first.node != place.node => {
                    let owner = self.name(Endpoint {
                        node: first.node,
                        port: first.interface,
                    });
                    findings.error(
                        &place.path,
                        format!("`{address}` is the address of {owner} already, on the same link or switch"),
                        "give each interface an address of its own",
                    );
                }
                Some(_) => {}
                None => {
                    owners.insert(address, place);
                }
            }
        }
    }

    fn own_duplicates(&self, findings: &mut Findings<'_>) {
        let mut owners: HashMap<(usize, IpAddr), usize> = HashMap::new();
        for place in &self.resolved.addresses {
            let address = place.address.address;
            if let Some(interface) = owners.insert((place.node, address), place.interface) {
                let owner = self.name(Endpoint {
                    node: place.node,
                    port: interface,
                });
                findings.error(
                    &place.path,
                    format!("`{address}` is the address of {owner} already"),
                    "remove one of them",
                );
            }
        }
    }

    /// An interface whose networks no other interface of the segment shares can talk to nobody.
    fn networks(&self, segment: &Segment, findings: &mut Findings<'_>) {
        for ipv4 in [true, false] {
            let with: Vec<(Endpoint, Vec<&PlacedAddress>)> = segment
                .interfaces
                .iter()
                .map(|end| {
                    let addresses = self
                        .addresses(end)
                        .filter(|placed| placed.address.address.is_ipv4() == ipv4)
                        .filter(|placed| !is_link_local(placed.address));
                    (*end, addresses.collect::<Vec<_>>())
                })
                .filter(|(_, addresses)| !addresses.is_empty())
                .collect();
            let alone: Vec<&(Endpoint, Vec<&PlacedAddress>)> = with
                .iter()
                .filter(|(end, addresses)| {
                    !with.iter().any(|(other, others)| {
                        other != end
                            && addresses.iter().any(|a| {
                                others
                                    .iter()
                                    .any(|b| a.address.network() == b.address.network())
                            })
                    })
                })
                .collect();
            if with.len() < 2 {
                continue;
            }
            // Of two ends, one report says it all.
            let reported = if with.len() == 2 {
                alone.get(1..)
            } else {
                alone.get(..)
            };
            for (end, addresses) in reported.unwrap_or_default() {
                let others: Vec<String> = with
                    .iter()
                    .filter(|(other, _)| other != end)
                    .map(|(other, others)| {
                        format!("{} of {}", others[0].address, self.name(*other))
                    })
                    .take(3)
                    .collect();
                findings.warning(
                    &addresses[0].path,
                    format!(
                        "`{}` of {} shares no network with the other end: {}",
                        addresses[0].address,
                        self.name(*end),
                        others.join(", ")
                    ),
                    "interfaces that should reach each other need the same network and prefix length",
                );
            }
        }
    }

    fn mtu(&self, segment: &Segment, findings: &mut Findings<'_>) {
        let mut ends = segment.interfaces.iter();
        let Some((first, first_mtu)) = ends
            .next()
            .and_then(|end| Some((*end, self.interface(*end)?.mtu)))
        else {
            return;
        };
        for end in ends {
            let Some(interface) = self.interface(*end) else {
                continue;
            };
            if interface.mtu != first_mtu {
                let node = &self.topology().nodes[end.node].name;
                let path = Path::of("nodes")
                    .at(node.as_str())
                    .at("interfaces")
                    .at(interface.name.as_str())
                    .at("mtu");
                findings.warning(
                    &path,
                    format!(
                        "{} has an MTU of {}, {} on the same link or switch one of {first_mtu}",
                        self.name(*end),
                        interface.mtu,
                        self.name(first),
                    ),
                    "larger packets will be lost on the way to the smaller one",
                );
            }
        }
    }

    fn routes(&self, findings: &mut Findings<'_>) {
        for (node, entry) in self.topology().nodes.iter().enumerate() {
            let Some(machine) = self.machine(node) else {
                continue;
            };
            for (index, route) in machine.routes.iter().enumerate() {
                let path = &self.resolved.routes[&(node, index)];
                let mut through: Vec<usize> = (0..machine.interfaces.len()).collect();
                if let Some(dev) = &route.dev {
                    let names = machine
                        .interfaces
                        .iter()
                        .map(|interface| interface.name.as_str());
                    through.retain(|port| machine.interfaces[*port].name == *dev);
                    if through.is_empty() {
                        let nodes = Path::of("nodes").at(entry.name.as_str()).at("interfaces");
                        if !findings.document.lost_member(&nodes, dev) {
                            let known: Vec<&str> = names.collect();
                            findings.error(
                                &path.at("dev"),
                                format!("`{}` has no interface `{dev}`", entry.name),
                                format!("there are: {}", known.join(", ")),
                            );
                        }
                        continue;
                    }
                }
                if let Some(via) = route.via {
                    self.next_hop(node, machine, &through, via, &path.at("via"), findings);
                }
            }
        }
    }

    fn next_hop(
        &self,
        node: usize,
        machine: &Machine,
        through: &[usize],
        via: IpAddr,
        path: &Path,
        findings: &mut Findings<'_>,
    ) {
        // Which interface has a link-local address is known only when the nodes run.
        if matches!(via, IpAddr::V6(v6) if v6.is_unicast_link_local()) {
            return;
        }
        let name = &self.topology().nodes[node].name;
        let on_link = |port: &&usize| {
            let addresses = &machine.interfaces[**port].addresses;
            addresses.iter().any(|address| address.contains(via))
        };
        let Some(port) = through.iter().find(on_link) else {
            findings.warning(
                path,
                format!("`{via}` is in no network that `{name}` is in"),
                "the next hop must be directly reachable, or the kernel refuses the route",
            );
            return;
        };
        let end = Endpoint { node, port: *port };
        let Some(segment) = self
            .segments
            .iter()
            .find(|segment| segment.interfaces.contains(&end))
        else {
            return;
        };
        let owner = segment
            .interfaces
            .iter()
            .filter(|other| **other != end)
            .flat_map(|other| self.addresses(other))
            .any(|placed| placed.address.address == via);
        if !owner {
            findings.warning(
                path,
                format!(
                    "nobody on the link of {} has the address `{via}`",
                    self.name(end)
                ),
                "name an address of a neighbouring node",
            );
        }
    }
}

fn is_link_local(address: Cidr) -> bool {
    matches!(address.address, IpAddr::V6(v6) if v6.is_unicast_link_local())
}
