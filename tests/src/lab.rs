//! A lab that runs, and its nodes.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::process::{self, Output, Running, eventually};
use crate::traces::{Process, descendants};
use crate::world::World;

/// A lab by its name.
#[derive(Debug, Clone)]
pub struct Lab<'w> {
    world: &'w World,
    name: String,
}

impl<'w> Lab<'w> {
    pub(crate) fn new(world: &'w World, name: &str) -> Self {
        let name = name.to_owned();
        Self { world, name }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs a command in a node.
    pub fn exec(&self, node: &str, argv: &[&str]) -> Result<Output> {
        self.exec_with_input(node, argv, b"")
    }

    /// Runs a command in a node, with bytes on standard input.
    pub fn exec_with_input(&self, node: &str, argv: &[&str], input: &[u8]) -> Result<Output> {
        let mut arguments = vec!["exec", "--lab", &self.name, node, "--"];
        arguments.extend(argv);
        self.world.vmm_with_input(&arguments, input)
    }

    /// Runs a shell command in a node; fails unless it succeeds. Returns its standard output.
    pub fn sh(&self, node: &str, command: &str) -> Result<String> {
        Ok(self.exec(node, &["sh", "-c", command])?.success()?.stdout)
    }

    /// The sequence numbers of the answers in what `ping` has written to `file` in a node so far.
    pub fn pings(&self, node: &str, file: &str) -> Result<Vec<u32>> {
        let numbers = format!("sed -n 's/.*icmp_seq=\\([0-9]*\\) .*/\\1/p' {file}");
        let seen = self.sh(node, &numbers)?;
        Ok(seen.lines().map(str::parse).collect::<Result<_, _>>()?)
    }

    /// The longest time in which no answer came to the `ping -D` that wrote `file` in a node.
    pub fn longest_silence(&self, node: &str, file: &str) -> Result<Duration> {
        let times = format!("sed -n 's/^\\[\\([0-9.]*\\)\\] .*icmp_seq=.*/\\1/p' {file}");
        let answered = self.sh(node, &times)?;
        let answered = answered.lines().map(|line| Ok(line.parse()?));
        let answered = answered.collect::<Result<Vec<f64>>>()?;
        let silences = answered.windows(2).map(|pair| pair[1] - pair[0]);
        let longest = silences.max_by(f64::total_cmp);
        let longest = longest.context("there are answers")?;
        Ok(Duration::try_from_secs_f64(longest)?)
    }

    /// More than `least` of them, each once and in order: nothing is lost.
    pub fn expect_every_ping(&self, node: &str, file: &str, least: usize) -> Result<()> {
        let seen = self.pings(node, file)?;
        let all: Vec<u32> = (1..).take(seen.len()).collect();
        ensure!(
            seen.len() > least && seen == all,
            "something is lost or reordered: {seen:?}"
        );
        Ok(())
    }

    /// What `vmm ls --json` says about it.
    pub fn state(&self) -> Result<Value> {
        find(&self.world.ls()?, &self.name)
    }

    /// What `vmm ls LAB --json` says about one node.
    pub fn node(&self, name: &str) -> Result<Value> {
        let nodes = self.world.vmm(&["ls", &self.name, "--json"])?;
        find(&serde_json::from_str(&nodes.success()?.stdout)?, name)
    }

    /// Waits until `holds` is true of a node.
    pub fn wait_for(
        &self,
        name: &str,
        what: &str,
        holds: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        eventually(Duration::from_secs(90), || {
            let node = self.node(name)?;
            ensure!(holds(&node), "node {name} is not {what}: {node}");
            Ok(node)
        })
    }

    /// The hosts and routers: name and addresses without prefix length.
    pub fn machines(&self) -> Result<Vec<(String, Vec<IpAddr>)>> {
        let state = self.state()?;
        let mut machines = Vec::new();
        for node in state["nodes"].as_array().context("a lab has nodes")? {
            if node["kind"] != "host" && node["kind"] != "router" {
                continue;
            }
            let mut addresses = Vec::new();
            for interface in node["interfaces"]
                .as_array()
                .context("a machine has interfaces")?
            {
                for address in interface["addresses"]
                    .as_array()
                    .context("an interface has addresses")?
                {
                    let address = address.as_str().and_then(|text| text.split('/').next());
                    addresses.push(address.context("an address is text")?.parse()?);
                }
            }
            machines.push((
                node["name"]
                    .as_str()
                    .context("a node has a name")?
                    .to_owned(),
                addresses,
            ));
        }
        Ok(machines)
    }

    /// Pings every address of every machine from every other machine.
    pub fn ping_all_pairs(&self) -> Result<()> {
        let machines = self.machines()?;
        ensure!(machines.len() > 1, "one machine alone has nobody to ping");
        for (from, _) in &machines {
            for (to, addresses) in machines.iter().filter(|(to, _)| to != from) {
                for address in addresses {
                    self.exec(
                        from,
                        &[
                            "ping",
                            "-c",
                            "2",
                            "-i",
                            "0.2",
                            "-W",
                            "5",
                            &address.to_string(),
                        ],
                    )?
                    .success()
                    .with_context(|| format!("{from} cannot reach {to}"))?;
                }
            }
        }
        Ok(())
    }

    /// What `vswitch stats --json` says about its links.
    pub fn switch_stats(&self) -> Result<Value> {
        let mut command = self.world.program("vswitch")?;
        command.args(["stats", "--json", "--control"]).arg(
            self.world
                .run_folder()
                .join(&self.name)
                .join("vswitch.sock"),
        );
        let output = process::run(command, b"", Duration::from_secs(20))?.success()?;
        Ok(serde_json::from_str(&output.stdout)?)
    }

    /// Ends it.
    pub fn stop(&self) -> Result<()> {
        self.world.vmm(&["stop", &self.name])?.success()?;
        Ok(())
    }

    /// The link of which `end` is an end.
    pub fn link(&self, end: &str) -> Result<Value> {
        let links = self
            .world
            .vmm(&["link", "ls", "--lab", &self.name, end, "--json"])?
            .success()?
            .stdout;
        Ok(serde_json::from_str::<Value>(&links)?[0].take())
    }

    /// The process number of the lab process.
    pub fn pid(&self) -> Result<u32> {
        Ok(u32::try_from(
            self.state()?["pid"]
                .as_u64()
                .context("a lab has a process")?,
        )?)
    }

    /// The processes below the lab process.
    pub fn processes(&self) -> Result<Vec<Process>> {
        Ok(descendants(self.pid()?))
    }

    /// The process of the lab that runs the switch.
    pub fn switch_pid(&self) -> Result<u32> {
        let lab = self.state()?;
        let pid = lab["switch_pid"].as_u64();
        Ok(u32::try_from(
            pid.with_context(|| format!("no switch in {lab}"))?,
        )?)
    }

    /// The process of the lab that ends what is left when the lab's own is killed.
    pub fn janitor_pid(&self) -> Result<u32> {
        let is_janitor = |process: &Process| {
            let line = std::fs::read(format!("/proc/{}/cmdline", process.pid));
            line.is_ok_and(|line| line.split(|byte| *byte == 0).any(|arg| arg == b"janitor"))
        };
        let janitor = self.processes()?.into_iter().find(is_janitor);
        Ok(janitor.context("no janitor")?.pid)
    }

    /// The process of the lab that runs a node.
    pub fn node_pid(&self, node: &str) -> Result<u32> {
        let node = self.node(node)?;
        Ok(u32::try_from(
            node["pid"]
                .as_u64()
                .with_context(|| format!("no process in {node}"))?,
        )?)
    }
}

/// The entry of that name in a list.
fn find(list: &Value, name: &str) -> Result<Value> {
    let entry = list
        .as_array()
        .into_iter()
        .flatten()
        .find(|entry| entry["name"] == name);
    Ok(entry
        .with_context(|| format!("no {name} in {list}"))?
        .clone())
}

/// A lab whose `vmm launch` stays in the foreground.
#[derive(Debug)]
pub struct Foreground<'w> {
    lab: Lab<'w>,
    launcher: Running,
}

