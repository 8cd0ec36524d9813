//! Faults: outages of links become changes of their schedules, to the nanosecond; what happens to machines stays with the lab.

use std::collections::BTreeMap;
use std::time::Duration;

use super::link::hint;
use super::{Findings, Resolver};
use crate::document::Path;
use crate::file;
use crate::link::{Change, Patch};
use crate::model::{NodeFault, NodeOrder};
use crate::quantity::Time;

/// So often can something happen again.
const TIMES: std::ops::RangeInclusive<u64> = 2..=10_000;
/// All outages of a lab together; a mistake in a file shall not take all memory.
const OUTAGES: usize = 100_000;

/// When something happens that is written with `at`, `every` and `count`.
pub fn times(
    at: Time,
    every: Option<Time>,
    count: Option<u64>,
    path: &Path,
    findings: &mut Findings<'_>,
) -> Vec<Duration> {
    let (every, count) = match (every, count) {
        (None, None) => return vec![at.0],
        (Some(every), Some(count)) => (every, count),
        (Some(_), None) => {
            let place = path.at("every");
            findings.error(
                &place,
                "`every` without `count`",
                "say how often it happens: \"count\": 10",
            );
            return vec![at.0];
        }
        (None, Some(_)) => {
            let place = path.at("count");
            findings.error(
                &place,
                "`count` without `every`",
                "say how far apart: \"every\": \"10s\"",
            );
            return vec![at.0];
        }
    };
    if every.0.is_zero() {
        let place = path.at("every");
        findings.error(
            &place,
            "`every` is 0",
            "say how far apart: \"every\": \"10s\"",
        );
        return vec![at.0];
    }
    let Some(count) = findings.ranged(&path.at("count"), count, &TIMES) else {
        return vec![at.0];
    };
    let time = |n: u64| at.0.saturating_add(every.0.saturating_mul(n as u32));
    (0..count).map(time).collect()
}

