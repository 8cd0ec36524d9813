//! What a person sees of a launch: how far each node is, and what goes wrong.

use std::collections::HashMap;
use std::io::{IsTerminal, stderr};
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::ls::{node_table, remark, state};
use super::{print, print_json};
use crate::api::types::{BootTimes, Change, Event, Lab, Node, NodeState, Phase};
use crate::failure::Failure;

/// Nodes that get a line of their own; of larger labs only the sum is shown.
const MAX_LINES: usize = 30;

/// How far to watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// Every node is ready or has failed.
    Running,
    /// The lab has ended.
    Ended,
}

/// What was seen.
#[derive(Debug, Default)]
pub struct Seen {
    /// Every node has been ready or has failed.
    pub running: bool,
    /// Nodes that were not ready when the lab was running.
    pub failed: Vec<String>,
    /// The lab has ended.
    pub ended: bool,
    /// Why it ended, if that was an error.
    pub failure: Option<String>,
}

/// Shows the events of a lab, and its nodes once they are ready.
pub async fn watch(
    mut events: impl Stream<Item = Event> + Unpin,
    until: Until,
    json: bool,
) -> Result<Seen, Failure> {
    let mut seen = Seen::default();
    let mut screen = Screen::new(json);
    let mut current: Option<Lab> = None;
    while let Some(event) = events.next().await {
        match event.change {
            Change::Snapshot { lab } => {
                for node in &lab.nodes {
                    screen.node(node);
                }
                seen.running = lab.phase == Phase::Running;
                seen.failure.clone_from(&lab.failure);
                current = Some(*lab);
            }
            Change::Node { node } => {
                screen.node(&node);
                let known = current
                    .iter_mut()
                    .flat_map(|lab| &mut lab.nodes)
                    .find(|known| known.name == node.name);
                if let Some(known) = known {
                    *known = *node;
                }
            }
            Change::NodeRemoved { node } => screen.removed(&node),
            // Whoever changes a link, or the lab, sees it there.
            Change::Link { .. } | Change::Carrier { .. } | Change::Topology { .. } => {}
            Change::Notice { node, message } => screen.notice(node.as_deref(), &message),
            Change::Lost { count } => screen.notice(None, &format!("{count} events were lost")),
            Change::Lab { phase, failure } => {
                seen.running |= phase == Phase::Running;
                seen.ended |= phase == Phase::Ended;
                seen.failure = failure.or(seen.failure);
            }
        }
        let Some(lab) = &mut current else { continue };
        if seen.running && !screen.done {
            lab.phase = Phase::Running;
            seen.failed = lab
                .nodes
                .iter()
                .filter(|n| n.state != NodeState::Ready)
                .map(|n| n.name.clone())
                .collect();
            lab.ready_ms = lab.ready_ms.or(Some(event.at_ms));
            screen.finish();
            if json {
                print_json(lab)?;
            } else {
                print(&format!("\n{}\n", node_table(lab)))?;
                if until == Until::Ended {
                    eprintln!("{}", hint(lab, seen.failed.is_empty()));
                }
            }
            if until == Until::Running {
                break;
            }
        }
        if seen.ended {
            break;
        }
    }
    screen.finish();
    Ok(seen)
}

fn hint(lab: &Lab, all: bool) -> String {
    let time = lab.ready_ms.map(seconds).unwrap_or_default();
    let count = lab.nodes.len();
    let what = if all { "all ready" } else { "not all ready" };
    format!(
        "{}: {count} nodes, {what} after {time}; Ctrl-C ends the lab",
        lab.name
    )
}

fn seconds(ms: u64) -> String {
    format!("{:.1} s", Duration::from_millis(ms).as_secs_f64())
}

fn times(boot: &BootTimes) -> String {
    [
        ("booted", boot.booted_ms),
        ("configured", boot.configured_ms),
        ("ready", boot.ready_ms),
    ]
    .into_iter()
    .filter_map(|(what, ms)| Some(format!("{what} {}", seconds(ms?))))
    .collect::<Vec<_>>()
    .join(", ")
}

/// The terminal, or lines where there is none.
struct Screen {
    bars: Option<MultiProgress>,
    nodes: HashMap<String, (NodeState, Option<ProgressBar>)>,
    sum: Option<ProgressBar>,
    quiet: bool,
    done: bool,
}

impl Screen {
    fn new(quiet: bool) -> Self {
        let bars = (!quiet && stderr().is_terminal()).then(MultiProgress::new);
        Self {
            bars,
            nodes: HashMap::new(),
            sum: None,
            quiet,
            done: false,
        }
    }

    fn node(&mut self, node: &Node) {
        let before = self.nodes.get(&node.name).map(|(state, _)| *state);
        if self.quiet || before == Some(node.state) {
            return;
        }
        if let (Some(bars), false) = (&self.bars, self.done) {
            let (known, bar) = self
                .nodes
                .entry(node.name.clone())
                .or_insert((NodeState::Waiting, None));
            *known = node.state;
            if bar.is_none() && before.is_none() {
                *bar = add_line(bars, self.sum.as_ref());
            }
            if let Some(bar) = bar {
                show(bar, node);
            }
            self.add_up();
        } else {
            self.nodes.insert(node.name.clone(), (node.state, None));
            // What is merely known from the start is no news.
            if before.is_some() {
                eprintln!("{}", line(node));
            }
        }
    }

    fn removed(&mut self, node: &str) {
        if let Some((_, bar)) = self.nodes.remove(node) {
            if let Some(bar) = bar {
                bar.finish_and_clear();
            }
            self.notice(Some(node), "removed");
        }
    }

