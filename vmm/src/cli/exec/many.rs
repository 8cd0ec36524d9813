//! A command in several nodes at once.

use std::io::IsTerminal;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::mpsc;

use super::{Signals, Writer};
use crate::api::types::{ExecRequest, Kind, Node, STDERR, STDOUT};
use crate::client::Client;
use crate::failure::{Code, Failure, nearest};
use crate::sanitize::Sanitizer;
use crate::session::{self, Input, Said};

/// A line longer than this is shown in parts.
const LINE: usize = 64 << 10;

/// Which nodes are meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// Those with these names.
    Named(Vec<String>),
    /// All machines.
    All,
    /// Machines with each of these labels; some value of it, or this one.
    Labelled(Vec<(String, Option<String>)>),
}

impl Choice {
    /// The nodes, in the order of the lab unless they are named.
    pub async fn find(&self, client: &Client) -> Result<Vec<String>, Failure> {
        let nodes = client.lab().await?.nodes;
        self.among(&nodes)
    }

    fn among(&self, nodes: &[Node]) -> Result<Vec<String>, Failure> {
        let machines = || {
            nodes
                .iter()
                .filter(|node| matches!(node.kind, Kind::Host | Kind::Router))
        };
        let names = |chosen: &mut dyn Iterator<Item = &Node>| -> Vec<String> {
            chosen.map(|node| node.name.clone()).collect()
        };
        match self {
            Self::Named(named) => {
                let known = |name: &str| nodes.iter().any(|node| node.name == name);
                let Some(unknown) = named.iter().find(|name| !known(name)) else {
                    let mut seen = std::collections::HashSet::new();
                    return Ok(named
                        .iter()
                        .filter(|name| seen.insert(*name))
                        .cloned()
                        .collect());
                };
                let missing = format!("there is no node called {unknown}");
                let near = nearest(unknown, nodes.iter().map(|node| node.name.as_str()));
                Err(Failure::new(Code::NotFound, missing).help(match near {
                    Some(near) => format!("did you mean {near}?"),
                    None => "`vmm ls LAB` lists the nodes".to_owned(),
                }))
            }
            Self::All => Ok(names(&mut machines())),
            Self::Labelled(labels) => {
                let has = |node: &&Node| {
                    labels.iter().all(|(key, value)| {
                        let label = node.labels.get(key);
                        label.is_some_and(|label| value.as_ref().is_none_or(|value| value == label))
                    })
                };
                let found = names(&mut machines().filter(has));
                if !found.is_empty() {
                    return Ok(found);
                }
                let labels: Vec<_> = labels.iter().map(written).collect();
                let missing = format!("no node has the label {}", labels.join(" and "));
                Err(Failure::new(Code::NotFound, missing)
                    .help("`labels` of a node in the topology file gives it some"))
            }
        }
    }
}

fn written((key, value): &(String, Option<String>)) -> String {
    match value {
        Some(value) => format!("{key}={value}"),
        None => key.clone(),
    }
}

/// Runs the command in all `nodes` at once, each line of output behind the node's name. The highest status is that of all.
pub async fn run(client: &Client, nodes: &[String], request: &ExecRequest) -> Result<u8, Failure> {
    let writer = Writer::start();
    let (inputs, mut running) = mpsc::unbounded_channel();
    let mut commands: FuturesUnordered<_> = nodes
        .iter()
        .map(|node| {
            let (inputs, queue) = (inputs.clone(), writer.queue.clone());
            async move { (node, one(client, node, request, inputs, queue).await) }
        })
        .collect();
    let mut signals = Signals::listen()?;
    let mut started: Vec<Input> = Vec::new();
    let mut failed = Vec::new();
    loop {
        tokio::select! {
            ended = commands.next() => match ended {
                Some((_, Ok(0))) => {}
                Some((node, Ok(status))) => failed.push((node, status)),
                Some((node, Err(failure))) => {
                    let said = format!("vmm: {}\n", failure.message).into_bytes();
                    let _ = writer.queue.send((STDERR, said)).await;
                    failed.push((node, Code::Exec as u8));
                }
                None => break,
            },
            Some(input) = running.recv() => started.push(input),
            signal = signals.come() => {
                for input in &started {
                    input.signal(signal.as_raw()).await;
                }
            }
        }
    }
    if !failed.is_empty() {
        failed.sort();
        let list = failed
            .iter()
            .map(|(node, status)| format!("{node} ({status})"));
        let list: Vec<_> = list.collect();
        let said = format!("vmm: status other than 0: {}\n", list.join(", "));
        let _ = writer.queue.send((STDERR, said.into_bytes())).await;
    }
    writer.finish();
    Ok(failed.iter().map(|(_, status)| *status).max().unwrap_or(0))
}

