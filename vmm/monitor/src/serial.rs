//! The file that receives what a guest writes to its serial port.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// Once a log has this many bytes, its older half is dropped: a guest cannot fill the host's memory.
const LIMIT: u64 = 2 << 20;
/// What a Linux kernel says when it gives up.
const PANIC: &str = "Kernel panic - not syncing: ";
/// A line longer than this is written in parts.
const LINE: usize = 1024;

/// A bounded log, written line by line: one system call a line, not one a character.
#[derive(Debug)]
pub struct SerialLog {
    file: File,
    size: u64,
    /// Where this boot's lines begin.
    begin: u64,
    line: Vec<u8>,
    /// Every character goes out at once.
    at_once: bool,
}

impl SerialLog {
    /// Appends to the log at `path`, so that a node that restarts keeps what it said before.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)?;
        let size = file.metadata()?.len();
        Ok(Self {
            file,
            size,
            begin: size,
            line: Vec::with_capacity(LINE),
            at_once: false,
        })
    }

    /// From now on somebody looks at every character: a prompt does not end in a newline.
    pub fn write_at_once(&mut self) {
        self.at_once = true;
        let _ = self.write_out();
    }

    /// Writes out what has not yet ended in a newline.
    pub fn write_out(&mut self) -> io::Result<()> {
        if self.size + self.line.len() as u64 > LIMIT {
            let mut rest = vec![0; (LIMIT / 2) as usize];
            self.file.read_exact_at(&mut rest, self.size - LIMIT / 2)?;
            self.file.set_len(0)?;
            self.file.write_all_at(&rest, 0)?;
            self.begin = self.begin.saturating_sub(self.size - LIMIT / 2);
            self.size = LIMIT / 2;
        }
        self.file.write_all_at(&self.line, self.size)?;
        self.size += self.line.len() as u64;
        self.line.clear();
        Ok(())
    }

    /// What the kernel of this boot said when it panicked, if it did and the last few kilobytes still have it.
    /// The guest's own bytes: escape sequences and all.
    pub fn panic_message(&mut self) -> Option<String> {
        let _ = self.write_out();
        let tail = (self.size - self.begin).min(16 << 10);
        let mut bytes = vec![0; tail as usize];
        self.file.read_exact_at(&mut bytes, self.size - tail).ok()?;
        let text = String::from_utf8_lossy(&bytes);
        let (_, message) = text.lines().rev().find_map(|line| line.split_once(PANIC))?;
        Some(message.trim_end().to_owned())
    }
}

impl Write for SerialLog {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for byte in bytes {
            self.line.push(*byte);
            // A log that cannot be written (disk full) must not stop the guest.
            if (*byte == b'\n' || self.line.len() >= LINE) && self.write_out().is_err() {
                self.line.clear();
            }
        }
        if self.at_once && self.write_out().is_err() {
            self.line.clear();
        }
        Ok(bytes.len())
    }

    /// The UART flushes after every character; lines are what is worth a system call.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for SerialLog {
    fn drop(&mut self) {
        let _ = self.write_out();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_is_bounded_and_keeps_the_newest() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("serial.log");
        let mut log = SerialLog::open(&path).unwrap();
        for number in 0..200_000 {
            writeln!(log, "line {number:010} of a talkative guest").unwrap();
        }
        drop(log);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.len() as u64 <= LIMIT);
        assert!(text.ends_with("line 0000199999 of a talkative guest\n"));
    }

    #[test]
    fn panic_message_is_found_and_not_that_of_the_boot_before() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("serial.log");
        let mut log = SerialLog::open(&path).unwrap();
        assert_eq!(log.panic_message(), None);
        log.write_all(b"[1.0] Kernel panic - not syncing: sysrq triggered crash\r\n[1.1] more")
            .unwrap();
        assert_eq!(log.panic_message().unwrap(), "sysrq triggered crash");
        drop(log);
        assert_eq!(SerialLog::open(&path).unwrap().panic_message(), None);
    }
}
