//! How a lab stands, and who wants to know.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::{Notify, broadcast, watch};

use super::agent::Agent;
use crate::api::types::{Change, Event, Lab, Link, Node, NodeState, Phase};
use crate::engine::Console;

/// Records a slow reader of events may lag behind before it loses some.
const EVENT_BACKLOG: usize = 4096;

/// The state of a lab; clones share it.
#[derive(Debug, Clone)]
pub struct State(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    launched: Instant,
    inner: Mutex<Inner>,
    events: broadcast::Sender<Event>,
    phase: watch::Sender<Phase>,
    stop: Notify,
    subscribed: Notify,
}

#[derive(Debug)]
struct Inner {
    lab: Lab,
    /// Of the nodes that have one.
    agents: HashMap<String, Agent>,
    /// Of the nodes whose machine runs.
    consoles: HashMap<String, Console>,
}

impl State {
    /// The state of a lab that starts now.
    pub fn new(lab: Lab) -> Self {
        Self::since(lab, Instant::now())
    }

    /// The state of a lab that was launched at a time.
    pub fn since(lab: Lab, launched: Instant) -> Self {
        let phase = watch::Sender::new(lab.phase);
        Self(Arc::new(Shared {
            launched,
            inner: Mutex::new(Inner {
                lab,
                agents: HashMap::new(),
                consoles: HashMap::new(),
            }),
            events: broadcast::Sender::new(EVENT_BACKLOG),
            phase,
            stop: Notify::new(),
            subscribed: Notify::new(),
        }))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, change: Change) {
        // Nobody listening is fine.
        let _ = self.0.events.send(self.event(change));
    }

    fn event(&self, change: Change) -> Event {
        Event {
            at_ms: self.elapsed_ms(),
            change,
        }
    }

    /// When it was launched.
    pub fn launched(&self) -> Instant {
        self.0.launched
    }

    /// Milliseconds since launch.
    pub fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.0.launched.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// The lab as it is now.
    pub fn lab(&self) -> Lab {
        self.inner().lab.clone()
    }

    /// A node as it is now.
    pub fn node(&self, name: &str) -> Option<Node> {
        let inner = self.inner();
        let found = inner.lab.nodes.iter().find(|node| node.name == name);
        found.cloned()
    }

    /// The lab as it is now, and everything that changes from then on.
    pub fn subscribe(&self) -> (Event, broadcast::Receiver<Event>) {
        let inner = self.inner();
        let snapshot = self.event(Change::Snapshot {
            lab: Box::new(inner.lab.clone()),
        });
        self.0.subscribed.notify_one();
        (snapshot, self.0.events.subscribe())
    }

    /// Everything that changes from now on, for the lab itself.
    pub fn changes(&self) -> broadcast::Receiver<Event> {
        self.0.events.subscribe()
    }

    /// Waits until somebody follows the events.
    pub async fn subscribed(&self) {
        self.0.subscribed.notified().await;
    }

    /// Follows the phase of the lab.
    pub fn phases(&self) -> watch::Receiver<Phase> {
        self.0.phase.subscribe()
    }

    /// Changes a node.
    pub fn update(&self, name: &str, change: impl FnOnce(&mut Node)) {
        let mut inner = self.inner();
        let mut nodes = inner.lab.nodes.iter_mut();
        let Some(node) = nodes.find(|node| node.name == name) else {
            return;
        };
        change(node);
        let node = Box::new(node.clone());
        self.send(Change::Node { node });
        self.enter_if_settled(&mut inner);
    }

    /// The machines have begun; in a lab that was taken over there may be nothing to wait for.
    pub fn begun(&self) {
        self.enter_if_settled(&mut self.inner());
    }

    fn enter_if_settled(&self, inner: &mut Inner) {
        let all_settled = inner.lab.nodes.iter().all(|node| is_settled(node.state));
        if inner.lab.phase == Phase::Starting && all_settled {
            inner.lab.ready_ms = inner.lab.ready_ms.or(Some(self.elapsed_ms()));
            self.enter(inner, Phase::Running, None);
        }
    }

    /// A node has come.
    pub fn add(&self, node: Node) {
        let mut inner = self.inner();
        inner.lab.nodes.push(node.clone());
        let node = Box::new(node);
        self.send(Change::Node { node });
    }

    /// A node is no more.
    pub fn remove(&self, name: &str) {
        let mut inner = self.inner();
        inner.lab.nodes.retain(|node| node.name != name);
        inner.agents.remove(name);
        inner.consoles.remove(name);
        let node = name.to_owned();
        self.send(Change::NodeRemoved { node });
    }

