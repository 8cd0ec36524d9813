//! `vmm bench`: engines side by side on this machine, by iperf3 and ping in the nodes of labs like anybody's.
//!
//! Every benchmark fills [`Results`] with figures; what is written of them (tables, plots, the page) is the same for all.

pub mod exits;
pub mod fidelity;
pub mod hops;
mod lab;
mod machine;
mod page;
mod plot;
mod probe;
mod progress;
mod results;
pub mod scale;
mod stats;
mod subject;
mod table;
pub mod table1;

use std::fs;
use std::path::Path;

use crate::failure::{Code, Failure};

pub use progress::Progress;
pub use results::Results;
pub use subject::{Column, Subject, columns};

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub struct Amount {
    /// How often each figure is taken.
    pub repetitions: u32,
    /// Seconds of each transfer.
    pub seconds: u32,
}

/// Writes results into `folder`: `NAME.md`, `NAME.csv`, `NAME.json` and a plot for each quantity; and `report.html` anew, with everything
/// that has been written there so far.
pub fn write(folder: &Path, results: &Results) -> Result<(), Failure> {
    fs::create_dir_all(folder).map_err(|error| {
        let message = format!("cannot make the folder {}: {error}", folder.display());
        Failure::new(Code::General, message)
    })?;
    let name = &results.bench;
    put(folder, &format!("{name}.md"), &table::markdown(results))?;
    put(folder, &format!("{name}.csv"), &table::csv(results))?;
    let json = serde_json::to_string_pretty(results).unwrap_or_default();
    put(folder, &format!("{name}.json"), &json)?;
    for (quantity, picture) in plot::all(results)? {
        let file = format!("{name}-{}.svg", plot::slug(&quantity));
        put(folder, &file, &picture)?;
    }
    put(folder, "report.html", &page::html(&Results::all(folder)?)?)
}

/// For people.
pub fn markdown(results: &Results) -> String {
    table::markdown(results)
}

fn put(folder: &Path, file: &str, text: &str) -> Result<(), Failure> {
    let path = folder.join(file);
    fs::write(&path, text).map_err(|error| {
        let message = format!("cannot write {}: {error}", path.display());
        Failure::new(Code::General, message)
    })
}
