//! The lab process: starts the switch and the machines of a topology, watches them, and ends them.

pub mod agent;
pub mod children;
mod describe;
mod ground;
pub mod janitor;
pub mod links;
pub mod metrics;
mod node;
pub mod orders;
pub mod record;
pub mod report;
pub mod run_folder;
pub mod state;
mod switch;
pub mod usage;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, SystemTime};

use monitor::{NicConfig, NodeConfig};
use tokio::net::UnixListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};
use topology::model::{self, Check, NodeKind, Role, Topology};

use crate::api;
use crate::api::types::{
    BootTimes, Interface, IsolationLevel, Keep, Kind, Lab, Node, NodeState, Phase,
};
use crate::cgroup::LabGroup;
use crate::engine::auto::Choice;
use crate::engine::{Engine, qemu};
use crate::failure::{Code, Failure};
use crate::image::Image;
use crate::isolation::Isolation;
use janitor::{Janitor, SharedJanitor};
use links::Links;
use orders::Orders;
use run_folder::{LabPaths, LabRecord, RunFolder, RunRoot};
use state::State;
use switch::Switch;

/// How long a lab waits for the first client to follow its events.
const AUDIENCE: Duration = Duration::from_secs(5);
/// How long clients have to read the last event after all processes have ended.
const FAREWELL: Duration = Duration::from_millis(300);

/// All that is needed to launch a lab.
#[derive(Debug)]
pub struct Plan {
    /// The lab's name.
    pub name: String,
    /// The topology file; absolute.
    pub file: PathBuf,
    /// Its content.
    pub topology: Topology,
    /// The engine and why.
    pub choice: Choice,
    /// For machines that name no kernel or root of their own.
    pub image: Option<Image>,
    /// How long a machine may take until it is configured.
    pub boot_timeout: Duration,
    /// How many machines boot at the same time.
    pub boots_at_once: usize,
    /// How its processes are jailed.
    pub isolation: Isolation,
}

/// A lab that is about to run: its API listens, nothing else is started.
#[derive(Debug)]
pub struct Prepared {
    machines: Vec<node::Machine>,
    /// By node; nothing of what lives in the switch.
    orders: Vec<Option<Orders>>,
    links: Arc<Links>,
    checks: Arc<[Check]>,
    keep: Arc<[Keep]>,
    folder: RunFolder,
    switch: switch::Setup,
    listener: UnixListener,
    janitor: SharedJanitor,
    keeper: JoinHandle<()>,
    engine: Engine,
    boot_timeout: Duration,
    boots_at_once: usize,
    state: State,
    isolation: Isolation,
    group: Option<Arc<LabGroup>>,
}

/// What every machine of a lab shares.
#[derive(Debug, Clone)]
struct Context {
    state: State,
    engine: Engine,
    janitor: SharedJanitor,
    turns: Arc<Semaphore>,
    boot_timeout: Duration,
    isolation: Isolation,
    paths: LabPaths,
    /// If its machines have limits that take one, and it can be had.
    group: Option<Arc<LabGroup>>,
    /// Becomes true when the lab ends.
    stop: watch::Sender<bool>,
}

impl Context {
    fn janitor(&self) -> MutexGuard<'_, Janitor> {
        janitor::lock(&self.janitor)
    }
}

/// Checks the plan against this machine, takes the lab's folder and listens on its control socket.
pub fn prepare(plan: &Plan, root: &RunRoot) -> Result<Prepared, Failure> {
    let paths = root.lab(&plan.name);
    check_socket_paths(plan, &paths)?;
    let switch_program = switch::program()?;
    let links = Arc::new(Links::new(&plan.topology, paths.vswitch()));
    let (machines, orders) = machines(plan, &paths, &links)?;
    ground::check_processors(&plan.topology)?;
    let folder = root.create(&plan.name)?;
    let (group, limits_missing) = ground::make_group(plan);
    match set_up(plan, &folder, group.as_ref()) {
        Ok((janitor, keeper, listener)) => Ok(Prepared {
            machines,
            orders,
            links,
            checks: plan.topology.checks.clone().into(),
            keep: plan.topology.nodes.iter().map(keep).collect(),
            listener,
            janitor,
            keeper,
            engine: plan.choice.engine.clone(),
            boot_timeout: plan.boot_timeout,
            boots_at_once: plan.boots_at_once,
            state: State::new(view(plan, limits_missing)),
            isolation: plan.isolation.clone(),
            switch: switch::Setup {
                program: switch_program,
                topology: plan.file.clone(),
                namespaces: plan.isolation.of_switch(&plan.topology),
                jail: plan
                    .isolation
                    .switch_plan(&plan.topology, &folder.paths.ports()),
            },
            group: group.map(Arc::new),
            folder,
        }),
        Err(error) => {
            let message = format!("cannot set up {}: {error}", folder.paths.folder().display());
            let _ = folder.remove();
            Err(Failure::new(Code::Host, message)
                .help("free space there, or set HOPYARD_RUN to another folder"))
        }
    }
}

