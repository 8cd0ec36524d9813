//! How much later frames arrive than the link's rate and delay say, seen from the guests; beside loops that do nothing but wait
//! for the same times, and beside what the switch itself has counted.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use rustix::event::{Timespec, epoll};
use rustix::thread::{CpuSet, sched_setaffinity, set_current_timer_slack};
use serde_json::json;

use super::instructions::arrive;
use super::{Bench, TIMINGS, nanos, pair};
use crate::guest::Guest;
use crate::report::{Report, Row, Target, median, quantile};

/// With the overhead of 24 bytes, 10 µs at 1 Gbit/s.
const LEN: u32 = 1226;
const TRANSMISSION: u64 = 10_000;
const DELAY: u64 = 1_000_000;
/// Per cent of the link's rate.
const LOADS: [u64; 3] = [10, 50, 90];
const TIME: u64 = 500_000_000;
/// Who looks every tenth of a microsecond and has not looked for so long has been held up.
const AWAY: u64 = 5_000;
const QUANTILES: [(f64, &str); 3] = [(0.5, "p50"), (0.99, "p99"), (1.0, "max")];

/// Each round's quantiles in microseconds, by [`QUANTILES`].
type Results = [Vec<f64>; 3];

fn note(results: &mut Results, late: &[f64]) {
    for (result, (q, _)) in results.iter_mut().zip(QUANTILES) {
        result.push(quantile(late, q));
    }
}

pub fn measure(bench: &Bench, report: &mut Report) -> Result<()> {
    let mut all = Vec::new();
    for timing in TIMINGS {
        let link = json!({ "rate": "1Gbit", "delay": "1ms" });
        let switch = bench.switch(timing, link)?;
        let [mut a, mut b] = pair(&switch.sockets(0), 1024)?;
        arrive(&mut a, &mut b)?;
        switch.process().pause();
        all.push((switch, [a, b]));
    }
    let cpu: usize = bench.switch_cpu.parse()?;
    for load in LOADS {
        let interval = TRANSMISSION * 100 / load;
        let mut ours: [Results; 3] = Default::default();
        let mut counted: [Results; 3] = Default::default();
        let mut loops: [Results; 2] = Default::default();
        for _ in 0..bench.rounds {
            let results = ours.iter_mut().zip(&mut counted);
            for ((switch, guests), (results, counted)) in all.iter_mut().zip(results) {
                switch.process().resume();
                let before = switch.lateness()?;
                std::thread::sleep(Duration::from_millis(20));
                note(results, &frames(guests, interval)?);
                note(counted, &since(&before, switch.lateness()?));
                switch.process().pause();
            }
            for (results, spins) in loops.iter_mut().zip([false, true]) {
                let waits = std::thread::spawn(move || wait(cpu, interval, spins));
                // As busy as with a switch: what else has to be done takes one of the two processors away.
                while !waits.is_finished() {
                    std::hint::spin_loop();
                }
                let Ok(late) = waits.join() else {
                    bail!("a loop has failed");
                };
                note(results, &late?);
            }
        }
        let results = ours.iter().zip(&counted);
        for (timing, (results, counted)) in TIMINGS.iter().zip(results) {
            let exact = *timing == "exact";
            let (name, peer) = if exact {
                ("spin loop", &loops[1])
            } else {
                ("epoll loop", &loops[0])
            };
            for (i, (_, q)) in QUANTILES.iter().enumerate() {
                let measure = format!("lateness at {load} %, {timing}, {q}");
                let row = Row::beside(measure.clone(), "µs", &results[i], name, &peer[i]);
                let p50 = Row::new(measure, "µs", median(&results[i]));
                match (exact, *q) {
                    (true, "p50") => report.rows.extend([row, p50.target(Target::AtMost(1.0))]),
                    (true, "p99") => report.rows.push(row.target(Target::RatioAtMost(1.0))),
                    _ => report.rows.push(row),
                }
            }
            for (i, (_, q)) in QUANTILES.iter().enumerate() {
                let measure = format!("the same by the switch's own count, {q}");
                let row = Row::beside(measure, "µs", &counted[i], name, &peer[i]);
                report.rows.push(match (exact, *q) {
                    (true, "p99") => row.target(Target::RatioAtMost(1.0)),
                    _ => row,
                });
            }
        }
    }
    Ok(())
}

/// What the switch has counted since `before`, in microseconds.
fn since(before: &BTreeMap<u64, u64>, now: BTreeMap<u64, u64>) -> Vec<f64> {
    let mut late = Vec::new();
    for (ns, count) in now {
        let new = count - before.get(&ns).copied().unwrap_or(0).min(count);
        late.extend(std::iter::repeat_n(ns as f64 / 1e3, new as usize));
    }
    late
}

/// How late frames are that are sent every `interval` nanoseconds.
///
/// Frames that came while the one who looks for them did not, because its processor was taken away, are not counted: when they came is
/// not known. Nor are those that were sent when it was: when the switch could have them is not known.
fn frames([a, b]: &mut [Guest; 2], interval: u64) -> Result<Vec<f64>> {
    let count = TIME / interval;
    let mut late = Vec::with_capacity(count as usize);
    let origin = Instant::now();
    let mut next = interval;
    let (mut sent, mut received) = (0, 0);
    // When the link is free, if it has all frames when they are sent.
    let mut free = 0;
    let mut delayed = VecDeque::new();
    let mut looked = 0;
    let mut was_away = false;
    while received < count {
        let mut now = nanos(origin);
        if sent < count && now >= next {
            // One that is sent late is not taken for one that arrives late.
            if a.send(LEN, now) {
                a.publish();
                sent += 1;
                if nanos(origin) - now > AWAY {
                    delayed.push_back(now);
                }
            }
            next = now.max(next + interval);
        }
        let tag = b.receive();
        now = nanos(origin);
        was_away |= now - looked > AWAY;
        looked = now;
        if let Some(tag) = tag {
            received += 1;
            free = tag.max(free) + TRANSMISSION;
            let ideal = free + DELAY;
            let is_delayed = delayed.pop_front_if(|delayed| *delayed == tag).is_some();
            if !was_away && !is_delayed {
                late.push((now as f64 - ideal as f64) / 1e3);
            }
        } else {
            was_away = false;
            if now > TIME + 5_000_000_000 {
                bail!("{} of {count} frames have not arrived", count - received);
            }
        }
    }
    Ok(late)
}

/// How late a thread is that waits for a time every `interval` nanoseconds and does nothing else.
fn wait(cpu: usize, interval: u64, spins: bool) -> Result<Vec<f64>> {
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set)?;
    set_current_timer_slack(std::num::NonZeroU64::new(1))?;
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let mut late = Vec::with_capacity((TIME / interval) as usize);
    let origin = Instant::now();
    for n in 1..=TIME / interval {
        let due = n * interval;
        let mut now = nanos(origin);
        while now < due {
            if spins {
                std::hint::spin_loop();
            } else {
                let timeout = Timespec {
                    tv_sec: 0,
                    tv_nsec: (due - now) as i64,
                };
                let mut events = [std::mem::MaybeUninit::<epoll::Event>::uninit(); 1];
                epoll::wait(&epoll, &mut events, Some(&timeout))?;
            }
            now = nanos(origin);
        }
        late.push((now - due) as f64 / 1e3);
    }
    Ok(late)
}
