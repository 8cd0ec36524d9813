//! Engine `container`: a node is namespaces of the host's kernel, with the image's root and agent. Takes root.
//!
//! Its interfaces are TAP devices of the switch, moved into the node's network namespace, so that links do to containers what they do to
//! virtual machines; or, on the kernel's fabric, ends of virtual Ethernet pairs. When a node ends its devices go with its namespace; whoever
//! made them makes them again. A container is no wall: root in
//! there is root of the host but for a few capabilities.

pub mod init;

use std::io;
use std::os::unix::net::UnixListener;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use monitor::{NicConfig, NodeConfig};
use rustix::process::Signal;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use topology::model::{Completion, Endpoint, Topology};

use super::{
    Console, Engine, Engines, Ground, Guest, SpawnError, devices, find_programs, pipes, start,
    this_program,
};
use crate::api::types::{End, EndReason};
use crate::failure::{Code, Failure};
use crate::lab::children::LastWords;
use crate::lab::links::Carriers;
use crate::process::{Command, Namespaces, Process};

/// How long the switch may take to make a device.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(20);
/// Bytes of the log that are kept.
const LOG: usize = 1 << 20;
/// What this needs from the host.
const PROGRAMS: [&str; 3] = ["ip", "nsenter", "mount"];

/// Says what this machine lacks, if it lacks something.
pub fn check() -> Result<(), Failure> {
    let lacks = |what: &str, help: &str| {
        Err(Failure::new(Code::Host, format!("engine container: {what}")).help(help))
    };
    if !rustix::process::geteuid().is_root() {
        return lacks(
            "only root can make network namespaces and devices for others",
            "run the lab as root, or use --engine kvm, which needs no privileges",
        );
    }
    if let Err(program) = find_programs(&PROGRAMS) {
        return lacks(
            &format!("there is no program {program}"),
            "install iproute2 and util-linux",
        );
    }
    for (file, module) in [("/dev/net/tun", "tun"), ("/dev/loop-control", "loop")] {
        if !Path::new(file).exists() {
            return lacks(
                &format!("this machine has no {file}"),
                &format!("load the kernel's module: modprobe {module}"),
            );
        }
    }
    Ok(())
}

/// Refuses what links cannot do at the interface of a container.
pub fn check_links(topology: &Topology, engines: &Engines) -> Result<(), Failure> {
    for link in &topology.links {
        let is_container = |end: &Endpoint| {
            let machine = topology.nodes[end.node].machine();
            machine.is_some_and(|machine| matches!(engines.of(machine), Engine::Container))
        };
        if link.completion == Completion::Nic && link.ends.iter().any(is_container) {
            let message = format!(
                "link {}: `completion: nic` has a frame wait in the queue of a virtual NIC, and a container has none",
                link.name
            );
            return Err(Failure::new(Code::Topology, message)
                .help("leave `completion` out, or run both ends as virtual machines"));
        }
    }
    Ok(())
}