fn set_up(
    plan: &Plan,
    folder: &RunFolder,
    group: Option<&LabGroup>,
) -> std::io::Result<(SharedJanitor, JoinHandle<()>, UnixListener)> {
    // First, so that whoever removes the folder knows what else there is.
    folder.write_record(&LabRecord {
        pid: std::process::id(),
        file: plan.file.clone(),
        groups: group.map_or_else(Vec::new, |group| group.folders().to_vec()),
    })?;
    let (janitor, keeper) = janitor::start(folder)?;
    for node in &plan.topology.nodes {
        folder.create_node(&node.name)?;
    }
    // The folder is this user's alone, so the socket is as well before and after its mode is set.
    let listener = UnixListener::bind(folder.paths.control())?;
    rustix::fs::chmod(
        folder.paths.control(),
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
    )?;
    Ok((janitor, tokio::spawn(keeper), listener))
}

impl Prepared {
    /// The paths of the lab.
    pub fn paths(&self) -> &LabPaths {
        &self.folder.paths
    }

    /// Why limits of the topology are not enforced, if so.
    pub fn limits_missing(&self) -> Option<String> {
        self.state.lab().limits_missing
    }

    /// Runs the lab to its end. An error is why it ended, if nobody wished it to.
    pub async fn run(self, mut signals: EndSignals) -> Result<(), Failure> {
        let context = Context {
            state: self.state.clone(),
            engine: self.engine,
            janitor: self.janitor,
            turns: Arc::new(Semaphore::new(self.boots_at_once)),
            boot_timeout: self.boot_timeout,
            isolation: self.isolation,
            paths: self.folder.paths.clone(),
            group: self.group,
            stop: watch::Sender::new(false),
        };
        let api = api::Api {
            state: self.state.clone(),
            paths: self.folder.paths.clone(),
            links: self.links.clone(),
            captures: api::Captures::default(),
            checks: self.checks,
            keep: self.keep,
            orders: self.orders.into(),
            record: Arc::default(),
        };
        tokio::spawn(record::keep(
            api.record.clone(),
            self.links.clone(),
            self.state.clone(),
        ));
        let server = tokio::spawn(api::serve(self.listener, api));
        // Whoever launches the lab is to see all of it, even a failure at once.
        let _ = tokio::time::timeout(AUDIENCE, self.state.subscribed()).await;
        let result = operate(
            &context,
            &mut signals,
            self.machines,
            &self.links,
            &self.switch,
            &self.folder.paths,
        )
        .await;
        context.state.ended();
        let _ = tokio::time::timeout(FAREWELL, server).await;
        let path = self.folder.paths.folder().to_path_buf();
        if let Err(error) = self.folder.remove() {
            eprintln!("warning: cannot remove {}: {error}", path.display());
        }
        context.janitor().dismiss();
        let _ = self.keeper.await;
        result
    }
}

/// Runs switch and machines until the lab is to end; none of them is left when it returns.
async fn operate(
    context: &Context,
    signals: &mut EndSignals,
    machines: Vec<node::Machine>,
    links: &Arc<Links>,
    setup: &switch::Setup,
    paths: &LabPaths,
) -> Result<(), Failure> {
    let links = links.clone();
    let state = context.state.clone();
    let hear = move |news| {
        if let Some(change) = links.hear(&news) {
            state.tell(change);
        }
    };
    let (mut switch, ready) = match Switch::start(setup, paths, hear) {
        Ok(switch) => switch,
        Err(failure) => {
            context.state.ending(Some(failure.message.clone()));
            return Err(failure);
        }
    };
    context.janitor().watch(switch.pid);
    context.state.set_switch(Some(switch.pid));
    let mut running = JoinSet::new();
    let asked = context.state.stop_asked();
    let result = {
        let work = async {
            ready.wait().await?;
            start(context, machines, &mut running);
            supervise(&mut running).await
        };
        tokio::select! {
            biased;
            () = asked => Ok(()),
            () = signals.come() => Ok(()),
            failed = switch.failed() => Err(Failure::new(Code::Lab, failed)),
            result = work => result,
        }
    };
    context
        .state
        .ending(result.as_ref().err().map(|failure| failure.message.clone()));
    // Guests are killed, not switched off: their root is read-only and what they wrote is in their memory, so
    // there is nothing to save, and a person who ends a lab wants it gone.
    context.stop.send_replace(true);
    while running.join_next().await.is_some() {}
    let pid = switch.pid;
    switch.stop().await;
    context.janitor().forget(pid);
    context.state.set_switch(None);
    result
}

