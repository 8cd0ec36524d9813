//! How exact the rate of a saturated link is over a second.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::json;

use super::instructions::arrive;
use super::{Bench, nanos};
use crate::guest::Guest;
use crate::report::{Report, Row, Target, median};

/// Large frames, so that the rate is what limits; with the overhead of 24 bytes 9000.
const LEN: u32 = 8976;
const BITS: u64 = 72_000;
const BUFFER: usize = 9216;
/// Frames on the way: enough that one is always waiting, fewer than the queue takes.
const RING: u16 = 1024;
const WINDOW: u64 = 600;
const SECOND: u64 = 1_000_000_000;
const RATES: [(&str, u64); 6] = [
    ("1Mbit", 1_000_000),
    ("10Mbit", 10_000_000),
    ("100Mbit", 100_000_000),
    ("1Gbit", 1_000_000_000),
    ("10Gbit", 10_000_000_000),
    ("40Gbit", 40_000_000_000),
];

pub fn measure(bench: &Bench, report: &mut Report) -> Result<()> {
    for (text, rate) in RATES {
        let switch = bench.switch(
            "exact",
            json!({ "rate": text, "queue": { "limit": "2000packets" } }),
        )?;
        let [a, b] = switch.sockets(0);
        let mut a = Guest::with_buffers(&a, RING, BUFFER)?;
        let mut b = Guest::with_buffers(&b, RING, BUFFER)?;
        arrive(&mut a, &mut b)?;
        let mut errors = Vec::new();
        for _ in 0..bench.rounds {
            errors.push(error(&mut a, &mut b, rate)?);
        }
        let error = median(&errors);
        let measure = format!("rate error over 1 s, {text}/s");
        report
            .rows
            .push(Row::new(measure, "%", error).target(Target::AtMost(0.1)));
        switch.end();
    }
    Ok(())
}

/// By how many per cent what arrives within a second differs from `rate`.
fn error(a: &mut Guest, b: &mut Guest, rate: u64) -> Result<f64> {
    // The first frames find the transmitter idle, so the measure begins a little later.
    let skipped = 2;
    let frames = (rate / BITS).max(8);
    let window = WINDOW.min(frames);
    let origin = Instant::now();
    let (mut sent, mut received) = (0, 0);
    let (mut begin, mut now) = (0, 0);
    while received < skipped + frames {
        while sent < received + window && a.send(LEN, sent) {
            sent += 1;
        }
        a.publish();
        while b.receive().is_some() {
            received += 1;
            if received == skipped {
                begin = nanos(origin);
            }
            if received == skipped + frames {
                break;
            }
        }
        now = nanos(origin);
        if now > 20 * SECOND {
            bail!("at {rate} bit/s {received} of {frames} frames arrived in 20 s");
        }
    }
    let ideal = frames as f64 * BITS as f64 / rate as f64 * 1e9;
    // What is left belongs to no measure.
    let end = Instant::now();
    while received < sent && end.elapsed() < Duration::from_secs(5) {
        received += u64::from(b.receive().is_some());
    }
    Ok(((now - begin) as f64 / ideal - 1.0).abs() * 100.0)
}
