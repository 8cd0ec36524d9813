//! One module per row, or group of rows, of the table.

pub mod instructions;
pub mod lateness;
pub mod ports;
pub mod rate;
pub mod round_trip;
pub mod throughput;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;
use serde_json::Value;

use crate::guest::Guest;
use crate::switch::{Setup, Switch};

/// The values of `timing`.
const TIMINGS: [&str; 3] = ["eco", "balanced", "exact"];

/// What and where.
#[derive(Debug)]
pub struct Bench {
    pub vswitch: PathBuf,
    pub oracle: PathBuf,
    pub switch_cpu: String,
    pub load_cpu: String,
    pub rounds: usize,
}

impl Bench {
    /// A switch on its processor with one pair of hosts.
    fn switch(&self, timing: &str, link: Value) -> Result<Switch> {
        self.wrapped(timing, 1, link, &[])
    }

    fn wrapped(
        &self,
        timing: &str,
        pairs: usize,
        link: Value,
        wrapper: &[String],
    ) -> Result<Switch> {
        Switch::start(&Setup {
            wrapper,
            pairs,
            ..self.setup(timing, link)
        })
    }

    fn setup<'a>(&'a self, timing: &'a str, link: Value) -> Setup<'a> {
        Setup {
            program: &self.vswitch,
            wrapper: &[],
            cpu: &self.switch_cpu,
            timing,
            pairs: 1,
            confined: true,
            link,
        }
    }
}

/// Guests on both sockets.
fn pair(sockets: &[PathBuf; 2], size: u16) -> Result<[Guest; 2]> {
    Ok([
        Guest::connect(&sockets[0], size)?,
        Guest::connect(&sockets[1], size)?,
    ])
}

/// Nanoseconds since `origin`.
fn nanos(origin: Instant) -> u64 {
    origin.elapsed().as_nanos() as u64
}
