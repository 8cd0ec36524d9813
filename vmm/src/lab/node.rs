//! One machine of a lab, from its first boot to the end of the lab.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use agent_protocol::{ToAgent, ToHost};
use monitor::NodeConfig;
use tokio::net::UnixStream;
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use topology::model::{EndAction, EndPolicy, Limits};

use super::Context;
use super::agent::{Agent, AgentError};
use super::ground;
use super::links::Carriers;
use super::orders::{self, Request, Task};
use super::state::State;
use crate::api::types::{BootTimes, End, EndReason, EngineName, NodeOrder, NodeState};
use crate::engine::{Engine, Guest};
use crate::process::Process;
use crate::sanitize;

/// Between two attempts to connect to an engine that is starting.
const RETRY: Duration = Duration::from_millis(10);
/// What the guest of a former lab process may take to notice that its host is another: until then its agent may take what the new
/// one says for the old one's, and forget it.
const CHANGE_OF_HOST: Duration = Duration::from_millis(100);
/// An agent that has not answered by then has forgotten.
const ANSWER: Duration = Duration::from_secs(1);
/// How long after its agent broke off a guest's end may take to be known.
const END_PATIENCE: Duration = Duration::from_secs(5);
/// What a readiness condition may take beyond its own time-out, which the agent enforces.
const READY_MARGIN: Duration = Duration::from_secs(30);
/// Boots in a row that may end before the node was ready.
const BOOT_ATTEMPTS: u32 = 5;
/// Longest pause before a boot.
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// Lines of the serial log that are shown with a time-out.
const SERIAL_LINES: usize = 12;

/// A machine and where its lab tells it what to do.
#[derive(Debug)]
pub struct Machine {
    /// What it is.
    pub spec: Spec,
    /// What is asked of it.
    pub orders: mpsc::Receiver<Request>,
    /// The lab goes on if it cannot be had: it ran before the machine came.
    pub optional: bool,
    /// What it does first.
    pub begin: Begin,
}

/// What a machine does first.
#[derive(Debug)]
pub enum Begin {
    /// Boot.
    Boot,
    /// Nothing, until it is asked to.
    Rest,
    /// Go on in a process that another lab process has started.
    GoOn(Process),
}

/// What the topology says of a machine.
#[derive(Debug)]
pub struct Spec {
    /// What runs it.
    pub engine: Engine,
    /// For its engine.
    pub config: NodeConfig,
    /// The folder of its sockets at the switch.
    pub ports: PathBuf,
    /// For its agent.
    pub configure: ToAgent,
    /// What its process may take of the host.
    pub limits: Limits,
    /// What to do when its guest ends.
    pub policy: EndPolicy,
    /// The names of those that have to be ready before its first boot.
    pub after: Vec<String>,
    /// How long its readiness condition may take.
    pub ready_timeout: Duration,
    /// Which of its NICs have a carrier.
    pub carriers: Carriers,
}

/// How a boot came to its end.
enum Outcome {
    /// The lab ends.
    LabEnds,
    /// It is to be down, to boot again, or to be no more.
    Ordered(Request),
    /// The guest ended.
    Ended(End),
    /// The node is of no use: it does not answer, or not in the protocol.
    Failed(String),
}

/// What a machine does that is down.
enum Next {
    Rest,
    Boot,
    Leave,
}

/// Why a node's agent is of no use.
enum AgentFailure {
    Broke(AgentError),
    Unusable(String),
}

