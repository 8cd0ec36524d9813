//! `vmm console`: a person at the serial port of a node.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Args;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use tokio_tungstenite::tungstenite::Message;

use super::exec::{Writer, read_input};
use super::terminal::{Escape, RawMode};
use super::{LabChoice, block_on};
use crate::api::types::STDOUT;
use crate::client::{Client, Socket};
use crate::failure::{Code, Failure};
use crate::sanitize::Sanitizer;

/// Arguments of `vmm console`.
#[derive(Debug, Args)]
#[command(
    after_help = "Enter ~ . (at the start of a line) leaves it. The first Enter starts a shell, unless a program of the node uses the port; what the kernel says \
appears in between. Needs neither the network of the node nor its agent. Escape sequences are left out, so that a guest cannot act on your \
terminal; programs that draw on the screen need --raw, or `vmm shell`.\n\nExamples:\n  vmm console r1\n  vmm console --raw r1"
)]
pub struct ConsoleArgs {
    /// The node
    node: String,
    /// Leave escape sequences and control characters in: they act on the terminal
    #[arg(long)]
    raw: bool,
    #[command(flatten)]
    lab: LabChoice,
}

pub fn run(args: &ConsoleArgs) -> Result<ExitCode, Failure> {
    let client = Client::choose(args.lab.lab.as_deref())?;
    let terminal = std::io::stdin().is_terminal();
    block_on(async {
        let socket = client.console(&args.node).await?;
        if terminal {
            eprintln!(
                "console of {}: Enter ~ . leaves it; `vmm logs {}` shows what was before",
                args.node, args.node
            );
        }
        let raw_mode = terminal.then(RawMode::enter).transpose().map_err(|error| {
            let cannot = format!("cannot switch the terminal to raw mode: {error}");
            Failure::new(Code::General, cannot)
        })?;
        let (sink, said) = socket.split();
        let writer = Writer::start();
        let result = tokio::select! {
            result = show(said, &writer, args.raw, terminal) => result,
            () = type_in(sink, terminal) => Ok(()),
        };
        writer.finish();
        drop(raw_mode);
        if terminal {
            eprintln!();
        }
        result.map(|()| ExitCode::SUCCESS)
    })
}

/// Shows what the node writes, until the lab has ended or nobody reads.
async fn show(
    mut said: SplitStream<Socket>,
    writer: &Writer,
    raw: bool,
    terminal: bool,
) -> Result<(), Failure> {
    let mut sanitizer = if terminal {
        Sanitizer::for_typing()
    } else {
        Sanitizer::default()
    };
    loop {
        let data = match said.next().await {
            Some(Ok(Message::Binary(data))) if raw => data.to_vec(),
            Some(Ok(Message::Binary(data))) => sanitizer.clean(&data).into_bytes(),
            Some(Ok(Message::Close(_))) | None => return Ok(()),
            Some(Ok(_)) => continue,
            Some(Err(error)) => {
                return Err(Failure::new(
                    Code::Lab,
                    format!("the lab broke off: {error}"),
                ));
            }
        };
        if writer.queue.send((STDOUT, data)).await.is_err() {
            return Ok(());
        }
    }
}

/// Types what is typed here. A terminal is left with its escape; without one, output goes on after the end of input.
async fn type_in(mut sink: SplitSink<Socket, Message>, terminal: bool) {
    let mut chunks = read_input();
    let mut escape = terminal.then(Escape::new);
    while let Some(chunk) = chunks.recv().await {
        let data = match &mut escape {
            Some(escape) => match escape.filter(&chunk) {
                Some(data) => data,
                None => return,
            },
            None => chunk,
        };
        if sink.send(Message::Binary(data.into())).await.is_err() {
            break;
        }
    }
    std::future::pending::<()>().await;
}
