//! FRR: starts its daemons in the foreground, gives them their configuration, and starts again what dies.

use std::fs;
use std::os::unix::fs::chown;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use agent_protocol::{ExitStatus, FrrDescription};
use rustix::process::Pid;

use crate::configure::write_file;
use crate::services::{describe, quote_log, spawn_logged};

const DAEMONS: &str = "/usr/lib/frr";
const RUN: &str = "/run/frr";
const CONFIG: &str = "/etc/frr/frr.conf";
const VTYSH_LOG: &str = "/var/log/frr/vtysh.log";
/// How often to look whether a daemon has opened its socket.
const LOOK: Duration = Duration::from_millis(5);
/// How long a daemon may take to open its socket. Emulated machines are slow.
const START_LIMIT: Duration = Duration::from_mins(1);
const FIRST_BACKOFF: Duration = Duration::from_secs(1);
const LONGEST_BACKOFF: Duration = Duration::from_secs(30);
/// A daemon that ran for this long is not in a loop of failures.
const GOOD_RUN: Duration = Duration::from_mins(1);

/// What the host should know.
#[derive(Debug, PartialEq, Eq)]
pub enum FrrEvent {
    /// A daemon has died, and will be started again.
    Warning(String),
    /// The configuration cannot be done.
    Failed(String),
}

/// All daemons of a node.
#[derive(Debug)]
pub struct Frr {
    daemons: Vec<Daemon>,
    config: String,
    stage: Stage,
    stage_since: Instant,
    /// The `vtysh` that is giving a configuration, and the daemon it is for (`None`: all).
    vtysh: Option<(Pid, Option<usize>)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Nothing is started.
    New,
    /// `zebra` is starting. The others look for it once and then only ten seconds later.
    Zebra,
    /// All others are starting.
    Others,
    /// `vtysh` is reading the configuration to all.
    Configuring,
    /// All is done; daemons are watched.
    Watching,
    /// The configuration failed.
    Failed,
}

#[derive(Debug)]
struct Daemon {
    name: String,
    state: State,
    backoff: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Stopped,
    /// Its socket is not there yet.
    Starting {
        pid: Pid,
        since: Instant,
    },
    /// Its socket is there, its configuration not.
    Unconfigured {
        pid: Pid,
        since: Instant,
    },
    Running {
        pid: Pid,
        since: Instant,
    },
    /// It has died.
    Waiting {
        until: Instant,
    },
}

impl Daemon {
    fn socket(&self) -> String {
        format!("{RUN}/{}.vty", self.name)
    }

    fn log(&self) -> String {
        format!("/var/log/frr/{}.log", self.name)
    }

    fn pid(&self) -> Option<Pid> {
        match self.state {
            State::Starting { pid, .. }
            | State::Unconfigured { pid, .. }
            | State::Running { pid, .. } => Some(pid),
            State::Stopped | State::Waiting { .. } => None,
        }
    }

    /// True once it listens; `zebra` also has to listen for the others.
    fn listens(&self) -> bool {
        Path::new(&self.socket()).exists()
            && (self.name != "zebra" || Path::new(&format!("{RUN}/zserv.api")).exists())
    }

    fn start(&mut self, now: Instant) -> Result<(), String> {
        // A socket that a dead daemon has left would pass for a sign of life.
        let _ = fs::remove_file(self.socket());
        if self.name == "zebra" {
            let _ = fs::remove_file(format!("{RUN}/zserv.api"));
        }
        let mut command = Command::new(format!("{DAEMONS}/{}", self.name));
        command.args([
            "-A",
            "127.0.0.1",
            "--log",
            "stdout",
            "--log-level",
            "informational",
        ]);
        if self.name == "zebra" {
            // Room for the netlink messages of many routes at once.
            command.args(["-s", "90000000"]);
        }
        let pid = spawn_logged(command, &self.log()).map_err(|error| {
            format!(
                "the routing daemon {} cannot be started: {error}",
                self.name
            )
        })?;
        self.state = State::Starting { pid, since: now };
        Ok(())
    }
}

impl Frr {
    /// Nothing happens before the first [`Frr::step`].
    pub fn new(description: FrrDescription, now: Instant) -> Self {
        let mut names: Vec<String> = Vec::new();
        // Every other daemon needs zebra.
        for name in std::iter::once("zebra".to_owned()).chain(description.daemons) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        let daemons = names
            .into_iter()
            .map(|name| Daemon {
                name,
                state: State::Stopped,
                backoff: FIRST_BACKOFF,
            })
            .collect();
        Self {
            daemons,
            config: description.config,
            stage: Stage::New,
            stage_since: now,
            vtysh: None,
        }
    }

    /// True once every daemon has its configuration.
    pub fn is_configured(&self) -> bool {
        self.stage == Stage::Watching
    }