/// The NIC's name inside the node.
fn name_of(nic: &NicConfig) -> String {
    let name = nic.socket.file_stem().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

pub fn spawn(
    config: &NodeConfig,
    carriers: Carriers,
    ground: &Ground,
) -> Result<Guest, SpawnError> {
    let program = this_program()?;
    let failed = |error| SpawnError {
        program: PathBuf::from("a container"),
        error,
    };
    // Of the boot before.
    let _ = std::fs::remove_file(&config.agent_socket);
    let listener = UnixListener::bind(&config.agent_socket).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    let text = serde_json::to_string(config).map_err(|error| failed(error.into()))?;
    let command = Command::new(&program)
        .arguments(["container", &text])
        .with_stdin()
        .descriptors([listener.into()]);
    let namespaces = Some(Namespaces::OwnButUsers);
    let child = start(command, &program, &config.name, ground, namespaces)?;
    attend(child, config, carriers, ground.fabric, false)
}

/// Attends a container; one that is plugged in has its interfaces.
pub fn attend(
    mut child: Process,
    config: &NodeConfig,
    carriers: Carriers,
    fabric: Option<u32>,
    plugged: bool,
) -> Result<Guest, SpawnError> {
    let (stdin, stdout, stderr) = pipes(&mut child, "a container".as_ref())?;
    let (console, _) = Console::new();
    let last_words = LastWords::listen(stderr);
    let nics = Nics {
        pid: child.pid,
        fabric,
        all: config.nics.clone(),
    };
    let plug = tokio::spawn(async move {
        if plugged {
            nics.keep_carriers(carriers, Vec::new()).await
        } else {
            nics.plug(carriers, stdin).await
        }
    });
    let log = config.serial_log.clone();
    let story = tokio::spawn(async move {
        record(stdout, &log, plugged).await;
        if !plug.is_finished() {
            plug.abort();
            return None;
        }
        let error = plug.await.ok()?.err()?;
        Some(End {
            reason: EndReason::Crash,
            detail: format!("its interfaces cannot be plugged in: {error}"),
        })
    });
    Ok(Guest::attend(
        child,
        console,
        story,
        last_words,
        how_it_ended,
    ))
}

/// Writes what a node says to its log, behind what it has said so far if it is to `go_on`, as far as there is room, and takes the rest:
/// nobody in there is to wait.
async fn record(mut said: impl AsyncRead + Unpin, log: &Path, go_on: bool) {
    let mut options = tokio::fs::OpenOptions::new();
    options
        .create(true)
        .write(true)
        .append(go_on)
        .truncate(!go_on);
    let mut log = options.open(log).await.ok();
    let mut room = LOG;
    let mut chunk = vec![0; 4096];
    while let Ok(length @ 1..) = said.read(&mut chunk).await {
        let kept = length.min(room);
        room -= kept;
        if let Some(log) = &mut log {
            // A full disk is no reason to end a node.
            let _ = log.write_all(&chunk[..kept]).await;
            let _ = log.flush().await;
        }
    }
}

/// reboot(2) in a PID namespace ends PID 1 by these signals (`pid_namespaces(7)`).
fn how_it_ended(status: ExitStatus) -> Option<End> {
    let reason = match Signal::from_named_raw(status.signal()?)? {
        Signal::INT => EndReason::PowerOff,
        Signal::HUP => EndReason::Reboot,
        _ => return None,
    };
    Some(End {
        reason,
        detail: String::new(),
    })
}

/// The NICs of a container, and who has to do with them.
struct Nics {
    /// The container's first process.
    pid: u32,
    /// In whose network namespace the devices are made, if not in the host's: the kernel's fabric.
    fabric: Option<u32>,
    all: Vec<NicConfig>,
}

impl Nics {
    /// Moves the devices into the container's namespace, tells it to go on, and keeps their carriers.
    async fn plug(
        self,
        mut carriers: Carriers,
        mut node: impl AsyncWrite + Unpin,
    ) -> io::Result<()> {
        let known = carriers.borrow_and_update().clone();
        let mut inside = Vec::new();
        for (nic, up) in self.all.iter().zip(&known) {
            self.fetch(nic).await?;
            let (name, mac) = (name_of(nic), &nic.mac);
            inside.push(format!(
                "link set dev {name} address {mac} {}\n",
                self.carrier(*up)
            ));
        }
        batch(self.pid, &inside.concat()).await?;
        node.write_all(b"\n").await?;
        self.keep_carriers(carriers, known).await
    }

    /// Keeps the carriers as they are to be; what is not `known` of them is set.
    async fn keep_carriers(self, mut carriers: Carriers, mut known: Vec<bool>) -> io::Result<()> {
        if known.is_empty() {
            carriers.mark_changed();
        }
        while carriers.changed().await.is_ok() {
            let now = carriers.borrow_and_update().clone();
            let changed = self.all.iter().zip(&now).enumerate();
            let changed = changed.filter(|(nic, (_, now))| known.get(*nic) != Some(now));
            let lines = changed.map(|(_, (nic, up))| {
                format!("link set dev {} {}\n", name_of(nic), self.carrier(*up))
            });
            let lines: String = lines.collect();
            if self.fabric.is_none() && batch(self.pid, &lines).await.is_err() {
                // It is about to end, or a program in it has given the interface another name.
                continue;
            }
            known = now;
        }
        Ok(())
    }

    /// Moves the device of a NIC to where it belongs, as soon as it is there.
    async fn fetch(&self, nic: &NicConfig) -> io::Result<()> {
        let (device, name) = (devices::of(nic), name_of(nic));
        let (pid, begun) = (self.pid.to_string(), Instant::now());
        let request = ["link", "set", "dev", &device, "netns", &pid, "name", &name];
        loop {
            let moved = match self.fabric {
                None => run("ip", &request, "").await,
                Some(fabric) => {
                    let namespace = format!("--net=/proc/{fabric}/ns/net");
                    let there = [&[namespace.as_str(), "ip"], &request[..]].concat();
                    run("nsenter", &there, "").await
                }
            };
            match moved {
                Err(error) if begun.elapsed() > PATIENCE => {
                    let problem =
                        format!("the device {device} of {name} is not to be had: {error}");
                    return Err(io::Error::other(problem));
                }
                // It has not been made yet, or is still that of the boot before.
                Err(_) => tokio::time::sleep(PAUSE).await,
                Ok(()) => return Ok(()),
            }
        }
    }

    /// What ip(8) is told of the carrier of a NIC. The kernel's fabric has it in its own hands.
    fn carrier(&self, up: bool) -> &'static str {
        match self.fabric {
            None => carrier(up),
            Some(_) => "",
        }
    }
}

fn carrier(up: bool) -> &'static str {
    if up { "carrier on" } else { "carrier off" }
}

/// Runs lines of ip(8) in the network namespace of `pid`.
async fn batch(pid: u32, lines: &str) -> io::Result<()> {
    if lines.is_empty() {
        return Ok(());
    }
    let namespace = format!("--net=/proc/{pid}/ns/net");
    run("nsenter", &[&namespace, "ip", "-batch", "-"], lines).await
}

async fn run(program: &str, arguments: &[&str], input: &str) -> io::Result<()> {
    let mut child = tokio::process::Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that does not read says why.
        let _ = stdin.write_all(input.as_bytes()).await;
    }
    let output = child.wait_with_output().await?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let command = arguments.join(" ");
    let problem = format!("`{program} {command}` says: {}", said.trim());
    Err(io::Error::other(problem))
}
