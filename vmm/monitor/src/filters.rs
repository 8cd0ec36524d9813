//! The system calls that each kind of thread keeps once the guest is about to run; any other ends the process.
//!
//! `docs/isolation.md` has these tables; a test keeps them current, another makes every call that is not in them.

use jail::call;
use jail::filter::{Call, Confine, FilterError, THREAD, Table};

// `_IOW(KVMIO, …)` and the like, from linux/kvm.h; the bindings have no ioctl numbers.
const KVM_RUN: u64 = 0xae80;
const KVM_GET_REGS: u64 = 0x8090_ae81;
const KVM_SET_GSI_ROUTING: u64 = 0x4008_ae6a;
const KVM_IRQFD: u64 = 0x4020_ae76;

/// What is written to the serial log, by whoever writes.
const SERIAL_LOG: &[Call] = &[
    call!(SYS_pwrite64, "the serial log"),
    call!(SYS_pread64, "the serial log is cut: its newer half is kept"),
    call!(SYS_ftruncate, "the serial log is cut"),
];

/// Runs the guest; its exits reach every device's registers.
pub const VCPU: Table = Table {
    name: "vmm node: vcpu",
    calls: &[
        call!(
            SYS_ioctl,
            1,
            [KVM_RUN, KVM_GET_REGS, KVM_SET_GSI_ROUTING, KVM_IRQFD],
            "runs the guest; its registers, when KVM cannot go on; MSI-X vectors are routed, masked and unmasked"
        ),
        call!(
            SYS_fcntl,
            1,
            [libc::F_DUPFD_CLOEXEC],
            "the eventfds of a device that the driver sets up"
        ),
        call!(
            SYS_eventfd2,
            "the interrupt of a NIC's ring whose driver polls"
        ),
        call!(SYS_poll, "whether a masked vector is pending"),
        call!(SYS_ppoll, "the same"),
        call!(SYS_read, "eventfds"),
        call!(SYS_shutdown, "the agent's stream, when the guest has ended"),
    ],
    with: &[THREAD, SERIAL_LOG],
};

/// Serves disk, agent port and random numbers.
pub const DEVICES: Table = Table {
    name: "vmm node: devices",
    calls: &[
        call!(
            SYS_epoll_wait,
            "waits for rings that are kicked and for the agent's host end"
        ),
        call!(SYS_epoll_pwait, "the same"),
        call!(SYS_epoll_ctl, "the agent's host end comes and goes"),
        call!(SYS_preadv, "reads the disk image"),
        call!(SYS_read, "eventfds"),
        call!(SYS_accept4, "the agent's host end"),
        call!(
            SYS_ioctl,
            1,
            [libc::FIONBIO],
            "the agent's stream does not block"
        ),
        call!(SYS_recvfrom, "the agent's stream"),
        call!(SYS_sendto, "the agent's stream"),
        call!(SYS_shutdown, "the agent's stream"),
        call!(SYS_getrandom, "random numbers for the guest"),
    ],
    with: &[THREAD],
};

/// Speaks vhost-user with the switch.
pub const SWITCH: Table = Table {
    name: "vmm node: switch",
    calls: &[
        call!(
            SYS_socket,
            0,
            [libc::AF_UNIX],
            "a new connection to the switch, in place of one that was lost"
        ),
        call!(
            SYS_connect,
            "the same: only the node's own ports are in sight"
        ),
        call!(SYS_poll, "waits for orders and for the loss of the switch"),
        call!(SYS_ppoll, "the same"),
        call!(SYS_read, "eventfds"),
        call!(
            SYS_sendmsg,
            "requests, with the descriptors of memory and rings"
        ),
        call!(SYS_recvmsg, "answers"),
        call!(SYS_recvfrom, "answers"),
    ],
    with: &[THREAD],
};

/// Takes the lab's orders from standard input.
pub const ORDERS: Table = Table {
    name: "vmm node: orders",
    calls: &[call!(SYS_read, "orders")],
    // What is typed has the log written at once.
    with: &[THREAD, SERIAL_LOG],
};

/// Waits for the end of the guest and reports it.
pub const MAIN: Table = Table {
    name: "vmm node: main",
    calls: &[call!(
        SYS_shutdown,
        "the agent's stream, when the guest has ended"
    )],
    with: &[THREAD, SERIAL_LOG],
};

/// All of them.
pub const TABLES: [Table; 5] = [MAIN, VCPU, DEVICES, SWITCH, ORDERS];

/// The filters, each applied by its thread before it does anything else.
#[derive(Debug, Clone, Default)]
pub struct Filters {
    /// Waits for the end.
    pub main: Confine,
    /// Each virtual processor.
    pub vcpu: Confine,
    /// The device loop.
    pub devices: Confine,
    /// The connections to the switch.
    pub switch: Confine,
    /// The lab's orders.
    pub orders: Confine,
}

impl Filters {
    /// Those of a monitor in jail.
    pub fn new() -> Result<Self, FilterError> {
        jail::filter::prepare();
        Ok(Self {
            main: MAIN.confine()?,
            vcpu: VCPU.confine()?,
            devices: DEVICES.confine()?,
            switch: SWITCH.confine()?,
            orders: ORDERS.confine()?,
        })
    }
}
