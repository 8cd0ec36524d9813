//! `bench-scale`: launches larger and larger labs and prints what a node costs: seconds, memory of the host, idle processor time.

mod host;
mod lab;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use serde::Serialize;

use host::Host;
use lab::Lab;

/// How long a lab is left alone before it counts as idle, and for how long it is looked at then.
const SETTLE: Duration = Duration::from_secs(5);
const IDLE: Duration = Duration::from_secs(10);

/// Launches larger and larger labs and prints what a node costs.
#[derive(Debug, Parser)]
struct Arguments {
    /// The vmm program; its vswitch is beside it
    #[arg(long)]
    vmm: PathBuf,
    /// The engine
    #[arg(long, default_value = "kvm")]
    engine: String,
    /// How many nodes, lab after lab
    #[arg(long, value_delimiter = ',', default_value = "1,10,25,50")]
    nodes: Vec<u32>,
    /// How many nodes to extrapolate to
    #[arg(long, default_value_t = 200)]
    goal: u32,
    /// More arguments of `vmm launch`, such as --isolation=none
    #[arg(long, allow_hyphen_values = true)]
    launch: Vec<String>,
    /// Write what was measured here as well
    #[arg(long)]
    json: Option<PathBuf>,
}

/// What was measured of one lab. Memory in bytes.
#[derive(Debug, Clone, Serialize)]
struct Measured {
    nodes: u32,
    /// From exec of `vmm launch` until every node was ready.
    launch_s: f64,
    /// Median time from the start of a node's process until its agent answered.
    boot_median_s: f64,
    /// What the host has less than before.
    host_memory: u64,
    /// Of it, resident memory of the guests.
    guest_memory: u64,
    /// Resident memory of the monitors, program text that they share included each time.
    monitor_memory: u64,
    /// Processor time of all monitors, the switch and the lab while nothing happens, in parts of one processor.
    idle_cpu: f64,
    /// From `vmm stop` until nothing was left.
    stop_s: f64,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let host = Host::read()?;
    println!(
        "{} processors, {} MiB available, engine {}\n",
        host.processors,
        host.available >> 20,
        arguments.engine
    );
    println!(
        "{:>6} {:>9} {:>9} {:>9} {:>9} {:>9} {:>10} {:>7}",
        "nodes", "launch s", "boot s", "host MiB", "guest MiB", "own MiB", "idle CPU %", "stop s"
    );
    println!(
        "{:>6} {:>9} {:>9} {:>29} {:>10}",
        "", "all", "median", "per node", "per node"
    );
    let mut all = Vec::new();
    for nodes in &arguments.nodes {
        let measured = measure(&arguments, *nodes)?;
        print_row(&measured);
        all.push(measured);
    }
    if let [.., before, last] = &all[..] {
        extrapolate(before, last, arguments.goal);
    }
    if let Some(path) = &arguments.json {
        std::fs::write(path, serde_json::to_vec_pretty(&all)?)
            .with_context(|| path.display().to_string())?;
    }
    Ok(())
}

fn print_row(measured: &Measured) {
    let per_node = |bytes: u64| bytes as f64 / f64::from(measured.nodes) / f64::from(1 << 20);
    println!(
        "{:>6} {:>9.2} {:>9.2} {:>9.1} {:>9.1} {:>9.1} {:>10.2} {:>7.2}",
        measured.nodes,
        measured.launch_s,
        measured.boot_median_s,
        per_node(measured.host_memory),
        per_node(measured.guest_memory),
        per_node(measured.monitor_memory),
        measured.idle_cpu * 100.0 / f64::from(measured.nodes),
        measured.stop_s
    );
}

/// A straight line through the two largest labs.
fn extrapolate(before: &Measured, last: &Measured, goal: u32) {
    let more = f64::from(last.nodes) - f64::from(before.nodes);
    let at_goal = |of: &dyn Fn(&Measured) -> f64| {
        let slope = (of(last) - of(before)) / more;
        of(last) + slope * (f64::from(goal) - f64::from(last.nodes))
    };
    println!(
        "\n{goal} nodes, extrapolated from {} and {}: {:.0} s to launch, {:.1} GiB of the host's memory",
        before.nodes,
        last.nodes,
        at_goal(&|m| m.launch_s),
        at_goal(&|m| m.host_memory as f64) / f64::from(1 << 30),
    );
}

fn measure(arguments: &Arguments, nodes: u32) -> Result<Measured> {
    let before = Host::read()?;
    let lab = Lab::launch(&arguments.vmm, &arguments.engine, nodes, &arguments.launch)?;
    std::thread::sleep(SETTLE);
    let after = Host::read()?;
    let state = lab.state()?;
    let busy = lab.cpu()?;
    std::thread::sleep(IDLE);
    let idle_cpu = lab.cpu()?.saturating_sub(busy).as_secs_f64() / IDLE.as_secs_f64();
    let launch_s = lab.launched.as_secs_f64();
    let mut boots: Vec<_> = state.machines().map(|node| node.boot.booted_ms).collect();
    ensure!(
        boots.len() == nodes as usize,
        "not every node booted: {state:?}"
    );
    boots.sort_unstable();
    let usage = || state.machines().map(|node| node.usage);
    let measured = Measured {
        nodes,
        launch_s,
        boot_median_s: boots[boots.len() / 2] as f64 / 1000.0,
        host_memory: before.available.saturating_sub(after.available),
        guest_memory: usage().map(|usage| usage.guest_memory).sum(),
        monitor_memory: usage()
            .map(|usage| usage.memory.saturating_sub(usage.guest_memory))
            .sum(),
        idle_cpu,
        stop_s: lab.stop()?.as_secs_f64(),
    };
    Ok(measured)
}