/// Runs the machine until the lab ends: boots it, boots it again as its topology or a person says, and leaves it down
/// otherwise. An error ends the lab.
pub async fn run(machine: Machine, lab: Context) -> Result<(), String> {
    let mut run = Run {
        stop: lab.stop.subscribe(),
        machine,
        lab,
        was_ready: false,
    };
    let mut running = None;
    match std::mem::replace(&mut run.machine.begin, Begin::Boot) {
        Begin::Boot if !run.predecessors().await => return Ok(()),
        Begin::Boot => {}
        Begin::Rest if !run.rest().await => return Ok(()),
        Begin::Rest => run.again(None),
        Begin::GoOn(process) => running = Some(process),
    }
    let mut attempts = 0;
    loop {
        let before = Instant::now();
        run.was_ready = false;
        let outcome = match running.take() {
            Some(process) => run.go_on(process).await,
            None => run.boot().await,
        };
        run.lab.state.set_agent(run.name(), None);
        run.lab.state.set_console(run.name(), None);
        let rests = match outcome {
            Outcome::LabEnds => return Ok(()),
            Outcome::Ordered(request) => {
                run.settle(NodeState::Stopped, None, None);
                match run.obey(request) {
                    Next::Rest => true,
                    Next::Boot => false,
                    Next::Leave => return Ok(()),
                }
            }
            Outcome::Failed(message) if run.was_configured() => {
                run.settle(NodeState::Failed, Some(message), None);
                true
            }
            // The lab as described cannot be had.
            Outcome::Failed(message) => return Err(run.doom(message, None)),
            Outcome::Ended(end) => match run.ended(end, &mut attempts)? {
                Some(end) => {
                    run.again(Some(end));
                    if !run.pause(pause(attempts, before.elapsed())).await {
                        return Ok(());
                    }
                    continue;
                }
                None => true,
            },
        };
        // What is down stays so until somebody wants it otherwise.
        if rests && !run.rest().await {
            return Ok(());
        }
        run.again(None);
        attempts = 0;
    }
}

/// How long to wait before the next boot: a guest that reboots quickly, again and again, must not wear out the host.
fn pause(attempts: u32, lived: Duration) -> Duration {
    if attempts == 0 && lived > MAX_PAUSE {
        return Duration::ZERO;
    }
    Duration::from_millis(500)
        .saturating_mul(1 << attempts.min(10))
        .min(MAX_PAUSE)
}

struct Run {
    machine: Machine,
    lab: Context,
    stop: watch::Receiver<bool>,
    was_ready: bool,
}

impl Run {
    fn name(&self) -> &str {
        &self.machine.spec.config.name
    }

    /// Waits until the machines that come before this one are ready, or a person starts it; false if it is no more or the
    /// lab ends. One that fails or has ended holds up nobody: the launch tells of it, and a person may want to see how the
    /// rest gets on.
    async fn predecessors(&mut self) -> bool {
        let after = std::mem::take(&mut self.machine.spec.after);
        let (state, name) = (self.lab.state.clone(), self.name().to_owned());
        let wait = async {
            for other in after {
                if state.settled(&other).await != NodeState::Ready {
                    let message = format!("boots although {other} did not get ready");
                    state.notice(Some(&name), message);
                }
            }
        };
        tokio::select! {
            () = wait => true,
            boot = self.rest() => boot,
        }
    }

    fn was_configured(&self) -> bool {
        let node = self.lab.state.node(self.name());
        self.machine.optional
            || node.is_some_and(|node| node.boot.configured_ms.is_some() || node.restarts > 0)
    }

    /// The guest has ended; returns how, if it is to boot again. An error ends the lab.
    fn ended(&self, end: End, attempts: &mut u32) -> Result<Option<End>, String> {
        let action = match end.reason {
            EndReason::PowerOff => self.machine.spec.policy.power_off,
            EndReason::Reboot => self.machine.spec.policy.reboot,
            EndReason::Panic => self.machine.spec.policy.panic,
            EndReason::TripleFault => self.machine.spec.policy.triple_fault,
            EndReason::Crash if self.was_configured() => self.machine.spec.policy.crash,
            EndReason::Crash => return Err(self.doom(end.to_string(), Some(end))),
        };
        self.lab
            .state
            .notice(Some(self.name()), format!("ended: {end}"));
        match action {
            EndAction::EndLab => {
                let message =
                    format!("ended ({end}), and its topology says that this ends the lab");
                return Err(self.doom(message, Some(end)));
            }
            EndAction::End if end.reason == EndReason::Crash => {
                self.settle(NodeState::Failed, Some(end.to_string()), Some(end));
                return Ok(None);
            }
            EndAction::End => {
                self.settle(NodeState::Ended, None, Some(end));
                return Ok(None);
            }
            EndAction::Restart => {}
        }
        *attempts = if self.was_ready { 0 } else { *attempts + 1 };
        if *attempts >= BOOT_ATTEMPTS {
            let message = format!(
                "given up: {attempts} boots in a row ended before the node was ready; {end}"
            );
            self.settle(NodeState::Failed, Some(message), Some(end));
            return Ok(None);
        }
        Ok(Some(end))
    }

