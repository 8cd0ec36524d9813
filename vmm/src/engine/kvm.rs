//! Engine `kvm`: `vmm node`, this same program, which runs the monitor.

use std::io;

use monitor::{NodeConfig, Order, SERIAL_INPUT};
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::sync::mpsc;

use super::{Console, Ground, Guest, SpawnError, pipes, start, this_program};
use crate::api::types::{End, EndReason};
use crate::lab::children::LastWords;
use crate::lab::links::Carriers;
use crate::process::{Command, Process};
use crate::sanitize;

/// The last line that `vmm node` prints.
#[derive(Debug, Deserialize)]
struct Ended {
    reason: EndReason,
    #[serde(default)]
    detail: String,
}

pub fn spawn(
    config: &NodeConfig,
    mut carriers: Carriers,
    ground: &Ground,
) -> Result<Guest, SpawnError> {
    let program = this_program()?;
    let mut command = Command::new(&program)
        .arguments(["node", "--config", "-"])
        .with_stdin();
    if let Some(plan) = ground.isolation.monitor_plan(&ground.ports) {
        let text = serde_json::to_string(&plan).unwrap_or_default();
        command = command
            .arguments(["--jail", &text])
            .users(ground.isolation.users_of(&plan));
    }
    let namespaces = ground.isolation.of_machines();
    let child = start(command, &program, &config.name, ground, namespaces)?;
    let mut config = config.clone();
    for (nic, up) in config
        .nics
        .iter_mut()
        .zip(carriers.borrow_and_update().iter())
    {
        nic.carrier = *up;
    }
    attend(child, Some(config), carriers)
}

/// Attends a monitor that is to be told its `config`, or was told it by another lab process.
pub fn attend(
    mut child: Process,
    config: Option<NodeConfig>,
    carriers: Carriers,
) -> Result<Guest, SpawnError> {
    let (stdin, stdout, stderr) = pipes(&mut child, "vmm".as_ref())?;
    let last_words = LastWords::listen(stderr);
    let (console, typed) = Console::new();
    // Its end is the end of the monitor: nothing else would end it.
    let instruct = tokio::spawn(async move {
        // A monitor that does not read ends, and says why.
        let _ = instruct(stdin, config.as_ref(), carriers, typed).await;
    });
    let story = tokio::spawn(async move {
        let end = story(stdout).await;
        instruct.abort();
        end
    });
    Ok(Guest::attend(child, console, story, last_words, |_| None))
}

/// Tells the monitor what to run, if it does not run that already, and from then on which NICs have a carrier and what is typed on the
/// serial port.
async fn instruct(
    mut monitor: impl AsyncWrite + Unpin,
    config: Option<&NodeConfig>,
    mut carriers: Carriers,
    mut typed: mpsc::Receiver<Vec<u8>>,
) -> io::Result<()> {
    // What was told of carriers by another lab process is not known.
    let mut known = vec![None; carriers.borrow().len()];
    match config {
        Some(config) => {
            for (known, nic) in known.iter_mut().zip(&config.nics) {
                *known = Some(nic.carrier);
            }
            monitor.write_all(&line(config)?).await?;
        }
        None => carriers.mark_changed(),
    }
    loop {
        tokio::select! {
            changed = carriers.changed() => {
                if changed.is_err() {
                    return Ok(());
                }
            }
            Some(bytes) = typed.recv() => {
                let parts = bytes.chunks(SERIAL_INPUT).map(<[u8]>::to_vec);
                // Nothing typed tells that somebody looks.
                let parts = if bytes.is_empty() { vec![bytes] } else { parts.collect() };
                for bytes in parts {
                    monitor.write_all(&line(&Order::Serial { bytes })?).await?;
                }
                continue;
            }
        }
        let now = carriers.borrow_and_update().clone();
        for (nic, (known, up)) in known.iter_mut().zip(now).enumerate() {
            if known.replace(up) != Some(up) {
                monitor
                    .write_all(&line(&Order::Carrier { nic, up })?)
                    .await?;
            }
        }
    }
}

fn line(value: &impl serde::Serialize) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    Ok(line)
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
    use monitor::NicConfig;
    use tokio::sync::watch;

    use super::*;

    #[tokio::test]
    async fn a_monitor_hears_of_each_change_of_a_carrier_once() {
        let (lab, carriers) = watch::channel(vec![true, false]);
        let nic = |carrier| NicConfig {
            socket: "/nonexistent".into(),
            mac: "02:00:00:00:00:01".into(),
            mtu: 1500,
            queue_size: 256,
            carrier,
        };
        let config = NodeConfig {
            name: "a".into(),
            kernel: "/nonexistent".into(),
            rootfs: "/nonexistent".into(),
            memory: 64 << 20,
            vcpus: 1,
            nics: vec![nic(true), nic(false)],
            agent_socket: "/nonexistent".into(),
            serial_log: "/nonexistent".into(),
            cmdline: None,
        };
        let (monitor, ours) = tokio::io::duplex(1 << 16);
        let (console, typed) = Console::new();
        let lines =
            tokio::spawn(async move { instruct(ours, Some(&config), carriers, typed).await });
        let mut lines_in = BufReader::new(monitor).lines();
        let read: NodeConfig =
            serde_json::from_str(&lines_in.next_line().await.unwrap().unwrap()).unwrap();
        assert_eq!((read.nics[0].carrier, read.nics[1].carrier), (true, false));
        lab.send(vec![true, true]).unwrap();
        let order = lines_in.next_line().await.unwrap().unwrap();
        assert_eq!(order, r#"{"carrier":{"nic":1,"up":true}}"#);
        assert!(console.type_in(vec![b'a'; SERIAL_INPUT + 1]).await);
        let parts = [SERIAL_INPUT, 1];
        for part in parts {
            let order = lines_in.next_line().await.unwrap().unwrap();
            let bytes = vec![b'a'; part];
            let order: Order = serde_json::from_str(&order).unwrap();
            assert_eq!(order, Order::Serial { bytes });
        }
        drop(lab);
        lines.await.unwrap().unwrap();
        assert_eq!(lines_in.next_line().await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_monitor_that_was_adopted_hears_of_every_carrier() {
        let (_lab, carriers) = watch::channel(vec![true, false]);
        let (monitor, ours) = tokio::io::duplex(1 << 16);
        let (_console, typed) = Console::new();
        tokio::spawn(async move { instruct(ours, None, carriers, typed).await });
        let mut orders = BufReader::new(monitor).lines();
        for expected in [
            r#"{"carrier":{"nic":0,"up":true}}"#,
            r#"{"carrier":{"nic":1,"up":false}}"#,
        ] {
            assert_eq!(orders.next_line().await.unwrap().unwrap(), expected);
        }
    }

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
