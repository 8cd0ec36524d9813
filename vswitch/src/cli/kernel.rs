//! `vswitch kernel`: a lab's links by the host's kernel, in the foreground.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use jail::filter::Confine;
use nix::sys::signal::{SigSet, Signal};

use crate::control;
use crate::event::{self, Event};
use crate::kernel::Kernel;
use crate::socket::Socket;

/// What a lab says.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The topology, as the lab has read it.
    #[arg(long, value_name = "FILE")]
    sources: PathBuf,
    /// How many nanoseconds ago schedules began.
    #[arg(long, value_name = "NS", default_value_t = 0)]
    elapsed: u64,
    /// The control socket to listen on.
    #[arg(long, value_name = "SOCK")]
    control: PathBuf,
}

/// Runs until SIGTERM or SIGINT.
pub(super) fn run(arguments: &Arguments) -> Result<()> {
    super::set_up();
    let topology = super::sources(&arguments.sources)?;
    // Blocked before any thread starts, so that they are delivered to `wait` only.
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    signals.thread_block().context("cannot block signals")?;
    let control = Socket::listen(&arguments.control)?;
    let kernel = Kernel::start(&topology, Duration::from_nanos(arguments.elapsed))?;
    let server = control::Server::start(control, kernel, Confine::default())
        .context("cannot serve the control socket")?;
    event::tell(&Event::Ready);
    let signal = signals.wait().context("cannot wait for signals")?;
    tracing::info!("ending on {signal}");
    drop(server);
    Ok(())
}
