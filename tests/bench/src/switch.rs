//! The switch that is measured, as its users start it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use crate::process::{Process, command};

/// A running vswitch with pairs of hosts `a0`–`b0`, `a1`–`b1`, …, each with a link between them.
#[derive(Debug)]
pub struct Switch {
    program: PathBuf,
    process: Process,
    dir: TempDir,
}

/// How it is set up.
#[derive(Debug)]
pub struct Setup<'a> {
    pub program: &'a Path,
    /// Goes before the program: a tool that watches it.
    pub wrapper: &'a [String],
    pub cpu: &'a str,
    pub timing: &'a str,
    pub pairs: usize,
    /// Whether its threads have filters of system calls.
    pub confined: bool,
    /// Attributes of every link, in the topology's words.
    pub link: Value,
}

impl Switch {
    /// Starts it and waits until it listens.
    pub fn start(setup: &Setup<'_>) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let mut nodes = Map::new();
        let mut links = Vec::new();
        for n in 0..setup.pairs {
            for side in ["a", "b"] {
                let host = json!({ "kind": "host", "interfaces": { "eth0": {} } });
                nodes.insert(format!("{side}{n}"), host);
            }
            let mut link = json!({ "endpoints": [format!("a{n}:eth0"), format!("b{n}:eth0")] });
            if let (Some(link), Some(more)) = (link.as_object_mut(), setup.link.as_object()) {
                link.extend(more.clone());
            }
            links.push(link);
        }
        let topology = json!({ "timing": setup.timing, "nodes": nodes, "links": links });
        let file = dir.path().join("topology.json");
        std::fs::write(&file, topology.to_string())?;
        let program = setup.program.display().to_string();
        let mut words = setup.wrapper.iter().chain([&program]);
        let mut c = command(setup.cpu, words.next().unwrap_or(&program));
        c.args(words);
        c.arg("run").arg("--config").arg(&file);
        c.arg("--sockets").arg(dir.path());
        c.arg("--control").arg(dir.path().join("control.sock"));
        // DPDK's memory is not sealed.
        c.arg("--allow-unsealed");
        if !setup.confined {
            c.arg("--unconfined");
        }
        let mut process = Process::start("vswitch", &mut c)?;
        process.wait_for("that it is ready", Duration::from_mins(1), |l| {
            l.contains(r#""ready""#).then_some(())
        })?;
        Ok(Self {
            program: setup.program.to_owned(),
            process,
            dir,
        })
    }

    /// The process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// The sockets of pair `n`.
    pub fn sockets(&self, n: usize) -> [PathBuf; 2] {
        ["a", "b"].map(|side| self.dir.path().join(format!("{side}{n}/eth0.sock")))
    }

    /// By how many nanoseconds frames from host `a0` came out late so far: how many in each bucket of the switch's own histogram.
    pub fn lateness(&self) -> Result<BTreeMap<u64, u64>> {
        let mut c = Command::new(&self.program);
        c.args(["stats", "--json", "--control"]);
        c.arg(self.dir.path().join("control.sock"));
        let stats: Value = serde_json::from_slice(&c.output()?.stdout)?;
        let buckets = &stats["links"][0]["directions"][0]["lateness"]["buckets"];
        Ok(serde_json::from_value::<Vec<(u64, u64)>>(buckets.clone())?
            .into_iter()
            .collect())
    }

    /// Ends it and waits until it has ended.
    pub fn end(mut self) {
        self.process.end(Duration::from_secs(20));
    }
}
