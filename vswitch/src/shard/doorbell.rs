//! Where a shard sleeps until somebody wants something of it or a time has come.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::time::Duration;

use nix::sys::epoll::{Epoll, EpollEvent, EpollTimeout};
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;

/// Events taken from the kernel at a time.
const EVENTS: usize = 64;

/// A set of descriptors, each with a token.
#[derive(Debug)]
pub(super) struct Doorbell {
    epoll: Epoll,
}

impl Doorbell {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            epoll: Epoll(epoll::create(CreateFlags::CLOEXEC)?),
        })
    }

    /// Rings for as long as `fd` can be read.
    pub(super) fn add(&self, fd: impl AsFd, token: u64) -> io::Result<()> {
        epoll::add(&self.epoll.0, fd, EventData::new_u64(token), EventFlags::IN)?;
        Ok(())
    }

    /// Rings each time something new can be read from `fd`; an eventfd of a front-end, which could make that block, never has to be.
    pub(super) fn add_edge(&self, fd: impl AsFd, token: u64) -> Result<(), Errno> {
        let flags = EventFlags::IN | EventFlags::ET;
        epoll::add(&self.epoll.0, fd, EventData::new_u64(token), flags)
    }

    pub(super) fn remove(&self, fd: impl AsFd) {
        // It was added.
        let _ = epoll::delete(&self.epoll.0, fd);
    }

    /// Waits until it rings, no longer than `time`; hands the tokens to `rung`.
    pub(super) fn wait(&self, time: Option<Duration>, mut rung: impl FnMut(u64)) {
        let timeout = time.map(|d| Timespec {
            tv_sec: d.as_secs() as i64,
            tv_nsec: d.subsec_nanos().into(),
        });
        let mut events = [MaybeUninit::<Event>::uninit(); EVENTS];
        match epoll::wait(&self.epoll.0, &mut events, timeout.as_ref()) {
            Ok((events, _)) => {
                for event in events {
                    rung(event.data.u64());
                }
            }
            Err(Errno::NOSYS) => self.wait_coarsely(time, rung),
            // Interrupted by a signal.
            Err(_) => {}
        }
    }

    /// Without epoll_pwait2, which valgrind does not know: in whole milliseconds.
    #[cold]
    fn wait_coarsely(&self, time: Option<Duration>, mut rung: impl FnMut(u64)) {
        let timeout = time.map_or(EpollTimeout::NONE, |d| {
            let ms = d.as_nanos().div_ceil(1_000_000);
            EpollTimeout::try_from(ms).unwrap_or(EpollTimeout::MAX)
        });
        let mut events = [EpollEvent::empty(); EVENTS];
        if let Ok(n) = self.epoll.wait(&mut events, timeout) {
            for event in &events[..n] {
                rung(event.data());
            }
        }
    }
}
