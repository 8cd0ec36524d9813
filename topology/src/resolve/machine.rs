//! Hosts and routers.

use std::collections::BTreeMap;
use std::hash::Hasher;
use std::net::IpAddr;
use std::path::PathBuf;

use super::{PlacedAddress, Resolver};
use crate::document::Path;
use crate::file;
use crate::model::{
    EndAction, EndPolicy, Engine, File, Interface, Limits, Lock, Machine, NodeKind, Role, Route,
};
use crate::net::{Cidr, MacAddr};
use crate::quantity::Size;

/// NICs that fit beside the other devices on the machine's one PCI bus.
const MAX_INTERFACES: usize = 28;
const MIB: u64 = 1 << 20;
/// Names the kernel has for itself, as an interface or beside interfaces in `net.ipv4.conf`.
const RESERVED: [&str; 3] = ["lo", "all", "default"];
/// The least MTU of IPv6 (RFC 8200 §5).
const IPV6_MTU: u16 = 1280;

/// `defaults.machine`, with the built-in values where it says nothing.
pub(super) struct Defaults {
    memory: u64,
    vcpus: u8,
    kernel: Option<PathBuf>,
    rootfs: Option<PathBuf>,
    mtu: u16,
    queue_size: u16,
    limits: Limits,
}

impl Resolver<'_> {
    pub(super) fn machine_defaults(&mut self) -> Defaults {
        let path = Path::of("defaults").at("machine");
        let written = &self.lab.defaults.machine;
        Defaults {
            memory: self.memory(written.memory, &path).unwrap_or(128 * MIB),
            vcpus: self.vcpus(written.vcpus, &path).unwrap_or(1),
            kernel: self.optional_path(written.kernel.as_deref(), &path.at("kernel")),
            rootfs: self.optional_path(written.rootfs.as_deref(), &path.at("rootfs")),
            mtu: self.mtu(written.mtu, &path).unwrap_or(1500),
            queue_size: self.queue_size(written.queue_size, &path).unwrap_or(1024),
            limits: self.limits(written.cpu.as_ref(), written.host_memory, &path),
        }
    }

    pub(super) fn machine(
        &mut self,
        role: Role,
        written: &file::Machine,
        defaults: &Defaults,
        path: &Path,
    ) -> NodeKind {
        let node = self.out.topology.nodes.len();
        let kernel = self.optional_path(written.kernel.as_deref(), &path.at("kernel"));
        let rootfs = self.optional_path(written.rootfs.as_deref(), &path.at("rootfs"));
        let mut machine = Machine {
            role,
            memory: self.memory(written.memory, path).unwrap_or(defaults.memory),
            vcpus: self.vcpus(written.vcpus, path).unwrap_or(defaults.vcpus),
            engine: self.engine(written, path),
            zone: self.zone(written, path),
            kernel: kernel.or_else(|| defaults.kernel.clone()),
            rootfs: rootfs.or_else(|| defaults.rootfs.clone()),
            interfaces: Vec::new(),
            routes: Vec::new(),
            sysctls: self.sysctls(role, written, path),
            files: self.files(written, path),
            commands: self.commands(&written.commands, &path.at("commands")),
            frr: None,
            ready: None,
            after: Vec::new(),
            on: end_policy(&written.on),
            limits: self
                .limits(written.cpu.as_ref(), written.host_memory, path)
                .or(&defaults.limits),
            labels: self.labels(written, path),
            save: self.save(written, path),
        };
        for (name, interface) in written.interfaces.iter().flatten() {
            let path = path.at("interfaces").at(name.as_str());
            self.interface_name(name, &path);
            let at = (node, machine.interfaces.len());
            let interface = self.interface(name, interface, defaults, at, &path);
            machine.interfaces.push(interface);
        }
        for (index, route) in written.routes.iter().enumerate() {
            let path = path.at("routes").at(index);
            if let Some(route) = self.route(route, &path) {
                self.out.routes.insert((node, machine.routes.len()), path);
                machine.routes.push(route);
            }
        }
        machine.ready = self.ready(written, &machine, path);
        NodeKind::Machine(Box::new(machine))
    }

    fn zone(&mut self, written: &file::Machine, path: &Path) -> Option<String> {
        let zone = written.zone.clone()?;
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if zone.is_empty() || zone.len() > 16 || zone.starts_with('-') || !zone.chars().all(plain) {
            self.findings.error(
                &path.at("zone"),
                format!("`{zone}` cannot be the name of a zone"),
                "1 to 16 characters of `a-z`, `0-9` and `-`, the first not a `-`",
            );
        }
        Some(zone)
    }

    fn engine(&mut self, written: &file::Machine, path: &Path) -> Option<Engine> {
        let engine = match written.engine? {
            file::Engine::Kvm => Engine::Kvm,
            file::Engine::Qemu => Engine::Qemu,
            file::Engine::Container => Engine::Container,
        };
        if engine == Engine::Container && written.kernel.is_some() {
            self.findings.error(
                &path.at("kernel"),
                "a container has the host's kernel",
                "remove `kernel`, or choose another `engine`",
            );
        }
        Some(engine)
    }

    fn interface(
        &mut self,
        name: &str,
        written: &file::Interface,
        defaults: &Defaults,
        at: (usize, usize),
        path: &Path,
    ) -> Interface {
        let (node, interface) = at;
        let mut addresses = Vec::new();
        for (index, text) in written.addresses.iter().enumerate() {
            let path = path.at("addresses").at(index);
            if let Some(address) = self.host_address(text, &path) {
                addresses.push(address);
                self.out.addresses.push(PlacedAddress {
                    node,
                    interface,
                    address,
                    path,
                });
            }
        }
        let mtu = self.mtu(written.mtu, path).unwrap_or(defaults.mtu);
        if mtu < IPV6_MTU && addresses.iter().any(|address| address.address.is_ipv6()) {
            self.findings.error(
                &path.at("mtu"),
                format!("IPv6 does not work with an MTU of {mtu}"),
                format!("take at least {IPV6_MTU}, or remove the IPv6 addresses"),
            );
        }
        let mac = written.mac.as_deref().and_then(|text| {
            let path = path.at("mac");
            let mac = self.mac(text, &path)?;
            self.macs.push((node, interface, path));
            Some(mac)
        });
        let lock = match written.lock {
            Some(file::Lock::Address) => Lock::Address,
            Some(file::Lock::Mac) => Lock::Mac,
            Some(file::Lock::None) | None => Lock::None,
        };
        if lock == Lock::Address && addresses.is_empty() {
            self.findings.error(
                &path.at("lock"),
                "an interface without `addresses` has none to be locked to",
                "add `addresses`, or take `mac`",
            );
        }
        Interface {
            name: name.to_owned(),
            mac: mac.unwrap_or(UNSET),
            mtu,
            addresses,
            queue_size: self
                .queue_size(written.queue_size, path)
                .unwrap_or(defaults.queue_size),
            offloads: written.offloads.unwrap_or(true),
            lock,
            device: None,
        }
    }

    /// An interface that only a link mentions.
    pub(super) fn create_interface(&mut self, name: &str, path: &Path) -> Interface {
        self.interface_name(name, path);
        let defaults = &self.lab.defaults.machine;
        let or = |value: Option<u64>, otherwise| {
            value
                .and_then(|value| u16::try_from(value).ok())
                .unwrap_or(otherwise)
        };
        Interface {
            name: name.to_owned(),
            mac: UNSET,
            // Out-of-range defaults were reported already.
            mtu: or(defaults.mtu, 1500),
            addresses: Vec::new(),
            queue_size: or(defaults.queue_size, 1024),
            offloads: true,
            lock: Lock::None,
            device: None,
        }
    }

    fn interface_name(&mut self, name: &str, path: &Path) {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if RESERVED.contains(&name) {
            self.findings.key_error(
                path,
                format!("`{name}` is reserved by the kernel"),
                "name the interface for example `eth0`",
            );
        } else if name.is_empty() || name.len() > 15 || !name.chars().all(plain) {
            self.findings.key_error(
                path,
                format!("`{name}` cannot be the name of an interface"),
                "1 to 15 letters, digits, `-` and `_`",
            );
        }
    }

    fn host_address(&mut self, text: &str, path: &Path) -> Option<Cidr> {
        let cidr: Cidr = match text.parse() {
            Ok(cidr) => cidr,
            Err(lines) => {
                self.findings.error_lines(path, &lines);
                return None;
            }
        };
        let address = cidr.address;
        let what = match address {
            _ if address.is_unspecified() => "the unspecified address",
            _ if address.is_loopback() => "a loopback address",
            _ if address.is_multicast() => "a multicast address",
            IpAddr::V4(v4) if v4.is_broadcast() || v4.octets()[0] >= 240 => "a reserved address",
            IpAddr::V4(v4) if cidr.broadcast() == Some(v4) => {
                "the broadcast address of its network"
            }
            IpAddr::V4(_) if cidr.prefix <= 30 && cidr.network() == cidr => {
                "the address of the network itself"
            }
            IpAddr::V6(_) if cidr.prefix <= 126 && cidr.network() == cidr => {
                "the address of all routers of its network (RFC 4291 §2.6.1)"
            }
            _ => return Some(cidr),
        };
        self.findings.error(
            path,
            format!("`{text}` is {what}"),
            "give the interface an address of its own",
        );
        None
    }

    fn mac(&mut self, text: &str, path: &Path) -> Option<MacAddr> {
        const RIGHT: &str = "write six pairs of hexadecimal digits, as in \"02:00:00:00:00:01\"";
        let mac: MacAddr = match text.parse() {
            Ok(mac) => mac,
            Err(message) => {
                self.findings.error(path, message, RIGHT);
                return None;
            }
        };
        let problem = if mac.is_multicast() {
            "a multicast address: the lowest bit of its first byte is set"
        } else if mac == UNSET {
            "no address"
        } else {
            return Some(mac);
        };
        self.findings
            .error(path, format!("`{text}` is {problem}"), RIGHT);
        None
    }

    fn route(&mut self, written: &file::Route, path: &Path) -> Option<Route> {
        let via = match &written.via {
            None => None,
            Some(text) => {
                let Ok(address) = text.parse::<IpAddr>() else {
                    self.findings.error(
                        &path.at("via"),
                        format!("`{text}` is not an IP address"),
                        "write the next hop as in \"10.0.0.1\", without a prefix length",
                    );
                    return None;
                };
                Some(address)
            }
        };
        if via.is_none() && written.dev.is_none() && !self.findings.document.lost_any(path) {
            self.findings.error(
                path,
                "the route leads nowhere",
                "give it `via` (the next hop), `dev` (the interface) or both",
            );
        }
        let metric = written.metric.and_then(|metric| {
            self.findings
                .ranged(&path.at("metric"), metric, &(0..=u64::from(u32::MAX)))
        });
        let to = match (written.to.as_str(), via) {
            ("default", Some(IpAddr::V6(_))) => "::/0",
            ("default", _) => "0.0.0.0/0",
            (text, _) => text,
        };
        let to: Cidr = match to.parse() {
            Ok(to) => to,
            Err(lines) => {
                self.findings.error_lines(&path.at("to"), &lines);
                return None;
            }
        };
        if to.network() != to {
            self.findings.error(
                &path.at("to"),
                format!("`{to}` is an address in a network, not a network"),
                format!("write \"{}\"", to.network()),
            );
        }
        if via.is_some_and(|via| via.is_ipv4() != to.address.is_ipv4()) {
            self.findings.error(
                &path.at("via"),
                "destination and next hop are of different IP versions",
                "write both as IPv4 or both as IPv6",
            );
        }
        Some(Route {
            to,
            via,
            dev: written.dev.clone(),
            metric: metric.map(|metric| metric as u32),
        })
    }

    fn memory(&mut self, written: Option<Size>, path: &Path) -> Option<u64> {
        let path = path.at("memory");
        let range = Size(32 * MIB)..=Size((1 << 20) * MIB);
        let Size(bytes) = self.findings.ranged(&path, written?, &range)?;
        if bytes % (2 * MIB) != 0 {
            let near = Size(bytes.next_multiple_of(2 * MIB));
            self.findings.error(
                &path,
                format!("`memory` is {}, not a multiple of 2MiB", Size(bytes)),
                format!("write \"{near}\""),
            );
        }
        Some(bytes)
    }

    fn vcpus(&mut self, written: Option<u64>, path: &Path) -> Option<u8> {
        self.findings
            .ranged(&path.at("vcpus"), written?, &(1..=32))
            .map(|vcpus| vcpus as u8)
    }

    fn mtu(&mut self, written: Option<u64>, path: &Path) -> Option<u16> {
        self.findings
            .ranged(&path.at("mtu"), written?, &(68..=65535))
            .map(|mtu| mtu as u16)
    }

    fn queue_size(&mut self, written: Option<u64>, path: &Path) -> Option<u16> {
        let path = path.at("queue-size");
        let size = self.findings.ranged(&path, written?, &(64..=32768))?;
        if !size.is_power_of_two() {
            self.findings.error(
                &path,
                format!("`queue-size` is {size}, not a power of two"),
                format!("write {}", size.next_power_of_two()),
            );
        }
        Some(size as u16)
    }

    fn optional_path(&mut self, written: Option<&str>, path: &Path) -> Option<PathBuf> {
        written.and_then(|text| self.folder.absolute(text, path, &mut self.findings))
    }

    fn sysctls(
        &mut self,
        role: Role,
        written: &file::Machine,
        path: &Path,
    ) -> Vec<(String, String)> {
        let mut sysctls = Vec::new();
        if role == Role::Router {
            // First, so that the file can say otherwise.
            for name in ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"] {
                sysctls.push((name.to_owned(), "1".to_owned()));
            }
        }
        for (name, value) in &written.sysctls {
            let path = path.at("sysctls").at(name.as_str());
            let plain = |part: &str| {
                !part.is_empty()
                    && part
                        .chars()
                        .all(|c| c.is_ascii_alphanumeric() || "_-/".contains(c))
            };
            if !name.split('.').all(plain) || !name.contains('.') {
                self.findings.key_error(
                    &path,
                    format!("`{name}` is not the name of a kernel setting"),
                    "write it with dots, as in `net.ipv4.tcp_congestion_control`",
                );
            }
            let value = match value {
                file::Scalar::Text(text) => text.clone(),
                file::Scalar::Number(number) => number.to_string(),
            };
            sysctls.push((name.clone(), value));
        }
        sysctls
    }

    fn files(&mut self, written: &file::Machine, path: &Path) -> Vec<File> {
        let mut files = Vec::new();
        for (name, file) in &written.files {
            let path = path.at("files").at(name.as_str());
            if !name.starts_with('/') || name.ends_with('/') || name.contains('\0') {
                self.findings.key_error(
                    &path,
                    format!("`{name}` is not the absolute path of a file"),
                    format!("write for example \"/{}\"", name.trim_matches('/')),
                );
            }
            let (content, mode) = match file {
                file::File::Text(text) => (Some(text.clone()), None),
                file::File::Detailed(details) => (
                    self.file_content(details, &path),
                    details
                        .mode
                        .as_deref()
                        .and_then(|mode| self.mode(mode, &path.at("mode"))),
                ),
            };
            files.push(File {
                path: name.clone(),
                content: content.unwrap_or_default(),
                mode: mode.unwrap_or(0o644),
            });
        }
        files
    }

    fn file_content(&mut self, details: &file::FileDetails, path: &Path) -> Option<String> {
        match (&details.content, &details.from) {
            (Some(content), None) => Some(content.clone()),
            (None, Some(from)) => self.folder.read(from, &path.at("from"), &mut self.findings),
            (None, None) if self.findings.document.lost_any(path) => None,
            _ => {
                self.findings.error(
                    path,
                    "the file needs exactly one of `content` and `from`",
                    "`content` is its text, `from` the file of the host to copy",
                );
                None
            }
        }
    }

    fn mode(&mut self, text: &str, path: &Path) -> Option<u32> {
        let octal = !text.is_empty() && text.chars().all(|c| matches!(c, '0'..='7'));
        let mode = u32::from_str_radix(text, 8)
            .ok()
            .filter(|mode| octal && *mode <= 0o7777);
        if mode.is_none() {
            self.findings.error(
                path,
                format!("`{text}` is not a file mode"),
                "write it in octal, as in \"0644\"",
            );
        }
        mode
    }

    fn commands(&mut self, written: &[String], path: &Path) -> Vec<String> {
        for (index, command) in written.iter().enumerate() {
            self.command(command, &path.at(index));
        }
        written.to_vec()
    }

    pub(super) fn command(&mut self, command: &str, path: &Path) {
        if command.trim().is_empty() || command.contains('\0') {
            self.findings
                .error(path, "the command is empty", "write a shell command");
        }
    }

    fn labels(&mut self, written: &file::Machine, path: &Path) -> BTreeMap<String, String> {
        for (key, value) in &written.labels {
            let path = path.at("labels").at(key.as_str());
            let plain = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
            if key.is_empty() || key.len() > 63 || key.starts_with('-') || !key.chars().all(plain) {
                self.findings.key_error(
                    &path,
                    format!("`{key}` cannot be a label"),
                    "1 to 63 letters, digits, `-`, `_`, `.` and `/`, the first not a `-`",
                );
            }
            if value.chars().count() > 200 || value.contains(char::is_control) {
                self.findings.error(
                    &path,
                    format!("the value of `{key}` cannot be that of a label"),
                    "at most 200 characters on one line",
                );
            }
        }
        let labels = written.labels.iter();
        labels
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect()
    }

    fn save(&mut self, written: &file::Machine, path: &Path) -> Vec<String> {
        for (index, name) in written.save.iter().enumerate() {
            let path = path.at("save").at(index);
            let mut parts = name.split('/').skip(1);
            let odd = |part: &str| matches!(part, "" | "." | "..");
            if !name.starts_with('/') || name.contains('\0') || parts.any(odd) {
                self.findings.error(
                    &path,
                    format!("`{name}` is not the absolute path of a file or folder"),
                    "write it from `/` on, without `.` and `..`",
                );
            } else if written.save[..index].contains(name) {
                self.findings
                    .error(&path, format!("`{name}` is named twice"), "once is enough");
            }
        }
        written.save.clone()
    }

    /// What can be said only when the links have created their interfaces.
    pub(super) fn finish_machines(&mut self) {
        let nodes = Path::of("nodes");
        for node in &self.out.topology.nodes {
            let NodeKind::Machine(machine) = &node.kind else {
                continue;
            };
            if machine.interfaces.len() > MAX_INTERFACES {
                self.findings.key_error(
                    &nodes.at(node.name.as_str()),
                    format!(
                        "`{}` has {} interfaces",
                        node.name,
                        machine.interfaces.len()
                    ),
                    format!("a machine has room for {MAX_INTERFACES}"),
                );
            }
        }
        self.check_macs();
        self.derive_macs();
    }

    fn check_macs(&mut self) {
        let macs = std::mem::take(&mut self.macs);
        let mut seen: Vec<(MacAddr, String)> = Vec::new();
        for (node, interface, path) in &macs {
            let NodeKind::Machine(machine) = &self.out.topology.nodes[*node].kind else {
                continue;
            };
            let mac = machine.interfaces[*interface].mac;
            if let Some((_, owner)) = seen.iter().find(|(other, _)| *other == mac) {
                self.findings.error(
                    path,
                    format!("`{mac}` is the MAC address of {owner} already"),
                    "leave `mac` out: each interface gets one of its own",
                );
            } else {
                let name = &self.out.topology.nodes[*node].name;
                seen.push((
                    mac,
                    format!("{name}:{}", machine.interfaces[*interface].name),
                ));
            }
        }
    }

    /// From the names alone, so that a node keeps its addresses from run to run.
    fn derive_macs(&mut self) {
        let lab = self.out.topology.name.clone();
        let mut taken = std::collections::HashSet::new();
        for node in &self.out.topology.nodes {
            if let NodeKind::Machine(machine) = &node.kind {
                taken.extend(machine.interfaces.iter().map(|interface| interface.mac));
            }
        }
        for node in &mut self.out.topology.nodes {
            let NodeKind::Machine(machine) = &mut node.kind else {
                continue;
            };
            for interface in &mut machine.interfaces {
                if interface.mac != UNSET {
                    continue;
                }
                // Every round hashes differently; a free one of 2^40 is soon found.
                for round in 0u32.. {
                    let mac = derived_mac(&lab, &node.name, &interface.name, round);
                    if taken.insert(mac) {
                        interface.mac = mac;
                        break;
                    }
                }
            }
        }
    }
}

