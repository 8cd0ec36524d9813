//! `vmm bench`: engines side by side.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use indicatif::ProgressBar;

use super::{EngineChoice, Json, block_on, print, print_json};
use crate::api::types::EngineName;
use crate::bench::{self, table1};
use crate::failure::Failure;

/// Arguments of `vmm bench`.
#[derive(Debug, Args)]
#[command(
    after_help = "Labs of its own are launched, measured by iperf3 and ping in their nodes, and stopped. What is written: FILE.md for people, FILE.csv \
and FILE.json for programs.\n\nExample:\n  vmm bench table1 --out figures"
)]
pub struct BenchArgs {
    #[command(subcommand)]
    verb: BenchVerb,
}

#[derive(Debug, Subcommand)]
enum BenchVerb {
    /// Throughput and round trips, local, to a neighbour and over one and two routers: the paper's first table
    #[command(
        after_help = "Examples:\n  vmm bench table1\n  vmm bench table1 --engine qemu,container --repeat 5 --out figures"
    )]
    Table1(HowArgs),
}

#[derive(Debug, Args)]
struct HowArgs {
    /// Which engines (default: all that work well here)
    #[arg(long, value_enum, value_delimiter = ',', value_name = "ENGINE")]
    engine: Vec<EngineChoice>,
    /// How often each figure is taken; the engines take turns
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    repeat: u32,
    /// How long each transfer takes
    #[arg(long, default_value_t = 3, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..=3600))]
    seconds: u32,
    /// Folder for the files; nothing is written without it
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    #[command(flatten)]
    json: Json,
}

impl BenchArgs {
    /// Whether errors are wanted as JSON.
    pub fn json(&self) -> bool {
        let BenchVerb::Table1(how) = &self.verb;
        how.json.json
    }
}

pub fn run(args: &BenchArgs) -> Result<ExitCode, Failure> {
    let BenchVerb::Table1(how) = &args.verb;
    let asked = how.engine.iter().filter_map(|engine| match engine {
        EngineChoice::Auto => None,
        EngineChoice::Kvm => Some(EngineName::Kvm),
        EngineChoice::Qemu => Some(EngineName::Qemu),
        EngineChoice::Container => Some(EngineName::Container),
    });
    let columns = bench::columns(&asked.collect::<Vec<_>>());
    let amount = table1::Amount {
        repetitions: how.repeat,
        seconds: how.seconds,
    };
    let progress = if std::io::stderr().is_terminal() {
        ProgressBar::new_spinner()
    } else {
        ProgressBar::hidden()
    };
    let tell = |what: &str| {
        progress.set_message(what.to_owned());
        progress.tick();
    };
    let table = block_on(table1::measure(columns, amount, tell));
    progress.finish_and_clear();
    let table = table?;
    let json = serde_json::to_string_pretty(&table).unwrap_or_default();
    if let Some(folder) = &how.out {
        let files = [
            ("md", table.markdown()),
            ("csv", table.csv()),
            ("json", json),
        ];
        bench::write(folder, "table1", &files)?;
    }
    if how.json.json {
        print_json(&table)?;
    } else {
        print(&table.markdown())?;
    }
    Ok(ExitCode::SUCCESS)
}
