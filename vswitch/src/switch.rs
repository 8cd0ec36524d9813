//! The whole switch: sockets, control threads, shards.

mod change;

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::thread::{CpuSet, sched_getaffinity};
use thiserror::Error;
use topology::model::{Patch, Topology};
use tracing::warn;

use crate::attributes::Attributes;
use crate::capture::{FileRequest, Next, Registry, Request, Session, SessionError};
use crate::clock::Time;
use crate::config::{ConfigError, LinkChange, LinkPlan, NodePlan, Plan, PortPlan};
use crate::control::Fabric;
use crate::counters::ShardCounters;
use crate::event::{self, Event};
use crate::external::{Device, OpenError};
use crate::filters::Filters;
use crate::inventory::{External, Inventory, Link, Lost, Node};
use crate::l2;
use crate::link::Streams;
use crate::port::{Plug, Policy, Port, PortStatus, Role};
use crate::rewiring::Slots;
use crate::shard::{self, Gone, Handle, Message, Notice, Placement, Report, Watch, Watchdog};
use crate::socket::SocketError;
use crate::stats::{DirectionStats, ReadDirection, ShardStats, Stats};

use change::Changes;
pub use change::RewireError;

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
    /// How long ago schedules and traces began.
    pub elapsed: Duration,
    /// The system calls that its threads keep.
    pub filters: Filters,
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
    /// Ends last: no shard can be held up while its thread is waited for.
    _watchdog: Watchdog,
}