    /// The lab is what a new topology says: its nodes are in this order.
    pub fn renewed(
        &self,
        revision: u64,
        file: PathBuf,
        description: Option<String>,
        names: &[&str],
    ) {
        let mut inner = self.inner();
        let place = |node: &Node| names.iter().position(|name| *name == node.name);
        inner.lab.nodes.sort_by_key(place);
        inner.lab.description = description;
        inner.lab.file = file;
        inner.lab.revision = revision;
        self.send(Change::Topology { revision });
    }

    /// Waits until a node is ready, or stays what it is without having got there; one that is no more has failed.
    pub async fn settled(&self, name: &str) -> NodeState {
        let mut changes = self.changes();
        loop {
            match self.node(name) {
                Some(node) if !is_settled(node.state) => {}
                node => return node.map_or(NodeState::Failed, |node| node.state),
            }
            // Whatever has changed, and however many records were missed.
            let _ = changes.recv().await;
        }
    }

    /// A person has set a link to something else.
    pub fn link_changed(&self, link: Link) {
        self.send(Change::Link {
            link: Box::new(link),
        });
    }

    /// Something has changed that is no part of the lab's description.
    pub fn tell(&self, change: Change) {
        self.send(change);
    }

    /// The switch of a zone runs, or no longer does.
    pub fn set_switch(&self, zone: &str, pid: Option<u32>) {
        let lab = &mut self.inner().lab;
        if let Some(switch) = lab.switches.iter_mut().find(|switch| switch.zone == zone) {
            switch.pid = pid;
        }
        lab.switch_pid = lab.switches.iter().find_map(|switch| switch.pid);
    }

    /// A switch has been started again, and serves; `message` says so.
    pub fn switch_restarted(&self, message: String) {
        self.inner().lab.switch_restarts += 1;
        self.notice(None, message);
    }

    /// Tells people something.
    pub fn notice(&self, node: Option<&str>, message: impl Into<String>) {
        self.send(Change::Notice {
            node: node.map(ToOwned::to_owned),
            message: message.into(),
        });
    }

    /// The lab begins to end, because of `failure` or at someone's wish. The first reason counts.
    pub fn ending(&self, failure: Option<String>) {
        let mut inner = self.inner();
        if matches!(inner.lab.phase, Phase::Starting | Phase::Running) {
            self.enter(&mut inner, Phase::Ending, failure);
        }
    }

    /// The lab has ended.
    pub fn ended(&self) {
        self.enter(&mut self.inner(), Phase::Ended, None);
    }

    fn enter(&self, inner: &mut Inner, phase: Phase, failure: Option<String>) {
        inner.lab.phase = phase;
        inner.lab.failure = inner.lab.failure.take().or(failure);
        self.send(Change::Lab {
            phase,
            failure: inner.lab.failure.clone(),
        });
        self.0.phase.send_replace(phase);
    }

    /// The way to a node's agent, or that there is none.
    pub fn set_agent(&self, name: &str, agent: Option<Agent>) {
        let agents = &mut self.inner().agents;
        match agent {
            Some(agent) => agents.insert(name.to_owned(), agent),
            None => agents.remove(name),
        };
    }

    /// The way to a node's agent, while it has one.
    pub fn agent(&self, name: &str) -> Option<Agent> {
        self.inner().agents.get(name).cloned()
    }

    /// A node's serial port, or that there is none.
    pub fn set_console(&self, name: &str, console: Option<Console>) {
        let consoles = &mut self.inner().consoles;
        match console {
            Some(console) => consoles.insert(name.to_owned(), console),
            None => consoles.remove(name),
        };
    }

    /// A node's serial port, while its machine runs.
    pub fn console(&self, name: &str) -> Option<Console> {
        self.inner().consoles.get(name).cloned()
    }

    /// Asks for the end of the lab.
    pub fn stop(&self) {
        self.0.stop.notify_one();
    }

    /// Waits until somebody asks for the end of the lab.
    pub async fn stop_asked(&self) {
        self.0.stop.notified().await;
    }
}

/// Whether nothing more comes of it by itself.
fn is_settled(state: NodeState) -> bool {
    matches!(
        state,
        NodeState::Ready
            | NodeState::Failed
            | NodeState::Paused
            | NodeState::Stopped
            | NodeState::Ended
    )
}
