//! `vmm events`: what changes in a lab, as it happens.

use std::collections::HashMap;
use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use clap::Args;
use futures_util::StreamExt;

use super::link::words;
use super::ls::{phase, remark, state};
use super::{Json, LabChoice, block_on};
use crate::api::types::{Change, Event, LinkDirection, NodeState};
use crate::client::Client;
use crate::failure::{Code, Failure};
use crate::sanitize;

/// Arguments of `vmm events`.
#[derive(Debug, Args)]
#[command(
    after_help = "One line an event, until the lab has ended: seconds since launch, and what has changed. The first says how \
things stand. With --json each line is an event as docs/api.md has it.\n\n\
Examples:\n  vmm events\n  vmm events --json | jq -c 'select(.type == \"carrier\")'"
)]
pub struct EventsArgs {
    #[command(flatten)]
    lab: LabChoice,
    #[command(flatten)]
    pub json: Json,
}

pub fn run(args: &EventsArgs) -> Result<ExitCode, Failure> {
    let client = Client::choose(args.lab.lab.as_deref())?;
    block_on(async {
        let mut events = client.events().await?;
        let mut teller = Teller::default();
        let mut out = std::io::stdout().lock();
        while let Some(event) = events.next().await {
            let line = if args.json.json {
                serde_json::to_string(&event).ok()
            } else {
                teller.line(&event)
            };
            let Some(line) = line else { continue };
            match writeln!(out, "{line}").and_then(|()| out.flush()) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::BrokenPipe => break,
                Err(error) => {
                    let message = format!("cannot write to standard output: {error}");
                    return Err(Failure::new(Code::General, message));
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// Tells events to people.
#[derive(Debug, Default)]
struct Teller {
    /// What was last told of each node: not all that changes about one is news.
    nodes: HashMap<String, String>,
    at_ms: u64,
}

impl Teller {
    fn line(&mut self, event: &Event) -> Option<String> {
        // That records are missing has no time of its own.
        self.at_ms = self.at_ms.max(event.at_ms);
        let text = self.text(&event.change)?;
        let seconds = self.at_ms as f64 / 1000.0;
        Some(format!(
            "{seconds:>9.3}  {}",
            sanitize::text(&text).replace('\n', " ")
        ))
    }

    fn text(&mut self, change: &Change) -> Option<String> {
        Some(match change {
            Change::Snapshot { lab } => {
                let ready = lab
                    .nodes
                    .iter()
                    .filter(|node| node.state == NodeState::Ready);
                format!(
                    "lab {} is {}, {} of {} nodes are ready",
                    lab.name,
                    phase(lab.phase),
                    ready.count(),
                    lab.nodes.len()
                )
            }
            Change::Lab {
                phase: now,
                failure,
            } => match failure {
                Some(failure) => format!("the lab is {}: {failure}", phase(*now)),
                None => format!("the lab is {}", phase(*now)),
            },
            Change::Node { node } => {
                let mut text = format!("{} is {}", node.name, state(node.state));
                if matches!(node.state, NodeState::Failed | NodeState::Ended)
                    && let Some(remark) = remark(node)
                {
                    text.extend([": ", &remark]);
                }
                if self.nodes.insert(node.name.clone(), text.clone()).as_ref() == Some(&text) {
                    return None;
                }
                text
            }
            Change::NodeRemoved { node } => {
                self.nodes.remove(node);
                format!("{node} is no more")
            }
            Change::Topology { revision } => {
                format!("the lab has another topology (revision {revision})")
            }
            Change::Link { link } => {
                let set = |direction: &LinkDirection| match words(&direction.attributes) {
                    words if words.is_empty() => "defaults".to_owned(),
                    words => words,
                };
                let (there, back) = (set(&link.forward), set(&link.backward));
                if there == back {
                    format!("{} is set to {there}", link.name)
                } else {
                    format!("{} is set to {there}, backward to {back}", link.name)
                }
            }
            Change::Carrier { from, to, up, .. } => {
                let how = if *up {
                    "has its carrier"
                } else {
                    "has lost its carrier"
                };
                format!("{from} to {to} {how}")
            }
            Change::Notice {
                node: Some(node),
                message,
            } => format!("{node}: {message}"),
            Change::Notice {
                node: None,
                message,
            } => message.clone(),
            Change::Lost { count } => {
                format!("{count} events are missing: they came faster than they were read")
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn events_are_told_in_a_line_each() {
        let node = |state: &str, message: Option<&str>| {
            json!({"at_ms": 1250, "type": "node", "node": {"name": "r1", "kind": "router", "state": state,
                "interfaces": [], "restarts": 0, "boot": {}, "message": message}})
        };
        let mut teller = Teller::default();
        let mut told =
            |event: serde_json::Value| teller.line(&serde_json::from_value(event).unwrap());
        assert_eq!(
            told(node("booting", None)).unwrap(),
            "    1.250  r1 is booting"
        );
        assert_eq!(told(node("booting", None)), None);
        assert_eq!(
            told(node("failed", Some("out of\n\x1b[2Jmemory"))).unwrap(),
            "    1.250  r1 is failed: out of memory"
        );
        let carrier = json!({"at_ms": 2000, "type": "carrier", "link": "l", "from": "a:eth0", "to": "b:eth0", "up": false});
        assert_eq!(
            told(carrier).unwrap(),
            "    2.000  a:eth0 to b:eth0 has lost its carrier"
        );
        let removed = json!({"at_ms": 2000, "type": "node-removed", "node": "r1"});
        assert_eq!(told(removed).unwrap(), "    2.000  r1 is no more");
        let topology = json!({"at_ms": 2000, "type": "topology", "revision": 3});
        assert_eq!(
            told(topology).unwrap(),
            "    2.000  the lab has another topology (revision 3)"
        );
        let lost = json!({"at_ms": 0, "type": "lost", "count": 7});
        assert_eq!(
            told(lost).unwrap(),
            "    2.000  7 events are missing: they came faster than they were read"
        );
    }
}
