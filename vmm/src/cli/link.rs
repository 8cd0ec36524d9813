//! `vmm link`: look at links, and change them while traffic runs.

use std::collections::BTreeMap;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::{Map, Value};
use topology::assignment;

use super::table::table;
use super::{Json, LabChoice, block_on, print, print_json};
use crate::api::types::{Link, LinkDirection};
use crate::client::Client;
use crate::failure::{Code, Failure, nearest};

/// Arguments of `vmm link`.
#[derive(Debug, Args)]
#[command(
    after_help = "A link is named by its name, by one of its ends (pc1:eth0), or by a node that has only one.\n\n\
Examples:\n  vmm link ls\n  vmm link set pc1:eth0 delay=20ms loss=1%\n  vmm link set pc1:eth0 --out rate=10Mbit queue.kind=codel\n  \
vmm link down r1:eth1\n  vmm link reset r1:eth1"
)]
pub struct LinkArgs {
    #[command(subcommand)]
    verb: LinkVerb,
}

#[derive(Debug, Subcommand)]
enum LinkVerb {
    /// List links: what they are set to, and what has happened on them
    #[command(after_help = "Example:\n  vmm link ls pc1")]
    Ls(LsArgs),
    /// Set attributes, all in one moment; docs/shaping.md has them
    #[command(
        after_help = "Examples:\n  vmm link set pc1 delay=20ms jitter=2ms loss=0.5%\n  vmm link set pc1:eth0 --in rate=2Mbit queue.limit=50packets\n  \
vmm link set a:eth0--b:eth0 forward.rate=10Mbit backward.rate=1Mbit"
    )]
    Set(SetArgs),
    /// Give a link its carrier back
    #[command(after_help = "Example:\n  vmm link up pc1:eth0")]
    Up(CarrierArgs),
    /// Take a link's carrier away; the guests see it
    #[command(after_help = "Example:\n  vmm link down pc1:eth0 --out")]
    Down(CarrierArgs),
    /// Make a link what the topology says; its schedule goes on
    #[command(after_help = "Example:\n  vmm link reset pc1:eth0")]
    Reset(ResetArgs),
}

#[derive(Debug, Args)]
struct LsArgs {
    /// Only these links
    links: Vec<String>,
    #[command(flatten)]
    lab: LabChoice,
    #[command(flatten)]
    json: Json,
}

/// Which link, and which of its directions.
#[derive(Debug, Args)]
struct Target {
    /// The link
    link: String,
    /// Only what the named end sends
    #[arg(long, conflicts_with = "into")]
    out: bool,
    /// Only what the named end receives
    #[arg(long = "in", id = "into")]
    into: bool,
    #[command(flatten)]
    lab: LabChoice,
    #[command(flatten)]
    json: Json,
}

#[derive(Debug, Args)]
struct SetArgs {
    #[command(flatten)]
    target: Target,
    /// As in a topology file: delay=20ms, queue.kind=codel, forward.rate=1Mbit
    #[arg(required = true, value_name = "ATTRIBUTE=VALUE")]
    attributes: Vec<String>,
}

#[derive(Debug, Args)]
struct CarrierArgs {
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, Args)]
struct ResetArgs {
    /// The link
    link: String,
    #[command(flatten)]
    lab: LabChoice,
    #[command(flatten)]
    json: Json,
}

impl LinkArgs {
    /// Whether errors are wanted as JSON.
    pub fn json(&self) -> bool {
        match &self.verb {
            LinkVerb::Ls(args) => args.json.json,
            LinkVerb::Set(args) => args.target.json.json,
            LinkVerb::Up(args) | LinkVerb::Down(args) => args.target.json.json,
            LinkVerb::Reset(args) => args.json.json,
        }
    }
}

