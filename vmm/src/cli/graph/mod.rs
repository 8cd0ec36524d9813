//! `vmm graph`: a picture of a lab, running or on file.

mod layout;
mod svg;
mod text;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use serde_json::{Map, Value};
use topology::model::Topology;

use super::link::words;
use super::ls::kind;
use super::{LabChoice, block_on, print};
use crate::api::types::{
    EngineName, IsolationLevel, Kind, Lab, Link, LinkDirection, Node, NodeState,
};
use crate::client::Client;
use crate::failure::{Code, Failure};
use crate::lab::links::as_written;
use crate::lab::view::{self, Terms};

/// Arguments of `vmm graph`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  vmm graph > lab.svg\n  vmm graph configs/imunes-figure3.json > figure3.svg\n  vmm graph --format mermaid\n  \
vmm graph --format dot | dot -Tpdf -o lab.pdf"
)]
pub struct GraphArgs {
    /// Draw this topology file instead of a running lab
    file: Option<PathBuf>,
    /// What to write
    #[arg(short, long, value_enum, default_value_t = Format::Svg)]
    format: Format,
    #[command(flatten)]
    lab: LabChoice,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A picture for browsers and documents
    Svg,
    /// Text that GitHub and others draw in a page
    Mermaid,
    /// Text for Graphviz
    Dot,
}

pub fn run(args: &GraphArgs) -> Result<ExitCode, Failure> {
    let graph = if let Some(file) = &args.file {
        match Topology::load(file) {
            Ok(loaded) => of_topology(&loaded.topology),
            Err(report) => {
                eprint!("{}", report.render(std::io::stderr().is_terminal()));
                return Ok(ExitCode::from(Code::Topology as u8));
            }
        }
    } else {
        let client = Client::choose(args.lab.lab.as_deref())?;
        block_on(async { Ok(of_lab(&client.lab().await?, &client.links().await?)) })?
    };
    print(&match args.format {
        Format::Svg => svg::draw(&graph),
        Format::Mermaid => text::mermaid(&graph),
        Format::Dot => text::dot(&graph),
    })?;
    Ok(ExitCode::SUCCESS)
}

/// What is drawn.
#[derive(Debug, Clone, PartialEq)]
struct Graph {
    title: String,
    nodes: Vec<Vertex>,
    links: Vec<Edge>,
}

/// A node.
#[derive(Debug, Clone, PartialEq)]
struct Vertex {
    name: String,
    kind: Kind,
    /// What is not as it should be.
    trouble: Option<NodeState>,
    /// Below the name.
    lines: Vec<String>,
}

/// A link.
#[derive(Debug, Clone, PartialEq)]
struct Edge {
    /// Places in the list of nodes.
    nodes: [usize; 2],
    /// The interface or port at each end; empty where there is nothing to say.
    ends: [String; 2],
    /// Its attributes.
    lines: Vec<String>,
    up: bool,
}

impl Vertex {
    /// Name and kind in one line.
    fn title(&self) -> String {
        match self.trouble {
            Some(state) => format!("{} ({})", self.name, super::ls::state(state)),
            None => self.name.clone(),
        }
    }
}

fn of_lab(lab: &Lab, links: &[Link]) -> Graph {
    let trouble = |state: NodeState| (!matches!(state, NodeState::Ready)).then_some(state);
    draw(
        &lab.name,
        lab.nodes
            .iter()
            .map(|node| vertex(node, trouble(node.state)))
            .collect(),
        links,
    )
}

/// A picture tells none of these.
const TERMS: Terms = Terms {
    engine: EngineName::Kvm,
    isolation: IsolationLevel::None,
    group_missing: false,
};

fn of_topology(topology: &Topology) -> Graph {
    let nodes = topology
        .nodes
        .iter()
        .map(|node| vertex(&view::node(node, TERMS), None));
    let links = as_written(topology);
    draw(&topology.name, nodes.collect(), &links)
}

/// Interfaces shown of a node.
const FEW: usize = 6;

fn vertex(node: &Node, trouble: Option<NodeState>) -> Vertex {
    let addressed = node
        .interfaces
        .iter()
        .filter(|interface| !interface.addresses.is_empty());
    let mut lines: Vec<_> = addressed
        .flat_map(|interface| {
            let addresses = interface.addresses.iter();
            addresses.map(|address| format!("{} {address}", interface.name))
        })
        .collect();
    if lines.len() > FEW + 1 {
        let more = lines.len() - FEW;
        lines.truncate(FEW);
        lines.push(format!("… {more} more"));
    }
    lines.extend(node.external.clone());
    if matches!(node.kind, Kind::Switch | Kind::Hub) {
        lines.push(kind(node.kind).to_owned());
    }
    Vertex {
        name: node.name.clone(),
        kind: node.kind,
        trouble,
        lines,
    }
}

