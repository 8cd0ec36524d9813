//! OSPF: version 2 for IPv4 and version 3 for IPv6.

use std::net::Ipv4Addr;
use std::time::Duration;

use super::{Config, Lab, has_ipv4, has_ipv6};
use crate::document::Path;
use crate::file;
use crate::model::{Endpoint, Interface, Machine, Role};
use crate::quantity::Time;
use crate::resolve::Findings;
use crate::segment::Segment;

/// OSPF on one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    area: String,
    /// Seconds.
    hello: u64,
    /// Seconds.
    dead: u64,
}

impl Settings {
    pub fn new(written: Option<&file::Ospf>, path: &Path, findings: &mut Findings<'_>) -> Self {
        let area = written
            .and_then(|written| written.area.as_deref())
            .unwrap_or("0");
        if area.parse::<u32>().is_err() && area.parse::<Ipv4Addr>().is_err() {
            findings.error(
                &path.at("area"),
                format!("`{area}` is not an area"),
                "write a number as in \"0\", or dotted as in \"0.0.0.1\"",
            );
        }
        let hello = written.and_then(|written| written.hello);
        let hello = hello.map_or(1, |time| seconds(time, 65535, &path.at("hello"), findings));
        let dead = written.and_then(|written| written.dead);
        let dead = dead.map_or((4 * hello).min(65535), |time| {
            seconds(time, 65535, &path.at("dead"), findings)
        });
        if dead <= hello {
            findings.error(
                &path.at("dead"),
                format!("`dead` is {dead}s, not longer than `hello`, {hello}s"),
                format!("write for example \"{}s\"", 4 * hello),
            );
        }
        Self {
            area: area.to_owned(),
            hello,
            dead,
        }
    }
}

/// Whole seconds from 1 to `most`; 1 after an error.
pub fn seconds(time: Time, most: u64, path: &Path, findings: &mut Findings<'_>) -> u64 {
    let second = Duration::from_secs(1);
    let range = Time(second)..=Time(Duration::from_secs(most));
    let Some(Time(time)) = findings.ranged(path, time, &range) else {
        return 1;
    };
    if time.subsec_nanos() != 0 {
        findings.error(
            path,
            format!("{} is not a whole number of seconds", Time(time)),
            format!("write for example \"{}s\"", time.as_secs()),
        );
    }
    time.as_secs()
}

/// One version of the protocol, in FRR's words.
struct Version {
    router: &'static str,
    interface: &'static str,
    id: &'static str,
    stub: &'static str,
    on: fn(&Interface) -> bool,
}

const VERSIONS: [Version; 2] = [
    Version {
        router: "router ospf",
        interface: "ip ospf",
        id: "ospf router-id",
        stub: "max-metric router-lsa administrative",
        on: has_ipv4,
    },
    Version {
        router: "router ospf6",
        interface: "ipv6 ospf6",
        id: "ospf6 router-id",
        stub: "stub-router administrative",
        on: has_ipv6,
    },
];

impl Version {
    /// Whether a neighbouring interface takes part.
    fn spoken(&self, lab: &Lab<'_>, end: Endpoint) -> bool {
        let Some(speaker) = lab.speaker(end.node) else {
            return false;
        };
        let short = speaker.ospf.is_some() && lab.interface(end).is_some_and(self.on);
        short || speaker.inline_has(self.router)
    }
}

pub fn write(
    lab: &Lab<'_>,
    node: usize,
    machine: &Machine,
    settings: &Settings,
    id: Ipv4Addr,
    config: &mut Config,
) {
    for version in VERSIONS {
        let on: Vec<bool> = machine.interfaces.iter().map(version.on).collect();
        for port in (0..on.len()).filter(|port| on[*port]) {
            let end = Endpoint { node, port };
            let mut line = |text: String| {
                config.interfaces[port].push(format!("{} {text}", version.interface));
            };
            line(format!("area {}", settings.area));
            if !lab.neighbours(end).any(|other| version.spoken(lab, other)) {
                line("passive".to_owned());
                continue;
            }
            if lab.segment(end).is_some_and(Segment::is_point_to_point) {
                line("network point-to-point".to_owned());
            }
            line(format!("hello-interval {}", settings.hello));
            line(format!("dead-interval {}", settings.dead));
            // What two neighbours miss of each other while they start would otherwise wait 5 s, twice.
            line("retransmit-interval 1".to_owned());
        }
        let interfaces = on.iter().filter(|on| **on).count();
        if interfaces == 0 {
            continue;
        }
        let mut lines = vec![format!("{} {id}", version.id)];
        if machine.role == Role::Host && interfaces > 1 {
            // It does not forward: nobody may route through it.
            lines.push(version.stub.to_owned());
        }
        config.router(version.router, lines);
    }
}

/// Neighbours only become adjacent if they agree.
pub fn check(lab: &Lab<'_>, findings: &mut Findings<'_>) {
    for segment in &lab.segments {
        let mut speakers = segment.interfaces.iter().filter_map(|end| {
            let speaker = lab.speaker(end.node)?;
            Some((end.node, speaker, speaker.ospf.as_ref()?))
        });
        let Some((first, _, agreed)) = speakers.next() else {
            continue;
        };
        for (node, speaker, settings) in speakers {
            if settings != agreed {
                let [node, first] = [node, first].map(|node| &lab.topology.nodes[node].name);
                findings.warning(
                    &speaker.path.at("ospf"),
                    format!(
                        "`{node}` and `{first}` are on one link, but their OSPF settings differ"
                    ),
                    "`area`, `hello` and `dead` must agree, or they do not become neighbours",
                );
            }
        }
    }
}
