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

/// The text of `/etc/hosts` of the node called `name`.
pub fn hosts_file(topology: &Topology, name: &str) -> String {
    let hosts = hosts(topology, name).into_iter();
    let lines: Vec<_> = hosts
        .map(|(address, name)| format!("{address}\t{name}\n"))
        .collect();
    lines.concat()
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn topology() -> Topology {
        let text = r#"{
            "nodes": {
                "a": {
                    "kind": "host",
                    "interfaces": {
                        "eth0": { "addresses": ["10.0.0.1/24", "2001:db8::1/64"], "mtu": 9000 }
                    },
                    "routes": [{ "to": "default", "via": "10.0.0.2" }]
                },
                "r": {
                    "kind": "router",
                    "interfaces": {
                        "eth0": { "addresses": ["10.0.0.2/24"] },
                        "eth1": { "addresses": ["10.0.1.2/24", "2001:db8:1::2/64"] }
                    }
                },
                "s": { "kind": "switch" }
            },
            "links": [
                { "endpoints": ["a:eth0", "s"] },
                { "endpoints": ["r:eth0", "s"] },
                { "endpoints": ["r:eth1", "s"] }
            ]
        }"#;
        Topology::parse(text, Path::new("lab.json"))
            .unwrap()
            .topology
    }

    fn described(topology: &Topology, index: usize) -> NodeDescription {
        let node = &topology.nodes[index];
        let NodeKind::Machine(machine) = &node.kind else {
            panic!("{} is no machine", node.name);
        };
        match configure(topology, &node.name, machine).unwrap() {
            ToAgent::Configure(description) => *description,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_node_learns_its_addresses_and_routes() {
        let description = described(&topology(), 0);
        assert_eq!(description.hostname, "a");
        let eth0 = &description.interfaces[0];
        assert_eq!((eth0.name.as_str(), eth0.mtu), ("eth0", 9000));
        assert_eq!(eth0.addresses, ["10.0.0.1/24", "2001:db8::1/64"]);
        assert_eq!(eth0.mac.len(), "02:00:00:00:00:00".len());
        let route = &description.routes[0];
        assert_eq!(
            (route.to.as_str(), route.via.as_deref()),
            ("0.0.0.0/0", Some("10.0.0.2"))
        );
    }

    #[test]
    fn a_router_is_told_to_forward() {
        let sysctls = described(&topology(), 1).sysctls;
        assert!(
            sysctls.contains(&("net.ipv4.ip_forward".into(), "1".into())),
            "{sysctls:?}"
        );
    }

    #[test]
    fn every_node_knows_every_other_by_its_first_address_of_each_family() {
        let hosts = described(&topology(), 0).hosts;
        let addresses = |name: &str| -> Vec<_> {
            hosts
                .iter()
                .filter(|(_, n)| n == name)
                .map(|(address, _)| address.as_str())
                .collect()
        };
        assert_eq!(addresses("r"), ["10.0.0.2", "2001:db8:1::2"]);
        assert_eq!(addresses("a"), ["127.0.1.1"]);
        assert_eq!(addresses("localhost"), ["127.0.0.1"]);
        assert!(addresses("s").is_empty());
    }

    #[test]
    fn a_description_that_no_agent_takes_is_refused() {
        let mut topology = topology();
        if let NodeKind::Machine(machine) = &mut topology.nodes[0].kind {
            machine.commands = vec!["x".repeat(MAX_CONTROL)];
        }
        let NodeKind::Machine(machine) = &topology.nodes[0].kind else {
            panic!("not a machine");
        };
        let failure = configure(&topology, "a", machine).unwrap_err();
        assert!(failure.message.contains("node a"), "{failure}");
    }
}
