//! `vmm stop`: ends labs.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;

use super::{Json, block_on, print, print_json};
use crate::client::Client;
use crate::failure::{Code, Failure};
use crate::lab::run_folder::RunRoot;

/// How long a lab may take to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// Arguments of `vmm stop`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  vmm stop\n  vmm stop two-hosts\n  vmm stop --all")]
pub struct StopArgs {
    /// The lab; not needed if only one runs
    #[arg(env = "HOPYARD_LAB")]
    lab: Option<String>,
    /// End all labs
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    pub json: Json,
}

pub fn run(args: &StopArgs) -> Result<ExitCode, Failure> {
    let root = RunRoot::from_env()?;
    let labs: Vec<Client> = if args.all {
        root.labs()
            .iter()
            .map(|name| Client::at(name, &root.lab(name)))
            .collect()
    } else {
        vec![Client::choose(args.lab.as_deref())?]
    };
    block_on(async {
        for lab in &labs {
            lab.stop().await?;
        }
        let deadline = Instant::now() + PATIENCE;
        for lab in &labs {
            while root.labs().iter().any(|name| name == lab.name()) {
                if Instant::now() > deadline {
                    return Err(Failure::new(
                        Code::General,
                        format!(
                            "lab {} did not end within {} s",
                            lab.name(),
                            PATIENCE.as_secs()
                        ),
                    )
                    .help("`vmm ls` shows its process; killing that ends the lab as well"));
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        Ok(())
    })?;
    let names: Vec<_> = labs.iter().map(Client::name).collect();
    if args.json.json {
        print_json(&names)?;
    } else if names.is_empty() {
        print("no lab runs\n")?;
    } else {
        print(&format!("ended {}\n", names.join(", ")))?;
    }
    Ok(ExitCode::SUCCESS)
}
