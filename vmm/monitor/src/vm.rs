//! Builds the microVM and runs it.

use std::fs::File;
use std::io::{self, BufRead, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VmFd};
use serde::Serialize;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use crate::config::NodeConfig;
use crate::end::End;
use crate::error::Error;
use crate::filters::Filters;
use crate::interrupt::Router;
use crate::layout::{KVM_TSS, SERIAL_GSI};
use crate::memory::GuestMemory;
use crate::pci::{Bus, MAX_DEVICES};
use crate::pio::{Ports, SerialInterrupt};
use crate::serial::SerialLog;
use crate::vcpu::Machine;
use crate::virtio::net::Carrier;
use crate::virtio::pci::VirtioPci;
use crate::virtio::{VirtioDevice, blk, console, net, rng};
use crate::{acpi, boot, cpu, device_loop, memory, orders, vcpu};

/// The agent's port; the agent in the guest looks for it by this name.
const AGENT_PORT: &str = "hopyard.agent";
const MIN_MEMORY: u64 = 32 << 20;
const MEMORY_STEP: u64 = 2 << 20;
const MAX_VCPUS: u8 = 32;
/// `panic=-1`: a kernel that panics resets at once. `quiet`: each character to the serial port is an exit.
/// The rest keeps the kernel from looking for what this machine does not have.
const CMDLINE: &str = "console=ttyS0 quiet panic=-1 root=/dev/vda ro rootfstype=erofs init=/sbin/hopyard-agent \
     i8042.noaux i8042.nomux i8042.dumbkbd pci=lastbus=0 tsc=reliable no_timer_check";

/// What the lab is told on standard output, a JSON object a line.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
enum Event<'a> {
    /// The guest executes its first instruction.
    Started,
    /// The guest has ended by itself.
    Ended(&'a End),
}

fn tell(event: &Event<'_>) {
    if let Ok(mut line) = serde_json::to_vec(event) {
        line.push(b'\n');
        // A lab that no longer listens has gone, and ends this process by other means.
        let _ = io::stdout().lock().write_all(&line);
    }
}

/// A microVM that has all it needs of the host open, and has started nothing.
#[derive(Debug)]
pub struct Opened<'a> {
    config: &'a NodeConfig,
    kvm: Kvm,
    memory: GuestMemory,
    kernel: File,
    rootfs: File,
    log: SerialLog,
    agent: UnixListener,
}

/// Opens all that a microVM needs but the ports of the switch, which it may have to connect to again.
///
/// # Errors
/// What is not there or out of range.
pub fn open(config: &NodeConfig) -> Result<Opened<'_>, Error> {
    check(config)?;
    let file = |what: &'static str, path: &Path| {
        let path = path.to_owned();
        move |source| Error::File { what, path, source }
    };
    Ok(Opened {
        config,
        kvm: Kvm::new().map_err(|e| Error::OpenKvm { source: e.into() })?,
        memory: memory::allocate(config.memory)?,
        kernel: File::open(&config.kernel).map_err(file("open kernel", &config.kernel))?,
        rootfs: File::open(&config.rootfs)
            .map_err(file("open root file system", &config.rootfs))?,
        log: SerialLog::open(&config.serial_log)
            .map_err(file("create serial log", &config.serial_log))?,
        agent: console::listen(&config.agent_socket)
            .map_err(file("listen on agent socket", &config.agent_socket))?,
    })
}

/// [`open`]s one microVM and [runs](Opened::run) it.
pub fn run(config: &NodeConfig, orders: impl BufRead + Send + 'static) -> Result<End, Error> {
    open(config)?.run(orders)
}

impl Opened<'_> {
    /// Runs it until its guest ends; reports `started` and `ended` on standard output on the way, and does what
    /// [`Order`](crate::Order)s say, one a line.
    ///
    /// # Errors
    /// What the monitor itself cannot do. A guest that panics is no error.
    pub fn run(self, orders: impl BufRead + Send + 'static) -> Result<End, Error> {
        run_opened(self, &Filters::default(), orders)
    }

    /// The same, with a filter of system calls for every thread, this one included: nothing but what a monitor does is possible
    /// afterwards.
    ///
    /// # Errors
    /// As above, and where the kernel has no filters.
    pub fn run_confined(self, orders: impl BufRead + Send + 'static) -> Result<End, Error> {
        let filters = Filters::new().map_err(Error::Filter)?;
        run_opened(self, &filters, orders)
    }
}

