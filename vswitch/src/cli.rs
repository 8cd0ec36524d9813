//! The command line.

mod capture;
mod kernel;
mod run;
mod wiring;

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use topology::Sources;
use topology::model::Topology;

use crate::control;

const EXAMPLES: &str = "\
Examples:
  Two guests, QEMU's or anybody's, on a shaped link:
    vswitch run --port a=/run/x/a.sock --port b=/run/x/b.sock --link a,b,rate=100Mbit,delay=5ms --control /run/x/control.sock

  Its two directions apart, with a queue that is managed:
    vswitch run ... --link a,b,forward.rate=20Mbit,backward.rate=1Mbit,queue.kind=fq_codel,queue.limit=1000packets

  Three guests on a learning switch:
    vswitch run --port a=a.sock --port b=b.sock --port c=c.sock --switch s --link a,s --link b,s --link c,s,loss=0.1%

  The links of a topology file:
    vswitch run --config topo.json --sockets /run/x --control /run/x/control.sock

  What happens on them:
    vswitch stats --control /run/x/control.sock
    vswitch capture --control /run/x/control.sock --filter 'tcp port 80' | wireshark -k -i -
    vswitch capture --control /run/x/control.sock a:eth0--b:eth0 --point before,drops -w drops.pcapng";

/// The virtual switch of a Hopyard lab: vhost-user ports, shaped links, switches and hubs.
#[derive(Debug, Parser)]
#[command(name = "vswitch", version, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run ports and links in the foreground, until SIGTERM or SIGINT.
    #[command(after_help = EXAMPLES)]
    Run(Box<run::Arguments>),
    /// Have the host's kernel make the links of a lab, in a network namespace of its own.
    #[command(hide = true)]
    Kernel(kernel::Arguments),
    /// Write frames of links of a running switch as pcapng, until SIGINT or SIGTERM.
    #[command(after_help = EXAMPLES)]
    Capture(capture::Arguments),
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
        Command::Run(arguments) => run::run(&arguments),
        Command::Kernel(arguments) => kernel::run(&arguments),
        Command::Capture(arguments) => capture::capture(arguments),
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

/// What a process that runs links does first.
fn set_up() {
    tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_target(false)
        .with_ansi(io::stderr().is_terminal())
        .init();
    // A thread that has died would leave guests hanging without a word.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        hook(panic);
        std::process::abort();
    }));
}

/// The topology that a lab has read.
fn sources(path: &Path) -> Result<Topology> {
    let unreadable = || format!("cannot read {}", path.display());
    let text = std::fs::read(path).with_context(unreadable)?;
    let sources: Sources = serde_json::from_slice(&text).with_context(unreadable)?;
    Ok(sources.load()?.topology)
}

fn stats(control: &Path, json: bool) -> Result<()> {
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
