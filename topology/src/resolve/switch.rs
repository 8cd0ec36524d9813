//! Learning switches and their ports.

use std::ops::RangeInclusive;

use super::Resolver;
use super::link::hint;
use crate::document::Path;
use crate::file::{self, Reserved, Trunk, Vlans};
use crate::model::{NodeKind, PortVlan, SwitchNode, SwitchPort};
use crate::quantity::{Rate, StormLimit, Time};

const SECOND: u64 = 1_000_000_000;
const VLANS: RangeInclusive<u64> = 1..=4094;
/// Of ports that say nothing, in a switch whose other ports have VLANs; as most switches have it.
const DEFAULT_VLAN: u16 = 1;

impl Resolver<'_> {
    pub(super) fn switch(&mut self, switch: &file::Switch, path: &Path) -> NodeKind {
        let ageing = switch.ageing.unwrap_or(Time::from_nanos(300 * SECOND));
        let ageing = self.findings.ranged(
            &path.at("ageing"),
            ageing,
            &(Time::from_nanos(SECOND)..=Time::from_nanos(1_000_000 * SECOND)),
        );
        let table_limit = self.findings.ranged(
            &path.at("table-limit"),
            switch.table_limit.unwrap_or(4096),
            &(1..=1 << 20),
        );
        NodeKind::Switch(SwitchNode {
            ageing: ageing.map(|time| time.0).unwrap_or_default(),
            table_limit: table_limit.unwrap_or_default() as u32,
            forward_reserved: switch.reserved == Some(Reserved::Forward),
            ports: Vec::new(),
        })
    }

    /// Gives the ports of switches, which the links have numbered, their attributes.
    pub(super) fn finish_switches(&mut self) {
        let lab = self.lab;
        for node in 0..self.out.topology.nodes.len() {
            let name = self.out.topology.nodes[node].name.clone();
            let Some(file::Node::Switch(written)) = lab.nodes.get(&name) else {
                continue;
            };
            let path = Path::of("nodes").at(name.as_str());
            let ports = self.switch_ports(node, written, &path);
            if let NodeKind::Switch(switch) = &mut self.out.topology.nodes[node].kind {
                switch.ports = ports;
            }
        }
    }

    fn switch_ports(
        &mut self,
        node: usize,
        written: &file::Switch,
        path: &Path,
    ) -> Vec<SwitchPort> {
        // For each port what it can be called by: the link, and the other end of it.
        let mut names: Vec<[String; 2]> = Vec::new();
        for (link, place) in self.out.topology.links.iter().zip(&self.out.link_places) {
            for (end, other) in [(0, 1), (1, 0)] {
                if link.ends[end].node == node {
                    let other = self.lab.links[*place].endpoints[other].clone();
                    // Links come in the order in which they numbered the ports; one with an error leaves a gap.
                    names.resize_with(link.ends[end].port, Default::default);
                    names.push([link.name.clone(), other]);
                }
            }
        }
        let storm = self.storm(written.storm, path);
        let mut ports = vec![SwitchPort { vlan: None, storm }; names.len()];
        let mut owners: Vec<Option<&str>> = vec![None; names.len()];
        for (key, port) in &written.ports {
            let path = path.at("ports").at(key.as_str());
            let vlan = self.port_vlan(port, &path);
            let storm = self.storm(port.storm, &path).or(storm);
            let called = |names: &[String; 2]| names.contains(key);
            let found: Vec<usize> = (0..names.len()).filter(|i| called(&names[*i])).collect();
            match found[..] {
                [index] => {
                    if let Some(other) = owners[index].replace(key) {
                        self.findings.key_error(
                            &path,
                            format!("`{key}` and `{other}` are the same port"),
                            "write one of them",
                        );
                    }
                    ports[index] = SwitchPort { vlan, storm };
                }
                [] => {
                    let known: Vec<&str> = names.iter().map(|[_, other]| other.as_str()).collect();
                    let help = hint(key, &known, str::to_owned);
                    self.findings.key_error(
                        &path,
                        format!("no link leads from this switch to `{key}`, and none is called so"),
                        help,
                    );
                }
                _ => {
                    let links: Vec<&str> = found.iter().map(|i| names[*i][0].as_str()).collect();
                    self.findings.key_error(
                        &path,
                        format!("`{key}` can be {} ports", found.len()),
                        format!("name the link instead: {}", links.join(", ")),
                    );
                }
            }
        }
        if written
            .ports
            .values()
            .any(|p| p.access.is_some() || p.trunk.is_some())
        {
            for port in &mut ports {
                port.vlan.get_or_insert(PortVlan::Access(DEFAULT_VLAN));
            }
        }
        ports
    }

    fn storm(&mut self, limit: Option<StormLimit>, path: &Path) -> Option<StormLimit> {
        let range = match limit? {
            StormLimit::Packets(_) => StormLimit::Packets(1)..=StormLimit::Packets(100_000_000),
            StormLimit::Rate(_) => {
                StormLimit::Rate(Rate(1_000))..=StormLimit::Rate(Rate(1_000_000_000_000))
            }
        };
        self.findings.ranged(&path.at("storm"), limit?, &range)
    }

    fn port_vlan(&mut self, port: &file::SwitchPort, path: &Path) -> Option<PortVlan> {
        let native = port
            .native
            .and_then(|vlan| self.vlan(vlan, &path.at("native")));
        match (port.access, &port.trunk) {
            (Some(_), Some(_)) => {
                self.findings.error(
                    &path.at("trunk"),
                    "a port is either an `access` port or a `trunk`",
                    "remove one of them; the VLAN without tags of a trunk is its `native`",
                );
                None
            }
            (access, None) => {
                if port.native.is_some() {
                    self.findings.error(
                        &path.at("native"),
                        "`native` is for a `trunk`",
                        "of an access port `access` is the VLAN without tags",
                    );
                }
                let vlan = self.vlan(access?, &path.at("access"))?;
                Some(PortVlan::Access(vlan))
            }
            (None, Some(Trunk::All(_))) => Some(PortVlan::Trunk {
                allowed: std::iter::once(1..=4094).collect(),
                native,
            }),
            (None, Some(Trunk::Listed(list))) => {
                let path = path.at("trunk");
                let mut allowed = Vec::with_capacity(list.len());
                for (index, vlans) in list.iter().enumerate() {
                    allowed.extend(self.vlans(vlans, &path.at(index)));
                }
                if list.is_empty() && !self.findings.document.lost_any(&path) {
                    self.findings.error(
                        &path,
                        "the trunk carries no VLAN",
                        "write \"all\", or an array such as [10, 20, \"100-199\"]",
                    );
                }
                Some(PortVlan::Trunk { allowed, native })
            }
        }
    }

    fn vlan(&mut self, vlan: u64, path: &Path) -> Option<u16> {
        if VLANS.contains(&vlan) {
            return Some(vlan as u16);
        }
        self.findings.error(
            path,
            format!("{vlan} is not a VLAN"),
            "a VLAN is a number from 1 to 4094",
        );
        None
    }

    fn vlans(&mut self, vlans: &Vlans, path: &Path) -> Option<RangeInclusive<u16>> {
        let text = match vlans {
            Vlans::One(vlan) => return self.vlan(*vlan, path).map(|vlan| vlan..=vlan),
            Vlans::Range(text) => text,
        };
        let ends = text.split_once('-').and_then(|(first, last)| {
            Some((first.parse::<u64>().ok()?, last.parse::<u64>().ok()?))
        });
        match ends {
            Some((first, last))
                if VLANS.contains(&first) && VLANS.contains(&last) && first <= last =>
            {
                Some(first as u16..=last as u16)
            }
            _ => {
                let help = "write two numbers from 1 to 4094, the smaller one first, as in \"100-199\"; a single VLAN as a number";
                self.findings
                    .error(path, format!("`{text}` is not a range of VLANs"), help);
                None
            }
        }
    }
}
