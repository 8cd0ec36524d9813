//! Engine `kvm` only: many NICs, throughput, and what a node costs beside its guest's RAM.

use std::fmt::Write;
use std::fs;

use anyhow::{Context, Result, ensure};
use tests::World;
use tests::world::config;

/// A monitor may have this much resident memory beside its guest's RAM.
const OVERHEAD_LIMIT_KIB: u64 = 5 * 1024;

/// A router with 24 NICs, each of which answers.
pub fn router_with_24_nics(world: &World) -> Result<()> {
    let (mut host, mut router, mut links) = (String::new(), String::new(), String::new());
    for n in 0..24 {
        let comma = if n == 0 { "" } else { ",\n" };
        write!(
            host,
            r#"{comma}"eth{n}": {{"addresses": ["10.1.{n}.1/24"]}}"#
        )?;
        write!(
            router,
            r#"{comma}"eth{n}": {{"addresses": ["10.1.{n}.2/24"]}}"#
        )?;
        write!(links, r#"{comma}{{"endpoints": ["h:eth{n}", "r:eth{n}"]}}"#)?;
    }
    let text = format!(
        r#"{{"defaults": {{"machine": {{"queue-size": 256}}}}, "nodes": {{
  "h": {{"kind": "host", "interfaces": {{{host}}}}},
  "r": {{"kind": "router", "interfaces": {{{router}}}}}}},
  "links": [{links}]}}"#
    );
    let lab = world.launch(&world.file("nics.json", &text)?)?;
    for n in 0..24 {
        let address = format!("10.1.{n}.2");
        lab.exec(
            "h",
            &[
                "ping",
                "-c",
                "1",
                "-W",
                "5",
                "-I",
                &format!("eth{n}"),
                &address,
            ],
        )?
        .success()?;
    }
    lab.stop()
}

/// TCP in both directions between all pairs of the LAN.
pub fn iperf(world: &World) -> Result<()> {
    let lab = world.launch(&config("lan.json"))?;
    let machines = lab.machines()?;
    for (to, addresses) in &machines {
        lab.exec(to, &["iperf3", "-s", "-D"])?.success()?;
        let address = addresses.first().context("an address")?.to_string();
        for (from, _) in machines.iter().filter(|(from, _)| from != to) {
            let output = lab
                .exec(from, &["iperf3", "-J", "-t", "2", "-c", &address])?
                .success()?;
            let report: serde_json::Value = serde_json::from_str(&output.stdout)?;
            let rate = report["end"]["sum_received"]["bits_per_second"]
                .as_f64()
                .context("a rate")?;
            ensure!(rate > 0.0, "nothing arrived: {report}");
            println!("iperf3 {from} -> {to}: {:.0} Mbit/s", rate / 1e6);
        }
    }
    lab.ping_all_pairs()?;
    lab.stop()
}

/// Resident memory of each monitor beside guest RAM, and the time from exec to the agent's answer.
pub fn overhead(world: &World) -> Result<()> {
    let lab = world.launch(&config("lan.json"))?;
    for (name, _) in lab.machines()? {
        let node = lab.node(&name)?;
        let booted = node["boot"]["booted_ms"]
            .as_u64()
            .context("a time to boot")?;
        let kib = resident_beside_guest_ram(lab.node_pid(&name)?)?;
        println!(
            "node {name}: agent ready after {booted} ms, monitor {kib} KiB resident beside guest RAM"
        );
        ensure!(
            kib < OVERHEAD_LIMIT_KIB,
            "the monitor of {name} takes {kib} KiB beside guest RAM"
        );
    }
    lab.stop()
}

/// KiB, from smaps: everything but the mapping of the guest's memfd.
fn resident_beside_guest_ram(pid: u32) -> Result<u64> {
    let mut total = 0;
    let mut counted = true;
    for line in fs::read_to_string(format!("/proc/{pid}/smaps"))?.lines() {
        let mut words = line.split_ascii_whitespace();
        let first = words.next().unwrap_or_default();
        if !first.ends_with(':') {
            // A mapping's first line: range, permissions, …, name.
            counted = !line.contains("/memfd:");
        } else if first == "Rss:" && counted {
            total += words.next().context("a number")?.parse::<u64>()?;
        }
    }
    Ok(total)
}
