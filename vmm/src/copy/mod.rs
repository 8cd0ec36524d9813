//! Files between this machine and a node, as a tar stream over a command in the node.
//!
//! The stream is bounded by the windows of that command, and an agent of any version and any root with a shell and `tar` can do
//! it. Both ways a copy is unpacked beside its place and put there when it is complete, so that whoever breaks off leaves
//! all as it was.

mod receive;
mod send;

use tokio::sync::mpsc;

use crate::failure::{Code, Failure};
use crate::session::{Output, Said};

pub use receive::receive;
pub use send::send;

/// Chunks of a stream between the network and the thread that packs or unpacks.
const WAITING: usize = 4;
/// The most that is kept of what the command in the node says about errors.
const WORDS: usize = 4 << 10;
/// Warnings about single files that are kept.
const WARNINGS: usize = 10;

/// What was left out of a copy, for people; bounded, as a guest may make up as many as it likes.
#[derive(Debug, Default)]
pub struct Warnings {
    said: Vec<String>,
    more: usize,
}

impl Warnings {
    fn add(&mut self, warning: impl Into<String>) {
        if self.said.len() < WARNINGS {
            self.said.push(warning.into());
        } else {
            self.more += 1;
        }
    }

    /// One after the other.
    pub fn lines(self) -> Vec<String> {
        let mut lines = self.said;
        if self.more > 0 {
            lines.push(format!("{} more were left out", self.more));
        }
        lines
    }
}

/// The last things a command says, until it has ended: its status and its words.
async fn last_words(output: &mut Output, words: &mut Vec<u8>) -> Result<u8, Failure> {
    loop {
        match output.next().await? {
            Said::Ended(status) => return Ok(status),
            Said::Refused { message, status } => {
                keep(words, message.as_bytes());
                return Ok(status);
            }
            Said::Stderr(data) | Said::Stdout(data) => keep(words, &data),
        }
    }
}

fn keep(words: &mut Vec<u8>, data: &[u8]) {
    let room = WORDS.saturating_sub(words.len());
    words.extend_from_slice(&data[..data.len().min(room)]);
}

/// What a command in a node has said, fit for a message.
fn text(words: &[u8]) -> String {
    let text = crate::sanitize::lossy(words);
    let lines: Vec<_> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    lines.join("; ")
}

fn refused(node: &str, path: &str, words: &[u8], status: u8) -> Failure {
    let why = match text(words) {
        why if why.is_empty() => format!("the command in the node ended with status {status}"),
        why => why,
    };
    Failure::new(Code::General, format!("{node}:{path}: {why}"))
}

/// A thread has panicked.
fn bug(error: &tokio::task::JoinError) -> Failure {
    Failure::new(Code::General, format!("a bug in vmm: {error}"))
}

/// The writing end of a stream, for a thread.
struct ChunkWriter(mpsc::Sender<Vec<u8>>);

impl std::io::Write for ChunkWriter {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        let length = data.len().min(crate::session::CHUNK);
        let sent = self.0.blocking_send(data[..length].to_vec());
        sent.map_err(|_| std::io::Error::from(std::io::ErrorKind::BrokenPipe))?;
        Ok(length)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The reading end of a stream, for a thread.
struct ChunkReader {
    chunks: mpsc::Receiver<hyper::body::Bytes>,
    rest: hyper::body::Bytes,
}

impl std::io::Read for ChunkReader {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while self.rest.is_empty() {
            match self.chunks.blocking_recv() {
                Some(chunk) => self.rest = chunk,
                None => return Ok(0),
            }
        }
        let length = self.rest.len().min(buffer.len());
        buffer[..length].copy_from_slice(&self.rest.split_to(length));
        Ok(length)
    }
}