    /// The machine is about to boot once more.
    fn again(&self, end: Option<End>) {
        self.lab.state.update(self.name(), |node| {
            node.state = NodeState::Waiting;
            node.restarts += 1;
            node.pid = None;
            node.last_end = end.or(node.last_end.take());
        });
    }

    /// Waits until the machine is to boot; false if it is no more or the lab ends.
    async fn rest(&mut self) -> bool {
        loop {
            let request = tokio::select! {
                _ = self.stop.wait_for(|&stop| stop) => return false,
                Some(request) = self.machine.orders.recv() => request,
            };
            match request.task {
                Task::Order(NodeOrder::Stop | NodeOrder::Pause | NodeOrder::Resume) => {
                    request.refuse(state_of(&self.lab.state, self.name()));
                }
                // What is down stays so.
                Task::Become { .. } => {
                    self.obey(request);
                }
                Task::Order(_) | Task::Leave => return matches!(self.obey(request), Next::Boot),
            }
        }
    }

    /// Obeys a request while there is no guest.
    fn obey(&mut self, mut request: Request) -> Next {
        let next = match std::mem::replace(&mut request.task, Task::Leave) {
            Task::Order(NodeOrder::Start | NodeOrder::Restart) => Next::Boot,
            Task::Order(NodeOrder::Stop | NodeOrder::Pause | NodeOrder::Resume) => Next::Rest,
            Task::Become { spec, .. } => {
                self.machine.spec = *spec;
                Next::Boot
            }
            Task::Leave => Next::Leave,
        };
        request.done();
        next
    }

    /// Lets time pass before a boot; false if the lab ends. An order to boot ends it.
    async fn pause(&mut self, time: Duration) -> bool {
        tokio::select! {
            () = tokio::time::sleep(time) => true,
            boot = self.rest() => boot,
        }
    }

    fn settle(&self, state: NodeState, message: Option<String>, end: Option<End>) {
        self.lab.state.update(self.name(), |node| {
            node.state = state;
            node.pid = None;
            node.message = message.or(node.message.take());
            node.last_end = end.or(node.last_end.take());
        });
    }

    /// The node has failed and takes the lab along; returns the reason for the lab's end.
    fn doom(&self, message: String, end: Option<End>) -> String {
        let reason = format!("node {}: {message}", self.name());
        // Before the node counts as settled, or the lab would be taken for running.
        self.lab.state.ending(Some(reason.clone()));
        self.settle(NodeState::Failed, Some(message), end);
        reason
    }

    /// One boot, from its turn to its end.
    async fn boot(&mut self) -> Outcome {
        let turn = tokio::select! {
            turn = self.lab.turns.clone().acquire_owned() => turn,
            _ = self.stop.wait_for(|&stop| stop) => return Outcome::LabEnds,
        };
        let carriers = self.machine.spec.carriers.clone();
        let ground = match ground::of(&self.lab, &self.machine.spec) {
            Ok(ground) => ground,
            Err(error) => return Outcome::Failed(format!("its limits cannot be set: {error}")),
        };
        let config = &self.machine.spec.config;
        let guest = match self.machine.spec.engine.spawn(config, carriers, &ground) {
            Ok(guest) => guest,
            Err(error) => return Outcome::Failed(error.to_string()),
        };
        let pid = guest.pid;
        self.lab.state.update(self.name(), |node| {
            node.state = NodeState::Booting;
            node.pid = Some(pid);
            node.boot = BootTimes::default();
            node.message = None;
        });
        self.see_through(guest, turn.ok(), false).await
    }

