//! `vmm inspect`: everything that is known about a lab, a node or a link.

use std::fmt::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;
use serde_json::Value;

use super::link::{choose, link_table};
use super::ls::{engine, kind, node_table, phase, remark, state};
use super::table::table;
use super::{Json, LabChoice, block_on, print, print_json};
use crate::api::types::{
    Lab, Lateness, Link, LinkDirection, LinkReport, Node, ProcessUsage, Usage,
};
use crate::client::Client;
use crate::failure::{Code, Failure, nearest};
use crate::lab::run_folder::RunRoot;
use crate::sanitize;
use crate::units::{bytes, nanoseconds};

/// Arguments of `vmm inspect`.
#[derive(Debug, Args)]
#[command(
    after_help = "A link is named by its name or one of its ends (pc1:eth0).\n\n\
Examples:\n  vmm inspect\n  vmm inspect r1\n  vmm inspect r1:eth1 --json"
)]
pub struct InspectArgs {
    /// A node or a link; the lab if none is named
    #[arg(value_name = "NODE|LINK")]
    name: Option<String>,
    #[command(flatten)]
    lab: LabChoice,
    #[command(flatten)]
    pub json: Json,
}

/// All about a lab.
#[derive(Debug, Serialize)]
struct LabPage {
    lab: Lab,
    links: Vec<Link>,
    usage: Usage,
}

/// All about a node.
#[derive(Debug, Serialize)]
struct NodePage {
    node: Node,
    /// Its links.
    links: Vec<Link>,
    /// What its process has taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<ProcessUsage>,
    /// What the switch knows: of each interface of a machine, or of the node itself.
    switch: Vec<Value>,
    /// What its guest wrote to its serial port.
    #[serde(skip_serializing_if = "Option::is_none")]
    serial_log: Option<PathBuf>,
}

/// All about a link.
#[derive(Debug, Serialize)]
struct LinkPage {
    link: Link,
    /// What it was asked for and what it has delivered.
    report: Vec<LinkReport>,
}

pub fn run(args: &InspectArgs) -> Result<ExitCode, Failure> {
    let client = Client::choose(args.lab.lab.as_deref())?;
    let json = args.json.json;
    block_on(async {
        let lab = client.lab().await?;
        let Some(name) = &args.name else {
            let page = LabPage {
                links: client.links().await?,
                usage: client.usage().await?,
                lab,
            };
            return show(&page, json, lab_text);
        };
        if let Some(node) = lab.nodes.iter().find(|node| node.name == *name) {
            return show(&node_page(&client, node).await?, json, node_text);
        }
        let links = client.links().await?;
        let link = choose(&links, name)
            .map_err(|failure| unknown(name, &lab, &links, failure))?
            .link
            .clone();
        let mut report = client.report().await?.links;
        report.retain(|of| of.link == link.name);
        show(&LinkPage { link, report }, json, link_text)
    })?;
    Ok(ExitCode::SUCCESS)
}

fn show<T: Serialize>(page: &T, json: bool, text: impl Fn(&T) -> String) -> Result<(), Failure> {
    if json {
        print_json(page)
    } else {
        print(&text(page))
    }
}

fn unknown(name: &str, lab: &Lab, links: &[Link], failure: Failure) -> Failure {
    // A node with several links, or none, was found before.
    let nodes = lab.nodes.iter().map(|node| node.name.as_str());
    let ends = links
        .iter()
        .flat_map(|link| [&link.name, &link.forward.from, &link.forward.to].map(String::as_str));
    match nearest(name, nodes.chain(ends)) {
        Some(near) => Failure::new(
            Code::NotFound,
            format!("lab {} has no node and no link called {name}", lab.name),
        )
        .help(format!("did you mean {near}?")),
        None => failure,
    }
}

async fn node_page(client: &Client, node: &Node) -> Result<NodePage, Failure> {
    let is_end = |direction: &LinkDirection| {
        let at = |end: &str| {
            end == node.name
                || end
                    .split_once(':')
                    .is_some_and(|(name, _)| name == node.name)
        };
        at(&direction.from) || at(&direction.to)
    };
    let mut links = client.links().await?;
    links.retain(|link| is_end(&link.forward));
    let all = client.switch().await?;
    let list = |name: &str| all[name].as_array().cloned().unwrap_or_default();
    let is_port = |port: &Value| {
        let name = port["name"].as_str().unwrap_or_default();
        node.interfaces
            .iter()
            .any(|interface| name == format!("{}.{}", node.name, interface.name))
    };
    let own = |known: &Value| known["name"] == node.name;
    let ports = list("ports").into_iter().filter(is_port);
    let own = list("nodes")
        .into_iter()
        .chain(list("externals"))
        .filter(own);
    let switch = ports.chain(own).collect();
    let usage = client.usage().await?.nodes;
    let usage = usage
        .into_iter()
        .find(|usage| usage.name == node.name)
        .and_then(|usage| usage.process);
    let serial = RunRoot::from_env()?.lab(client.name()).serial(&node.name);
    Ok(NodePage {
        links,
        usage,
        switch,
        serial_log: node.vcpus.is_some().then_some(serial),
        node: node.clone(),
    })
}

