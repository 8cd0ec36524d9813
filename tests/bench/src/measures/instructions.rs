//! Instructions per forwarded frame, of the whole process, counted by callgrind.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::{Bench, pair};
use crate::guest::Guest;
use crate::oracle::Oracle;
use crate::report::{Report, Row, Target};

const LEN: u32 = 64;
const BURST: u64 = 32;
/// The difference between two runs is what the frames cost, without what starting and ending costs.
const FRAMES: [u64; 2] = [3200, 35_200];
const PATIENCE: Duration = Duration::from_mins(1);

pub fn measure(bench: &Bench, report: &mut Report) -> Result<()> {
    let ours = |link: Value| {
        difference(|wrapper, frames| {
            let switch = bench.wrapped("eco", 1, link.clone(), wrapper)?;
            forward(&switch.sockets(0), frames)?;
            switch.end();
            Ok(())
        })
    };
    let oracle = difference(|wrapper, frames| {
        let oracle = Oracle::start(&bench.oracle, wrapper, &bench.switch_cpu)?;
        forward(&oracle.sockets(), frames)?;
        oracle.end();
        Ok(())
    })?;
    let plain = ours(json!({}))?;
    let shaped = ours(json!({ "rate": "10Gbit", "delay": "20us", "loss": "0.00001%" }))?;
    let row = |what, ours| Row::beside(what, "", &[ours], "oracle", &[oracle]);
    report.rows.extend([
        row("instructions/frame, 64 B in bursts of 32", plain).target(Target::RatioAtMost(0.1)),
        row("instructions/frame, rate delay loss", shaped),
    ]);
    Ok(())
}

fn difference(mut run: impl FnMut(&[String], u64) -> Result<()>) -> Result<f64> {
    let dir = tempfile::tempdir()?;
    let mut counts = [0.0; 2];
    for (count, frames) in counts.iter_mut().zip(FRAMES) {
        let file = dir.path().join(frames.to_string());
        let out = format!("--callgrind-out-file={}", file.display());
        // All threads get their turns.
        let wrapper = ["valgrind", "--tool=callgrind", "--fair-sched=yes", &out];
        run(&wrapper.map(str::to_owned), frames).context("under valgrind")?;
        *count = total(&file)?;
    }
    Ok((counts[1] - counts[0]) / (FRAMES[1] - FRAMES[0]) as f64)
}

fn total(file: &Path) -> Result<f64> {
    let text = std::fs::read_to_string(file).context("valgrind has written no profile")?;
    let mut totals = text.lines().filter_map(|l| l.strip_prefix("totals: "));
    let last = totals.next_back().context("the profile has no total")?;
    Ok(last.trim().parse()?)
}

/// Sends frames in bursts, each when the one before has arrived.
fn forward(sockets: &[PathBuf; 2], frames: u64) -> Result<()> {
    let [mut a, mut b] = pair(sockets, 256)?;
    // The second front-end's ring may start later than this one's first frame could come.
    arrive(&mut a, &mut b)?;
    let mut sent = 0;
    while sent < frames {
        for _ in 0..BURST {
            a.send(LEN, sent);
            sent += 1;
        }
        a.publish();
        let begin = Instant::now();
        let mut got = 0;
        while got < BURST {
            match b.receive() {
                Some(_) => got += 1,
                None if begin.elapsed() > PATIENCE => bail!("frames do not arrive"),
                None => std::thread::yield_now(),
            }
        }
    }
    Ok(())
}

/// Sends until something arrives, and takes all of it.
pub fn arrive(a: &mut Guest, b: &mut Guest) -> Result<()> {
    let begin = Instant::now();
    loop {
        a.send(LEN, 0);
        a.publish();
        std::thread::sleep(Duration::from_millis(50));
        if b.receive().is_some() {
            break;
        }
        if begin.elapsed() > PATIENCE {
            bail!("no frame arrives");
        }
    }
    std::thread::sleep(Duration::from_millis(50));
    while b.receive().is_some() {}
    Ok(())
}
