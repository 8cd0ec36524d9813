//! The lab process: starts the switch and the machines of a topology, watches them, and ends them.

mod adopt;
pub mod agent;
pub mod change;
pub mod children;
mod describe;
mod faults;
mod ground;
pub mod janitor;
mod keeper;
pub mod links;
pub mod machines;
pub mod metrics;
mod node;
pub mod orders;
mod plan;
pub mod record;
pub mod report;
pub mod run_folder;
pub mod saved;
pub mod state;
mod switch;
pub mod usage;
pub mod view;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};

use futures_util::future::select_all;
use tokio::net::UnixListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use topology::model::{Fabric, Orphaned, Topology};
use topology::zones::Zones;
use topology::{Files, Sources};

use crate::api;
use crate::api::types::{Kind, NodeState};
use crate::cgroup::LabGroup;
use crate::engine::auto::Choice;
use crate::engine::{Engine, Engines, qemu};
use crate::failure::{Code, Failure};
use crate::image::Image;
use crate::isolation::Isolation;
use crate::process::Process;
use change::{Changes, Parts};
use faults::Faults;
use janitor::{Janitor, SharedJanitor};
use keeper::Keeper;
use links::{Links, Touch};
use machines::{check_socket_paths, devices, each_machine, machines};
use orders::Roster;
use run_folder::{LabPaths, LabRecord, RunFolder, RunRoot};
use saved::Terms;
use state::State;

pub use adopt::adopt;

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
    /// What stands in it.
    pub text: String,
    /// The files that it copies from.
    pub files: Files,
    /// What it says.
    pub topology: Topology,
    /// The engine of machines that ask for none, and why.
    pub choice: Choice,
    /// All engines.
    pub engines: Engines,
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
    /// Those that come while it runs.
    newcomers: mpsc::UnboundedReceiver<node::Machine>,
    changes: Arc<Changes>,
    faults: Faults,
    roster: Roster,
    links: Arc<Links>,
    folder: RunFolder,
    /// One for each zone.
    switches: Vec<switch::Setup>,
    listener: UnixListener,
    janitor: SharedJanitor,
    keeper: JoinHandle<()>,
    state: State,
    isolation: Isolation,
    group: Option<Arc<LabGroup>>,
    terms: Terms,
    fabric: Fabric,
    /// Of a lab whose processes run already.
    begun: Option<Begun>,
}

/// What another process has made of a lab.
#[derive(Debug)]
struct Begun {
    /// When the switches were started for the first time.
    origin: Instant,
    /// The switches that run, by zone.
    switches: HashMap<String, Process>,
    /// What links were set to by hand.
    touches: BTreeMap<String, Touch>,
}

/// What every machine of a lab shares.
#[derive(Debug, Clone)]
struct Context {
    state: State,
    janitor: SharedJanitor,
    turns: Arc<Semaphore>,
    boot_timeout: Duration,
    isolation: Isolation,
    paths: LabPaths,
    /// If its machines have limits that take one, and it can be had.
    group: Option<Arc<LabGroup>>,
    fabric: Fabric,
    /// When the switches were started for the first time: what schedules count from.
    origin: Instant,
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
    check_socket_paths(&plan.topology, &paths)?;
    let switch_program = switch::program()?;
    let links = Arc::new(Links::new(&plan.topology, &paths));
    let (machines, roster) = machines(plan, &paths, &links.wiring())?;
    ground::raise_descriptors();
    ground::check_processors(&plan.topology)?;
    let folder = root.create(&plan.name)?;
    let (group, limits_missing) = ground::make_group(plan);
    let parts = LabParts {
        state: State::new(view::lab(plan, limits_missing)),
        links,
        machines,
        roster,
        group,
        begun: None,
    };
    match set_up(plan, &folder, &parts) {
        Ok((janitor, listener)) => Ok(Prepared::new(
            plan,
            parts,
            folder,
            &switch_program,
            janitor,
            listener,
        )),
        Err(error) => {
            let failure = cannot_set_up(&folder.paths, &error);
            let _ = folder.remove();
            Err(failure)
        }
    }
}

fn cannot_set_up(paths: &LabPaths, error: &std::io::Error) -> Failure {
    let message = format!("cannot set up {}: {error}", paths.folder().display());
    Failure::new(Code::Host, message).help("free space there, or set HOPYARD_RUN to another folder")
}

/// What a lab is made of, be it new or taken over.
struct LabParts {
    state: State,
    links: Arc<Links>,
    machines: Vec<node::Machine>,
    roster: Roster,
    group: Option<LabGroup>,
    begun: Option<Begun>,
}

