//! What was measured, as a table and as JSON.

use std::fmt::Write as _;

use serde::Serialize;

/// One figure beside another.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// What was measured, how.
    pub measure: String,
    pub unit: &'static str,
    pub ours: f64,
    /// Who ours is compared with, and what it got.
    pub peer: Option<Peer>,
    /// What was hoped for.
    pub target: Option<Target>,
}

#[derive(Debug, Clone, Serialize)]
pub struct Peer {
    pub name: String,
    pub value: f64,
    /// Ours over theirs: the median of the rounds, in each of which both were measured one after the other.
    pub ratio: f64,
}

#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    RatioAtLeast(f64),
    RatioAtMost(f64),
    AtMost(f64),
}

impl Row {
    pub fn new(measure: impl Into<String>, unit: &'static str, ours: f64) -> Self {
        Self {
            measure: measure.into(),
            unit,
            ours,
            peer: None,
            target: None,
        }
    }

    /// Compares samples of ours with those of `name`, taken in the same rounds.
    pub fn beside(
        measure: impl Into<String>,
        unit: &'static str,
        ours: &[f64],
        name: &str,
        theirs: &[f64],
    ) -> Self {
        let ratios: Vec<f64> = ours.iter().zip(theirs).map(|(a, b)| a / b).collect();
        let peer = Peer {
            name: name.to_owned(),
            value: median(theirs),
            ratio: median(&ratios),
        };
        Self {
            peer: Some(peer),
            ..Self::new(measure, unit, median(ours))
        }
    }

    pub fn target(self, target: Target) -> Self {
        Self {
            target: Some(target),
            ..self
        }
    }

    fn is_met(&self) -> Option<bool> {
        let ratio = self.peer.as_ref().map(|p| p.ratio);
        Some(match self.target? {
            Target::RatioAtLeast(x) => ratio? >= x,
            Target::RatioAtMost(x) => ratio? <= x,
            Target::AtMost(x) => self.ours <= x,
        })
    }
}

/// The middle one.
pub fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

/// The value that a part `q` of all is below.
pub fn quantile(values: &[f64], q: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().saturating_sub(1);
    sorted
        .get((last as f64 * q).round() as usize)
        .copied()
        .unwrap_or(f64::NAN)
}

/// All of a run.
#[derive(Debug, Serialize)]
pub struct Report {
    pub machine: String,
    pub date: String,
    pub commit: String,
    /// Of the last minute, before and after.
    pub load_average: [String; 2],
    pub seconds: u64,
    pub rows: Vec<Row>,
    /// What could not be measured, and why.
    pub skipped: Vec<String>,
}

impl Report {
    pub fn table(&self) -> String {
        let mut out = String::new();
        let widest = self.rows.iter().map(|r| r.measure.chars().count()).max();
        let width = widest.unwrap_or(0);
        let _ = writeln!(
            out,
            "{:width$}  {:>10} {:7} {:>22} {:>7}  {:<16}",
            "measure", "ours", "", "beside", "ratio", "target"
        );
        for row in &self.rows {
            let (beside, ratio) = match &row.peer {
                Some(p) => (
                    format!("{} {}", p.name, number(p.value)),
                    format!("{:.2}", p.ratio),
                ),
                None => Default::default(),
            };
            let target = match row.target {
                Some(Target::RatioAtLeast(x)) => format!("ratio ≥ {x}"),
                Some(Target::RatioAtMost(x)) => format!("ratio ≤ {x}"),
                Some(Target::AtMost(x)) => format!("≤ {x} {}", row.unit),
                None => String::new(),
            };
            let met = match row.is_met() {
                Some(true) => "met",
                Some(false) => "MISSED",
                None => "",
            };
            let _ = writeln!(
                out,
                "{:width$}  {:>10} {:7} {beside:>22} {ratio:>7}  {target:<16} {met}",
                row.measure,
                number(row.ours),
                row.unit
            );
        }
        for why in &self.skipped {
            let _ = writeln!(out, "SKIP {why}");
        }
        let _ = writeln!(
            out,
            "\n{}, {}, commit {}; load average {} before, {} after; {} s",
            self.machine,
            self.date,
            self.commit,
            self.load_average[0],
            self.load_average[1],
            self.seconds
        );
        out
    }
}

fn number(x: f64) -> String {
    match x.abs() {
        a if a >= 100.0 => format!("{x:.0}"),
        a if a >= 1.0 => format!("{x:.2}"),
        _ => format!("{x:.4}"),
    }
}
