//! Ports: the vhost-user sockets machines plug into.
//!
//! Each has one control thread, which accepts a front-end, or connects to one, serves it until it is gone, and goes on with the next.
//! The packet path is not here: a ring that is ready is handed to the port's shard.

mod bucket;
mod early;
pub mod features;
mod handler;
mod role;
mod status;

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use jail::filter::Confine;
use vhost::vhost_user::{BackendReqHandler, Error as VhostError};

pub use role::{Plug, Role};
pub use status::{PortStatus, Status};

use crate::config::PortPlan;
use crate::ring::Violation;
use crate::shard::{Handle, Stopped};
use bucket::Bucket;
use early::Enable;
use handler::Handler;

/// How long after a front-end is gone, or could not be had, the next one is tried.
const PAUSE: Duration = Duration::from_millis(200);

/// Requests that a front-end may make at once: to set up a device takes some thirty, and a guest may do that often while it boots.
const BURST: u32 = 1000;
/// The time after which it may make one more. Most rings that are started and stopped disturb their shard for microseconds.
const REFILL: Duration = Duration::from_millis(2);

/// How ports treat their front-ends.
#[derive(Debug, Clone, Copy, Default)]
pub struct Policy {
    /// Accept guest memory that is not sealed. Whoever owns such memory can end the switch by shrinking it.
    pub allow_unsealed: bool,
}

/// What the control thread of a port shares with the rest of the switch.
#[derive(Debug)]
pub struct Port {
    plan: PortPlan,
    role: Role,
    status: Status,
    connection: Mutex<Connection>,
    /// Offloads are offered to the next front-end.
    offloads: AtomicBool,
    /// No more connections are wanted.
    closed: Condvar,
}

/// The front-end's connection, for those who want to cut it.
#[derive(Debug)]
enum Connection {
    None,
    Open(UnixStream),
    /// The switch is ending; no more.
    Closed,
}

impl Port {
    /// A port that meets its front-ends as `role` says.
    pub fn new(plan: PortPlan, role: Role) -> Self {
        let status = Status::new(plan.name.clone());
        Self {
            offloads: AtomicBool::new(plan.offloads),
            plan,
            role,
            status,
            connection: Mutex::new(Connection::None),
            closed: Condvar::new(),
        }
    }

    /// Its place in the switch.
    pub fn plan(&self) -> &PortPlan {
        &self.plan
    }

    /// What is known of its front-end.
    pub fn status(&self) -> PortStatus {
        self.status.read()
    }

    /// Notes that the shard stopped a ring. A front-end that held the shard up would do it again: its interface is served no more.
    pub fn ring_stopped(&self, stopped: Stopped) {
        let Stopped {
            queue, violation, ..
        } = stopped;
        if violation == Violation::CallBlocks {
            self.status.problem(&format!(
                "its front-end held up the switch: {violation} ({queue} ring); nobody can connect to it until the switch is \
                 started again"
            ));
            return self.close();
        }
        self.status
            .problem(&format!("its {queue} ring was stopped: {violation}"));
    }

    /// Offers offloads to the next front-end, or does not.
    pub fn offer_offloads(&self, offer: bool) {
        self.offloads.store(offer, Ordering::Relaxed);
    }

    /// Starts the control thread. It serves nobody before it hears from `go`, and ends if it never will.
    pub fn spawn(
        self: &Arc<Self>,
        shard: Handle,
        policy: Policy,
        confine: Confine,
        go: Receiver<()>,
    ) -> io::Result<JoinHandle<()>> {
        let port = Arc::clone(self);
        // The vhost crate's handler needs little; a thousand ports should not reserve gigabytes.
        let thread = std::thread::Builder::new()
            .name(self.plan.name.clone())
            .stack_size(256 << 10);
        thread.spawn(move || {
            confine.this_thread();
            if go.recv().is_ok() {
                port.run(&shard, policy);
            }
        })
    }