/// Runs the command in one of them.
async fn one(
    client: &Client,
    node: &str,
    request: &ExecRequest,
    inputs: mpsc::UnboundedSender<Input>,
    queue: mpsc::Sender<(u8, Vec<u8>)>,
) -> Result<u8, Failure> {
    let (input, mut output) = session::start(client, node, request).await?;
    // Whose would it be?
    input.end().await;
    let _ = inputs.send(input);
    let mut lines = [
        Lines::new(node, std::io::stdout().is_terminal()),
        Lines::new(node, std::io::stderr().is_terminal()),
    ];
    let status = loop {
        let (stream, text) = match output.next().await? {
            Said::Stdout(data) => (STDOUT, lines[0].take(&data)),
            Said::Stderr(data) => (STDERR, lines[1].take(&data)),
            Said::Refused { message, status } => {
                let said = lines[1].take(format!("{message}\n").as_bytes());
                let _ = queue.send((STDERR, said)).await;
                break status;
            }
            Said::Ended(status) => break status,
        };
        if !text.is_empty() && queue.send((stream, text)).await.is_err() {
            return Ok(session::signal_status(
                rustix::process::Signal::PIPE.as_raw(),
            ));
        }
    };
    for (stream, rest) in [(STDOUT, lines[0].rest()), (STDERR, lines[1].rest())] {
        if !rest.is_empty() {
            let _ = queue.send((stream, rest)).await;
        }
    }
    Ok(status)
}

/// Puts a node's name before each line. What one node writes must not pass for another's, so on a terminal its escape
/// sequences are left out.
struct Lines {
    tag: String,
    pending: Vec<u8>,
    sanitizer: Option<Sanitizer>,
}

impl Lines {
    fn new(node: &str, terminal: bool) -> Self {
        Self {
            tag: format!("{node}: "),
            pending: Vec::new(),
            sanitizer: terminal.then(Sanitizer::default),
        }
    }

    /// The lines that `data` completes.
    fn take(&mut self, data: &[u8]) -> Vec<u8> {
        match &mut self.sanitizer {
            Some(sanitizer) => self
                .pending
                .extend_from_slice(sanitizer.clean(data).as_bytes()),
            None => self.pending.extend_from_slice(data),
        }
        let mut out = Vec::new();
        let mut rest = std::mem::take(&mut self.pending);
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let after = rest.split_off(end + 1);
            out.extend_from_slice(self.tag.as_bytes());
            out.append(&mut rest);
            rest = after;
        }
        self.pending = rest;
        if self.pending.len() >= LINE {
            out.append(&mut self.rest());
        }
        out
    }

    /// What has not ended in a newline, with one.
    fn rest(&mut self) -> Vec<u8> {
        let rest = std::mem::take(&mut self.pending);
        if rest.is_empty() {
            return rest;
        }
        [self.tag.as_bytes(), &rest, b"\n"].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(bytes: Vec<u8>) -> String {
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn each_line_has_its_nodes_name() {
        let mut lines = Lines::new("r1", false);
        assert_eq!(text(lines.take(b"on")), "");
        assert_eq!(
            text(lines.take(b"e\ntwo\n\nthr")),
            "r1: one\nr1: two\nr1: \n"
        );
        assert_eq!(text(lines.rest()), "r1: thr\n");
        assert_eq!(text(lines.rest()), "");
        let long = vec![b'x'; LINE];
        assert_eq!(lines.take(&long).len(), "r1: ".len() + LINE + 1);
    }

    #[test]
    fn a_node_cannot_write_in_anothers_name() {
        let mut lines = Lines::new("r1", true);
        let said = lines.take(b"\x1b[1A\rr2: all is well\r\n");
        assert_eq!(text(said), "r1: r2: all is well\n");
    }

    fn node(name: &str, kind: &str, labels: &str) -> Node {
        let text = format!(
            r#"{{"name": "{name}", "kind": "{kind}", "state": "ready", "interfaces": [], "restarts": 0, "boot": {{}}, "labels": {labels}}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn nodes_are_chosen_by_name_by_label_or_all() {
        let nodes = [
            node("r1", "router", r#"{"role": "core"}"#),
            node("r2", "router", r#"{"role": "edge", "site": "x"}"#),
            node("sw", "switch", "{}"),
            node("pc", "host", "{}"),
        ];
        let found = |choice: Choice| choice.among(&nodes).map_err(|failure| failure.message);
        let label = |key: &str, value: Option<&str>| (key.to_owned(), value.map(str::to_owned));
        assert_eq!(found(Choice::All).unwrap(), ["r1", "r2", "pc"]);
        let role = Choice::Labelled(vec![label("role", None)]);
        assert_eq!(found(role).unwrap(), ["r1", "r2"]);
        let both = vec![label("role", Some("edge")), label("site", None)];
        assert_eq!(found(Choice::Labelled(both)).unwrap(), ["r2"]);
        let none = Choice::Labelled(vec![label("role", Some("cor"))]);
        assert_eq!(found(none).unwrap_err(), "no node has the label role=cor");
        let named = |names: &[&str]| Choice::Named(names.iter().map(|&n| n.to_owned()).collect());
        assert_eq!(found(named(&["pc", "r1", "pc"])).unwrap(), ["pc", "r1"]);
        let unknown = named(&["pc", "r3"]).among(&nodes).unwrap_err();
        assert_eq!(unknown.help.unwrap(), "did you mean r1?");
    }
}