impl<'w> Foreground<'w> {
    pub(crate) fn new(lab: Lab<'w>, launcher: Running) -> Self {
        Self { lab, launcher }
    }

    /// The lab.
    pub fn lab(&self) -> &Lab<'w> {
        &self.lab
    }

    /// Waits until every node is ready.
    pub fn wait_ready(&mut self) -> Result<()> {
        let Self { lab, launcher } = self;
        eventually(Duration::from_mins(2), || {
            if launcher.ended()? {
                return Ok(false);
            }
            let state = lab.state()?;
            ensure!(state["phase"] == "running", "the lab does not run: {state}");
            Ok(true)
        })
        .and_then(|runs| {
            if runs {
                Ok(())
            } else {
                bail!("the launcher of {} has ended", lab.name())
            }
        })
    }

    /// Sends a signal to the launcher.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(self.launcher.pid(), signal)
    }

    /// Waits for the end of the launcher.
    pub fn wait(self) -> Result<Output> {
        self.launcher.wait(Duration::from_mins(1))
    }
}

/// Sends a signal to a process that a lab of this test has started.
pub fn kill(pid: u32, signal: Signal) -> Result<()> {
    let pid = Pid::from_raw(pid.cast_signed()).context("a process has a number")?;
    kill_process(pid, signal).with_context(|| format!("process {pid:?} cannot be sent {signal:?}"))
}
