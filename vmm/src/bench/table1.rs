//! The first table of the IMUNES paper, here: TCP's throughput and the round trip to the node itself, to a neighbour, and over one and
//! two routers.
//!
//! One lab per engine and MTU: `a`, `r1`, `r2`, `b` in a row on links without attributes. The engines take turns in each repetition,
//! so that what else happens on the machine hits all of them.

use std::fmt::Write;
use std::net::IpAddr;
use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};
use topology::model::{Ping, Target, Throughput};

use super::stats::Summary;
use super::{BenchLab, Column, Machine};
use crate::api::types::EngineName;
use crate::cli::engine_name;
use crate::failure::{Code, Failure};
use crate::verify::{Measured, ping, throughput};

/// The MTUs of the paper.
const MTUS: [u16; 2] = [1500, 500];
/// Where to, and its node and address.
const PATHS: [(&str, &str, &str); 4] = [
    ("local", "a", "127.0.0.1"),
    ("direct", "r1", "10.0.1.2"),
    ("1 hop", "r2", "10.0.2.2"),
    ("2 hops", "b", "10.0.3.2"),
];
/// Echo requests of a repetition.
const PINGS: u32 = 10;
/// What is measured, in the order of the paper.
const QUANTITIES: [(Quantity, &str, &str); 3] = [
    (Quantity::Throughput(1500), "TCP, MTU 1500", "Mbit/s"),
    (Quantity::Throughput(500), "TCP, MTU 500", "Mbit/s"),
    (Quantity::RoundTrip, "ping", "µs"),
];
/// The paper's own figures (Zec and Mikuc, OASIS 2004, Table 1): by quantity and path.
const PAPER: [(&str, [[f64; 4]; 3]); 2] = [
    (
        "IMUNES 2004",
        [
            [768.0, 627.0, 452.0, 383.0],
            [419.0, 287.0, 196.0, 160.0],
            [8.0, 13.0, 22.0, 30.0],
        ],
    ),
    (
        "VMware 2004",
        [
            [520.0, 62.0, 9.8, 6.3],
            [297.0, 23.0, 8.7, 5.4],
            [44.0, 272.0, 613.0, 1001.0],
        ],
    ),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Quantity {
    /// At this MTU.
    Throughput(u16),
    /// At the MTU of 1500.
    RoundTrip,
}

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub struct Amount {
    /// How often.
    pub repetitions: u32,
    /// Seconds of TCP each time.
    pub seconds: u32,
}

/// A figure: which, and what the repetitions said.
#[derive(Debug, Clone, Serialize)]
struct Figure {
    quantity: &'static str,
    unit: &'static str,
    path: &'static str,
    engine: EngineName,
    values: Vec<f64>,
    #[serde(flatten)]
    summary: Option<Summary>,
}

/// The table.
#[derive(Debug, Serialize)]
pub struct Table {
    machine: Machine,
    columns: Vec<Column>,
    figures: Vec<Figure>,
}

/// Measures; `tell` is told what is being done.
pub async fn measure(
    columns: Vec<Column>,
    amount: Amount,
    mut tell: impl FnMut(&str),
) -> Result<Table, Failure> {
    let engines: Vec<_> = columns
        .iter()
        .filter(|column| column.missing.is_none())
        .map(|column| column.engine)
        .collect();
    if engines.is_empty() {
        return Err(Failure::new(
            Code::Host,
            "there is no engine to measure here",
        ));
    }
    let mut figures = Vec::new();
    for (quantity, name, unit) in QUANTITIES {
        for (path, ..) in PATHS {
            for engine in &engines {
                figures.push((
                    quantity,
                    Figure {
                        quantity: name,
                        unit,
                        path,
                        engine: *engine,
                        values: Vec::new(),
                        summary: None,
                    },
                ));
            }
        }
    }
    for mtu in MTUS {
        let mut labs = Vec::new();
        for engine in &engines {
            tell(&format!(
                "launching a lab of engine {}, MTU {mtu}",
                engine_name(*engine)
            ));
            labs.push((
                *engine,
                BenchLab::launch(
                    &format!("bench-{}-{mtu}", engine_name(*engine)),
                    *engine,
                    &topology(mtu),
                )?,
            ));
        }
        // The first is for caches, ARP and the like, and is thrown away.
        for repetition in 0..=amount.repetitions {
            for (path, node, address) in PATHS {
                for (engine, lab) in &labs {
                    let round = if repetition == 0 {
                        "warm-up".to_owned()
                    } else {
                        format!("{repetition} of {}", amount.repetitions)
                    };
                    tell(&format!(
                        "MTU {mtu}, {round}: {path}, {}",
                        engine_name(*engine)
                    ));
                    let mut note = |quantity: Quantity, value: f64| {
                        let of = |(q, figure): &&mut (Quantity, Figure)| {
                            *q == quantity && figure.path == path && figure.engine == *engine
                        };
                        if repetition > 0
                            && let Some((_, figure)) = figures.iter_mut().find(of)
                        {
                            figure.values.push(value);
                        }
                    };
                    let seconds = if repetition == 0 { 1 } else { amount.seconds };
                    note(
                        Quantity::Throughput(mtu),
                        tcp(lab, node, address, seconds).await?,
                    );
                    if mtu == MTUS[0] && repetition > 0 {
                        note(Quantity::RoundTrip, round_trip(lab, node, address).await?);
                    }
                }
            }
        }
    }
    let figures = figures.into_iter().map(|(_, figure)| Figure {
        summary: Summary::of(&figure.values),
        ..figure
    });
    Ok(Table {
        machine: Machine::here(),
        columns,
        figures: figures.collect(),
    })
}

fn target(node: &str, address: &str) -> Result<Target, Failure> {
    let address = address
        .parse::<IpAddr>()
        .map_err(|error| Failure::new(Code::General, format!("a bug in vmm: {error}")))?;
    Ok(Target {
        name: node.to_owned(),
        address,
    })
}

fn number(measured: &Measured, name: &str, path: &str) -> Result<f64, Failure> {
    let value = measured.values.get(name).and_then(Value::as_f64);
    value.ok_or_else(|| {
        let message = format!("nothing was measured on the way to {path}: {measured:?}");
        Failure::new(Code::Lab, message)
    })
}

/// Mbit/s of payload from `a`.
async fn tcp(lab: &BenchLab, node: &str, address: &str, seconds: u32) -> Result<f64, Failure> {
    let check = Throughput {
        from: "a".to_owned(),
        to: target(node, address)?,
        min: None,
        max: None,
        time: Duration::from_secs(seconds.into()),
    };
    let measured = throughput::measure(&lab.client, &check).await;
    let measured = measured.map_err(|error| Failure::new(Code::Lab, error))?;
    Ok(number(&measured, "bits_per_second", node)? / 1e6)
}

/// Microseconds, the median.
async fn round_trip(lab: &BenchLab, node: &str, address: &str) -> Result<f64, Failure> {
    let check = Ping {
        from: "a".to_owned(),
        to: target(node, address)?,
        count: PINGS,
        loss: 1.0,
        min_rtt: None,
        max_rtt: None,
        reachable: true,
    };
    let measured = ping::measure(&lab.client, &check).await;
    let measured = measured.map_err(|error| Failure::new(Code::Lab, error))?;
    Ok(number(&measured, "median_rtt_ms", node)? * 1e3)
}

/// `a`, `r1`, `r2`, `b` in a row.
fn topology(mtu: u16) -> String {
    let interface = |address: &str| json!({"addresses": [address], "mtu": mtu});
    let route = |to: &str, via: &str| json!({"to": to, "via": via});
    json!({
        "nodes": {
            "a": {"kind": "host", "interfaces": {"eth0": interface("10.0.1.1/24")}, "routes": [route("default", "10.0.1.2")]},
            "r1": {"kind": "router", "interfaces": {"eth0": interface("10.0.1.2/24"), "eth1": interface("10.0.2.1/24")},
                "routes": [route("10.0.3.0/24", "10.0.2.2")]},
            "r2": {"kind": "router", "interfaces": {"eth0": interface("10.0.2.2/24"), "eth1": interface("10.0.3.1/24")},
                "routes": [route("10.0.1.0/24", "10.0.2.1")]},
            "b": {"kind": "host", "interfaces": {"eth0": interface("10.0.3.2/24")}, "routes": [route("default", "10.0.3.1")]},
        },
        "links": [
            {"endpoints": ["a:eth0", "r1:eth0"]},
            {"endpoints": ["r1:eth1", "r2:eth0"]},
            {"endpoints": ["r2:eth1", "b:eth0"]},
        ],
    })
    .to_string()
}

impl Table {
    fn figure(&self, quantity: &str, path: &str, engine: EngineName) -> Option<&Summary> {
        let is_it = |f: &&Figure| f.quantity == quantity && f.path == path && f.engine == engine;
        self.figures.iter().find(is_it)?.summary.as_ref()
    }

    /// For people.
    pub fn markdown(&self) -> String {
        let there: Vec<_> = self
            .columns
            .iter()
            .filter(|column| column.missing.is_none())
            .collect();
        let mut text = format!("Taken on: {}.\n\n", self.machine.describe());
        text.push_str("Medians; behind ± half of what the repetitions are apart. `≈` is a figure that does not differ from that of the first engine by more than they are.\n\n");
        let names = there.iter().map(|column| engine_name(column.engine));
        let names: Vec<_> = names.chain(PAPER.iter().map(|(name, _)| *name)).collect();
        let _ = writeln!(text, "| | to | {} |", names.join(" | "));
        let _ = writeln!(text, "|---|---|{}", "---|".repeat(names.len()));
        for (row, (_, quantity, unit)) in QUANTITIES.iter().enumerate() {
            for (place, (path, ..)) in PATHS.iter().enumerate() {
                let first = there
                    .first()
                    .and_then(|column| self.figure(quantity, path, column.engine));
                let cells = there.iter().enumerate().map(|(n, column)| {
                    let Some(figure) = self.figure(quantity, path, column.engine) else {
                        return "–".to_owned();
                    };
                    let swamped = n > 0 && first.is_some_and(|first| first.overlaps(figure));
                    let mark = if swamped { "≈ " } else { "" };
                    format!(
                        "{mark}{:.0} ± {:.0} %",
                        figure.median,
                        figure.spread() * 100.0
                    )
                });
                let paper = PAPER.iter().map(|(_, rows)| rows[row][place].to_string());
                let cells: Vec<_> = cells.chain(paper).collect();
                let _ = writeln!(
                    text,
                    "| {quantity}, {unit} | {path} | {} |",
                    cells.join(" | ")
                );
            }
        }
        text.push_str("\nThe figures of 2004 are those of the IMUNES paper (Zec and Mikuc, Table 1), on a PC of its time: its §4.2 names a 2.8 GHz Pentium 4.\n");
        for column in &self.columns {
            if let Some(why) = &column.missing {
                let _ = writeln!(
                    text,
                    "\nNot measured: engine {}: {why}.",
                    engine_name(column.engine)
                );
            }
        }
        text
    }

    /// For programs: a line for each repetition.
    pub fn csv(&self) -> String {
        let mut text = "quantity,unit,path,engine,repetition,value\n".to_owned();
        for figure in &self.figures {
            for (n, value) in figure.values.iter().enumerate() {
                let Figure {
                    quantity,
                    unit,
                    path,
                    engine,
                    ..
                } = figure;
                let engine = engine_name(*engine);
                let _ = writeln!(
                    text,
                    "\"{quantity}\",{unit},{path},{engine},{},{value}",
                    n + 1
                );
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_labs_are_well_formed() {
        for mtu in MTUS {
            let file = std::path::Path::new("bench.json");
            let loaded = topology::model::Topology::parse(&topology(mtu), file).unwrap();
            assert_eq!(loaded.topology.links.len(), 3);
            assert_eq!(loaded.warnings.to_string(), "");
        }
    }

    #[test]
    fn a_table_names_what_is_missing_and_what_noise_swamps() {
        let figure = |engine, values: &[f64]| Figure {
            quantity: "ping",
            unit: "µs",
            path: "direct",
            engine,
            values: values.to_vec(),
            summary: Summary::of(values),
        };
        let table = Table {
            machine: Machine::here(),
            columns: vec![
                Column {
                    engine: EngineName::Kvm,
                    missing: Some("no /dev/kvm".into()),
                },
                Column {
                    engine: EngineName::Qemu,
                    missing: None,
                },
                Column {
                    engine: EngineName::Container,
                    missing: None,
                },
            ],
            figures: vec![
                figure(EngineName::Qemu, &[400.0, 500.0, 450.0]),
                figure(EngineName::Container, &[410.0, 480.0, 420.0]),
            ],
        };
        let text = table.markdown();
        assert!(
            text.contains("| ping, µs | direct | 450 ± 11 % | ≈ 420 ± 8 % | 13 | 272 |"),
            "{text}"
        );
        assert!(
            text.contains("Not measured: engine kvm: no /dev/kvm."),
            "{text}"
        );
        let csv = table.csv();
        assert!(
            csv.contains("\"ping\",µs,direct,container,2,480\n"),
            "{csv}"
        );
    }
}
