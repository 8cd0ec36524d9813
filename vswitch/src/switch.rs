//! The whole switch: sockets, control threads, shards.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::thread::{CpuSet, sched_getaffinity};
use thiserror::Error;
use topology::model::{Direction, Patch, Topology};
use tracing::warn;

use crate::attributes::Attributes;
use crate::capture::{FileRequest, Next, Registry, Session, SessionError};
use crate::clock::Time;
use crate::config::{ConfigError, ExternalPlan, LinkChange, LinkPlan, NodePlan, Plan};
use crate::counters::{DirectionCounters, ShardCounters};
use crate::event::{self, Event};
use crate::external::{Device, OpenError};
use crate::l2;
use crate::port::{Plug, Policy, Port, Role, Status, features};
use crate::shard::{self, Gone, Handle, Message, Notice, Report, Watch, Watchdog};
use crate::socket::SocketError;
use crate::stats::{
    DirectionStats, ExternalStats, LinkStats, NodeStats, PortStats, ShardStats, Stats,
};

/// How often a device that was lost is looked for.
const RETRY: Duration = Duration::from_millis(500);
/// Reports that may wait for the log.
const REPORTS: usize = 256;

/// What the one who starts a switch decides.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where the ports' sockets are.
    pub sockets: Sockets,
    /// Threads of the data path.
    pub shards: usize,
    /// The processors on which they run, in turn; wherever the system puts them if there are none.
    pub cpus: Vec<usize>,
    /// How front-ends are treated.
    pub policy: Policy,
    /// Captures to files that begin before the first front-end can connect.
    pub captures: Vec<FileRequest>,
}

/// Where the sockets of ports are.
#[derive(Debug, Clone)]
pub enum Sockets {
    /// In this folder, each as [`socket_path`] says.
    Folder(PathBuf),
    /// Each, by the name of the port, `node.interface`, as it is said.
    Each(Vec<(String, Plug)>),
}

impl Sockets {
    fn plug(&self, name: &str) -> Option<Plug> {
        match self {
            Self::Folder(folder) => Some(Plug::Listen(socket_path(folder, name))),
            Self::Each(all) => {
                let found = all.iter().find(|(port, _)| port == name);
                found.map(|(_, plug)| plug.clone())
            }
        }
    }
}

/// Why a switch cannot start.
#[derive(Debug, Error)]
pub enum StartError {
    /// The topology asks for what cannot be.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Nobody said where the socket of a port is to be.
    #[error("no socket is named for the interface {0}")]
    NoSocket(String),
    /// A socket is not to be had.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// A processor is not to be had.
    #[error(
        "the packet path cannot run on processor {0}: it is not there, or not for this process (see taskset)"
    )]
    Processor(usize),
    /// The outside world is not to be had.
    #[error("node {node}: {error}")]
    External {
        /// Which node leads there.
        node: String,
        /// Why not.
        #[source]
        error: OpenError,
    },
    /// The system has no more threads or descriptors.
    #[error("cannot start a thread of the switch: {0}")]
    Thread(#[from] io::Error),
    /// A capture cannot start.
    #[error("cannot capture to {}: {}", .0.display(), .1)]
    Capture(PathBuf, SessionError),
    /// A capture's file cannot be written.
    #[error("cannot write the capture {}: {}", .0.display(), .1)]
    CaptureFile(PathBuf, io::Error),
}

/// A running switch. It ends, and its sockets are removed, when it is dropped.
#[derive(Debug)]
pub struct Switch {
    view: Arc<View>,
    threads: Vec<JoinHandle<()>>,
    /// Those that were made for the sockets of ports.
    folders: Vec<PathBuf>,
    /// Ends last: no shard can be held up while its thread is waited for.
    _watchdog: Watchdog,
}