    /// Does what is due.
    pub fn step(&mut self, now: Instant, events: &mut Vec<FrrEvent>) {
        if let Err(problem) = self.advance(now) {
            self.stage = Stage::Failed;
            events.push(FrrEvent::Failed(problem));
        }
    }

    fn advance(&mut self, now: Instant) -> Result<(), String> {
        if self.stage == Stage::Failed {
            return Ok(());
        }
        for daemon in &mut self.daemons {
            match daemon.state {
                State::Starting { pid, since } if daemon.listens() => {
                    daemon.state = State::Unconfigured { pid, since };
                }
                State::Waiting { until } if now >= until => daemon.start(now)?,
                _ => {}
            }
        }
        let listening = |daemon: &Daemon| matches!(daemon.state, State::Unconfigured { .. });
        match self.stage {
            Stage::New => {
                self.prepare()?;
                self.daemons[0].start(now)?;
                self.enter(Stage::Zebra, now);
            }
            Stage::Zebra if listening(&self.daemons[0]) => {
                for daemon in &mut self.daemons[1..] {
                    daemon.start(now)?;
                }
                self.enter(Stage::Others, now);
            }
            Stage::Others if self.daemons.iter().all(listening) => {
                self.vtysh(None)?;
                self.enter(Stage::Configuring, now);
            }
            Stage::Zebra | Stage::Others if now >= self.stage_since + START_LIMIT => {
                let late = self.daemons.iter().find(|daemon| !listening(daemon));
                return Err(late.map_or_else(String::new, |daemon| {
                    format!(
                        "the routing daemon {} has not opened {} within {} s{}",
                        daemon.name,
                        daemon.socket(),
                        START_LIMIT.as_secs(),
                        quote_log(&daemon.log())
                    )
                }));
            }
            Stage::Watching if self.vtysh.is_none() => {
                if let Some(index) = self.daemons.iter().position(listening) {
                    self.vtysh(Some(index))?;
                }
            }
            Stage::Zebra | Stage::Others | Stage::Configuring | Stage::Watching | Stage::Failed => {
            }
        }
        Ok(())
    }

    fn enter(&mut self, stage: Stage, now: Instant) {
        self.stage = stage;
        self.stage_since = now;
    }

    /// Checks that the daemons exist, makes their folders and writes their configuration.
    fn prepare(&self) -> Result<(), String> {
        for daemon in &self.daemons {
            if !is_daemon(&daemon.name) {
                return Err(format!(
                    "there is no routing daemon {:?} in this root file system; it has: {}",
                    daemon.name,
                    available_daemons()
                ));
            }
        }
        let (user, group) = account(
            &fs::read_to_string("/etc/passwd").unwrap_or_default(),
            "frr",
        )
        .ok_or("the root file system has no user `frr`, which FRR's daemons run as")?;
        for folder in [RUN, "/var/log/frr", "/var/lib/frr", "/etc/frr"] {
            fs::create_dir_all(folder)
                .and_then(|()| chown(folder, Some(user), Some(group)))
                .map_err(|error| format!("{folder} cannot be given to the user frr: {error}"))?;
        }
        write_file(CONFIG, &self.config, 0o640).map_err(|error| error.to_string())?;
        chown(CONFIG, Some(user), Some(group))
            .map_err(|error| format!("{CONFIG} cannot be given to the user frr: {error}"))
    }

    fn vtysh(&mut self, daemon: Option<usize>) -> Result<(), String> {
        let mut command = Command::new("vtysh");
        command.arg("-b");
        if let Some(index) = daemon {
            command.args(["-d", &self.daemons[index].name]);
        }
        let pid = spawn_logged(command, VTYSH_LOG)
            .map_err(|error| format!("vtysh cannot be run: {error}"))?;
        self.vtysh = Some((pid, daemon));
        Ok(())
    }

    /// A process has ended. Returns false if it was none of these.
    pub fn exited(
        &mut self,
        pid: Pid,
        status: ExitStatus,
        now: Instant,
        events: &mut Vec<FrrEvent>,
    ) -> bool {
        if let Some((vtysh, target)) = self.vtysh
            && vtysh == pid
        {
            self.vtysh = None;
            self.vtysh_ended(target, status, now, events);
            return true;
        }
        let Some(daemon) = self
            .daemons
            .iter_mut()
            .find(|daemon| daemon.pid() == Some(pid))
        else {
            return false;
        };
        if let State::Running { since, .. } = daemon.state
            && now >= since + GOOD_RUN
        {
            daemon.backoff = FIRST_BACKOFF;
        }
        events.push(FrrEvent::Warning(format!(
            "the routing daemon {} {}; it is started again in {} s{}",
            daemon.name,
            describe(status),
            daemon.backoff.as_secs(),
            quote_log(&daemon.log())
        )));
        daemon.state = State::Waiting {
            until: now + daemon.backoff,
        };
        daemon.backoff = (daemon.backoff * 2).min(LONGEST_BACKOFF);
        true
    }

