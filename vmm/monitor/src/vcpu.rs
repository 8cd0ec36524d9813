//! One thread per virtual processor: runs the guest and serves its exits.

use std::sync::Arc;

use kvm_ioctls::{VcpuExit, VcpuFd};

use crate::end::{End, EndReason};
use crate::error::Error;
use crate::pci::Bus;
use crate::pio::Ports;

/// What a virtual processor's exits are served by.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Memory-mapped registers.
    pub bus: Arc<Bus>,
    /// I/O ports.
    pub ports: Arc<Ports>,
}

/// Runs processor `id` until the guest ends.
pub fn run(id: u8, vcpu: &mut VcpuFd, machine: &Machine) -> Result<End, Error> {
    let stop = |reason: String| Err(Error::Vcpu { vcpu: id, reason });
    loop {
        match vcpu.run() {
            Ok(VcpuExit::MmioRead(address, data)) => machine.bus.read(address, data),
            Ok(VcpuExit::MmioWrite(address, data)) => machine.bus.write(address, data),
            Ok(VcpuExit::IoIn(port, data)) => machine.ports.read(port, data),
            Ok(VcpuExit::IoOut(port, data)) => {
                if let Some(end) = machine.ports.write(port, data) {
                    return Ok(end);
                }
            }
            // On Intel and on AMD without a dedicated exit KVM reports a triple fault as a shutdown.
            Ok(VcpuExit::Shutdown) => {
                return Ok(End {
                    reason: EndReason::TripleFault,
                    detail: String::new(),
                });
            }
            Ok(VcpuExit::InternalError) => {
                let reason = internal_error(vcpu);
                return stop(reason);
            }
            Ok(VcpuExit::FailEntry(reason, cpu)) => {
                return stop(format!(
                    "the processor refused to enter the guest (hardware reason {reason:#x} on host processor {cpu})"
                ));
            }
            Ok(VcpuExit::Intr) => {}
            Ok(other) => return stop(format!("unexpected exit {other:?}")),
            // EAGAIN: an application processor before its SIPI. EINTR: a signal, debuggers send them.
            Err(error) if matches!(error.errno(), libc::EAGAIN | libc::EINTR) => {}
            Err(error) => return stop(format!("KVM_RUN failed: {error}")),
        }
    }
}

/// KVM could not emulate an instruction; the run page has its bytes.
fn internal_error(vcpu: &mut VcpuFd) -> String {
    let run = vcpu.get_kvm_run();
    // SAFETY: the exit reason is KVM_EXIT_INTERNAL_ERROR, for which KVM fills this member of the union; all
    // its fields are plain integers.
    let internal = unsafe { run.__bindgen_anon_1.internal };
    let words = internal.ndata.min(internal.data.len() as u32) as usize;
    let data: Vec<_> = internal.data[..words]
        .iter()
        .map(|word| format!("{word:#x}"))
        .collect();
    let rip = vcpu.get_regs().map_or(0, |regs| regs.rip);
    format!(
        "KVM cannot go on (internal error {}, rip {rip:#x}, data {}); a KVM that emulates ring 0 cannot boot Linux: use --engine qemu",
        internal.suberror,
        data.join(" ")
    )
}
