//! A lab of hosts on one switch, operated as a person does.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

/// A running lab; its run folder goes with it.
#[derive(Debug)]
pub struct Lab {
    folder: tempfile::TempDir,
    vmm: PathBuf,
    /// How long it took until all nodes were ready.
    pub launched: Duration,
}

/// What `vmm ls --json` says, as far as it is of interest.
#[derive(Debug, Deserialize)]
pub struct State {
    pid: u32,
    nodes: Vec<Node>,
}

#[derive(Debug, Deserialize)]
struct Node {
    #[serde(default)]
    boot: Boot,
    usage: Option<Usage>,
}

/// A node with a kernel of its own that is up.
#[derive(Debug)]
pub struct Machine {
    pub boot: Boot,
    pub usage: Usage,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
pub struct Boot {
    #[serde(default)]
    pub booted_ms: u64,
}

#[derive(Debug, Clone, Copy, Deserialize)]
pub struct Usage {
    cpu_ms: u64,
    pub memory: u64,
    pub guest_memory: u64,
}

impl State {
    pub fn machines(&self) -> impl Iterator<Item = Machine> {
        self.nodes.iter().filter_map(|node| {
            Some(Machine {
                boot: node.boot,
                usage: node.usage?,
            })
        })
    }
}

/// Hosts on one switch.
fn topology(nodes: u32) -> Result<String> {
    let (mut hosts, mut links) = (String::new(), String::new());
    for n in 0..nodes {
        let (high, low) = (n / 250, n % 250 + 1);
        write!(
            hosts,
            ",\n\"h{n}\": {{\"kind\": \"host\", \"interfaces\": {{\"eth0\": {{\"addresses\": [\"10.0.{high}.{low}/16\"]}}}}}}"
        )?;
        let comma = if n == 0 { "" } else { ",\n" };
        write!(links, "{comma}{{\"endpoints\": [\"h{n}:eth0\", \"s\"]}}")?;
    }
    Ok(format!(
        "{{\"name\": \"scale\", \"nodes\": {{\"s\": {{\"kind\": \"switch\"}}{hosts}}}, \"links\": [{links}]}}"
    ))
}

impl Lab {
    pub fn launch(vmm: &Path, engine: &str, nodes: u32, more: &[String]) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("scale").tempdir()?;
        let file = folder.path().join("scale.json");
        fs::write(&file, topology(nodes)?)?;
        let mut lab = Self {
            folder,
            vmm: vmm.to_owned(),
            launched: Duration::ZERO,
        };
        let start = Instant::now();
        let mut command =
            lab.command(&["launch", "-d", "--engine", engine, "--boot-timeout", "600s"]);
        checked(command.args(more).arg(&file))?;
        lab.launched = start.elapsed();
        Ok(lab)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.vmm);
        command
            .args(arguments)
            .env("HOPYARD_RUN", self.folder.path().join("run"));
        command
    }

    pub fn state(&self) -> Result<State> {
        let output = checked(&mut self.command(&["ls", "--json"]))?;
        let labs: Vec<State> = serde_json::from_slice(&output.stdout)?;
        labs.into_iter().next().context("the lab has gone")
    }

    /// Processor time that its processes have taken.
    pub fn cpu(&self) -> Result<Duration> {
        let state = self.state()?;
        let machines: u64 = state.machines().map(|node| node.usage.cpu_ms).sum();
        let lab = ticks(state.pid)? + ticks(switch_of(state.pid)?)?;
        let lab = lab * 1000 / rustix::param::clock_ticks_per_second();
        Ok(Duration::from_millis(machines + lab))
    }

    /// Ends it and says how long that took.
    pub fn stop(self) -> Result<Duration> {
        let start = Instant::now();
        checked(&mut self.command(&["stop", "scale"]))?;
        Ok(start.elapsed())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // What is stopped already is not found.
        let _ = self.command(&["stop", "--all"]).output();
    }
}

fn checked(command: &mut Command) -> Result<Output> {
    let output = command.output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?} failed: {said}");
    Ok(output)
}

/// proc(5): what follows the name in parentheses; utime and stime are the 12th and 13th of it.
fn ticks(pid: u32) -> Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields = stat.rsplit(')').next().unwrap_or_default();
    let times = fields.split_ascii_whitespace().skip(11).take(2);
    times.map(|time| Ok(time.parse::<u64>()?)).sum()
}

/// The switch is the child of the lab of that name.
fn switch_of(lab: u32) -> Result<u32> {
    let children = fs::read_to_string(format!("/proc/{lab}/task/{lab}/children"))?;
    children
        .split_ascii_whitespace()
        .filter_map(|pid| pid.parse().ok())
        .find(|pid: &u32| {
            fs::read_to_string(format!("/proc/{pid}/comm"))
                .is_ok_and(|name| name.trim() == "vswitch")
        })
        .context("the lab has no switch")
}
