//! `vmm exec` and `vmm shell`: a command in a node, as if it ran here.

use std::io::{IsTerminal, Read, Write};
use std::process::ExitCode;
use std::thread::JoinHandle;

use agent_protocol::{ExitStatus, INITIAL_WINDOW};
use clap::Args;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use rustix::process::Signal;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, mpsc};
use tokio_tungstenite::tungstenite::Message;

use super::terminal::{self, Escape, RawMode};
use super::{LabChoice, block_on};
use crate::api::types::{ExecReply, ExecRequest, STDERR};
use crate::client::{Client, ExecSocket};
use crate::failure::{Code, Failure};

/// Bytes of standard input in one message.
const CHUNK: usize = 32 << 10;
/// A login shell, the best there is.
const SHELL: &str = "command -v bash >/dev/null && exec bash -l; exec sh -l";

/// Arguments of `vmm exec`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  vmm exec a -- ping -c 3 10.0.0.2\n  vmm exec a -- sh -c 'cat > /tmp/x' < x\n  vmm exec -t a -- top"
)]
pub struct ExecArgs {
    #[command(flatten)]
    lab: LabChoice,
    /// Give the command a terminal
    #[arg(short, long)]
    tty: bool,
    /// Set an environment variable
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = variable)]
    env: Vec<(String, String)>,
    /// Where the command runs (default: /root)
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// The node
    node: String,
    /// The command and its arguments
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "COMMAND"
    )]
    command: Vec<String>,
}

/// Arguments of `vmm shell`.
#[derive(Debug, Args)]
#[command(
    after_help = "Enter ~ . (at the start of a line) leaves a shell that no longer answers.\n\nExample:\n  vmm shell r1"
)]
pub struct ShellArgs {
    #[command(flatten)]
    lab: LabChoice,
    /// The node
    node: String,
}

fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("it has to look like NAME=VALUE".to_owned()),
    }
}

pub fn run(args: ExecArgs) -> Result<ExitCode, Failure> {
    let start = Start {
        argv: args.command,
        env: args.env,
        cwd: args.workdir,
        tty: args.tty,
    };
    start.run(args.lab.lab.as_deref(), &args.node)
}

pub fn shell(args: &ShellArgs) -> Result<ExitCode, Failure> {
    let start = Start {
        argv: ["sh", "-c", SHELL].map(ToOwned::to_owned).into(),
        env: Vec::new(),
        cwd: None,
        tty: true,
    };
    start.run(args.lab.lab.as_deref(), &args.node)
}

struct Start {
    argv: Vec<String>,
    env: Vec<(String, String)>,
    cwd: Option<String>,
    tty: bool,
}

impl Start {
    fn run(mut self, lab: Option<&str>, node: &str) -> Result<ExitCode, Failure> {
        // Every lower status may be the command's own.
        let ours = |failure: Failure| failure.with_code(Code::Exec);
        let client = Client::choose(lab).map_err(ours)?;
        if self.tty {
            if !std::io::stdin().is_terminal() {
                return Err(Failure::new(Code::Exec, "standard input is not a terminal")
                    .help("leave out -t, or for a shell use `vmm exec NODE -- sh`"));
            }
            if let Ok(term) = std::env::var("TERM") {
                self.env.insert(0, ("TERM".to_owned(), term));
            }
        }
        block_on(async {
            let socket = client.exec(node).await?;
            self.converse(socket, node).await
        })
        .map(ExitCode::from)
        .map_err(ours)
    }

    async fn converse(self, mut socket: ExecSocket, node: &str) -> Result<u8, Failure> {
        let tty = self.tty;
        let start = ExecRequest::Start {
            argv: self.argv,
            env: self.env,
            cwd: self.cwd,
            tty: if tty { terminal::size() } else { None },
        };
        socket
            .send(text_of(&start))
            .await
            .map_err(|error| broken(node, &error))?;
        let raw_mode = if tty {
            Some(RawMode::enter().map_err(|error| {
                Failure::new(
                    Code::Exec,
                    format!("cannot switch the terminal to raw mode: {error}"),
                )
            })?)
        } else {
            None
        };
        let (sink, replies) = socket.split();
        let (requests, queue) = mpsc::channel(8);
        let window = Semaphore::new(INITIAL_WINDOW as usize);
        let output = Output::start();
        let (output_queue, writer) = (output.queue, output.writer);
        let status = tokio::select! {
            status = receive(replies, &window, output_queue, node) => status,
            status = send(sink, queue) => status,
            status = forward_signals(&requests, tty) => status,
            status = forward_input(&requests, &window, tty) => status,
        };
        // The queue is closed: what the command wrote last is written now.
        let _ = writer.join();
        drop(raw_mode);
        status
    }
}

fn text_of(request: &ExecRequest) -> Message {
    Message::Text(serde_json::to_string(request).unwrap_or_default().into())
}

fn broken(node: &str, error: &dyn std::error::Error) -> Failure {
    Failure::new(
        Code::Exec,
        format!("the connection to node {node} broke: {error}"),
    )
}

