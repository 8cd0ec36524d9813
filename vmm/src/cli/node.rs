//! `vmm node`: one microVM in the foreground. Runs no event loop of its own, so that a node's process stays small.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use crate::failure::{Code, Failure};

/// Arguments of `vmm node`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  vmm node --config node.json")]
pub struct NodeArgs {
    /// What to run, as JSON; `-` is standard input
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

pub fn run(args: &NodeArgs) -> Result<ExitCode, Failure> {
    Err(Failure::new(
        Code::Host,
        format!(
            "cannot run {}: this vmm was built without the KVM monitor",
            args.config.display()
        ),
    )
    .help("use --engine qemu"))
}
