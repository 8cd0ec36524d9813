//! Engine `qemu`: `qemu-system-x86_64`, with processor emulation (TCG) on machines without usable KVM.

mod command_line;
mod qmp;
mod serial;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use monitor::NodeConfig;

use super::{Console, Ground, Guest, SpawnError, auto, devices, pipes, start, this_program};
use crate::api::types::{End, EndReason};
use crate::failure::{Code, Failure};
use crate::lab::children::LastWords;
use crate::lab::links::Carriers;
use crate::process::{Command, Process};
use command_line::{Host, Taps};
use qmp::Shutdown;

pub use command_line::queue_size;

/// What QEMU writes, under `-d cpu_reset`, when a processor shuts down; without it a triple fault looks like a reboot.
const TRIPLE_FAULT: &str = "Triple fault";

/// Where the host's kernel moves frames between TAP devices and guests.
const VHOST: &str = "/dev/vhost-net";

/// How long it takes to read what waits in the QMP socket of a QEMU that has ended.
const QMP_REST: Duration = Duration::from_millis(200);

/// The QEMU that was found.
#[derive(Debug, Clone)]
pub struct Qemu {
    program: PathBuf,
    /// On KVM, not emulated.
    kvm: bool,
}

impl Qemu {
    /// `$HOPYARD_QEMU`, else `qemu-system-x86_64` in `$PATH`.
    pub fn find() -> Result<Self, Failure> {
        let asked = std::env::var_os("HOPYARD_QEMU").filter(|v| !v.is_empty());
        let program = PathBuf::from(asked.unwrap_or_else(|| "qemu-system-x86_64".into()));
        in_path(&program)
            .map(|program| Self {
                program,
                kvm: auto::virtualizes(),
            })
            .ok_or_else(|| {
                Failure::new(
                    Code::Host,
                    format!("engine qemu: there is no program {}", program.display()),
                )
                .help("install it with `apt-get install qemu-system-x86`")
            })
    }

    pub(super) fn spawn(
        &self,
        config: &NodeConfig,
        carriers: Carriers,
        ground: &Ground,
    ) -> Result<Guest, SpawnError> {
        let listen = |path: &Path| {
            // Those of the process before this one would be connected to in vain.
            let _ = std::fs::remove_file(path);
            UnixListener::bind(path)
                .map(OwnedFd::from)
                .map_err(|error| SpawnError {
                    program: path.to_owned(),
                    error,
                })
        };
        // QEMU gets them open: it needs no folder to write to.
        let mut descriptors = vec![listen(&qmp_socket(config))?, listen(&config.agent_socket)?];
        let taps = match ground.fabric {
            None => None,
            Some(fabric) => Some(open_taps(config, fabric)?),
        };
        let host = Host {
            kvm: self.kvm,
            qmp: 3,
            agent: 4,
            taps: taps.as_ref().map(|taps| Taps {
                first: 5,
                vhost: taps.vhost,
            }),
        };
        descriptors.extend(taps.into_iter().flat_map(|taps| taps.descriptors));
        let arguments = command_line::build(config, &host);
        let command =
            match ground
                .isolation
                .qemu_plan(&self.program, self.kvm, config, &ground.ports)
            {
                None => Command::new(&self.program).arguments(arguments),
                Some(plan) => {
                    let text = serde_json::to_string(&plan).unwrap_or_default();
                    Command::new(&this_program()?)
                        .users(ground.isolation.users_of(&plan))
                        .arguments(["enter", &text, "--"])
                        .arguments([&self.program])
                        .arguments(arguments)
                }
            };
        let command = command.with_stdin().descriptors(descriptors);
        let namespaces = ground.isolation.of_machines();
        let child = start(command, &self.program, &config.name, ground, namespaces)?;
        attend(child, config, carriers)
    }
}

/// Where QEMU listens to its machine protocol.
fn qmp_socket(config: &NodeConfig) -> PathBuf {
    config.agent_socket.with_file_name("qmp.sock")
}

