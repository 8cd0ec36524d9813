//! The system calls that each kind of thread of a switch keeps; any other ends the process.
//!
//! What guests can reach is a shard, which reads their rings and memory, and the thread of a port, which reads what their front-end sends:
//! these two have the short tables. The others serve the lab, and make ports and devices when it changes.
//!
//! `docs/isolation.md` has these tables; a test keeps them current, another makes every call that is not in them.

use jail::call;
use jail::filter::{Call, Confine, FilterError, THREAD, Table};

// The bindings lack these.
const TUNSETIFF: u64 = 0x4004_54ca;
const TUNSETOFFLOAD: u64 = 0x4004_54d0;
const TUNSETVNETLE: u64 = 0x4004_54dc;
const SIOCGIFINDEX: u64 = 0x8933;

/// What the kernel and the C library do for a thread that is being started, and for the filter it takes.
const START: &[Call] = &[
    call!(SYS_clone3, "starts a thread"),
    call!(
        SYS_prctl,
        0,
        [libc::PR_SET_NAME, libc::PR_SET_NO_NEW_PRIVS],
        "a thread's name; its filter"
    ),
    call!(
        SYS_seccomp,
        0,
        [libc::SECCOMP_SET_MODE_FILTER],
        "a thread takes a filter, which takes away more"
    ),
    call!(SYS_rseq, "the C library, in a new thread"),
    call!(SYS_set_robust_list, "the same"),
    call!(SYS_sched_getaffinity, "the same"),
];

/// A connection to a front-end, and what comes over it.
const FRONT_END: &[Call] = &[
    call!(SYS_accept4, "the next front-end"),
    call!(
        SYS_socket,
        0,
        [libc::AF_UNIX],
        "connects to a front-end that listens"
    ),
    call!(SYS_connect, "the same"),
    call!(SYS_recvmsg, "requests, with descriptors"),
    call!(SYS_recvfrom, "looks at a request before it is taken"),
    call!(SYS_sendmsg, "answers"),
    call!(
        SYS_fcntl,
        1,
        [
            libc::F_DUPFD_CLOEXEC,
            libc::F_SETFD,
            libc::F_GETFL,
            libc::F_SETFL,
            libc::F_GET_SEALS
        ],
        "descriptors that came: that they do not block, whether memory can be taken away"
    ),
    call!(SYS_fstat, "what a descriptor is, and how large"),
    call!(SYS_fstatfs, "whether memory is on huge pages"),
];

/// Devices of external nodes, when they are opened.
const DEVICES: &[Call] = &[
    call!(SYS_open, "a TAP device"),
    call!(SYS_openat, "the folder of a new socket"),
    call!(
        SYS_ioctl,
        1,
        [
            TUNSETIFF,
            TUNSETOFFLOAD,
            TUNSETVNETLE,
            SIOCGIFINDEX,
            libc::SIOCGIFFLAGS,
            libc::SIOCSIFFLAGS,
            libc::SIOCGIFMTU,
            libc::SIOCSIFMTU,
            libc::FIONBIO
        ],
        "a TAP device; the index, MTU and state of an interface; a socket that does not block"
    ),
    call!(
        SYS_socket,
        0,
        [
            libc::AF_UNIX,
            libc::AF_INET,
            libc::AF_INET6,
            libc::AF_PACKET
        ],
        "asks for interfaces; an interface of the host; a tunnel"
    ),
    call!(SYS_setsockopt, "the same"),
    call!(SYS_bind, "the same"),
];

/// Carries frames: reads the rings and the memory of guests.
pub const SHARD: Table = Table {
    name: "vswitch: shard",
    calls: &[
        call!(SYS_epoll_pwait2, "waits for kicks and frames"),
        call!(SYS_epoll_pwait, "the same, on kernels before 5.11"),
        call!(SYS_epoll_ctl, "a port or a device comes or goes"),
        call!(
            SYS_prctl,
            0,
            [libc::PR_SET_TIMERSLACK],
            "once: wakes up when it has to"
        ),
        call!(SYS_read, "the eventfd by which the shard is woken"),
        call!(SYS_getrandom, "the keys of hash tables, once"),
        call!(SYS_readv, "frames of a TAP device"),
        call!(SYS_writev, "the same"),
        call!(SYS_recvmmsg, "frames of an interface or a tunnel"),
        call!(SYS_sendmmsg, "the same"),
    ],
    with: &[THREAD],
};

