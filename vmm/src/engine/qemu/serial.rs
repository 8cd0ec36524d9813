//! The serial port of a machine under QEMU, which is QEMU's standard output.

use std::io::Write;
use std::path::Path;

use monitor::SerialLog;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

use crate::sanitize;

/// Appends what comes from the port to the log until it is closed; returns the reason of the last kernel panic.
pub async fn record(mut port: impl AsyncRead + Unpin, log: &Path) -> Option<String> {
    // Without a log (the disk is full, say) the port still has to be emptied, or the guest would wait for it.
    let mut log = SerialLog::open(log).ok();
    // What comes at once is a chunk here, so that lines need not be waited for.
    if let Some(log) = &mut log {
        log.write_at_once();
    }
    let mut chunk = [0; 4096];
    while let Ok(length @ 1..) = port.read(&mut chunk).await {
        if let Some(log) = &mut log {
            let _ = log.write_all(&chunk[..length]);
        }
    }
    log?.panic_message().map(|message| sanitize::text(&message))
}

/// Passes on what is typed, as fast as the guest takes it.
pub async fn type_in(mut port: impl AsyncWrite + Unpin, mut typed: mpsc::Receiver<Vec<u8>>) {
    while let Some(bytes) = typed.recv().await {
        if port.write_all(&bytes).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_log_is_kept_and_the_panic_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("serial.log");
        let said = "boot\n[    0.5] Kernel panic - not syncing: no init\x1b[2J found\r\nmore\n";
        let panic = record(said.as_bytes(), &log).await;
        assert_eq!(panic.as_deref(), Some("no init found"));
        assert_eq!(record(&b"again\n"[..], &log).await, None);
        assert_eq!(
            std::fs::read_to_string(&log).unwrap(),
            format!("{said}again\n")
        );
    }
}
