//! One copy: on an unshaped link the switch copies exactly the bytes it delivers.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::World;

/// Bytes copied equal bytes delivered, whatever was sent.
pub fn one_per_frame(world: &World) -> Result<()> {
    let file = world.file(
        "copies.json",
        r#"{"nodes": {
  "a": {"kind": "host", "interfaces": {"eth0": {"addresses": ["10.0.0.1/24"]}}},
  "b": {"kind": "host", "interfaces": {"eth0": {"addresses": ["10.0.0.2/24"]}}}},
 "links": [{"endpoints": ["a:eth0", "b:eth0"]}]}"#,
    )?;
    let lab = world.launch(&file)?;
    let machines = lab.machines()?;
    let [(a, _), (b, addresses)] = &machines[..] else {
        anyhow::bail!("two hosts")
    };
    let address = addresses.first().context("an address")?.to_string();
    lab.exec(b, &["iperf3", "-s", "-D"])?.success()?;
    for size in ["0", "56", "1400", "8000"] {
        lab.exec(
            a,
            &["ping", "-q", "-c", "5", "-i", "0.2", "-s", size, &address],
        )?
        .success()?;
    }
    lab.exec(a, &["iperf3", "-c", &address, "-n", "20M"])?
        .success()?;
    lab.exec(a, &["iperf3", "-c", &address, "-n", "20M", "-R"])?
        .success()?;
    // No traffic from here on: the counters must not move between the two readings.
    for (node, _) in &machines {
        lab.sh(
            node,
            "for i in /sys/class/net/e*; do ip link set $(basename $i) down; done",
        )?;
    }
    let stats = lab.switch_stats()?;
    let (copied, delivered) = (total(&stats, "bytes_copied")?, total(&stats, "out_bytes")?);
    ensure!(delivered > 40_000_000, "the transfers are counted: {stats}");
    ensure!(
        copied == delivered,
        "{copied} bytes copied for {delivered} bytes delivered: {stats}"
    );
    lab.stop()
}

/// The sum of every counter of that name, wherever it stands.
pub fn total(stats: &Value, counter: &str) -> Result<u64> {
    fn sum(value: &Value, counter: &str, found: &mut Vec<u64>) {
        match value {
            Value::Object(fields) => {
                found.extend(fields.get(counter).and_then(Value::as_u64));
                fields.values().for_each(|field| sum(field, counter, found));
            }
            Value::Array(items) => items.iter().for_each(|item| sum(item, counter, found)),
            _ => {}
        }
    }
    let mut found = Vec::new();
    sum(stats, counter, &mut found);
    ensure!(!found.is_empty(), "no counter {counter} in {stats}");
    Ok(found.iter().sum())
}