    /// The rest of a boot that another lab process has begun.
    async fn go_on(&mut self, process: Process) -> Outcome {
        let pid = process.pid;
        let Spec {
            config,
            engine,
            carriers,
            ..
        } = &self.machine.spec;
        let fabric = ground::fabric(&self.lab);
        match engine.adopt(config, carriers.clone(), process, fabric) {
            Ok(guest) => self.see_through(guest, None, true).await,
            Err(error) => {
                self.lab.janitor().forget(pid);
                Outcome::Failed(error.to_string())
            }
        }
    }

    /// Attends a guest to its end; it may have had another host before this one.
    async fn see_through(
        &mut self,
        mut guest: Guest,
        turn: Option<OwnedSemaphorePermit>,
        had_another: bool,
    ) -> Outcome {
        let (pid, console) = (guest.pid, Some(guest.console.clone()));
        self.lab.state.set_console(self.name(), console);
        let outcome = self
            .attend(&mut guest, Instant::now(), turn, had_another)
            .await;
        if !matches!(outcome, Outcome::Ended(_)) {
            guest.kill();
            let _ = (&mut guest.ended).await;
        }
        self.lab.janitor().forget(pid);
        outcome
    }

    async fn attend(
        &mut self,
        guest: &mut Guest,
        started: Instant,
        turn: Option<OwnedSemaphorePermit>,
        had_another: bool,
    ) -> Outcome {
        let mut stop = self.stop.clone();
        let (state, name) = (self.lab.state.clone(), self.name().to_owned());
        let mut renewed = None;
        // Taken out, as the work below holds the rest.
        let mut orders = std::mem::replace(&mut self.machine.orders, mpsc::channel(1).1);
        let outcome = {
            let agent = self.follow_agent(started, turn, had_another);
            tokio::pin!(agent);
            let mut control = Control::new(guest.pid, state, name);
            loop {
                tokio::select! {
                    end = &mut guest.ended => break Ok(ended(end.ok())),
                    _ = stop.wait_for(|&stop| stop) => break Ok(Outcome::LabEnds),
                    failure = &mut agent => break Err(failure),
                    Some(request) = orders.recv() => match control.obey(request) {
                        Obeyed::Done => {}
                        Obeyed::Renewed(spec) => renewed = Some(spec),
                        Obeyed::Not(request) => break Ok(Outcome::Ordered(request)),
                    },
                }
            }
        };
        self.machine.orders = orders;
        if let Some(spec) = renewed {
            self.machine.spec = *spec;
        }
        let failure = match outcome {
            Ok(outcome) => return outcome,
            Err(failure) => failure,
        };
        match failure {
            AgentFailure::Unusable(message) => Outcome::Failed(message),
            AgentFailure::Broke(error @ AgentError::Io(_)) => {
                // The guest's end cuts the connection too, and is then the better reason.
                match tokio::time::timeout(END_PATIENCE, &mut guest.ended).await {
                    Ok(end) => ended(end.ok()),
                    Err(_) => Outcome::Failed(error.to_string()),
                }
            }
            AgentFailure::Broke(error) => Outcome::Failed(error.to_string()),
        }
    }

