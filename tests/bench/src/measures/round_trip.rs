//! A small frame there and back, when nothing else happens.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::json;

use super::instructions::arrive;
use super::{Bench, TIMINGS, nanos, pair};
use crate::guest::Guest;
use crate::oracle::Oracle;
use crate::process::Process;
use crate::report::{Report, Row, Target, quantile};
use crate::switch::Switch;

const LEN: u32 = 64;
const TRIPS: usize = 200;
/// Long enough for every switch to have gone to sleep, if it does.
const PAUSE: Duration = Duration::from_millis(2);

enum Forwarder {
    Switch(Switch),
    Oracle(Oracle),
}

impl Forwarder {
    fn process(&self) -> &Process {
        match self {
            Self::Switch(s) => s.process(),
            Self::Oracle(o) => o.process(),
        }
    }
}

pub fn measure(bench: &Bench, report: &mut Report) -> Result<()> {
    let mut all = Vec::new();
    for n in 0..=TIMINGS.len() {
        let (forwarder, sockets) = if let Some(timing) = TIMINGS.get(n) {
            let switch = bench.switch(timing, json!({}))?;
            let sockets = switch.sockets(0);
            (Forwarder::Switch(switch), sockets)
        } else {
            let oracle = Oracle::start(&bench.oracle, &[], &bench.switch_cpu)?;
            let sockets = oracle.sockets();
            (Forwarder::Oracle(oracle), sockets)
        };
        let [mut a, mut b] = pair(&sockets, 256)?;
        arrive(&mut a, &mut b)?;
        arrive(&mut b, &mut a)?;
        forwarder.process().pause();
        all.push((forwarder, [a, b], [Vec::new(), Vec::new()]));
    }
    for _ in 0..bench.rounds {
        for (forwarder, guests, results) in &mut all {
            forwarder.process().resume();
            std::thread::sleep(Duration::from_millis(20));
            let times = trips(guests)?;
            results[0].push(quantile(&times, 0.5));
            results[1].push(quantile(&times, 0.99));
            forwarder.process().pause();
        }
    }
    let Some((.., oracle)) = all.last() else {
        bail!("nothing was measured");
    };
    for (timing, (.., ours)) in TIMINGS.iter().zip(&all) {
        let row = |q: usize, name: &str| {
            let measure = format!("round trip, {timing}, {name}");
            Row::beside(measure, "µs", &ours[q], "oracle", &oracle[q])
        };
        report
            .rows
            .push(row(0, "p50").target(Target::RatioAtMost(1.0)));
        report.rows.push(row(1, "p99"));
        if *timing == "exact" {
            let p50 = crate::report::median(&ours[0]);
            let row = Row::new("round trip, exact, p50", "µs", p50);
            report.rows.push(row.target(Target::AtMost(5.0)));
        }
    }
    Ok(())
}

/// The times of single frames, in microseconds.
fn trips([a, b]: &mut [Guest; 2]) -> Result<Vec<f64>> {
    let origin = Instant::now();
    let mut times = Vec::with_capacity(TRIPS);
    for n in 0..TRIPS {
        std::thread::sleep(PAUSE);
        let begin = nanos(origin);
        a.send(LEN, n as u64);
        a.publish();
        await_frame(b)?;
        b.send(LEN, n as u64);
        b.publish();
        await_frame(a)?;
        times.push((nanos(origin) - begin) as f64 / 1e3);
    }
    Ok(times)
}

fn await_frame(guest: &mut Guest) -> Result<()> {
    let begin = Instant::now();
    while guest.receive().is_none() {
        if begin.elapsed() > Duration::from_secs(10) {
            bail!("a frame was lost");
        }
    }
    Ok(())
}
