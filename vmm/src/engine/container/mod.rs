//! Engine `container`: a node is namespaces of the host's kernel, with the image's root and agent. Takes root.
//!
//! Its interfaces are TAP devices of the switch, moved into the node's network namespace, so that links do to containers what they do to
//! virtual machines. When a node ends its devices go with its namespace; the switch makes them again. A container is no wall: root in
//! there is root of the host but for a few capabilities.

pub mod init;

use std::io;
use std::os::unix::net::UnixListener;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use monitor::{NicConfig, NodeConfig};
use rustix::process::Signal;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use topology::model::{Completion, Endpoint, Node, NodeKind, Topology};

use super::{Console, Engine, Engines, Ground, Guest, SpawnError, start, this_program};
use crate::api::types::{End, EndReason, EngineName};
use crate::failure::{Code, Failure};
use crate::lab::children::LastWords;
use crate::lab::links::Carriers;
use crate::process::{Command, Namespaces};

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
    let path = std::env::var_os("PATH").unwrap_or_default();
    for program in PROGRAMS {
        if !std::env::split_paths(&path).any(|folder| folder.join(program).is_file()) {
            return lacks(
                &format!("there is no program {program}"),
                "install iproute2 and util-linux",
            );
        }
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

/// Gives the interfaces of containers the names of their TAP devices on the host, which are those of no other lab's; `ports` is the lab's
/// folder of ports. `default` is the engine of machines that ask for none.
pub fn assign_devices(nodes: &mut [Node], default: EngineName, ports: &Path) {
    for node in nodes {
        let NodeKind::Machine(machine) = &mut node.kind else {
            continue;
        };
        let engine = machine.engine.map_or(default, EngineName::from);
        let is_container = engine == EngineName::Container;
        for interface in &mut machine.interfaces {
            let socket = ports.join(&node.name).join(&interface.name);
            interface.tap = is_container.then(|| device(&socket));
        }
    }
}

/// A name for a device: `hy` and twelve digits (an interface's name has 15 characters at most).
fn device(path: &Path) -> String {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hash = DefaultHasher::new();
    path.hash(&mut hash);
    format!("hy{:012x}", hash.finish() >> 16)
}

/// The device behind a NIC.
fn device_of(nic: &NicConfig) -> String {
    device(&nic.socket.with_extension(""))
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
    let mut child = start(command, &program, ground, Some(Namespaces::OwnButUsers))?;
    let (Some(stdin), Some(stdout), Some(stderr)) =
        (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        unreachable!("standard input was asked for, and the others always are");
    };
    let (console, _) = Console::new();
    let last_words = LastWords::listen(stderr);
    let plug = tokio::spawn(plug(child.pid, config.nics.clone(), carriers, stdin));
    let log = config.serial_log.clone();
    let story = tokio::spawn(async move {
        record(stdout, &log).await;
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

/// Writes what a node says to its log, as far as there is room, and takes the rest: nobody in there is to wait.
async fn record(mut said: impl AsyncRead + Unpin, log: &Path) {
    let mut log = tokio::fs::File::create(log).await.ok();
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

/// Moves the devices into the namespace of `pid`, tells it to go on, and keeps their carriers.
async fn plug(
    pid: u32,
    nics: Vec<NicConfig>,
    mut carriers: Carriers,
    mut node: impl AsyncWrite + Unpin,
) -> io::Result<()> {
    let mut known = carriers.borrow_and_update().clone();
    let mut inside = Vec::new();
    for (nic, up) in nics.iter().zip(&known) {
        let (device, name) = (device_of(nic), name_of(nic));
        let link = Path::new("/sys/class/net").join(&device);
        let made = tokio::time::timeout(PATIENCE, async {
            while !link.exists() {
                tokio::time::sleep(PAUSE).await;
            }
        });
        if made.await.is_err() {
            let problem = format!("the switch has not made the TAP device {device} of {name}");
            return Err(io::Error::other(problem));
        }
        let pid = pid.to_string();
        run(
            "ip",
            &["link", "set", "dev", &device, "netns", &pid, "name", &name],
            "",
        )
        .await?;
        let (mac, carrier) = (&nic.mac, carrier(*up));
        inside.push(format!("link set dev {name} address {mac} {carrier}\n"));
    }
    batch(pid, &inside.concat()).await?;
    node.write_all(b"\n").await?;
    while carriers.changed().await.is_ok() {
        let now = carriers.borrow_and_update().clone();
        let changed = nics.iter().zip(&now).zip(&known);
        let changed = changed.filter(|((_, now), known)| now != known);
        let lines = changed
            .map(|((nic, up), _)| format!("link set dev {} {}\n", name_of(nic), carrier(*up)));
        let lines: String = lines.collect();
        if batch(pid, &lines).await.is_err() {
            // It is about to end, or a program in it has given the interface another name.
            continue;
        }
        known = now;
    }
    Ok(())
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
