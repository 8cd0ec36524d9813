//! The links of a running lab: what they are set to, and which NICs have a carrier.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::watch;
use topology::model::{Endpoint, NodeKind, Topology};

use super::switch::News;
use crate::api::types::{Link, LinkCounters, LinkDirection};

/// How long the switch may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// The most bytes an answer of the switch may have.
const MAX_ANSWER: u64 = 64 << 20;

/// Which NICs of a node have a carrier, in the order of its interfaces.
pub type Carriers = watch::Receiver<Vec<bool>>;

/// The links of a lab.
#[derive(Debug)]
pub struct Links {
    ends: Vec<Ends>,
    /// Of the machines, by name.
    carriers: HashMap<String, watch::Sender<Vec<bool>>>,
    switch: PathBuf,
}

#[derive(Debug)]
struct Ends {
    name: String,
    /// For people: `node:interface`, of a switch or hub `node:port`, or just the name of an external node.
    names: [String; 2],
    /// The NIC at each end, if it is a machine's: the node's name, and its number there.
    nics: [Option<(String, usize)>; 2],
}

/// Why the switch does not do what it is asked for.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// There is no such link.
    #[error("there is no link called {0}")]
    Unknown(String),
    /// It says what is wrong.
    #[error("{0}")]
    Refused(String),
    /// It does not answer.
    #[error("the switch does not answer: {0}")]
    Silent(String),
}

/// What the switch counts of a link.
#[derive(Debug, Deserialize)]
struct Counted {
    attributes: [Map<String, Value>; 2],
    directions: [LinkCounters; 2],
}

impl Links {
    /// The links of `topology`, whose switch answers on `switch`.
    pub fn new(topology: &Topology, switch: PathBuf) -> Self {
        let carriers = topology.nodes.iter().filter_map(|node| match &node.kind {
            NodeKind::Machine(machine) => {
                let nics = vec![true; machine.interfaces.len()];
                Some((node.name.clone(), watch::Sender::new(nics)))
            }
            NodeKind::Switch(_) | NodeKind::Hub | NodeKind::External(_) => None,
        });
        let links = Self {
            carriers: carriers.collect(),
            ends: topology
                .links
                .iter()
                .map(|link| Ends {
                    name: link.name.clone(),
                    names: link.ends.each_ref().map(|end| end_name(topology, end)),
                    nics: link.ends.map(|end| nic(topology, end)),
                })
                .collect(),
            switch,
        };
        for (link, ends) in topology.links.iter().zip(&links.ends) {
            for (direction, attributes) in link.directions.iter().enumerate() {
                links.set_carrier(ends, direction, attributes.up);
            }
        }
        links
    }

    /// Which NICs of a node have a carrier; `None` if it is no machine.
    pub fn carriers(&self, node: &str) -> Option<Carriers> {
        Some(self.carriers.get(node)?.subscribe())
    }

    /// Passes on what the switch tells.
    pub fn hear(&self, news: &News) {
        let News::Carrier {
            link,
            direction,
            up,
        } = news;
        if let Some(ends) = self.ends.iter().find(|ends| ends.name == *link) {
            self.set_carrier(ends, *direction, *up);
        }
    }

    /// A NIC has a carrier when light arrives: when the direction that leads to it is up.
    fn set_carrier(&self, ends: &Ends, direction: usize, up: bool) {
        let Some(Some((node, nic))) = ends.nics.get(1 - direction.min(1)) else {
            return;
        };
        if let Some(carriers) = self.carriers.get(node) {
            carriers.send_if_modified(|nics| match nics.get_mut(*nic) {
                Some(nic) if *nic != up => {
                    *nic = up;
                    true
                }
                _ => false,
            });
        }
    }

