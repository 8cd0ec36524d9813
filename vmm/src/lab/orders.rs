//! What a person can ask of one machine while its lab runs.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::process::{Signal, kill_process_group};
use tokio::sync::{mpsc, oneshot};

use super::children::raw_pid;
use super::node::Spec;
use crate::api::types::{NodeOrder, NodeState};

/// Orders of a machine that may wait for it.
const BACKLOG: usize = 16;

/// Something a machine is to do, and where the answer goes.
#[derive(Debug)]
pub struct Request {
    /// What is to be done.
    pub task: Task,
    answer: oneshot::Sender<Result<(), Refusal>>,
}

/// What a machine can be asked for.
#[derive(Debug)]
pub enum Task {
    /// What a person orders.
    Order(NodeOrder),
    /// Be another machine from the next boot on.
    Become {
        /// What it is then.
        spec: Box<Spec>,
        /// If it runs, it boots again.
        restart: bool,
    },
    /// End, and be no more.
    Leave,
}

/// Why an order is not obeyed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The node is in no state for it.
    #[error("it is {}, and cannot {}", state(*.0), verb(*.1))]
    State(NodeState, NodeOrder),
    /// Its engine does not do that.
    #[error("it is a container, whose programs cannot be made to stand still")]
    Container,
    /// Its lab ends.
    #[error("its lab is ending")]
    Ending,
}

/// Gives orders to one machine; clones share it.
#[derive(Debug, Clone)]
pub struct Orders(mpsc::Sender<Request>);

impl Orders {
    /// Those of a machine, and where it takes them.
    pub fn new() -> (Self, mpsc::Receiver<Request>) {
        let (sender, receiver) = mpsc::channel(BACKLOG);
        (Self(sender), receiver)
    }

    /// Gives an order. It is obeyed one after the other, and has been when this returns; a machine that is started or
    /// restarted has then begun to boot.
    pub async fn give(&self, order: NodeOrder) -> Result<(), Refusal> {
        self.ask(Task::Order(order)).await
    }

    /// The same with anything a machine can be asked for.
    pub async fn ask(&self, task: Task) -> Result<(), Refusal> {
        let (answer, obeyed) = oneshot::channel();
        let request = Request { task, answer };
        self.0.send(request).await.map_err(|_| Refusal::Ending)?;
        obeyed.await.unwrap_or(Err(Refusal::Ending))
    }
}

/// Who gives orders to which machine of a lab; clones share it.
#[derive(Debug, Clone, Default)]
pub struct Roster(Arc<Mutex<HashMap<String, Orders>>>);

impl Roster {
    /// Who gives orders to the machine called `name`.
    pub fn find(&self, name: &str) -> Option<Orders> {
        self.machines().get(name).cloned()
    }

    /// The machine called `name` takes its orders from here on.
    pub fn enter(&self, name: &str, orders: Orders) {
        self.machines().insert(name.to_owned(), orders);
    }

    /// The machine called `name` is no more.
    pub fn strike(&self, name: &str) {
        self.machines().remove(name);
    }

    fn machines(&self) -> MutexGuard<'_, HashMap<String, Orders>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Request {
    /// It has been obeyed.
    pub fn done(self) {
        // Who gave it may be gone.
        let _ = self.answer.send(Ok(()));
    }

    /// A container cannot obey it.
    pub fn refuse_container(self) {
        let _ = self.answer.send(Err(Refusal::Container));
    }

    /// It cannot be obeyed in this state.
    pub fn refuse(self, state: NodeState) {
        let refusal = match self.task {
            Task::Order(order) => Refusal::State(state, order),
            // Neither is ever refused.
            Task::Become { .. } | Task::Leave => Refusal::Ending,
        };
        let _ = self.answer.send(Err(refusal));
    }
}

/// Has the processors of a machine stand still, or go on. A process that is stopped can still be killed.
pub fn hold(pid: u32, hold: bool) {
    let signal = if hold { Signal::STOP } else { Signal::CONT };
    if let Some(pid) = raw_pid(pid) {
        // A machine that has just ended cannot be held, and its end is told elsewhere.
        let _ = kill_process_group(pid, signal);
    }
}

fn verb(order: NodeOrder) -> &'static str {
    match order {
        NodeOrder::Start => "be started",
        NodeOrder::Stop => "be stopped",
        NodeOrder::Restart => "be restarted",
        NodeOrder::Pause => "be paused",
        NodeOrder::Resume => "be resumed",
    }
}

fn state(state: NodeState) -> &'static str {
    match state {
        NodeState::Waiting => "waiting to boot",
        NodeState::Booting | NodeState::Configuring | NodeState::Configured => "still starting",
        NodeState::Ready => "running",
        NodeState::Paused => "paused",
        NodeState::Stopped => "stopped",
        NodeState::Ended => "down",
        NodeState::Failed => "of no use",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_order_is_answered_even_by_a_machine_that_is_gone() {
        let (orders, mut requests) = Orders::new();
        let machine = tokio::spawn(async move {
            requests.recv().await.unwrap().done();
            requests.recv().await.unwrap().refuse(NodeState::Stopped);
        });
        assert_eq!(orders.give(NodeOrder::Pause).await, Ok(()));
        let refusal = orders.give(NodeOrder::Stop).await.unwrap_err();
        assert_eq!(refusal.to_string(), "it is stopped, and cannot be stopped");
        machine.await.unwrap();
        assert_eq!(orders.give(NodeOrder::Stop).await, Err(Refusal::Ending));
    }
}