/// Attends a QEMU that was started for this machine, be it by another lab process.
pub fn attend(
    mut child: Process,
    config: &NodeConfig,
    carriers: Carriers,
) -> Result<Guest, SpawnError> {
    let (stdin, stdout, stderr) = pipes(&mut child, "qemu".as_ref())?;
    let (console, typed) = Console::new();
    tokio::spawn(serial::type_in(stdin, typed));
    let last_words = LastWords::listen(stderr);
    let words = last_words.0.clone();
    let (serial_log, qmp_socket) = (config.serial_log.clone(), qmp_socket(config));
    let story = tokio::spawn(async move {
        let shutdown = tokio::spawn(async move { qmp::watch(&qmp_socket, carriers).await });
        // Standard output is the serial port; QEMU closes it when it ends.
        let panic = serial::record(stdout, &serial_log).await;
        // What QEMU has said is here by now; a QEMU that never listened says nothing.
        let abort = shutdown.abort_handle();
        let shutdown = tokio::time::timeout(QMP_REST, shutdown).await;
        abort.abort();
        tell(shutdown.ok()?.ok()?, panic, &words.text())
    });
    Ok(Guest::attend(child, console, story, last_words, |_| None))
}

/// TAP devices that QEMU gets open.
struct OpenTaps {
    /// In the order of the NICs, each followed by vhost's if there is one.
    descriptors: Vec<OwnedFd>,
    /// Frames are moved by the host's kernel (vhost-net), not by QEMU.
    vhost: bool,
}

/// Opens what leads to the NICs in the network namespace of `fabric`.
fn open_taps(config: &NodeConfig, fabric: u32) -> Result<OpenTaps, SpawnError> {
    let vhost = Path::new(VHOST);
    let mut taps = OpenTaps {
        descriptors: Vec::new(),
        vhost: vhost.exists(),
    };
    for nic in &config.nics {
        let device = devices::of(nic);
        let tap = devices::open_tap(&device, fabric).map_err(|error| SpawnError {
            program: device.into(),
            error,
        })?;
        taps.descriptors.push(tap);
        if taps.vhost {
            let file = File::options().read(true).write(true).open(vhost);
            let file = file.map_err(|error| SpawnError {
                program: vhost.to_owned(),
                error,
            })?;
            taps.descriptors.push(file.into());
        }
    }
    Ok(taps)
}

/// How the guest ended, from QEMU's word, the last panic on the serial port and the processor log.
fn tell(shutdown: Option<Shutdown>, panic: Option<String>, log: &str) -> Option<End> {
    let (reason, detail) = match (shutdown?, panic) {
        (Shutdown::Panic, panic) => (EndReason::Panic, panic.unwrap_or_default()),
        (Shutdown::PowerOff, _) => (EndReason::PowerOff, String::new()),
        (Shutdown::Reset, _) if log.trim_end().ends_with(TRIPLE_FAULT) => {
            (EndReason::TripleFault, String::new())
        }
        // A kernel without pvpanic resets the machine when it has panicked.
        (Shutdown::Reset, Some(panic)) => (EndReason::Panic, panic),
        (Shutdown::Reset, None) => (EndReason::Reboot, String::new()),
    };
    Some(End { reason, detail })
}

fn in_path(program: &Path) -> Option<PathBuf> {
    let executable = |path: &PathBuf| {
        std::fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
    };
    if program.components().count() > 1 {
        return Some(program.to_path_buf()).filter(executable);
    }
    std::env::split_paths(&std::env::var_os("PATH")?)
        .map(|folder| folder.join(program))
        .find(executable)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(shutdown: Option<Shutdown>, panic: Option<&str>, log: &str) -> Option<EndReason> {
        tell(shutdown, panic.map(ToOwned::to_owned), log).map(|end| end.reason)
    }

    #[test]
    fn the_ways_a_guest_ends_are_told_apart() {
        let reset = Some(Shutdown::Reset);
        assert_eq!(
            reason(reset, None, "CPU Reset (CPU 0)"),
            Some(EndReason::Reboot)
        );
        assert_eq!(
            reason(reset, None, "…\nTriple fault\n"),
            Some(EndReason::TripleFault)
        );
        assert_eq!(
            reason(reset, Some("not syncing"), ""),
            Some(EndReason::Panic)
        );
        assert_eq!(
            reason(Some(Shutdown::Panic), None, ""),
            Some(EndReason::Panic)
        );
        assert_eq!(
            reason(Some(Shutdown::PowerOff), None, ""),
            Some(EndReason::PowerOff)
        );
        assert_eq!(reason(None, Some("not syncing"), ""), None);
    }

    #[test]
    fn programs_are_looked_up_as_a_shell_does() {
        assert!(in_path(Path::new("sh")).is_some_and(|path| path.is_absolute()));
        assert_eq!(in_path(Path::new("/bin/sh")), Some("/bin/sh".into()));
        assert_eq!(in_path(Path::new("/etc/passwd")), None);
        assert_eq!(in_path(Path::new("no-such-program")), None);
    }
}
