//! Shards: threads that own rings, links and layer-2 nodes outright.

mod agenda;
mod change;
mod doorbell;
mod engine;
mod forward;
mod lay_out;
mod load;
mod mailbox;
mod outside;
mod pool;
mod rewire;
mod shortcut;
mod take;
mod tap;
mod watchdog;

use std::io;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::thread::JoinHandle;
use std::time::Duration;

use jail::filter::Confine;
use rustix::io::Errno;
use rustix::thread::{CpuSet, sched_setaffinity};
use topology::model::Timing;

pub use engine::{Engine, Queue, Stopped};
pub use mailbox::{Gone, Handle, Message, Returned};
pub use pool::{KEPT, Pool, Slot};
pub use rewire::Rewire;
pub use watchdog::{Watch, Watchdog};

use crate::clock::Time;
use crate::config::ShardPlan;
use crate::counters::ShardCounters;
use crate::l2;
use crate::ring::EventFd;
use doorbell::Doorbell;
use load::Load;
use mailbox::Mailbox;
use watchdog::OnWatch;

/// The token of the mailbox; ports have their index, external nodes theirs after [`OUTSIDE`].
const MAILBOX: u64 = u64::MAX;
const OUTSIDE: u64 = 1 << 32;
/// How long a polling shard may go without asking the kernel for kicks of other ports.
const KICK_INTERVAL: Duration = Duration::from_micros(20);

/// How a shard waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// How long a ring is polled after its last frame.
    pub linger: Duration,
    /// So many rings are polled for ever.
    pub keep: usize,
    /// How long before a deadline sleeping gives way to spinning.
    pub spin: Duration,
}

impl From<Timing> for Patience {
    /// A wake-up from sleep is late by tens of microseconds, on a virtual machine by a hundred. To look at sixteen rings takes
    /// less than a tenth of a microsecond.
    fn from(timing: Timing) -> Self {
        let (linger, keep, spin) = match timing {
            Timing::Eco => (0, 0, 0),
            Timing::Balanced => (50, 0, 0),
            Timing::Exact => (200, 16, 150),
        };
        Self {
            linger: Duration::from_micros(linger),
            keep,
            spin: Duration::from_micros(spin),
        }
    }
}

/// Something people should know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// A ring was stopped because the guest broke the rules.
    Stopped(Stopped),
    /// Something is wrong around a layer-2 node.
    Bridge {
        /// Its index in the shard.
        bridge: usize,
        /// What.
        notice: l2::Notice,
    },
    /// The carrier of one direction of a link has come or gone.
    Carrier {
        /// The direction's index in the shard.
        lane: usize,
        /// Whether there is one now.
        up: bool,
    },
    /// The device of an external node is of no use any more; the shard has let go of it.
    Lost {
        /// The node's index in the shard.
        external: usize,
        /// What the kernel said.
        error: Errno,
    },
}

/// A notice with the number of its shard.
pub type Report = (usize, Notice);

/// How a shard's thread runs.
#[derive(Debug, Clone, Default)]
pub struct Placement {
    /// On this processor; wherever the system puts it if none is given.
    pub cpu: Option<usize>,
    /// With these system calls.
    pub confine: Confine,
}

/// Starts the thread of shard `number`. It ends on [`Message::Stop`].
pub fn spawn(
    number: usize,
    plan: ShardPlan,
    timing: Timing,
    origin: Time,
    placement: Placement,
    reports: SyncSender<Report>,
    watch: Arc<Watch>,
) -> io::Result<(Handle, JoinHandle<()>)> {
    let (handle, mailbox) = Mailbox::new()?;
    let doorbell = Doorbell::new()?;
    doorbell.add(&mailbox, MAILBOX)?;
    let patience = Patience::from(timing);
    let counters = Arc::clone(&plan.counters);
    let kicks = plan.ports.iter().map(|_| None).collect();
    let mut engine = Engine::new(plan, patience, origin);
    engine.measure_by(Time::now);
    let shard = Shard {
        number,
        engine,
        patience,
        mailbox,
        doorbell,
        kicks,
        reports,
        counters,
    };
    let thread = std::thread::Builder::new()
        .name(format!("shard-{number}"))
        .spawn(move || {
            if let Some(cpu) = placement.cpu {
                let mut set = CpuSet::new();
                set.set(cpu);
                // It was found to be allowed before.
                let _ = sched_setaffinity(None, &set);
            }
            placement.confine.this_thread();
            shard.run(&watch.over(number));
        })?;
    Ok((handle, thread))
}

struct Shard {
    number: usize,
    engine: Engine,
    patience: Patience,
    mailbox: Mailbox,
    doorbell: Doorbell,
    /// The kick of each port whose transmit ring is served.
    kicks: Vec<Option<EventFd>>,
    reports: SyncSender<Report>,
    counters: Arc<ShardCounters>,
}

/// What to do between two turns.
#[derive(Debug, PartialEq, Eq)]
enum Wait {
    /// Nothing.
    Not,
    /// Look for kicks.
    Look,
    /// Sleep, at most so long.
    Sleep(Option<Duration>),
}

