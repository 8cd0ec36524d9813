//! Routing daemons: short forms and inline text become one `frr.conf` per node (FRR 8.4) and the daemons it needs.

mod bgp;
mod isis;
mod ospf;
mod rip;

use std::net::{IpAddr, Ipv4Addr};

use crate::document::Path;
use crate::file::{self, Lines, Toggle};
use crate::host::Folder;
use crate::model::{Endpoint, Frr, Interface, Machine, NodeKind, Topology};
use crate::resolve::{Findings, Resolved};
use crate::segment::{Segment, segments};

/// The daemon that has to run for a line of `frr.conf` that starts like this, in the order of starting.
const DAEMONS: [(&str, &str); 18] = [
    ("router ospf", "ospfd"),
    ("router ospf6", "ospf6d"),
    ("router rip", "ripd"),
    ("router ripng", "ripngd"),
    ("router bgp", "bgpd"),
    ("router isis", "isisd"),
    ("router eigrp", "eigrpd"),
    ("router babel", "babeld"),
    ("router openfabric", "fabricd"),
    ("ip route", "staticd"),
    ("ipv6 route", "staticd"),
    ("bfd", "bfdd"),
    ("mpls ldp", "ldpd"),
    ("ip pim", "pimd"),
    ("ip igmp", "pimd"),
    ("ip nhrp", "nhrpd"),
    ("pbr-map", "pbrd"),
    ("vrrp", "vrrpd"),
];

/// What one node runs.
#[derive(Debug)]
struct Speaker {
    /// Of the node's `routing` in the file.
    path: Path,
    ospf: Option<ospf::Settings>,
    rip: bool,
    bgp: Option<bgp::Settings>,
    isis: Option<isis::Settings>,
    inline: String,
}

/// The configuration of one node as it grows.
#[derive(Debug, Default)]
struct Config {
    /// By interface of the node.
    interfaces: Vec<Vec<String>>,
    /// Blocks that start with `router`, a line each.
    routers: Vec<String>,
}

/// What the protocols need to know about the lab.
struct Lab<'a> {
    topology: &'a Topology,
    segments: Vec<Segment>,
    /// By node.
    speakers: Vec<Option<Speaker>>,
}

/// Fills in `frr` of every machine with `routing`.
pub fn configure(
    lab: &file::Lab,
    folder: &Folder,
    resolved: &mut Resolved,
    findings: &mut Findings<'_>,
) {
    let speakers = lab.nodes.iter().map(|(name, node)| match node {
        file::Node::Host(machine) | file::Node::Router(machine) => {
            let path = Path::of("nodes").at(name.as_str()).at("routing");
            speaker(machine.routing.as_ref()?, path, folder, findings)
        }
        file::Node::Switch(_) | file::Node::Hub(_) | file::Node::External(_) => None,
    });
    let speakers: Vec<Option<Speaker>> = speakers.collect();
    let lab = Lab {
        topology: &resolved.topology,
        segments: segments(&resolved.topology),
        speakers,
    };
    ospf::check(&lab, findings);
    let sessions = bgp::sessions(&lab, findings);
    let configured: Vec<(usize, Frr)> = lab
        .machines()
        .filter_map(|(node, machine, speaker)| {
            let frr = lab.frr(node, machine, speaker?, &sessions);
            Some((node, frr))
        })
        .collect();
    for (node, frr) in configured {
        if let NodeKind::Machine(machine) = &mut resolved.topology.nodes[node].kind {
            machine.frr = Some(frr);
        }
    }
}

/// What a node is to run; `None` if its `routing` switches nothing on.
fn speaker(
    written: &file::Routing,
    path: Path,
    folder: &Folder,
    findings: &mut Findings<'_>,
) -> Option<Speaker> {
    let inline = match &written.frr {
        None => String::new(),
        Some(Lines::Whole(text)) => text.clone(),
        Some(Lines::Separate(lines)) => lines.join("\n"),
        Some(Lines::File(file)) => folder
            .read(&file.from, &path.at("frr").at("from"), findings)
            .unwrap_or_default(),
    };
    let ospf = settings(&written.ospf)
        .map(|written| ospf::Settings::new(written, &path.at("ospf"), findings));
    let isis = settings(&written.isis)
        .map(|written| isis::Settings::new(written, &path.at("isis"), findings));
    let bgp = written
        .bgp
        .as_ref()
        .and_then(|written| bgp::Settings::new(written, &path.at("bgp"), findings));
    let speaker = Speaker {
        path,
        ospf,
        rip: written.rip,
        bgp,
        isis,
        inline,
    };
    let silent = speaker.ospf.is_none()
        && !speaker.rip
        && speaker.bgp.is_none()
        && speaker.isis.is_none()
        && speaker.inline.trim().is_empty();
    (!silent).then_some(speaker)
}

/// `Some(None)`: switched on, with nothing but the defaults.
#[allow(
    clippy::option_option,
    reason = "off, on, and on with settings are three things"
)]
fn settings<T>(toggle: &Toggle<T>) -> Option<Option<&T>> {
    match toggle {
        Toggle::Plain(false) => None,
        Toggle::Plain(true) => Some(None),
        Toggle::Detailed(settings) => Some(Some(settings)),
    }
}

