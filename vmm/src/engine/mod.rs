//! What runs a machine: one process per machine, whichever the engine.

pub mod auto;
pub mod container;
pub mod devices;
mod kvm;
pub mod qemu;

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use monitor::NodeConfig;
use rustix::process::Signal;
use rustix::thread::CpuSet;
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use topology::model::{self, Machine, Node, Topology};

use crate::api::types::{End, EndReason, EngineName};
use crate::cgroup::NodeGroup;
use crate::failure::Failure;
use crate::isolation::Isolation;
use crate::lab::children::{self, LastWords};
use crate::lab::janitor::{self, Role, SharedJanitor};
use crate::lab::links::Carriers;
use crate::process::{Command, Ended, Namespaces, Process};

/// How long the words of a process that has ended may take to arrive.
const STORY_PATIENCE: Duration = Duration::from_secs(2);

/// Messages typed on a serial port that wait for the machine.
const TYPED: usize = 16;

/// An engine that was chosen and checked.
#[derive(Debug, Clone)]
pub enum Engine {
    /// Hopyard's monitor on KVM.
    Kvm,
    /// `qemu-system-x86_64`, TCG.
    Qemu(qemu::Qemu),
    /// Namespaces of the host's kernel.
    Container,
}

/// The engines of a lab.
#[derive(Debug, Clone)]
pub struct Engines {
    /// Of machines that ask for none.
    default: Engine,
    /// Those that some machines ask for.
    asked: HashMap<EngineName, Engine>,
}

impl Engines {
    /// Those that the machines of `topology` need; the error is one that this machine does not have, or that cannot do what is asked of it.
    pub fn find(default: Engine, topology: &Topology) -> Result<Self, Failure> {
        let mut engines = Self {
            default,
            asked: HashMap::new(),
        };
        for machine in topology.nodes.iter().filter_map(Node::machine) {
            let Some(name) = machine.engine.map(EngineName::from) else {
                continue;
            };
            if name == engines.default.name() || engines.asked.contains_key(&name) {
                continue;
            }
            let choice = match name {
                EngineName::Kvm => auto::kvm()?,
                EngineName::Qemu => auto::qemu()?,
                EngineName::Container => auto::container()?,
            };
            engines.asked.insert(name, choice.engine);
        }
        container::check_links(topology, &engines)?;
        devices::check(topology, &engines)?;
        Ok(engines)
    }

    /// The engine of a machine.
    pub fn of(&self, machine: &Machine) -> &Engine {
        let asked = machine.engine.map(EngineName::from);
        asked
            .and_then(|name| self.asked.get(&name))
            .unwrap_or(&self.default)
    }
}

impl From<model::Engine> for EngineName {
    fn from(engine: model::Engine) -> Self {
        match engine {
            model::Engine::Kvm => Self::Kvm,
            model::Engine::Qemu => Self::Qemu,
            model::Engine::Container => Self::Container,
        }
    }
}

/// A machine's process could not be started.
#[derive(Debug, thiserror::Error)]
#[error("cannot start {program}: {error}")]
pub struct SpawnError {
    program: PathBuf,
    error: io::Error,
}

/// Where the process of a machine runs.
#[derive(Debug)]
pub struct Ground {
    /// How it is jailed.
    pub isolation: Isolation,
    /// The folder of its NICs' sockets.
    pub ports: PathBuf,
    /// The control group that limits it.
    pub group: Option<NodeGroup>,
    /// The processors it is bound to.
    pub processors: Option<CpuSet>,
    /// The process in whose network namespace its interfaces' devices are, on the kernel's fabric.
    pub fabric: Option<u32>,
    /// Who ends its process when the lab is no more, or keeps it.
    pub janitor: SharedJanitor,
}

/// A running machine.
#[derive(Debug)]
pub struct Guest {
    /// Its process.
    pub pid: u32,
    /// Its serial port.
    pub console: Console,
    /// How it ended, once.
    pub ended: oneshot::Receiver<End>,
    kill: Option<oneshot::Sender<()>>,
}

/// Types on the serial port of a machine; clones share it. What the machine writes there is in its log.
#[derive(Debug, Clone)]
pub struct Console(mpsc::Sender<Vec<u8>>);

impl Console {
    /// That of a machine, and what it gets to read.
    pub fn new() -> (Self, mpsc::Receiver<Vec<u8>>) {
        let (sender, typed) = mpsc::channel(TYPED);
        (Self(sender), typed)
    }

    /// Types, as soon as there is room; nothing tells that somebody looks at the log. False if the machine has ended.
    pub async fn type_in(&self, bytes: Vec<u8>) -> bool {
        self.0.send(bytes).await.is_ok()
    }
}

impl Engine {
    /// Its name.
    pub fn name(&self) -> EngineName {
        match self {
            Self::Kvm => EngineName::Kvm,
            Self::Qemu(_) => EngineName::Qemu,
            Self::Container => EngineName::Container,
        }
    }

    /// How long a machine may take from its start until it is configured, the host not being overloaded.
    pub fn boot_timeout(&self) -> Duration {
        match self {
            Self::Kvm | Self::Container => Duration::from_mins(1),
            Self::Qemu(_) => Duration::from_mins(3),
        }
    }