/// What can be seen of a running switch, and changed in it.
#[derive(Debug)]
pub struct View {
    name: String,
    ports: Vec<Arc<Port>>,
    externals: Vec<(ExternalPlan, Status)>,
    links: Vec<LinkPlan>,
    /// Of each of them.
    attributes: Vec<Attributes>,
    nodes: Vec<(NodePlan, Status)>,
    shards: Vec<Arc<ShardCounters>>,
    handles: Vec<Handle>,
    captures: Registry,
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
        let allowed = sched_getaffinity(None).map_err(io::Error::from)?;
        let is_allowed = |cpu: usize| cpu < CpuSet::MAX_CPU && allowed.is_set(cpu);
        if let Some(cpu) = options.cpus.iter().find(|cpu| !is_allowed(**cpu)) {
            return Err(StartError::Processor(*cpu));
        }
        let mut folders = Vec::new();
        let mut ports = Vec::with_capacity(plan.ports.len());
        for port in plan.ports {
            let plug = options.sockets.plug(&port.name);
            let plug = plug.ok_or_else(|| StartError::NoSocket(port.name.clone()))?;
            if let (Sockets::Folder(_), Plug::Listen(path)) = (&options.sockets, &plug) {
                folders.extend(make_folder_of(path)?);
            }
            let role = Role::new(&plug)?;
            ports.push(Arc::new(Port::new(port, role)));
        }
        let mut devices = Vec::with_capacity(plan.externals.len());
        for e in &plan.externals {
            devices.push(Device::open(&e.external).map_err(|error| {
                let node = e.name.clone();
                StartError::External { node, error }
            })?);
        }
        let externals = plan.externals.into_iter().map(|e| {
            let status = Status::new(e.name.clone());
            (e, status)
        });
        let nodes = plan.nodes.into_iter().map(|n| {
            let status = Status::new(n.name.clone());
            (n, status)
        });
        // Schedules and traces of all links begin in the same moment.
        let origin = Time::now();
        let links = topology.links.iter();
        let counters = plan.shards.iter().map(|s| Arc::clone(&s.counters));
        let mut view = View {
            name: plan.name,
            ports,
            externals: externals.collect(),
            links: plan.links,
            attributes: links.map(|link| Attributes::new(link, origin)).collect(),
            nodes: nodes.collect(),
            shards: counters.collect(),
            handles: Vec::new(),
            captures: Registry::default(),
        };
        let mut threads = Vec::new();
        let (reports, incoming) = sync_channel(REPORTS);
        let watch = Watch::new(view.shards.iter().cloned());
        let watchdog = Watchdog::start(Arc::clone(&watch))?;
        for (number, shard) in plan.shards.into_iter().enumerate() {
            let cpu = options.cpus.iter().cycle().nth(number).copied();
            let (reports, watch) = (reports.clone(), Arc::clone(&watch));
            let (handle, thread) =
                shard::spawn(number, shard, topology.timing, origin, cpu, reports, watch)?;
            view.handles.push(handle);
            threads.push(thread);
        }
        for ((plan, status), device) in view.externals.iter().zip(devices) {
            connect(plan, status, device, &view.handles[plan.shard]);
        }
        // The reports end with the shards, also if nothing comes of the rest.
        drop(reports);
        let mut switch = Self {
            view: Arc::new(view),
            threads,
            folders,
            _watchdog: watchdog,
        };
        let view = Arc::clone(&switch.view);
        let reporter = std::thread::Builder::new().name("reports".into());
        switch
            .threads
            .push(reporter.spawn(move || view.report(&incoming))?);
        for capture in &options.captures {
            switch.capture(capture)?;
        }
        for port in &switch.view.ports {
            let shard = switch.view.handles[port.plan().shard].clone();
            switch.threads.push(port.spawn(shard, options.policy)?);
        }
        Ok(switch)
    }

    /// Starts a capture to a file that ends with the switch.
    fn capture(&mut self, FileRequest { file, request }: &FileRequest) -> Result<(), StartError> {
        let session = Session::start(&self.view, request)
            .map_err(|e| StartError::Capture(file.clone(), e))?;
        let out = File::create(file).map_err(|e| StartError::CaptureFile(file.clone(), e))?;
        let path = file.clone();
        let thread = std::thread::Builder::new().name("capture".into());
        self.threads.push(thread.spawn(move || {
            let pause = |time| {
                std::thread::sleep(time);
                Next::Continue
            };
            if let Err(e) = session.run(out, pause) {
                warn!("the capture {} has ended: {e}", path.display());
            }
        })?);
        Ok(())
    }

    /// What can be seen of it.
    pub fn view(&self) -> Arc<View> {
        Arc::clone(&self.view)
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        self.view.captures.end();
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
        for folder in &self.folders {
            // Somebody may have put something else there.
            let _ = std::fs::remove_dir(folder);
        }
    }
}

impl View {
    /// All counters.
    pub fn stats(&self) -> Stats {
        self.read(DirectionStats::read)
    }

