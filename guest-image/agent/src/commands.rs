//! Start-up commands: started in order and left running. The last of what each of them says is kept in a log, from which
//! [`crate::attach`] takes it, as may a person.

use std::fs::{self, File};
use std::io::{self, PipeReader, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use agent_protocol::{ExitStatus, ToHost};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::process::Pid;

use crate::services::{describe, quote_log};
use crate::{environment, log, signals};

/// A log that has become so long is put aside for a new one, and the one put aside before is gone: a command that talks
/// for ever must not fill the node's memory.
const LOG: u64 = 512 << 10;
/// Bytes read at once.
const CHUNK: usize = 16 << 10;
/// Chunks that are still read of a command that has ended; its background processes may go on talking.
const LAST_CHUNKS: usize = 64;

/// Where a command's output and its state are.
#[derive(Debug, Clone)]
pub struct Place {
    /// What it has said.
    pub log: PathBuf,
    /// What it said before that.
    pub older: PathBuf,
    /// Whether it runs: `running` or `ended STATUS`, and on the next line the command.
    pub state: PathBuf,
}

/// Holds the states.
pub const STATES: &str = "/run/hopyard";

impl Place {
    /// That of the `number`-th command, from 1.
    pub fn of(number: usize) -> Self {
        Self::below(Path::new("/var/log"), Path::new(STATES), number)
    }

    fn below(logs: &Path, states: &Path, number: usize) -> Self {
        Self {
            log: logs.join(format!("command-{number}.log")),
            older: logs.join(format!("command-{number}.log.1")),
            state: states.join(format!("command-{number}")),
        }
    }

    fn tell(&self, state: &str, command: &str) {
        let new = self.state.with_extension("new");
        let written = fs::write(&new, format!("{state}\n{command}\n"))
            .and_then(|()| fs::rename(&new, &self.state));
        if let Err(error) = written {
            log::error(format_args!(
                "cannot write {}: {error}",
                self.state.display()
            ));
        }
    }
}

/// The commands of a node.
#[derive(Debug, Default)]
pub struct Commands(Vec<Running>);

#[derive(Debug)]
struct Running {
    command: String,
    place: Place,
    /// Until it has ended.
    pid: Option<Pid>,
    /// Until nobody can write to it any more.
    output: Option<PipeReader>,
    log: Log,
}

impl Commands {
    /// Starts all.
    pub fn start(commands: Vec<String>, events: &mut Vec<ToHost>) -> Self {
        let mut running = Vec::new();
        for (index, command) in commands.into_iter().enumerate() {
            match Running::start(command.clone(), Place::of(index + 1)) {
                Ok(command) => running.push(command),
                Err(error) => events.push(ToHost::Warning {
                    message: format!("the command `{command}` cannot be started: {error}"),
                }),
            }
        }
        Self(running)
    }

    /// A process has ended. Returns false if it was none of these.
    pub fn exited(&mut self, pid: Pid, status: ExitStatus, events: &mut Vec<ToHost>) -> bool {
        let Some(command) = self.0.iter_mut().find(|command| command.pid == Some(pid)) else {
            return false;
        };
        command.end(status);
        if status != ExitStatus::Code(0) {
            events.push(ToHost::Warning {
                message: format!(
                    "the command `{}` {}{}",
                    command.command,
                    describe(status),
                    quote_log(&command.place.log.display().to_string())
                ),
            });
        }
        true
    }

    /// What to watch for output, by place.
    pub fn outputs(&self) -> impl Iterator<Item = (usize, BorrowedFd<'_>)> {
        let outputs = self.0.iter().enumerate();
        outputs.filter_map(|(index, command)| Some((index, command.output.as_ref()?.as_fd())))
    }

    /// Takes output that has come.
    pub fn read(&mut self, index: usize) {
        if let Some(command) = self.0.get_mut(index) {
            command.read();
        }
    }
}

impl Running {
    fn start(line: String, place: Place) -> io::Result<Self> {
        for path in [&place.log, &place.state] {
            if let Some(folder) = path.parent() {
                fs::create_dir_all(folder)?;
            }
        }
        let log = Log::create(&place)?;
        let (output, writer) = io::pipe()?;
        fcntl_setfl(&output, fcntl_getfl(&output)? | OFlags::NONBLOCK)?;
        let mut command = Command::new("/bin/sh");
        command.args(["-c", &line]);
        environment::apply(&mut command);
        command.current_dir(environment::home());
        command
            .stdin(Stdio::null())
            .stdout(writer.try_clone()?)
            .stderr(writer);
        // SAFETY: the closure only makes system calls that are async-signal-safe, and allocates nothing.
        unsafe {
            command.pre_exec(|| {
                signals::unblock_all()?;
                rustix::process::setsid()?;
                Ok(())
            });
        }
        let pid = Pid::from_child(&command.spawn()?);
        place.tell("running", &line);
        Ok(Self {
            command: line,
            place,
            pid: Some(pid),
            output: Some(output),
            log,
        })
    }

    /// Reads once; false if there was nothing.
    fn read(&mut self) -> bool {
        let Some(output) = &mut self.output else {
            return false;
        };
        let mut chunk = [0; CHUNK];
        match output.read(&mut chunk) {
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) =>
            {
                return false;
            }
            Ok(length @ 1..) => {
                // A full disk must not stop the command, which would wait for its output to be taken.
                let _ = self.log.write(&chunk[..length], &self.place);
                return true;
            }
            Ok(0) | Err(_) => self.output = None,
        }
        false
    }

    fn end(&mut self, status: ExitStatus) {
        self.pid = None;
        // Before anybody learns that it has ended.
        for _ in 0..LAST_CHUNKS {
            if !self.read() {
                break;
            }
        }
        let status = match status {
            ExitStatus::Code(code) => code,
            ExitStatus::Signal(signal) => 128 + signal,
        };
        self.place.tell(&format!("ended {status}"), &self.command);
    }
}

