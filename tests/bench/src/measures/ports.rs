//! What ports cost that do nothing.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::time::ClockId;
use nix::unistd::Pid;
use serde_json::json;

use super::instructions::arrive;
use super::{Bench, pair};
use crate::guest::Guest;
use crate::process::Process;
use crate::report::{Report, Row, Target};
use crate::switch::Switch;

/// The first is what the others are compared with.
const PORTS: [usize; 4] = [2, 10, 100, 1000];
const LEN: u32 = 64;
const BURST: u64 = 32;
const FRAMES: u64 = 200_000;
const IDLE: Duration = Duration::from_secs(1);

/// A switch with guests at all its ports.
struct Lab {
    switch: Switch,
    guests: Vec<Guest>,
}

impl Lab {
    fn start(bench: &Bench, timing: &str, ports: usize) -> Result<Self> {
        let switch = bench.wrapped(timing, ports / 2, json!({}), &[])?;
        let mut guests = Vec::with_capacity(ports);
        for n in 0..ports / 2 {
            guests.extend(pair(&switch.sockets(n), 64)?);
        }
        let mut lab = Self { switch, guests };
        let (a, b) = lab.active()?;
        arrive(a, b)?;
        lab.switch.process().pause();
        Ok(lab)
    }

    fn active(&mut self) -> Result<(&mut Guest, &mut Guest)> {
        match &mut self.guests[..] {
            [a, b, ..] => Ok((a, b)),
            _ => bail!("two guests are needed"),
        }
    }
}

pub fn measure(bench: &Bench, report: &mut Report) -> Result<()> {
    for ports in PORTS {
        let lab = Lab::start(bench, "balanced", ports)?;
        let process = lab.switch.process();
        process.resume();
        std::thread::sleep(Duration::from_millis(200));
        let before = cpu_time(process)?;
        std::thread::sleep(IDLE);
        let used = cpu_time(process)?.saturating_sub(before);
        let share = used.as_secs_f64() / IDLE.as_secs_f64() * 100.0;
        let measure = format!("processor time idle, {ports} ports");
        report
            .rows
            .push(Row::new(measure, "%", share).target(Target::AtMost(0.1)));
    }
    let labs: Result<Vec<Lab>> = PORTS.iter().map(|n| Lab::start(bench, "eco", *n)).collect();
    let mut labs = labs?;
    let mut costs: [Vec<f64>; PORTS.len()] = Default::default();
    for _ in 0..bench.rounds {
        for (lab, costs) in labs.iter_mut().zip(&mut costs) {
            lab.switch.process().resume();
            let before = cpu_time(lab.switch.process())?;
            let (a, b) = lab.active()?;
            exchange(a, b)?;
            let used = cpu_time(lab.switch.process())?.saturating_sub(before);
            lab.switch.process().pause();
            costs.push(used.as_nanos() as f64 / FRAMES as f64);
        }
    }
    for (ports, ours) in PORTS.iter().zip(&costs).skip(1) {
        let measure = format!("cost/frame, 2 of {ports} ports active");
        let row = Row::beside(measure, "ns", ours, "2 ports", &costs[0]);
        report.rows.push(row.target(Target::RatioAtMost(1.1)));
    }
    Ok(())
}

fn cpu_time(process: &Process) -> Result<Duration> {
    let pid = Pid::from_raw(process.id() as i32);
    let clock = ClockId::pid_cpu_clock_id(pid).context("no processor clock")?;
    Ok(clock.now()?.into())
}

fn exchange(a: &mut Guest, b: &mut Guest) -> Result<()> {
    let begin = Instant::now();
    let mut sent = 0;
    while sent < FRAMES {
        for _ in 0..BURST {
            a.send(LEN, sent);
            sent += 1;
        }
        a.publish();
        let mut got = 0;
        while got < BURST {
            if b.receive().is_some() {
                got += 1;
            } else if begin.elapsed() > Duration::from_mins(1) {
                bail!("frames do not arrive");
            }
        }
    }
    Ok(())
}
