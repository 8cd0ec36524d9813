//! `vmm node`: one microVM in the foreground. Runs no event loop of its own, so that a node's process stays small.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use monitor::NodeConfig;

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
    let bad = |error: &dyn std::fmt::Display| {
        Failure::new(Code::Usage, format!("{}: {error}", args.config.display()))
    };
    let text = if args.config.as_os_str() == "-" {
        std::io::read_to_string(std::io::stdin())
    } else {
        std::fs::read_to_string(&args.config)
    };
    let config: NodeConfig =
        serde_json::from_str(&text.map_err(|error| bad(&error))?).map_err(|error| bad(&error))?;
    match monitor::run(&config) {
        Ok(_end) => Ok(ExitCode::SUCCESS),
        Err(error) => Err(Failure::new(
            Code::General,
            format!("node {}: {error}", config.name),
        )),
    }
}
