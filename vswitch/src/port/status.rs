//! What is known of a port's front-end, and telling people about it without flooding the log.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::bucket::Bucket;

/// A front-end can cause log lines at will; so many pass at once, and one more per [`REFILL`].
const BURST: u32 = 5;
const REFILL: Duration = Duration::from_secs(10);

/// The state of a port.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PortStatus {
    /// A front-end is connected.
    pub connected: bool,
    /// How many have connected so far.
    pub connections: u64,
    /// The virtio features it agreed on, once it has.
    pub features: Option<u64>,
    /// Whether the receive ring runs.
    pub receiving: bool,
    /// Whether the transmit ring runs.
    pub sending: bool,
    /// The last thing that went wrong.
    pub last_error: Option<String>,
}

/// The state of a port, shared.
#[derive(Debug)]
pub struct Status {
    name: String,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    status: PortStatus,
    lines: Bucket,
    suppressed: u64,
}

impl Status {
    /// Of the port `name`.
    pub fn new(name: String) -> Self {
        let inner = Inner {
            status: PortStatus::default(),
            lines: Bucket::new(BURST, REFILL, Instant::now()),
            suppressed: 0,
        };
        Self {
            name,
            inner: Mutex::new(inner),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A copy.
    pub fn read(&self) -> PortStatus {
        self.lock().status.clone()
    }

    /// Changes it.
    pub fn update(&self, change: impl FnOnce(&mut PortStatus)) {
        change(&mut self.lock().status);
    }

    /// A front-end has connected.
    pub fn connected(&self) {
        let mut inner = self.lock();
        inner.status.connected = true;
        inner.status.connections += 1;
        if inner.may_log() {
            info!("{}: front-end connected", self.name);
        }
    }

    /// It is gone, and so are its rings.
    pub fn disconnected(&self) {
        let mut inner = self.lock();
        let PortStatus {
            connections,
            last_error,
            ..
        } = std::mem::take(&mut inner.status);
        inner.status = PortStatus {
            connections,
            last_error,
            ..PortStatus::default()
        };
        if inner.may_log() {
            info!("{}: front-end disconnected", self.name);
        }
    }

    /// Something is wrong with it.
    pub fn problem(&self, what: &str) {
        let mut inner = self.lock();
        inner.status.last_error = Some(what.to_owned());
        if inner.may_log() {
            let suppressed = std::mem::take(&mut inner.suppressed);
            if suppressed > 0 {
                warn!(
                    "{}: {what} ({suppressed} earlier messages left out)",
                    self.name
                );
            } else {
                warn!("{}: {what}", self.name);
            }
        }
    }
}

impl Inner {
    fn may_log(&mut self) -> bool {
        let may = self.lines.take(Instant::now()).is_ok();
        self.suppressed += u64::from(!may);
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_no_more() {
        let status = Status::new("a.eth0".into());
        let passed = (0..100).filter(|_| status.lock().may_log()).count();
        assert_eq!(passed, BURST as usize);
        assert_eq!(status.lock().suppressed, 95);
    }

    #[test]
    fn a_disconnect_forgets_all_but_the_error() {
        let status = Status::new("a.eth0".into());
        status.connected();
        status.update(|s| s.features = Some(1));
        status.problem("unsealed");
        status.disconnected();
        let s = status.read();
        assert_eq!((s.connected, s.connections, s.features), (false, 1, None));
        assert_eq!(s.last_error.as_deref(), Some("unsealed"));
    }
}