    /// Cuts the connection and ends the control thread.
    pub fn close(&self) {
        let old = std::mem::replace(&mut *self.connection(), Connection::Closed);
        if let Connection::Open(stream) = old {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
        self.closed.notify_all();
        self.role.close();
    }

    /// Waits; `false` if the port is closed.
    fn pause(&self, time: Duration) -> bool {
        let is_open = |connection: &mut Connection| !matches!(connection, Connection::Closed);
        let waited = self
            .closed
            .wait_timeout_while(self.connection(), time, is_open)
            .unwrap_or_else(PoisonError::into_inner);
        waited.1.timed_out()
    }

    fn connection(&self) -> MutexGuard<'_, Connection> {
        self.connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, shard: &Handle, policy: Policy) {
        // What was told last, so that it is not told five times a second.
        let mut told = None;
        // Of all front-ends together: each may be the same one.
        let mut requests = Bucket::new(BURST, REFILL, Instant::now());
        loop {
            match self.role.meet() {
                Ok(stream) => {
                    told = None;
                    if !self.serve(stream, shard, policy, &mut requests) {
                        return;
                    }
                    // A front-end that is refused would be asked again at once.
                    if self.role.is_client() && !self.pause(PAUSE) {
                        return;
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => {
                    // As a server, out of descriptors or memory; both can pass.
                    let what = self.role.failed(&e);
                    if !self.pause(PAUSE) {
                        return;
                    }
                    if told.as_ref() != Some(&what) {
                        self.status.problem(&what);
                        told = Some(what);
                    }
                }
            }
        }
    }

    /// Serves a front-end until it is gone; `false` when the switch is ending.
    fn serve(
        &self,
        stream: UnixStream,
        shard: &Handle,
        policy: Policy,
        quota: &mut Bucket,
    ) -> bool {
        let copies = stream
            .try_clone()
            .and_then(|one| Ok((one, stream.try_clone()?)));
        let (clone, peek) = match copies {
            Ok(copies) => copies,
            Err(e) => {
                drop(stream);
                self.status
                    .problem(&format!("cannot serve a front-end: {e}"));
                return self.pause(PAUSE);
            }
        };
        {
            let mut connection = self.connection();
            if matches!(*connection, Connection::Closed) {
                return false;
            }
            *connection = Connection::Open(clone);
        }
        self.status.connected();
        // Dropping the handler takes its rings from the shard, even if this thread panics.
        let handler = Arc::new(Mutex::new(Handler::new(self, shard.clone(), policy)));
        let mut requests = BackendReqHandler::from_stream(stream, Arc::clone(&handler));
        let end = loop {
            if let Err(wait) = quota.take(Instant::now()) {
                self.status.problem("its front-end makes requests faster than it may, 500 a second, and has to wait");
                if !self.pause(wait) {
                    break VhostError::Disconnected;
                }
            }
            let early = Enable::peek(&peek);
            let done = match (requests.handle_request(), early) {
                (Err(VhostError::InactiveFeature(_)), Some(enable)) => {
                    let mut handler = handler.lock().unwrap_or_else(PoisonError::into_inner);
                    handler.enable_early(enable, &peek)
                }
                (done, _) => done,
            };
            if let Err(e) = done {
                break e;
            }
        };
        drop(requests);
        drop(handler);
        let mut connection = self.connection();
        let closed = matches!(*connection, Connection::Closed);
        if !closed {
            *connection = Connection::None;
            match end {
                VhostError::Disconnected
                | VhostError::PartialMessage
                | VhostError::SocketBroken(_) => {}
                VhostError::ReqHandlerError(reason) => self
                    .status
                    .problem(&format!("its front-end was refused: {reason}")),
                other => self.status.problem(&format!(
                    "its front-end broke the vhost-user protocol: {other}"
                )),
            }
        }
        self.status.disconnected();
        !closed
    }
}
