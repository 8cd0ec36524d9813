//! `--engine auto`: is there hardware behind `/dev/kvm`? Found out by measuring, because an emulating KVM looks the same.

use std::io;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use kvm_bindings::{KVM_API_VERSION, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use super::Engine;
use super::qemu::Qemu;
use crate::failure::{Code, Failure};

/// Rounds of the loop the guest runs.
const ROUNDS: u32 = 500_000;
/// Hardware takes about a millisecond, hardware that is itself emulated (a nested test host) tens; emulation hundreds.
const HARDWARE: Duration = Duration::from_millis(150);
/// A measurement that takes longer is not waited for.
const PATIENCE: Duration = Duration::from_secs(2);

/// An engine and why it was chosen.
#[derive(Debug)]
pub struct Choice {
    /// The engine.
    pub engine: Engine,
    /// Why, for people.
    pub reason: String,
}

/// Engine `kvm`, if this machine has KVM.
pub fn kvm() -> Result<Choice, Failure> {
    open()?;
    Ok(Choice {
        engine: Engine::Kvm,
        reason: "asked for".to_owned(),
    })
}

/// Engine `qemu`, if it is installed.
pub fn qemu() -> Result<Choice, Failure> {
    Ok(Choice {
        engine: Engine::Qemu(Qemu::find()?),
        reason: "asked for".to_owned(),
    })
}

/// Engine `container`, if this machine and this user allow it.
pub fn container() -> Result<Choice, Failure> {
    super::container::check()?;
    Ok(Choice {
        engine: Engine::Container,
        reason: "asked for".to_owned(),
    })
}

/// Engine `kvm` if there is hardware behind it, else `qemu`.
pub fn measure() -> Result<Choice, Failure> {
    let why_not = match open() {
        Err(failure) => failure.message,
        Ok(_) => match time_loop() {
            Ok(time) if time <= HARDWARE => {
                return Ok(Choice {
                    engine: Engine::Kvm,
                    reason: format!("{ROUNDS} rounds of a loop took {}", milliseconds(time)),
                });
            }
            Ok(time) => format!(
                "KVM has no hardware behind it: {ROUNDS} rounds of a loop took {}, hardware takes about 1 ms",
                milliseconds(time)
            ),
            Err(Measurement::Endless) => format!(
                "KVM has no hardware behind it: {ROUNDS} rounds of a loop took more than {} s",
                PATIENCE.as_secs()
            ),
            Err(Measurement::Failed(error)) => format!("KVM does not work: {error}"),
        },
    };
    match Qemu::find() {
        Ok(qemu) => Ok(Choice {
            engine: Engine::Qemu(qemu),
            reason: why_not,
        }),
        Err(failure) => Err(Failure {
            message: format!("{why_not}; and {}", failure.message),
            ..failure
        }),
    }
}

/// Whether processors run guests by themselves, as far as their kernel knows: no emulation says so of itself. Cheaper than to measure.
pub fn virtualizes() -> bool {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let mut flags = info.lines().filter(|line| line.starts_with("flags"));
    let can = flags.next().is_some_and(|line| {
        let mut flags = line.split_whitespace();
        flags.any(|flag| flag == "vmx" || flag == "svm")
    });
    can && open().is_ok()
}

fn milliseconds(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}

fn open() -> Result<Kvm, Failure> {
    let kvm = Kvm::new().map_err(|error| explain(&error.into()))?;
    match kvm.get_api_version() {
        version if version == KVM_API_VERSION as i32 => Ok(kvm),
        version => Err(Failure::new(
            Code::Host,
            format!("engine kvm: /dev/kvm has API version {version}, not {KVM_API_VERSION}"),
        )),
    }
}

fn explain(error: &io::Error) -> Failure {
    let failure = Failure::new(
        Code::Host,
        format!("engine kvm: cannot open /dev/kvm: {error}"),
    );
    match error.kind() {
        io::ErrorKind::NotFound => failure.help(
            "enable virtualization in the firmware and load kvm_intel or kvm_amd, or use --engine qemu",
        ),
        io::ErrorKind::PermissionDenied => failure.help(
            "join the group that owns it (`usermod -aG kvm USER`, then log in again), or use --engine qemu",
        ),
        _ => failure.help("use --engine qemu"),
    }
}

enum Measurement {
    Endless,
    Failed(kvm_ioctls::Error),
}

/// How long a virtual processor takes for [`ROUNDS`] rounds of an empty loop in ring 0.
fn time_loop() -> Result<Duration, Measurement> {
    let (sender, result) = mpsc::channel();
    // A loop that never ends is left behind; it goes with this process, or with the next signal at the latest.
    std::thread::spawn(move || {
        let _ = sender.send(run_loop());
    });
    match result.recv_timeout(PATIENCE) {
        Ok(result) => result.map_err(Measurement::Failed),
        Err(_) => Err(Measurement::Endless),
    }
}

fn run_loop() -> Result<Duration, kvm_ioctls::Error> {
    const CODE_AT: u64 = 0x1000;
    // 16-bit real mode: mov ecx, ROUNDS; 1: dec ecx; jnz 1b; hlt
    let mut code = vec![0x66, 0xb9];
    code.extend_from_slice(&ROUNDS.to_le_bytes());
    code.extend_from_slice(&[0x66, 0x49, 0x75, 0xfc, 0xf4]);

    let out_of_memory = |_| kvm_ioctls::Error::new(rustix::io::Errno::NOMEM.raw_os_error());
    let memory: GuestMemoryMmap =
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x4000)]).map_err(out_of_memory)?;
    let host_address = memory
        .get_host_address(GuestAddress(0))
        .map_err(|_| kvm_ioctls::Error::new(rustix::io::Errno::FAULT.raw_os_error()))?;
    memory
        .write_slice(&code, GuestAddress(CODE_AT))
        .map_err(|_| kvm_ioctls::Error::new(rustix::io::Errno::FAULT.raw_os_error()))?;

    let vm = Kvm::new()?.create_vm()?;
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: 0x4000,
        userspace_addr: host_address as u64,
    };
    // SAFETY: the region is one mapping of that size, which `memory` keeps alive until this function returns;
    // `vm` and its vCPU are dropped before it, as they are declared after it.
    unsafe { vm.set_user_memory_region(region) }?;
    let mut vcpu = vm.create_vcpu(0)?;
    let mut sregs = vcpu.get_sregs()?;
    sregs.cs.base = 0;
    sregs.cs.selector = 0;
    vcpu.set_sregs(&sregs)?;
    let mut regs = vcpu.get_regs()?;
    regs.rip = CODE_AT;
    regs.rflags = 2;
    vcpu.set_regs(&regs)?;

    let start = Instant::now();
    loop {
        match vcpu.run() {
            Ok(VcpuExit::Hlt) => return Ok(start.elapsed()),
            Ok(_) => return Err(kvm_ioctls::Error::new(rustix::io::Errno::IO.raw_os_error())),
            Err(error) if error.errno() == rustix::io::Errno::INTR.raw_os_error() => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_kvm_is_said_with_the_remedy() {
        let absent = explain(&io::ErrorKind::NotFound.into());
        assert!(absent.to_string().contains("kvm_intel"), "{absent}");
        let denied = explain(&io::ErrorKind::PermissionDenied.into());
        assert!(denied.to_string().contains("group"), "{denied}");
        assert_eq!(denied.code, Code::Host);
    }

    #[test]
    fn the_loop_ends_where_kvm_works() {
        if Kvm::new().is_err() {
            eprintln!("skipped: no /dev/kvm");
            return;
        }
        match time_loop() {
            Ok(time) => assert!(time > Duration::ZERO),
            Err(Measurement::Endless) => {}
            Err(Measurement::Failed(error)) => panic!("{error}"),
        }
    }
}