    /// Names of the links.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.ends.iter().map(|ends| ends.name.as_str())
    }

    /// All links as they are now.
    pub async fn list(&self) -> Result<Vec<Link>, LinkError> {
        #[derive(Deserialize)]
        struct Stats {
            links: Vec<Counted>,
        }
        let answer = self.ask(&json!({"op": "stats"})).await?;
        let strange = |error: serde_json::Error| LinkError::Silent(error.to_string());
        let stats: Stats = serde_json::from_value(answer["stats"].clone()).map_err(strange)?;
        let links = self.ends.iter().zip(stats.links);
        Ok(links
            .map(|(ends, counted)| describe(ends, counted))
            .collect())
    }

    /// One link as it is now.
    pub async fn find(&self, name: &str) -> Result<Link, LinkError> {
        let links = self.list().await?;
        let link = links.into_iter().find(|link| link.name == name);
        link.ok_or_else(|| LinkError::Unknown(name.to_owned()))
    }

    /// Sets attributes of a link, all in one moment; they hold when this returns.
    pub async fn set(&self, name: &str, set: &Map<String, Value>) -> Result<(), LinkError> {
        self.known(name)?;
        self.ask(&json!({"op": "set", "link": name, "set": set}))
            .await
            .map(drop)
    }

    /// Makes a link what the topology says.
    pub async fn reset(&self, name: &str) -> Result<(), LinkError> {
        self.known(name)?;
        self.ask(&json!({"op": "reset", "link": name}))
            .await
            .map(drop)
    }

    fn known(&self, name: &str) -> Result<(), LinkError> {
        if self.names().any(|link| link == name) {
            Ok(())
        } else {
            Err(LinkError::Unknown(name.to_owned()))
        }
    }

    async fn ask(&self, request: &Value) -> Result<Value, LinkError> {
        let answer = tokio::time::timeout(PATIENCE, self.exchange(request)).await;
        let silent = |why: String| LinkError::Silent(why);
        let answer = answer
            .map_err(|_| silent(format!("nothing within {} s", PATIENCE.as_secs())))?
            .map_err(|error| silent(error.to_string()))?;
        match answer["error"].as_str() {
            Some(error) => Err(LinkError::Refused(error.to_owned())),
            None => Ok(answer),
        }
    }

    async fn exchange(&self, request: &Value) -> std::io::Result<Value> {
        let mut stream = UnixStream::connect(&self.switch).await?;
        stream.write_all(format!("{request}\n").as_bytes()).await?;
        let mut line = Vec::new();
        let mut answer = BufReader::new(stream.take(MAX_ANSWER));
        answer.read_until(b'\n', &mut line).await?;
        Ok(serde_json::from_slice(&line)?)
    }
}

fn describe(ends: &Ends, counted: Counted) -> Link {
    let [first, second] = &ends.names;
    let [there, back] = counted.attributes;
    let [there_counters, back_counters] = counted.directions;
    let direction = |from: &String, to: &String, attributes, counters| LinkDirection {
        from: from.clone(),
        to: to.clone(),
        attributes,
        counters,
    };
    Link {
        name: ends.name.clone(),
        forward: direction(first, second, there, there_counters),
        backward: direction(second, first, back, back_counters),
    }
}

fn nic(topology: &Topology, end: Endpoint) -> Option<(String, usize)> {
    let node = &topology.nodes[end.node];
    matches!(node.kind, NodeKind::Machine(_)).then(|| (node.name.clone(), end.port))
}

fn end_name(topology: &Topology, end: &Endpoint) -> String {
    let node = &topology.nodes[end.node];
    match &node.kind {
        NodeKind::Machine(machine) => {
            format!("{}:{}", node.name, machine.interfaces[end.port].name)
        }
        NodeKind::Switch(_) | NodeKind::Hub => format!("{}:{}", node.name, end.port),
        NodeKind::External(_) => node.name.clone(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_nic_has_a_carrier_when_the_direction_to_it_is_up() {
        let text = r#"{"nodes": {"a": {"kind": "host"}, "b": {"kind": "host"}, "s": {"kind": "switch"}},
            "links": [{"endpoints": ["a:eth0", "b:eth0"], "forward": {"up": false}}, {"endpoints": ["a:eth1", "s"]}]}"#;
        let topology = Topology::parse(text, Path::new("lab.json"))
            .unwrap()
            .topology;
        let links = Links::new(&topology, PathBuf::new());
        let carriers = |node: &str| links.carriers(node).map(|nics| nics.borrow().clone());
        assert_eq!(carriers("a"), Some(vec![true, true]));
        assert_eq!(carriers("b"), Some(vec![false]));
        assert_eq!(carriers("s"), None);
        let carrier = |link: &str, direction, up| {
            links.hear(&News::Carrier {
                link: link.to_owned(),
                direction,
                up,
            });
        };
        carrier("a:eth0--b:eth0", 0, true);
        carrier("a:eth1--s:0", 1, false);
        assert_eq!(carriers("a"), Some(vec![true, false]));
        assert_eq!(carriers("b"), Some(vec![true]));
        // What is none of ours changes nothing.
        carrier("a:eth1--s:0", 7, false);
        carrier("b:eth1--s", 0, false);
        assert_eq!(carriers("a"), Some(vec![true, false]));
    }
}