fn run_opened(
    opened: Opened<'_>,
    filters: &Filters,
    orders: impl BufRead + Send + 'static,
) -> Result<End, Error> {
    let Opened {
        config,
        kvm,
        memory,
        kernel,
        rootfs,
        log,
        agent,
    } = opened;
    let vm = Arc::new(
        kvm.create_vm()
            .map_err(Error::kvm("create a virtual machine"))?,
    );
    vm.set_tss_address(KVM_TSS)
        .map_err(Error::kvm("place its TSS"))?;
    give_memory(&vm, &memory)?;
    // The interrupt controllers have to exist before the first processor.
    vm.create_irq_chip()
        .map_err(Error::kvm("create interrupt controllers"))?;
    let router = Router::new(vm.clone());
    router
        .install_pins()
        .map_err(Error::kvm("route interrupts"))?;

    let interrupt = EventFd::new(0).map_err(Error::system("create an eventfd"))?;
    vm.register_irqfd(&interrupt, SERIAL_GSI)
        .map_err(Error::kvm("connect the serial port's interrupt"))?;
    let carriers: Vec<_> = config
        .nics
        .iter()
        .map(|nic| Carrier::new(nic.carrier))
        .collect();
    let machine = Machine {
        bus: Bus::new(devices(
            config,
            (rootfs, agent),
            filters,
            &carriers,
            &memory,
            &router,
        )?),
        ports: Arc::new(Ports::new(SerialInterrupt(interrupt), log)),
    };

    let rsdp = acpi::write(&memory, config.vcpus)?;
    let mut cmdline = CMDLINE.to_owned();
    if let Some(more) = &config.cmdline {
        cmdline = format!("{cmdline} {more}");
    }
    let entry = boot::load(&memory, &kernel, &config.kernel, &cmdline, rsdp)?;
    drop(kernel);

    let supported = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(Error::kvm("list processor features"))?;
    let (ended, end) = channel();
    let mut vcpus = Vec::with_capacity(usize::from(config.vcpus));
    for id in 0..config.vcpus {
        let vcpu = vm
            .create_vcpu(u64::from(id))
            .map_err(Error::kvm("create a virtual processor"))?;
        let cpuid = cpu::cpuid(&kvm, &supported, id, config.vcpus)?;
        vcpu.set_cpuid2(&cpuid)
            .map_err(Error::kvm("set processor features"))?;
        cpu::set_msrs(&vcpu)?;
        if id == 0 {
            cpu::enter(&vcpu, &memory, entry)?;
        }
        vcpus.push(vcpu);
    }
    drop(supported);
    let (bus, ports) = (machine.bus.clone(), machine.ports.clone());
    let confine = filters.orders.clone();
    orders::obey(orders, carriers, FIRST_NIC, bus, ports, confine)?;
    tell(&Event::Started);
    for (id, mut vcpu) in (0..).zip(vcpus) {
        let machine = machine.clone();
        let ended = ended.clone();
        let confine = filters.vcpu.clone();
        std::thread::Builder::new()
            .name(format!("vcpu{id}"))
            .spawn(move || {
                confine.this_thread();
                let _ = ended.send(vcpu::run(id, &mut vcpu, &machine));
            })
            .map_err(Error::system("start a processor thread"))?;
    }
    drop(ended);
    // Last, as it has started the others.
    filters.main.this_thread();
    let end = end.recv().unwrap_or_else(|_| {
        Err(Error::Vcpu {
            vcpu: 0,
            reason: "its thread is gone".into(),
        })
    });
    machine.ports.flush();
    if let Ok(end) = &end {
        tell(&Event::Ended(end));
    }
    end
}

fn check(config: &NodeConfig) -> Result<(), Error> {
    let fail = |message: String| Err(Error::Config(message));
    if config.memory < MIN_MEMORY || !config.memory.is_multiple_of(MEMORY_STEP) {
        return fail(format!(
            "memory of {} bytes: it has to be a multiple of 2 MiB and at least 32 MiB",
            config.memory
        ));
    }
    if !(1..=MAX_VCPUS).contains(&config.vcpus) {
        return fail(format!(
            "{} virtual processors: 1 to {MAX_VCPUS} are possible",
            config.vcpus
        ));
    }
    let most = MAX_DEVICES - FIRST_NIC;
    if config.nics.len() > most {
        return fail(format!(
            "{} interfaces: {most} fit the PCI bus",
            config.nics.len()
        ));
    }
    Ok(())
}

fn give_memory(vm: &VmFd, memory: &GuestMemory) -> Result<(), Error> {
    for (slot, region) in (0..).zip(memory.iter()) {
        let area = kvm_userspace_memory_region {
            slot,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
            flags: 0,
        };
        // SAFETY: the area is a mapping of exactly this size that `memory` keeps; the processor threads end
        // with the process, and `memory` is held by the devices that outlive `run`.
        unsafe { vm.set_user_memory_region(area) }.map_err(Error::kvm("map guest memory"))?;
    }
    Ok(())
}

/// Place on the bus of the first NIC, behind the other devices.
const FIRST_NIC: usize = 3;

/// The devices in bus order: disk, agent channel, random numbers, NICs.
fn devices(
    config: &NodeConfig,
    (rootfs, agent): (File, UnixListener),
    filters: &Filters,
    carriers: &[Carrier],
    memory: &GuestMemory,
    router: &Arc<Router>,
) -> Result<Vec<VirtioPci>, Error> {
    let (blk, blk_kicks) = blk::Blk::new(rootfs).map_err(|source| Error::File {
        what: "use root file system",
        path: config.rootfs.clone(),
        source,
    })?;
    let (console, console_kicks) =
        console::Console::new(AGENT_PORT, agent).map_err(Error::system("create an eventfd"))?;
    let (rng, rng_kicks) = rng::Rng::new().map_err(Error::system("create an eventfd"))?;
    let (blk, console, rng) = (
        Arc::new(Mutex::new(blk)),
        Arc::new(Mutex::new(console)),
        Arc::new(Mutex::new(rng)),
    );
    device_loop::spawn(
        vec![blk.clone(), console.clone(), rng.clone()],
        filters.devices.clone(),
    )?;

    let mut devices: Vec<(Box<dyn VirtioDevice>, Vec<EventFd>)> = vec![
        (Box::new(blk), blk_kicks),
        (Box::new(console), console_kicks),
        (Box::new(rng), rng_kicks),
    ];
    debug_assert_eq!(devices.len(), FIRST_NIC);
    let ports = crate::virtio::connect(net::sockets(&config.nics), filters.switch.clone())?;
    let nics = config.nics.iter().zip(carriers).zip(ports).enumerate();
    for (index, ((nic, carrier), (client, offered))) in nics {
        let (net, kicks) = net::Net::new(index, nic, carrier.clone(), client, offered)?;
        devices.push((Box::new(net), kicks));
    }
    devices
        .into_iter()
        .enumerate()
        .map(|(index, (device, kicks))| VirtioPci::new(index, device, kicks, memory, router))
        .collect()
}
