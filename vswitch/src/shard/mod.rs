//! Shards: threads that own rings, links and layer-2 nodes outright.

mod agenda;
mod change;
mod engine;
mod forward;
mod mailbox;
mod pool;

use std::io;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::Timespec;
use rustix::event::epoll::{self, Event, EventData, EventFlags};
use topology::model::Timing;

pub use engine::{Engine, Queue, Stopped};
pub use mailbox::{Gone, Handle, Message, Returned};
pub use pool::{Pool, Slot};

use crate::clock::Time;
use crate::config::ShardPlan;
use crate::counters::ShardCounters;
use crate::ring::EventFd;
use mailbox::Mailbox;

/// The token of the mailbox; ports have their index.
const MAILBOX: u64 = u64::MAX;
/// How long a polling shard may go without asking the kernel for kicks of other ports.
const KICK_INTERVAL: Duration = Duration::from_micros(20);

/// How a shard waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// How long a ring is polled after its last frame.
    pub linger: Duration,
    /// How long before a deadline sleeping gives way to spinning.
    pub spin: Duration,
}

impl From<Timing> for Patience {
    /// A wake-up from sleep is late by tens of microseconds, on a virtual machine by a hundred.
    fn from(timing: Timing) -> Self {
        let (linger, spin) = match timing {
            Timing::Eco => (0, 0),
            Timing::Balanced => (50, 0),
            Timing::Exact => (200, 150),
        };
        Self {
            linger: Duration::from_micros(linger),
            spin: Duration::from_micros(spin),
        }
    }
}

/// A report that a ring was stopped, with the number of its shard.
pub type Report = (usize, Stopped);

/// Starts the thread of shard `number`. It ends on [`Message::Stop`].
pub fn spawn(
    number: usize,
    plan: ShardPlan,
    timing: Timing,
    origin: Time,
    reports: SyncSender<Report>,
) -> io::Result<(Handle, JoinHandle<()>)> {
    let (handle, mailbox) = Mailbox::new()?;
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    epoll::add(
        &epoll,
        &mailbox,
        EventData::new_u64(MAILBOX),
        EventFlags::IN,
    )?;
    let patience = Patience::from(timing);
    let counters = Arc::clone(&plan.counters);
    let kicks = plan.ports.iter().map(|_| None).collect();
    let engine = Engine::new(plan, patience.linger, origin);
    let shard = Shard {
        number,
        engine,
        patience,
        mailbox,
        epoll,
        kicks,
        reports,
        counters,
    };
    let thread = std::thread::Builder::new()
        .name(format!("shard-{number}"))
        .spawn(move || shard.run())?;
    Ok((handle, thread))
}

struct Shard {
    number: usize,
    engine: Engine,
    patience: Patience,
    mailbox: Mailbox,
    epoll: std::os::fd::OwnedFd,
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
    fn run(mut self) {
        // The default slack of 50 µs is added to every sleep.
        if let Some(slack) = NonZeroU64::new(1) {
            let _ = rustix::thread::set_current_timer_slack(Some(slack));
        }
        let mut events = Vec::with_capacity(64);
        let mut looked = Time::now();
        loop {
            if self.mailbox.is_pending() && !self.read_mail() {
                return;
            }
            let now = Time::now();
            let busy = self.engine.turn(now);
            for stopped in self.engine.take_stopped() {
                // If nobody keeps up with reading reports, the counters still tell.
                let _ = self.reports.try_send((self.number, stopped));
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
            self.collect_kicks(&mut events, wait);
            looked = Time::now();
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

    fn collect_kicks(&mut self, events: &mut Vec<Event>, wait: Option<Duration>) {
        let timeout = wait.map(|d| Timespec {
            tv_sec: d.as_secs() as i64,
            tv_nsec: d.subsec_nanos().into(),
        });
        events.clear();
        if epoll::wait(
            &self.epoll,
            rustix::buffer::spare_capacity(events),
            timeout.as_ref(),
        )
        .is_err()
        {
            // Interrupted by a signal.
            return;
        }
        let now = Time::now();
        for event in events.iter() {
            let token = event.data.u64();
            if token == MAILBOX {
                self.mailbox.heard();
            } else {
                self.engine.kicked(token as usize, now);
            }
        }
    }

    /// Does what control threads ask for; `false` to end.
    fn read_mail(&mut self) -> bool {
        self.mailbox.clear();
        while let Some(message) = self.mailbox.next() {
            match message {
                Message::AddTx { port, ring, kick } => {
                    self.unwatch(port);
                    // Edge-triggered, so the descriptor never has to be read, which a front-end could make block.
                    let flags = EventFlags::IN | EventFlags::ET;
                    let watched =
                        epoll::add(&self.epoll, &kick, EventData::new_u64(port as u64), flags);
                    self.kicks[port] = watched.is_ok().then_some(kick);
                    self.engine.add_tx(port, ring, Time::now());
                }
                Message::AddRx { port, ring } => {
                    self.engine.add_rx(port, ring);
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
                Message::SetCall { port, queue, call } => self.engine.set_call(port, queue, call),
                Message::Stop => return false,
            }
        }
        true
    }

    /// Stops to listen for kicks. The front-end still has the eventfd, so closing ours would not do it.
    fn unwatch(&mut self, port: usize) {
        if let Some(kick) = self.kicks[port].take() {
            let _ = epoll::delete(&self.epoll, &kick);
        }
    }
}
