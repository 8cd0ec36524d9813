//! One command that the host asked for: its process, pipes or terminal, and flow control.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use agent_protocol::{
    ExitStatus, Kind, ReceiveWindow, SendWindow, ToHost, WindowError, WindowSize, encode_control,
    encode_credit, encode_data,
};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::process::{Pid, Signal};
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;

use crate::{environment, signals};

/// Bytes read from a command at once.
const CHUNK: usize = 16 * 1024;
/// After a command has ended, its background processes may still hold its output open; this long after the
/// last byte the rest is given up.
const LINGER: Duration = Duration::from_millis(100);
/// End of file, typed at a terminal.
const END_OF_FILE: u8 = 4;

/// What the host asked for.
#[derive(Debug)]
pub struct Request {
    pub stream: u32,
    pub argv: Vec<String>,
    pub env: Vec<(String, String)>,
    pub cwd: Option<String>,
    pub tty: Option<WindowSize>,
}

/// Where a command's output comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    Out,
    Err,
}

/// A running command.
#[derive(Debug)]
pub struct Exec {
    stream: u32,
    pid: Pid,
    status: Option<ExitStatus>,
    /// With a terminal, `out` and `stdin` are both its master.
    out: Option<OwnedFd>,
    err: Option<OwnedFd>,
    stdin: Option<OwnedFd>,
    terminal: bool,
    /// Bytes on their way to `stdin`; [`ReceiveWindow`] bounds them.
    input: VecDeque<u8>,
    input_ended: bool,
    send: SendWindow,
    receive: ReceiveWindow,
    linger: Option<Instant>,
}

impl Exec {
    /// Starts a command, or says why that cannot be done.
    pub fn start(request: &Request) -> Result<Self, ToHost> {
        let stream = request.stream;
        let program = request.argv.first().cloned().unwrap_or_default();
        let cwd = request.cwd.clone();
        Self::spawn(request).map_err(|error| {
            let missing = error.kind() == io::ErrorKind::NotFound;
            let message = match cwd {
                Some(cwd) if missing && !std::path::Path::new(&cwd).is_dir() => {
                    format!("no folder {cwd} in the node")
                }
                _ if missing => format!("no program {program:?} in the node"),
                _ => format!("cannot start {program:?}: {error}"),
            };
            ToHost::ExecFailed {
                stream,
                message,
                status: if missing { 127 } else { 126 },
            }
        })
    }