/// The newer half of what is kept.
#[derive(Debug)]
struct Log {
    file: File,
    size: u64,
}

impl Log {
    fn create(place: &Place) -> io::Result<Self> {
        Ok(Self {
            file: File::create(&place.log)?,
            size: 0,
        })
    }

    fn write(&mut self, data: &[u8], place: &Place) -> io::Result<()> {
        if self.size >= LOG {
            fs::rename(&place.log, &place.older)?;
            *self = Self::create(place)?;
        }
        self.file.write_all(data)?;
        self.size += data.len() as u64;
        Ok(())
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    /// A command in a folder of its own.
    pub struct Fixture {
        folder: tempfile::TempDir,
        running: Running,
    }

    impl Fixture {
        pub fn start(line: &str) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let place = Place::below(folder.path(), folder.path(), 1);
            let running = Running::start(line.to_owned(), place).unwrap();
            Self { folder, running }
        }

        pub fn place(&self) -> Place {
            Place::below(self.folder.path(), self.folder.path(), 1)
        }

        /// Takes output until there is no more.
        pub fn read_all(&mut self) {
            let deadline = Instant::now() + Duration::from_secs(30);
            while self.running.output.is_some() && Instant::now() < deadline {
                if !self.running.read() {
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
        }

        /// Takes what there is.
        pub fn read_some(&mut self) {
            self.running.read();
        }

        pub fn end(&mut self, status: ExitStatus) {
            self.running.end(status);
        }
    }

    fn text(path: &Path) -> String {
        fs::read_to_string(path).unwrap_or_default()
    }

    #[test]
    fn what_a_command_says_is_kept_and_its_end_told() {
        let mut command = Fixture::start("echo out; echo err >&2");
        let place = command.place();
        assert_eq!(text(&place.state), "running\necho out; echo err >&2\n");
        command.read_all();
        assert_eq!(text(&place.log), "out\nerr\n");
        command.end(ExitStatus::Signal(9));
        assert!(text(&place.state).starts_with("ended 137\n"));
    }

    #[test]
    fn a_command_that_talks_for_ever_is_bounded() {
        let mut command = Fixture::start("seq 1 600000");
        command.read_all();
        let place = command.place();
        let (older, newer) = (text(&place.older), text(&place.log));
        let kept = (older.len() + newer.len()) as u64;
        assert!((LOG..=2 * LOG + 2 * CHUNK as u64).contains(&kept), "{kept}");
        // Together they are the end of it, without a gap.
        let kept = older + &newer;
        let last: Vec<&str> = kept.lines().rev().take(50_000).collect();
        for (line, number) in last.iter().zip((1..=600_000).rev()) {
            assert_eq!(*line, number.to_string());
        }
    }
}