    /// All counters but lateness, which takes most of the time: for those who ask often.
    pub fn brief(&self) -> Stats {
        self.read(DirectionStats::brief)
    }

    fn read(&self, direction: ReadDirection) -> Stats {
        let now = Time::now();
        let links = self.links.iter().zip(&self.attributes);
        Stats {
            name: self.name.clone(),
            ports: self.ports.iter().map(|p| port_stats(p)).collect(),
            externals: self
                .externals
                .iter()
                .map(|(plan, status)| external_stats(plan, status))
                .collect(),
            links: links
                .map(|(link, attributes)| link_stats(link, &attributes.at(now), direction))
                .collect(),
            nodes: self
                .nodes
                .iter()
                .map(|(plan, status)| node_stats(plan, status))
                .collect(),
            shards: self
                .shards
                .iter()
                .map(|s| ShardStats::read(s, now))
                .collect(),
            captures: self.captures.running() as u64,
        }
    }

    /// Changes attributes of a link, all in one moment: first those from its first end to its second. Returns when it is done.
    pub fn change(&self, link: &str, set: &[Patch; 2]) -> Result<(), ChangeError> {
        let (link, attributes) = self.find(link)?;
        let change = LinkChange {
            lanes: link.lanes,
            set: set.clone(),
        };
        attributes.set(set, Time::now(), || self.handles[link.shard].change(change))?;
        Ok(())
    }

    /// Makes all attributes of a link what they were at the start. Its schedule goes on.
    pub fn reset(&self, link: &str) -> Result<(), ChangeError> {
        let set = self.find(link)?.1.at_start();
        self.change(link, &set)
    }

    fn find(&self, link: &str) -> Result<(&LinkPlan, &Attributes), ChangeError> {
        let mut links = self.links.iter().zip(&self.attributes);
        let found = links.find(|(plan, _)| plan.name == link);
        found.ok_or_else(|| ChangeError::NoSuchLink(link.to_owned()))
    }

    /// Its links, in the order of the topology.
    pub(crate) fn links(&self) -> &[LinkPlan] {
        &self.links
    }

    /// One of its shards.
    pub(crate) fn shard(&self, number: usize) -> &Handle {
        &self.handles[number]
    }

    /// Its captures.
    pub(crate) fn captures(&self) -> &Registry {
        &self.captures
    }