    fn add_up(&mut self) {
        let Some(bars) = &self.bars else { return };
        let sum = self.sum.get_or_insert_with(|| {
            let bar = bars.add(ProgressBar::new(0));
            if let Ok(style) = ProgressStyle::with_template("{pos}/{len} nodes ready, {elapsed}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_secs(1));
            bar
        });
        sum.set_length(self.nodes.len() as u64);
        let ready = self
            .nodes
            .values()
            .filter(|(state, _)| *state == NodeState::Ready);
        sum.set_position(ready.count() as u64);
    }

    fn notice(&self, node: Option<&str>, message: &str) {
        let text = match node {
            Some(node) => format!("{node}: {message}"),
            None => message.to_owned(),
        };
        match &self.bars {
            Some(bars) if !self.done => {
                let _ = bars.println(text);
            }
            _ if self.quiet => {}
            _ => eprintln!("{text}"),
        }
    }

    /// Leaves the lines as they are.
    fn finish(&mut self) {
        if std::mem::replace(&mut self.done, true) {
            return;
        }
        for bar in self.nodes.values().filter_map(|(_, bar)| bar.as_ref()) {
            bar.abandon();
        }
        if let Some(sum) = &self.sum {
            sum.finish_and_clear();
        }
    }
}

fn add_line(bars: &MultiProgress, sum: Option<&ProgressBar>) -> Option<ProgressBar> {
    let bar = match sum {
        Some(sum) if sum.length() >= Some(MAX_LINES as u64) => return None,
        Some(sum) => bars.insert_before(sum, ProgressBar::new_spinner()),
        None => bars.add(ProgressBar::new_spinner()),
    };
    if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix:16} {wide_msg}") {
        bar.set_style(style);
    }
    Some(bar)
}

fn show(bar: &ProgressBar, node: &Node) {
    bar.set_prefix(node.name.clone());
    let times = times(&node.boot);
    let message = match node.state {
        NodeState::Failed | NodeState::Ended => with_remark(node),
        NodeState::Ready if times.is_empty() => state(node.state).to_owned(),
        NodeState::Ready => times,
        other if times.is_empty() => state(other).to_owned(),
        other => format!("{times}, {}", state(other)),
    };
    bar.set_message(message);
    match node.state {
        NodeState::Ready | NodeState::Failed | NodeState::Ended | NodeState::Waiting => {
            bar.disable_steady_tick();
        }
        _ => bar.enable_steady_tick(Duration::from_millis(200)),
    }
}

fn with_remark(node: &Node) -> String {
    let word = state(node.state);
    remark(node).map_or(word.to_owned(), |remark| format!("{word}: {remark}"))
}

fn line(node: &Node) -> String {
    let boot = &node.boot;
    let after = match node.state {
        NodeState::Configuring => boot.booted_ms,
        NodeState::Configured => boot.configured_ms,
        NodeState::Ready => boot.ready_ms,
        _ => None,
    };
    let after = after.map_or(String::new(), |ms| format!(" after {}", seconds(ms)));
    let what = match node.state {
        NodeState::Configuring => "booted".to_owned(),
        NodeState::Failed | NodeState::Ended => with_remark(node),
        other => state(other).to_owned(),
    };
    format!("{}: {what}{after}", node.name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::{EngineName, IsolationLevel, IsolationReport, Kind};

    fn node(state: NodeState) -> Node {
        Node {
            name: "r1".into(),
            kind: Kind::Router,
            state,
            labels: std::collections::BTreeMap::new(),
            interfaces: vec![],
            external: None,
            memory: None,
            engine: Some(EngineName::Qemu),
            vcpus: None,
            pid: None,
            kernel: None,
            restarts: 0,
            boot: BootTimes {
                booted_ms: Some(1200),
                configured_ms: Some(1300),
                ready_ms: Some(2450),
            },
            message: Some("no route\nto host".into()),
            last_end: None,
            isolation: None,
            limits: None,
            usage: None,
        }
    }

    #[test]
    fn without_a_terminal_every_step_is_a_line() {
        assert_eq!(line(&node(NodeState::Booting)), "r1: booting");
        assert_eq!(
            line(&node(NodeState::Configuring)),
            "r1: booted after 1.2 s"
        );
        assert_eq!(line(&node(NodeState::Ready)), "r1: ready after 2.5 s");
        assert_eq!(
            line(&node(NodeState::Failed)),
            "r1: failed: no route\nto host"
        );
    }

    #[tokio::test]
    async fn a_launch_is_watched_until_every_node_has_settled() {
        let lab = Lab {
            name: "lab".into(),
            description: None,
            file: "/lab.json".into(),
            switch_pid: None,
            switches: Vec::new(),
            switch_restarts: 0,
            pid: 1,
            engine: EngineName::Kvm,
            engine_reason: String::new(),
            started: 0,
            phase: Phase::Starting,
            ready_ms: None,
            failure: None,
            revision: 0,
            isolation: IsolationReport {
                level: IsolationLevel::Full,
                missing: vec![],
                own_users: false,
            },
            limits_missing: None,
            nodes: vec![node(NodeState::Booting)],
        };
        let changes = [
            Change::Snapshot { lab: Box::new(lab) },
            Change::Node {
                node: Box::new(node(NodeState::Failed)),
            },
            Change::Lab {
                phase: Phase::Running,
                failure: None,
            },
            Change::Lab {
                phase: Phase::Ended,
                failure: None,
            },
        ];
        let events = changes.map(|change| Event { at_ms: 5, change });
        let seen = watch(futures_util::stream::iter(events), Until::Running, true)
            .await
            .unwrap();
        assert!(seen.running && !seen.ended);
        assert_eq!(seen.failed, ["r1"]);
    }
}
