//! Offloads between real guests: both ends with them, neither, one only, and a link that does not carry superframes.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::process::eventually;
use tests::{Lab, World};

use crate::copies::total;

const SOON: Duration = Duration::from_secs(20);

/// Interfaces by number: whether a and b offload, and what the link is like.
const LINKS: [(bool, bool, &str); 5] = [
    (true, true, ""),
    (false, false, ""),
    (true, false, ""),
    (false, true, ""),
    (true, true, r#", "rate": "50Mbit", "delay": "1ms""#),
];

/// TCP over IPv4 and IPv6, UDP. Nothing arrives with a wrong checksum, and superframes cross a link whole where both
/// ends know them and nowhere else.
pub fn on_and_off(world: &World) -> Result<()> {
    let lab = world.launch(&world.file("offloads.json", &topology())?)?;
    lab.sh("b", "iperf3 -s -D && ethtool -k eth0 && ethtool -k eth1")?;
    for (n, (from, to, _)) in LINKS.iter().enumerate() {
        let what = format!("eth{n}: {from} > {to}");
        for (address, reverse) in [
            (format!("10.0.{n}.2"), false),
            (format!("fd00:{n}::2"), true),
        ] {
            // Not more in flight than the receiver's report may lack: it ends with the sender's last word.
            let mut arguments = vec!["iperf3", "-J", "-n", "3M", "-w", "256K", "-c", &address];
            arguments.extend(reverse.then_some("-R"));
            let report = iperf(&lab, &arguments).with_context(|| what.clone())?;
            let bytes = report["end"]["sum_received"]["bytes"].as_u64();
            ensure!(bytes >= Some(2_000_000), "{what}: {report}");
            let again = report["end"]["sum_sent"]["retransmits"].as_u64();
            ensure!(
                again.is_none_or(|n| n < 20),
                "{what}: sent again {again:?} times"
            );
        }
        let address = format!("10.0.{n}.2");
        let udp = [
            "iperf3", "-J", "-u", "-l", "1400", "-b", "4M", "-t", "1", "-c", &address,
        ];
        let report = iperf(&lab, &udp).with_context(|| what.clone())?;
        let lost = report["end"]["sum"]["lost_packets"].as_u64();
        ensure!(lost.is_some_and(|lost| lost < 10), "{what}: {report}");
    }
    for node in ["a", "b"] {
        // The kernel counts wrong checksums here, and only complains of superframes it cannot use.
        let sums = lab.sh(
            node,
            "nstat -az TcpInCsumErrors UdpInCsumErrors IpInHdrErrors Ip6InHdrErrors",
        )?;
        for line in sums.lines().filter(|line| !line.starts_with('#')) {
            let count = line.split_ascii_whitespace().nth(1);
            ensure!(count == Some("0"), "{node}: {line}");
        }
        for n in 0..LINKS.len() {
            let errors = lab.sh(
                node,
                &format!("cat /sys/class/net/eth{n}/statistics/rx_errors"),
            )?;
            ensure!(errors.trim() == "0", "{node}: eth{n}: {errors}");
        }
    }
    let stats = lab.switch_stats()?;
    for n in 0..LINKS.len() {
        let link = &stats["links"][n];
        let (copied, delivered) = (total(link, "bytes_copied")?, total(link, "out_bytes")?);
        // Where the link has a queue, frames may wait in the switch.
        ensure!(
            n == 4 || copied == delivered,
            "eth{n}: {copied} bytes copied: {link}"
        );
        ensure!(delivered > 6_000_000, "eth{n}: {link}");
    }
    // What a guest saw of the switch's work: frames of more than a segment only where both ends know them.
    for (n, (from, to, shaping)) in LINKS.iter().enumerate() {
        let seen = frames_and_bytes(&lab, "b", n)?;
        let average = seen.1 / seen.0.max(1);
        let whole = *from && *to && shaping.is_empty();
        println!(
            "eth{n}: b received {} frames of {average} bytes on average",
            seen.0
        );
        ensure!(whole == (average > 1514), "eth{n}: {seen:?}");
    }
    lab.stop()
}

/// Received on an interface.
fn frames_and_bytes(lab: &Lab<'_>, node: &str, n: usize) -> Result<(u64, u64)> {
    let script = format!("cd /sys/class/net/eth{n}/statistics && cat rx_packets rx_bytes");
    let output = lab.sh(node, &script)?;
    let mut numbers = output.lines().map(str::parse::<u64>);
    let mut next = || numbers.next().context("a number");
    Ok((next()??, next()??))
}

/// The report of iperf3. Its server, which takes one client at a time, resets the connection of the next while it still tidies up.
fn iperf(lab: &Lab<'_>, arguments: &[&str]) -> Result<Value> {
    let output = eventually(SOON, || lab.exec("a", arguments)?.success())?;
    Ok(serde_json::from_str(&output.stdout)?)
}

fn topology() -> String {
    let interfaces = |side: usize| {
        let one = |(n, link): (usize, &(bool, bool, &str))| {
            let offloads = if side == 1 { link.0 } else { link.1 };
            format!(
                r#""eth{n}": {{"addresses": ["10.0.{n}.{side}/24", "fd00:{n}::{side}/64"], "offloads": {offloads}}}"#
            )
        };
        LINKS
            .iter()
            .enumerate()
            .map(one)
            .collect::<Vec<_>>()
            .join(",\n")
    };
    let links = LINKS.iter().enumerate().map(|(n, (_, _, shaping))| {
        format!(r#"{{"endpoints": ["a:eth{n}", "b:eth{n}"]{shaping}}}"#)
    });
    format!(
        r#"{{"nodes": {{
  "a": {{"kind": "host", "interfaces": {{{}}}}},
  "b": {{"kind": "host", "interfaces": {{{}}}}}}},
 "links": [{}]}}"#,
        interfaces(1),
        interfaces(2),
        links.collect::<Vec<_>>().join(",\n")
    )
}
