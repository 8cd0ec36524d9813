//! `vmm node`: has a node of a running lab start, stop, pause; or, with `--config`, runs one microVM in the foreground.

use std::io::{BufRead, BufReader, stdin};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use futures_util::{Stream, StreamExt};
use jail::Plan;
use monitor::NodeConfig;

use super::ls::remark;
use super::{Json, LabChoice, block_on, print, print_json};
use crate::api::types::{Change, Event, Node, NodeOrder, NodeState};
use crate::client::Client;
use crate::failure::{Code, Failure};

/// Arguments of `vmm node`.
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    arg_required_else_help = true,
    after_help = "Examples:\n  vmm node restart r1\n  vmm node stop r1 r2\n  vmm node pause pc1 --lab two-hosts"
)]
pub struct NodeArgs {
    #[command(subcommand)]
    verb: Option<NodeVerb>,
    /// Run one microVM in the foreground, described by this JSON file; `-` is a first line of standard input (what a lab
    /// does for each node)
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// With --config: the jail to enter before the guest starts
    #[arg(long, hide = true, requires = "config", value_parser = super::enter::plan)]
    jail: Option<Plan>,
}

#[derive(Debug, Subcommand)]
enum NodeVerb {
    /// Boot nodes that are down, and wait until they are ready
    #[command(after_help = "Example:\n  vmm node start r1")]
    Start(OrderArgs),
    /// Take nodes down; their links stay
    #[command(after_help = "Example:\n  vmm node stop r1 r2")]
    Stop(OrderArgs),
    /// Take nodes down, boot them and wait until they are ready
    #[command(after_help = "Example:\n  vmm node restart --no-wait r1")]
    Restart(OrderArgs),
    /// Have the processors of nodes stand still
    #[command(after_help = "Example:\n  vmm node pause pc1")]
    Pause(OrderArgs),
    /// Have the processors of paused nodes go on
    #[command(after_help = "Example:\n  vmm node resume pc1")]
    Resume(OrderArgs),
}

/// Arguments of each of these.
#[derive(Debug, Args)]
struct OrderArgs {
    /// The nodes
    #[arg(required = true)]
    nodes: Vec<String>,
    /// Do not wait until nodes that boot are ready
    #[arg(long)]
    no_wait: bool,
    #[command(flatten)]
    lab: LabChoice,
    #[command(flatten)]
    json: Json,
}

impl NodeArgs {
    /// Whether errors are wanted as JSON.
    pub fn json(&self) -> bool {
        self.order().is_some_and(|(_, args)| args.json.json)
    }

    fn order(&self) -> Option<(NodeOrder, &OrderArgs)> {
        Some(match self.verb.as_ref()? {
            NodeVerb::Start(args) => (NodeOrder::Start, args),
            NodeVerb::Stop(args) => (NodeOrder::Stop, args),
            NodeVerb::Restart(args) => (NodeOrder::Restart, args),
            NodeVerb::Pause(args) => (NodeOrder::Pause, args),
            NodeVerb::Resume(args) => (NodeOrder::Resume, args),
        })
    }
}

pub fn run(args: &NodeArgs) -> Result<ExitCode, Failure> {
    match (args.order(), &args.config) {
        (Some((order, args)), _) => block_on(give(order, args))?,
        (None, Some(config)) => monitor(config, args.jail.as_ref())?,
        (None, None) => {
            return Err(Failure::new(Code::Usage, "what is the node to do?")
                .help("`vmm node --help` lists what it can"));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Gives the order to each node, and waits for those that boot.
async fn give(order: NodeOrder, args: &OrderArgs) -> Result<(), Failure> {
    let client = Client::choose(args.lab.lab.as_deref())?;
    let boots = matches!(order, NodeOrder::Start | NodeOrder::Restart);
    let mut nodes = Vec::new();
    // What happens from before the first order on.
    let mut events = client.events().await?;
    for name in &args.nodes {
        nodes.push(client.order(name, order).await?);
    }
    if boots && !args.no_wait {
        until_ready(&mut events, &args.nodes).await?;
        nodes.clear();
        for name in &args.nodes {
            nodes.push(client.node(name).await?);
        }
    }
    if args.json.json {
        return print_json(&nodes);
    }
    let done = match order {
        NodeOrder::Start | NodeOrder::Restart if args.no_wait => "boots",
        NodeOrder::Start | NodeOrder::Restart => "is ready",
        NodeOrder::Stop => "is stopped",
        NodeOrder::Pause => "is paused",
        NodeOrder::Resume => "goes on",
    };
    let lines = nodes.iter().map(|node| format!("{} {done}\n", node.name));
    print(&lines.collect::<String>())
}

/// Waits until nodes that are about to boot are ready. `events` are those from before they were told to.
pub(super) async fn until_ready(
    events: &mut (impl Stream<Item = Event> + Unpin),
    nodes: &[String],
) -> Result<(), Failure> {
    let mut waiting: Vec<_> = nodes.iter().map(|name| (name.as_str(), false)).collect();
    while !waiting.is_empty() {
        let Some(event) = events.next().await else {
            return Err(Failure::new(
                Code::Lab,
                format!("the lab ended before {} was ready", waiting[0].0),
            ));
        };
        if let Change::Node { node } = event.change {
            settle(&mut waiting, &node)?;
        }
    }
    Ok(())
}

/// Takes a node that is up out of those that are waited for; what it was before it has been seen on its way does not count.
fn settle(waiting: &mut Vec<(&str, bool)>, node: &Node) -> Result<(), Failure> {
    let Some(place) = waiting.iter().position(|(name, _)| *name == node.name) else {
        return Ok(());
    };
    let on_its_way = waiting[place].1;
    match node.state {
        NodeState::Ready if on_its_way => {
            waiting.swap_remove(place);
        }
        NodeState::Failed | NodeState::Ended if on_its_way => {
            let why = remark(node).unwrap_or_default();
            return Err(Failure::new(
                Code::Lab,
                format!("node {} does not get ready: {why}", node.name),
            ));
        }
        NodeState::Ready | NodeState::Failed | NodeState::Ended => {}
        _ => waiting[place].1 = true,
    }
    Ok(())
}

/// Runs no event loop, so that a node's process stays small.
fn monitor(config: &Path, jail: Option<&Plan>) -> Result<(), Failure> {
    let bad = |error: &dyn std::fmt::Display| {
        Failure::new(Code::Usage, format!("{}: {error}", config.display()))
    };
    let mut input = BufReader::new(stdin());
    let mut text = String::new();
    let read = if config.as_os_str() == "-" {
        input.read_line(&mut text).map(drop)
    } else {
        std::fs::read_to_string(config).map(|file| text = file)
    };
    read.map_err(|error| bad(&error))?;
    let config: NodeConfig = serde_json::from_str(&text).map_err(|error| bad(&error))?;
    let failed = |error: &dyn std::fmt::Display| {
        Failure::new(Code::General, format!("node {}: {error}", config.name))
    };
    let opened = monitor::open(&config).map_err(|error| failed(&error))?;
    let end = match jail {
        Some(plan) => {
            jail::enter(plan).map_err(|error| failed(&error))?;
            opened.run_confined(input)
        }
        None => opened.run(input),
    };
    end.map(drop).map_err(|error| failed(&error))
}