/// The switch listens: what lives in it is ready, and the machines may boot.
fn start(
    context: &Context,
    machines: Vec<node::Machine>,
    running: &mut JoinSet<Result<(), String>>,
) {
    for (index, node) in context.state.lab().nodes.iter().enumerate() {
        if matches!(node.kind, Kind::Switch | Kind::Hub | Kind::External) {
            context
                .state
                .update(index, |node| node.state = NodeState::Ready);
        }
    }
    for machine in machines {
        running.spawn(node::run(machine, context.clone()));
    }
}

/// Waits for a machine that ends the lab. Machines that end for good do not.
async fn supervise(running: &mut JoinSet<Result<(), String>>) -> Result<(), Failure> {
    while let Some(ended) = running.join_next().await {
        match ended {
            Ok(Ok(())) => {}
            Ok(Err(message)) => return Err(Failure::new(Code::Lab, message)),
            Err(error) => {
                return Err(Failure::new(
                    Code::General,
                    format!("a bug in vmm: {error}"),
                ));
            }
        }
    }
    // A lab whose machines have all ended still has its switch, and a person may want to see how they ended.
    std::future::pending().await
}

/// SIGINT, SIGTERM and SIGHUP: each ends the lab.
#[derive(Debug)]
pub struct EndSignals([Signal; 3]);

impl EndSignals {
    /// From now on these signals no longer end the process by themselves.
    pub fn listen() -> Result<Self, Failure> {
        let listen = |kind| {
            signal(kind).map_err(|error| {
                Failure::new(Code::General, format!("cannot listen to signals: {error}"))
            })
        };
        Ok(Self([
            listen(SignalKind::interrupt())?,
            listen(SignalKind::terminate())?,
            listen(SignalKind::hangup())?,
        ]))
    }

