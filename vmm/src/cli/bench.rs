//! `vmm bench`: engines side by side.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::{Json, block_on, print, print_json};
use crate::bench::{self, Amount, Results, Subject, exits, fidelity, hops, scale, table1};
use crate::failure::Failure;

/// Arguments of `vmm bench`.
#[derive(Debug, Args)]
#[command(
    after_help = "Labs of its own are launched, measured by iperf3 and ping in their nodes, and stopped. What --out writes for each: BENCH.md, BENCH.csv, \
BENCH.json, plots as SVG, and report.html with all that the folder has.\n\nExamples:\n  vmm bench all --out figures\n  vmm bench table1 --engine kvm,qemu-tap"
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
    /// Throughput, round trip and processor time over more and more routers: the paper's figures 6 and 7
    #[command(after_help = "Example:\n  vmm bench hops --most 30 --engine kvm,container")]
    Hops(HopsArgs),
    /// Time of launch, memory and idle processor time of larger and larger labs
    #[command(after_help = "Example:\n  vmm bench scale --most 64 --engine kvm,container-veth")]
    Scale(ScaleArgs),
    /// Delay, rate and loss of a link, asked against measured end to end
    #[command(after_help = "Example:\n  vmm bench fidelity --seconds 10")]
    Fidelity(HowArgs),
    /// Exits and interrupts of virtual machines and copies in the switch, by packet
    #[command(after_help = "Example:\n  sudo vmm bench exits --engine kvm,qemu-tap")]
    Exits(HowArgs),
    /// All of them, one after the other
    #[command(after_help = "Example:\n  vmm bench all --out figures")]
    All(AllArgs),
}

#[derive(Debug, Args)]
struct HowArgs {
    /// What is compared (default: all that work well here)
    #[arg(long, value_enum, value_delimiter = ',', value_name = "ENGINE")]
    engine: Vec<Subject>,
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

#[derive(Debug, Args)]
struct HopsArgs {
    /// The most routers on the way
    #[arg(long, default_value_t = 8, value_name = "ROUTERS", value_parser = clap::value_parser!(u32).range(1..=60))]
    most: u32,
    #[command(flatten)]
    how: HowArgs,
}

#[derive(Debug, Args)]
struct ScaleArgs {
    /// The most nodes of a lab
    #[arg(long, default_value_t = 16, value_name = "NODES", value_parser = clap::value_parser!(u32).range(2..=250))]
    most: u32,
    #[command(flatten)]
    how: HowArgs,
}

#[derive(Debug, Args)]
struct AllArgs {
    /// The most routers on the way
    #[arg(long, default_value_t = 8, value_name = "ROUTERS", value_parser = clap::value_parser!(u32).range(1..=60))]
    hops: u32,
    /// The most nodes of a lab
    #[arg(long, default_value_t = 16, value_name = "NODES", value_parser = clap::value_parser!(u32).range(2..=250))]
    nodes: u32,
    #[command(flatten)]
    how: HowArgs,
}

impl BenchArgs {
    fn how(&self) -> &HowArgs {
        match &self.verb {
            BenchVerb::Table1(how) | BenchVerb::Fidelity(how) | BenchVerb::Exits(how) => how,
            BenchVerb::Hops(args) => &args.how,
            BenchVerb::Scale(args) => &args.how,
            BenchVerb::All(args) => &args.how,
        }
    }

    /// Whether errors are wanted as JSON.
    pub fn json(&self) -> bool {
        self.how().json.json
    }
}

pub fn run(args: &BenchArgs) -> Result<ExitCode, Failure> {
    let how = args.how();
    let columns = bench::columns(&how.engine);
    let amount = Amount {
        repetitions: how.repeat,
        seconds: how.seconds,
    };
    let columns = || columns.clone();
    match &args.verb {
        BenchVerb::Table1(_) => show(how, &block_on(table1::measure(columns(), amount))?)?,
        BenchVerb::Hops(args) => {
            show(how, &block_on(hops::measure(columns(), amount, args.most))?)?;
        }
        BenchVerb::Scale(args) => {
            show(
                how,
                &block_on(scale::measure(columns(), amount, args.most))?,
            )?;
        }
        BenchVerb::Fidelity(_) => show(how, &block_on(fidelity::measure(columns(), amount))?)?,
        BenchVerb::Exits(_) => show(how, &block_on(exits::measure(columns(), amount))?)?,
        BenchVerb::All(args) => {
            show(how, &block_on(table1::measure(columns(), amount))?)?;
            show(how, &block_on(hops::measure(columns(), amount, args.hops))?)?;
            show(
                how,
                &block_on(scale::measure(columns(), amount, args.nodes))?,
            )?;
            show(how, &block_on(fidelity::measure(columns(), amount))?)?;
            // The others are worth having where nobody may look at KVM's counters.
            match block_on(exits::measure(columns(), amount)) {
                Ok(results) => show(how, &results)?,
                Err(failure) => eprintln!("exits are not measured: {}", failure.message),
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Each as soon as it is there: the next may take long.
fn show(how: &HowArgs, results: &Results) -> Result<(), Failure> {
    if let Some(folder) = &how.out {
        bench::write(folder, results)?;
    }
    if how.json.json {
        print_json(results)
    } else {
        print(&bench::markdown(results))
    }
}
