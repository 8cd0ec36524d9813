//! Engine `kvm`: `vmm node`, this same program, which runs the monitor.

use std::process::Stdio;

use monitor::NodeConfig;
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWriteExt, BufReader};
use tokio::process::Command;

use super::{Guest, SpawnError, start};
use crate::api::types::{End, EndReason};
use crate::lab::children::LastWords;
use crate::sanitize;

/// The last line that `vmm node` prints.
#[derive(Debug, Deserialize)]
struct Ended {
    reason: EndReason,
    #[serde(default)]
    detail: String,
}

pub fn spawn(config: &NodeConfig) -> Result<Guest, SpawnError> {
    let program = std::env::current_exe().map_err(|error| SpawnError {
        program: "vmm".into(),
        error,
    })?;
    let mut command = Command::new(&program);
    command
        .args(["node", "--config", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let (mut child, pid) = start(command)?;
    let (Some(mut stdin), Some(stdout), Some(stderr)) =
        (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        unreachable!("all three were asked for");
    };
    let config = serde_json::to_vec(config).map_err(|error| SpawnError {
        program,
        error: error.into(),
    })?;
    tokio::spawn(async move {
        // A monitor that does not read ends, and says why.
        let _ = stdin.write_all(&config).await;
    });
    let last_words = LastWords::listen(stderr);
    Ok(Guest::attend(
        child,
        pid,
        tokio::spawn(story(stdout)),
        last_words,
    ))
}

/// Reads the monitor's events to their end.
async fn story(stdout: impl AsyncRead + Unpin) -> Option<End> {
    let mut lines = BufReader::new(stdout).lines();
    let mut end = None;
    while let Ok(Some(line)) = lines.next_line().await {
        if let Ok(Ended { reason, detail }) = serde_json::from_str(&line) {
            let detail = sanitize::text(&detail);
            end = Some(End { reason, detail });
        }
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_end_is_read_from_the_events() {
        let events = r#"{"event":"started"}
{"event":"ended","reason":"triple-fault","detail":"vCPU 0"}
"#;
        let end = story(events.as_bytes()).await.unwrap();
        assert_eq!(
            (end.reason, end.detail.as_str()),
            (EndReason::TripleFault, "vCPU 0")
        );
        assert_eq!(story(&b"{\"event\":\"started\"}\n"[..]).await, None);
    }
}
