//! `vmm apply`, `vmm add`, `vmm rm`: a running lab becomes another one.

use std::collections::HashSet;
use std::io::{BufRead, IsTerminal, Write, stderr, stdin};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde::Serialize;
use topology::edit::{self, EditError};
use topology::model::Topology;
use topology::{Report, Severity};

use super::link::choose;
use super::node::until_ready;
use super::{Json, LabChoice, block_on, print, print_json};
use crate::api::types::{
    Action, ChangePlan, Kind, Lab, NodeState, Step, Subject, TopologyRequest, TopologyText,
};
use crate::client::Client;
use crate::failure::{Code, Failure, nearest};

/// Arguments of `vmm apply`.
#[derive(Debug, Args)]
#[command(
    after_help = "What differs between the running lab and the file is shown first. Nodes whose machine differs are restarted; links change while traffic runs, \
and those set by hand are set back to the file. A file with errors changes nothing.\n\n\
Examples:\n  vmm apply --dry-run lab.json\n  vmm apply lab.json\n  vmm apply --yes --lab two-hosts lab.json"
)]
pub struct ApplyArgs {
    /// The topology file
    file: PathBuf,
    #[command(flatten)]
    pub how: How,
}

/// Arguments of `vmm add`.
#[derive(Debug, Args)]
#[command(
    after_help = "What is added is written as in a topology file, with nothing but `nodes` and `links`; paths in it are relative to the lab's file.\n\n\
Examples:\n  vmm add more.json\n  vmm add '{\"nodes\": {\"pc3\": {\"kind\": \"host\"}}, \"links\": [{\"endpoints\": [\"pc3:eth0\", \"sw\"]}]}'\n  \
vmm add '{\"links\": [{\"endpoints\": [\"r1:eth2\", \"r2:eth2\"], \"delay\": \"5ms\"}]}'"
)]
pub struct AddArgs {
    /// Files with nodes and links, or those themselves
    #[arg(required = true, value_name = "FILE|JSON")]
    additions: Vec<String>,
    #[command(flatten)]
    pub how: How,
}

/// Arguments of `vmm rm`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  vmm rm node pc3\n  vmm rm link r1:eth2")]
pub struct RmArgs {
    #[command(subcommand)]
    verb: RmVerb,
}

#[derive(Debug, Subcommand)]
enum RmVerb {
    /// End nodes and remove them with their links
    #[command(after_help = "Example:\n  vmm rm node pc3")]
    Node(RmSome),
    /// Remove links; the interfaces at their ends stay
    #[command(after_help = "Example:\n  vmm rm link --dry-run pc3:eth1")]
    Link(RmSome),
}

#[derive(Debug, Args)]
struct RmSome {
    /// Their names; a link also by one of its ends
    #[arg(required = true)]
    names: Vec<String>,
    #[command(flatten)]
    how: How,
}

/// How a lab is changed.
#[derive(Debug, Args)]
pub struct How {
    /// Only show what would be done
    #[arg(long)]
    dry_run: bool,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
    /// Do not wait until nodes that boot are ready
    #[arg(long)]
    no_wait: bool,
    #[command(flatten)]
    lab: LabChoice,
    #[command(flatten)]
    pub json: Json,
}

impl RmArgs {
    /// Whether errors are wanted as JSON.
    pub fn json(&self) -> bool {
        let (RmVerb::Node(some) | RmVerb::Link(some)) = &self.verb;
        some.how.json.json
    }
}

/// A topology as it is to be, and when to ask whether that is meant.
struct Wanted {
    request: TopologyRequest,
    ask: Ask,
}

#[derive(PartialEq, Eq)]
enum Ask {
    /// Whatever changes.
    Always,
    /// If more happens than was named: machines restart.
    Restarts,
}

/// What is said with `--json`.
#[derive(Serialize)]
struct Outcome<'a> {
    /// It has been done, or there was nothing to do.
    applied: bool,
    #[serde(flatten)]
    plan: &'a ChangePlan,
}

