//! `vmm attach`: what a start-up command of a node says.

use std::process::ExitCode;

use clap::Args;

use super::exec::Writer;
use super::{LabChoice, block_on};
use crate::api::types::{STDERR, STDOUT};
use crate::client::Client;
use crate::failure::{Code, Failure};
use crate::sanitize::Sanitizer;
use crate::session::{self, Said, signal_status};

/// The agent knows its commands.
const AGENT: &str = "/sbin/hopyard-agent";

/// Arguments of `vmm attach`.
#[derive(Debug, Args)]
#[command(
    after_help = "The commands are those of `commands` in the topology. A node keeps the last of what each of them says, up to 1 MiB. Ctrl-C leaves it running; \
if it ends, its status is that of attach.\n\nExamples:\n  vmm attach pc1\n  vmm attach r1 2"
)]
pub struct AttachArgs {
    /// The node
    node: String,
    /// Which of its commands, from 1; not needed if there is only one
    #[arg(value_name = "N")]
    number: Option<u32>,
    /// Leave escape sequences and control characters in: they act on the terminal
    #[arg(long)]
    raw: bool,
    #[command(flatten)]
    lab: LabChoice,
}

pub fn run(args: &AttachArgs) -> Result<ExitCode, Failure> {
    let attach = async {
        let client = Client::choose(args.lab.lab.as_deref())?;
        let number = args.number.map(|number| number.to_string());
        let mut argv = vec![AGENT, "attach"];
        argv.extend(number.as_deref());
        let (input, mut output) =
            session::start(&client, &args.node, &session::command(&argv)).await?;
        input.end().await;
        let writer = Writer::start();
        let mut clean = [Sanitizer::default(), Sanitizer::default()];
        let status = loop {
            let (stream, data) = match output.next().await? {
                Said::Stdout(data) => (STDOUT, data),
                Said::Stderr(data) => (STDERR, data),
                Said::Refused { message, .. } => {
                    let failure = format!("node {}: {message}", args.node);
                    return Err(Failure::new(Code::Exec, failure));
                }
                Said::Ended(status) => break status,
            };
            let data = if args.raw {
                data.to_vec()
            } else {
                let sanitizer = &mut clean[usize::from(stream == STDERR)];
                sanitizer.clean(&data).into_bytes()
            };
            if writer.queue.send((stream, data)).await.is_err() {
                break signal_status(rustix::process::Signal::PIPE.as_raw());
            }
        };
        writer.finish();
        Ok(ExitCode::from(status))
    };
    block_on(attach).map_err(|failure| failure.with_code(Code::Exec))
}