/// A janitor, and what keeps one running.
type Kept = (SharedJanitor, JoinHandle<()>);

/// How the switch of each zone is started.
fn switches(plan: &Plan, program: &Path, paths: &LabPaths) -> Vec<switch::Setup> {
    let zones = Zones::of(&plan.topology).names().into_iter();
    let setup = |zone: String| {
        let part = plan.topology.part(&zone);
        switch::Setup {
            program: program.to_owned(),
            fabric: part.fabric,
            namespaces: plan.isolation.of_switch(&part),
            jail: plan.isolation.switch_plan(&part, &paths.ports(&zone)),
            zone,
        }
    };
    zones.map(setup).collect()
}

/// Writes what the lab's processes find in its folder.
fn set_up(
    plan: &Plan,
    folder: &RunFolder,
    parts: &LabParts,
) -> std::io::Result<(Kept, UnixListener)> {
    // First, so that whoever removes the folder knows what else there is.
    write_record(plan, folder, parts.group.as_ref())?;
    let keep = plan.topology.orphaned == Orphaned::Keep;
    let (janitor, keeper) = janitor::start(folder, keep)?;
    let sources = Sources {
        file: plan.file.clone(),
        text: plan.text.clone(),
        files: plan.files.clone(),
        devices: devices(&plan.topology),
        zone: None,
    };
    for zone in parts.links.zones() {
        folder.paths.create_zone(zone)?;
        let part = parts.links.part(zone, &sources);
        folder.paths.write_sources(zone, &part)?;
    }
    let zones = Zones::of(&plan.topology);
    for (index, node) in plan.topology.nodes.iter().enumerate() {
        folder.paths.create_node(zones.zone(index), &node.name)?;
    }
    let listener = listen(&folder.paths)?;
    Ok(((janitor, tokio::spawn(keeper)), listener))
}

/// Says that this process runs the lab.
fn write_record(plan: &Plan, folder: &RunFolder, group: Option<&LabGroup>) -> std::io::Result<()> {
    folder.write_record(&LabRecord {
        pid: std::process::id(),
        file: plan.file.clone(),
        groups: group.map_or_else(Vec::new, |group| group.folders().to_vec()),
    })
}

/// Listens on the control socket. The folder is this user's alone, so the socket is as well before and after its mode is set.
fn listen(paths: &LabPaths) -> std::io::Result<UnixListener> {
    let listener = UnixListener::bind(paths.control())?;
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::chmod(paths.control(), mode)?;
    Ok(listener)
}

