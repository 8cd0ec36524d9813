//! What the process of a node takes of the host, from `/proc`: that works without control groups.

use std::fs;

use crate::api::types::{Lab, Node, Usage};

/// Fills in what every node of a lab takes.
pub fn of_lab(mut lab: Lab) -> Lab {
    for node in &mut lab.nodes {
        node.usage = node.pid.and_then(of);
    }
    lab
}

/// Fills in what a node takes.
pub fn of_node(mut node: Node) -> Node {
    node.usage = node.pid.and_then(of);
    node
}

/// What a process takes; `None` if there is none of that number.
pub fn of(pid: u32) -> Option<Usage> {
    let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).ok();
    let memory = |status: &str, field: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(field))?;
        let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
        Some(kib << 10)
    };
    let status = read("status")?;
    Some(Usage {
        cpu_ms: cpu_ms(&read("stat")?)?,
        memory: memory(&status, "RssAnon:")? + memory(&status, "RssFile:")?,
        guest_memory: memory(&status, "RssShmem:")?,
    })
}

/// From `/proc/PID/stat`: proc(5) has the state behind the name, utime and stime as the 12th and 13th of what follows.
fn cpu_ms(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    let ticks = ticks()? + ticks()?;
    Some(ticks * 1000 / rustix::param::clock_ticks_per_second())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_spaces_and_parentheses_confuses_nobody() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 90 0 0 0 250 50 0 0 20 0 4 0 100 1 1";
        let ticks = rustix::param::clock_ticks_per_second();
        assert_eq!(cpu_ms(stat), Some(300 * 1000 / ticks));
    }

    #[test]
    fn what_this_process_takes_is_found() {
        let usage = of(std::process::id()).unwrap();
        assert!(usage.memory > 100 << 10, "{usage:?}");
        assert_eq!(of(u32::MAX), None);
    }
}
