//! `vmm logs`: what a node wrote to its serial port.

use std::io::Write;
use std::process::ExitCode;

use clap::Args;

use super::{LabChoice, block_on};
use crate::client::Client;
use crate::failure::{Code, Failure};
use crate::sanitize::Sanitizer;

/// Arguments of `vmm logs`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  vmm logs r1\n  vmm logs -f r1")]
pub struct LogsArgs {
    #[command(flatten)]
    lab: LabChoice,
    /// The node
    node: String,
    /// Go on with what comes, until the lab ends
    #[arg(short, long)]
    follow: bool,
    /// Leave escape sequences and control characters in: they act on the terminal
    #[arg(long)]
    raw: bool,
}

pub fn run(args: &LogsArgs) -> Result<ExitCode, Failure> {
    let client = Client::choose(args.lab.lab.as_deref())?;
    block_on(async {
        let mut log = client.log(&args.node, args.follow).await?;
        let mut sanitizer = Sanitizer::default();
        let mut out = std::io::stdout().lock();
        while let Some(chunk) = log.next().await? {
            let written = if args.raw {
                out.write_all(&chunk)
            } else {
                out.write_all(sanitizer.clean(&chunk).as_bytes())
            };
            match written.and_then(|()| out.flush()) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => break,
                Err(error) => {
                    return Err(Failure::new(
                        Code::General,
                        format!("cannot write to standard output: {error}"),
                    ));
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    })
}