    fn vtysh_ended(
        &mut self,
        target: Option<usize>,
        status: ExitStatus,
        now: Instant,
        events: &mut Vec<FrrEvent>,
    ) {
        if status != ExitStatus::Code(0) {
            let message = format!(
                "the routing configuration {CONFIG} is refused: vtysh {}{}",
                describe(status),
                quote_log(VTYSH_LOG)
            );
            if target.is_none() {
                self.stage = Stage::Failed;
                events.push(FrrEvent::Failed(message));
                return;
            }
            events.push(FrrEvent::Warning(message));
        }
        for (index, daemon) in self.daemons.iter_mut().enumerate() {
            if let State::Unconfigured { pid, since } = daemon.state
                && target.is_none_or(|target| target == index)
            {
                daemon.state = State::Running { pid, since };
            }
        }
        if self.stage == Stage::Configuring {
            self.enter(Stage::Watching, now);
        }
    }

    /// When [`Frr::step`] wants to be called at the latest.
    pub fn deadline(&self) -> Option<Instant> {
        if self.stage == Stage::Failed {
            return None;
        }
        let looking = self
            .daemons
            .iter()
            .any(|daemon| matches!(daemon.state, State::Starting { .. }));
        let restarts = self.daemons.iter().filter_map(|daemon| match daemon.state {
            State::Waiting { until } => Some(until),
            _ => None,
        });
        restarts.chain(looking.then(|| Instant::now() + LOOK)).min()
    }
}

/// True for a program in FRR's folder whose name is a daemon's, not a path or a script.
fn is_daemon(name: &str) -> bool {
    name.ends_with(|c: char| c.is_ascii_lowercase())
        && name.bytes().all(|c| c.is_ascii_alphanumeric())
        && Path::new(DAEMONS).join(name).is_file()
}

fn available_daemons() -> String {
    let mut names: Vec<_> = fs::read_dir(DAEMONS)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| is_daemon(name) && name != "watchfrr")
        .collect();
    names.sort();
    if names.is_empty() {
        "none".into()
    } else {
        names.join(", ")
    }
}

/// User and group number of an account, from the text of `/etc/passwd`.
fn account(passwd: &str, name: &str) -> Option<(u32, u32)> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == name).then_some(())?;
        Some((fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frr(daemons: &[&str], now: Instant) -> Frr {
        let daemons = daemons.iter().map(|&name| name.into()).collect();
        Frr::new(
            FrrDescription {
                daemons,
                config: String::new(),
            },
            now,
        )
    }

    #[test]
    fn zebra_comes_first_and_once() {
        let frr = frr(&["ospfd", "zebra", "ospfd"], Instant::now());
        let names: Vec<_> = frr
            .daemons
            .iter()
            .map(|daemon| daemon.name.as_str())
            .collect();
        assert_eq!(names, ["zebra", "ospfd"]);
    }

    #[test]
    fn what_is_no_daemon_is_refused() {
        let now = Instant::now();
        let mut frr = frr(&["../../bin/sh"], now);
        let mut events = Vec::new();
        frr.step(now, &mut events);
        let [FrrEvent::Failed(message)] = events.as_slice() else {
            panic!("{events:?}");
        };
        assert!(
            message.starts_with("there is no routing daemon"),
            "{message}"
        );
        assert_eq!(frr.deadline(), None);
    }

    #[test]
    fn a_daemon_that_dies_is_waited_for_longer_each_time() {
        let now = Instant::now();
        let mut frr = frr(&["zebra"], now);
        frr.stage = Stage::Watching;
        let pid = Pid::from_raw(1234).unwrap();
        let mut events = Vec::new();
        for expected in [1, 2, 4, 8, 16, 30, 30] {
            frr.daemons[0].state = State::Running { pid, since: now };
            assert!(frr.exited(pid, ExitStatus::Signal(11), now, &mut events));
            assert_eq!(frr.deadline(), Some(now + Duration::from_secs(expected)));
        }
        frr.daemons[0].state = State::Running { pid, since: now };
        let later = now + GOOD_RUN;
        frr.exited(pid, ExitStatus::Code(0), later, &mut events);
        assert_eq!(frr.deadline(), Some(later + FIRST_BACKOFF));
        let FrrEvent::Warning(message) = &events[0] else {
            panic!("{events:?}");
        };
        assert!(
            message.starts_with(
                "the routing daemon zebra was ended by signal 11; it is started again in 1 s"
            ),
            "{message}"
        );
    }

    #[test]
    fn accounts_are_found_by_name() {
        let passwd = "root::0:0:root:/root:/bin/bash\nfrr:x:990:991:Routing:/:/bin/false\n";
        assert_eq!(account(passwd, "frr"), Some((990, 991)));
        assert_eq!(account(passwd, "fr"), None);
    }
}