/// Stands for an interface that has no address yet.
const UNSET: MacAddr = MacAddr([0; 6]);

/// Locally administered and unicast: `02` and 40 bits of a hash.
fn derived_mac(lab: &str, node: &str, interface: &str, round: u32) -> MacAddr {
    // FNV is the same on every machine and in every version, unlike the standard library's hasher.
    let mut hasher = fnv::FnvHasher::default();
    for part in [lab, node, interface] {
        hasher.write(part.as_bytes());
        hasher.write(&[0]);
    }
    hasher.write(&round.to_le_bytes());
    let hash = hasher.finish();
    let mut mac = [0x02; 6];
    mac[1..].copy_from_slice(&(hash ^ hash >> 40).to_le_bytes()[..5]);
    MacAddr(mac)
}

fn end_policy(written: &file::On) -> EndPolicy {
    let action = |written: Option<file::Action>, default| match written {
        None => default,
        Some(file::Action::End) => EndAction::End,
        Some(file::Action::Restart) => EndAction::Restart,
        Some(file::Action::EndLab) => EndAction::EndLab,
    };
    let default = EndPolicy::default();
    EndPolicy {
        power_off: action(written.power_off, default.power_off),
        reboot: action(written.reboot, default.reboot),
        panic: action(written.panic, default.panic),
        triple_fault: action(written.triple_fault, default.triple_fault),
        crash: action(written.crash, default.crash),
    }
}
