//! Commands that measure.

use std::time::Duration;

use crate::client::Client;
use crate::sanitize;
use crate::session::{self, Collected};

/// What no measurement prints more than.
const OUTPUT: usize = 1 << 20;
/// What a command may take beyond what it measures: its node may be an emulated processor on a busy machine.
const MARGIN: Duration = Duration::from_mins(1);

/// Runs a command that measures for `time`; an error if it does not end.
pub async fn run(
    client: &Client,
    node: &str,
    argv: &[&str],
    time: Duration,
) -> Result<Collected, String> {
    let program = argv.first().copied().unwrap_or_default();
    let collected =
        tokio::time::timeout(time + MARGIN, session::collect(client, node, argv, OUTPUT))
            .await
            .map_err(|_| format!("{program} in node {node} does not end"))?
            .map_err(|failure| failure.message)?;
    match collected.status {
        126 | 127 => Err(format!("node {node}: {}", words(&collected.stderr))),
        _ => Ok(collected),
    }
}

/// What a command has said about itself, on one line.
pub fn words(bytes: &[u8]) -> String {
    let text = sanitize::lossy(bytes);
    let words: Vec<_> = text.split_whitespace().collect();
    words.join(" ")
}

/// Milliseconds as people read them.
pub fn milliseconds(ms: f64) -> String {
    if ms < 10.0 {
        format!("{ms:.3} ms")
    } else {
        format!("{ms:.1} ms")
    }
}
