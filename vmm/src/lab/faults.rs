//! What the topology has happen to machines at a time.
//!
//! What happens to links is in the switch, exact on its clock; a machine is stopped or started as soon as its time has come.

use std::convert::Infallible;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use topology::model::{self, Topology};

use super::orders::Roster;
use super::state::State;
use crate::api::types::NodeOrder;

/// Something that happens to a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Since the start of the switch.
    at: Duration,
    /// The machine's name.
    node: String,
    order: NodeOrder,
}

/// All that happen in a lab, in the order of time; another list when the lab has become another one.
pub type Faults = watch::Receiver<Vec<Fault>>;

/// What `topology` has happen.
pub fn of(topology: &Topology) -> Vec<Fault> {
    let faults = topology.node_faults.iter().map(|fault| Fault {
        at: fault.at,
        node: topology.nodes[fault.node].name.clone(),
        order: match fault.order {
            model::NodeOrder::Start => NodeOrder::Start,
            model::NodeOrder::Stop => NodeOrder::Stop,
            model::NodeOrder::Restart => NodeOrder::Restart,
            model::NodeOrder::Pause => NodeOrder::Pause,
            model::NodeOrder::Resume => NodeOrder::Resume,
        },
    });
    faults.collect()
}

/// Has them happen, from now on, the start of the switch; in a lab that another process has `begun`, those that are still to come.
pub async fn run(
    mut faults: Faults,
    begun: Option<std::time::Instant>,
    roster: Roster,
    state: State,
) -> Infallible {
    let start = begun.map_or_else(Instant::now, Instant::from_std);
    // All up to this time have happened, or have been missed.
    let mut past = begun.map(|_| start.elapsed());
    loop {
        let to_come = |fault: &&Fault| past.is_none_or(|past| fault.at > past);
        let next = faults
            .borrow_and_update()
            .iter()
            .find(to_come)
            .map(|f| f.at);
        let come = async {
            match next.and_then(|at| start.checked_add(at)) {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = come => {
                let due = faults.borrow().iter().filter(|f| Some(f.at) == next).cloned().collect::<Vec<_>>();
                for fault in due {
                    tokio::spawn(happen(fault, roster.clone(), state.clone()));
                }
                past = next;
            }
            Ok(()) = faults.changed() => past = past.max(Some(start.elapsed())),
        }
    }
}

async fn happen(Fault { node, order, .. }: Fault, roster: Roster, state: State) {
    // It may have been removed meanwhile.
    let Some(orders) = roster.find(&node) else {
        return;
    };
    let what = match order {
        NodeOrder::Start => "started",
        NodeOrder::Stop => "stopped",
        NodeOrder::Restart => "restarted",
        NodeOrder::Pause => "paused",
        NodeOrder::Resume => "resumed",
    };
    state.notice(Some(&node), format!("is {what}, as the topology says"));
    if let Err(refusal) = orders.give(order).await {
        state.notice(Some(&node), refusal.to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::orders::{Orders, Task};

    fn fault(at: u64, node: &str, order: NodeOrder) -> Fault {
        Fault {
            at: Duration::from_secs(at),
            node: node.to_owned(),
            order,
        }
    }

    /// What a machine is told, and when.
    async fn next(
        requests: &mut tokio::sync::mpsc::Receiver<crate::lab::orders::Request>,
        start: Instant,
    ) -> (u64, NodeOrder) {
        let request = requests.recv().await.unwrap();
        let Task::Order(order) = request.task else {
            panic!("{request:?}");
        };
        request.done();
        (start.elapsed().as_secs(), order)
    }

    #[tokio::test(start_paused = true)]
    async fn faults_come_when_their_time_has_come_and_can_be_exchanged() {
        let roster = Roster::default();
        let (orders, mut requests) = Orders::new();
        roster.enter("a", orders);
        let lab = crate::lab::view::tests::lab();
        let (sender, faults) = watch::channel(vec![
            fault(10, "a", NodeOrder::Stop),
            fault(10, "gone", NodeOrder::Stop),
            fault(20, "a", NodeOrder::Start),
            fault(30, "a", NodeOrder::Stop),
        ]);
        let start = Instant::now();
        tokio::spawn(run(faults, None, roster, State::new(lab)));
        assert_eq!(next(&mut requests, start).await, (10, NodeOrder::Stop));
        assert_eq!(next(&mut requests, start).await, (20, NodeOrder::Start));
        // What is past does not happen any more.
        let exchanged = vec![
            fault(15, "a", NodeOrder::Stop),
            fault(40, "a", NodeOrder::Pause),
        ];
        sender.send(exchanged).unwrap();
        assert_eq!(next(&mut requests, start).await, (40, NodeOrder::Pause));
    }
}