    /// Configures the node through its agent, then takes the agent's messages; returns when that is over.
    async fn follow_agent(
        &mut self,
        started: Instant,
        turn: Option<OwnedSemaphorePermit>,
        had_another: bool,
    ) -> AgentFailure {
        let mut phase = "start its agent";
        // One that was paused when its lab was taken over says nothing until it is resumed.
        let is_paused = state_of(&self.lab.state, self.name()) == NodeState::Paused;
        let deadline = (!is_paused).then(|| started + self.lab.boot_timeout);
        let agent_socket = &self.machine.spec.config.agent_socket;
        let connected = tokio::select! {
            socket = connect(agent_socket) => Some(socket),
            () = until(deadline) => None,
        };
        let Some(socket) = connected else {
            return self.silent(phase);
        };
        let (sender, mut control) = mpsc::channel(16);
        let (agent, connection) = Agent::open(socket, sender);
        let mut connection = tokio::spawn(connection);
        let version = agent_protocol::VERSION;
        if had_another {
            tokio::time::sleep(CHANGE_OF_HOST).await;
        }
        agent.send(&ToAgent::Hello { version }).await;
        let mut greet_again = had_another.then(|| Instant::now() + ANSWER);

        let mut turn = turn;
        let mut deadline = deadline;
        loop {
            let message = tokio::select! {
                biased;
                Some(message) = control.recv() => message,
                error = &mut connection => return AgentFailure::Broke(error.unwrap_or_else(|_| broken())),
                () = until(deadline) => {
                    connection.abort();
                    return self.silent(phase);
                }
                () = until(greet_again) => {
                    greet_again = Some(Instant::now() + ANSWER);
                    // What is paused would have to answer each of them.
                    if state_of(&self.lab.state, self.name()) != NodeState::Paused {
                        agent.send(&ToAgent::Hello { version }).await;
                    }
                    continue;
                }
            };
            greet_again = None;
            let elapsed = u64::try_from(started.elapsed().as_millis()).ok();
            let (state, name) = (&self.lab.state, &self.machine.spec.config.name);
            match message {
                ToHost::Hello {
                    version: theirs, ..
                } if theirs != version => {
                    connection.abort();
                    return AgentFailure::Unusable(format!(
                        "its agent speaks version {theirs} of the protocol, this vmm version {version}; \
                         build the image again with `make image`"
                    ));
                }
                // It was configured by another lab process, and tells of that again.
                ToHost::Hello {
                    configured: true, ..
                } => state.set_agent(name, Some(agent.clone())),
                ToHost::Hello { kernel, .. } => {
                    phase = "configure its network";
                    state.update(name, |node| {
                        node.state = NodeState::Configuring;
                        node.kernel = Some(sanitize::text(&kernel));
                        node.boot.booted_ms = elapsed;
                    });
                    agent.send(&self.machine.spec.configure).await;
                    state.set_agent(name, Some(agent.clone()));
                }
                ToHost::Configured => {
                    phase = "meet its readiness condition";
                    // Readiness may depend on other nodes, whose turn has to come.
                    drop(turn.take());
                    deadline =
                        Some(Instant::now() + self.machine.spec.ready_timeout + READY_MARGIN);
                    state.update(name, |node| {
                        node.state = NodeState::Configured;
                        node.boot.configured_ms = node.boot.configured_ms.or(elapsed);
                    });
                }
                ToHost::Ready => {
                    deadline = None;
                    self.was_ready = true;
                    state.update(name, |node| {
                        node.state = NodeState::Ready;
                        node.boot.ready_ms = node.boot.ready_ms.or(elapsed);
                    });
                }
                ToHost::Failed { message } => {
                    drop(turn.take());
                    deadline = None;
                    let message = sanitize::text(&message);
                    state.update(name, |node| {
                        node.state = NodeState::Failed;
                        node.message = Some(message);
                        // It runs, and a person may look; only its configuration has failed.
                        node.boot.configured_ms = node.boot.configured_ms.or(elapsed);
                    });
                }
                ToHost::Warning { message } => state.notice(Some(name), sanitize::text(&message)),
                // Nothing to do, or of a stream and taken by the connection.
                ToHost::Ending { .. }
                | ToHost::Pong
                | ToHost::ExecFailed { .. }
                | ToHost::Exited { .. } => {}
            }
        }
    }

    fn silent(&self, phase: &str) -> AgentFailure {
        let timeout = self.lab.boot_timeout;
        let log = serial_tail(&self.machine.spec.config.serial_log);
        let log = if log.is_empty() {
            "it wrote nothing to its serial port".to_owned()
        } else {
            format!("the last lines of its serial port were:\n{log}")
        };
        AgentFailure::Unusable(format!(
            "it did not {phase} in time (time-out {timeout:?}, --boot-timeout changes it); {log}"
        ))
    }
}

/// What has become of a request to a running guest.
enum Obeyed {
    Done,
    /// From its next boot on it is this.
    Renewed(Box<Spec>),
    /// It takes the guest's end.
    Not(Request),
}

/// Obeys orders while a guest runs.
struct Control {
    pid: u32,
    state: State,
    name: String,
    /// What the node was when it was paused.
    before: NodeState,
}

