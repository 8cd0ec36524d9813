//! Labs that are launched and stopped in a row.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use jail::attempt::held;
use tests::World;
use tests::world::config;

use crate::faults::times;

/// What this machine holds of things that a lab could leave behind and no list of names shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Held {
    /// Network namespaces, seen or not: the kernel's own objects.
    namespaces: usize,
    mounts: usize,
    cgroups: usize,
}

impl Held {
    fn now() -> Result<Self> {
        let slab = std::fs::read_to_string("/proc/slabinfo").unwrap_or_default();
        let namespaces = slab
            .lines()
            .find_map(|line| line.strip_prefix("net_namespace "))
            .and_then(|rest| rest.split_whitespace().next()?.parse().ok());
        let cgroups = std::fs::read_to_string("/proc/cgroups")?;
        let cgroups = cgroups
            .lines()
            .filter_map(|line| line.split_whitespace().nth(2)?.parse::<usize>().ok());
        Ok(Self {
            namespaces: namespaces.unwrap_or(0),
            mounts: std::fs::read_to_string("/proc/self/mountinfo")?
                .lines()
                .count(),
            cgroups: cgroups.sum(),
        })
    }
}

/// A thousand; what each leaves behind the harness looks for at the end, and the kernel's counts here.
pub fn in_a_row(world: &World) -> Result<()> {
    let count = times(1000)?;
    let file = config("two-hosts.json");
    // The first makes what stays for all.
    world.launch(&file)?.stop()?;
    let before = Held::now()?;
    let start = Instant::now();
    for n in 1..=count {
        let lab = world.launch(&file).with_context(|| format!("launch {n}"))?;
        if n % 100 == 0 {
            lab.ping_all_pairs()?;
        }
        lab.stop().with_context(|| format!("stop {n}"))?;
        if n % 100 == 0 {
            println!("{n} launches and stops, {:.1?} each", start.elapsed() / n);
        }
    }
    world.expect_nothing_left()?;
    // Network namespaces go a moment later; a few are always on their way.
    tests::process::eventually(std::time::Duration::from_mins(1), || {
        let after = Held::now()?;
        ensure!(
            after.mounts <= before.mounts
                && after.cgroups <= before.cgroups
                && after.namespaces <= before.namespaces + 16,
            "{before:?} before, {after:?} after"
        );
        Ok(())
    })?;
    held(
        "launch and stop in a row: nothing leaks",
        count.into(),
        None,
    );
    Ok(())
}
