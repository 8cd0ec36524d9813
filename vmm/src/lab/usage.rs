//! What the processes of a lab take of this machine, as `/proc` tells.

use std::fs;
use std::time::Duration;

use crate::api::types::{HostUsage, Kind, Lab, Node, NodeUsage, ProcessUsage, Usage};

/// Reads what `lab` has taken, `at_ms` after its launch.
pub fn read(lab: &Lab, at_ms: u64) -> Usage {
    let machines = lab
        .nodes
        .iter()
        .filter(|node| matches!(node.kind, Kind::Host | Kind::Router));
    Usage {
        at_ms,
        host: host().unwrap_or_default(),
        lab: process(lab.pid),
        switch: together(
            lab.switches
                .iter()
                .filter_map(|switch| process(switch.pid?)),
        ),
        nodes: machines
            .map(|node| NodeUsage {
                name: node.name.clone(),
                process: node.pid.and_then(process),
            })
            .collect(),
    }
}

/// What several processes have taken, under the number of the first.
fn together(processes: impl Iterator<Item = ProcessUsage>) -> Option<ProcessUsage> {
    processes.reduce(|all, one| ProcessUsage {
        pid: all.pid,
        cpu_ms: all.cpu_ms + one.cpu_ms,
        waited_ms: all.waited_ms.zip(one.waited_ms).map(|(a, b)| a + b),
        memory: all.memory + one.memory,
        guest_memory: all.guest_memory + one.guest_memory,
        threads: all.threads + one.threads,
    })
}

/// Fills in what the process of every node of a lab has taken.
pub fn of_nodes(mut lab: Lab) -> Lab {
    lab.nodes = lab.nodes.into_iter().map(of_node).collect();
    lab
}

/// Fills in what the process of a node has taken.
pub fn of_node(mut node: Node) -> Node {
    node.usage = node.pid.and_then(process);
    node
}

/// The machine itself.
pub fn host() -> Option<HostUsage> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let memory = fs::read_to_string("/proc/meminfo").ok()?;
    let (processors, busy, idle) = processors(&stat)?;
    Some(HostUsage {
        processors,
        busy_ms: ticks_to_ms(busy),
        idle_ms: ticks_to_ms(idle),
        memory: kilobytes(&memory, "MemTotal:")?,
        memory_available: kilobytes(&memory, "MemAvailable:")?,
    })
}

/// A process that may have ended.
fn process(pid: u32) -> Option<ProcessUsage> {
    let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).ok();
    let (ticks, threads) = times(&read("stat")?)?;
    let status = read("status")?;
    Some(ProcessUsage {
        pid,
        cpu_ms: ticks_to_ms(ticks),
        waited_ms: waited(pid),
        memory: kilobytes(&status, "VmRSS:")?,
        guest_memory: kilobytes(&status, "RssShmem:")?,
        threads,
    })
}

/// How long the threads of a process that are there now have waited for a processor.
fn waited(pid: u32) -> Option<u64> {
    let mut all = Duration::ZERO;
    for thread in fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten() {
        // A thread may end meanwhile.
        if let Ok(text) = fs::read_to_string(thread.path().join("schedstat")) {
            all += Duration::from_nanos(text.split(' ').nth(1)?.trim().parse().ok()?);
        }
    }
    u64::try_from(all.as_millis()).ok()
}

/// Ticks of processor time and threads, of a `/proc/PID/stat`.
fn times(stat: &str) -> Option<(u64, u32)> {
    // The name of the program may contain anything.
    let (_, rest) = stat.rsplit_once(") ")?;
    let field = |n: usize| rest.split(' ').nth(n - 3)?.parse::<u64>().ok();
    Some((field(14)? + field(15)?, u32::try_from(field(20)?).ok()?))
}

/// Processors, and their ticks with and without something to do, of a `/proc/stat`.
fn processors(stat: &str) -> Option<(u32, u64, u64)> {
    let all = stat.lines().next()?.strip_prefix("cpu ")?;
    let ticks: Vec<u64> = all
        .split_whitespace()
        .filter_map(|tick| tick.parse().ok())
        .collect();
    // user nice system idle iowait irq softirq steal; those after it are part of these.
    let [user, nice, system, idle, iowait, irq, softirq, steal] = *ticks.first_chunk()?;
    let each = stat
        .lines()
        .skip(1)
        .take_while(|line| line.starts_with("cpu"));
    Some((
        u32::try_from(each.count()).ok()?,
        user + nice + system + irq + softirq + steal,
        idle + iowait,
    ))
}

/// Bytes, of a line as `/proc/meminfo` and `/proc/PID/status` have them.
fn kilobytes(meminfo: &str, name: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
    Some(
        line.trim()
            .trim_end_matches("kB")
            .trim()
            .parse::<u64>()
            .ok()?
            << 10,
    )
}

fn ticks_to_ms(ticks: u64) -> u64 {
    ticks * 1000 / rustix::param::clock_ticks_per_second().max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_taken_something() {
        let usage = process(std::process::id()).unwrap();
        assert!(usage.memory > 1 << 20 && usage.threads >= 1, "{usage:?}");
        assert_eq!(process(u32::MAX), None);
        let host = host().unwrap();
        assert!(
            host.processors >= 1 && host.memory >= host.memory_available,
            "{host:?}"
        );
    }

    #[test]
    fn a_process_may_have_any_name() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 1 0 0 0 250 50 0 0 20 0 3 0 5 6 7";
        assert_eq!(times(stat), Some((300, 3)));
        assert_eq!(times("7 (a) S 1"), None);
    }

    #[test]
    fn processors_are_counted() {
        let stat = "cpu  1 2 3 100 10 4 5 6 1 0\ncpu0 1 2 3 4\ncpu1 1 2 3 4\nintr 5\n";
        assert_eq!(processors(stat), Some((2, 21, 110)));
    }
}
