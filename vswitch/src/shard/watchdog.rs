//! Frees a shard that a front-end holds up.
//!
//! A front-end shares the call descriptors with the switch, flags included: it can make writes to one block at any moment, and fill
//! its counter. No write to an eventfd is free of that: `pwritev2` refuses `RWF_NOWAIT` there, and looking at the flags before
//! each write is a race that the front-end wins. So a blocked write is ended from outside: a shard that is awake and does not get on
//! is sent a signal that does nothing but interrupt it, which no other call of a shard minds.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{JoinHandle, Thread};
use std::time::Duration;

use jail::filter::Confine;
use nix::sys::pthread::{Pthread, pthread_kill, pthread_self};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use crate::counters::ShardCounters;

/// How long a shard may be awake without ending a turn; what holds it up ends after twice that.
const PERIOD: Duration = Duration::from_millis(10);
/// So many periods after the last in which a shard was awake the watchdog sleeps. To wake it costs the shard that wakes up a system call and,
/// where there is one processor only, waiting until it has looked: for the first frame after a pause, not for each.
const LINGER: u32 = 25;
/// Ignored unless somebody handles it, and used for nothing else here.
const SIGNAL: Signal = Signal::SIGURG;

/// What shards tell the watchdog, and how they wake it.
#[derive(Debug)]
pub struct Watch {
    watched: Vec<Watched>,
    /// All shards sleep, and so does the watchdog.
    resting: AtomicBool,
    ended: AtomicBool,
    watchdog: OnceLock<Thread>,
}

#[derive(Debug)]
struct Watched {
    counters: Arc<ShardCounters>,
    awake: AtomicBool,
    /// The shard's thread, while it runs.
    thread: Mutex<Option<Pthread>>,
}

impl Watched {
    fn thread(&self) -> MutexGuard<'_, Option<Pthread>> {
        self.thread.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A shard's own end. The shard is watched until it is dropped.
#[derive(Debug)]
pub(super) struct OnWatch {
    watch: Arc<Watch>,
    number: usize,
}

impl OnWatch {
    fn watched(&self) -> &Watched {
        &self.watch.watched[self.number]
    }

    /// To be called before the shard sleeps.
    pub(super) fn sleeps(&self) {
        self.watched().awake.store(false, Ordering::SeqCst);
    }

    /// To be called after it slept.
    pub(super) fn wakes(&self) {
        // Comes before the look at `resting`; the watchdog does it the other way round.
        self.watched().awake.store(true, Ordering::SeqCst);
        if self.watch.resting.load(Ordering::SeqCst) {
            self.watch.rouse();
        }
    }
}

impl Drop for OnWatch {
    fn drop(&mut self) {
        *self.watched().thread() = None;
    }
}

impl Watch {
    /// For shards that count here.
    pub fn new(shards: impl IntoIterator<Item = Arc<ShardCounters>>) -> Arc<Self> {
        let watched = |counters| Watched {
            counters,
            awake: AtomicBool::new(false),
            thread: Mutex::new(None),
        };
        Arc::new(Self {
            watched: shards.into_iter().map(watched).collect(),
            resting: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            watchdog: OnceLock::new(),
        })
    }

    /// Watches the calling thread, which is shard `number`.
    pub(super) fn over(self: Arc<Self>, number: usize) -> OnWatch {
        *self.watched[number].thread() = Some(pthread_self());
        let shard = OnWatch {
            watch: self,
            number,
        };
        shard.wakes();
        shard
    }

    fn rouse(&self) {
        self.resting.store(false, Ordering::SeqCst);
        if let Some(watchdog) = self.watchdog.get() {
            watchdog.unpark();
        }
    }

    fn run(&self) {
        let mut seen = vec![None; self.watched.len()];
        let mut quiet = 0;
        while !self.ended.load(Ordering::SeqCst) {
            let mut awake = false;
            for (shard, seen) in self.watched.iter().zip(&mut seen) {
                let turns = shard.counters.turns.get();
                if !shard.awake.load(Ordering::SeqCst) {
                    *seen = None;
                    continue;
                }
                awake = true;
                if seen.replace(turns) == Some(turns)
                    && let Some(thread) = *shard.thread()
                {
                    // The thread runs as long as its entry is there, and nothing else can be wrong.
                    let _ = pthread_kill(thread, SIGNAL);
                }
            }
            quiet = if awake { 0 } else { quiet + 1 };
            if quiet < LINGER {
                std::thread::park_timeout(PERIOD);
                continue;
            }
            quiet = 0;
            self.resting.store(true, Ordering::SeqCst);
            let still = |s: &Watched| !s.awake.load(Ordering::SeqCst);
            if self.watched.iter().all(still) && !self.ended.load(Ordering::SeqCst) {
                std::thread::park();
            }
            self.resting.store(false, Ordering::SeqCst);
        }
    }
}

/// The running watchdog. Ends when it is dropped.
#[derive(Debug)]
pub struct Watchdog {
    watch: Arc<Watch>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    /// Starts it. It handles `SIGURG` for the whole process.
    pub fn start(watch: Arc<Watch>, confine: Confine) -> io::Result<Self> {
        extern "C" fn nothing(_: i32) {}
        // Without SA_RESTART, so that a call that is interrupted returns.
        let action = SigAction::new(
            SigHandler::Handler(nothing),
            SaFlags::empty(),
            SigSet::empty(),
        );
        // SAFETY: a handler that does nothing can run at any point; nobody else in the process handles this signal.
        unsafe { sigaction(SIGNAL, &action) }?;
        let thread = std::thread::Builder::new().name("watchdog".into());
        let run = Arc::clone(&watch);
        let thread = thread.spawn(move || {
            confine.this_thread();
            run.run();
        })?;
        // Set once, here.
        let _ = watch.watchdog.set(thread.thread().clone());
        Ok(Self {
            watch,
            thread: Some(thread),
        })
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.watch.ended.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // A panic has been reported by the thread itself.
            let _ = thread.join();
        }
    }
}
