//! `vmm adopt`: takes over a lab whose process was killed.

use std::process::ExitCode;

use clap::Args;

use super::launch::{background, part_from_starter};
use super::{Json, block_on};
use crate::failure::{Code, Failure};
use crate::lab::run_folder::RunRoot;
use crate::lab::{self, EndSignals};

/// Arguments of `vmm adopt`.
#[derive(Debug, Args)]
#[command(
    after_help = "Only labs whose topology says `\"orphaned\": \"keep\"` outlive their process.\n\nExamples:\n  vmm adopt\n  vmm adopt two-hosts"
)]
pub struct AdoptArgs {
    /// The lab; not needed if only one has lost its process
    #[arg(env = "HOPYARD_LAB")]
    lab: Option<String>,
    #[command(flatten)]
    pub json: Json,
    /// Be the lab process
    #[arg(long, hide = true)]
    lab_process: bool,
}

pub fn run(args: &AdoptArgs) -> Result<ExitCode, Failure> {
    if !args.lab_process {
        // How its nodes were is not for this command to judge.
        return block_on(background(args.json.json, |_| ExitCode::SUCCESS));
    }
    let root = RunRoot::from_env()?;
    let name = choose(args.lab.as_deref(), &root)?;
    block_on(async {
        let signals = EndSignals::listen()?;
        let prepared = lab::adopt(&name, &root).await?;
        part_from_starter(prepared.paths(), &name)?;
        prepared.run(signals).await?;
        Ok(ExitCode::SUCCESS)
    })
}

/// The lab called `name`, or the only one that has lost its process.
fn choose(name: Option<&str>, root: &RunRoot) -> Result<String, Failure> {
    let mut labs = root.labs();
    if let Some(name) = name {
        return if !labs.iter().any(|lab| lab == name) {
            Err(
                Failure::new(Code::NotFound, format!("no lab called {name} runs"))
                    .help("`vmm ls` lists the labs"),
            )
        } else if root.lab(name).is_orphaned() {
            Ok(name.to_owned())
        } else {
            let message = format!("lab {name} has its process");
            Err(Failure::new(Code::General, message).help("there is nothing to take over"))
        };
    }
    labs.retain(|lab| root.lab(lab).is_orphaned());
    match labs.as_slice() {
        [only] => Ok(only.clone()),
        [] => Err(Failure::new(Code::NotFound, "no lab has lost its process")
            .help("`vmm ls` lists the labs")),
        several => {
            let message = format!(
                "several labs have lost their process: {}",
                several.join(", ")
            );
            Err(Failure::new(Code::NotFound, message).help("name one of them"))
        }
    }
}