    /// Waits for one, or takes one that has come before.
    pub async fn come(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}

fn check_socket_paths(plan: &Plan, paths: &LabPaths) -> Result<(), Failure> {
    let mut sockets = vec![paths.control(), paths.vswitch()];
    for (node, machine) in each_machine(&plan.topology) {
        sockets.push(paths.agent(&node.name));
        sockets.extend(
            machine
                .interfaces
                .iter()
                .map(|i| paths.port(&node.name, &i.name)),
        );
    }
    LabPaths::check_socket_lengths(sockets)
}

fn each_machine(topology: &Topology) -> impl Iterator<Item = (&model::Node, &model::Machine)> {
    topology.nodes.iter().filter_map(|node| match &node.kind {
        NodeKind::Machine(machine) => Some((node, &**machine)),
        NodeKind::Switch(_) | NodeKind::Hub | NodeKind::External(_) => None,
    })
}

/// The machines, and for each node who gives it orders.
fn machines(
    plan: &Plan,
    paths: &LabPaths,
    links: &Links,
) -> Result<(Vec<node::Machine>, Vec<Option<Orders>>), Failure> {
    let mut machines = Vec::new();
    let mut orders = Vec::new();
    for (index, node) in plan.topology.nodes.iter().enumerate() {
        let (NodeKind::Machine(machine), Some(carriers)) = (&node.kind, links.carriers(index))
        else {
            orders.push(None);
            continue;
        };
        let (sender, receiver) = Orders::new();
        orders.push(Some(sender));
        machines.push(node::Machine {
            index,
            config: NodeConfig {
                name: node.name.clone(),
                kernel: file_of(
                    &node.name,
                    machine.kernel.as_ref(),
                    plan.image.as_ref().map(|i| &i.kernel),
                )?,
                rootfs: file_of(
                    &node.name,
                    machine.rootfs.as_ref(),
                    plan.image.as_ref().map(|i| &i.rootfs),
                )?,
                memory: machine.memory,
                vcpus: machine.vcpus,
                nics: machine
                    .interfaces
                    .iter()
                    .map(|interface| NicConfig {
                        socket: paths.port(&node.name, &interface.name),
                        mac: interface.mac.to_string(),
                        mtu: interface.mtu,
                        queue_size: interface.queue_size,
                        carrier: true,
                    })
                    .collect(),
                agent_socket: paths.agent(&node.name),
                serial_log: paths.serial(&node.name),
                cmdline: None,
            },
            configure: describe::configure(&plan.topology, &node.name, machine)?,
            policy: machine.on,
            limits: machine.limits.clone(),
            after: machine.after.clone(),
            ready_timeout: machine
                .ready
                .as_ref()
                .map_or(Duration::ZERO, |ready| ready.timeout),
            carriers,
            orders: receiver,
        });
    }
    Ok((machines, orders))
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

/// What a person should know before the lab starts.
pub fn warnings(plan: &Plan) -> Vec<String> {
    let mut warnings = Vec::new();
    let asked: u64 = each_machine(&plan.topology)
        .map(|(_, machine)| machine.memory)
        .sum();
    let free = usage::host().map(|host| host.memory_available);
    if let Some(free) = free.filter(|&free| asked > free) {
        warnings.push(format!(
            "the machines have {} MiB of memory together, this machine has {} MiB available; nodes may be killed",
            asked >> 20,
            free >> 20
        ));
    }
    warnings.extend(plan.isolation.warnings());
    if matches!(plan.choice.engine, Engine::Qemu(_)) {
        for (node, machine) in each_machine(&plan.topology) {
            for interface in &machine.interfaces {
                let size = qemu::queue_size(interface.queue_size);
                if size != interface.queue_size {
                    warnings.push(format!(
                        "{}:{}: QEMU makes its queues {size} long instead of {}",
                        node.name, interface.name, interface.queue_size
                    ));
                }
            }
        }
    }
    warnings
}

fn view(plan: &Plan, limits_missing: Option<String>) -> Lab {
    let started = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let isolation = plan.isolation.report();
    let level = isolation.level;
    Lab {
        name: plan.name.clone(),
        description: plan.topology.description.clone(),
        file: plan.file.clone(),
        pid: std::process::id(),
        switch_pid: None,
        engine: plan.choice.engine.name(),
        engine_reason: plan.choice.reason.clone(),
        started: started.unwrap_or_default().as_secs(),
        phase: Phase::Starting,
        ready_ms: None,
        failure: None,
        isolation,
        nodes: plan
            .topology
            .nodes
            .iter()
            .map(|node| view_node(node, level, limits_missing.is_some()))
            .collect(),
        limits_missing,
    }
}

fn keep(node: &model::Node) -> Keep {
    match &node.kind {
        NodeKind::Machine(machine) => Keep {
            routing: machine.frr.is_some(),
            paths: machine.save.clone(),
        },
        NodeKind::Switch(_) | NodeKind::Hub | NodeKind::External(_) => Keep::default(),
    }
}

/// A node as it is before it is started, its process jailed as `isolation` says.
pub fn view_node(node: &model::Node, isolation: IsolationLevel, group_missing: bool) -> Node {
    let (kind, interfaces) = match &node.kind {
        NodeKind::Switch(_) => (Kind::Switch, Vec::new()),
        NodeKind::Hub => (Kind::Hub, Vec::new()),
        NodeKind::External(_) => (Kind::External, Vec::new()),
        NodeKind::Machine(machine) => {
            let kind = match machine.role {
                Role::Host => Kind::Host,
                Role::Router => Kind::Router,
            };
            let interfaces = machine.interfaces.iter().map(|interface| Interface {
                name: interface.name.clone(),
                mac: interface.mac.to_string(),
                addresses: interface
                    .addresses
                    .iter()
                    .map(ToString::to_string)
                    .collect(),
                mtu: interface.mtu,
            });
            (kind, interfaces.collect())
        }
    };
    let machine = match &node.kind {
        NodeKind::Machine(machine) => Some(machine),
        _ => None,
    };
    Node {
        name: node.name.clone(),
        kind,
        state: NodeState::Waiting,
        labels: match &node.kind {
            NodeKind::Machine(machine) => machine.labels.clone(),
            _ => BTreeMap::new(),
        },
        interfaces,
        external: match &node.kind {
            NodeKind::External(external) => Some(external.to_string()),
            _ => None,
        },
        memory: machine.map(|machine| machine.memory),
        vcpus: machine.map(|machine| machine.vcpus),
        pid: None,
        kernel: None,
        restarts: 0,
        boot: BootTimes::default(),
        message: None,
        last_end: None,
        isolation: machine.map(|_| isolation),
        limits: machine.and_then(|machine| ground::limits(&machine.limits, group_missing)),
        usage: None,
    }
}
