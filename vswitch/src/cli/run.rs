//! `vswitch run`: the switch in the foreground.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use nix::sys::signal::{SigSet, Signal};
use rustix::fs::Mode;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit, umask};
use topology::model::{Timing, Topology};

use super::wiring::{Wired, Wiring};
use crate::capture::FileRequest;
use crate::control;
use crate::event::{self, Event};
use crate::filters::Filters;
use crate::port::Policy;
use crate::socket::Socket;
use crate::switch::{Options, Sockets, Switch};

/// What runs, and how.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Run the links of a topology file, instead of --port, --link, --switch and --hub.
    #[arg(
        long,
        value_name = "FILE",
        requires = "sockets",
        conflicts_with = "wiring"
    )]
    config: Option<PathBuf>,
    /// Run the links of a topology that was read before (what a lab does).
    #[arg(long, value_name = "FILE", hide = true, requires = "sockets", conflicts_with_all = ["config", "wiring"])]
    sources: Option<PathBuf>,
    /// How many nanoseconds ago schedules and traces began (what a lab does with a switch that takes the place of another).
    #[arg(long, value_name = "NS", hide = true, default_value_t = 0)]
    elapsed: u64,
    /// With --config: the folder in which one socket per machine interface is made, NODE.INTERFACE.sock.
    #[arg(long, value_name = "DIR")]
    sockets: Option<PathBuf>,
    #[command(flatten)]
    wiring: Wiring,
    /// The control socket to listen on, for `vswitch stats` and `vswitch capture`.
    #[arg(long, value_name = "SOCK")]
    control: Option<PathBuf>,
    /// How processor time is traded for exact delivery times [default: the file's, or balanced].
    #[arg(long, value_name = "TIMING")]
    timing: Option<TimingName>,
    /// The seed of every random draw [default: the file's, or 1].
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Threads for the packet path. A group of connected links stays on one.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    shards: u16,
    /// Bind the threads of the packet path to these processors, in turn: 2 or 2,3 or 2-5.
    #[arg(long, value_name = "CPUS", value_parser = processors)]
    pin: Option<Processors>,
    /// Accept guest memory that is not a sealed memfd, or on huge pages, as DPDK's virtio-user has it. Whoever owns such memory can
    /// end the switch by shrinking it: only for front-ends you trust.
    #[arg(long)]
    allow_unsealed: bool,
    /// Keep all system calls: to debug the switch itself, with a backtrace of a panic, say. Otherwise each thread keeps those of its kind.
    #[arg(long)]
    unconfined: bool,
    /// The jail to enter once the topology is read and the control socket listens, as JSON.
    #[arg(long, hide = true, value_parser = jail_plan)]
    jail: Option<jail::Plan>,
    /// Capture to a file from the first frame to the end: all links after delivery, unless link=LINK, point=POINT (both may be
    /// repeated), snaplen=BYTES and, at the end, filter=EXPRESSION say otherwise; as in `vswitch capture`.
    #[arg(long, value_name = "FILE[,OPTION]...")]
    capture: Vec<String>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum TimingName {
    /// Sleep whenever possible.
    Eco,
    /// Sleep when idle, poll under load.
    Balanced,
    /// Never sleep while a guest is there.
    Exact,
}

impl From<TimingName> for Timing {
    fn from(name: TimingName) -> Self {
        match name {
            TimingName::Eco => Self::Eco,
            TimingName::Balanced => Self::Balanced,
            TimingName::Exact => Self::Exact,
        }
    }
}

/// A list of processors.
#[derive(Debug, Clone, Default)]
struct Processors(Vec<usize>);

fn processors(text: &str) -> Result<Processors, String> {
    let mut all = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| match text.parse::<u16>() {
            Ok(number) => Ok(usize::from(number)),
            Err(_) => Err(format!("`{text}` is not the number of a processor")),
        };
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return Err(format!("`{part}` is no range: the first is the larger one"));
        }
        all.extend(first..=last);
    }
    Ok(Processors(all))
}

/// Runs until SIGTERM or SIGINT.
pub(super) fn run(arguments: &Arguments) -> Result<()> {
    super::set_up();
    let captures = arguments.capture.iter().map(|c| FileRequest::parse(c));
    let captures = captures.collect::<Result<_, _>>()?;
    let (mut topology, sockets) = configuration(arguments)?;
    if let Some(timing) = arguments.timing {
        topology.timing = timing.into();
    }
    if let Some(seed) = arguments.seed {
        topology.seed = seed;
    }
    let options = Options {
        sockets,
        shards: arguments.shards.into(),
        cpus: arguments.pin.clone().unwrap_or_default().0,
        policy: Policy {
            allow_unsealed: arguments.allow_unsealed,
        },
        captures,
        elapsed: Duration::from_nanos(arguments.elapsed),
        filters: if arguments.unconfined {
            Filters::default()
        } else {
            Filters::new()?
        },
    };
    raise_descriptor_limit();
    // Blocked before any thread starts, so that they are delivered to `wait` only.
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    signals.thread_block().context("cannot block signals")?;

    let control = arguments
        .control
        .as_deref()
        .map(Socket::listen)
        .transpose()?;
    if let Some(plan) = &arguments.jail {
        // Each machine's process connects as a user of its own. Everybody may, who gets at the folder: a lab's is closed to others.
        umask(Mode::empty());
        jail::enter(plan)?;
    }
    let switch = Switch::start(&topology, &options)?;
    let server = control.map(|socket| {
        control::Server::start(socket, switch.view(), options.filters.control.clone())
    });
    let server = server
        .transpose()
        .context("cannot serve the control socket")?;
    options.filters.main.this_thread();
    event::tell(&Event::Ready);
    let signal = signals.wait().context("cannot wait for signals")?;
    tracing::info!("ending on {signal}");
    drop(server);
    drop(switch);
    Ok(())
}

fn jail_plan(text: &str) -> Result<jail::Plan, String> {
    serde_json::from_str(text).map_err(|error| error.to_string())
}

/// What runs, and where its sockets are.
fn configuration(arguments: &Arguments) -> Result<(Topology, Sockets)> {
    if let (Some(config), Some(folder)) = (&arguments.config, &arguments.sockets) {
        let loaded = Topology::load(config)?;
        return Ok((loaded.topology, Sockets::Folder(folder.clone())));
    }
    if let (Some(path), Some(folder)) = (&arguments.sources, &arguments.sockets) {
        return Ok((super::sources(path)?, Sockets::Folder(folder.clone())));
    }
    if arguments.sockets.is_some() {
        bail!("--sockets is for the interfaces of a topology: name its file with --config");
    }
    if arguments.wiring.has_no_ports() {
        bail!(
            "nothing to run: name ports (--port NAME=PATH) and links (--link END,END), or a topology (--config FILE)"
        );
    }
    let Wired {
        topology,
        sockets,
        warnings,
    } = arguments.wiring.read()?;
    if !warnings.is_empty() {
        eprintln!("{warnings}");
    }
    Ok((topology, Sockets::Each(sockets)))
}

/// Every port takes a handful of descriptors, and the usual soft limit is there for programs that use `select`.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    // With the limit as it is, there is room for fewer ports; who needs more is told then.
    let _ = setrlimit(Resource::Nofile, raised);
}
