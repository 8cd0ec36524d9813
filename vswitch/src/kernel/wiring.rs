//! The devices that make a topology of the kernel's bridges and pairs.
//!
//! A link is a bridge of its own with two ports, its ends, that learns nothing and so passes everything on. What leaves by an end is on its
//! way to what is behind it, so the queue disciplines there are those of the direction that leads there. Behind an end is a machine's
//! interface, or a port of a switch's bridge, to which a pair leads.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::hash::{DefaultHasher, Hash, Hasher};

use topology::model::{DeviceKind, Endpoint, Lock, Node, NodeKind, PortVlan, SwitchNode, Topology};

use super::KernelError;

/// Of pairs and bridges that only pass on: what is too long for an interface is told there.
const ANY_MTU: u16 = 65535;
/// Link-local groups (01-80-C2-00-00-0x) that a link passes on: all but those the kernel keeps to itself (0, 1 and 2).
const FORWARD_RESERVED: u16 = 0xfff8;
/// `table-limit` unless the topology says otherwise: the kernel's bridge has none.
const TABLE_LIMIT: u32 = 4096;

/// A bridge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bridge {
    /// A link.
    Link,
    /// A hub.
    Hub,
    /// A switch.
    Switch {
        /// Seconds after which a station is forgotten.
        ageing: u64,
        /// It tells VLANs apart.
        vlans: bool,
        /// It passes on what most switches keep to themselves.
        forward_reserved: bool,
    },
}

/// An end of a link, or an interface without one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// What is behind it.
    pub behind: Behind,
    /// Of its link.
    pub bridge: Option<String>,
}

/// What is behind the end of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Behind {
    /// A container's interface: the other end of the pair, which is moved there.
    Veth {
        /// Its name until then.
        other: String,
        /// Bytes of its largest packet.
        mtu: u16,
    },
    /// A virtual machine: the end is its TAP device.
    Tap {
        /// Bytes of its largest packet.
        mtu: u16,
    },
    /// A port of a switch or hub: the other end of the pair.
    Port {
        /// Its name.
        other: String,
        /// The bridge it is a port of.
        of: String,
        /// Its VLANs.
        vlan: Option<PortVlan>,
    },
}

/// All devices, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wiring {
    /// Links, switches and hubs.
    pub bridges: BTreeMap<String, Bridge>,
    /// What they are joined by.
    pub ends: BTreeMap<String, End>,
}

/// A name for a device: two letters and twelve digits (`IFNAMSIZ` leaves 15).
fn name(kind: &str, of: &str) -> String {
    let mut hash = DefaultHasher::new();
    of.hash(&mut hash);
    format!("{kind}{:012x}", hash.finish() >> 16)
}

/// As the switch names an end: `node.interface`, or the name of a switch or hub.
pub fn end_name(topology: &Topology, end: &Endpoint) -> String {
    let node = &topology.nodes[end.node];
    let interface = node.machine().and_then(|m| m.interfaces.get(end.port));
    match interface {
        Some(interface) => format!("{}.{}", node.name, interface.name),
        None => node.name.clone(),
    }
}

/// Bytes of the largest packet of what is behind `end`.
pub fn mtu(topology: &Topology, end: &Endpoint) -> u16 {
    let machine = topology.nodes[end.node].machine();
    let interface = machine.and_then(|m| m.interfaces.get(end.port));
    interface.map_or(1500, |interface| interface.mtu)
}

/// The device that is `end` of a link.
pub fn device(topology: &Topology, end: &Endpoint) -> String {
    let whole = end_name(topology, end);
    let node = &topology.nodes[end.node];
    match node.machine().and_then(|m| m.interfaces.get(end.port)) {
        Some(interface) => match &interface.device {
            Some(device) if device.kind == DeviceKind::Tap => device.name.clone(),
            _ => name("hp", &whole),
        },
        None => name("hp", &format!("{whole}:{}", end.port)),
    }
}

impl Wiring {
    /// That of `topology`, unless the kernel cannot do what a node of it is to do.
    pub fn of(topology: &Topology) -> Result<Self, KernelError> {
        let mut wiring = Self::default();
        for node in &topology.nodes {
            wiring.node(node)?;
        }
        for link in &topology.links {
            let ends = link.ends.each_ref().map(|end| device(topology, end));
            let bridge = name("hl", &ends.concat());
            wiring.bridges.insert(bridge.clone(), Bridge::Link);
            for (end, device) in link.ends.iter().zip(ends) {
                wiring.end(topology, end, device, &bridge);
            }
        }
        Ok(wiring)
    }

