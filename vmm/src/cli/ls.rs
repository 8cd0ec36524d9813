//! `vmm ls`: the running labs, or the nodes of one.

use std::process::ExitCode;

use clap::Args;

use super::table::table;
use super::{Json, block_on, print, print_json};
use crate::api::types::{EngineName, IsolationLevel, Kind, Lab, Node, NodeState, Phase};
use crate::client::Client;
use crate::failure::{Code, Failure};
use crate::lab::run_folder::RunRoot;
use crate::lab::saved::Saved;

/// Arguments of `vmm ls`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  vmm ls\n  vmm ls two-hosts\n  vmm ls two-hosts --json")]
pub struct LsArgs {
    /// List the nodes of this lab
    lab: Option<String>,
    #[command(flatten)]
    pub json: Json,
}

pub fn run(args: &LsArgs) -> Result<ExitCode, Failure> {
    block_on(async {
        match &args.lab {
            Some(lab) => list_nodes(&Client::choose(Some(lab))?, args.json.json).await,
            None => list_labs(args.json.json).await,
        }
    })?;
    Ok(ExitCode::SUCCESS)
}

async fn list_labs(json: bool) -> Result<(), Failure> {
    let root = RunRoot::from_env()?;
    let mut silent = false;
    let mut labs = Vec::new();
    for name in root.labs() {
        let paths = root.lab(&name);
        if paths.is_orphaned()
            && let Ok(saved) = Saved::read(&paths)
        {
            labs.push(Lab {
                phase: Phase::Orphaned,
                ..saved.lab
            });
            continue;
        }
        match Client::at(&name, &paths).lab().await {
            Ok(lab) => labs.push(lab),
            // It has ended since.
            Err(_) if !root.labs().contains(&name) => {}
            Err(failure) => {
                silent = true;
                eprintln!("warning: {failure}");
            }
        }
    }
    if json {
        return print_json(&labs);
    }
    if labs.is_empty() && silent {
        return Err(Failure::new(Code::General, "no lab says how it stands"));
    }
    if labs.is_empty() {
        return print("no lab runs\n");
    }
    let rows: Vec<_> = labs.iter().map(lab_row).collect();
    print(&table(
        &["LAB", "STATE", "READY", "ENGINE", "PID", "FILE"],
        &rows,
    ))
}

async fn list_nodes(client: &Client, json: bool) -> Result<(), Failure> {
    let lab = client.lab().await?;
    if json {
        return print_json(&lab.nodes);
    }
    print(&node_table(&lab))
}

fn lab_row(lab: &Lab) -> Vec<String> {
    let ready = lab
        .nodes
        .iter()
        .filter(|node| node.state == NodeState::Ready)
        .count();
    vec![
        lab.name.clone(),
        phase(lab.phase).to_owned(),
        format!("{ready}/{}", lab.nodes.len()),
        engine(lab.engine).to_owned(),
        lab.pid.to_string(),
        lab.file.display().to_string(),
    ]
}

/// The nodes of a lab with their addresses, for people.
pub fn node_table(lab: &Lab) -> String {
    let rows: Vec<_> = lab.nodes.iter().flat_map(node_rows).collect();
    let mut text = table(
        &["NODE", "KIND", "STATE", "ENGINE", "ISOLATION", "ADDRESSES"],
        &rows,
    );
    let remarks = lab
        .nodes
        .iter()
        .filter_map(|node| Some((&node.name, remark(node)?)));
    for (name, remark) in remarks {
        text.extend([name, ": ", &remark, "\n"]);
    }
    text
}

/// Interfaces in one row of a table.
const INTERFACES: usize = 2;

fn node_rows(node: &Node) -> Vec<Vec<String>> {
    let addresses: Vec<_> = node
        .interfaces
        .iter()
        .filter(|interface| !interface.addresses.is_empty())
        .map(|interface| format!("{} {}", interface.name, interface.addresses.join(" ")))
        .collect();
    let mut lines = addresses.chunks(INTERFACES).map(|some| some.join(", "));
    let first = vec![
        node.name.clone(),
        kind(node.kind).to_owned(),
        state_of(node),
        node.engine.map_or("-", engine).to_owned(),
        node.isolation.map_or("-", isolation).to_owned(),
        lines.next().or(node.external.clone()).unwrap_or_default(),
    ];
    let rest = lines.map(|line| {
        let mut row = vec![String::new(); first.len() - 1];
        row.push(line);
        row
    });
    let rest: Vec<_> = rest.collect();
    [vec![first], rest].concat()
}

/// A node's state in a few words.
fn state_of(node: &Node) -> String {
    let word = state(node.state);
    match (&node.last_end, node.state) {
        (Some(end), NodeState::Ended) => format!("{word} ({})", end.reason),
        _ if node.restarts > 0 => format!("{word} (restarts: {})", node.restarts),
        _ => word.to_owned(),
    }
}

/// What a person should know about a node beyond its state.
pub fn remark(node: &Node) -> Option<String> {
    match (&node.message, &node.last_end) {
        (Some(message), _) if node.state == NodeState::Failed => Some(message.clone()),
        (_, Some(end)) => Some(format!("last ended by {end}")),
        _ => None,
    }
}

/// A state in one word.
pub fn state(state: NodeState) -> &'static str {
    match state {
        NodeState::Waiting => "waiting",
        NodeState::Booting => "booting",
        NodeState::Configuring => "configuring",
        NodeState::Configured => "configured",
        NodeState::Ready => "ready",
        NodeState::Paused => "paused",
        NodeState::Stopped => "stopped",
        NodeState::Ended => "ended",
        NodeState::Failed => "failed",
    }
}

/// A phase in one word.
pub fn phase(phase: Phase) -> &'static str {
    match phase {
        Phase::Starting => "starting",
        Phase::Running => "running",
        Phase::Ending => "ending",
        Phase::Ended => "ended",
        Phase::Orphaned => "orphaned",
    }
}

/// An engine's name.
pub fn engine(engine: EngineName) -> &'static str {
    match engine {
        EngineName::Kvm => "kvm",
        EngineName::Qemu => "qemu",
        EngineName::Container => "container",
    }
}

/// A level of isolation in one word.
fn isolation(level: IsolationLevel) -> &'static str {
    match level {
        IsolationLevel::Full => "full",
        IsolationLevel::Relaxed => "relaxed",
        IsolationLevel::None => "none",
    }
}

/// A kind in one word.
pub fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Host => "host",
        Kind::Router => "router",
        Kind::Switch => "switch",
        Kind::Hub => "hub",
        Kind::External => "external",
    }
}
