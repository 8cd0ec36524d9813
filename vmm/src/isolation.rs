//! How far the processes of a lab are jailed on this machine, found out by entering a jail.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::ValueEnum;
use jail::{Access, Entered, Mount, Plan};
use monitor::NodeConfig;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt;
use topology::model::{External, Fabric, Node, NodeKind, Topology};

use crate::api::types::{IsolationLevel, IsolationReport};
use crate::failure::{Code, Failure};
use crate::lab::children;
use crate::process::{Command, Namespaces, Users};

/// How long it may take to enter a jail.
const PATIENCE: Duration = Duration::from_secs(20);
/// Bytes of the largest file that a process in jail writes, a serial log: it keeps itself smaller.
const FILE_SIZE: u64 = 8 << 20;
/// Descriptors of a machine's process. A NIC takes eight or so, and 28 fit a machine.
const DESCRIPTORS: u64 = 1024;
/// What a program needs that is linked dynamically, besides itself; read-only.
const SYSTEM: [&str; 6] = [
    "/usr",
    "/lib",
    "/lib64",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
];

/// `--isolation`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
pub enum Wish {
    /// All of the jail, or no lab
    #[default]
    Full,
    /// As much of the jail as this machine allows
    Relaxed,
    /// No jail at all: for debugging the lab's own processes
    None,
}

/// How the processes of a lab are jailed.
#[derive(Debug, Clone)]
pub struct Isolation {
    /// What was asked for.
    pub wish: Wish,
    level: IsolationLevel,
    missing: Vec<String>,
    /// For each machine's process one of its own.
    users: Option<Users>,
}

impl Isolation {
    /// Finds out what this machine allows; an error is a machine that does not allow what is wished for. Has to be called on the
    /// main thread.
    pub async fn find(wish: Wish) -> Result<Self, Failure> {
        if wish == Wish::None {
            return Ok(Self {
                wish,
                level: IsolationLevel::None,
                missing: Vec::new(),
                users: None,
            });
        }
        let refusal = match enter(Namespaces::Own, None).await {
            Ok(entered) => {
                let users = match Users::find() {
                    // They may be there and of no use: without newuidmap(1), say.
                    Some(users) => enter(Namespaces::Own, Some(users))
                        .await
                        .map(|_| users)
                        .ok(),
                    None => None,
                };
                return Ok(Self {
                    wish,
                    level: IsolationLevel::Full,
                    missing: landlock_missing(&entered),
                    users,
                });
            }
            Err(refusal) => refusal,
        };
        if wish == Wish::Full {
            let message = format!("the lab's processes cannot be jailed: {refusal}");
            return Err(Failure::new(Code::Host, message).help(REMEDY));
        }
        let entered = enter(Namespaces::Hosts, None).await.map_err(|refusal| {
            let message = format!("the lab's processes cannot be jailed at all: {refusal}");
            Failure::new(Code::Host, message).help("--isolation none runs them without a jail")
        })?;
        let mut missing = vec![format!(
            "namespaces of its own and an empty file system ({refusal})"
        )];
        missing.extend(landlock_missing(&entered));
        Ok(Self {
            wish,
            level: IsolationLevel::Relaxed,
            missing,
            users: None,
        })
    }

    /// What people are told about it.
    pub fn report(&self) -> IsolationReport {
        IsolationReport {
            level: self.level,
            missing: self.missing.clone(),
            own_users: self.users.is_some(),
        }
    }

    /// What a person should know before the lab starts.
    pub fn warnings(&self) -> Vec<String> {
        match self.level {
            IsolationLevel::None => vec![
                "the lab's processes are not jailed: a guest that breaks out of its monitor has this user's rights"
                    .to_owned(),
            ],
            _ => self
                .missing
                .iter()
                .map(|part| format!("the lab's processes are jailed without {part}"))
                .collect(),
        }
    }

    /// The namespaces of a machine's process.
    pub fn of_machines(&self) -> Option<Namespaces> {
        match self.level {
            IsolationLevel::Full => Some(Namespaces::Own),
            IsolationLevel::Relaxed => Some(Namespaces::Hosts),
            IsolationLevel::None => None,
        }
    }

    /// Users for the process of a machine that enters a jail of this plan.
    pub fn users_of(&self, plan: &Plan) -> Option<Users> {
        self.users.filter(|_| plan.own_user)
    }

    /// The namespaces of the switch of a lab with this topology.
    pub fn of_switch(&self, topology: &Topology) -> Option<Namespaces> {
        if topology.fabric == Fabric::Kernel {
            return None;
        }
        match self.of_machines() {
            Some(Namespaces::Own) if has_external(topology) => Some(Namespaces::OwnButNetwork),
            namespaces => namespaces,
        }
    }

    fn plan(&self, mounts: Vec<Mount>) -> Option<Plan> {
        let namespaces = self.of_machines()?;
        Some(Plan {
            namespaces: namespaces != Namespaces::Hosts,
            mounts,
            own_user: false,
            network: false,
            descriptors: DESCRIPTORS,
            file_size: FILE_SIZE,
        })
    }

    /// What a monitor keeps: it has opened everything else before it enters. The ports, as a switch that is started again
    /// makes them anew.
    pub fn monitor_plan(&self, ports: &Path) -> Option<Plan> {
        let mut plan = self.plan(vec![mount(ports, Access::Read)])?;
        plan.own_user = self.users.is_some();
        Some(plan)
    }