    fn spawn(request: &Request) -> io::Result<Self> {
        let (program, arguments) = request
            .argv
            .split_first()
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "no program was named"))?;
        let mut command = Command::new(program);
        command.args(arguments);
        environment::apply(&mut command);
        if request.tty.is_some() {
            command.env("TERM", "xterm-256color");
        }
        command.envs(request.env.iter().map(|(name, value)| (name, value)));
        command.current_dir(request.cwd.as_deref().unwrap_or(environment::home()));

        let terminal = request
            .tty
            .map(|size| open_terminal(&mut command, size))
            .transpose()?;
        if terminal.is_none() {
            command
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped());
        }
        let controlling = terminal.is_some();
        // SAFETY: the closure only makes system calls that are async-signal-safe, and allocates nothing.
        unsafe {
            command.pre_exec(move || {
                signals::unblock_all()?;
                rustix::process::setsid()?;
                if controlling {
                    rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
                }
                Ok(())
            });
        }
        let mut child = command.spawn()?;
        let pid = Pid::from_child(&child);
        let (stdin, out, err) = match terminal {
            Some(master) => (Some(master.try_clone()?), Some(master), None),
            None => (
                child.stdin.take().map(OwnedFd::from),
                child.stdout.take().map(OwnedFd::from),
                child.stderr.take().map(OwnedFd::from),
            ),
        };
        for fd in [&stdin, &out, &err].into_iter().flatten() {
            fcntl_setfl(fd, fcntl_getfl(fd)? | OFlags::NONBLOCK)?;
        }
        Ok(Self {
            stream: request.stream,
            pid,
            status: None,
            out,
            err,
            stdin,
            terminal: controlling,
            input: VecDeque::new(),
            input_ended: false,
            send: SendWindow::default(),
            receive: ReceiveWindow::default(),
            linger: None,
        })
    }

    /// Its process, until it has ended.
    pub fn pid(&self) -> Option<Pid> {
        self.status.is_none().then_some(self.pid)
    }

    /// Its process has ended.
    pub fn exited(&mut self, status: ExitStatus, now: Instant) {
        self.status = Some(status);
        self.linger = Some(now + LINGER);
        self.stdin = None;
        self.input.clear();
    }

    /// What to watch for readability, if the host may be sent anything.
    pub fn sources(&self) -> impl Iterator<Item = (Source, BorrowedFd<'_>)> {
        let open = self.send.available() > 0;
        [(Source::Out, &self.out), (Source::Err, &self.err)]
            .into_iter()
            .filter_map(move |(source, fd)| Some((source, fd.as_ref().filter(|_| open)?.as_fd())))
    }

    /// What to watch for writability, if there is something to write.
    pub fn sink(&self) -> Option<BorrowedFd<'_>> {
        (!self.input.is_empty()).then(|| Some(self.stdin.as_ref()?.as_fd()))?
    }

    /// Moves output to the host, within its window.
    pub fn read(&mut self, source: Source, now: Instant, port: &mut Vec<u8>) {
        let (fd, kind) = match source {
            Source::Out => (&mut self.out, Kind::Stdout),
            Source::Err => (&mut self.err, Kind::Stderr),
        };
        let Some(open) = fd else { return };
        let mut buffer = [0; CHUNK];
        let room = self.send.available().min(CHUNK);
        match rustix::io::read(open, &mut buffer[..room]) {
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            // A terminal that nobody holds any more reads as an error (EIO).
            Ok(0) | Err(_) => *fd = None,
            Ok(n) => {
                encode_data(port, kind, self.stream, &buffer[..n]);
                self.send.sent(n);
                if self.status.is_some() {
                    self.linger = Some(now + LINGER);
                }
            }
        }
    }

    /// Takes input from the host.
    pub fn input(&mut self, bytes: &[u8], port: &mut Vec<u8>) -> Result<(), WindowError> {
        self.receive.received(bytes.len())?;
        if bytes.is_empty() {
            self.input_ended = true;
            if self.terminal {
                self.input.push_back(END_OF_FILE);
            }
        } else if !self.input_ended {
            self.input.extend(bytes);
        }
        self.write(port);
        Ok(())
    }

    /// Moves input to the command, as far as it takes it.
    pub fn write(&mut self, port: &mut Vec<u8>) {
        let mut consumed = 0;
        while !self.input.is_empty() {
            let Some(stdin) = &self.stdin else {
                // It has closed its input: the rest goes nowhere, as in a shell's pipe.
                consumed += self.input.len();
                self.input.clear();
                break;
            };
            match rustix::io::write(stdin, self.input.as_slices().0) {
                Ok(n) => {
                    self.input.drain(..n);
                    consumed += n;
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => break,
                Err(_) => self.stdin = None,
            }
        }
        if self.input_ended && self.input.is_empty() && !self.terminal {
            self.stdin = None;
        }
        if let Some(credit) = self.receive.consumed(consumed) {
            encode_credit(port, self.stream, credit);
        }
    }

    /// The host takes more output.
    pub fn granted(&mut self, bytes: u32, now: Instant) -> Result<(), WindowError> {
        if self.linger.is_some() {
            self.linger = Some(now + LINGER);
        }
        self.send.granted(bytes)
    }

    /// Sends a signal to its process group.
    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = self.pid() {
            // It may be ending this very moment.
            let _ = rustix::process::kill_process_group(pid, signal);
        }
    }

    /// Gives its terminal a new size.
    pub fn resize(&self, size: WindowSize) {
        if let Some(master) = self.out.as_ref().filter(|_| self.terminal) {
            let _ = rustix::termios::tcsetwinsize(master, winsize(size));
        }
    }

    /// When to look at it again although nothing happens.
    pub fn deadline(&self) -> Option<Instant> {
        // A reader who has stopped reading is waited for: what it has not taken is not given up.
        self.linger.filter(|_| self.send.available() > 0)
    }

    /// True once it has ended and its output is sent; tells the host.
    pub fn finished(&mut self, now: Instant, port: &mut Vec<u8>) -> bool {
        let Some(status) = self.status else {
            return false;
        };
        if self.out.is_some() || self.err.is_some() {
            if self.deadline().is_none_or(|deadline| now < deadline) {
                return false;
            }
            // On a busy machine the time may have passed before anyone looked at the output.
            let before = port.len();
            self.read(Source::Out, now, port);
            self.read(Source::Err, now, port);
            if port.len() > before {
                return false;
            }
        }
        let message = ToHost::Exited {
            stream: self.stream,
            status,
        };
        encode_control(port, &message).is_ok()
    }

    /// Ends it and whatever is in its process group.
    pub fn kill(&self) {
        self.signal(Signal::HUP);
        self.signal(Signal::KILL);
    }
}

fn winsize(size: WindowSize) -> Winsize {
    Winsize {
        ws_row: size.rows,
        ws_col: size.cols,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

/// Makes a pty, gives `command` its slave and returns the master.
fn open_terminal(command: &mut Command, size: WindowSize) -> io::Result<OwnedFd> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = rustix::pty::openpt(flags)?;
    rustix::pty::grantpt(&master)?;
    rustix::pty::unlockpt(&master)?;
    rustix::termios::tcsetwinsize(&master, winsize(size))?;
    let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags)?;
    command
        .stdin(slave.try_clone()?)
        .stdout(slave.try_clone()?)
        .stderr(slave);
    Ok(master)
}
