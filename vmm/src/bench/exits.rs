//! What a packet costs a virtual machine: exits to the host and interrupts, as KVM counts them, and copies, as the switch does.

use std::fs;
use std::path::{Path as File, PathBuf};

use serde_json::Value;

use super::lab::{Lab, SEGMENT, chain, chain_address};
use super::probe::{PINGS, Path};
use super::results::{Place, Results, Scale};
use super::table1::round;
use super::{Amount, Column, Progress};
use crate::failure::{Code, Failure};

const EXITS: &str = "exits per packet";
const INTERRUPTS: &str = "interrupts per packet";
const COPIES: &str = "copies in the switch per packet";

/// KVM's counters of each machine, `PID-FD`, by name; only root may look. The kernel's binary statistics (`KVM_GET_STATS_FD`) have the same
/// numbers, but only for who holds the machine's descriptor, which nobody outside the jail of a node does.
const DEBUGFS: &str = "/sys/kernel/debug/kvm";

/// What is sent.
const LOADS: [&str; 3] = [
    "TCP",
    "1000 echo requests a second",
    "5 echo requests a second",
];

/// Counters at a moment, of all of a lab.
#[derive(Debug)]
struct Counts {
    /// Exits and interrupts; none if its nodes are no machines of KVM.
    machines: Option<(f64, f64)>,
    /// Bytes that its switch has copied and delivered; none if it has no switch.
    switch: Option<(f64, f64)>,
}

/// Measures.
pub async fn measure(columns: Vec<Column>, amount: Amount) -> Result<Results, Failure> {
    let texts = [
        "exits",
        "What a packet costs",
        "Two nodes and a link. Exits and interrupts of both virtual machines while packets go from one to the other, by the number of packets: full TCP segments, \
         or echo requests and their answers. What the machines do when nothing is sent is in it. Copies are bytes that the switch has copied \
         by bytes that it has delivered.",
        "load",
    ];
    let quantities = [
        (EXITS, "", Scale::Ratio),
        (INTERRUPTS, "", Scale::Ratio),
        (COPIES, "", Scale::Linear),
    ];
    let mut results = Results::new(texts, columns, &quantities)?;
    if fs::read_dir(DEBUGFS).is_err() {
        let help =
            "exits are counted by KVM: run as root, and mount -t debugfs none /sys/kernel/debug";
        return Err(Failure::new(Code::Host, format!("cannot read {DEBUGFS}")).help(help));
    }
    let rounds = 2 + amount.repetitions as usize * LOADS.len();
    let progress = Progress::new(results.subjects().len() * rounds);
    let labs = Lab::launch_all("exits", &mut results, &chain(2, 1500), |subject| {
        progress.step(format!("launching {}", subject.name()));
    })?;
    let way = Path::new("n0", "n1", &chain_address(1))?;
    for lab in &labs {
        progress.step(format!("warm-up: {}", lab.subject.name()));
        way.tcp(lab, 1).await?;
    }
    for repetition in 1..=amount.repetitions {
        for load in LOADS {
            for lab in &labs {
                let name = lab.subject.name();
                progress.step(format!("{}: {load}, {name}", round(repetition, amount)));
                let before = counts(lab).await?;
                let packets = packets(&way, lab, load, amount.seconds).await?;
                let after = counts(lab).await?;
                let place = Place::named(load);
                let mut take = |quantity, value| results.take(quantity, &place, lab.subject, value);
                if let (Some(before), Some(after)) = (before.machines, after.machines) {
                    take(EXITS, (after.0 - before.0) / packets);
                    take(INTERRUPTS, (after.1 - before.1) / packets);
                } else {
                    results.note(format!(
                        "{name}: its nodes are no machines of this host's KVM, and have neither exits nor interrupts."
                    ));
                }
                if let (Some(before), Some(after)) = (before.switch, after.switch) {
                    let (copied, delivered) = (after.0 - before.0, after.1 - before.1);
                    results.take(COPIES, &place, lab.subject, copied / delivered.max(1.0));
                }
            }
        }
    }
    Ok(results)
}

/// Sends, and says how many packets that were.
async fn packets(way: &Path, lab: &Lab, load: &str, seconds: u32) -> Result<f64, Failure> {
    if load == LOADS[0] {
        let rate = way.tcp(lab, seconds).await? * 1e6 / 8.0;
        return Ok(rate * f64::from(seconds) / SEGMENT.0);
    }
    if load == LOADS[1] {
        let (asked, answered) = way.flood(lab, seconds).await?;
        return Ok(asked + answered);
    }
    way.round_trip(lab).await?;
    Ok(f64::from(PINGS) * 2.0)
}

async fn counts(lab: &Lab) -> Result<Counts, Failure> {
    let nodes = lab.client.lab().await?.nodes;
    let mut machines = Some((0.0, 0.0));
    for pid in nodes.iter().filter_map(|node| node.pid) {
        let folder = machine(pid);
        let count = |name: &str| {
            let text = fs::read_to_string(folder.as_ref()?.join(name)).ok()?;
            text.trim().parse::<f64>().ok()
        };
        machines = machines.and_then(|(exits, interrupts)| {
            Some((
                exits + count("exits")?,
                interrupts + count("irq_injections")?,
            ))
        });
    }
    let stats = lab.client.switch().await?;
    let sum = |name: &str| {
        let mut found = Vec::new();
        collect(&stats["links"], name, &mut found);
        found.into_iter().sum::<f64>()
    };
    let copied = sum("bytes_copied");
    Ok(Counts {
        machines,
        // A switch that has delivered anything has copied it; the kernel's bridges do not tell.
        switch: (copied > 0.0).then(|| (copied, sum("out_bytes"))),
    })
}

/// Where KVM counts what the machine of a process does.
fn machine(pid: u32) -> Option<PathBuf> {
    let mut folders = fs::read_dir(File::new(DEBUGFS)).ok()?.flatten();
    let prefix = format!("{pid}-");
    let found = folders.find(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))?;
    Some(found.path())
}

/// The values of every field of that name.
fn collect(value: &Value, name: &str, found: &mut Vec<f64>) {
    match value {
        Value::Object(fields) => {
            found.extend(fields.get(name).and_then(Value::as_f64));
            fields
                .values()
                .for_each(|field| collect(field, name, found));
        }
        Value::Array(items) => items.iter().for_each(|item| collect(item, name, found)),
        _ => {}
    }
}
