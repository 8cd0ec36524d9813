//! `vmm bench`: engines side by side on this machine, by iperf3 and ping in the nodes of labs like anybody's.

mod report;
mod stats;
pub mod table1;

use std::fs;
use std::path::Path;
use std::process::Stdio;

use crate::api::types::EngineName;
use crate::client::Client;
use crate::engine::auto;
use crate::failure::{Code, Failure};
use crate::lab::run_folder::RunRoot;

pub use report::Machine;

/// An engine that is to be measured, or why it is not.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Column {
    /// Which.
    pub engine: EngineName,
    /// Why it cannot be had here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub missing: Option<String>,
}

/// The engines of this machine; those that were asked for, or all.
pub fn columns(asked: &[EngineName]) -> Vec<Column> {
    let all = [EngineName::Kvm, EngineName::Qemu, EngineName::Container];
    let wanted = all
        .into_iter()
        .filter(|engine| asked.is_empty() || asked.contains(engine));
    let column = |engine| {
        let found = match engine {
            // Emulated by the machine around it, it would measure nothing but that.
            EngineName::Kvm if asked.is_empty() => {
                auto::measure().and_then(|choice| match choice.engine.name() {
                    EngineName::Kvm => Ok(()),
                    _ => Err(Failure::new(Code::Host, choice.reason)),
                })
            }
            EngineName::Kvm => auto::kvm().map(drop),
            EngineName::Qemu => auto::qemu().map(drop),
            EngineName::Container => auto::container().map(drop),
        };
        Column {
            engine,
            missing: found.err().map(|failure| failure.message),
        }
    };
    wanted.map(column).collect()
}

/// A lab of its own, which ends when this is dropped.
#[derive(Debug)]
pub struct BenchLab {
    /// For commands in its nodes.
    pub client: Client,
    name: String,
    _folder: tempfile::TempDir,
}

impl BenchLab {
    /// Launches the topology in `text`, as a person would.
    pub fn launch(name: &str, engine: EngineName, text: &str) -> Result<Self, Failure> {
        let cannot = |what: &str, error: std::io::Error| {
            Failure::new(Code::General, format!("cannot {what}: {error}"))
        };
        let folder = tempfile::tempdir().map_err(|error| cannot("make a folder", error))?;
        let file = folder.path().join("bench.json");
        fs::write(&file, text).map_err(|error| cannot("write the topology", error))?;
        // Several may be made at a time.
        let name = format!("{name}-{}", std::process::id());
        let output = vmm()?
            .args(["launch", "-d", "--name", &name, "--engine"])
            .arg(crate::cli::engine_name(engine))
            .arg(&file)
            .stdin(Stdio::null())
            .output()
            .map_err(|error| cannot("run vmm launch", error))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(Failure::new(
                Code::Lab,
                format!(
                    "a lab of engine {} does not start: {}",
                    crate::cli::engine_name(engine),
                    said.trim()
                ),
            ));
        }
        let paths = RunRoot::from_env()?.lab(&name);
        Ok(Self {
            client: Client::at(&name, &paths),
            name,
            _folder: folder,
        })
    }
}

impl Drop for BenchLab {
    fn drop(&mut self) {
        if let Ok(mut vmm) = vmm() {
            // A lab that has ended by itself needs no end.
            let _ = vmm.args(["stop", &self.name]).output();
        }
    }
}

fn vmm() -> Result<std::process::Command, Failure> {
    let program = std::env::current_exe()
        .map_err(|error| Failure::new(Code::Host, format!("cannot tell where vmm is: {error}")))?;
    Ok(std::process::Command::new(program))
}

/// Writes the results into `folder`: `NAME.md`, `NAME.csv`, `NAME.json`.
pub fn write(folder: &Path, name: &str, files: &[(&str, String)]) -> Result<(), Failure> {
    let cannot = |error: std::io::Error| {
        let message = format!("cannot write to {}: {error}", folder.display());
        Failure::new(Code::General, message)
    };
    fs::create_dir_all(folder).map_err(cannot)?;
    for (ending, text) in files {
        fs::write(folder.join(format!("{name}.{ending}")), text).map_err(cannot)?;
    }
    Ok(())
}
