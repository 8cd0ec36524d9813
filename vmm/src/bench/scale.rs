//! What nodes cost: the time of a launch, memory of the host, and processor time while nothing happens.

use std::time::Duration;

use super::lab::{Lab, chain};
use super::probe::{Busy, memory_available};
use super::results::{Place, Results, Scale};
use super::table1::round;
use super::{Amount, Column, Progress};
use crate::failure::Failure;

const LAUNCH: &str = "launch";
const MEMORY: &str = "memory of the host per node";
const IDLE: &str = "busy processors of the host, idle lab";

/// Measures labs of 2, 4, 8 and so on up to `most` nodes.
pub async fn measure(columns: Vec<Column>, amount: Amount, most: u32) -> Result<Results, Failure> {
    let texts = [
        "scale",
        "Against the number of nodes",
        "One lab at a time, of nodes in a row. The launch is from the command to the last node that is ready. Memory is what the host has less \
         available than before the launch, by the number of nodes: it counts the kernel's own, and not what all nodes share on disk. How busy the host is \
         with a lab in which nothing happens is less what it was busy with before.",
        "nodes",
    ];
    let quantities = [
        (LAUNCH, "s", Scale::Ratio),
        (MEMORY, "MiB", Scale::Linear),
        (IDLE, "", Scale::Linear),
    ];
    let mut results = Results::new(texts, columns, &quantities)?;
    let sizes = sizes(most);
    let rounds = 1 + amount.repetitions as usize * sizes.len();
    let progress = Progress::new(results.subjects().len() * rounds);
    for repetition in 0..=amount.repetitions {
        // Two nodes are enough to warm up: files are read, modules are loaded.
        let sizes = if repetition == 0 { &[2][..] } else { &sizes };
        for nodes in sizes {
            for subject in results.subjects() {
                progress.step(format!(
                    "{}: {nodes} nodes, {}",
                    round(repetition, amount),
                    subject.name()
                ));
                let window = Duration::from_secs(amount.seconds.into());
                let available = memory_available().await;
                let before = idle(window).await;
                let lab = match Lab::launch("scale", subject, &chain(*nodes, 1500)) {
                    Ok(lab) => lab,
                    // As far as it gets is a result, but not to get anywhere.
                    Err(failure) if *nodes > 2 => {
                        let why = format!("{nodes} nodes: {}", failure.message);
                        results.note(why);
                        continue;
                    }
                    Err(failure) if results.subjects().len() > 1 => {
                        results.give_up(subject, &failure.message);
                        continue;
                    }
                    Err(failure) => return Err(failure),
                };
                let taken = available - memory_available().await;
                let busy = idle(window).await;
                if repetition > 0 {
                    let place = Place::at(*nodes);
                    let mut take = |quantity, value| results.take(quantity, &place, subject, value);
                    take(LAUNCH, lab.launched.as_secs_f64());
                    take(MEMORY, taken / f64::from(*nodes));
                    take(IDLE, busy - before);
                }
                drop(lab);
            }
        }
    }
    Ok(results)
}

async fn idle(window: Duration) -> f64 {
    let busy = Busy::begin();
    tokio::time::sleep(window).await;
    busy.processors()
}

/// 2, 4, 8 and so on, and the most itself.
fn sizes(most: u32) -> Vec<u32> {
    let doubled = std::iter::successors(Some(2u32), |nodes| nodes.checked_mul(2));
    let mut sizes: Vec<_> = doubled.take_while(|nodes| *nodes < most).collect();
    sizes.push(most);
    sizes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_end_with_the_most() {
        assert_eq!(sizes(2), [2]);
        assert_eq!(sizes(8), [2, 4, 8]);
        assert_eq!(sizes(10), [2, 4, 8, 10]);
    }
}