pub fn run(args: &LinkArgs) -> Result<ExitCode, Failure> {
    block_on(async {
        match &args.verb {
            LinkVerb::Ls(args) => list(args).await,
            LinkVerb::Set(args) => {
                let words = args.attributes.iter().map(String::as_str);
                let set = assignment::object(words)
                    .map_err(|error| Failure::new(Code::Usage, error.to_string()))?;
                change(&args.target, set).await
            }
            LinkVerb::Up(args) => change(&args.target, carrier(true)).await,
            LinkVerb::Down(args) => change(&args.target, carrier(false)).await,
            LinkVerb::Reset(args) => {
                let client = Client::choose(args.lab.lab.as_deref())?;
                let links = client.links().await?;
                let name = &choose(&links, &args.link)?.link.name;
                let link = client.reset_link(name).await?;
                show(&[link], args.json.json)
            }
        }
    })?;
    Ok(ExitCode::SUCCESS)
}

fn carrier(up: bool) -> Map<String, Value> {
    Map::from_iter([("up".to_owned(), up.into())])
}

async fn list(args: &LsArgs) -> Result<(), Failure> {
    let client = Client::choose(args.lab.lab.as_deref())?;
    let links = client.links().await?;
    if args.links.is_empty() {
        return show(&links, args.json.json);
    }
    let chosen: Result<Vec<_>, _> = args
        .links
        .iter()
        .map(|name| Ok(choose(&links, name)?.link.clone()))
        .collect();
    show(&chosen?, args.json.json)
}

async fn change(target: &Target, set: Map<String, Value>) -> Result<(), Failure> {
    let client = Client::choose(target.lab.lab.as_deref())?;
    let links = client.links().await?;
    let chosen = choose(&links, &target.link)?;
    let set = if target.out || target.into {
        let Some(first) = chosen.is_first else {
            return Err(Failure::new(
                Code::Usage,
                format!("{} has two ends: whose --out or --in?", target.link),
            )
            .help(format!(
                "name one of {} and {}",
                chosen.link.forward.from, chosen.link.forward.to
            )));
        };
        let direction = if first == target.out {
            "forward"
        } else {
            "backward"
        };
        Map::from_iter([(direction.to_owned(), Value::Object(set))])
    } else {
        set
    };
    let link = client.set_link(&chosen.link.name, &set).await?;
    show(&[link], target.json.json)
}

/// A link that a person has named.
#[derive(Debug)]
pub struct Chosen<'a> {
    /// The link.
    pub link: &'a Link,
    /// Whether it was named by its first end; nothing if by neither.
    is_first: Option<bool>,
}

/// The link that a person means by its name, one of its ends, or a node that has only one.
pub fn choose<'a>(links: &'a [Link], name: &str) -> Result<Chosen<'a>, Failure> {
    if let Some(link) = links.iter().find(|link| link.name == name) {
        return Ok(Chosen {
            link,
            is_first: None,
        });
    }
    let ends = |link: &'a Link| [(link, true), (link, false)];
    let is_meant = |(link, first): &(&Link, bool)| {
        let end = if *first {
            &link.forward.from
        } else {
            &link.forward.to
        };
        end == name || end.split_once(':').is_some_and(|(node, _)| node == name)
    };
    let mut found: Vec<_> = links.iter().flat_map(ends).filter(is_meant).collect();
    match (found.pop(), found.is_empty()) {
        (Some((link, first)), true) => Ok(Chosen {
            link,
            is_first: Some(first),
        }),
        (Some(_), false) => Err(
            Failure::new(Code::NotFound, format!("{name} has several links"))
                .help("`vmm link ls` lists them; name one, or one of its ends"),
        ),
        (None, _) => {
            let missing = Failure::new(Code::NotFound, format!("there is no link {name}"));
            let ends = links.iter().flat_map(|link| {
                [&link.name, &link.forward.from, &link.forward.to].map(String::as_str)
            });
            Err(match nearest(name, ends) {
                Some(near) => missing.help(format!("did you mean {near}?")),
                None => missing.help("`vmm link ls` lists the links"),
            })
        }
    }
}

fn show(links: &[Link], json: bool) -> Result<(), Failure> {
    if json {
        return print_json(&links);
    }
    print(&link_table(links))
}

