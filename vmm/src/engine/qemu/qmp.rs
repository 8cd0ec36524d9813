//! QEMU's machine protocol, as far as it tells how a guest ended.

use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

use super::command_line;
use crate::lab::links::Carriers;

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

/// Connects to a QEMU, which may be starting, keeps the carriers of its NICs as they are to be, and listens until it ends: what did
/// the guest do?
pub async fn watch(socket: &Path, mut carriers: Carriers) -> Option<Shutdown> {
    let stream = loop {
        match UnixStream::connect(socket).await {
            Ok(stream) => break stream,
            Err(_) => tokio::time::sleep(RETRY).await,
        }
    };
    let (reader, mut writer) = stream.into_split();
    // Events come once the capabilities have been negotiated. If writing fails, so does reading.
    let _ = writer
        .write_all(b"{\"execute\":\"qmp_capabilities\"}\n")
        .await;
    let mut lines = BufReader::new(reader).lines();
    let mut shutdown = None;
    // QEMU's NICs start with a carrier, but it may have been told of others before.
    let mut known = vec![None; carriers.borrow().len()];
    carriers.mark_changed();
    loop {
        tokio::select! {
            line = lines.next_line() => match line {
                Ok(Some(line)) => shutdown = parse(&line).or(shutdown),
                _ => return shutdown,
            },
            Ok(()) = carriers.changed() => {
                let now = carriers.borrow_and_update().clone();
                for command in set_links(&mut known, &now) {
                    let _ = writer.write_all(command.as_bytes()).await;
                }
            }
        }
    }
}

/// The commands that make the carriers `now` of those that are `known`.
fn set_links(known: &mut [Option<bool>], now: &[bool]) -> Vec<String> {
    let nics = known.iter_mut().zip(now).enumerate();
    nics.filter_map(|(nic, (known, up))| (known.replace(*up) != Some(*up)).then_some((nic, up)))
        .map(|(nic, up)| {
            let name = command_line::netdev(nic);
            let arguments = json!({"name": name, "up": up});
            format!(
                "{}\n",
                json!({"execute": "set_link", "arguments": arguments})
            )
        })
        .collect()
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
    fn carriers_are_set_once() {
        let mut known = [Some(true), None, Some(false)];
        let commands = set_links(&mut known, &[true, false, true]);
        let command = |name: &str, up: bool| {
            format!(
                "{{\"execute\":\"set_link\",\"arguments\":{{\"name\":\"{name}\",\"up\":{up}}}}}\n"
            )
        };
        assert_eq!(commands, [command("net1", false), command("net2", true)]);
        assert!(set_links(&mut known, &[true, false, true]).is_empty());
    }

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