impl Resolver<'_> {
    /// Resolves `faults`, after nodes and links.
    pub(super) fn faults(&mut self) {
        let lab = self.lab;
        let mut outages: BTreeMap<usize, Vec<Outage>> = BTreeMap::new();
        let mut total = 0;
        for (index, fault) in lab.faults.iter().enumerate() {
            let path = Path::of("faults").at(index);
            let file::Fault {
                at, every, count, ..
            } = fault;
            let times = times(*at, *every, *count, &path, &mut self.findings);
            let kinds = [
                fault.flap.is_some(),
                fault.partition.is_some(),
                fault.nodes.is_some() || fault.order.is_some(),
            ];
            if kinds.iter().filter(|given| **given).count() != 1 {
                if !self.findings.document.lost_any(&path) {
                    self.findings.error(
                        &path,
                        "a fault is one of `flap`, `partition`, and `nodes` with `do`",
                        "write each in an object of its own",
                    );
                }
                continue;
            }
            let (links, windows) = if let Some(flap) = &fault.flap {
                self.flap(flap, &path.at("flap"))
            } else if let Some(partition) = &fault.partition {
                self.partition(partition, &path.at("partition"))
            } else {
                self.node_faults(fault, &times, &path);
                continue;
            };
            total += links.len() * windows.len() * times.len();
            if total > OUTAGES {
                self.findings.error(
                    &path,
                    format!("there are more than {OUTAGES} outages of links in this file"),
                    "a smaller `count`, or fewer links",
                );
                return;
            }
            for link in links {
                let those = outages.entry(link).or_default();
                for at in &times {
                    let outage = |(from, until): &(Duration, Duration)| Outage {
                        from: at.saturating_add(*from),
                        until: at.saturating_add(*until),
                    };
                    those.extend(windows.iter().map(outage));
                }
                self.schedules_carrier(link, &path);
            }
        }
        for (link, outages) in outages {
            self.schedule(link, outages);
        }
        self.out.topology.node_faults.sort_by_key(|fault| fault.at);
    }

    /// Links of a flap, and when they are down, from its beginning on.
    fn flap(&mut self, flap: &file::Flap, path: &Path) -> (Vec<usize>, Vec<(Duration, Duration)>) {
        let links = self.links_called(&flap.links, &path.at("links"));
        let range = 1..=*TIMES.end();
        let count = flap.count.unwrap_or(1);
        let count = self.findings.ranged(&path.at("count"), count, &range);
        if flap.down.0.is_zero() {
            let help = "say how long the links are down each time";
            self.findings.error(&path.at("down"), "`down` is 0", help);
        }
        let up = match flap.up {
            None if count > Some(1) => {
                let message = "`count` without `up`";
                let help = "say how long the links are up between two times: \"up\": \"3s\"";
                self.findings.error(&path.at("count"), message, help);
                Duration::ZERO
            }
            up => up.map_or(Duration::ZERO, |up| up.0),
        };
        let round = flap.down.0.saturating_add(up);
        let window = |n: u64| {
            let from = round.saturating_mul(n as u32);
            (from, from.saturating_add(flap.down.0))
        };
        (links, (0..count.unwrap_or(1)).map(window).collect())
    }

    /// Links that a partition cuts, and how long.
    fn partition(
        &mut self,
        partition: &file::Partition,
        path: &Path,
    ) -> (Vec<usize>, Vec<(Duration, Duration)>) {
        if partition.time.0.is_zero() {
            self.findings
                .error(&path.at("for"), "`for` is 0", "say how long it lasts");
        }
        let links = match (&partition.nodes, &partition.links) {
            (Some(nodes), None) => {
                let inside = self.nodes_called(nodes, &path.at("nodes"));
                let links = self.out.topology.links.iter().enumerate();
                let cut = links.filter(|(_, link)| {
                    let [first, second] = link.ends.map(|end| inside.contains(&end.node));
                    first != second
                });
                let cut: Vec<usize> = cut.map(|(number, _)| number).collect();
                if cut.is_empty() && inside.len() == nodes.len() {
                    let help = "no link leads from one of these nodes to another one";
                    self.findings
                        .warning(&path.at("nodes"), "this cuts nothing off", help);
                }
                cut
            }
            (None, Some(links)) => self.links_called(links, &path.at("links")),
            _ => {
                if !self.findings.document.lost_any(path) {
                    let message = "a partition has either `nodes` or `links`";
                    let help = "name what is cut off, or the links that are down";
                    self.findings.error(path, message, help);
                }
                Vec::new()
            }
        };
        (links, vec![(Duration::ZERO, partition.time.0)])
    }

    fn node_faults(&mut self, fault: &file::Fault, times: &[Duration], path: &Path) {
        let (Some(nodes), Some(order)) = (&fault.nodes, fault.order) else {
            if !self.findings.document.lost_any(path) {
                let message = "`nodes` and `do` belong together";
                let help = "as in {\"at\": \"10s\", \"nodes\": [\"r1\"], \"do\": \"stop\"}";
                self.findings.error(path, message, help);
            }
            return;
        };
        let place = path.at("nodes");
        for (index, node) in self.nodes_called(nodes, &place).into_iter().enumerate() {
            let known = &self.out.topology.nodes[node];
            if known.machine().is_none() {
                let message = format!("`{}` is a node inside the switch", known.name);
                let help = "it has no kernel; a `partition` cuts it off";
                self.findings.error(&place.at(index), message, help);
                continue;
            }
            let faults = times.iter().map(|at| NodeFault {
                at: *at,
                node,
                order: match order {
                    file::Order::Start => NodeOrder::Start,
                    file::Order::Stop => NodeOrder::Stop,
                    file::Order::Restart => NodeOrder::Restart,
                    file::Order::Pause => NodeOrder::Pause,
                    file::Order::Resume => NodeOrder::Resume,
                },
            });
            self.out.topology.node_faults.extend(faults);
        }
    }

    fn nodes_called(&mut self, names: &[String], path: &Path) -> Vec<usize> {
        let mut found = Vec::with_capacity(names.len());
        for (index, name) in names.iter().enumerate() {
            let nodes = &self.out.topology.nodes;
            if let Some(node) = nodes.iter().position(|node| node.name == *name) {
                found.push(node);
            } else if !self.findings.document.lost_member(&Path::of("nodes"), name) {
                let known: Vec<&str> = nodes.iter().map(|node| node.name.as_str()).collect();
                let help = hint(name, &known, str::to_owned);
                self.findings
                    .error(&path.at(index), format!("there is no node `{name}`"), help);
            }
        }
        self.at_least_one(names, path);
        found
    }

    fn links_called(&mut self, names: &[String], path: &Path) -> Vec<usize> {
        let mut found = Vec::with_capacity(names.len());
        for (index, name) in names.iter().enumerate() {
            let links = &self.out.topology.links;
            let called = |link: &crate::model::Link| {
                let ends = link.ends.iter().filter(|end| !self.is_bridge(end.node));
                link.name == *name || ends.into_iter().any(|end| self.end_name(*end) == *name)
            };
            if let Some(link) = links.iter().position(called) {
                if !found.contains(&link) {
                    found.push(link);
                }
            } else if links.len() == self.lab.links.len()
                && !self.findings.document.lost_any(&Path::of("links"))
            {
                let ends = links.iter().flat_map(|link| link.ends);
                let ends = ends.filter(|end| !self.is_bridge(end.node));
                let mut known: Vec<String> = links.iter().map(|link| link.name.clone()).collect();
                known.extend(ends.map(|end| self.end_name(end)));
                let known: Vec<&str> = known.iter().map(String::as_str).collect();
                let help = hint(name, &known, str::to_owned);
                self.findings
                    .error(&path.at(index), format!("there is no link `{name}`"), help);
            }
        }
        self.at_least_one(names, path);
        found
    }

    fn at_least_one(&mut self, names: &[String], path: &Path) {
        if names.is_empty() && !self.findings.document.lost_element(path) {
            self.findings
                .error(path, "nothing is named", "name at least one");
        }
    }

    /// Refuses a link whose own schedule says when it is down.
    fn schedules_carrier(&mut self, link: usize, path: &Path) {
        let known = &self.out.topology.links[link];
        let mut set = known.schedule.iter().flat_map(|change| &change.set);
        if set.any(|patch| patch.up.is_some()) {
            let message = format!(
                "the `schedule` of the link {} sets `up` as well",
                known.name
            );
            let help = "say in one place when it is down";
            self.findings.error(path, message, help);
        }
    }

    /// Puts outages of a link into its schedule. It is down as long as one of them lasts.
    fn schedule(&mut self, link: usize, mut outages: Vec<Outage>) {
        outages.sort();
        let mut merged: Vec<Outage> = Vec::with_capacity(outages.len());
        for outage in outages {
            match merged.last_mut() {
                Some(last) if outage.from <= last.until => {
                    last.until = last.until.max(outage.until);
                }
                _ => merged.push(outage),
            }
        }
        let link = &mut self.out.topology.links[link];
        // A direction that is down anyway stays so.
        let carrier = |up| {
            link.directions.each_ref().map(|direction| Patch {
                up: direction.up.then_some(up),
                ..Patch::default()
            })
        };
        let (down, up) = (carrier(false), carrier(true));
        if down.iter().all(Patch::is_empty) {
            return;
        }
        for Outage { from, until } in merged {
            let change = |at, set: &[Patch; 2]| Change {
                at,
                set: set.clone(),
            };
            link.schedule.push(change(from, &down));
            link.schedule.push(change(until, &up));
        }
        link.schedule.sort_by_key(|change| change.at);
    }
}

/// When a link is down, since the start.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Outage {
    from: Duration,
    until: Duration,
}
