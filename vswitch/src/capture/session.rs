//! A running capture.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use thiserror::Error;
use tracing::warn;

use super::request::{Request, RequestError};
use super::stream::{Epoch, Interface, Stream};
use super::tap::{InterfaceCounters, Interfaces, RING_BYTES, Record, Records, Settings, Tap};
use crate::clock::Time;
use crate::config::LinkPlan;
use crate::shard::Gone;
use crate::switch::View;

/// How often a reader that has nothing to do looks for records. Shards do not wake it, as that would cost them a system call.
const PAUSE: Duration = Duration::from_millis(2);
/// Records written before the reader looks whether it is to end.
const BATCH: usize = 4096;
/// How long captures may take to finish when the switch ends.
const FAREWELL: Duration = Duration::from_secs(3);

/// Why a capture cannot start.
#[derive(Debug, Error)]
pub enum SessionError {
    /// What is asked for cannot be.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The switch is about to end.
    #[error("the switch is ending")]
    Ending,
    /// A shard has ended.
    #[error(transparent)]
    Gone(#[from] Gone),
}

/// The captures of a switch, so that it can end them.
#[derive(Debug, Default)]
pub struct Registry {
    number: AtomicU64,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    running: usize,
    ending: bool,
}

impl Registry {
    /// Tells all captures to end, and waits a while until they have.
    pub fn end(&self) {
        let mut state = self.state();
        state.ending = true;
        let running = |state: &mut State| state.running > 0;
        let waited = self.changed.wait_timeout_while(state, FAREWELL, running);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if state.running > 0 {
            warn!(
                "{} captures are not complete: their readers are too slow",
                state.running
            );
        }
    }

    /// How many there are.
    pub fn running(&self) -> usize {
        self.state().running
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self) -> Result<u64, SessionError> {
        let mut state = self.state();
        if state.ending {
            return Err(SessionError::Ending);
        }
        state.running += 1;
        Ok(self.number.fetch_add(1, Ordering::Relaxed))
    }

    fn ended(&self) {
        self.state().running -= 1;
        self.changed.notify_all();
    }
}

/// What a reader does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// It goes on.
    Continue,
    /// It writes what there is and ends.
    End,
}

/// A running capture. It has taken its taps from the shards again when it is dropped.
#[derive(Debug)]
pub struct Session {
    number: u64,
    view: Arc<View>,
    /// Shards with taps.
    tapped: Vec<usize>,
    sources: Vec<Source>,
    interfaces: Vec<Interface>,
    counters: Arc<[InterfaceCounters]>,
    snaplen: u32,
    clock: Epoch,
}

/// The records of a shard, with the next one taken out.
#[derive(Debug)]
struct Source {
    records: Records,
    next: Option<Record>,
    data: Vec<u8>,
}

impl Source {
    fn peek(&mut self) -> Option<Time> {
        if self.next.is_none() {
            self.next = self.records.next(&mut self.data);
        }
        self.next.map(|record| record.at)
    }
}

impl Session {
    /// Starts a capture: from now on nothing of what is asked for is missed silently.
    pub fn start(view: &Arc<View>, request: &Request) -> Result<Self, SessionError> {
        view.with_links(|links| Self::start_on(view, links, request))
    }

    fn start_on(
        view: &Arc<View>,
        links: &[LinkPlan],
        request: &Request,
    ) -> Result<Self, SessionError> {
        let (filter, snaplen) = request.check()?;
        let selected = request.select(links)?;
        let mut of_shard: Vec<(usize, Interfaces)> = Vec::new();
        let mut interfaces = Vec::with_capacity(selected.len());
        for (number, one) in selected.iter().enumerate() {
            let link = &links[one.link];
            let known = of_shard.iter().position(|(shard, _)| *shard == link.shard);
            let at = known.unwrap_or_else(|| {
                of_shard.push((link.shard, Interfaces::default()));
                of_shard.len() - 1
            });
            of_shard[at]
                .1
                .add(link.lanes[one.way], one.point, number as u32);
            let point = one.point.name();
            interfaces.push(Interface {
                name: format!("{} ({point})", link.ways()[one.way]),
                description: format!("link {}", link.name),
            });
        }
        let counters = interfaces.iter().map(|_| InterfaceCounters::default());
        let settings = Settings {
            number: view.captures().begin()?,
            filter: filter.map(Arc::new),
            snaplen,
            counters: counters.collect(),
        };
        let mut session = Self {
            number: settings.number,
            view: Arc::clone(view),
            tapped: Vec::new(),
            sources: Vec::new(),
            interfaces,
            counters: Arc::clone(&settings.counters),
            snaplen,
            clock: Epoch::now(),
        };
        for (shard, interfaces) in of_shard {
            let (tap, records) = Tap::new(settings.clone(), interfaces, RING_BYTES);
            session.view.shard(shard).tap(tap)?;
            session.tapped.push(shard);
            session.sources.push(Source {
                records,
                next: None,
                data: Vec::new(),
            });
        }
        Ok(session)
    }

    /// Writes pcapng to `out` until `wait` says [`Next::End`], the switch ends, or `out` fails. `wait` is asked again and
    /// again, and takes at most the time it is given.
    pub fn run(
        mut self,
        out: impl Write,
        mut wait: impl FnMut(Duration) -> Next,
    ) -> io::Result<()> {
        let mut stream = Stream::begin(out, self.clock, &self.interfaces, self.snaplen)?;
        stream.flush()?;
        loop {
            let written = self.write(&mut stream, BATCH)?;
            let pause = if written < BATCH {
                stream.flush()?;
                PAUSE
            } else {
                Duration::ZERO
            };
            let ending = self.view.captures().state().ending;
            if ending || wait(pause) == Next::End {
                break;
            }
        }
        self.untap();
        while self.write(&mut stream, BATCH)? > 0 {}
        stream.end(&self.counters, Time::now())?;
        let lost: u64 = self.counters.iter().map(|c| c.lost.get()).sum();
        if lost > 0 {
            warn!("a capture misses {lost} frames: its reader was too slow");
        }
        Ok(())
    }

    /// Writes at most `limit` records, those of all shards in the order of time as far as they are there.
    fn write<W: Write>(&mut self, stream: &mut Stream<W>, limit: usize) -> io::Result<usize> {
        for n in 0..limit {
            let heads = self.sources.iter_mut();
            let heads = heads.filter_map(|source| source.peek().map(|at| (at, source)));
            let Some((_, source)) = heads.min_by_key(|(at, _)| *at) else {
                return Ok(n);
            };
            if let Some(record) = source.next.take() {
                stream.frame(&record, &source.data)?;
            }
        }
        Ok(limit)
    }

    fn untap(&mut self) {
        for shard in self.tapped.drain(..) {
            // A shard that has ended captures nothing more.
            let _ = self.view.shard(shard).untap(self.number);
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.untap();
        self.view.captures().ended();
    }
}
