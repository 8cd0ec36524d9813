//! The serial port: whoever types Enter there gets a shell.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{Mode, OFlags, fcntl_getfl, fcntl_setfl};
use rustix::process::Pid;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

use crate::{environment, log, signals};

/// A login shell, the best there is.
const SHELL: &str = "command -v bash >/dev/null && exec bash -l; exec sh -l";

/// The terminal that the kernel's messages go to.
#[derive(Debug)]
pub struct Console {
    path: PathBuf,
    terminal: OwnedFd,
    /// As the kernel has set it up; a shell that is killed leaves it otherwise.
    settings: Option<Termios>,
    /// While it runs, what is typed is for it.
    shell: Option<Pid>,
}

impl Console {
    /// Opens it; nothing if the kernel has none.
    pub fn open() -> Option<Self> {
        let name = active(&fs::read_to_string("/sys/class/tty/console/active").ok()?)?.to_owned();
        let path = Path::new("/dev").join(name);
        let terminal = open(&path).ok()?;
        Some(Self {
            settings: tcgetattr(&terminal).ok(),
            path,
            terminal,
            shell: None,
        })
    }

    /// What to watch for somebody who types.
    pub fn terminal(&self) -> Option<BorrowedFd<'_>> {
        self.shell.is_none().then(|| self.terminal.as_fd())
    }

    /// Somebody has typed a line. False if the terminal is of no use any more.
    pub fn typed(&mut self) -> bool {
        let mut line = [0; 256];
        match rustix::io::read(&self.terminal, &mut line) {
            // The terminal hands over whole lines; what this one said does not matter.
            Ok(1..) => match self.start() {
                Ok(shell) => self.shell = Some(shell),
                Err(error) => {
                    self.say(&format!("no shell can be started: {error}"));
                }
            },
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            // Somebody's Ctrl-D, or a program has hung up the terminal, which is of no use then until it is opened again.
            Ok(0) => return self.open_again(),
            Err(error) => {
                log::error(format_args!("the serial port cannot be read: {error}"));
                return false;
            }
        }
        true
    }

    /// A process has ended. Returns false if it was not the shell.
    pub fn exited(&mut self, pid: Pid) -> bool {
        if self.shell != Some(pid) {
            return false;
        }
        self.shell = None;
        // The kernel hangs up the terminal of a session that ends.
        self.open_again();
        if let Some(settings) = &self.settings {
            let _ = tcsetattr(&self.terminal, OptionalActions::Flush, settings);
        }
        self.say("the shell has ended; Enter starts another");
        true
    }

    /// False if that cannot be done.
    fn open_again(&mut self) -> bool {
        match open(&self.path) {
            Ok(terminal) => {
                self.terminal = terminal;
                true
            }
            Err(error) => {
                log::error(format_args!("the serial port cannot be opened: {error}"));
                false
            }
        }
    }

    fn start(&self) -> io::Result<Pid> {
        // Opened anew, as programs do not expect a terminal that does not wait.
        let terminal = open(&self.path)?;
        fcntl_setfl(&terminal, fcntl_getfl(&terminal)? - OFlags::NONBLOCK)?;
        let terminal = || terminal.try_clone();
        let mut command = Command::new("/bin/sh");
        command.args(["-c", SHELL]);
        environment::apply(&mut command);
        // What serial terminals have in common: whoever sits there may have anything, or see no escape sequences at all.
        command.env("TERM", "dumb");
        command.current_dir(environment::home());
        command
            .stdin(terminal()?)
            .stdout(terminal()?)
            .stderr(terminal()?);
        // SAFETY: the closure only makes system calls that are async-signal-safe, and allocates nothing.
        unsafe {
            command.pre_exec(|| {
                signals::unblock_all()?;
                rustix::process::setsid()?;
                rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
                Ok(())
            });
        }
        Ok(Pid::from_child(&command.spawn()?))
    }

    fn say(&self, text: &str) {
        // Nobody may be reading.
        let _ = rustix::io::write(&self.terminal, format!("{text}\r\n").as_bytes());
    }
}

/// Without waiting for a carrier.
fn open(path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
}

/// The last of the active consoles, which is the one `/dev/console` leads to.
fn active(list: &str) -> Option<&str> {
    list.split_whitespace().next_back()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_console_is_the_last_one() {
        assert_eq!(active("tty0 ttyS0\n"), Some("ttyS0"));
        assert_eq!(active("\n"), None);
    }
}
