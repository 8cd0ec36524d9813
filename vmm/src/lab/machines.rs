//! From the topology to what each machine of a lab is.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use monitor::{NicConfig, NodeConfig};
use topology::model::{self, Device, Topology};
use topology::zones::{COMMON, Zones};

use super::links::Wiring;
use super::orders::{Orders, Roster};
use super::run_folder::LabPaths;
use super::{Plan, describe, node};
use crate::engine::Engines;
use crate::failure::{Code, Failure};
use crate::image::Image;

/// Refuses paths that are too long for a socket.
pub fn check_socket_paths(topology: &Topology, paths: &LabPaths) -> Result<(), Failure> {
    let zones = Zones::of(topology);
    let mut sockets = vec![paths.control()];
    sockets.extend(zones.names().iter().map(|zone| paths.vswitch(zone)));
    for (index, node) in topology.nodes.iter().enumerate() {
        let Some(machine) = node.machine() else {
            continue;
        };
        sockets.push(paths.agent(&node.name));
        let interfaces = machine.interfaces.iter();
        sockets.extend(interfaces.map(|i| paths.port(zones.zone(index), &node.name, &i.name)));
    }
    LabPaths::check_socket_lengths(sockets)
}

/// The machines of a topology.
pub fn each_machine(topology: &Topology) -> impl Iterator<Item = (&model::Node, &model::Machine)> {
    let nodes = topology.nodes.iter();
    nodes.filter_map(|node| Some((node, node.machine()?)))
}

/// The machines, and who gives them orders.
pub fn machines(
    plan: &Plan,
    paths: &LabPaths,
    wiring: &Wiring,
) -> Result<(Vec<node::Machine>, Roster), Failure> {
    let mut machines = Vec::new();
    let roster = Roster::default();
    for node in &plan.topology.nodes {
        let image = plan.image.as_ref();
        let Some(spec) = spec(&plan.topology, node, image, paths, wiring, &plan.engines)? else {
            continue;
        };
        let (orders, receiver) = Orders::new();
        roster.enter(&node.name, orders);
        machines.push(node::Machine {
            spec,
            orders: receiver,
            optional: false,
            begin: node::Begin::Boot,
        });
    }
    Ok((machines, roster))
}

/// What a node of `topology` is, if it is a machine.
pub fn spec(
    topology: &Topology,
    node: &model::Node,
    image: Option<&Image>,
    paths: &LabPaths,
    wiring: &Wiring,
    engines: &Engines,
) -> Result<Option<node::Spec>, Failure> {
    let (Some(machine), Some(carriers)) = (node.machine(), wiring.carriers(&node.name)) else {
        return Ok(None);
    };
    let zone = wiring.zone(&node.name).unwrap_or(COMMON);
    let nics = machine.interfaces.iter().map(|interface| NicConfig {
        socket: paths.port(zone, &node.name, &interface.name),
        mac: interface.mac.to_string(),
        mtu: interface.mtu,
        queue_size: interface.queue_size,
        carrier: true,
    });
    let (kernel, rootfs) = (image.map(|i| &i.kernel), image.map(|i| &i.rootfs));
    let after = machine.after.iter();
    let after = after.map(|other| topology.nodes[*other].name.clone());
    let ready_timeout = machine.ready.as_ref().map(|ready| ready.timeout);
    Ok(Some(node::Spec {
        engine: engines.of(machine).clone(),
        config: NodeConfig {
            name: node.name.clone(),
            kernel: file_of(&node.name, machine.kernel.as_ref(), kernel)?,
            rootfs: file_of(&node.name, machine.rootfs.as_ref(), rootfs)?,
            memory: machine.memory,
            vcpus: machine.vcpus,
            nics: nics.collect(),
            agent_socket: paths.agent(&node.name),
            serial_log: paths.serial(&node.name),
            cmdline: None,
        },
        ports: paths.node_ports(zone, &node.name),
        configure: describe::configure(topology, &node.name, machine)?,
        policy: machine.on,
        limits: machine.limits.clone(),
        after: after.collect(),
        ready_timeout: ready_timeout.unwrap_or(Duration::ZERO),
        carriers,
    }))
}

/// The devices of interfaces, by interface as the switch names it.
pub fn devices(topology: &Topology) -> BTreeMap<String, Device> {
    let devices = each_machine(topology).flat_map(|(node, machine)| {
        machine.interfaces.iter().filter_map(|interface| {
            let name = format!("{}.{}", node.name, interface.name);
            Some((name, interface.device.clone()?))
        })
    });
    devices.collect()
}

/// A node's own kernel or root, else the image's.
fn file_of(node: &str, own: Option<&PathBuf>, image: Option<&PathBuf>) -> Result<PathBuf, Failure> {
    match (own, image) {
        (Some(own), _) => match crate::image::readable(own) {
            Ok(()) => Ok(own.clone()),
            Err(error) => {
                let message = format!("node {node} cannot use {}: {error}", own.display());
                Err(Failure::new(Code::Host, message))
            }
        },
        (None, Some(image)) => Ok(image.clone()),
        (None, None) => Err(Failure::new(
            Code::Host,
            format!("node {node} needs the guest image"),
        )),
    }
}

/// Whether any machine needs the lab's image.
pub fn needs_image(topology: &Topology) -> bool {
    each_machine(topology).any(|(_, machine)| machine.kernel.is_none() || machine.rootfs.is_none())
}