/// Attributes in lines of a bearable width. Parameters of queues are for other places.
fn shown(attributes: &Map<String, Value>) -> Vec<String> {
    const WIDTH: usize = 32;
    let all = words(attributes);
    let matters = |word: &&str| {
        !word.starts_with("up=")
            && (!word.starts_with("queue.")
                || word.starts_with("queue.kind")
                || word.starts_with("queue.limit"))
    };
    let mut lines: Vec<String> = Vec::new();
    for word in all
        .split(' ')
        .filter(|word| !word.is_empty())
        .filter(matters)
    {
        match lines.last_mut() {
            Some(line) if line.len() + 1 + word.len() <= WIDTH => line.extend([" ", word]),
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

fn draw(title: &str, nodes: Vec<Vertex>, links: &[Link]) -> Graph {
    let place = |end: &str| {
        let (name, interface) = end.split_once(':').unwrap_or((end, ""));
        let place = nodes.iter().position(|node| node.name == name)?;
        Some((place, interface.to_owned()))
    };
    let links = links.iter().filter_map(|link| {
        let (from, at) = place(&link.forward.from)?;
        let (to, there) = place(&link.forward.to)?;
        let up =
            |direction: &LinkDirection| direction.attributes.get("up").is_none_or(|up| up != false);
        let set = [&link.forward, &link.backward].map(|direction| shown(&direction.attributes));
        let [forward, backward] = set;
        let lines = if forward == backward {
            forward
        } else {
            let way = |end: &str, set: Vec<String>| {
                let (name, _) = end.split_once(':').unwrap_or((end, ""));
                let first = (!set.is_empty()).then(|| format!("from {name}:"));
                first.into_iter().chain(set)
            };
            way(&link.forward.from, forward)
                .chain(way(&link.backward.from, backward))
                .collect()
        };
        Some(Edge {
            nodes: [from, to],
            ends: [at, there],
            lines,
            up: up(&link.forward) && up(&link.backward),
        })
    });
    Graph {
        title: title.to_owned(),
        links: links.collect(),
        nodes,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn graph(text: &str) -> Graph {
        of_topology(
            &Topology::parse(text, Path::new("lab.json"))
                .unwrap()
                .topology,
        )
    }

    const LAB: &str = r#"{"name": "two", "nodes": {
        "pc1": {"kind": "host", "interfaces": {"eth0": {"addresses": ["10.0.0.1/24"]}}},
        "pc2": {"kind": "host"}, "lan": {"kind": "switch"}},
        "links": [{"endpoints": ["pc1:eth0", "lan"], "delay": "5ms", "forward": {"rate": "1Mbit"}, "backward": {"up": false}},
                  {"endpoints": ["pc2:eth0", "lan"], "loss": "1%"}]}"#;

    #[test]
    fn a_file_is_drawn_with_names_addresses_and_attributes() {
        let graph = graph(LAB);
        assert_eq!(graph.nodes[0].lines, ["eth0 10.0.0.1/24"]);
        assert_eq!(graph.nodes[2].lines, ["switch"]);
        assert_eq!(graph.links[0].nodes, [0, 2]);
        assert_eq!(graph.links[0].ends, ["eth0", "0"]);
        assert_eq!(
            graph.links[0].lines,
            [
                "from pc1:",
                "rate=1Mbit delay=5ms",
                "from lan:",
                "delay=5ms"
            ]
        );
        assert!(!graph.links[0].up && graph.links[1].up);
        assert_eq!(graph.links[1].lines, ["loss=1%"]);
    }

    #[test]
    fn every_format_shows_all_of_it() {
        let graph = graph(LAB);
        for picture in [svg::draw(&graph), text::mermaid(&graph), text::dot(&graph)] {
            for word in [
                "pc1",
                "pc2",
                "lan",
                "10.0.0.1/24",
                "rate=1Mbit delay=5ms",
                "loss=1%",
            ] {
                assert!(picture.contains(word), "no {word} in {picture}");
            }
        }
    }
}
