//! The first table of the IMUNES paper, here: TCP's throughput and the round trip to the node itself, to a neighbour, and over one and
//! two routers.
//!
//! The engines take turns in each repetition, so that what else happens on the machine hits all of them.

use super::lab::{Lab, chain, chain_address};
use super::probe::Path;
use super::results::{Place, Reference, Results, Scale};
use super::{Amount, Column, Progress};
use crate::failure::Failure;

/// The MTUs of the paper.
const MTUS: [u16; 2] = [1500, 500];
/// Where to: the node of the chain with that number.
const PATHS: [&str; 4] = ["local", "direct", "1 hop", "2 hops"];
/// In the order of the paper.
const QUANTITIES: [(&str, &str, Scale); 3] = [
    ("TCP, MTU 1500", "Mbit/s", Scale::Ratio),
    ("TCP, MTU 500", "Mbit/s", Scale::Ratio),
    ("ping", "µs", Scale::Ratio),
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

/// Measures.
pub async fn measure(columns: Vec<Column>, amount: Amount) -> Result<Results, Failure> {
    let texts = [
        "table1",
        "Throughput and round trips",
        "TCP for a few seconds by iperf3, and the median of ten echo requests, from the first of four nodes in a row to itself, to its neighbour, \
         and over one and two routers. Links have no attributes.",
        "to",
    ];
    let mut results = Results::new(texts, columns, &QUANTITIES)?;
    results.references = references();
    results.note(
        "The figures of 2004 are those of the IMUNES paper (Zec and Mikuc, Table 1), on a PC of its time: its §4.2 names a 2.8 GHz Pentium 4."
            .to_owned(),
    );
    let rounds = (1 + amount.repetitions as usize) * PATHS.len();
    let progress = Progress::new(MTUS.len() * results.subjects().len() * (1 + rounds));
    for (mtu, quantity) in MTUS.into_iter().zip([QUANTITIES[0].0, QUANTITIES[1].0]) {
        let text = chain(PATHS.len() as u32, mtu);
        let labs = Lab::launch_all("table1", &mut results, &text, |subject| {
            progress.step(format!("MTU {mtu}: launching {}", subject.name()));
        })?;
        // The first round is for caches, ARP and the like, and is thrown away.
        for repetition in 0..=amount.repetitions {
            for (node, path) in (0..).zip(PATHS) {
                for lab in &labs {
                    progress.step(format!(
                        "MTU {mtu}, {}: {path}, {}",
                        round(repetition, amount),
                        lab.subject.name()
                    ));
                    let way = Path::new("n0", &format!("n{node}"), &chain_address(node))?;
                    if repetition == 0 {
                        way.tcp(lab, 1).await?;
                        continue;
                    }
                    let place = Place::named(path);
                    let rate = way.tcp(lab, amount.seconds).await?;
                    results.take(quantity, &place, lab.subject, rate);
                    if mtu == MTUS[0] {
                        let time = way.round_trip(lab).await? * 1e3;
                        results.take(QUANTITIES[2].0, &place, lab.subject, time);
                    }
                }
            }
        }
    }
    Ok(results)
}

/// A repetition for people.
pub fn round(repetition: u32, amount: Amount) -> String {
    if repetition == 0 {
        "warm-up".to_owned()
    } else {
        format!("{repetition} of {}", amount.repetitions)
    }
}

fn references() -> Vec<Reference> {
    let reference = |(name, rows): (&str, [[f64; 4]; 3])| {
        let figures = QUANTITIES
            .iter()
            .zip(rows)
            .flat_map(|((quantity, ..), row)| {
                let figure =
                    |(path, value): (&str, f64)| ((*quantity).to_owned(), path.to_owned(), value);
                PATHS.into_iter().zip(row).map(figure)
            });
        Reference {
            name: name.to_owned(),
            figures: figures.collect(),
        }
    };
    PAPER.into_iter().map(reference).collect()
}