    /// How many machines boot at the same time on `processors` processors.
    pub fn boots_at_once(&self, processors: usize) -> usize {
        match self {
            // A boot under KVM waits for its monitor's set-up half of the time.
            Self::Kvm => processors.max(1) * 2,
            Self::Qemu(_) => processors.max(1),
            Self::Container => processors.max(1) * 4,
        }
    }

    /// Starts a machine whose NICs have the `carriers`, now and whenever they change; has to be called on the main thread.
    pub fn spawn(
        &self,
        config: &NodeConfig,
        carriers: Carriers,
        ground: &Ground,
    ) -> Result<Guest, SpawnError> {
        match self {
            Self::Kvm => kvm::spawn(config, carriers, ground),
            Self::Qemu(qemu) => qemu.spawn(config, carriers, ground),
            Self::Container => container::spawn(config, carriers, ground),
        }
    }
}

impl Engine {
    /// Attends a machine that this engine's process of another lab process has started; its process is `child`. Its NICs have the
    /// `carriers` from now on.
    pub fn adopt(
        &self,
        config: &NodeConfig,
        carriers: Carriers,
        child: Process,
        fabric: Option<u32>,
    ) -> Result<Guest, SpawnError> {
        match self {
            Self::Kvm => kvm::attend(child, None, carriers),
            Self::Qemu(_) => qemu::attend(child, config, carriers),
            Self::Container => container::attend(child, config, carriers, fabric, true),
        }
    }
}

impl Guest {
    /// Kills the process; `ended` tells when it is gone.
    pub fn kill(&mut self) {
        if let Some(kill) = self.kill.take() {
            let _ = kill.send(());
        }
    }

    /// Attends `child` until it ends. `story` is what the guest did, as the process has told it; else its status may say so, by `read`.
    fn attend(
        mut child: Process,
        console: Console,
        story: JoinHandle<Option<End>>,
        last_words: (LastWords, JoinHandle<()>),
        read: fn(ExitStatus) -> Option<End>,
    ) -> Self {
        let (kill, killed) = oneshot::channel();
        let (sender, ended) = oneshot::channel();
        let pid = child.pid;
        tokio::spawn(async move {
            let status = tokio::select! {
                status = child.wait() => status,
                _ = killed => {
                    child.signal(Signal::KILL);
                    child.wait().await
                }
            };
            let told = tokio::time::timeout(STORY_PATIENCE, async {
                let _ = last_words.1.await;
                story.await.ok().flatten()
            });
            let end = told
                .await
                .ok()
                .flatten()
                .or_else(|| status.as_ref().ok().copied().flatten().and_then(read))
                .unwrap_or_else(|| crash(status, &last_words.0.text()));
            let _ = sender.send(end);
        });
        Self {
            pid,
            console,
            ended,
            kill: Some(kill),
        }
    }
}

fn crash(status: io::Result<Ended>, last_words: &str) -> End {
    let how = children::describe_end(status);
    let detail = if last_words.is_empty() {
        format!("it {how}")
    } else {
        format!("it {how} and said: {last_words}")
    };
    End {
        reason: EndReason::Crash,
        detail,
    }
}

/// Starts `program`, by `command`, as a child of the lab that runs the node of this name, on its ground.
fn start(
    command: Command,
    program: &Path,
    node: &str,
    ground: &Ground,
    namespaces: Option<Namespaces>,
) -> Result<Process, SpawnError> {
    let command = command.jailed(namespaces).processors(ground.processors);
    let start = janitor::start_watched(command, &ground.janitor, Role::Node(node.into()), |pid| {
        ground
            .group
            .as_ref()
            .map_or(Ok(()), |group| group.admit(pid))
    });
    start.map_err(|error| SpawnError {
        program: program.to_owned(),
        error,
    })
}

/// Standard input, output and error of a machine's process.
type Pipes = (pipe::Sender, pipe::Receiver, pipe::Receiver);

/// Takes them; a process that was adopted may lack some, which is a mistake of its janitor.
fn pipes(child: &mut Process, program: &Path) -> Result<Pipes, SpawnError> {
    match (child.stdin.take(), child.stdout.take(), child.stderr.take()) {
        (Some(stdin), Some(stdout), Some(stderr)) => Ok((stdin, stdout, stderr)),
        _ => Err(SpawnError {
            program: program.to_owned(),
            error: io::Error::other("what leads to its process is not all there"),
        }),
    }
}

/// Looks for programs as a shell does; the first that is missing.
fn find_programs<'a>(programs: &[&'a str]) -> Result<(), &'a str> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_there =
        |program: &&str| std::env::split_paths(&path).any(|folder| folder.join(program).is_file());
    match programs.iter().find(|program| !is_there(program)) {
        Some(program) => Err(program),
        None => Ok(()),
    }
}

/// This program, which enters the jails and runs the monitor.
fn this_program() -> Result<PathBuf, SpawnError> {
    std::env::current_exe().map_err(|error| SpawnError {
        program: "vmm".into(),
        error,
    })
}
