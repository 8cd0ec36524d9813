//! The whole switch: sockets, control threads, shards.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;

use thiserror::Error;
use topology::model::{Patch, Topology};

use crate::clock::Time;
use crate::config::{ConfigError, LinkChange, LinkPlan, NodePlan, Plan};
use crate::counters::ShardCounters;
use crate::port::{Policy, Port, features};
use crate::shard::{self, Gone, Handle, Message, Report};
use crate::socket::{Socket, SocketError};
use crate::stats::{DirectionStats, LinkStats, NodeStats, PortStats, ShardStats, Stats};

/// Reports of stopped rings that may wait for the log.
const REPORTS: usize = 256;

/// What the one who starts a switch decides.
#[derive(Debug, Clone)]
pub struct Options {
    /// The folder of the ports' sockets.
    pub sockets: PathBuf,
    /// Threads of the data path.
    pub shards: usize,
    /// How front-ends are treated.
    pub policy: Policy,
}

/// Why a switch cannot start.
#[derive(Debug, Error)]
pub enum StartError {
    /// The topology asks for what cannot be.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A socket is not to be had.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The system has no more threads or descriptors.
    #[error("cannot start a thread of the switch: {0}")]
    Thread(#[from] io::Error),
}

/// A running switch. It ends, and its sockets are removed, when it is dropped.
#[derive(Debug)]
pub struct Switch {
    view: Arc<View>,
    threads: Vec<JoinHandle<()>>,
}

/// What can be seen of a running switch, and changed in it.
#[derive(Debug)]
pub struct View {
    name: String,
    ports: Vec<Arc<Port>>,
    links: Vec<LinkPlan>,
    nodes: Vec<NodePlan>,
    shards: Vec<Arc<ShardCounters>>,
    handles: Vec<Handle>,
}

/// Why a link cannot be changed.
#[derive(Debug, Error)]
pub enum ChangeError {
    /// There is none of that name.
    #[error("there is no link `{0}`; `vswitch stats` lists them")]
    NoSuchLink(String),
    /// The switch is about to end.
    #[error(transparent)]
    Ending(#[from] Gone),
}

impl Switch {
    /// Listens on the socket of every machine interface and starts all threads.
    pub fn start(topology: &Topology, options: &Options) -> Result<Self, StartError> {
        let plan = Plan::new(topology, options.shards)?;
        let mut ports = Vec::with_capacity(plan.ports.len());
        for port in plan.ports {
            let socket = Socket::listen(&socket_path(&options.sockets, &port.name))?;
            ports.push(Arc::new(Port::new(port, socket)));
        }
        let counters = plan.shards.iter().map(|s| Arc::clone(&s.counters));
        let mut view = View {
            name: plan.name,
            ports,
            links: plan.links,
            nodes: plan.nodes,
            shards: counters.collect(),
            handles: Vec::new(),
        };
        let mut threads = Vec::new();
        let (reports, incoming) = sync_channel(REPORTS);
        // Schedules and traces of all links begin in the same moment.
        let origin = Time::now();
        for (number, shard) in plan.shards.into_iter().enumerate() {
            let (handle, thread) =
                shard::spawn(number, shard, topology.timing, origin, reports.clone())?;
            view.handles.push(handle);
            threads.push(thread);
        }
        let mut switch = Self {
            view: Arc::new(view),
            threads,
        };
        let view = Arc::clone(&switch.view);
        let reporter = std::thread::Builder::new().name("reports".into());
        switch
            .threads
            .push(reporter.spawn(move || view.report(&incoming))?);
        for port in &switch.view.ports {
            let shard = switch.view.handles[port.plan().shard].clone();
            switch.threads.push(port.spawn(shard, options.policy)?);
        }
        Ok(switch)
    }

    /// What can be seen of it.
    pub fn view(&self) -> Arc<View> {
        Arc::clone(&self.view)
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        for port in &self.view.ports {
            port.close();
        }
        for shard in &self.view.handles {
            // A shard that has ended needs no message.
            let _ = shard.send(Message::Stop);
        }
        for thread in self.threads.drain(..) {
            // A panic has been reported by the thread itself.
            let _ = thread.join();
        }
    }
}

impl View {
    /// All counters.
    pub fn stats(&self) -> Stats {
        Stats {
            name: self.name.clone(),
            ports: self.ports.iter().map(|p| port_stats(p)).collect(),
            links: self.links.iter().map(link_stats).collect(),
            nodes: self.nodes.iter().map(node_stats).collect(),
            shards: self.shards.iter().map(|s| shard_stats(s)).collect(),
        }
    }

    /// Changes attributes of a link, all in one moment: first those from its first end to its second. Returns when it is done.
    pub fn change(&self, link: &str, set: [Patch; 2]) -> Result<(), ChangeError> {
        let found = self.links.iter().find(|l| l.name == link);
        let link = found.ok_or_else(|| ChangeError::NoSuchLink(link.to_owned()))?;
        let lanes = link.lanes;
        self.handles[link.shard].change(LinkChange { lanes, set })?;
        Ok(())
    }

    /// Tells people of stopped rings until all shards have ended.
    fn report(&self, incoming: &Receiver<Report>) {
        while let Ok((shard, stopped)) = incoming.recv() {
            let is_it = |p: &&Arc<Port>| p.plan().shard == shard && p.plan().index == stopped.port;
            if let Some(port) = self.ports.iter().find(is_it) {
                port.ring_stopped(stopped);
            }
        }
    }
}

/// Where the front-end of the interface `name` (`node.interface`) connects.
pub fn socket_path(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.sock"))
}

fn port_stats(port: &Port) -> PortStats {
    let status = port.status();
    let counters = &port.plan().counters;
    PortStats {
        name: port.plan().name.clone(),
        connected: status.connected,
        connections: status.connections,
        features: features::names(status.features.unwrap_or(0))
            .into_iter()
            .map(str::to_owned)
            .collect(),
        receiving: status.receiving,
        sending: status.sending,
        malformed: counters.malformed.get(),
        unlinked: counters.unlinked.get(),
        violations: counters.violations.get(),
        last_error: status.last_error,
    }
}

fn link_stats(link: &LinkPlan) -> LinkStats {
    let [a, b] = &link.ends;
    let [there, back] = &link.directions;
    LinkStats {
        name: link.name.clone(),
        directions: [
            DirectionStats::read(a, b, there),
            DirectionStats::read(b, a, back),
        ],
    }
}

fn node_stats(node: &NodePlan) -> NodeStats {
    let c = &node.counters;
    NodeStats {
        name: node.name.clone(),
        kind: node.kind.to_owned(),
        frames: c.frames.get(),
        flooded: c.flooded.get(),
        filtered: c.filtered.get(),
        looped: c.looped.get(),
        learnt: c.learnt.get(),
    }
}

fn shard_stats(c: &ShardCounters) -> ShardStats {
    ShardStats {
        turns: c.turns.get(),
        busy_turns: c.busy_turns.get(),
        sleeps: c.sleeps.get(),
        pool_bytes: c.pool_bytes.get(),
    }
}