    /// Tells people of what happens and looks for lost devices until all shards have ended.
    fn report(&self, incoming: &Receiver<Report>) {
        let mut lost: Vec<usize> = Vec::new();
        loop {
            let report = if lost.is_empty() {
                incoming.recv().map_err(|_| RecvTimeoutError::Disconnected)
            } else {
                incoming.recv_timeout(RETRY)
            };
            match report {
                Ok((shard, notice)) => lost.extend(self.tell(shard, notice)),
                Err(RecvTimeoutError::Timeout) => lost.retain(|index| !self.find_again(*index)),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Tells people of something; the external node that has lost its device.
    fn tell(&self, shard: usize, notice: Notice) -> Option<usize> {
        match notice {
            Notice::Stopped(stopped) => {
                let is_it =
                    |p: &&Arc<Port>| p.plan().shard == shard && p.plan().index == stopped.port;
                if let Some(port) = self.ports.iter().find(is_it) {
                    port.ring_stopped(stopped);
                }
                None
            }
            Notice::Bridge { bridge, notice } => {
                let is_it = |(n, _): &&(NodePlan, Status)| n.shard == shard && n.index == bridge;
                if let Some((node, status)) = self.nodes.iter().find(is_it) {
                    status.problem(&describe(node, notice));
                }
                None
            }
            Notice::Carrier { lane, up } => {
                let is_it = |l: &&LinkPlan| l.shard == shard && l.lanes.contains(&lane);
                if let Some(link) = self.links.iter().find(is_it) {
                    event::tell(&Event::Carrier {
                        link: &link.name,
                        direction: usize::from(link.lanes[1] == lane),
                        up,
                    });
                }
                None
            }
            Notice::Lost { external, error } => {
                let is_it =
                    |(e, _): &(ExternalPlan, Status)| e.shard == shard && e.index == external;
                let index = self.externals.iter().position(is_it)?;
                let (plan, status) = &self.externals[index];
                status.update(|status| {
                    status.connected = false;
                    (status.sending, status.receiving) = (false, false);
                });
                status.problem(&format!(
                    "{} is down or gone ({error}); it is taken again when it is back",
                    plan.external
                ));
                Some(index)
            }
        }
    }

    /// Whether a device that was lost is there again and in use.
    fn find_again(&self, index: usize) -> bool {
        let (plan, status) = &self.externals[index];
        if !Device::is_back(&plan.external) {
            return false;
        }
        match Device::open(&plan.external) {
            Ok(device) => {
                connect(plan, status, device, &self.handles[plan.shard]);
                true
            }
            Err(error) => {
                status.update(|status| status.last_error = Some(error.to_string()));
                false
            }
        }
    }
}

/// Hands the device of an external node to its shard.
fn connect(plan: &ExternalPlan, status: &Status, device: Device, shard: &Handle) {
    status.update(|status| {
        status.connected = true;
        status.connections += 1;
        (status.sending, status.receiving) = (true, true);
    });
    if status.read().connections > 1 {
        tracing::info!("{}: {} is back", plan.name, plan.external);
    }
    let external = plan.index;
    let device = Box::new(device);
    // A shard that has ended needs none.
    let _ = shard.send(Message::AddExternal { external, device });
}

/// What is wrong around a layer-2 node, for people.
fn describe(node: &NodePlan, notice: l2::Notice) -> String {
    let port = |port: usize| node.ports.get(port).map_or("?", String::as_str);
    match notice {
        l2::Notice::Storm { port: from } => format!(
            "{} sends more to all than the `storm` limit of its port; the rest is dropped",
            port(from)
        ),
        l2::Notice::Flapping(l2::Flapping { mac, vlan, ports }) => {
            let mac = topology::net::MacAddr(mac);
            let vlan = match vlan {
                0 => String::new(),
                vlan => format!(" of VLAN {vlan}"),
            };
            let [from, to] = ports.map(port);
            format!(
                "the station {mac}{vlan} moves between its ports to {from} and {to} all the time: there is a loop behind them, or two stations have this address"
            )
        }
    }
}

/// Where the front-end of the interface `name` (`node.interface`) connects: each node has a folder of its own, so that its machine
/// need not see the sockets of others.
pub fn socket_path(folder: &Path, name: &str) -> PathBuf {
    let (node, interface) = name.split_once('.').unwrap_or(("", name));
    folder.join(node).join(format!("{interface}.sock"))
}

/// Makes the folder of a node's sockets, unless it is there.
fn make_folder_of(socket: &Path) -> Result<Option<PathBuf>, SocketError> {
    let Some(folder) = socket.parent() else {
        return Ok(None);
    };
    match std::fs::create_dir(folder) {
        Ok(()) => Ok(Some(folder.to_owned())),
        Err(_) if folder.is_dir() => Ok(None),
        Err(error) => Err(SocketError::Io(folder.to_owned(), error)),
    }
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

fn external_stats(plan: &ExternalPlan, status: &Status) -> ExternalStats {
    let status = status.read();
    ExternalStats {
        name: plan.name.clone(),
        leads_to: plan.external.to_string(),
        connected: status.connected,
        malformed: plan.counters.malformed.get(),
        unlinked: plan.counters.unlinked.get(),
        last_error: status.last_error,
    }
}

/// How much of the counters of a direction is read.
type ReadDirection = fn(&str, &str, &DirectionCounters) -> DirectionStats;

fn link_stats(link: &LinkPlan, attributes: &[Direction; 2], direction: ReadDirection) -> LinkStats {
    let [a, b] = &link.ends;
    let [there, back] = &link.directions;
    LinkStats {
        name: link.name.clone(),
        attributes: attributes.each_ref().map(Direction::written),
        directions: [direction(a, b, there), direction(b, a, back)],
    }
}

fn node_stats(node: &NodePlan, status: &Status) -> NodeStats {
    let c = &node.counters;
    NodeStats {
        name: node.name.clone(),
        kind: node.kind.to_owned(),
        frames: c.frames.get(),
        flooded: c.flooded.get(),
        filtered: c.filtered.get(),
        wrong_vlan: c.wrong_vlan.get(),
        storm: c.storm.get(),
        moved: c.moved.get(),
        looped: c.looped.get(),
        learnt: c.learnt.get(),
        last_error: status.read().last_error,
    }
}
