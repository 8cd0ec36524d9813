//! BGP between directly connected nodes.

use std::net::{IpAddr, Ipv4Addr};

use super::{Config, Lab};
use crate::de::nearest;
use crate::document::Path;
use crate::file;
use crate::model::Endpoint;
use crate::resolve::Findings;

/// BGP on one node.
#[derive(Debug)]
pub struct Settings {
    asn: u32,
    /// As written; `None`: every directly connected node that runs BGP.
    neighbors: Option<Vec<String>>,
}

impl Settings {
    pub fn new(written: &file::Bgp, path: &Path, findings: &mut Findings<'_>) -> Option<Self> {
        // 0 and 2^32-1 are reserved (RFC 7607, RFC 7300).
        let range = 1..=u64::from(u32::MAX) - 1;
        let asn = findings.ranged(&path.at("as"), written.asn, &range)?;
        Some(Self {
            asn: asn as u32,
            neighbors: written.neighbors.clone(),
        })
    }
}

/// One side's view of a session.
#[derive(Debug)]
pub struct Session {
    node: usize,
    peer: usize,
    peer_asn: u32,
    address: IpAddr,
}

/// The sessions of all nodes.
pub fn sessions(lab: &Lab<'_>, findings: &mut Findings<'_>) -> Vec<Session> {
    let mut sessions: Vec<Session> = Vec::new();
    let mut listed: Vec<(usize, usize, Path)> = Vec::new();
    for (node, machine, speaker) in lab.machines() {
        let Some((settings, path)) = speaker.and_then(|speaker| {
            Some((
                speaker.bgp.as_ref()?,
                speaker.path.at("bgp").at("neighbors"),
            ))
        }) else {
            continue;
        };
        let ports = 0..machine.interfaces.len();
        let ends: Vec<Endpoint> = ports.map(|port| Endpoint { node, port }).collect();
        let Some(neighbors) = &settings.neighbors else {
            for end in ends {
                for other in lab.neighbours(end) {
                    connect(lab, end, other, None, &mut sessions);
                }
            }
            continue;
        };
        for (index, text) in neighbors.iter().enumerate() {
            let path = path.at(index);
            let address = text.parse::<IpAddr>().ok();
            let others: Vec<(Endpoint, Endpoint)> = ends
                .iter()
                .flat_map(|end| lab.neighbours(*end).map(|other| (*end, other)))
                .filter(|(_, other)| match address {
                    Some(address) => has_address(lab, *other, address),
                    None => lab.topology.nodes[other.node].name == *text,
                })
                .collect();
            let Some((_, other)) = others.first() else {
                not_there(lab, node, text, address, &path, findings);
                continue;
            };
            let peer = other.node;
            if lab
                .speaker(peer)
                .is_none_or(|speaker| speaker.bgp.is_none())
            {
                let name = &lab.topology.nodes[peer].name;
                // A `bgp` that could not be read has its own error.
                let routing = Path::of("nodes").at(name.as_str()).at("routing");
                if !findings.document.lost_member(&routing, "bgp") {
                    findings.error(
                        &path,
                        format!("`{name}` has no `routing.bgp`"),
                        "give it one, or write this session as inline `frr` text",
                    );
                }
                continue;
            }
            let before = sessions.len();
            for (end, other) in others {
                connect(lab, end, other, address, &mut sessions);
            }
            if sessions.len() == before
                && !sessions.iter().any(|s| s.node == node && s.peer == peer)
            {
                findings.error(
                    &path,
                    format!(
                        "no address of `{text}` is in a network of `{}`",
                        name(lab, node)
                    ),
                    "give both ends of the link addresses of one network",
                );
            }
            listed.push((node, peer, path));
        }
    }
    for (node, peer, path) in &listed {
        let answered = sessions.iter().any(|s| s.node == *peer && s.peer == *node);
        if !answered {
            findings.warning(
                path,
                format!(
                    "`{}` does not have `{}` among its neighbors",
                    name(lab, *peer),
                    name(lab, *node)
                ),
                "a session needs both sides",
            );
        }
    }
    sessions
}