pub fn apply(args: &ApplyArgs) -> Result<ExitCode, Failure> {
    block_on(async {
        let client = Client::choose(args.how.lab.lab.as_deref())?;
        let file = args.file.canonicalize().unwrap_or(args.file.clone());
        let loaded = match Topology::load(&file) {
            Ok(loaded) => loaded,
            Err(report) => return broken(&report, &args.how),
        };
        if !args.how.json.json {
            eprint!("{}", loaded.warnings.render(stderr().is_terminal()));
        }
        let request = TopologyRequest {
            file,
            text: loaded.text,
            revision: None,
            keep_links: false,
        };
        let ask = Ask::Always;
        change(&client, Wanted { request, ask }, &args.how).await
    })
}

pub fn add(args: &AddArgs) -> Result<ExitCode, Failure> {
    block_on(async {
        let client = Client::choose(args.how.lab.lab.as_deref())?;
        let TopologyText {
            file,
            mut text,
            revision,
        } = client.topology().await?;
        for addition in &args.additions {
            let is_json = addition.trim_start().starts_with('{');
            let (name, addition) = if is_json {
                ("the addition", addition.clone())
            } else {
                (addition.as_str(), read(Path::new(addition))?)
            };
            text = edit::add(&text, &addition).map_err(|error| refused(name, &error))?;
        }
        edited(&client, file, text, revision, &args.how).await
    })
}

pub fn rm(args: &RmArgs) -> Result<ExitCode, Failure> {
    let (RmVerb::Node(some) | RmVerb::Link(some)) = &args.verb;
    block_on(async {
        let client = Client::choose(some.how.lab.lab.as_deref())?;
        let TopologyText {
            file,
            text,
            revision,
        } = client.topology().await?;
        let text = match &args.verb {
            RmVerb::Node(_) => {
                let lab = client.lab().await?;
                for name in &some.names {
                    known(&lab, name)?;
                }
                edit::remove(&text, &file, &some.names, &[])
            }
            RmVerb::Link(_) => {
                let links = client.links().await?;
                let name = |written: &String| Ok(choose(&links, written)?.link.name.clone());
                let names = some.names.iter().map(name);
                let names = names.collect::<Result<Vec<_>, Failure>>()?;
                edit::remove(&text, &file, &[], &names)
            }
        };
        let text = text.map_err(|error| refused("the lab", &error))?;
        edited(&client, file, text, revision, &some.how).await
    })
}

/// Changes a lab to a topology made from its own.
async fn edited(
    client: &Client,
    file: PathBuf,
    text: String,
    revision: u64,
    how: &How,
) -> Result<ExitCode, Failure> {
    match Topology::parse(&text, &file) {
        Ok(loaded) if !how.json.json => {
            eprint!("{}", loaded.warnings.render(stderr().is_terminal()));
        }
        Ok(_) => {}
        Err(report) => return broken(&report, how),
    }
    let request = TopologyRequest {
        file,
        text,
        revision: Some(revision),
        keep_links: true,
    };
    let ask = Ask::Restarts;
    change(client, Wanted { request, ask }, how).await
}

/// Shows what is to be done, asks if need be, has it done, and waits for nodes that boot.
async fn change(client: &Client, wanted: Wanted, how: &How) -> Result<ExitCode, Failure> {
    let Wanted { mut request, ask } = wanted;
    let plan = client.plan(&request).await?;
    if !how.json.json {
        print(&listed(&plan))?;
    }
    let done = |applied, plan: &ChangePlan| {
        if how.json.json {
            print_json(&Outcome { applied, plan })?;
        }
        Ok(ExitCode::SUCCESS)
    };
    if plan.steps.is_empty() || how.dry_run {
        return done(plan.steps.is_empty(), &plan);
    }
    let restarts = plan.steps.iter().any(|s| s.action == Action::Restart);
    let ask = ask == Ask::Always || restarts;
    if ask && !how.yes && !how.json.json && stdin().is_terminal() && !consent()? {
        return Err(Failure::new(Code::Interrupted, "nothing was changed"));
    }
    // What was shown is what is done.
    request.revision = Some(plan.revision);
    let before = client.lab().await?;
    let mut events = client.events().await?;
    let plan = client.apply(&request).await?;
    if !how.no_wait {
        let after = client.lab().await?;
        until_ready(&mut events, &booting(&plan, &before, &after)).await?;
    }
    done(true, &plan)
}

