//! Throughput, round trip and processor time against the number of routers on the way: the paper's figures 6 and 7.

use super::lab::{Lab, chain, chain_address};
use super::probe::{Busy, Path};
use super::results::{Place, Results, Scale};
use super::table1::round;
use super::{Amount, Column, Progress};
use crate::failure::Failure;

/// Of all numbers of routers up to the most, these.
const HOPS: [u32; 9] = [1, 2, 3, 5, 8, 12, 16, 23, 30];

const TCP: &str = "TCP";
const ROUND_TRIP: &str = "ping";
const BUSY: &str = "busy processors of the host";
const COST: &str = "processor time of the host";

/// Measures over up to `most` routers.
pub async fn measure(columns: Vec<Column>, amount: Amount, most: u32) -> Result<Results, Failure> {
    let texts = [
        "hops",
        "Against the number of routers",
        "TCP for a few seconds by iperf3 over so many routers in a row, how many of the host's processors were busy meanwhile, and the median of ten \
         echo requests. The labs of all engines are there all the time; those not measured are idle.",
        "routers",
    ];
    let quantities = [
        (TCP, "Mbit/s", Scale::Ratio),
        (BUSY, "", Scale::Linear),
        (COST, "s/Gbit", Scale::Ratio),
        (ROUND_TRIP, "ms", Scale::Ratio),
    ];
    let mut results = Results::new(texts, columns, &quantities)?;
    let mut hops: Vec<_> = HOPS.into_iter().filter(|hops| *hops < most).collect();
    hops.push(most);
    let rounds = (1 + amount.repetitions as usize) * hops.len();
    let progress = Progress::new(results.subjects().len() * (1 + rounds));
    // The first and the last node are no routers.
    let text = chain(most + 2, 1500);
    let labs = Lab::launch_all("hops", &mut results, &text, |subject| {
        progress.step(format!("launching {}", subject.name()));
    })?;
    for repetition in 0..=amount.repetitions {
        for hops in &hops {
            for lab in &labs {
                progress.step(format!(
                    "{}: over {hops}, {}",
                    round(repetition, amount),
                    lab.subject.name()
                ));
                let node = hops + 1;
                let way = Path::new("n0", &format!("n{node}"), &chain_address(node))?;
                if repetition == 0 {
                    way.tcp(lab, 1).await?;
                    continue;
                }
                let place = Place::at(*hops);
                let busy = Busy::begin();
                let rate = way.tcp(lab, amount.seconds).await?;
                let busy = busy.processors();
                let time = way.round_trip(lab).await?;
                let mut take = |quantity, value| results.take(quantity, &place, lab.subject, value);
                take(TCP, rate);
                take(BUSY, busy);
                // Where all processors are busy this is what tells engines apart.
                take(COST, busy / (rate / 1e3));
                take(ROUND_TRIP, time);
            }
        }
    }
    Ok(results)
}
