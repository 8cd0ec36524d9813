//! Topologies and switches for tests.

use std::path::PathBuf;
use std::time::Duration;

use topology::model::{
    Change, Completion, Direction, EndPolicy, Endpoint, External, Fabric, Interface, Link, Lock,
    Machine, Node, NodeKind, Orphaned, Patch, Role, SwitchNode, Timing, Topology,
};
use topology::net::MacAddr;
use vswitch::filters::Filters;
use vswitch::port::Policy;
use vswitch::stats::{DirectionStats, PortStats, Stats};
use vswitch::switch::{Options, Sockets, Switch, socket_path};

/// Builds a topology: machines with interfaces `eth0`, … as links need them, switches, hubs.
#[derive(Default)]
pub struct Lab {
    nodes: Vec<Node>,
    links: Vec<Link>,
    ports: Vec<usize>,
    pub timing: Timing,
    seed: u64,
}

pub type NodeId = usize;

impl Lab {
    pub fn with_seed(seed: u64) -> Self {
        Self {
            seed,
            ..Self::default()
        }
    }

    fn node(&mut self, name: &str, kind: NodeKind) -> NodeId {
        self.nodes.push(Node {
            name: name.into(),
            kind,
        });
        self.ports.push(0);
        self.nodes.len() - 1
    }

    pub fn machine(&mut self, name: &str) -> NodeId {
        let machine = Machine {
            engine: None,
            zone: None,
            role: Role::Host,
            memory: 64 << 20,
            vcpus: 1,
            kernel: None,
            rootfs: None,
            interfaces: Vec::new(),
            routes: Vec::new(),
            sysctls: Vec::new(),
            files: Vec::new(),
            commands: Vec::new(),
            frr: None,
            ready: None,
            on: EndPolicy::default(),
            limits: topology::model::Limits::default(),
            after: Vec::new(),
            labels: std::collections::BTreeMap::new(),
            save: Vec::new(),
        };
        self.node(name, NodeKind::Machine(Box::new(machine)))
    }

    pub fn switch(&mut self, name: &str) -> NodeId {
        let attributes = SwitchNode {
            ageing: Duration::from_mins(5),
            table_limit: 64,
            forward_reserved: false,
            ports: Vec::new(),
        };
        self.switch_with(name, attributes)
    }

    pub fn switch_with(&mut self, name: &str, attributes: SwitchNode) -> NodeId {
        self.node(name, NodeKind::Switch(attributes))
    }

    pub fn external(&mut self, name: &str, external: External) -> NodeId {
        self.node(name, NodeKind::External(external))
    }

    pub fn hub(&mut self, name: &str) -> NodeId {
        self.node(name, NodeKind::Hub)
    }

    fn end(&mut self, node: NodeId) -> Endpoint {
        let port = self.ports[node];
        self.ports[node] += 1;
        if let NodeKind::Machine(m) = &mut self.nodes[node].kind {
            m.interfaces.push(Interface {
                device: None,
                name: format!("eth{port}"),
                mac: MacAddr([2, 0, 0, 0, node as u8, port as u8]),
                // Tests send frames of any length.
                mtu: u16::MAX,
                addresses: Vec::new(),
                queue_size: 256,
                offloads: true,
                lock: Lock::None,
            });
        }
        Endpoint { node, port }
    }

    /// An interface without a link.
    pub fn unlinked(&mut self, node: NodeId) {
        self.end(node);
    }

    pub fn link(&mut self, a: NodeId, b: NodeId, direction: &Direction, completion: Completion) {
        let ends = [self.end(a), self.end(b)];
        self.links.push(Link {
            name: format!("link{}", self.links.len()),
            ends,
            directions: [direction.clone(), direction.clone()],
            completion,
            schedule: Vec::new(),
        });
    }

    /// Changes the link made last.
    pub fn schedule(&mut self, at: Duration, set: [Patch; 2]) {
        let link = self.links.last_mut().unwrap();
        link.schedule.push(Change { at, set });
    }

    /// A link without shaping.
    pub fn wire(&mut self, a: NodeId, b: NodeId) {
        self.link(a, b, &Direction::default(), Completion::Network);
    }

    pub fn topology(self) -> Topology {
        Topology {
            name: "test".into(),
            description: None,
            seed: self.seed,
            timing: self.timing,
            fabric: Fabric::Vswitch,
            orphaned: Orphaned::End,
            nodes: self.nodes,
            links: self.links,
            node_faults: Vec::new(),
            checks: Vec::new(),
        }
    }

    /// Runs it.
    pub fn run(self) -> Running {
        self.run_with(Policy::default(), 1)
    }

    pub fn run_with(self, policy: Policy, shards: usize) -> Running {
        let dir = tempfile::tempdir().unwrap();
        let options = Options {
            elapsed: Duration::ZERO,
            sockets: Sockets::Folder(dir.path().to_owned()),
            shards,
            cpus: Vec::new(),
            policy,
            captures: Vec::new(),
            filters: Filters::default(),
        };
        let switch = Switch::start(&self.topology(), &options).unwrap();
        Running { switch, dir }
    }
}

/// Two machines `a` and `b` with one unshaped link.
pub fn pair() -> Lab {
    let mut lab = Lab::default();
    let (a, b) = (lab.machine("a"), lab.machine("b"));
    lab.wire(a, b);
    lab
}

/// A running switch with its sockets in a folder of its own.
pub struct Running {
    pub switch: Switch,
    pub dir: tempfile::TempDir,
}

impl Running {
    /// The socket of `node.interface`.
    pub fn socket(&self, name: &str) -> PathBuf {
        socket_path(self.dir.path(), name)
    }

    pub fn stats(&self) -> Stats {
        self.switch.view().stats()
    }

    pub fn port(&self, name: &str) -> PortStats {
        self.stats()
            .ports
            .into_iter()
            .find(|p| p.name == name)
            .unwrap()
    }

    /// The direction that leads from one end to another.
    pub fn direction(&self, from: &str, to: &str) -> DirectionStats {
        let all = self.stats().links.into_iter().flat_map(|l| l.directions);
        all.into_iter()
            .find(|d| d.from == from && d.to == to)
            .unwrap()
    }
}
