//! A virtual switch of the lab: one `vswitch` process.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jail::Plan;
use rustix::process::Signal;
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use topology::model::Fabric;
use topology::zones::COMMON;

use super::children::{self, LastWords};
use super::janitor::{self, Role, SharedJanitor};
use super::run_folder::LabPaths;
use crate::failure::{Code, Failure};
use crate::process::{Command, Namespaces, Process};

/// How long the switch may take to listen on all its ports.
const READY_PATIENCE: Duration = Duration::from_secs(20);
/// How long the switch may take to end when it is asked to.
const END_PATIENCE: Duration = Duration::from_secs(2);

/// The running switch.
#[derive(Debug)]
pub struct Switch {
    /// Its process.
    pub pid: u32,
    /// What people call it.
    called: String,
    process: Process,
    last_words: (LastWords, JoinHandle<()>),
    ready: Arc<AtomicBool>,
}

/// What it takes to start the switch.
#[derive(Debug, Clone)]
pub struct Setup {
    /// The program.
    pub program: PathBuf,
    /// What it makes links of.
    pub fabric: Fabric,
    /// The zone whose frames it handles.
    pub zone: String,
    /// The namespaces it starts in, if it is jailed.
    pub namespaces: Option<Namespaces>,
    /// What it keeps in its jail.
    pub jail: Option<Plan>,
}

impl Setup {
    /// What people call it.
    pub fn called(&self) -> String {
        if self.zone == COMMON {
            "the switch".to_owned()
        } else {
            format!("the switch of zone {}", self.zone)
        }
    }
}

/// `$HOPYARD_VSWITCH`, else `vswitch` beside this program.
pub fn program() -> Result<PathBuf, Failure> {
    let asked = std::env::var_os("HOPYARD_VSWITCH").filter(|v| !v.is_empty());
    let program = match asked {
        Some(program) => PathBuf::from(program),
        None => std::env::current_exe()
            .map_err(|error| {
                Failure::new(
                    Code::Host,
                    format!("cannot tell where the vswitch program is: {error}"),
                )
            })?
            .with_file_name("vswitch"),
    };
    if program.is_file() {
        return Ok(program);
    }
    let missing = format!("there is no vswitch program at {}", program.display());
    Err(Failure::new(Code::Host, missing)
        .help("build it with `cargo build -p vswitch`, or name it with HOPYARD_VSWITCH"))
}

impl Switch {
    /// Starts the switch as `setup` says, `elapsed` after the begin of schedules; has to be called on the main thread. What it has to tell
    /// while it runs is for `hear`.
    pub fn start(
        setup: &Setup,
        paths: &LabPaths,
        janitor: &SharedJanitor,
        elapsed: Duration,
        hear: impl Fn(News) + Send + 'static,
    ) -> Result<(Self, Ready), Failure> {
        let command = Command::new(&setup.program);
        let command = match setup.fabric {
            Fabric::Vswitch => command
                .arguments(["run", "--sockets"])
                .arguments([paths.ports(&setup.zone)])
                .jailed(setup.namespaces),
            Fabric::Kernel => command.arguments(["kernel"]),
        };
        let mut command = command
            .arguments(["--sources"])
            .arguments([paths.sources(&setup.zone)])
            .arguments(["--elapsed", &elapsed.as_nanos().to_string()])
            .arguments(["--control"])
            .arguments([paths.vswitch(&setup.zone)]);
        if let Some(plan) = &setup.jail {
            let plan = serde_json::to_string(plan).unwrap_or_default();
            command = command.arguments(["--jail", &plan]);
        } else if setup.fabric == Fabric::Vswitch {
            command = command.arguments(["--unconfined"]);
        }
        let role = Role::Switch(setup.zone.clone());
        janitor::start_watched(command, janitor, role, |_| Ok(()))
            .and_then(|process| Self::attend(setup, process, hear))
            .map_err(|error| {
                Failure::new(
                    Code::Host,
                    format!("cannot start {}: {error}", setup.program.display()),
                )
            })
    }

    /// Attends a switch that another lab process has started, and that was ready.
    pub fn adopt(
        setup: &Setup,
        process: Process,
        hear: impl Fn(News) + Send + 'static,
    ) -> std::io::Result<(Self, Ready)> {
        let (switch, _) = Self::attend(setup, process, hear)?;
        switch.ready.store(true, Ordering::Relaxed);
        let (sender, ready) = oneshot::channel();
        let _ = sender.send(());
        Ok((switch, Ready(ready)))
    }

