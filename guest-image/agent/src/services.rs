//! What runs in a node after its network is configured: routing daemons, start-up commands, and the check
//! whether the node is ready.
//!
//! Nothing here blocks: [`Services::step`] is called whenever something has ended or a deadline has passed.

use std::fs::{self, File};
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use agent_protocol::{ExitStatus, NodeDescription, ReadyDescription, ToHost};
use rustix::process::{Pid, Signal};

use crate::commands::Commands;
use crate::frr::{Frr, FrrEvent};
use crate::{environment, signals};

/// Between two runs of the readiness check.
const CHECK_INTERVAL: Duration = Duration::from_millis(100);
/// Lines of a log quoted in a message.
const QUOTED_LINES: usize = 5;

/// The programs of a node.
#[derive(Debug)]
pub struct Services {
    frr: Option<Frr>,
    /// Not started yet.
    commands: Vec<String>,
    running: Commands,
    ready: Option<ReadyDescription>,
    check: Check,
    configured: bool,
    failed: bool,
}

#[derive(Debug)]
enum Check {
    /// Daemons and commands are not started yet, or there is nothing to check any more.
    Off,
    /// The check is to be run at `at`.
    Waiting { at: Instant, deadline: Instant },
    /// The check is running.
    Running { pid: Pid, deadline: Instant },
}

impl Services {
    /// Takes from the description what is to be run.
    pub fn new(node: &mut NodeDescription, now: Instant) -> Self {
        Self {
            frr: node.frr.take().map(|frr| Frr::new(frr, now)),
            commands: std::mem::take(&mut node.commands),
            running: Commands::default(),
            ready: node.ready.take(),
            check: Check::Off,
            configured: false,
            failed: false,
        }
    }

    /// A process has ended. Returns false if it was none of these.
    pub fn exited(
        &mut self,
        pid: Pid,
        status: ExitStatus,
        now: Instant,
        events: &mut Vec<ToHost>,
    ) -> bool {
        if self.running.exited(pid, status, events) {
            return true;
        }
        if let Check::Running {
            pid: check,
            deadline,
        } = self.check
            && check == pid
        {
            let _ = fs::rename(CHECK_LOG, READY_LOG);
            if status == ExitStatus::Code(0) {
                self.check = Check::Off;
                self.ready = None;
                events.push(ToHost::Ready);
            } else {
                self.check = Check::Waiting {
                    at: now + CHECK_INTERVAL,
                    deadline,
                };
            }
            return true;
        }
        self.frr.as_mut().is_some_and(|frr| {
            let mut happened = Vec::new();
            let known = frr.exited(pid, status, now, &mut happened);
            self.failed |= report(happened, events);
            known
        })
    }

    /// Does what is due.
    pub fn step(&mut self, now: Instant, events: &mut Vec<ToHost>) {
        if let Some(frr) = &mut self.frr {
            let mut happened = Vec::new();
            frr.step(now, &mut happened);
            self.failed |= report(happened, events);
        }
        if !self.configured && !self.failed && self.frr.as_ref().is_none_or(Frr::is_configured) {
            self.configured = true;
            self.running = Commands::start(std::mem::take(&mut self.commands), events);
            events.push(ToHost::Configured);
            match &self.ready {
                None => events.push(ToHost::Ready),
                Some(ready) => {
                    let deadline = now + Duration::from_millis(ready.timeout_ms);
                    self.check = Check::Waiting { at: now, deadline };
                }
            }
        }
        self.step_check(now, events);
    }

    fn step_check(&mut self, now: Instant, events: &mut Vec<ToHost>) {
        let Some(ready) = &self.ready else { return };
        let (Check::Waiting { deadline, .. } | Check::Running { deadline, .. }) = self.check else {
            return;
        };
        if now >= deadline {
            if let Check::Running { pid, .. } = self.check {
                let _ = rustix::process::kill_process_group(pid, Signal::KILL);
            }
            self.check = Check::Off;
            events.push(ToHost::Failed {
                message: format!(
                    "not ready after {} s: `{}` still fails{}",
                    Duration::from_millis(ready.timeout_ms).as_secs_f64(),
                    ready.exec,
                    Some(quote_log(READY_LOG))
                        .filter(|quote| !quote.is_empty())
                        .unwrap_or_else(|| quote_log(CHECK_LOG))
                ),
            });
        } else if let Check::Waiting { at, .. } = self.check
            && now >= at
        {
            match shell(&ready.exec, CHECK_LOG) {
                Ok(pid) => self.check = Check::Running { pid, deadline },
                Err(error) => {
                    self.check = Check::Off;
                    events.push(ToHost::Failed {
                        message: format!(
                            "the readiness check `{}` cannot be started: {error}",
                            ready.exec
                        ),
                    });
                }
            }
        }
    }

