//! Whether what the topology's checks say holds in a running lab.
//!
//! Each check is measured by commands in the nodes; what they print comes from guests, and is read as such.

mod measure;
mod path;
pub mod ping;
mod reachability;
pub mod throughput;

use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::{Map, Value};
use topology::model::{Check, CheckKind};

use crate::api::types::Node;
use crate::client::Client;

/// Between two tries of a check that may take a while to hold.
const PAUSE: Duration = Duration::from_millis(500);

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It holds.
    Passed,
    /// It does not.
    Failed,
    /// It could not be measured.
    Error,
}

/// What came of a check.
#[derive(Debug, Serialize)]
pub struct Result {
    /// The check's name.
    pub name: String,
    /// How it came out.
    pub outcome: Outcome,
    /// What was measured, or why nothing was, for people.
    pub detail: String,
    /// What was measured, for programs.
    pub measured: Map<String, Value>,
    /// Times it was tried.
    pub tries: u32,
    /// Seconds it took.
    pub seconds: f64,
}

/// What one try has measured.
#[derive(Debug)]
pub struct Measured {
    /// Whether the check holds.
    holds: bool,
    /// For people.
    pub detail: String,
    /// For programs.
    pub values: Map<String, Value>,
}

impl Measured {
    fn new(holds: bool, detail: impl Into<String>, values: Value) -> Self {
        let values = match values {
            Value::Object(values) => values,
            _ => Map::new(),
        };
        Self {
            holds,
            detail: detail.into(),
            values,
        }
    }
}

/// Runs a check until it holds or its time is up. `nodes` are those of the lab.
pub async fn run(client: &Client, check: &Check, nodes: &[Node]) -> Result {
    let begun = Instant::now();
    let mut tries = 0;
    loop {
        tries += 1;
        let measured = try_once(client, check, nodes).await;
        let (outcome, detail, values) = match measured {
            Ok(measured) if measured.holds => (Outcome::Passed, measured.detail, measured.values),
            Ok(measured) => (Outcome::Failed, measured.detail, measured.values),
            Err(why) => (Outcome::Error, why, Map::new()),
        };
        if outcome == Outcome::Passed || begun.elapsed() + PAUSE >= check.within {
            return Result {
                name: check.name.clone(),
                outcome,
                detail,
                measured: values,
                tries,
                seconds: begun.elapsed().as_secs_f64(),
            };
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// An error is why nothing could be measured.
async fn try_once(
    client: &Client,
    check: &Check,
    nodes: &[Node],
) -> std::result::Result<Measured, String> {
    match &check.kind {
        CheckKind::Ping(check) => ping::measure(client, check).await,
        CheckKind::Path(check) => path::measure(client, check, nodes).await,
        CheckKind::Throughput(check) => throughput::measure(client, check).await,
        CheckKind::Reachability(check) => reachability::measure(client, check).await,
    }
}
