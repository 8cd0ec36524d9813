//! QEMU's machine protocol, as far as it tells how a guest ended.

use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

/// Between two attempts to connect to a QEMU that is starting.
const RETRY: Duration = Duration::from_millis(20);

/// Why QEMU shut down, as far as the guest was the cause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shutdown {
    /// The guest switched itself off.
    PowerOff,
    /// The machine was to be reset.
    Reset,
    /// The guest's kernel said that it had panicked.
    Panic,
}

#[derive(Debug, Deserialize)]
struct Message {
    event: String,
    #[serde(default)]
    data: Data,
}

#[derive(Debug, Default, Deserialize)]
struct Data {
    #[serde(default)]
    reason: String,
}

/// Connects to a QEMU that is starting, and listens until it ends: what did the guest do?
pub async fn watch(socket: &Path) -> Option<Shutdown> {
    let stream = loop {
        match UnixStream::connect(socket).await {
            Ok(stream) => break stream,
            Err(_) => tokio::time::sleep(RETRY).await,
        }
    };
    let mut stream = BufReader::new(stream);
    // Events come once the capabilities have been negotiated. If writing fails, so does reading.
    let _ = stream
        .write_all(b"{\"execute\":\"qmp_capabilities\"}\n")
        .await;
    let mut lines = stream.lines();
    let mut shutdown = None;
    while let Ok(Some(line)) = lines.next_line().await {
        shutdown = parse(&line).or(shutdown);
    }
    shutdown
}

fn parse(line: &str) -> Option<Shutdown> {
    let message: Message = serde_json::from_str(line).ok()?;
    match (message.event.as_str(), message.data.reason.as_str()) {
        ("GUEST_PANICKED", _) | ("SHUTDOWN", "guest-panic") => Some(Shutdown::Panic),
        ("SHUTDOWN", "guest-shutdown") => Some(Shutdown::PowerOff),
        ("SHUTDOWN", "guest-reset") => Some(Shutdown::Reset),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_guest_did_counts() {
        let shutdown = |reason: &str| {
            parse(&format!(
                r#"{{"timestamp":{{"seconds":1,"microseconds":2}},"event":"SHUTDOWN","data":{{"guest":true,"reason":"{reason}"}}}}"#
            ))
        };
        assert_eq!(shutdown("guest-shutdown"), Some(Shutdown::PowerOff));
        assert_eq!(shutdown("guest-reset"), Some(Shutdown::Reset));
        assert_eq!(shutdown("guest-panic"), Some(Shutdown::Panic));
        assert_eq!(shutdown("host-signal"), None);
        let panicked = r#"{"event":"GUEST_PANICKED","data":{"action":"poweroff"}}"#;
        assert_eq!(parse(panicked), Some(Shutdown::Panic));
        assert_eq!(parse(r#"{"return":{}}"#), None);
    }
}