    /// Output of commands to watch for, by place.
    pub fn outputs(&self) -> impl Iterator<Item = (usize, BorrowedFd<'_>)> {
        self.running.outputs()
    }

    /// Takes output of a command that has come.
    pub fn read(&mut self, index: usize) {
        self.running.read(index);
    }

    /// When [`Services::step`] wants to be called at the latest.
    pub fn deadline(&self) -> Option<Instant> {
        let check = match self.check {
            Check::Off => None,
            Check::Waiting { at, deadline } => Some(at.min(deadline)),
            Check::Running { deadline, .. } => Some(deadline),
        };
        let frr = self.frr.as_ref().and_then(Frr::deadline);
        [check, frr].into_iter().flatten().min()
    }
}

/// Turns what happened to FRR into messages; true if it was a failure of the configuration.
fn report(happened: Vec<FrrEvent>, events: &mut Vec<ToHost>) -> bool {
    let mut failed = false;
    for event in happened {
        events.push(match event {
            FrrEvent::Warning(message) => ToHost::Warning { message },
            FrrEvent::Failed(message) => {
                failed = true;
                ToHost::Failed { message }
            }
        });
    }
    failed
}

/// The output of the last check that came to its end.
const READY_LOG: &str = "/var/log/ready.log";
/// That of the check that is running.
const CHECK_LOG: &str = "/var/log/ready.log.running";

/// Starts a shell command in a session of its own, its output in a fresh log.
fn shell(line: &str, log: &str) -> io::Result<Pid> {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", line]);
    spawn_logged(command, log)
}

/// Starts a program in a session of its own, its output in a fresh log.
pub(crate) fn spawn_logged(mut command: Command, log: &str) -> io::Result<Pid> {
    if let Some(folder) = std::path::Path::new(log).parent() {
        fs::create_dir_all(folder)?;
    }
    let output = File::create(log)?;
    environment::apply(&mut command);
    command.current_dir(environment::home());
    command
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output);
    // SAFETY: the closure only makes system calls that are async-signal-safe, and allocates nothing.
    unsafe {
        command.pre_exec(|| {
            signals::unblock_all()?;
            rustix::process::setsid()?;
            Ok(())
        });
    }
    Ok(Pid::from_child(&command.spawn()?))
}

/// How a process ended, as the end of a sentence.
pub(crate) fn describe(status: ExitStatus) -> String {
    match status {
        ExitStatus::Code(code) => format!("ended with status {code}"),
        ExitStatus::Signal(signal) => format!("was ended by signal {signal}"),
    }
}

/// The last lines of a log and where the rest is.
pub(crate) fn quote_log(path: &str) -> String {
    let text = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text[text.len().saturating_sub(4096)..]).into_owned();
    let lines: Vec<_> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    if lines.is_empty() {
        return String::new();
    }
    let last = &lines[lines.len().saturating_sub(QUOTED_LINES)..];
    format!("; the end of {path} in the node:\n  {}", last.join("\n  "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_quoted_by_its_last_lines() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let path = path.to_str().unwrap();
        assert_eq!(quote_log(path), "");
        fs::write(path, "1\n2\n3\n\n4\n5\n6\n\n").unwrap();
        assert_eq!(
            quote_log(path),
            format!("; the end of {path} in the node:\n  2\n  3\n  4\n  5\n  6")
        );
    }

    #[test]
    fn without_anything_to_start_a_node_is_ready_at_once() {
        let now = Instant::now();
        let mut services = Services::new(&mut NodeDescription::default(), now);
        let mut events = Vec::new();
        services.step(now, &mut events);
        assert_eq!(events, [ToHost::Configured, ToHost::Ready]);
        assert_eq!(services.deadline(), None);
        services.step(now, &mut events);
        assert_eq!(events.len(), 2);
    }
}
