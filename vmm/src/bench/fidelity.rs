//! What links are asked for against what they deliver, end to end.

use serde_json::{Map, Value, json};

use super::lab::{Lab, SEGMENT};
use super::probe::{OFTEN, Path};
use super::results::{Place, Results, Scale};
use super::table1::round;
use super::{Amount, Column, Progress};
use crate::failure::Failure;

const ROUND_TRIP: &str = "round trip of a delay each way";
const RATE: &str = "TCP through a rate";
const LOSS: &str = "echo requests without an answer";

/// Milliseconds each way.
const DELAYS: [u32; 4] = [1, 5, 20, 100];
/// Mbit/s.
const RATES: [u32; 4] = [1, 5, 20, 100];
/// In percent, each way.
const LOSSES: [f64; 4] = [0.5, 1.0, 5.0, 20.0];
/// One cell of the grid.
#[derive(Debug)]
struct Cell {
    quantity: &'static str,
    place: Place,
    /// Of the link.
    set: Map<String, Value>,
}

/// Measures.
pub async fn measure(columns: Vec<Column>, amount: Amount) -> Result<Results, Failure> {
    let texts = [
        "fidelity",
        "Asked and measured",
        "Two nodes and a link, one attribute of which is set at a time: the median round trip of ten echo requests over a delay each way, TCP by iperf3 \
         through a rate, of which headers and the overhead of a frame on the wire leave 1448 bytes of 1538, and the share of 1000 echo requests a second \
         that has no answer as it or its answer is lost.",
        "set to",
    ];
    let quantities = [
        (ROUND_TRIP, "ms", Scale::Ratio),
        (RATE, "Mbit/s", Scale::Ratio),
        (LOSS, "%", Scale::Ratio),
    ];
    let mut results = Results::new(texts, columns, &quantities)?;
    let grid = grid();
    let rounds = 2 + amount.repetitions as usize * grid.len();
    let progress = Progress::new(results.subjects().len() * rounds);
    let labs = Lab::launch_all("fidelity", &mut results, &topology(), |subject| {
        progress.step(format!("launching {}", subject.name()));
    })?;
    let way = Path::new("a", "b", "10.0.0.2")?;
    for lab in &labs {
        // Whoever has not been spoken to has no address resolved.
        progress.step(format!("warm-up: {}", lab.subject.name()));
        way.round_trip(lab).await?;
    }
    for repetition in 1..=amount.repetitions {
        for cell in &grid {
            for lab in &labs {
                progress.step(format!(
                    "{}: {} {}, {}",
                    round(repetition, amount),
                    cell.quantity,
                    cell.place.label,
                    lab.subject.name()
                ));
                lab.client.reset_link("l").await?;
                if let Err(failure) = lab.client.set_link("l", &cell.set).await {
                    results.note(format!(
                        "{}: {} not measured: {}",
                        lab.subject.name(),
                        cell.quantity,
                        failure.message
                    ));
                    continue;
                }
                let value = match cell.quantity {
                    ROUND_TRIP => way.round_trip(lab).await?,
                    RATE => way.tcp(lab, amount.seconds).await?,
                    _ => {
                        let (asked, answered) = way.flood(lab, amount.seconds).await?;
                        (1.0 - answered / asked) * 100.0
                    }
                };
                results.take(cell.quantity, &cell.place, lab.subject, value);
            }
        }
    }
    let requests = OFTEN * amount.seconds;
    results.note(format!(
        "How many of {requests} requests are lost is itself left to chance: where one in a hundred is to be, two in three repetitions are within \
         {:.2} points of it.",
        100.0 * (0.01 * 0.99 / f64::from(requests)).sqrt()
    ));
    Ok(results)
}

fn grid() -> Vec<Cell> {
    let cell = |quantity, label: String, number: f64, asked: f64, name: &str, value: Value| Cell {
        quantity,
        place: Place {
            label,
            number: Some(number),
            asked: Some(asked),
        },
        set: Map::from_iter([(name.to_owned(), value)]),
    };
    let delays = DELAYS.map(|ms| {
        let (text, ms) = (format!("{ms}ms"), f64::from(ms));
        cell(ROUND_TRIP, text.clone(), ms, 2.0 * ms, "delay", json!(text))
    });
    let rates = RATES.map(|rate| {
        let (text, rate) = (format!("{rate}Mbit"), f64::from(rate));
        let payload = rate * SEGMENT.0 / SEGMENT.1;
        cell(RATE, text.clone(), rate, payload, "rate", json!(text))
    });
    let losses = LOSSES.map(|loss| {
        let text = format!("{loss}%");
        let either = 100.0 - (100.0 - loss).powi(2) / 100.0;
        cell(LOSS, text.clone(), loss, either, "loss", json!(text))
    });
    delays.into_iter().chain(rates).chain(losses).collect()
}

fn topology() -> String {
    let host =
        |address: &str| json!({"kind": "host", "interfaces": {"eth0": {"addresses": [address]}}});
    json!({
        "nodes": {"a": host("10.0.0.1/24"), "b": host("10.0.0.2/24")},
        "links": [{"name": "l", "endpoints": ["a:eth0", "b:eth0"]}],
    })
    .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cell_can_be_set() {
        let file = std::path::Path::new("bench.json");
        for cell in grid() {
            let mut text: Value = serde_json::from_str(&topology()).unwrap();
            for (name, value) in &cell.set {
                text["links"][0][name] = value.clone();
            }
            let loaded = topology::model::Topology::parse(&text.to_string(), file).unwrap();
            assert_eq!(loaded.warnings.to_string(), "", "{cell:?}");
        }
    }
}
