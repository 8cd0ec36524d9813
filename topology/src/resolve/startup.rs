//! When machines boot and when they count as ready.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::Resolver;
use crate::document::Path;
use crate::file::{self, Scalar, Toggle};
use crate::model::{Machine, NodeKind, Ready};
use crate::quantity::Time;

impl Resolver<'_> {
    pub(super) fn ready(
        &mut self,
        written: &file::Machine,
        machine: &Machine,
        path: &Path,
    ) -> Option<Ready> {
        let condition = written.ready.as_ref()?;
        let path = path.at("ready");
        let second = Duration::from_secs(1);
        let timeout = self.findings.ranged(
            &path.at("timeout"),
            condition.timeout.unwrap_or(Time(120 * second)),
            &(Time(second)..=Time(86_400 * second)),
        );
        let exec = match (&condition.exec, &condition.tcp, condition.ospf_neighbors) {
            (Some(exec), None, None) => {
                self.command(exec, &path.at("exec"));
                Some(exec.clone())
            }
            (None, Some(tcp), None) => self.tcp(tcp, &path.at("tcp")),
            (None, None, Some(count)) => {
                self.ospf_neighbors(count, written, machine, &path.at("ospf-neighbors"))
            }
            (None, None, None) if self.findings.document.lost_any(&path) => None,
            _ => {
                self.findings.key_error(
                    &path,
                    "`ready` needs exactly one of `exec`, `tcp` and `ospf-neighbors`",
                    "several conditions go into one `exec`, with `&&` between them",
                );
                None
            }
        };
        Some(Ready {
            exec: exec?,
            timeout: timeout?.0,
        })
    }

    /// Bash connects, as it needs no other program for that.
    fn tcp(&mut self, written: &Scalar, path: &Path) -> Option<String> {
        let place = match written {
            Scalar::Number(port) => u16::try_from(*port)
                .ok()
                .filter(|port| *port > 0)
                .map(|port| SocketAddr::new(IpAddr::from([127, 0, 0, 1]), port)),
            Scalar::Text(text) => text
                .parse()
                .ok()
                .filter(|place: &SocketAddr| place.port() > 0),
        };
        let Some(place) = place else {
            let written = match written {
                Scalar::Number(number) => number.to_string(),
                Scalar::Text(text) => text.clone(),
            };
            self.findings.error(
                path,
                format!("`{written}` is no place to connect to"),
                "write a port of the node, 1 to 65535, or an address and a port as in \"10.0.0.2:80\" or \"[2001:db8::2]:80\"",
            );
            return None;
        };
        let (address, port) = (place.ip(), place.port());
        Some(format!(
            "timeout 5 bash -c ': <>/dev/tcp/{address}/{port}' 2>/dev/null || {{ echo 'nothing accepts connections at {place}'; exit 1; }}"
        ))
    }

    fn ospf_neighbors(
        &mut self,
        count: u64,
        written: &file::Machine,
        machine: &Machine,
        path: &Path,
    ) -> Option<String> {
        let count = self.findings.ranged(path, count, &(1..=10_000))?;
        let speaks = written.routing.as_ref().is_some_and(|routing| {
            routing.frr.is_some() || !matches!(routing.ospf, Toggle::Plain(false))
        });
        if !speaks && !self.findings.document.lost_any(path) {
            self.findings.key_error(
                path,
                "the node does not run OSPF",
                "add \"routing\": {\"ospf\": true}",
            );
        }
        let mut addresses = machine.interfaces.iter().flat_map(|i| &i.addresses);
        let show = if addresses.clone().next().is_none() || addresses.any(|a| a.address.is_ipv4()) {
            "show ip ospf neighbor"
        } else {
            "show ipv6 ospf6 neighbor"
        };
        Some(format!(
            "n=$(vtysh -c '{show}' | grep -c ' Full/'); [ \"$n\" -ge {count} ] || {{ echo \"$n of {count} OSPF neighbors are in state Full\"; exit 1; }}"
        ))
    }

    /// When all nodes are known: which of them each waits for.
    pub(super) fn start_order(&mut self) {
        let lab = self.lab;
        let mut waits: Vec<Vec<usize>> = vec![Vec::new(); lab.nodes.len()];
        for (index, (name, node)) in lab.nodes.iter().enumerate() {
            let (file::Node::Host(machine) | file::Node::Router(machine)) = node else {
                continue;
            };
            let path = Path::of("nodes").at(name.as_str()).at("after");
            for (place, other) in machine.after.iter().enumerate() {
                let path = path.at(place);
                let Some(other) = self.checked_machine(other, &path) else {
                    continue;
                };
                if waits[index].contains(&other) {
                    let twice = format!("`{}` is named twice", self.out.topology.nodes[other].name);
                    self.findings.error(&path, twice, "once is enough");
                } else if let Some(way) = self.way(&waits, other, index) {
                    self.findings.error(
                        &path,
                        format!("`{name}` would wait for itself: {name} → {way}"),
                        "leave one of these out",
                    );
                } else {
                    waits[index].push(other);
                }
            }
        }
        for (node, waits) in self.out.topology.nodes.iter_mut().zip(waits) {
            if let NodeKind::Machine(machine) = &mut node.kind {
                machine.after = waits;
            }
        }
    }

    /// How one node waits for another, directly or by others, as names with arrows between them.
    fn way(&self, waits: &[Vec<usize>], from: usize, to: usize) -> Option<String> {
        let mut before: Vec<Option<usize>> = vec![None; waits.len()];
        let mut open = vec![from];
        while let Some(node) = open.pop() {
            if node == to {
                let mut way = vec![node];
                while let Some(last) = way.last().copied().filter(|last| *last != from) {
                    way.push(before[last]?);
                }
                let names = way
                    .iter()
                    .rev()
                    .map(|node| self.out.topology.nodes[*node].name.as_str());
                return Some(names.collect::<Vec<_>>().join(" → "));
            }
            for next in &waits[node] {
                if *next != from && before[*next].is_none() {
                    before[*next] = Some(node);
                    open.push(*next);
                }
            }
        }
        None
    }
}
