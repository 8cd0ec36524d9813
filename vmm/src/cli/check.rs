//! `vmm check`: what is wrong with a topology file.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;
use topology::model::{NodeKind, Topology};
use topology::{Loaded, Report};

use super::{Json, print, print_json};
use crate::failure::{Code, Failure};

/// Arguments of `vmm check`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  vmm check configs/lan.json")]
pub struct CheckArgs {
    /// The topology file
    file: PathBuf,
    #[command(flatten)]
    pub json: Json,
}

#[derive(Serialize)]
struct Verdict {
    valid: bool,
    report: Report,
}

pub fn run(args: &CheckArgs) -> Result<ExitCode, Failure> {
    let (loaded, report) = match Topology::load(&args.file) {
        Ok(Loaded {
            topology, warnings, ..
        }) => (Some(topology), warnings),
        Err(report) => (None, report),
    };
    let valid = loaded.is_some();
    if args.json.json {
        print_json(&Verdict { valid, report })?;
    } else {
        eprint!("{}", report.render(std::io::stderr().is_terminal()));
        if let Some(topology) = loaded {
            print(&summary(&args.file, &topology))?;
        }
    }
    Ok(if valid {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(Code::Topology as u8)
    })
}

fn summary(file: &Path, topology: &Topology) -> String {
    let machines = topology
        .nodes
        .iter()
        .filter(|node| matches!(node.kind, NodeKind::Machine(_)))
        .count();
    format!(
        "{}: lab {} with {} machines, {} other nodes and {} links\n",
        file.display(),
        topology.name,
        machines,
        topology.nodes.len() - machines,
        topology.links.len()
    )
}