/// The machines that boot because of a change.
fn booting(plan: &ChangePlan, before: &Lab, after: &Lab) -> Vec<String> {
    let is_down = |state| {
        matches!(
            state,
            NodeState::Stopped | NodeState::Ended | NodeState::Failed
        )
    };
    let nodes = before.nodes.iter();
    let down: HashSet<&str> = nodes
        .filter(|node| node.pid.is_none() && is_down(node.state))
        .map(|node| node.name.as_str())
        .collect();
    let machine = |name: &str| {
        let mut nodes = after.nodes.iter();
        nodes.any(|n| n.name == name && matches!(n.kind, Kind::Host | Kind::Router))
    };
    let boots = |step: &&Step| match (step.subject, step.action) {
        (Subject::Node, Action::Add) => machine(&step.name),
        (Subject::Node, Action::Restart) => !down.contains(step.name.as_str()),
        _ => false,
    };
    let steps = plan.steps.iter().filter(boots);
    steps.map(|step| step.name.clone()).collect()
}

fn listed(plan: &ChangePlan) -> String {
    let mut lines: Vec<_> = plan.steps.iter().map(line).collect();
    if lines.is_empty() {
        lines.push("nothing to do\n".into());
    }
    lines.extend(plan.notes.iter().map(|note| format!("note: {note}\n")));
    lines.concat()
}

fn line(step: &Step) -> String {
    let action = match step.action {
        Action::Add => "add",
        Action::Remove => "remove",
        Action::Restart => "restart",
        Action::Change => "change",
    };
    let subject = match step.subject {
        Subject::Node => "node",
        Subject::Link => "link",
    };
    let details = match step.details.as_slice() {
        [] => String::new(),
        details => format!(" ({})", details.join("; ")),
    };
    format!("{action:<8}{subject} {}{details}\n", step.name)
}

fn consent() -> Result<bool, Failure> {
    let cannot = |error: std::io::Error| Failure::new(Code::General, error.to_string());
    eprint!("Go ahead? [y/N] ");
    stderr().flush().map_err(cannot)?;
    let mut answer = String::new();
    stdin().lock().read_line(&mut answer).map_err(cannot)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

fn broken(report: &Report, how: &How) -> Result<ExitCode, Failure> {
    let errors = report.count(Severity::Error);
    if how.json.json {
        let message = format!("the topology has {errors} errors; nothing was changed");
        return Err(Failure::new(Code::Topology, message).help("`vmm check --json` lists them"));
    }
    eprint!("{}", report.render(stderr().is_terminal()));
    eprintln!("nothing was changed");
    Ok(ExitCode::from(Code::Topology as u8))
}

fn read(file: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(file).map_err(|error| {
        let message = format!("cannot read {}: {error}", file.display());
        Failure::new(Code::General, message).help("name a file, or write JSON that begins with {")
    })
}

fn refused(what: &str, error: &EditError) -> Failure {
    let code = match error {
        EditError::NoNode(_) | EditError::NoLink(_) => Code::NotFound,
        EditError::NodeThere(_) => Code::General,
        EditError::Topology(_) | EditError::Json(_) | EditError::Form(_) => Code::Topology,
    };
    Failure::new(code, format!("{what}: {error}"))
}

fn known(lab: &Lab, name: &str) -> Result<(), Failure> {
    let names = || lab.nodes.iter().map(|node| node.name.as_str());
    if names().any(|known| known == name) {
        return Ok(());
    }
    let message = format!("lab {}: there is no node called {name}", lab.name);
    let failure = Failure::new(Code::NotFound, message);
    Err(match nearest(name, names()) {
        Some(near) => failure.help(format!("did you mean {near}?")),
        None => failure.help(format!("`vmm ls {}` lists its nodes", lab.name)),
    })
}
