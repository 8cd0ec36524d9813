//! Ports to the outside world.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::Resolver;
use crate::document::Path;
use crate::file;
use crate::model::{External, NodeKind};

/// Of VXLAN (RFC 7348 §5).
const VXLAN_PORT: u64 = 4789;
/// An Ethernet frame behind the largest IP packet that Linux lets a TAP device have.
const MAX_TAP_MTU: u64 = 65_521;

impl Resolver<'_> {
    pub(super) fn external(&mut self, written: &file::External, path: &Path) -> Option<External> {
        const RIGHT: &str = "exactly one of: \"tap\": \"hop0\", \"interface\": \"eth1\", \"vxlan\": {\"vni\": 42, \"remote\": \"192.0.2.1\"}";
        let kinds = [
            written.tap.is_some(),
            written.interface.is_some(),
            written.vxlan.is_some(),
        ];
        match kinds.iter().filter(|is| **is).count() {
            1 => {}
            0 => {
                let lost = ["tap", "interface", "vxlan"]
                    .iter()
                    .any(|field| self.findings.document.lost_member(path, field));
                if !lost {
                    self.findings
                        .error(path, "nothing says where the node leads to", RIGHT);
                }
                return None;
            }
            _ => {
                self.findings
                    .error(path, "the node leads to several places", RIGHT);
                return None;
            }
        }
        if written.tap.is_none() && written.mtu.is_some() {
            self.findings.error(
                &path.at("mtu"),
                "`mtu` is for a `tap`",
                "the host decides on the MTU of anything else; remove it",
            );
        }
        if let Some(name) = &written.tap {
            let mtu = written.mtu.unwrap_or(1500);
            let mtu = self
                .findings
                .ranged(&path.at("mtu"), mtu, &(68..=MAX_TAP_MTU));
            let name = self.host_interface(name, &path.at("tap"))?;
            return Some(External::Tap {
                name,
                mtu: mtu? as u16,
            });
        }
        if let Some(name) = &written.interface {
            let name = self.host_interface(name, &path.at("interface"))?;
            return Some(External::Interface { name });
        }
        self.vxlan(written.vxlan.as_ref()?, &path.at("vxlan"))
    }

    fn vxlan(&mut self, written: &file::Vxlan, path: &Path) -> Option<External> {
        let vni = self
            .findings
            .ranged(&path.at("vni"), written.vni, &(0..=0xff_ffff));
        let port = written.port.unwrap_or(VXLAN_PORT);
        let port = self.findings.ranged(&path.at("port"), port, &(1..=65_535));
        let remote_path = path.at("remote");
        let remote = self.address(&written.remote, &remote_path);
        if let Some(address) = remote
            && (address.is_unspecified() || address.is_multicast())
        {
            self.findings.error(
                &remote_path,
                format!("`{address}` is not the address of one other end"),
                "name a unicast address: a tunnel leads to one other end",
            );
            return None;
        }
        let local_path = path.at("local");
        let local = match &written.local {
            Some(local) => Some(self.address(local, &local_path)?),
            None => None,
        };
        let (vni, port, remote) = (vni?, port? as u16, remote?);
        if let Some(local) = local
            && local.is_ipv4() != remote.is_ipv4()
        {
            self.findings.error(
                &local_path,
                format!("`{local}` and `{remote}` are not of the same IP version"),
                "both ends of a tunnel have IPv4 addresses, or both IPv6",
            );
            return None;
        }
        let any = if remote.is_ipv4() {
            IpAddr::V4(Ipv4Addr::UNSPECIFIED)
        } else {
            IpAddr::V6(Ipv6Addr::UNSPECIFIED)
        };
        Some(External::Vxlan {
            vni: vni as u32,
            remote: SocketAddr::new(remote, port),
            local: SocketAddr::new(local.unwrap_or(any), port),
        })
    }

    fn address(&mut self, text: &str, path: &Path) -> Option<IpAddr> {
        if let Ok(address) = text.parse() {
            return Some(address);
        }
        let message = format!("`{text}` is not an IP address");
        self.findings.error(
            path,
            message,
            "write it as in \"192.0.2.1\" or \"2001:db8::1\", without prefix length and port",
        );
        None
    }

    /// The name of an interface of the host. The kernel allows more than ours do.
    fn host_interface(&mut self, name: &str, path: &Path) -> Option<String> {
        let wrong =
            |c: char| c == '/' || c == ':' || c == '%' || c.is_whitespace() || c.is_control();
        if name.is_empty() || name.len() > 15 || name == "." || name == ".." || name.contains(wrong)
        {
            self.findings.error(
                path,
                format!("`{name}` cannot be the name of an interface of the host"),
                "1 to 15 characters without spaces, `/`, `:` and `%`; `ip link` lists those there are",
            );
            return None;
        }
        Some(name.to_owned())
    }

    /// Two nodes cannot lead to the same device or listen on the same UDP port.
    pub(super) fn externals_apart(&mut self) {
        let mut names: HashMap<&str, &str> = HashMap::new();
        let mut ports: Vec<(SocketAddr, &str)> = Vec::new();
        for node in &self.out.topology.nodes {
            let NodeKind::External(external) = &node.kind else {
                continue;
            };
            let path = Path::of("nodes").at(node.name.as_str());
            match external {
                External::Tap { name, .. } | External::Interface { name } => {
                    if let Some(other) = names.insert(name, &node.name) {
                        self.findings.error(
                            &path.at(external.kind()),
                            format!("`{other}` leads to {name} already"),
                            "a device belongs to one node; put a switch behind that",
                        );
                    }
                }
                External::Vxlan { local, .. } => {
                    let same = |(other, _): &&(SocketAddr, &str)| {
                        other.port() == local.port()
                            && (other.ip() == local.ip()
                                || other.ip().is_unspecified()
                                || local.ip().is_unspecified())
                    };
                    if let Some((_, other)) = ports.iter().find(same) {
                        self.findings.error(
                            &path.at("vxlan"),
                            format!("`{other}` listens on UDP port {} already", local.port()),
                            "give the tunnels different `local` addresses or different `port`s",
                        );
                    }
                    ports.push((*local, &node.name));
                }
            }
        }
    }
}