    /// What QEMU keeps: the monitor's, and what an ordinary program opens by itself.
    pub fn qemu_plan(
        &self,
        qemu: &Path,
        kvm: bool,
        config: &NodeConfig,
        ports: &Path,
    ) -> Option<Plan> {
        let system = SYSTEM.iter().map(Path::new).filter(|path| path.exists());
        let mut mounts: Vec<_> = system.map(|path| mount(path, Access::Execute)).collect();
        // QEMU may be elsewhere, in a folder of its own build.
        let inside = |path: &Path| SYSTEM.iter().any(|folder| path.starts_with(folder));
        if !inside(qemu) {
            mounts.push(mount(qemu, Access::Execute));
        }
        mounts.push(mount(&config.kernel, Access::Read));
        if config.rootfs != config.kernel {
            mounts.push(mount(&config.rootfs, Access::Read));
        }
        mounts.push(mount(Path::new("/dev/urandom"), Access::Device));
        if kvm {
            mounts.push(mount(Path::new("/dev/kvm"), Access::Device));
        }
        mounts.push(mount(ports, Access::Read));
        let mut plan = self.plan(mounts)?;
        // It opens these in jail, as whoever it is there.
        let files = [&config.kernel, &config.rootfs, &qemu.to_path_buf()];
        plan.own_user = self.users.is_some() && !kvm && files.into_iter().all(|f| is_everybodys(f));
        // It makes the guest's memory, a file to the kernel, once it is in jail.
        plan.file_size = plan.file_size.max(config.memory);
        Some(plan)
    }

    /// What the switch keeps, unless it is the kernel's fabric, which is there to make devices for others: the folder in which it makes its ports, and what leads out of the lab.
    pub fn switch_plan(&self, topology: &Topology, ports: &Path) -> Option<Plan> {
        if topology.fabric == Fabric::Kernel {
            return None;
        }
        let external = has_external(topology);
        let mut mounts = vec![mount(ports, Access::Write)];
        let is_tap = |node: &Node| matches!(&node.kind, NodeKind::External(External::Tap { .. }));
        if topology.nodes.iter().any(is_tap) || has_containers(topology) {
            mounts.push(mount(Path::new("/dev/net/tun"), Access::Device));
        }
        let mut plan = self.plan(mounts)?;
        plan.network = external;
        // Of all ports.
        plan.descriptors = 0;
        Some(plan)
    }
}

/// Options of this machine that decide.
const REMEDY: &str = "allow user namespaces (user.max_user_namespaces above 0; on Ubuntu \
     kernel.apparmor_restrict_unprivileged_userns=0), or go on with less: --isolation relaxed";

fn mount(path: &Path, access: Access) -> Mount {
    Mount {
        path: PathBuf::from(path),
        access,
    }
}

fn has_external(topology: &Topology) -> bool {
    topology
        .nodes
        .iter()
        .any(|node| matches!(node.kind, NodeKind::External(_)))
        || has_containers(topology)
}

fn has_containers(topology: &Topology) -> bool {
    let mut machines = topology.nodes.iter().filter_map(|node| node.machine());
    machines.any(|machine| machine.interfaces.iter().any(|i| i.device.is_some()))
}

fn landlock_missing(entered: &Entered) -> Vec<String> {
    match entered.landlock {
        Some(_) => Vec::new(),
        None => vec!["Landlock, which this kernel does not have or not enable".to_owned()],
    }
}

/// Whether everybody may read a file, if they get at it.
fn is_everybodys(file: &Path) -> bool {
    let metadata = std::fs::metadata(file);
    metadata.is_ok_and(|metadata| metadata.permissions().mode() & 0o004 != 0)
}

/// Has a process enter a jail without anything in it, as one of the `users` if there are some; an error says, for people, why it cannot.
async fn enter(namespaces: Namespaces, users: Option<Users>) -> Result<Entered, String> {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let plan = Plan {
        namespaces: namespaces != Namespaces::Hosts,
        mounts: Vec::new(),
        own_user: users.is_some(),
        network: false,
        descriptors: DESCRIPTORS,
        file_size: FILE_SIZE,
    };
    let plan = serde_json::to_string(&plan).map_err(|error| error.to_string())?;
    let mut process = Command::new(&program)
        .arguments(["enter", &plan])
        .jailed(Some(namespaces))
        .users(users)
        .start(|_, _| Ok(()))
        .map_err(|error| format!("no namespaces of its own: {error}"))?;
    let (mut output, mut words) = (String::new(), String::new());
    let (Some(mut stdout), Some(mut stderr)) = (process.stdout.take(), process.stderr.take())
    else {
        return Err("no output".to_owned());
    };
    let work = async {
        let (_, _) = tokio::join!(
            stdout.read_to_string(&mut output),
            stderr.read_to_string(&mut words)
        );
        process.wait().await
    };
    let status = match tokio::time::timeout(PATIENCE, work).await {
        Ok(Ok(status)) => status,
        Ok(Err(error)) => return Err(error.to_string()),
        Err(_) => return Err("it takes too long".to_owned()),
    };
    match serde_json::from_str(&output) {
        Ok(entered) if status.is_some_and(|status| status.success()) => Ok(entered),
        _ if words.trim().is_empty() => Err(format!("it {}", children::describe_end(Ok(status)))),
        _ => {
            let words = words.trim().trim_start_matches("error: ");
            Err(words.lines().next().unwrap_or_default().to_owned())
        }
    }
}
