//! Programs that are measured or measure, each on a processor of its own.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

/// A program that is ended when this is dropped, and that ends when we do.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    /// The last lines, for those who want to know why it failed.
    seen: Vec<String>,
}

/// A command on the processors `cpus` (a list as `taskset` takes it) that does not outlive us.
pub fn command(cpus: &str, program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("taskset");
    command.args(["-c", cpus, "setpriv", "--pdeathsig", "KILL", "--"]);
    command.arg(program);
    command
}

impl Process {
    /// Starts `command`; what it prints can be waited for.
    pub fn start(name: &str, command: &mut Command) -> Result<Self> {
        let (read, write) = std::io::pipe()?;
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(write.try_clone()?)
            .stderr(write)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        // Our copies of the pipe's end, so that its end of file is that of the child.
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(read).lines() {
                let Ok(line) = line else { return };
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Self {
            name: name.to_owned(),
            stdin: child.stdin.take(),
            child,
            lines,
            seen: Vec::new(),
        })
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Writes a line to its standard input.
    pub fn say(&mut self, line: &str) -> Result<()> {
        let stdin = self.stdin.as_mut().context("its input is closed")?;
        writeln!(stdin, "{line}").with_context(|| format!("{} has ended", self.name))
    }

    /// The next line it prints in which `find` finds something.
    pub fn wait_for<T>(
        &mut self,
        what: &str,
        time: Duration,
        mut find: impl FnMut(&str) -> Option<T>,
    ) -> Result<T> {
        let end = Instant::now() + time;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let why = match self.lines.recv_timeout(left) {
                Ok(line) => {
                    let found = find(&line);
                    self.seen.push(line);
                    if let Some(found) = found {
                        return Ok(found);
                    }
                    continue;
                }
                Err(RecvTimeoutError::Timeout) => "did not say it in time",
                Err(RecvTimeoutError::Disconnected) => "has ended",
            };
            let last = self.seen.len().saturating_sub(20);
            bail!(
                "waiting for {} to say {what}: it {why}; it said\n{}",
                self.name,
                self.seen[last..].join("\n")
            );
        }
    }

    /// Stops it where it is, so that it does not compete with what is measured.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets it go on.
    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    /// Asks it to end, and waits until it has, or ends it.
    pub fn end(&mut self, time: Duration) {
        self.stdin = None;
        self.resume();
        self.signal(Signal::TERM);
        let end = Instant::now() + time;
        while Instant::now() < end {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn signal(&self, signal: Signal) {
        if let Some(pid) = Pid::from_raw(self.child.id() as i32) {
            // It may have ended.
            let _ = kill_process(pid, signal);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a command to its end; an error with what it printed if it fails.
pub fn run(command: &mut Command) -> Result<String> {
    let name = format!("{command:?}");
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {name}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!(
            "{name} failed: {text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(text)
}