impl Speaker {
    /// Whether the inline text has a line that starts with these words.
    fn inline_has(&self, words: &str) -> bool {
        let words: Vec<&str> = words.split(' ').collect();
        self.inline.lines().any(|line| {
            let line: Vec<&str> = line.split_whitespace().take(words.len()).collect();
            line == words
        })
    }
}

impl Lab<'_> {
    fn machines(&self) -> impl Iterator<Item = (usize, &Machine, Option<&Speaker>)> {
        self.topology
            .nodes
            .iter()
            .enumerate()
            .filter_map(|(index, node)| match &node.kind {
                NodeKind::Machine(machine) => {
                    Some((index, &**machine, self.speakers.get(index)?.as_ref()))
                }
                NodeKind::Switch(_) | NodeKind::Hub | NodeKind::External(_) => None,
            })
    }

    fn speaker(&self, node: usize) -> Option<&Speaker> {
        self.speakers.get(node)?.as_ref()
    }

    fn interface(&self, end: Endpoint) -> Option<&Interface> {
        match &self.topology.nodes[end.node].kind {
            NodeKind::Machine(machine) => machine.interfaces.get(end.port),
            NodeKind::Switch(_) | NodeKind::Hub | NodeKind::External(_) => None,
        }
    }

    fn segment(&self, end: Endpoint) -> Option<&Segment> {
        self.segments
            .iter()
            .find(|segment| segment.interfaces.contains(&end))
    }

    /// The other interfaces that are on the same link or switch.
    fn neighbours(&self, end: Endpoint) -> impl Iterator<Item = Endpoint> {
        self.segment(end)
            .into_iter()
            .flat_map(|segment| &segment.interfaces)
            .copied()
            .filter(move |other| other.node != end.node)
    }

    fn frr(
        &self,
        node: usize,
        machine: &Machine,
        speaker: &Speaker,
        sessions: &[bgp::Session],
    ) -> Frr {
        let mut config = Config {
            interfaces: vec![Vec::new(); machine.interfaces.len()],
            routers: Vec::new(),
        };
        let id = router_id(node, machine);
        if let Some(settings) = &speaker.ospf {
            ospf::write(self, node, machine, settings, id, &mut config);
        }
        if speaker.rip {
            rip::write(self, node, machine, &mut config);
        }
        if let Some(settings) = &speaker.bgp {
            bgp::write(node, settings, sessions, id, &mut config);
        }
        if let Some(settings) = &speaker.isis {
            isis::write(self, node, machine, settings, id, &mut config);
        }
        let text = config.text(&self.topology.nodes[node].name, machine, &speaker.inline);
        Frr {
            daemons: daemons(&text),
            config: text,
        }
    }
}

impl Config {
    fn text(&self, name: &str, machine: &Machine, inline: &str) -> String {
        let mut lines = vec![
            "frr defaults traditional".to_owned(),
            format!("hostname {name}"),
            "!".to_owned(),
        ];
        for (interface, settings) in machine.interfaces.iter().zip(&self.interfaces) {
            if settings.is_empty() {
                continue;
            }
            lines.push(format!("interface {}", interface.name));
            lines.extend(settings.iter().map(|setting| format!(" {setting}")));
            lines.push("exit".to_owned());
            lines.push("!".to_owned());
        }
        lines.extend(self.routers.iter().cloned());
        lines.extend(inline.lines().map(str::to_owned));
        lines.join("\n") + "\n"
    }

    /// A `router` block.
    fn router(&mut self, head: &str, settings: impl IntoIterator<Item = String>) {
        self.routers.push(head.to_owned());
        self.routers
            .extend(settings.into_iter().map(|setting| format!(" {setting}")));
        self.routers.push("exit".to_owned());
        self.routers.push("!".to_owned());
    }
}

fn daemons(config: &str) -> Vec<String> {
    let mut daemons = vec!["zebra".to_owned()];
    for (start, daemon) in DAEMONS {
        let words: Vec<&str> = start.split(' ').collect();
        let needed = config.lines().any(|line| {
            let line: Vec<&str> = line.split_whitespace().take(words.len()).collect();
            line == words
        });
        if needed && !daemons.iter().any(|known| known == daemon) {
            daemons.push(daemon.to_owned());
        }
    }
    daemons
}

/// The first IPv4 address; a node without one gets a number no address can have.
fn router_id(node: usize, machine: &Machine) -> Ipv4Addr {
    let first = machine
        .interfaces
        .iter()
        .flat_map(|interface| &interface.addresses)
        .find_map(|address| match address.address {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(_) => None,
        });
    first.unwrap_or_else(|| Ipv4Addr::from_bits(node as u32 + 1))
}

fn has_ipv4(interface: &Interface) -> bool {
    interface
        .addresses
        .iter()
        .any(|address| address.address.is_ipv4())
}

fn has_ipv6(interface: &Interface) -> bool {
    interface
        .addresses
        .iter()
        .any(|address| address.address.is_ipv6())
}