    fn node(&mut self, node: &Node) -> Result<(), KernelError> {
        let unsupported = |what: &str| {
            let node = node.name.clone();
            let what = what.to_owned();
            Err(KernelError::Node { node, what })
        };
        match &node.kind {
            NodeKind::Machine(machine) if machine.zone.is_some() => {
                return unsupported("it is in a `zone`, and the kernel is one for all");
            }
            NodeKind::Machine(machine) => {
                for interface in &machine.interfaces {
                    let Some(device) = &interface.device else {
                        return unsupported("its engine has interfaces of Hopyard's switch only");
                    };
                    if interface.lock != Lock::None {
                        return unsupported("`lock` is not among what the kernel's fabric does");
                    }
                    let mtu = interface.mtu;
                    let (name, behind) = match device.kind {
                        DeviceKind::Tap => (device.name.clone(), Behind::Tap { mtu }),
                        DeviceKind::Veth => {
                            let whole = format!("{}.{}", node.name, interface.name);
                            let other = device.name.clone();
                            (name("hp", &whole), Behind::Veth { other, mtu })
                        }
                    };
                    let bridge = None;
                    self.ends.insert(name, End { behind, bridge });
                }
            }
            NodeKind::Hub => drop(self.bridges.insert(name("hn", &node.name), Bridge::Hub)),
            NodeKind::Switch(switch) => {
                if switch.ports.iter().any(|port| port.storm.is_some()) {
                    return unsupported("`storm`: the kernel's bridge has no such limit");
                }
                if switch.table_limit != TABLE_LIMIT {
                    return unsupported("`table-limit`: the kernel's bridge has no such limit");
                }
                let SwitchNode { ageing, ports, .. } = switch;
                let bridge = Bridge::Switch {
                    ageing: ageing.as_secs().max(1),
                    vlans: ports.iter().any(|port| port.vlan.is_some()),
                    forward_reserved: switch.forward_reserved,
                };
                self.bridges.insert(name("hn", &node.name), bridge);
            }
            NodeKind::External(_) => {
                return unsupported("ways out of the lab are Hopyard's switch's only");
            }
        }
        Ok(())
    }

    fn end(&mut self, topology: &Topology, end: &Endpoint, device: String, bridge: &str) {
        let bridge = Some(bridge.to_owned());
        if let Some(machine) = self.ends.get_mut(&device) {
            machine.bridge = bridge;
            return;
        }
        let node = &topology.nodes[end.node];
        let vlan = match &node.kind {
            NodeKind::Switch(switch) => switch.ports.get(end.port).and_then(|p| p.vlan.clone()),
            _ => None,
        };
        let behind = Behind::Port {
            other: device.replacen("hp", "hq", 1),
            of: name("hn", &node.name),
            vlan,
        };
        self.ends.insert(device, End { behind, bridge });
    }

    /// Lines for ip(8) and for bridge(8) that make of `old` this. Those of `lost` have gone by themselves.
    pub fn replace(&self, old: &Self, lost: &[String]) -> (String, String) {
        let (mut ip, mut bridge) = (String::new(), String::new());
        let differs = |name: &String, end: &End| {
            let new = self.ends.get(name);
            // Only a bridge of its own takes it from another.
            new.is_none_or(|new| new.behind != end.behind)
        };
        for (name, _) in old.ends.iter().filter(|(name, end)| differs(name, end)) {
            if !lost.contains(name) {
                let _ = writeln!(ip, "link del dev {name}");
            }
        }
        for (name, kind) in &old.bridges {
            if self.bridges.get(name) != Some(kind) {
                let _ = writeln!(ip, "link del dev {name}");
            }
        }
        for (name, kind) in &self.bridges {
            if old.bridges.get(name) != Some(kind) {
                kind.create(name, &mut ip);
            }
        }
        for (name, end) in &self.ends {
            let is_new =
                lost.contains(name) || old.ends.get(name).is_none_or(|old| differs(name, old));
            if is_new {
                end.behind.create(name, &mut ip, &mut bridge);
            }
            let known = old.ends.get(name).filter(|_| !is_new);
            let bridge_of = |end: &End| end.bridge.clone();
            // A bridge that was made anew has lost its ports.
            let rebuilt = bridge_of(end).is_some_and(|b| !old.bridges.contains_key(&b));
            if known.map(bridge_of) != Some(bridge_of(end)) || rebuilt {
                let _ = match &end.bridge {
                    Some(bridge) => writeln!(ip, "link set dev {name} master {bridge}"),
                    None if is_new => Ok(()),
                    None => writeln!(ip, "link set dev {name} nomaster down"),
                };
            }
        }
        (ip, bridge)
    }

    /// Whether something is behind `end` that the topology has there already, whatever link leads to it.
    pub fn is_kept(&self, old: &Self, end: &str) -> bool {
        let behind = |wiring: &Self| wiring.ends.get(end).map(|end| end.behind.clone());
        behind(self).is_some() && behind(self) == behind(old)
    }
}

impl Bridge {
    fn create(&self, name: &str, ip: &mut String) {
        let (ageing, reserved, vlans) = match self {
            Self::Link | Self::Hub => (0, FORWARD_RESERVED, false),
            Self::Switch {
                ageing,
                vlans,
                forward_reserved,
            } => {
                let reserved = if *forward_reserved {
                    FORWARD_RESERVED
                } else {
                    0
                };
                // In hundredths.
                (ageing * 100, reserved, *vlans)
            }
        };
        let vlans = if vlans {
            " vlan_filtering 1 vlan_default_pvid 0"
        } else {
            ""
        };
        let _ = writeln!(
            ip,
            "link add dev {name} mtu {ANY_MTU} type bridge forward_delay 0 stp_state 0 mcast_snooping 0 ageing_time {ageing} group_fwd_mask {reserved}{vlans}\n\
             link set dev {name} up"
        );
    }
}

