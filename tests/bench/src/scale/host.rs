//! What this machine has.

use std::fs;

use anyhow::{Context, Result};

/// Processors, and memory in bytes.
#[derive(Debug, Clone, Copy)]
pub struct Host {
    pub processors: usize,
    /// What could be given away without swapping: the page cache, which all nodes share, counts as free.
    pub available: u64,
}

impl Host {
    pub fn read() -> Result<Self> {
        let text = fs::read_to_string("/proc/meminfo")?;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("MemAvailable:"));
        let kib = line.and_then(|line| {
            line.trim()
                .trim_end_matches("kB")
                .trim()
                .parse::<u64>()
                .ok()
        });
        Ok(Self {
            processors: std::thread::available_parallelism()?.get(),
            available: kib.context("no MemAvailable in /proc/meminfo")? << 10,
        })
    }
}
