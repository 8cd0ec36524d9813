//! `vmm capture`: frames of links as pcapng, into a file or a pipe.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use hyper::body::Bytes;
use rustix::event::{PollFd, PollFlags, poll};
use tokio::sync::{mpsc, oneshot};

use super::link::choose;
use super::{Json, LabChoice, block_on};
use crate::api::types::{CapturePoint, CaptureRequest};
use crate::client::{ByteStream, Client};
use crate::failure::{Code, Failure};
use crate::lab::EndSignals;

/// Chunks that wait for whoever reads. What he does not take in time stays in the switch, and is then counted as missing.
const WAITING: usize = 4;
/// Signals that come so soon after one another are one wish: `timeout -s INT` sends one to the process and one to its group.
const ONE_WISH: Duration = Duration::from_secs(1);

/// Arguments of `vmm capture`.
#[derive(Debug, Args)]
#[command(
    after_help = "A link is named by its name, by one of its ends (pc1:eth0), or by a node that has only one. The capture ends \
with Ctrl-C, with its reader, or with the lab, and is complete then: docs/capture.md says what is in it.\n\n\
Examples:\n  vmm capture pc1 | wireshark -k -i -\n  vmm capture r1:eth1 --filter icmp | tshark -r -\n  \
vmm capture pc1:eth0 r1:eth1 --point before,drops -w out.pcapng"
)]
pub struct CaptureArgs {
    /// The links; none means all
    #[arg(value_name = "LINK")]
    links: Vec<String>,
    /// The file to write; `-` is standard output
    #[arg(short, long, value_name = "FILE", default_value = "-")]
    write: PathBuf,
    /// Only these frames: an expression of pcap-filter(7), compiled by tcpdump
    #[arg(short, long, value_name = "BPF")]
    filter: Option<String>,
    /// Where on the way of a frame
    #[arg(
        long = "point",
        value_name = "POINT",
        value_enum,
        value_delimiter = ',',
        default_value = "after"
    )]
    points: Vec<CapturePoint>,
    /// Keep at most so many bytes of each frame
    #[arg(short, long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(1..=262_144))]
    snaplen: Option<u32>,
    #[command(flatten)]
    lab: LabChoice,
    #[command(flatten)]
    pub json: Json,
}

pub fn run(args: &CaptureArgs) -> Result<ExitCode, Failure> {
    let to_stdout = args.write.as_os_str() == "-";
    if to_stdout && io::stdout().is_terminal() {
        let refused = "a capture is no text for a terminal";
        return Err(Failure::new(Code::Usage, refused)
            .help("write it to a file (-w FILE) or pipe it (| wireshark -k -i -)"));
    }
    let filter = args.filter.as_deref().map(compile).transpose()?;
    block_on(async {
        let client = Client::choose(args.lab.lab.as_deref())?;
        let links = client.links().await?;
        let chosen = args.links.iter().map(|name| choose(&links, name));
        let chosen: Vec<_> = chosen
            .map(|chosen| chosen.map(|chosen| chosen.link.name.clone()))
            .collect::<Result<_, _>>()?;
        let what = match chosen.as_slice() {
            [] => "all links".to_owned(),
            some => some.join(", "),
        };
        let mut signals = EndSignals::listen()?;
        let (place, frames) = client
            .capture(&CaptureRequest {
                links: chosen,
                points: args.points.clone(),
                filter,
                snaplen: args.snaplen,
            })
            .await?;
        let out = if to_stdout {
            // Without the buffer of standard output, which looks for line ends.
            io::stdout().as_fd().try_clone_to_owned().map(File::from)
        } else {
            // Only now: a capture that is refused leaves the file of the last one alone.
            File::create(&args.write)
        };
        let out = out.map_err(|error| cannot_write(args, &error))?;
        if !to_stdout {
            eprintln!(
                "capturing {what} to {}; Ctrl-C ends it",
                args.write.display()
            );
        }
        pass_on(&client, &place, frames, out, &mut signals, args).await
    })?;
    Ok(ExitCode::SUCCESS)
}

fn compile(expression: &str) -> Result<Vec<capture_filter::Instruction>, Failure> {
    use capture_filter::CompileError;
    capture_filter::compile(expression).map_err(|error| {
        let code = match error {
            CompileError::NoTcpdump | CompileError::Run(_) => Code::Host,
            CompileError::Refused(..) | CompileError::NoProgram(_) => Code::Usage,
        };
        Failure::new(code, error.to_string())
    })
}

fn cannot_write(args: &CaptureArgs, error: &io::Error) -> Failure {
    Failure::new(
        Code::General,
        format!(
            "cannot write the capture to {}: {error}",
            args.write.display()
        ),
    )
}

/// Passes frames on to their end. A signal has the capture completed, a later one ends it as it is.
async fn pass_on(
    client: &Client,
    place: &str,
    mut frames: ByteStream,
    out: File,
    signals: &mut EndSignals,
    args: &CaptureArgs,
) -> Result<(), Failure> {
    let reader_gone = reader_gone(out.try_clone());
    let (queue, mut written) = write(out);
    let mut ending: Option<Instant> = None;
    let pass = async {
        while let Some(chunk) = frames.next().await? {
            if queue.send(chunk).await.is_err() {
                // The thread has ended, and says why.
                break;
            }
        }
        drop(queue);
        std::future::pending::<Result<(), Failure>>().await
    };
    tokio::pin!(pass, reader_gone);
    loop {
        tokio::select! {
            biased;
            written = &mut written => return match written {
                // Who reads has seen enough.
                Ok(Err(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
                Ok(Err(error)) => Err(cannot_write(args, &error)),
                _ => Ok(()),
            },
            () = &mut reader_gone => return Ok(()),
            () = signals.come() => {
                if let Some(since) = ending {
                    if since.elapsed() < ONE_WISH {
                        continue;
                    }
                    let cut = "the capture is not complete: its reader takes nothing";
                    return Err(Failure::new(Code::Interrupted, cut));
                }
                ending = Some(Instant::now());
                let (client, place) = (client.clone(), place.to_owned());
                // If it has ended meanwhile, that is what was wanted.
                tokio::spawn(async move { client.end_capture(&place).await });
            }
            broken = &mut pass => return broken,
        }
    }
}

/// Writes what is sent, on a thread: a write may take as long as the reader pleases. Tells how that ended.
fn write(mut out: File) -> (mpsc::Sender<Bytes>, oneshot::Receiver<io::Result<()>>) {
    let (queue, mut chunks) = mpsc::channel::<Bytes>(WAITING);
    let (ended, written) = oneshot::channel();
    std::thread::spawn(move || {
        let mut write = || {
            while let Some(chunk) = chunks.blocking_recv() {
                out.write_all(&chunk)?;
            }
            Ok(())
        };
        let _ = ended.send(write());
    });
    (queue, written)
}

/// Waits until nobody is left at the other end of the pipe, also while no frames come.
async fn reader_gone(out: io::Result<File>) {
    let (gone, noticed) = oneshot::channel();
    if let Ok(pipe) = out {
        // The thread ends with the process.
        std::thread::spawn(move || {
            let mut fds = [PollFd::new(&pipe, PollFlags::empty())];
            while poll(&mut fds, None).is_err() {}
            let _ = gone.send(());
        });
        if noticed.await.is_ok() {
            return;
        }
    }
    std::future::pending::<()>().await;
}
