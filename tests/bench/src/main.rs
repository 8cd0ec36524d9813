//! `make bench-switch`: Hopyard's switch beside others, on the same machine, in the same run.
//!
//! One processor forwards, another one makes the load. Everything that is compared is started at the beginning, stopped with
//! SIGSTOP, and let go on in turn for a second at a time, so that what else happens on the machine hits all alike.

mod guest;
mod measures;
mod memory;
mod oracle;
mod ovs;
mod process;
mod report;
mod switch;
mod testpmd;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use measures::Bench;
use report::Report;

/// Measures the virtual switch beside others
#[derive(Debug, Parser)]
struct Arguments {
    /// The switch
    #[arg(long, value_name = "PROGRAM", default_value = "target/release/vswitch")]
    vswitch: PathBuf,
    /// The reference back-end
    #[arg(long, value_name = "PROGRAM", default_value = "target/release/oracle")]
    oracle: PathBuf,
    /// Write the figures here, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Measure only this; can be repeated
    #[arg(long, value_name = "MEASURE")]
    only: Vec<Measure>,
    /// Rounds of each comparison
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// On a machine that is used by others: run with this nice value, e.g. -15 (needs root)
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    nice: Option<i32>,
}

type Run = fn(&Bench, &mut Report) -> Result<()>;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Measure {
    /// Frames per second
    Throughput,
    /// Instructions per frame
    Instructions,
    /// Round trip over an idle switch
    RoundTrip,
    /// How late frames are delivered
    Lateness,
    /// How exact a link's rate is
    Rate,
    /// What many ports cost
    Ports,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if let Some(nice) = arguments.nice {
        prefer(nice)?;
    }
    let limit = getrlimit(Resource::Nofile);
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            ..limit
        },
    )?;
    let allowed = sched_getaffinity(None)?;
    let mut cpus = (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu));
    let (Some(first), Some(second)) = (cpus.next(), cpus.next()) else {
        anyhow::bail!("two processors are needed: one forwards, one makes the load");
    };
    // What measures is on the processor of the load.
    let mut own = CpuSet::new();
    own.set(second);
    sched_setaffinity(None, &own)?;

    let bench = Bench {
        vswitch: arguments.vswitch,
        oracle: arguments.oracle,
        switch_cpu: first.to_string(),
        load_cpu: second.to_string(),
        rounds: arguments.rounds.max(1),
    };
    for program in [&bench.vswitch, &bench.oracle] {
        ensure!(
            program.exists(),
            "there is no {}: `make bench-switch` builds it",
            program.display()
        );
    }
    let begin = Instant::now();
    let before = load_average();
    let mut report = Report {
        machine: machine(),
        date: output("date", &["-u", "+%Y-%m-%d %H:%M UTC"]),
        commit: output("git", &["describe", "--always", "--dirty"]),
        load_average: [before, String::new()],
        seconds: 0,
        rows: Vec::new(),
        skipped: Vec::new(),
    };
    let all: [(Measure, Run); 6] = [
        (Measure::Throughput, measures::throughput::measure),
        (Measure::Instructions, measures::instructions::measure),
        (Measure::RoundTrip, measures::round_trip::measure),
        (Measure::Lateness, measures::lateness::measure),
        (Measure::Rate, measures::rate::measure),
        (Measure::Ports, measures::ports::measure),
    ];
    for (which, measure) in all {
        if !arguments.only.is_empty() && !arguments.only.contains(&which) {
            continue;
        }
        eprintln!("==> {which:?}");
        if let Err(e) = measure(&bench, &mut report) {
            eprintln!("{e:#}");
            report.skipped.push(format!("{which:?}: {e:#}"));
        }
    }
    report.load_average[1] = load_average();
    report.seconds = begin.elapsed().as_secs();
    print!("{}", report.table());
    if let Some(file) = arguments.json {
        std::fs::write(&file, serde_json::to_string_pretty(&report)?)
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    ensure!(
        report.skipped.is_empty(),
        "not everything could be measured"
    );
    Ok(())
}

/// Gives this process and its children precedence, also over those of other sessions.
fn prefer(nice: i32) -> Result<()> {
    rustix::process::setpriority_process(None, nice).context("--nice needs root")?;
    let group = "/proc/self/autogroup";
    if std::path::Path::new(group).exists() {
        std::fs::write(group, nice.to_string()).context("--nice needs root")?;
    }
    Ok(())
}

fn output(program: &str, arguments: &[&str]) -> String {
    let output = std::process::Command::new(program).args(arguments).output();
    let text = output.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned());
    text.unwrap_or_default()
}

fn load_average() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or("?").to_owned()
}

fn machine() -> String {
    let cpus = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let names = cpus
        .lines()
        .filter_map(|l| l.strip_prefix("model name")?.split_once(": "));
    let mut names = names.map(|(_, name)| name);
    let first = names.next().unwrap_or("unknown processor");
    format!(
        "{} × {first}, Linux {}",
        1 + names.count(),
        output("uname", &["-r"])
    )
}
