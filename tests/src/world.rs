//! A private place to run labs in.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process, set_child_subreaper};
use serde_json::Value;
use tempfile::TempDir;

use crate::case::{self, Engine};
use crate::lab::{Foreground, Lab};
use crate::process::{self, Output, eventually};
use crate::traces::{Process, Traces, descendants};
use crate::user::User;

/// How long the remains of a lab may take to vanish once it has ended or was killed.
const PATIENCE: Duration = Duration::from_secs(20);

/// Folders of its own for running labs and temporary files, and everything below this process.
#[derive(Debug)]
pub struct World {
    engine: Option<Engine>,
    folder: TempDir,
    /// See [`guard`].
    guard: Child,
    before: Traces,
    user: OnceLock<User>,
}

impl World {
    /// A fresh one. Each test is a process of its own, so that what its labs started can be told by descent.
    pub fn new(engine: Option<Engine>) -> Result<Self> {
        case::programs_built()?;
        // Orphans become children of this process instead of disappearing below init.
        set_child_subreaper(Some(rustix::process::getpid()))?;
        let folder = tempfile::Builder::new().prefix("hopyard-test.").tempdir()?;
        for name in ["run", "tmp", "files"] {
            std::fs::create_dir(folder.path().join(name))?;
        }
        let guard = guard(folder.path())?;
        let before = Traces::now(&folder.path().join("tmp"), guard.id());
        Ok(Self {
            engine,
            folder,
            guard,
            before,
            user: OnceLock::new(),
        })
    }

    /// From now on everything here is run by an ordinary user, in this control group if one is given. `None` where this process is an
    /// ordinary user's itself.
    pub fn become_user(&self, group: Option<&Path>) -> Result<Option<&User>> {
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        let user = User::new(self.folder.path(), &bin_dir()?, &image_dir(), group)?;
        ensure!(self.user.set(user).is_ok(), "one user is enough");
        Ok(self.user.get())
    }

    /// Runs `vmm` as yet another ordinary user.
    pub fn vmm_of_another(&self, arguments: &[&str]) -> Result<Output> {
        let user = self.user.get().context("there are no others")?;
        let mut command = user.others_program("vmm");
        command
            .current_dir("/")
            .env("HOPYARD_RUN", self.run_folder())
            .args(arguments);
        process::run(command, b"", Duration::from_mins(1))
    }

    /// The engine under test; QEMU where a test does not care.
    pub fn engine(&self) -> Engine {
        self.engine.unwrap_or(Engine::Qemu)
    }

    /// Where running labs are kept.
    pub fn run_folder(&self) -> PathBuf {
        self.folder.path().join("run")
    }

    /// A program of this workspace, with this world's environment.
    pub fn program(&self, name: &str) -> Result<Command> {
        let mut command = match self.user.get() {
            Some(user) => user.program(name),
            None => Command::new(bin_dir()?.join(name)),
        };
        command
            .current_dir(self.folder.path().join("files"))
            .env("HOPYARD_RUN", self.run_folder())
            .env("TMPDIR", self.folder.path().join("tmp"))
            .env_remove("HOPYARD_LAB");
        Ok(command)
    }

    /// `vmm` with arguments, ready to run.
    pub fn vmm_command(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = self.program("vmm")?;
        command.args(arguments);
        Ok(command)
    }

    /// Runs `vmm` with arguments.
    pub fn vmm(&self, arguments: &[&str]) -> Result<Output> {
        self.vmm_with_input(arguments, b"")
    }

    /// Runs `vmm` with arguments and bytes on standard input.
    pub fn vmm_with_input(&self, arguments: &[&str], input: &[u8]) -> Result<Output> {
        process::run(self.vmm_command(arguments)?, input, Duration::from_mins(3))
    }

    /// Writes a file, `name`.json for a topology, and returns its path.
    pub fn file(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.path(name);
        std::fs::write(&path, text)?;
        Ok(path)
    }