fn name<'a>(lab: &'a Lab<'_>, node: usize) -> &'a str {
    &lab.topology.nodes[node].name
}

fn has_address(lab: &Lab<'_>, end: Endpoint, address: IpAddr) -> bool {
    lab.interface(end).is_some_and(|interface| {
        interface
            .addresses
            .iter()
            .any(|known| known.address == address)
    })
}

fn not_there(
    lab: &Lab<'_>,
    node: usize,
    text: &str,
    address: Option<IpAddr>,
    path: &Path,
    findings: &mut Findings<'_>,
) {
    let own = name(lab, node);
    if address.is_some() {
        let message = format!("no node on a link of `{own}` has the address `{text}`");
        findings.error(
            path,
            message,
            "name the neighbor, or its address on the common link",
        );
    } else if lab.topology.nodes.iter().any(|other| other.name == text) {
        findings.error(
            path,
            format!("`{text}` is not directly connected to `{own}`"),
            "neighbors must share a link or switch; for others write inline `frr` text",
        );
    } else if !findings.document.lost_member(&Path::of("nodes"), text) {
        let known = lab.topology.nodes.iter().map(|node| node.name.as_str());
        let help = match nearest(text, known) {
            Some(meant) => format!("did you mean \"{meant}\"?"),
            None => "write the name of a node, or an address".to_owned(),
        };
        findings.error(path, format!("there is no node `{text}`"), help);
    }
}

/// A session per IP version in which the two have addresses of one network, once per pair of nodes.
fn connect(
    lab: &Lab<'_>,
    end: Endpoint,
    other: Endpoint,
    only: Option<IpAddr>,
    sessions: &mut Vec<Session>,
) {
    let peer = lab
        .speaker(other.node)
        .and_then(|speaker| speaker.bgp.as_ref());
    let (Some(peer), Some(own), Some(theirs)) = (peer, lab.interface(end), lab.interface(other))
    else {
        return;
    };
    for ipv4 in [true, false] {
        let known = sessions.iter().any(|session| {
            session.node == end.node
                && session.peer == other.node
                && session.address.is_ipv4() == ipv4
        });
        if known {
            continue;
        }
        let address = theirs
            .addresses
            .iter()
            .map(|cidr| cidr.address)
            .find(|address| {
                address.is_ipv4() == ipv4
                    && only.is_none_or(|only| only == *address)
                    && own.addresses.iter().any(|cidr| cidr.contains(*address))
            });
        if let Some(address) = address {
            sessions.push(Session {
                node: end.node,
                peer: other.node,
                peer_asn: peer.asn,
                address,
            });
        }
    }
}

pub fn write(
    node: usize,
    settings: &Settings,
    sessions: &[Session],
    id: Ipv4Addr,
    config: &mut Config,
) {
    let own: Vec<&Session> = sessions
        .iter()
        .filter(|session| session.node == node)
        .collect();
    let mut lines = vec![
        format!("bgp router-id {id}"),
        // FRR otherwise exchanges nothing with another AS unless there are policies (RFC 8212).
        "no bgp ebgp-requires-policy".to_owned(),
        "no bgp default ipv4-unicast".to_owned(),
    ];
    for session in &own {
        let address = session.address;
        lines.push(format!("neighbor {address} remote-as {}", session.peer_asn));
        lines.push(format!("neighbor {address} timers 3 9"));
        lines.push(format!("neighbor {address} timers connect 5"));
    }
    for (family, ipv4) in [("ipv4", true), ("ipv6", false)] {
        lines.push(format!("address-family {family} unicast"));
        lines.push(" redistribute connected".to_owned());
        for session in own
            .iter()
            .filter(|session| session.address.is_ipv4() == ipv4)
        {
            lines.push(format!(" neighbor {} activate", session.address));
            if session.peer_asn == settings.asn {
                // A route from another AS has a next hop that the rest of this one may not know.
                lines.push(format!(" neighbor {} next-hop-self", session.address));
            }
        }
        lines.push("exit-address-family".to_owned());
    }
    config.router(&format!("router bgp {}", settings.asn), lines);
}
