//! A command that runs in a node, from the side of the person who has it run.

use std::sync::Arc;

use agent_protocol::{ExitStatus, INITIAL_WINDOW, WindowSize};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use hyper::body::Bytes;
use tokio::sync::{Semaphore, mpsc};
use tokio_tungstenite::tungstenite::Message;

use crate::api::types::{ExecReply, ExecRequest, STDERR, STDOUT};
use crate::client::{Client, Socket};
use crate::failure::{Code, Failure};

/// Most bytes of standard input in one message.
pub const CHUNK: usize = 32 << 10;

/// What is said to the command; clones say it to the same. The command is hung up on when all of them and its [`Output`] are gone.
#[derive(Debug, Clone)]
pub struct Input {
    requests: mpsc::Sender<Message>,
    window: Arc<Semaphore>,
}

/// What the command says.
#[derive(Debug)]
pub struct Output {
    replies: SplitStream<Socket>,
    window: Arc<Semaphore>,
    node: String,
}

/// One thing a command has said.
#[derive(Debug)]
pub enum Said {
    /// Standard output, or its terminal.
    Stdout(Bytes),
    /// Standard error.
    Stderr(Bytes),
    /// It could not be started. The last it says.
    Refused {
        /// For people.
        message: String,
        /// As of a shell.
        status: u8,
    },
    /// It has ended, with a status as of a shell. The last it says.
    Ended(u8),
}

/// Starts a command in `node`, or follows one, as the request says.
pub async fn start(
    client: &Client,
    node: &str,
    request: &ExecRequest,
) -> Result<(Input, Output), Failure> {
    let mut socket = client.exec(node).await?;
    socket
        .send(text_of(request))
        .await
        .map_err(|error| broken(node, &error))?;
    let (sink, replies) = socket.split();
    let (requests, queue) = mpsc::channel(8);
    tokio::spawn(send(sink, queue));
    let window = Arc::new(Semaphore::new(INITIAL_WINDOW as usize));
    let input = Input {
        requests,
        window: Arc::clone(&window),
    };
    let output = Output {
        replies,
        window,
        node: node.to_owned(),
    };
    Ok((input, output))
}

/// A command without a terminal, in `/root`.
pub fn command(argv: &[&str]) -> ExecRequest {
    ExecRequest::Start {
        argv: argv.iter().map(|word| (*word).to_owned()).collect(),
        env: Vec::new(),
        cwd: None,
        tty: None,
    }
}

/// What a command has said, and its status.
#[derive(Debug)]
pub struct Collected {
    /// As of a shell.
    pub status: u8,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error, and why it was not started.
    pub stderr: Vec<u8>,
}

/// Runs a command without input to its end. More than `limit` bytes of output are an error: a guest decides how many there are.
pub async fn collect(
    client: &Client,
    node: &str,
    argv: &[&str],
    limit: usize,
) -> Result<Collected, Failure> {
    let (input, mut output) = start(client, node, &command(argv)).await?;
    input.end().await;
    let mut collected = Collected {
        status: 0,
        stdout: Vec::new(),
        stderr: Vec::new(),
    };
    loop {
        match output.next().await? {
            Said::Stdout(data) => collected.stdout.extend_from_slice(&data),
            Said::Stderr(data) => collected.stderr.extend_from_slice(&data),
            Said::Refused { message, status } => {
                collected.stderr.extend_from_slice(message.as_bytes());
                collected.status = status;
                return Ok(collected);
            }
            Said::Ended(status) => {
                collected.status = status;
                return Ok(collected);
            }
        }
        if collected.stdout.len() + collected.stderr.len() > limit {
            let program = argv.first().copied().unwrap_or_default();
            return Err(Failure::new(
                Code::Lab,
                format!("{program} in node {node} prints more than {limit} bytes"),
            ));
        }
    }
}

impl Input {
    /// Bytes for its standard input, at most [`CHUNK`]; returns when its window has room for them. False if it takes no more.
    pub async fn send(&self, data: Vec<u8>) -> bool {
        if let Ok(permits) = self.window.acquire_many(data.len() as u32).await {
            permits.forget();
        }
        self.requests
            .send(Message::Binary(data.into()))
            .await
            .is_ok()
    }

    /// The end of its standard input.
    pub async fn end(&self) {
        self.ask(&ExecRequest::StdinEnd).await;
    }

    /// A signal for its process group.
    pub async fn signal(&self, signal: i32) {
        self.ask(&ExecRequest::Signal { signal }).await;
    }

    /// A new size for its terminal.
    pub async fn resize(&self, size: WindowSize) {
        self.ask(&ExecRequest::Resize { size }).await;
    }

    /// If it does not arrive, the socket has ended, and the output tells why.
    async fn ask(&self, request: &ExecRequest) {
        let _ = self.requests.send(text_of(request)).await;
    }
}

impl Output {
    /// The next thing it says.
    pub async fn next(&mut self) -> Result<Said, Failure> {
        loop {
            let reply = match self.replies.next().await {
                Some(Ok(Message::Binary(mut data))) if !data.is_empty() => {
                    match data.split_to(1).first().copied() {
                        Some(STDOUT) => return Ok(Said::Stdout(data)),
                        Some(STDERR) => return Ok(Said::Stderr(data)),
                        // Of a newer lab.
                        _ => continue,
                    }
                }
                Some(Ok(Message::Text(text))) => {
                    serde_json::from_str(&text).map_err(|error| broken(&self.node, &error))?
                }
                Some(Ok(Message::Close(_))) | None => {
                    return Err(Failure::new(
                        Code::Lab,
                        format!("the lab of node {} has ended", self.node),
                    ));
                }
                Some(Ok(_)) => continue,
                Some(Err(error)) => return Err(broken(&self.node, &error)),
            };
            match reply {
                ExecReply::Credit { bytes } => self.window.add_permits(bytes as usize),
                ExecReply::Exited { status } => return Ok(Said::Ended(status_of(status))),
                ExecReply::Failed { message, status } => {
                    return Ok(Said::Refused {
                        message: crate::sanitize::text(&message),
                        status: status as u8,
                    });
                }
                ExecReply::Lost { message } => {
                    return Err(Failure::new(
                        Code::Lab,
                        format!("node {}: {message}", self.node),
                    ));
                }
            }
        }
    }
}

/// Sends what is queued, until nobody has more to say.
async fn send(mut sink: SplitSink<Socket, Message>, mut queue: mpsc::Receiver<Message>) {
    while let Some(message) = queue.recv().await {
        if sink.send(message).await.is_err() {
            return;
        }
    }
}

fn text_of(request: &ExecRequest) -> Message {
    Message::Text(serde_json::to_string(request).unwrap_or_default().into())
}

fn broken(node: &str, error: &dyn std::error::Error) -> Failure {
    Failure::new(
        Code::Lab,
        format!("the connection to node {node} broke: {error}"),
    )
}

fn status_of(status: ExitStatus) -> u8 {
    match status {
        ExitStatus::Code(code) => code as u8,
        ExitStatus::Signal(number) => signal_status(number),
    }
}

/// The status of a command that a signal has ended, as in a shell.
pub fn signal_status(number: i32) -> u8 {
    128_u8.wrapping_add(number as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deaths_by_signal_have_a_shells_status() {
        assert_eq!(signal_status(2), 130);
        assert_eq!(signal_status(9), 137);
        assert_eq!(signal_status(15), 143);
    }
}