/// Takes what the lab says, until the command has ended: its status.
async fn receive(
    mut replies: SplitStream<ExecSocket>,
    window: &Semaphore,
    output: mpsc::Sender<(u8, Vec<u8>)>,
    node: &str,
) -> Result<u8, Failure> {
    loop {
        let reply = match replies.next().await {
            Some(Ok(Message::Binary(data))) => {
                if let Some((&stream, data)) = data.split_first()
                    && output.send((stream, data.to_vec())).await.is_err()
                {
                    // Nobody reads the output any more.
                    return Ok(signal_status(Signal::PIPE.as_raw()));
                }
                continue;
            }
            Some(Ok(Message::Text(text))) => {
                serde_json::from_str(&text).map_err(|error| broken(node, &error))?
            }
            Some(Ok(Message::Close(_))) | None => {
                return Err(Failure::new(
                    Code::Exec,
                    format!("the lab of node {node} has ended"),
                ));
            }
            Some(Ok(_)) => continue,
            Some(Err(error)) => return Err(broken(node, &error)),
        };
        match reply {
            ExecReply::Credit { bytes } => window.add_permits(bytes as usize),
            ExecReply::Exited {
                status: ExitStatus::Code(code),
            } => return Ok(code as u8),
            ExecReply::Exited {
                status: ExitStatus::Signal(number),
            } => return Ok(signal_status(number)),
            ExecReply::Failed { message, status } => {
                let message = crate::sanitize::text(&message);
                let _ = output
                    .send((
                        STDERR,
                        format!("vmm: node {node}: {message}\n").into_bytes(),
                    ))
                    .await;
                return Ok(status as u8);
            }
            ExecReply::Lost { message } => {
                return Err(Failure::new(Code::Exec, format!("node {node}: {message}")));
            }
        }
    }
}

/// As in a shell.
fn signal_status(number: i32) -> u8 {
    128_u8.wrapping_add(number as u8)
}

/// Sends what is queued; ends only with the socket, and `receive` knows better why.
async fn send(
    mut sink: SplitSink<ExecSocket, Message>,
    mut queue: mpsc::Receiver<Message>,
) -> Result<u8, Failure> {
    while let Some(message) = queue.recv().await {
        if sink.send(message).await.is_err() {
            break;
        }
    }
    std::future::pending().await
}

async fn forward_input(
    requests: &mpsc::Sender<Message>,
    window: &Semaphore,
    tty: bool,
) -> Result<u8, Failure> {
    let (sender, mut chunks) = mpsc::channel(2);
    // A thread, because reading standard input cannot be given up; it ends with the process.
    std::thread::spawn(move || read_input(&sender));
    let mut escape = tty.then(Escape::new);
    while let Some(chunk) = chunks.recv().await {
        let data = match &mut escape {
            Some(escape) => match escape.filter(&chunk) {
                Some(data) => data,
                None => return Err(Failure::new(Code::Exec, "left with ~.")),
            },
            None => chunk,
        };
        if let Ok(permits) = window.acquire_many(data.len() as u32).await {
            permits.forget();
        }
        let _ = requests.send(Message::Binary(data.into())).await;
    }
    let _ = requests.send(text_of(&ExecRequest::StdinEnd)).await;
    std::future::pending().await
}

fn read_input(sender: &mpsc::Sender<Vec<u8>>) {
    let mut stdin = std::io::stdin().lock();
    let mut buffer = vec![0; CHUNK];
    loop {
        match stdin.read(&mut buffer) {
            Ok(0) => return,
            Ok(length) => {
                if sender.blocking_send(buffer[..length].to_vec()).is_err() {
                    return;
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

/// Passes signals on to the command. With a terminal the keys do that, and a signal is for this process.
async fn forward_signals(requests: &mpsc::Sender<Message>, tty: bool) -> Result<u8, Failure> {
    let listen = |kind| {
        signal(kind)
            .map_err(|error| Failure::new(Code::Exec, format!("cannot listen to signals: {error}")))
    };
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut terminate = listen(SignalKind::terminate())?;
    let mut hangup = listen(SignalKind::hangup())?;
    let mut quit = listen(SignalKind::quit())?;
    let mut user1 = listen(SignalKind::user_defined1())?;
    let mut user2 = listen(SignalKind::user_defined2())?;
    let mut resized = listen(SignalKind::window_change())?;
    loop {
        let signal = tokio::select! {
            _ = interrupt.recv() => Signal::INT,
            _ = terminate.recv() => Signal::TERM,
            _ = hangup.recv() => Signal::HUP,
            _ = quit.recv() => Signal::QUIT,
            _ = user1.recv() => Signal::USR1,
            _ = user2.recv() => Signal::USR2,
            _ = resized.recv() => {
                if let Some(size) = terminal::size().filter(|_| tty) {
                    let _ = requests.send(text_of(&ExecRequest::Resize { size })).await;
                }
                continue;
            }
        };
        let number = signal.as_raw();
        if tty && matches!(signal, Signal::TERM | Signal::HUP) {
            return Ok(signal_status(number));
        }
        let _ = requests
            .send(text_of(&ExecRequest::Signal { signal: number }))
            .await;
    }
}

/// The thread that writes: a reader who pauses must not keep signals from being passed on.
struct Output {
    queue: mpsc::Sender<(u8, Vec<u8>)>,
    writer: JoinHandle<()>,
}

impl Output {
    fn start() -> Self {
        let (queue, mut chunks) = mpsc::channel::<(u8, Vec<u8>)>(4);
        let writer = std::thread::spawn(move || {
            while let Some((stream, data)) = chunks.blocking_recv() {
                let written = if stream == STDERR {
                    std::io::stderr().write_all(&data)
                } else {
                    let mut stdout = std::io::stdout().lock();
                    stdout.write_all(&data).and_then(|()| stdout.flush())
                };
                if written.is_err() {
                    return;
                }
            }
        });
        Self { queue, writer }
    }
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

    #[test]
    fn variables_need_a_name() {
        assert_eq!(variable("A=b=c"), Ok(("A".into(), "b=c".into())));
        assert!(variable("=x").is_err() && variable("A").is_err());
    }
}
