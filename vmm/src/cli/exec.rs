//! `vmm exec` and `vmm shell`: a command in nodes, as if it ran here.

pub mod many;

use std::io::{IsTerminal, Read, Write};
use std::process::ExitCode;
use std::thread::JoinHandle;

use clap::Args;
use rustix::process::Signal;
use tokio::signal::unix::{self, SignalKind, signal};
use tokio::sync::mpsc;

use super::terminal::{self, Escape, RawMode};
use super::{LabChoice, block_on};
use crate::api::types::{ExecRequest, STDERR, STDOUT};
use crate::client::Client;
use crate::failure::{Code, Failure};
use crate::session::{self, CHUNK, Input, Output, Said, signal_status};
use many::Choice;

/// A login shell, the best there is.
const SHELL: &str = "command -v bash >/dev/null && exec bash -l; exec sh -l";

/// Arguments of `vmm exec`.
#[derive(Debug, Args)]
#[command(
    override_usage = "vmm exec [OPTIONS] <NODE[,NODE…]> [--] <COMMAND>…\n       vmm exec [OPTIONS] <--all|--label KEY[=VALUE]> [--] <COMMAND>…",
    after_help = "In several nodes the command runs at once and without input, each line of output begins with its node's name, and the status is
the highest of theirs: 0 if the command succeeded everywhere.

Examples:\n  vmm exec a -- ping -c 3 10.0.0.2\n  vmm exec a -- sh -c 'cat > /tmp/x' < x\n  vmm exec -t a -- top\n  \
vmm exec pc1,pc2 -- ip route\n  vmm exec --all -- uname -r\n  vmm exec --label role=core -- vtysh -c 'show ip ospf neighbor'"
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
    /// In all hosts and routers
    #[arg(short, long)]
    all: bool,
    /// In hosts and routers with this label; several: with all of them
    #[arg(long, value_name = "KEY[=VALUE]", conflicts_with = "all", value_parser = label)]
    label: Vec<(String, Option<String>)>,
    /// The node, or several with commas between them; left out with --all and --label
    #[arg(value_name = "NODE[,NODE…]")]
    node: String,
    /// The command and its arguments
    #[arg(
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

fn label(text: &str) -> Result<(String, Option<String>), String> {
    let (key, value) = match text.split_once('=') {
        Some((key, value)) => (key, Some(value.to_owned())),
        None => (text, None),
    };
    if key.is_empty() {
        return Err("it has to look like KEY or KEY=VALUE".to_owned());
    }
    Ok((key.to_owned(), value))
}

pub fn run(args: ExecArgs) -> Result<ExitCode, Failure> {
    // Every lower status may be the command's own.
    exec(args).map_err(|failure| failure.with_code(Code::Exec))
}

fn exec(args: ExecArgs) -> Result<ExitCode, Failure> {
    let (choice, command) = if args.all || !args.label.is_empty() {
        let choice = if args.all {
            Choice::All
        } else {
            Choice::Labelled(args.label)
        };
        // What would be the node is the program.
        let words = std::iter::once(args.node).chain(args.command);
        (choice, words.collect())
    } else {
        let names = args.node.split(',').filter(|name| !name.is_empty());
        (
            Choice::Named(names.map(str::to_owned).collect()),
            args.command,
        )
    };
    if command.is_empty() {
        return Err(Failure::new(Code::Exec, "there is no command to run")
            .help("write it behind the node: `vmm exec NODE -- COMMAND`"));
    }
    let start = Start {
        argv: command,
        env: args.env,
        cwd: args.workdir,
        tty: args.tty,
    };
    let client = Client::choose(args.lab.lab.as_deref())?;
    match choice {
        Choice::Named(names) if names.len() == 1 => start.run(&client, &names[0]),
        _ if start.tty => Err(Failure::new(Code::Exec, "a terminal is for one node alone")
            .help("leave out -t, or name one node")),
        choice => {
            let request = start.request();
            block_on(async {
                let nodes = choice.find(&client).await?;
                many::run(&client, &nodes, &request).await
            })
            .map(ExitCode::from)
        }
    }
}

pub fn shell(args: &ShellArgs) -> Result<ExitCode, Failure> {
    let start = Start {
        argv: ["sh", "-c", SHELL].map(ToOwned::to_owned).into(),
        env: Vec::new(),
        cwd: None,
        tty: true,
    };
    let ours = |failure: Failure| failure.with_code(Code::Exec);
    let client = Client::choose(args.lab.lab.as_deref()).map_err(ours)?;
    start.run(&client, &args.node).map_err(ours)
}

struct Start {
    argv: Vec<String>,
    env: Vec<(String, String)>,
    cwd: Option<String>,
    tty: bool,
}

impl Start {
    fn request(self) -> ExecRequest {
        ExecRequest::Start {
            tty: if self.tty { terminal::size() } else { None },
            argv: self.argv,
            env: self.env,
            cwd: self.cwd,
        }
    }

    /// Runs the command in one node, on this process's input, output, terminal and signals.
    fn run(mut self, client: &Client, node: &str) -> Result<ExitCode, Failure> {
        let tty = self.tty;
        if tty {
            if !std::io::stdin().is_terminal() {
                return Err(Failure::new(Code::Exec, "standard input is not a terminal")
                    .help("leave out -t, or for a shell use `vmm exec NODE -- sh`"));
            }
            if let Ok(term) = std::env::var("TERM") {
                self.env.insert(0, ("TERM".to_owned(), term));
            }
        }
        block_on(async {
            let (input, output) = session::start(client, node, &self.request()).await?;
            converse(input, output, node, tty).await
        })
        .map(ExitCode::from)
    }
}

