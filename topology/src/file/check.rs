//! Checks of the running lab, as a person writes them.

use schemars::JsonSchema;

use crate::quantity::{Probability, Rate, Time};

/// Something that should hold in the running lab; `vmm verify` looks.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(tag = "kind")]
pub enum Check {
    /// Echo requests are answered, or not.
    Ping(Ping),
    /// Packets take this way, as traceroute sees it.
    Path(Way),
    /// TCP is as fast as this, by iperf3.
    Throughput(Throughput),
    /// All nodes reach each other.
    Reachability(Reachability),
}

/// Echo requests are answered, or not.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Ping {
    /// For people, unique; default: made of the rest.
    pub name: Option<String>,
    /// It is tried again until so much time has passed, up to 60min; default 0s: once.
    pub within: Option<Time>,
    /// The node that sends.
    pub from: String,
    /// A node, `node:interface` or an address.
    pub to: String,
    /// How many, 1 to 1000; default 3.
    pub count: Option<u64>,
    /// The most that may get lost; default 0%.
    pub loss: Option<Probability>,
    /// The least the median round trip may take.
    pub min_rtt: Option<Time>,
    /// The most the median round trip may take.
    pub max_rtt: Option<Time>,
    /// Whether there should be answers; default `reachable`.
    pub expect: Option<Expect>,
}

/// Whether there should be answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Expect {
    /// There should.
    Reachable,
    /// There should be none.
    Unreachable,
}

/// Packets take this way, as traceroute sees it.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Way {
    /// For people, unique; default: made of the rest.
    pub name: Option<String>,
    /// It is tried again until so much time has passed, up to 60min; default 0s: once.
    pub within: Option<Time>,
    /// The node that sends.
    pub from: String,
    /// A node, `node:interface` or an address.
    pub to: String,
    /// The hops before it, nodes or addresses; none for neighbours.
    pub via: Vec<String>,
}

/// TCP is as fast as this, by iperf3.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Throughput {
    /// For people, unique; default: made of the rest.
    pub name: Option<String>,
    /// It is tried again until so much time has passed, up to 60min; default 0s: once.
    pub within: Option<Time>,
    /// The node that sends.
    pub from: String,
    /// The node that receives, or one of its interfaces as `node:interface`.
    pub to: String,
    /// The least that arrives, without headers.
    pub min: Option<Rate>,
    /// The most that arrives, without headers.
    pub max: Option<Rate>,
    /// How long it sends, whole seconds, 1s to 3600s; default 5s.
    pub time: Option<Time>,
}

/// All nodes reach each other.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Reachability {
    /// For people, unique; default: made of the rest.
    pub name: Option<String>,
    /// It is tried again until so much time has passed, up to 60min; default 0s: once.
    pub within: Option<Time>,
    /// The nodes; default: all hosts and routers with addresses.
    pub nodes: Option<Vec<String>>,
    /// Pairs of nodes, the first of which must not reach the second.
    #[serde(default)]
    pub except: Vec<[String; 2]>,
}
