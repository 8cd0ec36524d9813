//! The command line.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use nix::sys::signal::{SigSet, Signal};
use topology::model::Topology;

use crate::control;
use crate::port::Policy;
use crate::socket::Socket;
use crate::switch::{Options, Switch};

/// The virtual switch of a Hopyard lab: vhost-user ports, shaped links, switches and hubs.
#[derive(Debug, Parser)]
#[command(name = "vswitch", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the links of a topology in the foreground, until SIGTERM or SIGINT.
    Run {
        /// The topology file.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// The folder in which one socket per machine interface is made: NODE.INTERFACE.sock.
        #[arg(long, value_name = "DIR")]
        sockets: PathBuf,
        /// The control socket to listen on.
        #[arg(long, value_name = "SOCK")]
        control: PathBuf,
        /// Threads for the packet path. A group of connected links stays on one.
        #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
        shards: u16,
        /// Accept guest memory that is not a sealed memfd, or on huge pages, as DPDK's virtio-user has it. Whoever owns
        /// such memory can end the switch by shrinking it: only for front-ends you trust.
        #[arg(long)]
        allow_unsealed: bool,
    },
    /// Print the counters of a running switch.
    Stats {
        /// The control socket of the switch.
        #[arg(long, value_name = "SOCK")]
        control: PathBuf,
        /// Print JSON instead of tables.
        #[arg(long)]
        json: bool,
    },
}

/// Does what the command line says.
pub fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Run {
            config,
            sockets,
            control,
            shards,
            allow_unsealed,
        } => {
            let options = Options {
                sockets,
                shards: shards.into(),
                policy: Policy { allow_unsealed },
            };
            run(&config, &control, &options)
        }
        Command::Stats { control, json } => stats(&control, json),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("vswitch: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(config: &std::path::Path, control: &std::path::Path, options: &Options) -> Result<()> {
    tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_target(false)
        .with_ansi(io::stderr().is_terminal())
        .init();
    // A thread of the packet path that has died would leave guests hanging without a word.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        hook(panic);
        std::process::abort();
    }));
    let loaded = Topology::load(config)?;
    // Blocked before any thread starts, so that they are delivered to `wait` only.
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    signals.thread_block().context("cannot block signals")?;

    let control = Socket::listen(control)?;
    let switch = Switch::start(&loaded.topology, options)?;
    let server = control::Server::start(control, switch.view())
        .context("cannot serve the control socket")?;
    let mut stdout = io::stdout();
    writeln!(stdout, r#"{{"event":"ready"}}"#)
        .and_then(|()| stdout.flush())
        .context("cannot write to standard output")?;
    let signal = signals.wait().context("cannot wait for signals")?;
    tracing::info!("ending on {signal}");
    drop(server);
    drop(switch);
    Ok(())
}

fn stats(control: &std::path::Path, json: bool) -> Result<()> {
    let stats = control::stats(control)?;
    let text = if json {
        serde_json::to_string(&stats)? + "\n"
    } else {
        stats.table()
    };
    io::stdout()
        .write_all(text.as_bytes())
        .context("cannot write to standard output")
}