impl Shard {
    fn run(mut self, watch: &OnWatch) {
        // The default slack of 50 µs is added to every sleep.
        if let Some(slack) = NonZeroU64::new(1) {
            let _ = rustix::thread::set_current_timer_slack(Some(slack));
        }
        let mut looked = Time::now();
        let mut load = Load::new(Arc::clone(&self.counters), looked);
        loop {
            if self.mailbox.is_pending() && !self.read_mail() {
                return;
            }
            let now = Time::now();
            load.turn(now);
            let busy = self.engine.turn(now);
            load.was(busy);
            for stopped in self.engine.take_stopped() {
                // If nobody keeps up with reading reports, the counters still tell.
                let _ = self
                    .reports
                    .try_send((self.number, Notice::Stopped(stopped)));
            }
            for notice in self.engine.take_notices() {
                if let Notice::Lost { .. } | Notice::Carrier { .. } = notice {
                    // Somebody acts on these; whoever reads does not wait for a shard.
                    let _ = self.reports.send((self.number, notice));
                } else {
                    let _ = self.reports.try_send((self.number, notice));
                }
            }
            let wait = match self.wait(now, looked) {
                Wait::Not => {
                    if !busy {
                        std::hint::spin_loop();
                    }
                    continue;
                }
                Wait::Look => Some(Duration::ZERO),
                Wait::Sleep(time) => {
                    self.counters.sleeps.add(1);
                    time
                }
            };
            let sleeps = wait != Some(Duration::ZERO);
            if sleeps {
                load.sleep(Time::now());
                watch.sleeps();
            }
            self.collect_kicks(wait);
            looked = Time::now();
            if sleeps {
                watch.wakes();
                load.wake(looked);
            }
        }
    }

    /// Decides how to spend the time until the next turn.
    fn wait(&self, now: Time, looked: Time) -> Wait {
        let look = if now.since(looked) >= KICK_INTERVAL {
            Wait::Look
        } else {
            Wait::Not
        };
        if self.engine.is_polling() {
            return look;
        }
        let Some(deadline) = self.engine.next_deadline() else {
            return Wait::Sleep(None);
        };
        let until = (deadline - self.patience.spin).since(Time::now());
        if until.is_zero() {
            look
        } else {
            Wait::Sleep(Some(until))
        }
    }

    fn collect_kicks(&mut self, wait: Option<Duration>) {
        let (engine, mailbox) = (&mut self.engine, &mut self.mailbox);
        self.doorbell.wait(wait, |token| {
            if token == MAILBOX {
                mailbox.heard();
            } else if token >= OUTSIDE {
                engine.outside_ready((token - OUTSIDE) as usize);
            } else {
                engine.kicked(token as usize, Time::now());
            }
        });
    }

    /// Does what control threads ask for; `false` to end.
    fn read_mail(&mut self) -> bool {
        self.mailbox.clear();
        while let Some(message) = self.mailbox.next() {
            match message {
                Message::AddTx {
                    port,
                    ring,
                    kick,
                    done,
                } => {
                    self.unwatch(port);
                    let watched = self.doorbell.add_edge(&kick, port as u64);
                    self.kicks[port] = watched.is_ok().then_some(kick);
                    self.engine.add_tx(port, ring, Time::now());
                    // Who does not wait for it has ended.
                    let _ = done.send(());
                }
                Message::AddRx { port, ring, done } => {
                    self.engine.add_rx(port, ring);
                    // Who does not wait for it has ended.
                    let _ = done.send(());
                }
                Message::Remove { port, queue, ack } => {
                    let returned = match queue {
                        Queue::Transmit => {
                            self.unwatch(port);
                            self.engine.remove_tx(port).map(Returned::Tx)
                        }
                        Queue::Receive => self.engine.remove_rx(port).map(Returned::Rx),
                    };
                    // A control thread that does not wait for the answer has ended.
                    let _ = ack.send(returned);
                }
                Message::Change { change, done } => {
                    self.engine.change(&change, Time::now());
                    // Who does not wait for it has ended.
                    let _ = done.send(());
                }
                Message::Rewire { mut rewire, done } => {
                    self.engine.rewire(&mut rewire, Time::now());
                    self.kicks.resize_with(self.engine.port_count(), || None);
                    // Who does not wait for it has ended.
                    let _ = done.send(rewire);
                }
                Message::AddExternal { external, device } => {
                    // Edge-triggered: it is read until it has nothing more.
                    let token = OUTSIDE + external as u64;
                    match self.doorbell.add_edge(&*device, token) {
                        // Closing it, which nobody else has open, takes it out of the set.
                        Ok(()) => self.engine.add_external(external, device),
                        Err(error) => {
                            let lost = Notice::Lost { external, error };
                            let _ = self.reports.send((self.number, lost));
                        }
                    }
                }
                Message::Tap { tap, done } => {
                    self.engine.add_tap(*tap);
                    // Who does not wait for it has ended.
                    let _ = done.send(());
                }
                Message::Untap { capture, ack } => {
                    // Who does not wait for it has ended.
                    let _ = ack.send(self.engine.remove_tap(capture));
                }
                Message::SetCall { port, queue, call } => self.engine.set_call(port, queue, call),
                Message::Stop => return false,
            }
        }
        true
    }

    /// Stops to listen for kicks. The front-end still has the eventfd, so closing ours would not do it.
    fn unwatch(&mut self, port: usize) {
        if let Some(kick) = self.kicks[port].take() {
            self.doorbell.remove(&kick);
        }
    }
}