impl Prepared {
    fn new(
        plan: &Plan,
        parts: LabParts,
        folder: RunFolder,
        switch_program: &Path,
        (janitor, keeper): Kept,
        listener: UnixListener,
    ) -> Self {
        let LabParts {
            state,
            links,
            machines,
            roster,
            group,
            begun,
        } = parts;
        let (changes, newcomers) = Changes::new(Parts {
            topology: plan.topology.clone(),
            file: plan.file.clone(),
            text: plan.text.clone(),
            revision: state.lab().revision,
            image: plan.image.clone(),
            paths: folder.paths.clone(),
            links: links.clone(),
            roster: roster.clone(),
            state: state.clone(),
            engine: plan.choice.engine.clone(),
            isolation: plan.isolation.report().level,
            grouped: group.is_some(),
        });
        Self {
            machines,
            newcomers,
            faults: changes.faults(),
            changes: Arc::new(changes),
            roster,
            links,
            listener,
            janitor,
            keeper,
            terms: Terms {
                image: plan.image.clone(),
                boot_timeout: plan.boot_timeout,
                boots_at_once: plan.boots_at_once,
                isolation: plan.isolation.wish,
                kernel_fabric: plan.topology.fabric == Fabric::Kernel,
            },
            state,
            isolation: plan.isolation.clone(),
            switches: switches(plan, switch_program, &folder.paths),
            fabric: plan.topology.fabric,
            group: group.map(Arc::new),
            folder,
            begun,
        }
    }

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
            janitor: self.janitor,
            turns: Arc::new(Semaphore::new(self.terms.boots_at_once)),
            boot_timeout: self.terms.boot_timeout,
            isolation: self.isolation,
            paths: self.folder.paths.clone(),
            group: self.group,
            fabric: self.fabric,
            origin: self.begun.as_ref().map_or_else(Instant::now, |b| b.origin),
            stop: watch::Sender::new(false),
        };
        let keeps = janitor::lock(&context.janitor).keeps();
        if keeps {
            tokio::spawn(saved::keep(
                context.paths.clone(),
                self.terms,
                context.origin,
                self.state.clone(),
                self.links.clone(),
            ));
        }
        let api = api::Api {
            state: self.state.clone(),
            paths: self.folder.paths.clone(),
            links: self.links.clone(),
            captures: api::Captures::default(),
            roster: self.roster.clone(),
            changes: self.changes,
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
            Cast {
                machines: self.machines,
                newcomers: self.newcomers,
                faults: self.faults,
                roster: self.roster,
                begun: self.begun,
            },
            &self.links,
            &self.switches,
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

/// The machines of a lab, and what they are told.
struct Cast {
    machines: Vec<node::Machine>,
    /// Those that come while it runs.
    newcomers: mpsc::UnboundedReceiver<node::Machine>,
    faults: Faults,
    roster: Roster,
    begun: Option<Begun>,
}

/// Runs switch and machines until the lab is to end; none of them is left when it returns.
async fn operate(
    context: &Context,
    signals: &mut EndSignals,
    mut cast: Cast,
    links: &Arc<Links>,
    setups: &[switch::Setup],
) -> Result<(), Failure> {
    let (mut keepers, mut started) = (Vec::new(), Vec::new());
    for setup in setups {
        let begun = cast.begun.as_mut();
        let switch = begun.and_then(|begun| begun.switches.remove(&setup.zone));
        match Keeper::start(context, setup, links, &cast.roster, switch) {
            Ok((keeper, ready)) => {
                keepers.push(keeper);
                started.push(ready);
            }
            Err(failure) => {
                context.state.ending(Some(failure.message.clone()));
                for keeper in keepers {
                    keeper.stop().await;
                }
                return Err(failure);
            }
        }
    }
    let mut running = JoinSet::new();
    let asked = context.state.stop_asked();
    let result = {
        let work = async {
            for ready in started {
                ready.wait().await?;
            }
            let begun = cast.begun.as_ref().map(|begun| begun.origin);
            if let Some(begun) = cast.begun {
                links.resume(begun.touches).await;
            }
            start(context, cast.machines, &mut running);
            let (roster, state) = (cast.roster.clone(), context.state.clone());
            let faults = faults::run(cast.faults, begun, roster, state);
            tokio::select! {
                result = supervise(context, &mut running, &mut cast.newcomers) => result,
                never = faults => match never {},
            }
        };
        tokio::select! {
            biased;
            () = asked => Ok(()),
            () = signals.come() => Ok(()),
            failure = keep_running(&mut keepers) => Err(failure),
            result = work => result,
        }
    };
    context.janitor().end();
    context
        .state
        .ending(result.as_ref().err().map(|failure| failure.message.clone()));
    // Guests are killed, not switched off: their root is read-only and what they wrote is in their memory, so
    // there is nothing to save, and a person who ends a lab wants it gone.
    context.stop.send_replace(true);
    while running.join_next().await.is_some() {}
    for keeper in keepers {
        keeper.stop().await;
    }
    result
}

/// Keeps all switches running until that is of no use for one of them.
async fn keep_running(keepers: &mut [Keeper<'_>]) -> Failure {
    let all = keepers.iter_mut().map(|keeper| Box::pin(keeper.keep()));
    select_all(all).await.0
}

/// The switch listens: what lives in it is ready, and the machines may boot.
fn start(
    context: &Context,
    machines: Vec<node::Machine>,
    running: &mut JoinSet<Result<(), String>>,
) {
    for node in context.state.lab().nodes {
        if matches!(node.kind, Kind::Switch | Kind::Hub | Kind::External) {
            context
                .state
                .update(&node.name, |node| node.state = NodeState::Ready);
        }
    }
    for machine in machines {
        running.spawn(node::run(machine, context.clone()));
    }
    context.state.begun();
}

/// Runs machines that come later, and waits for one that ends the lab. Machines that end for good do not.
async fn supervise(
    context: &Context,
    running: &mut JoinSet<Result<(), String>>,
    newcomers: &mut mpsc::UnboundedReceiver<node::Machine>,
) -> Result<(), Failure> {
    loop {
        let ended = tokio::select! {
            Some(machine) = newcomers.recv() => {
                running.spawn(node::run(machine, context.clone()));
                continue;
            }
            Some(ended) = running.join_next() => ended,
            // A lab whose machines have all ended still has its switch, and a person may want to see how they ended.
            else => return std::future::pending().await,
        };
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
    for (node, machine) in each_machine(&plan.topology) {
        if !matches!(plan.engines.of(machine), Engine::Qemu(_)) {
            continue;
        }
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
    warnings
}
