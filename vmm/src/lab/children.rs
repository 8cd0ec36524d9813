//! What the lab knows of its processes: how they end, and what they say last.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitStatus};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, setsid};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::task::JoinHandle;

use crate::process::Ended;

/// Bytes kept of what a child writes to standard error.
const TAIL: usize = 4096;

/// Makes the child lead a session of its own, out of reach of a terminal's signals.
pub fn detach(command: &mut Command) {
    let own_session = || setsid().map(drop).map_err(io::Error::from);
    // SAFETY: runs between fork and exec, where only async-signal-safe functions may be called; `setsid` is a bare system call,
    // and an error built from an error number does not allocate.
    unsafe { command.pre_exec(own_session) };
}

/// The last words of a child: the end of what it wrote to standard error.
#[derive(Debug, Clone, Default)]
pub struct LastWords(Arc<Mutex<Vec<u8>>>);

impl LastWords {
    /// Listens until the child closes `stderr`.
    pub fn listen(mut stderr: impl AsyncRead + Unpin + Send + 'static) -> (Self, JoinHandle<()>) {
        let words = Self::default();
        let kept = words.clone();
        let listener = tokio::spawn(async move {
            let mut chunk = [0; 1024];
            while let Ok(length @ 1..) = stderr.read(&mut chunk).await {
                let mut tail = kept.0.lock().unwrap_or_else(PoisonError::into_inner);
                tail.extend_from_slice(&chunk[..length]);
                let excess = tail.len().saturating_sub(TAIL);
                tail.drain(..excess);
            }
        });
        (words, listener)
    }

    /// Them, as text.
    pub fn text(&self) -> String {
        let tail = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&tail).trim().to_owned()
    }
}

/// Waits until the process behind `pidfd` has ended; false if it does not within `patience`.
pub fn ends_within(pidfd: &OwnedFd, patience: Duration) -> bool {
    let timeout = Timespec {
        tv_sec: patience.as_secs().cast_signed(),
        tv_nsec: patience.subsec_nanos().into(),
    };
    let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
    matches!(poll(&mut fds, Some(&timeout)), Ok(1))
}

/// A process number, if it can be one.
pub fn raw_pid(pid: u32) -> Option<Pid> {
    Pid::from_raw(i32::try_from(pid).ok()?)
}

/// How a process ended, for people, or why that is not known.
pub fn describe_end(end: io::Result<Ended>) -> String {
    match end {
        Ok(Some(status)) => describe_exit(status),
        Ok(None) => {
            "ended; the lab process that had started it could say how, and was killed".to_owned()
        }
        Err(error) => format!("cannot be waited for: {error}"),
    }
}

/// How a process ended, for people.
fn describe_exit(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited with status {code}"),
        (None, Some(9)) => {
            "was killed (signal 9: by a person, or by the kernel for want of memory; \
                            `dmesg` tells)"
                .to_owned()
        }
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    #[tokio::test]
    async fn only_the_end_of_what_a_child_says_is_kept() {
        let mut said = vec![b'x'; 3 * TAIL];
        said.extend_from_slice(b"cannot allocate memory\n");
        let (words, listener) = LastWords::listen(io::Cursor::new(said));
        listener.await.unwrap();
        assert!(words.text().ends_with("xcannot allocate memory"));
        assert!(words.text().len() <= TAIL);
    }

    #[test]
    fn exits_are_told_apart() {
        assert_eq!(
            describe_exit(ExitStatus::from_raw(3 << 8)),
            "exited with status 3"
        );
        assert!(describe_exit(ExitStatus::from_raw(9)).contains("memory"));
        assert_eq!(
            describe_exit(ExitStatus::from_raw(11)),
            "was ended by signal 11"
        );
    }
}