    /// A path for a file or socket of the test itself.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("files").join(name)
    }

    /// Launches a topology in the background and waits until it is ready.
    pub fn launch(&self, file: &Path) -> Result<Lab<'_>> {
        let path = file.to_str().context("a path of the tests is UTF-8")?;
        self.vmm(&["launch", "-d", "--engine", self.engine().name(), path])?
            .success()?;
        let name = file
            .file_stem()
            .and_then(|stem| stem.to_str())
            .context("a topology's file has a name")?;
        Ok(Lab::new(self, name))
    }

    /// Launches a topology in the foreground and does not wait.
    pub fn launch_foreground(&self, file: &Path) -> Result<Foreground<'_>> {
        let path = file.to_str().context("a path of the tests is UTF-8")?;
        let command = self.vmm_command(&["launch", "--engine", self.engine().name(), path])?;
        let name = file
            .file_stem()
            .and_then(|stem| stem.to_str())
            .context("a topology's file has a name")?;
        Ok(Foreground::new(
            Lab::new(self, name),
            process::start(command, b"")?,
        ))
    }

    /// The lab of that name.
    pub fn lab(&self, name: &str) -> Lab<'_> {
        Lab::new(self, name)
    }

    /// `vmm ls --json`, read.
    pub fn ls(&self) -> Result<Value> {
        Ok(serde_json::from_str(
            &self.vmm(&["ls", "--json"])?.success()?.stdout,
        )?)
    }

    /// Fails if anything is left of the labs that ran here, once they had time to go; then removes it.
    pub fn nothing_left(mut self) -> Result<()> {
        let result = self.expect_nothing_left();
        self.guard.kill()?;
        self.guard.wait()?;
        for process in descendants(std::process::id()) {
            if let Some(pid) = Pid::from_raw(process.pid.cast_signed()) {
                // It may have ended by itself meanwhile.
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        result
    }

    /// Fails if anything is left of the labs that ran here, once they had time to go.
    pub fn expect_nothing_left(&self) -> Result<()> {
        eventually(PATIENCE, || {
            let now = Traces::now(&self.folder.path().join("tmp"), self.guard.id());
            let mut left: Vec<_> = now.since(&self.before).cloned().collect();
            for entry in std::fs::read_dir(self.run_folder())? {
                left.push(format!("file {}", entry?.path().display()));
            }
            if left.is_empty() {
                return Ok(());
            }
            bail!("left behind:\n  {}", left.join("\n  "))
        })
    }

    /// Ends the labs that a failed test left running.
    pub fn stop_all(&self) {
        match self.vmm(&["stop", "--all"]) {
            Ok(output) if output.code() == 0 => {}
            Ok(output) => println!("{output}"),
            Err(error) => println!("{error:#}"),
        }
    }

    /// Prints what helps to understand a failure: the state of every lab, what its processes do, the end of every
    /// serial log.
    pub fn tell_all(&self) {
        if let Ok(output) = self.vmm(&["ls", "--json"]) {
            println!("{output}");
        }
        for process in descendants(std::process::id()) {
            println!("{}", describe_threads(&process));
        }
        let mut logs = Vec::new();
        find_logs(&self.run_folder(), &mut logs);
        for log in logs {
            let text = std::fs::read(&log).unwrap_or_default();
            let tail = &text[text.len().saturating_sub(3000)..];
            println!(
                "--- end of {}\n{}",
                log.display(),
                String::from_utf8_lossy(tail)
            );
        }
    }
}

/// One line for each thread: its name, whether it runs or where it sleeps, and the processor time it has taken.
fn describe_threads(process: &Process) -> String {
    let read = |path: String| std::fs::read_to_string(path).unwrap_or_default();
    let mut lines = vec![format!("process {} ({})", process.pid, process.command)];
    let threads = std::fs::read_dir(format!("/proc/{}/task", process.pid));
    for thread in threads.into_iter().flatten().flatten() {
        let folder = thread.path().display().to_string();
        let (stat, wchan) = (
            read(format!("{folder}/stat")),
            read(format!("{folder}/wchan")),
        );
        let fields: Vec<_> = stat
            .rsplit(')')
            .next()
            .unwrap_or_default()
            .split_ascii_whitespace()
            .collect();
        // proc(5): state is the third field of all, utime and stime are the 14th and 15th, in 1/100 s.
        if let [state, _, _, _, _, _, _, _, _, _, _, user, system, ..] = fields[..] {
            let name = read(format!("{folder}/comm"));
            lines.push(format!(
                "  {}: {state} {wchan}, user {user}, system {system}",
                name.trim()
            ));
        }
    }
    lines.join("\n")
}

fn find_logs(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            find_logs(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "log") {
            found.push(path);
        }
    }
}

/// A process that outlives this one if the runner kills it, to end its labs. It waits for the end of its standard
/// input, in a session of its own, out of reach of the runner.
fn guard(folder: &Path) -> Result<Child> {
    let mut command = Command::new("setsid");
    command
        .args([
            "sh",
            "-c",
            "read -r _ || { \"$0\" stop --all; rm -rf \"$1\"; }",
        ])
        .arg(bin_dir()?.join("vmm"))
        .arg(folder)
        .env("HOPYARD_RUN", folder.join("run"))
        .stdin(Stdio::piped())
        .stdout(Stdio::null());
    command.spawn().context("setsid cannot be started")
}

/// The workspace's folder.
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// A topology that comes with Hopyard.
pub fn config(name: &str) -> PathBuf {
    workspace().join("configs").join(name)
}

/// Where the programs under test are: `$HOPYARD_BIN`, else where cargo puts them for the profile of this test.
pub fn bin_dir() -> Result<PathBuf> {
    if let Some(folder) = std::env::var_os("HOPYARD_BIN") {
        return Ok(std::fs::canonicalize(folder)?);
    }
    let test = std::env::current_exe()?;
    let folder = test.parent().and_then(Path::parent);
    Ok(folder
        .context("a test lies in target/PROFILE/deps")?
        .to_path_buf())
}

/// The guest image that labs use unless told otherwise.
pub fn image_dir() -> PathBuf {
    std::env::var_os("HOPYARD_IMAGE").map_or_else(|| cache_dir().join("current"), Into::into)
}

/// The cache of guest images: `$HOPYARD_CACHE`, else where programs of the user keep such things.
pub fn cache_dir() -> PathBuf {
    let variable = |name| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    variable("HOPYARD_CACHE")
        .or_else(|| variable("XDG_CACHE_HOME").map(|dir| dir.join("hopyard")))
        .unwrap_or_else(|| variable("HOME").unwrap_or_default().join(".cache/hopyard"))
}
