//! The serial log of a machine under QEMU.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use tokio::io::{AsyncRead, AsyncReadExt};

/// Once a log has this many bytes, its older half is dropped: a guest cannot fill the host's memory.
const LIMIT: u64 = 2 << 20;
/// What a Linux kernel says when it gives up.
const PANIC: &str = "Kernel panic - not syncing: ";
/// Longest line in which that is looked for.
const LINE: usize = 1024;

/// Appends what comes from the port to the log until it is closed; returns the reason of the last kernel panic.
pub async fn record(mut port: impl AsyncRead + Unpin, log: &Path) -> Option<String> {
    // Without a log (the disk is full, say) the port still has to be emptied, or the guest would wait for it.
    let mut log = Log::open(log).ok();
    let mut line = Vec::new();
    let mut panic = None;
    let mut chunk = [0; 4096];
    while let Ok(length @ 1..) = port.read(&mut chunk).await {
        let bytes = &chunk[..length];
        if log.as_mut().is_some_and(|log| log.append(bytes).is_err()) {
            log = None;
        }
        for &byte in bytes {
            if byte == b'\n' || line.len() == LINE {
                panic = reason(&line).or(panic);
                line.clear();
            } else {
                line.push(byte);
            }
        }
    }
    reason(&line).or(panic)
}

fn reason(line: &[u8]) -> Option<String> {
    let line = String::from_utf8_lossy(line);
    let (_, reason) = line.split_once(PANIC)?;
    Some(crate::sanitize::text(reason.trim_end()))
}

#[derive(Debug)]
struct Log {
    file: File,
    size: u64,
}

impl Log {
    fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)?;
        let size = file.metadata()?.len();
        Ok(Self { file, size })
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.size + bytes.len() as u64 > LIMIT {
            let kept = self.size / 2;
            let mut rest = vec![0; kept as usize];
            self.file.read_exact_at(&mut rest, self.size - kept)?;
            self.file.set_len(0)?;
            self.file.write_all_at(&rest, 0)?;
            self.size = kept;
        }
        self.file.write_all_at(bytes, self.size)?;
        self.size += bytes.len() as u64;
        Ok(())
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

    #[tokio::test]
    async fn a_guest_that_writes_for_ever_fills_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("serial.log");
        let mut log = Log::open(&path).unwrap();
        for n in 0..3 * LIMIT / 1000 {
            log.append(&[b'a' + (n % 26) as u8; 1000]).unwrap();
            assert!(std::fs::metadata(&path).unwrap().len() <= LIMIT);
        }
        assert!(std::fs::metadata(&path).unwrap().len() >= LIMIT / 2);
    }
}
