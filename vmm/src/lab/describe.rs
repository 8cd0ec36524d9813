//! From the topology to what a node's agent is told.

use std::net::IpAddr;

use agent_protocol::{
    FileDescription, FrrDescription, InterfaceDescription, MAX_CONTROL, NodeDescription,
    ReadyDescription, RouteDescription, ToAgent,
};
use topology::model::{Machine, NodeKind, Topology};

use crate::failure::{Code, Failure};

/// The `Configure` message for the machine called `name`.
pub fn configure(topology: &Topology, name: &str, machine: &Machine) -> Result<ToAgent, Failure> {
    let message = ToAgent::Configure(Box::new(describe(topology, name, machine)));
    let length = serde_json::to_vec(&message).map_or(usize::MAX, |bytes| bytes.len());
    if length > MAX_CONTROL {
        return Err(Failure::new(
            Code::Topology,
            format!(
                "the description of node {name} takes {length} bytes; an agent takes {MAX_CONTROL}"
            ),
        )
        .help("shorten its files, FRR configuration or commands"));
    }
    Ok(message)
}

fn describe(topology: &Topology, name: &str, machine: &Machine) -> NodeDescription {
    NodeDescription {
        hostname: name.to_owned(),
        interfaces: machine
            .interfaces
            .iter()
            .map(|interface| InterfaceDescription {
                name: interface.name.clone(),
                mac: interface.mac.to_string(),
                mtu: interface.mtu,
                addresses: interface
                    .addresses
                    .iter()
                    .map(ToString::to_string)
                    .collect(),
            })
            .collect(),
        routes: machine
            .routes
            .iter()
            .map(|route| RouteDescription {
                to: route.to.to_string(),
                via: route.via.map(|via| via.to_string()),
                dev: route.dev.clone(),
                metric: route.metric,
            })
            .collect(),
        sysctls: machine.sysctls.clone(),
        hosts: hosts(topology, name),
        files: machine
            .files
            .iter()
            .map(|file| FileDescription {
                path: file.path.clone(),
                content: file.content.clone(),
                mode: file.mode,
            })
            .collect(),
        frr: machine.frr.as_ref().map(|frr| FrrDescription {
            daemons: frr.daemons.clone(),
            config: frr.config.clone(),
        }),
        commands: machine.commands.clone(),
        ready: machine.ready.as_ref().map(|ready| ReadyDescription {
            exec: ready.exec.clone(),
            timeout_ms: u64::try_from(ready.timeout.as_millis()).unwrap_or(u64::MAX),
        }),
    }
}

/// `/etc/hosts` of the node called `own`: a node's name leads to its first address of each family. The own
/// name leads to the loopback interface, as on any Debian machine, so that it resolves when links are down.
fn hosts(topology: &Topology, own: &str) -> Vec<(String, String)> {
    let mut hosts: Vec<_> = [
        ("127.0.0.1", "localhost"),
        ("::1", "localhost ip6-localhost ip6-loopback"),
        ("127.0.1.1", own),
    ]
    .map(|(address, name)| (address.to_owned(), name.to_owned()))
    .into();
    for node in topology.nodes.iter().filter(|node| node.name != own) {
        let NodeKind::Machine(machine) = &node.kind else {
            continue;
        };
        let addresses = || {
            machine
                .interfaces
                .iter()
                .flat_map(|i| &i.addresses)
                .map(|cidr| cidr.address)
        };
        let firsts = [
            addresses().find(IpAddr::is_ipv4),
            addresses().find(IpAddr::is_ipv6),
        ];
        hosts.extend(
            firsts
                .into_iter()
                .flatten()
                .map(|a| (a.to_string(), node.name.clone())),
        );
    }
    hosts
}
