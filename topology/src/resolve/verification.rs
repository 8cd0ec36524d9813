//! Checks of the running lab: names become nodes and addresses.

use std::collections::HashSet;
use std::net::IpAddr;
use std::time::Duration;

use super::Resolver;
use super::link::hint;
use crate::document::Path;
use crate::file;
use crate::model::{
    Check, CheckKind, Hop, Machine, NodeKind, Ping, Reachability, Reachable, Target, Throughput,
    Way,
};
use crate::quantity::{Rate, Time};

const HOUR: Duration = Duration::from_hours(1);

impl Resolver<'_> {
    /// After the nodes and links: a check may name any of them.
    pub(super) fn checks(&mut self) {
        let lab = self.lab;
        let mut names = HashSet::new();
        for (index, written) in lab.checks.iter().enumerate() {
            let path = Path::of("checks").at(index);
            let (name, within) = match written {
                file::Check::Ping(check) => (&check.name, check.within),
                file::Check::Path(check) => (&check.name, check.within),
                file::Check::Throughput(check) => (&check.name, check.within),
                file::Check::Reachability(check) => (&check.name, check.within),
            };
            let within = self.findings.ranged(
                &path.at("within"),
                within.unwrap_or(Time(Duration::ZERO)),
                &(Time(Duration::ZERO)..=Time(HOUR)),
            );
            let kind = match written {
                file::Check::Ping(check) => self.ping(check, &path),
                file::Check::Path(check) => self.way_check(check, &path),
                file::Check::Throughput(check) => self.throughput(check, &path),
                file::Check::Reachability(check) => self.reachability(check, &path),
            };
            let (Some(kind), Some(Time(within))) = (kind, within) else {
                continue;
            };
            let name = match name {
                Some(name) => {
                    self.check_name(name, &path.at("name"), &names);
                    name.clone()
                }
                None => distinct(default_name(&kind), &names),
            };
            names.insert(name.clone());
            self.out.topology.checks.push(Check { name, within, kind });
        }
    }

    fn check_name(&mut self, name: &str, path: &Path, names: &HashSet<String>) {
        if name.trim().is_empty() || name.chars().count() > 100 || name.contains(char::is_control) {
            self.findings.error(
                path,
                format!("`{}` cannot be the name of a check", name.escape_debug()),
                "1 to 100 characters on one line",
            );
        } else if names.contains(name) {
            self.findings.error(
                path,
                format!("another check is called `{name}` as well"),
                "give each check a name of its own, or none",
            );
        }
    }

    fn ping(&mut self, written: &file::Ping, path: &Path) -> Option<CheckKind> {
        let count =
            self.findings
                .ranged(&path.at("count"), written.count.unwrap_or(3), &(1..=1000));
        let rtt = |resolver: &mut Self, rtt: Option<Time>, field| {
            let range = Time(Duration::ZERO)..=Time(HOUR);
            rtt.and_then(|time| resolver.findings.ranged(&path.at(field), time, &range))
                .map(|time| time.0)
        };
        let min_rtt = rtt(self, written.min_rtt, "min-rtt");
        let max_rtt = rtt(self, written.max_rtt, "max-rtt");
        if let (Some(min), Some(max)) = (min_rtt, max_rtt)
            && min > max
        {
            self.findings.error(
                &path.at("max-rtt"),
                "`max-rtt` is less than `min-rtt`",
                "no round trip is between them",
            );
        }
        let reachable = written.expect != Some(file::Expect::Unreachable);
        if !reachable {
            for (field, set) in [
                ("loss", written.loss.is_some()),
                ("min-rtt", written.min_rtt.is_some()),
                ("max-rtt", written.max_rtt.is_some()),
            ] {
                if set {
                    self.findings.key_error(
                        &path.at(field),
                        format!("`{field}` says nothing where no answer is expected"),
                        "leave it out, or expect `reachable`",
                    );
                }
            }
        }
        let from = self.source(&written.from, &path.at("from"));
        let to = self.target(&written.to, &path.at("to"));
        let loss = written.loss.map_or(0.0, |loss| loss.0);
        Some(CheckKind::Ping(Ping {
            from: from?,
            to: to?,
            count: count? as u32,
            loss,
            min_rtt,
            max_rtt,
            reachable,
        }))
    }

    fn way_check(&mut self, written: &file::Way, path: &Path) -> Option<CheckKind> {
        let from = self.source(&written.from, &path.at("from"));
        let to = self.target(&written.to, &path.at("to"));
        let mut via = Vec::new();
        for (index, name) in written.via.iter().enumerate() {
            let path = path.at("via").at(index);
            let addresses = match name.parse() {
                Ok(address) => vec![address],
                Err(_) => match self.checked_machine(name, &path) {
                    Some(node) => addresses(self.machine_at(node)?).collect(),
                    None => continue,
                },
            };
            let name = name.clone();
            via.push(Hop { name, addresses });
        }
        Some(CheckKind::Path(Way {
            from: from?,
            to: to?,
            via,
        }))
    }

    fn throughput(&mut self, written: &file::Throughput, path: &Path) -> Option<CheckKind> {
        let second = Duration::from_secs(1);
        let time = self.findings.ranged(
            &path.at("time"),
            written.time.unwrap_or(Time(5 * second)),
            &(Time(second)..=Time(HOUR)),
        );
        if let Some(Time(time)) = time
            && time.subsec_nanos() != 0
        {
            self.findings.error(
                &path.at("time"),
                "`time` is not a whole number of seconds",
                "write for example \"5s\"",
            );
        }
        match (written.min, written.max) {
            (None, None) if !self.findings.document.lost_any(path) => self.findings.error(
                path,
                "a throughput needs `min`, `max` or both",
                "write for example \"min\": \"90Mbit\"",
            ),
            (Some(min), Some(max)) if min > max => self.findings.error(
                &path.at("max"),
                "`max` is less than `min`",
                "no throughput is between them",
            ),
            _ => {}
        }
        let from = self.source(&written.from, &path.at("from"));
        let to = path.at("to");
        if written.to.parse::<IpAddr>().is_ok() {
            self.findings.error(
                &to,
                format!("`{}` is an address", written.to),
                "name the node that receives, or one of its interfaces: iperf3 is started there",
            );
            return None;
        }
        let to = self.target(&written.to, &to);
        Some(CheckKind::Throughput(Throughput {
            from: from?,
            to: to?,
            min: written.min.map(|Rate(rate)| rate),
            max: written.max.map(|Rate(rate)| rate),
            time: time?.0,
        }))
    }

    fn reachability(&mut self, written: &file::Reachability, path: &Path) -> Option<CheckKind> {
        let nodes: Vec<usize> = if let Some(names) = &written.nodes {
            let mut nodes = Vec::new();
            for (index, name) in names.iter().enumerate() {
                let path = path.at("nodes").at(index);
                let Some(node) = self.checked_machine(name, &path) else {
                    continue;
                };
                if addresses(self.machine_at(node)?).next().is_none() {
                    self.no_address(name, &path);
                } else if nodes.contains(&node) {
                    let twice = format!("`{name}` is named twice");
                    self.findings.error(&path, twice, "once is enough");
                } else {
                    nodes.push(node);
                }
            }
            nodes
        } else {
            let all = 0..self.out.topology.nodes.len();
            all.filter(|node| {
                self.machine_at(*node)
                    .is_some_and(|machine| addresses(machine).next().is_some())
            })
            .collect()
        };
        if nodes.len() < 2 && !self.findings.document.lost_any(path) {
            let place = if written.nodes.is_some() {
                path.at("nodes")
            } else {
                path.clone()
            };
            self.findings.key_error(
                &place,
                "there are no two nodes that could reach each other",
                "a reachability needs two hosts or routers with addresses",
            );
        }
        let mut except = Vec::new();
        for (index, pair) in written.except.iter().enumerate() {
            let mut ends = [0; 2];
            let mut known = true;
            for (end, name) in pair.iter().enumerate() {
                let path = path.at("except").at(index).at(end);
                let node = self.checked_machine(name, &path);
                if let Some(place) =
                    node.and_then(|node| nodes.iter().position(|other| *other == node))
                {
                    ends[end] = place;
                } else {
                    known = false;
                    if node.is_some() {
                        self.findings.error(
                            &path,
                            format!("`{name}` is not among the nodes of this check"),
                            "add it to `nodes`, or leave the pair out",
                        );
                    }
                }
            }
            if known {
                except.push(ends);
            }
        }
        let nodes = nodes.into_iter().filter_map(|node| {
            let machine = self.machine_at(node)?;
            let first = |ipv4: bool| addresses(machine).find(|address| address.is_ipv4() == ipv4);
            Some(Reachable {
                node: self.out.topology.nodes[node].name.clone(),
                addresses: [first(true), first(false)].into_iter().flatten().collect(),
            })
        });
        Some(CheckKind::Reachability(Reachability {
            nodes: nodes.collect(),
            except,
        }))
    }

    fn machine_at(&self, node: usize) -> Option<&Machine> {
        match &self.out.topology.nodes.get(node)?.kind {
            NodeKind::Machine(machine) => Some(machine),
            NodeKind::Switch(_) | NodeKind::Hub | NodeKind::External(_) => None,
        }
    }

    /// The machine called `name`; an error if there is none.
    pub(super) fn checked_machine(&mut self, name: &str, path: &Path) -> Option<usize> {
        let nodes = &self.out.topology.nodes;
        match nodes.iter().position(|node| node.name == name) {
            Some(node) if self.machine_at(node).is_some() => return Some(node),
            Some(_) => self.findings.error(
                path,
                format!("`{name}` has no kernel of its own"),
                "name a host or a router",
            ),
            None if self.findings.document.lost_member(&Path::of("nodes"), name) => {}
            None => {
                let known: Vec<&str> = nodes.iter().map(|node| node.name.as_str()).collect();
                let help = hint(name, &known, str::to_owned);
                self.findings
                    .error(path, format!("there is no node `{name}`"), help);
            }
        }
        None
    }

    fn source(&mut self, name: &str, path: &Path) -> Option<String> {
        self.checked_machine(name, path).map(|_| name.to_owned())
    }

    fn target(&mut self, text: &str, path: &Path) -> Option<Target> {
        let found = |address| {
            Some(Target {
                name: text.to_owned(),
                address,
            })
        };
        if let Ok(address) = text.parse() {
            return found(address);
        }
        let (name, interface) = match text.split_once(':') {
            Some((name, interface)) => (name, Some(interface)),
            None => (text, None),
        };
        let node = self.checked_machine(name, path)?;
        let machine = self.machine_at(node)?;
        let address = match interface {
            None => addresses(machine)
                .find(IpAddr::is_ipv4)
                .or_else(|| addresses(machine).next()),
            Some(interface) => {
                let known = machine.interfaces.iter();
                let Some(interface) = known.clone().find(|known| known.name == interface) else {
                    let known: Vec<String> = known
                        .map(|known| format!("{name}:{}", known.name))
                        .collect();
                    let known: Vec<&str> = known.iter().map(String::as_str).collect();
                    let help = hint(text, &known, str::to_owned);
                    let missing = format!("`{name}` has no interface `{interface}`");
                    self.findings.error(path, missing, help);
                    return None;
                };
                interface.addresses.first().map(|cidr| cidr.address)
            }
        };
        if let Some(address) = address {
            found(address)
        } else {
            self.no_address(text, path);
            None
        }
    }

    fn no_address(&mut self, name: &str, path: &Path) {
        // What was wrong with an address was reported; it may be the only one.
        self.findings.error(
            path,
            format!("`{name}` has no address"),
            "give one of its interfaces `addresses`",
        );
    }
}

fn addresses(machine: &Machine) -> impl Iterator<Item = IpAddr> {
    machine
        .interfaces
        .iter()
        .flat_map(|interface| &interface.addresses)
        .map(|cidr| cidr.address)
}

fn default_name(kind: &CheckKind) -> String {
    match kind {
        CheckKind::Ping(ping) if ping.reachable => format!("ping {} {}", ping.from, ping.to.name),
        CheckKind::Ping(ping) => format!("no ping {} {}", ping.from, ping.to.name),
        CheckKind::Path(route) => format!("path {} {}", route.from, route.to.name),
        CheckKind::Throughput(check) => format!("throughput {} {}", check.from, check.to.name),
        CheckKind::Reachability(_) => "reachability".to_owned(),
    }
}

/// `name`, with a number if it is taken.
fn distinct(name: String, taken: &HashSet<String>) -> String {
    if !taken.contains(&name) {
        return name;
    }
    let numbered = (2..).map(|number| format!("{name} ({number})"));
    let mut free = numbered.filter(|name| !taken.contains(name));
    free.next().unwrap_or(name)
}
