//! `vswitch capture`: the client's side of a capture.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use capture_filter::compile;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, poll};

use crate::capture::{Point, Request};
use crate::control;

/// What is captured, and where it goes.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The control socket of the switch.
    #[arg(long, value_name = "SOCK")]
    control: PathBuf,
    /// Links by name, or one direction of a link as `FROM>TO`, both as `vswitch stats` shows them; none means all links.
    #[arg(value_name = "LINK")]
    links: Vec<String>,
    /// Where: `before` the queue, `after` delivery, or `drops`, with the reason as the packet's comment.
    #[arg(long = "point", value_name = "POINT", value_delimiter = ',', default_value = "after", value_parser = |text: &str| text.parse::<Point>())]
    points: Vec<Point>,
    /// Only these frames: an expression of pcap-filter(7), compiled by tcpdump.
    #[arg(short, long, value_name = "EXPRESSION")]
    filter: Option<String>,
    /// Keep at most so many bytes of each frame.
    #[arg(short, long, value_name = "BYTES")]
    snaplen: Option<u32>,
    /// The file to write; `-` is standard output.
    #[arg(short, long, value_name = "FILE", default_value = "-")]
    write: PathBuf,
}

/// Captures until SIGINT or SIGTERM, until nobody reads standard output any more, or until the switch ends.
pub(super) fn capture(arguments: Arguments) -> Result<()> {
    let to_stdout = arguments.write == Path::new("-");
    if to_stdout && io::stdout().is_terminal() {
        bail!(
            "a capture is no text for a terminal: write it to a file (-w FILE) or pipe it (| wireshark -k -i -)"
        );
    }
    let filter = arguments.filter.as_deref().map(compile).transpose()?;
    let request = Request {
        links: arguments.links,
        points: arguments.points,
        filter,
        snaplen: arguments.snaplen,
    };
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    signals.thread_block().context("cannot block signals")?;
    let signals =
        SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC).context("cannot receive signals")?;
    let stream = control::capture(&arguments.control, request)?;
    let mut out = if to_stdout {
        let stdout: OwnedFd = io::stdout().as_fd().try_clone_to_owned()?;
        File::from(stdout)
    } else {
        let name = arguments.write.display();
        File::create(&arguments.write).with_context(|| format!("cannot write {name}"))?
    };
    if !to_stdout {
        eprintln!(
            "vswitch: capturing to {}; end with Ctrl-C",
            arguments.write.display()
        );
    }
    match copy(&stream, &mut out, &signals) {
        // Who reads has seen enough.
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        done => done
            .with_context(|| format!("cannot write the capture to {}", arguments.write.display())),
    }
}

fn copy(mut stream: &UnixStream, out: &mut File, signals: &SignalFd) -> io::Result<()> {
    let mut chunk = vec![0; 256 << 10];
    let mut ending = false;
    loop {
        let stop = if ending {
            PollFlags::empty()
        } else {
            PollFlags::IN
        };
        let mut fds = [
            PollFd::new(&stream, PollFlags::IN),
            PollFd::new(&signals, stop),
            PollFd::new(&*out, PollFlags::empty()),
        ];
        poll(&mut fds, None)?;
        let [came, signalled, reader] = [0, 1, 2].map(|i: usize| fds[i].revents());
        if signalled.contains(PollFlags::IN) {
            ending = true;
            // The switch writes what it still has, and closes.
            stream.shutdown(Shutdown::Write)?;
        }
        if reader.intersects(PollFlags::ERR | PollFlags::HUP) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if !came.is_empty() {
            match stream.read(&mut chunk)? {
                0 => return Ok(()),
                n => out.write_all(&chunk[..n])?,
            }
        }
    }
}