impl Behind {
    fn create(&self, name: &str, ip: &mut String, bridge: &mut String) {
        let _ = match self {
            Self::Veth { other, mtu } => writeln!(
                ip,
                "link add dev {name} mtu {mtu} type veth peer name {other} mtu {mtu}"
            ),
            Self::Tap { mtu } => writeln!(
                ip,
                "tuntap add dev {name} mode tap vnet_hdr\n\
                 link set dev {name} mtu {mtu}"
            ),
            Self::Port { other, of, .. } => writeln!(
                ip,
                "link add dev {name} mtu {ANY_MTU} type veth peer name {other} mtu {ANY_MTU}\n\
                 link set dev {other} master {of} up"
            ),
        };
        let Self::Port {
            other,
            vlan: Some(vlan),
            ..
        } = self
        else {
            return;
        };
        let _ = match vlan {
            PortVlan::Access(vlan) => {
                writeln!(bridge, "vlan add dev {other} vid {vlan} pvid untagged")
            }
            PortVlan::Trunk { allowed, native } => {
                for range in allowed {
                    let (first, last) = (range.start(), range.end());
                    let vlans = if first == last {
                        first.to_string()
                    } else {
                        format!("{first}-{last}")
                    };
                    let _ = writeln!(bridge, "vlan add dev {other} vid {vlans}");
                }
                match native {
                    Some(native) => {
                        writeln!(bridge, "vlan add dev {other} vid {native} pvid untagged")
                    }
                    None => Ok(()),
                }
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use topology::model::Device;

    use super::*;

    fn topology(links: &str) -> Topology {
        let text = format!(
            r#"{{"nodes": {{"a": {{"kind": "host"}}, "b": {{"kind": "host"}}, "s": {{"kind": "switch"}}}}, "links": [{links}]}}"#
        );
        let loaded = Topology::parse(&text, Path::new("lab.json")).unwrap();
        let mut topology = loaded.topology;
        for (n, node) in topology.nodes.iter_mut().enumerate() {
            if let NodeKind::Machine(machine) = &mut node.kind {
                for (i, interface) in machine.interfaces.iter_mut().enumerate() {
                    interface.device = Some(Device {
                        name: format!("hy{n}{i}"),
                        kind: if n == 0 {
                            DeviceKind::Veth
                        } else {
                            DeviceKind::Tap
                        },
                    });
                }
            }
        }
        topology
    }

    const DIRECT: &str = r#"{"endpoints": ["a:eth0", "b:eth0"]}"#;
    const SWITCHED: &str = r#"{"endpoints": ["a:eth0", "s"]}, {"endpoints": ["b:eth0", "s"]}"#;

    #[test]
    fn a_link_is_a_bridge_with_two_ends() {
        let direct = Wiring::of(&topology(DIRECT)).unwrap();
        assert_eq!(direct.bridges.len(), 2);
        assert_eq!(direct.ends.len(), 2);
        let (ip, _) = direct.replace(&Wiring::default(), &[]);
        assert_eq!(ip.matches(" type veth peer name hy00 ").count(), 1, "{ip}");
        assert_eq!(ip.matches("tuntap add dev hy10 ").count(), 1, "{ip}");
        assert_eq!(ip.matches(" master hl").count(), 2, "{ip}");
        // Nothing is left to do.
        assert_eq!(direct.replace(&direct, &[]).0, "");
    }

    #[test]
    fn what_stays_is_not_touched() {
        let direct = Wiring::of(&topology(DIRECT)).unwrap();
        let switched = Wiring::of(&topology(SWITCHED)).unwrap();
        let (ip, _) = switched.replace(&direct, &[]);
        assert!(
            !ip.contains("peer name hy00") && !ip.contains("tuntap"),
            "{ip}"
        );
        assert_eq!(ip.matches("link del dev hl").count(), 1, "{ip}");
        assert_eq!(ip.matches(" master hl").count(), 4, "{ip}");
        assert!(ip.contains("link set dev hy10 master hl"), "{ip}");
        let (back, _) = direct.replace(&switched, &[]);
        assert_eq!(back.matches("link del dev hp").count(), 2, "{back}");
    }

    #[test]
    fn what_was_lost_is_made_again() {
        let direct = Wiring::of(&topology(DIRECT)).unwrap();
        let end = device(&topology(DIRECT), &topology(DIRECT).links[0].ends[0]);
        let (ip, _) = direct.replace(&direct, std::slice::from_ref(&end));
        assert!(
            ip.starts_with(&format!("link add dev {end} ")) && ip.contains(" master "),
            "{ip}"
        );
        assert_eq!(ip.lines().count(), 2, "{ip}");
    }
}
