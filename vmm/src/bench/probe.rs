//! What is run in the nodes, and what is read of the host meanwhile.

use std::net::IpAddr;
use std::time::Duration;

use serde_json::Value;
use topology::model::{Target, Throughput};

use super::lab::Lab;
use crate::api::types::HostUsage;
use crate::failure::{Code, Failure};
use crate::lab::usage;
use crate::verify::{ping, throughput};

/// Echo requests for a round trip, and the time between two: nothing else is on the way then.
pub const PINGS: u32 = 10;
const SELDOM: Duration = Duration::from_millis(200);
/// Echo requests a second, slowly enough that nothing is lost for want of room.
pub const OFTEN: u32 = 1000;
/// What ping prints of so many is still read.
const MOST: u32 = 10_000;

/// Seconds that memory may take to settle.
const SETTLING: u32 = 10;
/// MiB that it may still change in a second.
const STEADY_MIB: f64 = 0.5;

/// Where a packet goes from and to: nodes, and the address of the second.
#[derive(Debug, Clone)]
pub struct Path {
    from: String,
    to: Target,
}

impl Path {
    /// The error is a bug.
    pub fn new(from: &str, to: &str, address: &str) -> Result<Self, Failure> {
        let address = address.parse::<IpAddr>().map_err(|error| {
            let message = format!("a bug in vmm: address {address}: {error}");
            Failure::new(Code::General, message)
        })?;
        let name = to.to_owned();
        Ok(Self {
            from: from.to_owned(),
            to: Target { name, address },
        })
    }

    /// Mbit/s of TCP's payload.
    pub async fn tcp(&self, lab: &Lab, seconds: u32) -> Result<f64, Failure> {
        let check = Throughput {
            from: self.from.clone(),
            to: self.to.clone(),
            min: None,
            max: None,
            time: Duration::from_secs(seconds.into()),
        };
        let measured = throughput::measure(&lab.client, &check).await;
        let measured = measured.map_err(|why| self.failed(lab, &why))?;
        let rate = measured
            .values
            .get("bits_per_second")
            .and_then(Value::as_f64);
        Ok(rate.ok_or_else(|| self.failed(lab, &measured.detail))? / 1e6)
    }

    /// Ten echo requests, one after the other: the median round trip, in milliseconds.
    pub async fn round_trip(&self, lab: &Lab) -> Result<f64, Failure> {
        let (answers, said) = self.ask(lab, PINGS, SELDOM).await?;
        ping::median(&answers).ok_or_else(|| self.failed(lab, &format!("no answer ({said})")))
    }

    /// Echo requests as often as `OFTEN` for so long; how many there were, and how many were answered.
    pub async fn flood(&self, lab: &Lab, seconds: u32) -> Result<(f64, f64), Failure> {
        let count = (seconds * OFTEN).min(MOST);
        let (answers, _) = self.ask(lab, count, Duration::from_secs(1) / OFTEN).await?;
        Ok((f64::from(count), answers.len() as f64))
    }

    async fn ask(
        &self,
        lab: &Lab,
        count: u32,
        interval: Duration,
    ) -> Result<(Vec<f64>, String), Failure> {
        let asked = ping::ask(&lab.client, &self.from, &self.to, count, interval).await;
        asked.map_err(|why| self.failed(lab, &why))
    }

    fn failed(&self, lab: &Lab, why: &str) -> Failure {
        let message = format!(
            "{}: nothing was measured from {} to {}: {why}",
            lab.subject.name(),
            self.from,
            self.to.name
        );
        Failure::new(Code::Lab, message)
    }
}

/// How busy this machine is, from when this is made.
#[derive(Debug)]
pub struct Busy(HostUsage);

impl Busy {
    /// From now on.
    pub fn begin() -> Self {
        Self(usage::host().unwrap_or_default())
    }

    /// How many processors were busy since then, on average.
    pub fn processors(&self) -> f64 {
        let now = usage::host().unwrap_or_default();
        let busy = now.busy_ms.saturating_sub(self.0.busy_ms) as f64;
        let idle = now.idle_ms.saturating_sub(self.0.idle_ms) as f64;
        busy / (busy + idle).max(1.0) * f64::from(now.processors)
    }
}

/// MiB of memory that this machine could still give away, once that does not change any more: what has ended gives back late.
pub async fn memory_available() -> f64 {
    let now = || usage::host().unwrap_or_default().memory_available as f64 / f64::from(1 << 20);
    let mut last = now();
    for _ in 0..SETTLING {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let next = now();
        if (next - last).abs() < STEADY_MIB {
            return next;
        }
        last = next;
    }
    last
}