/// Serves the front-end of one port.
pub const PORT: Table = Table {
    name: "vswitch: port",
    calls: &[
        call!(
            SYS_statx,
            "its socket, when the port is gone: whether it is still its own"
        ),
        call!(SYS_unlink, "the same"),
    ],
    with: &[THREAD, FRONT_END],
};

/// Wakes a shard that should have looked by itself.
pub const WATCHDOG: Table = Table {
    name: "vswitch: watchdog",
    calls: &[call!(
        SYS_tgkill,
        2,
        [libc::SIGURG],
        "a shard that sleeps too long"
    )],
    with: &[THREAD],
};

/// Hears from the shards, and opens devices again that were lost.
pub const REPORTS: Table = Table {
    name: "vswitch: reports",
    calls: &[],
    with: &[THREAD, DEVICES],
};

/// Writes a capture that was asked for on the command line.
pub const CAPTURE: Table = Table {
    name: "vswitch: capture",
    calls: &[],
    with: &[THREAD],
};

/// Takes the lab's requests. It changes the wiring: what it starts for a new port keeps what it has, or less.
pub const CONTROL: Table = Table {
    name: "vswitch: control",
    calls: &[
        call!(SYS_read, "requests"),
        call!(SYS_sendto, "answers; a capture"),
        call!(SYS_ppoll, "whether the reader of a capture is still there"),
        call!(SYS_poll, "the same"),
        call!(SYS_getrandom, "the keys of hash tables"),
        call!(SYS_listen, "the socket of a new port"),
        call!(SYS_flock, "the same: one switch at a time"),
        call!(SYS_statx, "the same: whether there is one already"),
        call!(SYS_newfstatat, "the same"),
        call!(SYS_unlink, "a socket that nobody listens on any more"),
        call!(SYS_mkdir, "the folder of a new node's sockets"),
        call!(SYS_rmdir, "the same, of one that is gone"),
        call!(SYS_shutdown, "the connection of a port that is gone"),
    ],
    with: &[THREAD, START, FRONT_END, DEVICES],
};

/// Waits for the end, and ends everything.
pub const MAIN: Table = Table {
    name: "vswitch: main",
    calls: &[
        call!(SYS_rt_sigtimedwait, "the signal that ends the switch"),
        call!(SYS_shutdown, "connections, in the end"),
        call!(SYS_statx, "sockets: whether they are still the switch's"),
        call!(SYS_unlink, "sockets, in the end"),
        call!(SYS_rmdir, "the same"),
    ],
    with: &[THREAD],
};

/// All of them.
pub const TABLES: [Table; 7] = [MAIN, SHARD, PORT, WATCHDOG, REPORTS, CAPTURE, CONTROL];

/// The filters, each applied by its thread before it does anything else.
#[derive(Debug, Clone, Default)]
pub struct Filters {
    /// Waits for the end.
    pub main: Confine,
    /// Each shard.
    pub shard: Confine,
    /// Each port.
    pub port: Confine,
    /// The watchdog.
    pub watchdog: Confine,
    /// Hears from shards.
    pub reports: Confine,
    /// Each capture to a file.
    pub capture: Confine,
    /// The control socket and its clients.
    pub control: Confine,
}

impl Filters {
    /// Those of the program.
    pub fn new() -> Result<Self, FilterError> {
        jail::filter::prepare();
        Ok(Self {
            main: MAIN.confine()?,
            shard: SHARD.confine()?,
            port: PORT.confine()?,
            watchdog: WATCHDOG.confine()?,
            reports: REPORTS.confine()?,
            capture: CAPTURE.confine()?,
            control: CONTROL.confine()?,
        })
    }
}