fn lab_text(page: &LabPage) -> String {
    let lab = &page.lab;
    let mut text = format!("lab {}, {}\n", lab.name, phase(lab.phase));
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(text, "  {name:<12}{}", sanitize::text(value));
    };
    if let Some(description) = &lab.description {
        line("is", description);
    }
    line("file", &lab.file.display().to_string());
    line(
        "engine",
        &format!("{}: {}", engine(lab.engine), lab.engine_reason),
    );
    if let Some(ready) = lab.ready_ms {
        line(
            "ready",
            &format!("{} after launch", nanoseconds(ready * 1_000_000)),
        );
    }
    line("runs for", &nanoseconds(page.usage.at_ms * 1_000_000));
    if let Some(process) = &page.usage.lab {
        line("lab", &process_text(process));
    }
    if let Some(process) = &page.usage.switch {
        line("switch", &process_text(process));
    }
    let _ = write!(text, "\n{}\n{}", node_table(lab), link_table(&page.links));
    text
}

fn process_text(process: &ProcessUsage) -> String {
    let mut text = format!(
        "process {}, {} of processor time, {} resident, threads: {}",
        process.pid,
        nanoseconds(process.cpu_ms * 1_000_000),
        bytes(process.memory),
        process.threads
    );
    if let Some(waited) = process.waited_ms.filter(|waited| *waited > 0) {
        let _ = write!(
            text,
            ", waited {} for a processor",
            nanoseconds(waited * 1_000_000)
        );
    }
    text
}

fn node_text(page: &NodePage) -> String {
    let node = &page.node;
    let mut text = format!("{} {}, {}\n", kind(node.kind), node.name, state(node.state));
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(
            text,
            "  {name:<12}{}",
            sanitize::text(value).replace('\n', " ")
        );
    };
    if let (Some(memory), Some(vcpus)) = (node.memory, node.vcpus) {
        line(
            "machine",
            &format!("{} of memory, processors: {vcpus}", bytes(memory)),
        );
    }
    if let Some(kernel) = &node.kernel {
        line("kernel", kernel);
    }
    if let Some(external) = &node.external {
        line("leads to", external);
    }
    let boot = [
        ("agent", node.boot.booted_ms),
        ("network", node.boot.configured_ms),
        ("ready", node.boot.ready_ms),
    ];
    let boot: Vec<_> = boot
        .into_iter()
        .filter_map(|(what, ms)| Some(format!("{what} after {}", nanoseconds(ms? * 1_000_000))))
        .collect();
    if !boot.is_empty() {
        line("boot", &boot.join(", "));
    }
    if node.restarts > 0 {
        line("restarts", &node.restarts.to_string());
    }
    if let Some(remark) = remark(node).or(node.message.clone()) {
        line("remark", &remark);
    }
    if let Some(usage) = &page.usage {
        line("takes", &process_text(usage));
    }
    if let Some(log) = &page.serial_log {
        line("serial log", &log.display().to_string());
    }
    for interface in &node.interfaces {
        let addresses = interface.addresses.join(" ");
        line(
            &interface.name,
            format!("{} mtu {} {addresses}", interface.mac, interface.mtu).trim_end(),
        );
    }
    for known in &page.switch {
        let members = known.as_object().into_iter().flatten();
        let members: Vec<_> = members
            .filter(|(name, value)| *name != "name" && !value.is_null())
            .map(|(name, value)| match value {
                Value::Array(words) => format!(
                    "{name}={}",
                    words
                        .iter()
                        .filter_map(Value::as_str)
                        .collect::<Vec<_>>()
                        .join(",")
                ),
                Value::String(word) => format!("{name}={word}"),
                value => format!("{name}={value}"),
            })
            .collect();
        line(
            "switch",
            &format!(
                "{}: {}",
                known["name"].as_str().unwrap_or_default(),
                members.join(" ")
            ),
        );
    }
    if !page.links.is_empty() {
        let _ = write!(text, "\n{}", link_table(&page.links));
    }
    text
}

fn link_text(page: &LinkPage) -> String {
    let link = &page.link;
    let mut text = format!("link {}\n\n{}\n", link.name, link_table([link]));
    let mut rows = Vec::new();
    let [there, back] = [&link.forward, &link.backward].map(|direction| &direction.counters);
    let mut row = |name: &str, value: &dyn Fn(&crate::api::types::LinkCounters) -> String| {
        rows.push(vec![name.to_owned(), value(there), value(back)]);
    };
    row("bytes in", &|c| c.in_bytes.to_string());
    row("bytes out", &|c| c.out_bytes.to_string());
    row("duplicated", &|c| c.duplicated.to_string());
    row("corrupted", &|c| c.corrupted.to_string());
    row("marked", &|c| c.marked.to_string());
    row("most queued", &|c| c.queued_max.to_string());
    row("late, half of the frames", &|c| {
        late(&c.lateness, c.lateness.p50)
    });
    row("late, 99 %", &|c| late(&c.lateness, c.lateness.p99));
    row("late, the latest", &|c| late(&c.lateness, c.lateness.max));
    text.push_str(&table(&["", "FORWARD", "BACKWARD"], &rows));
    for report in &page.report {
        if let Some(reason) = &report.reason {
            let _ = writeln!(text, "{} to {}: {reason}", report.from, report.to);
        }
    }
    text
}

fn late(lateness: &Lateness, ns: u64) -> String {
    if lateness.count == 0 {
        "-".to_owned()
    } else {
        nanoseconds(ns)
    }
}