/// What can be seen of a running switch, and changed in it.
#[derive(Debug)]
pub struct View {
    name: String,
    inventory: RwLock<Arc<Inventory>>,
    /// Whoever changes anything, or has to find everything where it was, holds this meanwhile. Empty when the switch ends.
    changes: Mutex<Option<Changes>>,
    shards: Vec<Arc<ShardCounters>>,
    handles: Vec<Handle>,
    captures: Registry,
    filters: Filters,
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
            ports.push(new_port(port, &options.sockets, &mut folders)?);
        }
        let mut devices = Vec::with_capacity(plan.externals.len());
        let externals = plan.externals.into_iter().map(External::new);
        let externals: Vec<External> = externals.collect();
        for external in &externals {
            devices.push(open(external)?);
        }
        // Schedules and traces of all links begin in the same moment.
        let origin = Time::now() - options.elapsed;
        let links = plan.links.into_iter().zip(&topology.links);
        let links = links.map(|(plan, link)| Link {
            plan,
            attributes: Arc::new(Attributes::new(link, origin)),
        });
        let inventory = Inventory {
            ports,
            externals,
            links: links.collect(),
            nodes: plan.nodes.into_iter().map(Node::new).collect(),
        };
        let mut streams = Streams::new(topology.seed);
        streams.skip(2 * topology.links.len());
        let counters = plan.shards.iter().map(|s| Arc::clone(&s.counters));
        let mut view = View {
            name: plan.name,
            inventory: RwLock::new(Arc::new(inventory)),
            changes: Mutex::new(Some(Changes {
                topology: topology.clone(),
                streams,
                slots: plan.shards.iter().map(Slots::from).collect(),
                origin,
                sockets: options.sockets.clone(),
                folders,
                policy: options.policy,
                threads: HashMap::new(),
            })),
            shards: counters.collect(),
            handles: Vec::new(),
            captures: Registry::default(),
            filters: options.filters.clone(),
        };
        let mut threads = Vec::new();
        let (reports, incoming) = sync_channel(REPORTS);
        let watch = Watch::new(view.shards.iter().cloned());
        let watchdog = Watchdog::start(Arc::clone(&watch), options.filters.watchdog.clone())?;
        for (number, shard) in plan.shards.into_iter().enumerate() {
            let placement = Placement {
                cpu: options.cpus.iter().cycle().nth(number).copied(),
                confine: options.filters.shard.clone(),
            };
            let (reports, watch) = (reports.clone(), Arc::clone(&watch));
            let (handle, thread) = shard::spawn(
                number,
                shard,
                topology.timing,
                origin,
                placement,
                reports,
                watch,
            )?;
            view.handles.push(handle);
            threads.push(thread);
        }
        for (external, device) in view.inventory().externals.iter().zip(devices) {
            connect(external, device, &view.handles[external.plan.shard]);
        }
        // The reports end with the shards, also if nothing comes of the rest.
        drop(reports);
        let mut switch = Self {
            view: Arc::new(view),
            threads,
            _watchdog: watchdog,
        };
        let view = Arc::clone(&switch.view);
        let reporter = std::thread::Builder::new().name("reports".into());
        switch.threads.push(reporter.spawn(move || {
            view.filters.reports.this_thread();
            view.report(&incoming);
        })?);
        for capture in &options.captures {
            switch.capture(capture)?;
        }
        let inventory = switch.view.inventory();
        if let Some(changes) = &mut *switch.view.changes() {
            let spawn = |port: &Arc<Port>| switch.view.spawn(port, changes.policy);
            let waiting = inventory.ports.iter().map(spawn);
            let waiting = waiting.collect::<io::Result<Vec<_>>>()?;
            changes.let_go(waiting);
        }
        Ok(switch)
    }

    /// Starts a capture to a file that ends with the switch.
    fn capture(&mut self, FileRequest { file, request }: &FileRequest) -> Result<(), StartError> {
        let session = Session::start(&self.view, request)
            .map_err(|e| StartError::Capture(file.clone(), e))?;
        let out = File::create(file).map_err(|e| StartError::CaptureFile(file.clone(), e))?;
        let path = file.clone();
        let confine = self.view.filters.capture.clone();
        let thread = std::thread::Builder::new().name("capture".into());
        self.threads.push(thread.spawn(move || {
            confine.this_thread();
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
        // A change that is being made is made first, and none follows.
        let changes = self.view.changes().take();
        for port in &self.view.inventory().ports {
            port.close();
        }
        let mut folders = Vec::new();
        if let Some(changes) = changes {
            self.threads.extend(changes.threads.into_values());
            folders = changes.folders;
        }
        for shard in &self.view.handles {
            // A shard that has ended needs no message.
            let _ = shard.send(Message::Stop);
        }
        for thread in self.threads.drain(..) {
            // A panic has been reported by the thread itself.
            let _ = thread.join();
        }
        for folder in folders {
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
        let inventory = self.inventory();
        Stats {
            name: self.name.clone(),
            ports: inventory.port_stats(),
            externals: inventory.external_stats(),
            links: inventory.link_stats(now, direction),
            nodes: inventory.node_stats(),
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
        let (_changes, link) = self.find(link)?;
        self.set(&link, set)
    }

    /// Makes all attributes of a link what they were at the start. Its schedule goes on.
    pub fn reset(&self, link: &str) -> Result<(), ChangeError> {
        let (_changes, link) = self.find(link)?;
        let set = link.attributes.at_start();
        self.set(&link, &set)
    }

    fn set(&self, link: &Link, set: &[Patch; 2]) -> Result<(), ChangeError> {
        let Link { plan, attributes } = link;
        let change = LinkChange {
            lanes: plan.lanes,
            set: set.clone(),
        };
        attributes.set(set, Time::now(), || self.handles[plan.shard].change(change))?;
        Ok(())
    }

    /// A link, which stays what it is as long as the guard is held.
    fn find(&self, name: &str) -> Result<(MutexGuard<'_, Option<Changes>>, Link), ChangeError> {
        let changes = self.changes();
        let found = self.inventory().link(name).cloned();
        let link = found.ok_or_else(|| ChangeError::NoSuchLink(name.to_owned()))?;
        Ok((changes, link))
    }

    /// What there is now.
    fn inventory(&self) -> Arc<Inventory> {
        let inventory = self.inventory.read();
        Arc::clone(&inventory.unwrap_or_else(PoisonError::into_inner))
    }

    fn changes(&self) -> MutexGuard<'_, Option<Changes>> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its links, in the order of the topology; they stay what they are while `work` is done.
    pub(crate) fn with_links<T>(&self, work: impl FnOnce(&[LinkPlan]) -> T) -> T {
        let _changes = self.changes();
        let inventory = self.inventory();
        let links: Vec<_> = inventory.links.iter().map(|l| l.plan.clone()).collect();
        work(&links)
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
        let mut lost: Vec<Lost> = Vec::new();
        loop {
            let report = if lost.is_empty() {
                incoming.recv().map_err(|_| RecvTimeoutError::Disconnected)
            } else {
                incoming.recv_timeout(RETRY)
            };
            match report {
                Ok((shard, notice)) => lost.extend(self.tell(shard, notice)),
                Err(RecvTimeoutError::Timeout) => lost.retain(|node| !self.find_again(*node)),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Tells people of something; the external node that has lost its device.
    fn tell(&self, shard: usize, notice: Notice) -> Option<Lost> {
        let inventory = self.inventory();
        match notice {
            Notice::Stopped(stopped) => {
                let is_it =
                    |p: &&Arc<Port>| p.plan().shard == shard && p.plan().index == stopped.port;
                if let Some(port) = inventory.ports.iter().find(is_it) {
                    port.ring_stopped(stopped);
                }
                None
            }
            Notice::Bridge { bridge, notice } => {
                let is_it = |n: &&Node| n.plan.shard == shard && n.plan.index == bridge;
                if let Some(node) = inventory.nodes.iter().find(is_it) {
                    node.status.problem(&describe(&node.plan, notice));
                }
                None
            }
            Notice::Carrier { lane, up } => {
                let is_it = |l: &&Link| l.plan.shard == shard && l.plan.lanes.contains(&lane);
                if let Some(Link { plan, .. }) = inventory.links.iter().find(is_it) {
                    event::tell(&Event::Carrier {
                        link: &plan.name,
                        direction: usize::from(plan.lanes[1] == lane),
                        up,
                    });
                }
                None
            }
            Notice::Lost { external, error } => {
                let index = external;
                let External { plan, status } = inventory.external(Lost { shard, index })?;
                status.update(|status| {
                    status.connected = false;
                    (status.sending, status.receiving) = (false, false);
                });
                status.problem(&format!(
                    "{} is down or gone ({error}); it is taken again when it is back",
                    plan.external
                ));
                Some(Lost { shard, index })
            }
        }
    }

    /// Whether a device that was lost is there again and in use, or not needed any more.
    fn find_again(&self, lost: Lost) -> bool {
        // A change may give the node another device. It is not waited for: a shard it waits for may wait for this thread.
        let Ok(_changes) = self.changes.try_lock() else {
            return false;
        };
        let inventory = self.inventory();
        let Some(external) = inventory.external(lost) else {
            return true;
        };
        if external.status.read().connected {
            return true;
        }
        if !Device::is_back(&external.plan.external) {
            return false;
        }
        match Device::open(&external.plan.external) {
            Ok(device) => {
                connect(external, device, &self.handles[external.plan.shard]);
                true
            }
            Err(error) => {
                let note = |status: &mut PortStatus| status.last_error = Some(error.to_string());
                external.status.update(note);
                false
            }
        }
    }
}

impl Fabric for View {
    fn stats(&self) -> Stats {
        Self::stats(self)
    }

    fn brief(&self) -> Stats {
        Self::brief(self)
    }

    fn change(&self, link: &str, set: &[Patch; 2]) -> Result<(), String> {
        Self::change(self, link, set).map_err(|e| e.to_string())
    }

    fn reset(&self, link: &str) -> Result<(), String> {
        Self::reset(self, link).map_err(|e| e.to_string())
    }

    fn rewire(&self, topology: &Topology) -> Result<(), String> {
        Self::rewire(self, topology).map_err(|e| e.to_string())
    }

    fn capture(self: &Arc<Self>, request: &Request) -> Result<Session, String> {
        Session::start(self, request).map_err(|e| e.to_string())
    }
}

/// A port that meets its front-ends where `sockets` says; listens at once, if it is the one that does. Its folder, if it had to be made,
/// is added to `folders`.
fn new_port(
    plan: PortPlan,
    sockets: &Sockets,
    folders: &mut Vec<PathBuf>,
) -> Result<Arc<Port>, StartError> {
    let plug = sockets.plug(&plan.name);
    let plug = plug.ok_or_else(|| StartError::NoSocket(plan.name.clone()))?;
    if let (Sockets::Folder(_), Plug::Listen(path)) = (sockets, &plug) {
        folders.extend(make_folder_of(path)?);
    }
    let role = Role::new(&plug)?;
    Ok(Arc::new(Port::new(plan, role)))
}

/// Opens the device of an external node.
fn open(External { plan, .. }: &External) -> Result<Device, StartError> {
    Device::open(&plan.external).map_err(|error| {
        let node = plan.name.clone();
        StartError::External { node, error }
    })
}

/// Hands the device of an external node to its shard.
fn connect(External { plan, status }: &External, device: Device, shard: &Handle) {
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