/// Both directions of links, for people.
pub fn link_table<'a>(links: impl IntoIterator<Item = &'a Link>) -> String {
    let directions = links
        .into_iter()
        .flat_map(|link| [&link.forward, &link.backward]);
    let rows: Vec<_> = directions.map(row).collect();
    if rows.is_empty() {
        return "the lab has no links\n".to_owned();
    }
    table(
        &["FROM", "TO", "IN", "OUT", "QUEUED", "DROPS", "SET TO"],
        &rows,
    )
}

/// Reasons and numbers, as far as there are any.
pub fn drops(drops: &BTreeMap<String, u64>) -> String {
    let drops = drops.iter().filter(|(_, count)| **count > 0);
    let drops: Vec<_> = drops
        .map(|(reason, count)| format!("{reason}={count}"))
        .collect();
    if drops.is_empty() {
        "-".to_owned()
    } else {
        drops.join(" ")
    }
}

fn row(direction: &LinkDirection) -> Vec<String> {
    let counters = &direction.counters;
    vec![
        direction.from.clone(),
        direction.to.clone(),
        counters.in_frames.to_string(),
        counters.out_frames.to_string(),
        counters.queued.to_string(),
        drops(&counters.drops),
        words(&direction.attributes),
    ]
}

/// Attributes as `vmm link set` takes them.
pub fn words(attributes: &Map<String, Value>) -> String {
    fn collect(prefix: &str, value: &Value, words: &mut Vec<String>) {
        match value {
            Value::Object(object) => {
                for (name, value) in object {
                    collect(&format!("{prefix}.{name}"), value, words);
                }
            }
            Value::String(text) => words.push(format!("{prefix}={text}")),
            other => words.push(format!("{prefix}={other}")),
        }
    }
    let mut all = Vec::new();
    for (name, value) in attributes {
        collect(name, value, &mut all);
    }
    all.join(" ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::types::LinkCounters;

    fn link(from: &str, to: &str) -> Link {
        let counters = json!({"in_frames": 0, "in_bytes": 0, "out_frames": 0, "out_bytes": 0, "drops": {},
            "duplicated": 0, "corrupted": 0, "marked": 0, "queued": 0, "queued_max": 0,
            "lateness": {"count": 0, "p50": 0, "p99": 0, "max": 0}});
        let direction = |from: &str, to: &str| LinkDirection {
            from: from.to_owned(),
            to: to.to_owned(),
            attributes: Map::new(),
            counters: serde_json::from_value::<LinkCounters>(counters.clone()).unwrap(),
        };
        Link {
            name: format!("{from}--{to}"),
            forward: direction(from, to),
            backward: direction(to, from),
        }
    }

    #[test]
    fn a_link_is_named_by_what_a_person_sees() {
        let links = [link("pc1:eth0", "r1:eth0"), link("r1:eth1", "lan:0")];
        let chosen = |name| {
            choose(&links, name)
                .map(|chosen| (chosen.link.name.as_str(), chosen.is_first))
                .map_err(|failure| failure.help.unwrap())
        };
        let first = "pc1:eth0--r1:eth0";
        assert_eq!(chosen(first), Ok((first, None)));
        assert_eq!(chosen("pc1"), Ok((first, Some(true))));
        assert_eq!(chosen("r1:eth0"), Ok((first, Some(false))));
        assert_eq!(chosen("lan"), Ok(("r1:eth1--lan:0", Some(false))));
        assert!(chosen("r1").unwrap_err().contains("vmm link ls"));
        assert_eq!(chosen("pc1:eht0"), Err("did you mean pc1:eth0?".to_owned()));
    }

    #[test]
    fn attributes_are_shown_as_they_are_typed() {
        let set = json!({"delay": "5ms", "queue": {"kind": "codel", "ecn": false}, "up": false});
        let shown = words(set.as_object().unwrap());
        assert_eq!(shown, "delay=5ms queue.kind=codel queue.ecn=false up=false");
        let typed = assignment::object(shown.split(' ')).unwrap();
        assert_eq!(Value::Object(typed), set);
    }
}
