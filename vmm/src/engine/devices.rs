//! Network devices of the host, by which interfaces are reached that do not hand their rings to the switch.

use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, open};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use topology::model::{self, Completion, Device, DeviceKind, Fabric, NodeKind, Topology};
use topology::zones::Zones;

use super::{Engine, Engines};
use crate::api::types::EngineName;
use crate::failure::{Code, Failure};
use crate::lab::run_folder::LabPaths;

/// Programs of iproute2 with which the kernel is told of its fabric.
const PROGRAMS: [&str; 3] = ["ip", "tc", "bridge"];

/// Refuses what cannot be on the kernel's fabric.
pub fn check(topology: &Topology, engines: &Engines) -> Result<(), Failure> {
    if topology.fabric == Fabric::Vswitch {
        return Ok(());
    }
    let refuse = |code, what: String, help: &str| {
        Err(Failure::new(code, format!("the kernel's fabric: {what}")).help(help))
    };
    for node in &topology.nodes {
        let Some(machine) = node.machine() else {
            continue;
        };
        if matches!(engines.of(machine), Engine::Kvm) {
            return refuse(
                Code::Topology,
                format!(
                    "node {} is run by engine kvm, whose interfaces are those of Hopyard's switch only",
                    node.name
                ),
                "use --engine qemu or container for comparison, or --fabric vswitch",
            );
        }
    }
    let nic = |link: &&model::Link| link.completion == Completion::Nic;
    if let Some(link) = topology.links.iter().find(nic) {
        return refuse(
            Code::Topology,
            format!(
                "link {}: `completion: nic` is Hopyard's switch's only",
                link.name
            ),
            "leave `completion` out, or use --fabric vswitch",
        );
    }
    if !rustix::process::geteuid().is_root() {
        return refuse(
            Code::Host,
            "only root can make network namespaces and devices for others".to_owned(),
            "run the lab as root, or use --fabric vswitch, which needs no privileges",
        );
    }
    super::find_programs(&PROGRAMS).or_else(|program| {
        let what = format!("there is no program {program}");
        refuse(Code::Host, what, "install iproute2")
    })
}

/// Gives interfaces their devices, with names that are no other lab's; `paths` are the lab's. `default` is the engine of
/// machines that ask for none.
pub fn assign(topology: &mut Topology, default: EngineName, paths: &LabPaths) {
    let (fabric, zones) = (topology.fabric, Zones::of(topology));
    for (index, node) in topology.nodes.iter_mut().enumerate() {
        let NodeKind::Machine(machine) = &mut node.kind else {
            continue;
        };
        let engine = machine.engine.map_or(default, EngineName::from);
        let kind = match (fabric, engine) {
            (Fabric::Vswitch, EngineName::Container) | (Fabric::Kernel, EngineName::Qemu) => {
                Some(DeviceKind::Tap)
            }
            (Fabric::Kernel, EngineName::Container) => Some(DeviceKind::Veth),
            (Fabric::Vswitch, _) | (Fabric::Kernel, EngineName::Kvm) => None,
        };
        for interface in &mut machine.interfaces {
            let socket = paths.port(zones.zone(index), &node.name, &interface.name);
            let name = name(&socket.with_extension(""));
            interface.device = kind.map(|kind| Device { name, kind });
        }
    }
}

/// The name of the device of an interface whose socket would be `socket`, without its ending: `hy` and twelve digits (an interface's name
/// has 15 characters at most).
fn name(socket: &Path) -> String {
    let mut hash = DefaultHasher::new();
    socket.hash(&mut hash);
    format!("hy{:012x}", hash.finish() >> 16)
}

/// The device behind a NIC.
pub fn of(nic: &monitor::NicConfig) -> String {
    name(&nic.socket.with_extension(""))
}

/// Opens a TAP device in the network namespace of `pid`.
pub fn open_tap(device: &str, pid: u32) -> io::Result<OwnedFd> {
    // A thread of its own, as it stays in that namespace.
    std::thread::scope(|scope| {
        let work = scope.spawn(|| {
            let namespace = File::open(format!("/proc/{pid}/ns/net"))?;
            move_into_link_name_space(
                std::os::fd::AsFd::as_fd(&namespace),
                Some(LinkNameSpaceType::Network),
            )?;
            attach(device)
        });
        work.join()
            .unwrap_or_else(|_| Err(io::Error::other("a bug in vmm")))
    })
}

fn attach(device: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let tun = open("/dev/net/tun", flags, Mode::empty())?;
    // SAFETY: plain numbers and bytes; all of them zero are an `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero.
    let room = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name[..room].iter_mut().zip(device.bytes()) {
        *to = from.cast_signed();
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF takes a pointer to an `ifreq`, which lives until the call returns.
    let set = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) };
    if set == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(tun)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn devices(fabric: Fabric, engine: EngineName) -> Vec<Option<DeviceKind>> {
        let text = r#"{"nodes": {"a": {"kind": "host"}, "b": {"kind": "host", "engine": "container"}},
            "links": [{"endpoints": ["a:eth0", "b:eth0"]}]}"#;
        let mut topology = Topology::parse(text, Path::new("lab.json"))
            .unwrap()
            .topology;
        topology.fabric = fabric;
        assign(&mut topology, engine, &LabPaths::at("/run/lab".into()));
        let machines = topology.nodes.iter().filter_map(|node| node.machine());
        machines
            .map(|machine| Some(machine.interfaces[0].device.as_ref()?.kind))
            .collect()
    }

    #[test]
    fn interfaces_are_reached_as_fabric_and_engine_have_it() {
        let (tap, veth) = (Some(DeviceKind::Tap), Some(DeviceKind::Veth));
        assert_eq!(devices(Fabric::Vswitch, EngineName::Kvm), [None, tap]);
        assert_eq!(devices(Fabric::Kernel, EngineName::Qemu), [tap, veth]);
        assert_eq!(devices(Fabric::Kernel, EngineName::Container), [veth, veth]);
    }
}