impl Control {
    fn new(pid: u32, state: State, name: String) -> Self {
        // One that was paused when its lab was taken over has yet to tell how it is.
        let before = match state_of(&state, &name) {
            NodeState::Paused => NodeState::Configured,
            _ => NodeState::Ready,
        };
        Self {
            pid,
            state,
            name,
            before,
        }
    }

    fn obey(&mut self, mut request: Request) -> Obeyed {
        let state = state_of(&self.state, &self.name);
        match (&request.task, state) {
            (
                Task::Order(NodeOrder::Stop | NodeOrder::Restart)
                | Task::Become { restart: true, .. }
                | Task::Leave,
                _,
            ) => return Obeyed::Not(request),
            (Task::Become { .. }, _) => {
                let task = std::mem::replace(&mut request.task, Task::Leave);
                request.done();
                if let Task::Become { spec, .. } = task {
                    return Obeyed::Renewed(spec);
                }
            }
            (Task::Order(NodeOrder::Pause | NodeOrder::Resume), _) if self.is_container() => {
                request.refuse_container();
            }
            // Earlier, its time-outs would run on.
            (Task::Order(NodeOrder::Pause), NodeState::Ready | NodeState::Failed) => {
                self.before = state;
                self.enter(NodeState::Paused);
                request.done();
            }
            (Task::Order(NodeOrder::Resume), NodeState::Paused) => {
                self.enter(self.before);
                request.done();
            }
            (Task::Order(_), state) => request.refuse(state),
        }
        Obeyed::Done
    }

    /// Its process is only the first of many.
    fn is_container(&self) -> bool {
        let node = self.state.node(&self.name);
        node.and_then(|node| node.engine) == Some(EngineName::Container)
    }

    fn enter(&self, state: NodeState) {
        orders::hold(self.pid, state == NodeState::Paused);
        self.state.update(&self.name, |node| node.state = state);
    }
}

fn state_of(state: &State, name: &str) -> NodeState {
    let node = state.node(name);
    node.map_or(NodeState::Failed, |node| node.state)
}

fn ended(end: Option<End>) -> Outcome {
    Outcome::Ended(end.unwrap_or_else(|| End {
        reason: EndReason::Crash,
        detail: String::new(),
    }))
}

fn broken() -> AgentError {
    std::io::Error::from(std::io::ErrorKind::BrokenPipe).into()
}

async fn connect(socket: &Path) -> UnixStream {
    loop {
        match UnixStream::connect(socket).await {
            Ok(stream) => return stream,
            Err(_) => tokio::time::sleep(RETRY).await,
        }
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

/// The last lines a guest wrote to its serial port, indented.
fn serial_tail(log: &Path) -> String {
    let text = sanitize::lossy(&std::fs::read(log).unwrap_or_default());
    let lines: Vec<_> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    let first = lines.len().saturating_sub(SERIAL_LINES);
    lines[first..]
        .iter()
        .map(|line| format!("    {line}"))
        .collect::<Vec<_>>()
        .join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_loop_slows_down() {
        let short = Duration::from_secs(1);
        let pauses: Vec<_> = (0..8)
            .map(|attempts| pause(attempts, short).as_millis())
            .collect();
        assert_eq!(pauses, [500, 1000, 2000, 4000, 8000, 16000, 30000, 30000]);
        assert_eq!(pause(0, Duration::from_hours(1)), Duration::ZERO);
    }

    #[test]
    fn the_end_of_the_serial_log_is_shown_without_escapes() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("serial.log");
        let lines: Vec<_> = (0..30).map(|n| format!("\x1b[1mline {n}\r\n\n")).collect();
        std::fs::write(&log, lines.concat()).unwrap();
        let tail = serial_tail(&log);
        assert_eq!(tail.lines().count(), SERIAL_LINES);
        assert!(
            tail.starts_with("    line 18\n") && tail.ends_with("    line 29"),
            "{tail}"
        );
        assert_eq!(serial_tail(Path::new("/nonexistent")), "");
    }
}