    fn attend(
        setup: &Setup,
        mut process: Process,
        hear: impl Fn(News) + Send + 'static,
    ) -> std::io::Result<(Self, Ready)> {
        let (Some(stdout), Some(stderr)) = (process.stdout.take(), process.stderr.take()) else {
            return Err(std::io::Error::other("what leads to it is not all there"));
        };
        let switch = Self {
            pid: process.pid,
            called: setup.called(),
            process,
            last_words: LastWords::listen(stderr),
            ready: Arc::default(),
        };
        let (sender, ready) = oneshot::channel();
        let is_ready = switch.ready.clone();
        let tell = move || {
            is_ready.store(true, Ordering::Relaxed);
            // A lab that no longer waits is ending.
            let _ = sender.send(());
        };
        tokio::spawn(listen(stdout, tell, hear));
        Ok((switch, Ready(ready)))
    }

    /// Waits until the switch has ended by itself; says how.
    pub async fn failed(&mut self) -> String {
        let how = children::describe_end(self.process.wait().await);
        let _ = tokio::time::timeout(END_PATIENCE, &mut self.last_words.1).await;
        let called = &self.called;
        match self.last_words.0.text() {
            words if words.is_empty() => format!("{called} {how}"),
            words => format!("{called} {how} and said: {words}"),
        }
    }

    /// Whether it has ever listened on all its ports.
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed)
    }

    /// Ends the switch.
    pub async fn stop(mut self) {
        self.process.signal(Signal::TERM);
        if tokio::time::timeout(END_PATIENCE, self.process.wait())
            .await
            .is_err()
        {
            self.process.signal(Signal::KILL);
            let _ = self.process.wait().await;
        }
    }
}

/// Tells when the switch listens on all its ports.
#[derive(Debug)]
pub struct Ready(oneshot::Receiver<()>);

impl Ready {
    /// Waits for it.
    pub async fn wait(self) -> Result<(), Failure> {
        match tokio::time::timeout(READY_PATIENCE, self.0).await {
            Ok(Ok(())) => Ok(()),
            // It has closed its output: how it ended says more.
            Ok(_) => std::future::pending().await,
            Err(_) => Err(Failure::new(
                Code::Lab,
                format!(
                    "the switch did not listen within {} s",
                    READY_PATIENCE.as_secs()
                ),
            )),
        }
    }
}

/// What the switch prints, a JSON object a line.
#[derive(Debug, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
enum Event {
    /// It listens on all its ports.
    Ready,
    #[serde(untagged)]
    News(News),
}

/// Something that has happened in the switch.
#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum News {
    /// The carrier of one direction of a link has come or gone.
    Carrier {
        /// The link's name.
        link: String,
        /// 0 is from its first end to its second.
        direction: usize,
        /// Whether there is a carrier now.
        up: bool,
    },
}

/// Takes all the switch prints, or it would wait.
async fn listen(stdout: impl AsyncRead + Unpin, ready: impl FnOnce(), hear: impl Fn(News)) {
    let mut lines = BufReader::new(stdout).lines();
    let mut ready = Some(ready);
    while let Ok(Some(line)) = lines.next_line().await {
        match serde_json::from_str(&line) {
            Ok(Event::Ready) => {
                if let Some(ready) = ready.take() {
                    ready();
                }
            }
            Ok(Event::News(news)) => hear(news),
            // Of a newer switch.
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[tokio::test]
    async fn what_the_switch_tells_is_heard() {
        let said = r#"{"event":"ready"}
{"event":"something-newer","n":1}
{"event":"carrier","link":"a:eth0--b:eth0","direction":1,"up":false}
"#;
        let (sender, ready) = oneshot::channel();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let notes = heard.clone();
        let ready_now = || sender.send(()).unwrap();
        listen(said.as_bytes(), ready_now, move |news| {
            notes.lock().unwrap().push(news);
        })
        .await;
        ready.await.unwrap();
        assert_eq!(
            *heard.lock().unwrap(),
            [News::Carrier {
                link: "a:eth0--b:eth0".to_owned(),
                direction: 1,
                up: false
            }]
        );
    }
}