async fn converse(input: Input, output: Output, node: &str, tty: bool) -> Result<u8, Failure> {
    let raw_mode = tty.then(RawMode::enter).transpose().map_err(|error| {
        Failure::new(
            Code::Exec,
            format!("cannot switch the terminal to raw mode: {error}"),
        )
    })?;
    let writer = Writer::start();
    let status = tokio::select! {
        status = receive(output, &writer.queue, node) => status,
        status = forward_signals(&input, tty) => status,
        status = forward_input(&input, tty) => status,
    };
    writer.finish();
    drop(raw_mode);
    status
}

/// Takes what the command says, until it has ended: its status.
async fn receive(
    mut output: Output,
    queue: &mpsc::Sender<(u8, Vec<u8>)>,
    node: &str,
) -> Result<u8, Failure> {
    loop {
        let chunk = match output.next().await? {
            Said::Stdout(data) => (STDOUT, data.to_vec()),
            Said::Stderr(data) => (STDERR, data.to_vec()),
            Said::Refused { message, status } => {
                let said = format!("vmm: node {node}: {message}\n");
                let _ = queue.send((STDERR, said.into_bytes())).await;
                return Ok(status);
            }
            Said::Ended(status) => return Ok(status),
        };
        if queue.send(chunk).await.is_err() {
            // Nobody reads the output any more.
            return Ok(signal_status(Signal::PIPE.as_raw()));
        }
    }
}

async fn forward_input(input: &Input, tty: bool) -> Result<u8, Failure> {
    let mut chunks = read_input();
    let mut escape = tty.then(Escape::new);
    while let Some(chunk) = chunks.recv().await {
        let data = match &mut escape {
            Some(escape) => match escape.filter(&chunk) {
                Some(data) => data,
                None => return Err(Failure::new(Code::Exec, "left with ~.")),
            },
            None => chunk,
        };
        input.send(data).await;
    }
    input.end().await;
    std::future::pending().await
}

/// What comes on standard input. A thread reads it, because that cannot be given up; it ends with the process.
pub fn read_input() -> mpsc::Receiver<Vec<u8>> {
    let (sender, chunks) = mpsc::channel(2);
    std::thread::spawn(move || {
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
    });
    chunks
}

/// Signals that a command is to have.
pub struct Signals([(unix::Signal, Signal); 6]);

impl Signals {
    /// From now on they no longer end this process by themselves.
    pub fn listen() -> Result<Self, Failure> {
        let listen = |kind, signal_| {
            signal(kind)
                .map(|stream| (stream, signal_))
                .map_err(|error| {
                    Failure::new(Code::Exec, format!("cannot listen to signals: {error}"))
                })
        };
        Ok(Self([
            listen(SignalKind::interrupt(), Signal::INT)?,
            listen(SignalKind::terminate(), Signal::TERM)?,
            listen(SignalKind::hangup(), Signal::HUP)?,
            listen(SignalKind::quit(), Signal::QUIT)?,
            listen(SignalKind::user_defined1(), Signal::USR1)?,
            listen(SignalKind::user_defined2(), Signal::USR2)?,
        ]))
    }

    /// The next one.
    pub async fn come(&mut self) -> Signal {
        std::future::poll_fn(|context| {
            for (stream, signal) in &mut self.0 {
                if stream.poll_recv(context).is_ready() {
                    return std::task::Poll::Ready(*signal);
                }
            }
            std::task::Poll::Pending
        })
        .await
    }
}

/// Passes signals on to the command. With a terminal the keys do that, and a signal is for this process.
async fn forward_signals(input: &Input, tty: bool) -> Result<u8, Failure> {
    let mut signals = Signals::listen()?;
    let mut resized = signal(SignalKind::window_change())
        .map_err(|error| Failure::new(Code::Exec, format!("cannot listen to signals: {error}")))?;
    loop {
        tokio::select! {
            signal = signals.come() => {
                if tty && matches!(signal, Signal::TERM | Signal::HUP) {
                    return Ok(signal_status(signal.as_raw()));
                }
                input.signal(signal.as_raw()).await;
            }
            _ = resized.recv() => {
                if let Some(size) = terminal::size().filter(|_| tty) {
                    input.resize(size).await;
                }
            }
        }
    }
}

/// The thread that writes: a reader who pauses must not keep signals from being passed on.
pub struct Writer {
    /// Takes bytes for standard output or standard error, by stream.
    pub queue: mpsc::Sender<(u8, Vec<u8>)>,
    thread: JoinHandle<()>,
}

impl Writer {
    /// Starts it.
    pub fn start() -> Self {
        let (queue, mut chunks) = mpsc::channel::<(u8, Vec<u8>)>(4);
        let thread = std::thread::spawn(move || {
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
        Self { queue, thread }
    }

    /// Has it write what is queued.
    pub fn finish(self) {
        drop(self.queue);
        let _ = self.thread.join();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_need_a_name() {
        assert_eq!(variable("A=b=c"), Ok(("A".into(), "b=c".into())));
        assert!(variable("=x").is_err() && variable("A").is_err());
    }

    #[test]
    fn labels_may_have_a_value() {
        assert_eq!(label("role"), Ok(("role".into(), None)));
        assert_eq!(label("role="), Ok(("role".into(), Some(String::new()))));
        assert_eq!(label("a=b=c"), Ok(("a".into(), Some("b=c".into()))));
        assert!(label("=x").is_err());
    }
}
