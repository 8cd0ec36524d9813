//! Labs that are measured.

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::results::Results;
use super::subject::Subject;
use crate::client::Client;
use crate::failure::{Code, Failure};
use crate::lab::run_folder::RunRoot;

/// Payload of a full TCP segment with time stamps, and bytes of its frame on the wire.
pub const SEGMENT: (f64, f64) = (1448.0, 1538.0);

/// A lab of its own, which ends when this is dropped.
#[derive(Debug)]
pub struct Lab {
    /// Of what.
    pub subject: Subject,
    /// For commands in its nodes.
    pub client: Client,
    /// From the command to the last node that was ready.
    pub launched: Duration,
    name: String,
    _folder: tempfile::TempDir,
}

impl Lab {
    /// Launches the topology in `text`, as a person would.
    pub fn launch(bench: &str, subject: Subject, text: &str) -> Result<Self, Failure> {
        let cannot = |what: &str, error: std::io::Error| {
            Failure::new(Code::General, format!("cannot {what}: {error}"))
        };
        let folder = tempfile::tempdir().map_err(|error| cannot("make a folder", error))?;
        let file = folder.path().join("bench.json");
        fs::write(&file, text).map_err(|error| cannot("write the topology", error))?;
        // Several may be made at a time.
        let name = format!("{bench}-{}-{}", subject.name(), std::process::id());
        let begun = Instant::now();
        let output = vmm()?
            .args(["launch", "-d", "--name", &name])
            .args(subject.options())
            .arg(&file)
            .stdin(Stdio::null())
            .output()
            .map_err(|error| cannot("run vmm launch", error))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            let message = format!("{} does not start: {}", subject.name(), said.trim());
            return Err(Failure::new(Code::Lab, message));
        }
        let launched = begun.elapsed();
        let paths = RunRoot::from_env()?.lab(&name);
        Ok(Self {
            subject,
            client: Client::at(&name, &paths),
            launched,
            name,
            _folder: folder,
        })
    }

    /// One of each subject of `results`; of one that does not start, the reason is put there. The error is that none does.
    pub fn launch_all(
        bench: &str,
        results: &mut Results,
        text: &str,
        mut tell: impl FnMut(Subject),
    ) -> Result<Vec<Self>, Failure> {
        let mut labs = Vec::new();
        let mut last = None;
        for subject in results.subjects() {
            tell(subject);
            match Self::launch(bench, subject, text) {
                Ok(lab) => labs.push(lab),
                Err(failure) => {
                    results.give_up(subject, &failure.message);
                    last = Some(failure);
                }
            }
        }
        match last {
            Some(failure) if labs.is_empty() => Err(failure),
            _ => Ok(labs),
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Ok(mut vmm) = vmm() {
            // A lab that has ended by itself needs no end.
            let _ = vmm.args(["stop", &self.name]).output();
        }
    }
}

fn vmm() -> Result<Command, Failure> {
    let program = std::env::current_exe()
        .map_err(|error| Failure::new(Code::Host, format!("cannot tell where vmm is: {error}")))?;
    Ok(Command::new(program))
}

/// `n0`, `n1` and so on, in a row on links without attributes; those between forward.
pub fn chain(nodes: u32, mtu: u16) -> String {
    let interface = |address: String| json!({"addresses": [address], "mtu": mtu});
    let mut all = serde_json::Map::new();
    for n in 0..nodes {
        let (first, last) = (n == 0, n + 1 == nodes);
        let mut interfaces = serde_json::Map::new();
        let mut routes = Vec::new();
        // Towards lower numbers a route for each network, towards higher ones all others.
        if !first {
            interfaces.insert("left".into(), interface(format!("10.0.{n}.2/24")));
            let via = format!("10.0.{n}.1");
            routes.extend((1..n).map(|net| json!({"to": format!("10.0.{net}.0/24"), "via": via})));
        }
        if !last {
            interfaces.insert(
                "right".into(),
                interface(format!("10.0.{next}.1/24", next = n + 1)),
            );
            let via = format!("10.0.{next}.2", next = n + 1);
            routes.push(json!({"to": "default", "via": via}));
        }
        let kind = if first || last { "host" } else { "router" };
        all.insert(
            format!("n{n}"),
            json!({"kind": kind, "interfaces": interfaces, "routes": routes}),
        );
    }
    let links: Vec<Value> = (1..nodes)
        .map(|n| json!({"endpoints": [format!("n{left}:right", left = n - 1), format!("n{n}:left")]}))
        .collect();
    json!({"nodes": all, "links": links}).to_string()
}

/// The address by which the nodes of a chain before it reach node `n`.
pub fn chain_address(n: u32) -> String {
    if n == 0 {
        "127.0.0.1".to_owned()
    } else {
        format!("10.0.{n}.2")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_are_well_formed() {
        for (nodes, mtu) in [(2, 1500), (4, 500), (32, 1500)] {
            let file = std::path::Path::new("bench.json");
            let loaded = topology::model::Topology::parse(&chain(nodes, mtu), file).unwrap();
            assert_eq!(loaded.topology.links.len() as u32, nodes - 1);
            assert_eq!(loaded.warnings.to_string(), "");
        }
    }
}
