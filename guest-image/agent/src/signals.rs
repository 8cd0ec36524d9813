//! Signals as a file descriptor.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A child has ended.
    Child,
    /// Someone wants the node switched off (`reboot`: booted again).
    End {
        /// Boot again.
        reboot: bool,
    },
}

/// Tells PID 1 to switch off.
pub const POWER_OFF: i32 = libc::SIGUSR1;
/// Tells PID 1 to boot again.
pub const REBOOT: i32 = libc::SIGUSR2;

/// The signals of this process, from now on delivered here and nowhere else.
#[derive(Debug)]
pub struct Signals(OwnedFd);

/// Blocks no signal any more; for a child between fork and exec, as it is one async-signal-safe system call.
pub fn unblock_all() -> io::Result<()> {
    // SAFETY: an all-zero sigset_t is the empty set on Linux.
    let none: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `none` is a live, initialised sigset_t; no old mask is asked for.
    if unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut()) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

impl Signals {
    /// Blocks the signals that the agent knows and opens a descriptor for them. Children inherit that: they have to
    /// call [`unblock_all`].
    pub fn new() -> io::Result<Self> {
        // SAFETY: an all-zero sigset_t is a valid value, and `sigemptyset` sets it anyway.
        let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
        // SAFETY: `set` is a live sigset_t.
        unsafe { libc::sigemptyset(&raw mut set) };
        for signal in [
            libc::SIGCHLD,
            POWER_OFF,
            REBOOT,
            libc::SIGTERM,
            libc::SIGINT,
        ] {
            // SAFETY: as above; the signal numbers are valid.
            unsafe { libc::sigaddset(&raw mut set, signal) };
        }
        // SAFETY: `set` is a live, initialised sigset_t; no old mask is asked for.
        if unsafe { libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) } != 0
        {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `set` is a live, initialised sigset_t; -1 asks for a new descriptor.
        let fd =
            unsafe { libc::signalfd(-1, &raw const set, libc::SFD_NONBLOCK | libc::SFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `signalfd` has just returned this descriptor, nobody else owns it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// The next signal that is pending.
    pub fn next_event(&self) -> Option<Event> {
        loop {
            let mut info = [0; size_of::<libc::signalfd_siginfo>()];
            let read = rustix::io::read(&self.0, &mut info).ok()?;
            if read < info.len() {
                return None;
            }
            // `ssi_signo` is the first field.
            let signal = i32::from_ne_bytes([info[0], info[1], info[2], info[3]]);
            match signal {
                libc::SIGCHLD => return Some(Event::Child),
                POWER_OFF => return Some(Event::End { reboot: false }),
                // SIGINT is what the kernel sends to PID 1 for Ctrl-Alt-Del.
                REBOOT | libc::SIGINT => return Some(Event::End { reboot: true }),
                _ => {}
            }
        }
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
