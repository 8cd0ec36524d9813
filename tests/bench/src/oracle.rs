//! The reference back-end: `vhost-user-backend` and `virtio-queue`, as anybody would use them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use tempfile::TempDir;

use crate::process::{Process, command};

/// A running oracle.
#[derive(Debug)]
pub struct Oracle {
    process: Process,
    dir: TempDir,
}

impl Oracle {
    /// Starts it, by way of `wrapper` if there is one.
    pub fn start(program: &Path, wrapper: &[String], cpu: &str) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let program = program.display().to_string();
        let mut words = wrapper.iter().chain([&program]);
        let mut c = command(cpu, words.next().unwrap_or(&program));
        c.args(words);
        c.arg("--a").arg(dir.path().join("a"));
        c.arg("--b").arg(dir.path().join("b"));
        let mut process = Process::start("oracle", &mut c)?;
        process.wait_for("that it is ready", Duration::from_mins(1), |l| {
            l.contains(r#""ready""#).then_some(())
        })?;
        Ok(Self { process, dir })
    }

    pub fn process(&self) -> &Process {
        &self.process
    }

    pub fn sockets(&self) -> [PathBuf; 2] {
        ["a", "b"].map(|name| self.dir.path().join(name))
    }

    /// Ends it and waits until it has ended.
    pub fn end(mut self) {
        self.process.end(Duration::from_secs(20));
    }
}
