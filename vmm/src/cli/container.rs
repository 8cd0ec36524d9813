//! `vmm container`: what becomes PID 1 of a node of engine `container`.

use std::process::ExitCode;

use clap::Args;
use monitor::NodeConfig;

use crate::engine::container::init;
use crate::failure::{Code, Failure};

/// Arguments of the hidden verb.
#[derive(Debug, Args)]
pub struct ContainerArgs {
    /// The node, as JSON
    #[arg(value_parser = config)]
    config: NodeConfig,
}

fn config(text: &str) -> Result<NodeConfig, String> {
    serde_json::from_str(text).map_err(|error| error.to_string())
}

pub fn run(args: &ContainerArgs) -> Result<ExitCode, Failure> {
    if std::process::id() != 1 {
        return Err(Failure::new(
            Code::Usage,
            "only a lab runs this, in namespaces of its own",
        ));
    }
    let error = init::become_node(&args.config);
    let name = &args.config.name;
    Err(Failure::new(Code::Host, format!("node {name}: {error}")))
}
