//! The counters as tables for people.

use std::fmt::Write as _;

use super::{DirectionStats, PortStats, ShardStats, Stats};

impl Stats {
    /// Tables for people.
    pub fn table(&self) -> String {
        let mut out = String::new();
        let directions = || self.links.iter().flat_map(|l| &l.directions);
        Table::new(
            &[
                "PORT",
                "STATE",
                "FEATURES",
                "MALFORMED",
                "UNLINKED",
                "VIOLATIONS",
                "LAST ERROR",
            ],
            &[3, 4, 5],
        )
        .render(&mut out, self.ports.iter().map(port));
        let externals = self.externals.iter().map(|e| {
            vec![
                e.name.clone(),
                e.leads_to.clone(),
                if e.connected { "running" } else { "waiting" }.to_owned(),
                e.malformed.to_string(),
                e.last_error.clone().unwrap_or_default(),
            ]
        });
        Table::new(
            &["EXTERNAL", "LEADS TO", "STATE", "MALFORMED", "LAST ERROR"],
            &[3],
        )
        .render(&mut out, externals);
        Table::new(
            &[
                "LINK", "IN", "BYTES", "OUT", "BYTES", "QUEUED", "MAX", "COPIED", "POOLED", "DROPS",
            ],
            &[1, 2, 3, 4, 5, 6, 7, 8],
        )
        .render(&mut out, directions().map(direction));
        let events = directions().filter(|d| d.duplicated + d.corrupted + d.marked > 0);
        Table::new(&["LINK", "DUPLICATED", "CORRUPTED", "MARKED"], &[1, 2, 3]).render(
            &mut out,
            events.map(|d| {
                let numbers = [d.duplicated, d.corrupted, d.marked];
                row(way(d), numbers.map(|n| n.to_string()))
            }),
        );
        let timed = directions().filter(|d| d.lateness.count > 0);
        Table::new(
            &["LATENESS", "FRAMES", "P50", "P90", "P99", "P99.9", "MAX"],
            &[1, 2, 3, 4, 5, 6],
        )
        .render(&mut out, timed.map(lateness));
        let nodes = self.nodes.iter().map(|n| {
            let numbers = [
                n.frames,
                n.flooded,
                n.filtered,
                n.wrong_vlan,
                n.storm,
                n.looped,
                n.moved,
                n.learnt,
            ];
            let numbers = numbers.map(|n| n.to_string());
            let error = n.last_error.clone().unwrap_or_default();
            let rest = [n.kind.clone()].into_iter().chain(numbers).chain([error]);
            row(n.name.clone(), rest)
        });
        Table::new(
            &[
                "NODE",
                "KIND",
                "FRAMES",
                "FLOODED",
                "FILTERED",
                "WRONG VLAN",
                "STORM",
                "LOOPED",
                "MOVED",
                "LEARNT",
                "LAST ERROR",
            ],
            &[2, 3, 4, 5, 6, 7, 8, 9],
        )
        .render(&mut out, nodes);
        Table::new(
            &[
                "SHARD",
                "BUSY",
                "POLLING",
                "ASLEEP",
                "TURNS",
                "WAKE-UPS",
                "BATCHES",
                "PER BATCH",
                "POOL",
                "NOW",
                "MAX",
            ],
            &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10],
        )
        .render(&mut out, self.shards.iter().enumerate().map(shard));
        if self.captures > 0 {
            let _ = writeln!(out, "\ncaptures running: {}", self.captures);
        }
        out
    }
}

type Row = Vec<String>;

fn row(name: String, rest: impl IntoIterator<Item = String>) -> Row {
    std::iter::once(name).chain(rest).collect()
}

fn way(d: &DirectionStats) -> String {
    format!("{} > {}", d.from, d.to)
}

fn port(p: &PortStats) -> Row {
    let state = match (p.connected, p.sending && p.receiving) {
        (false, _) => "waiting",
        (true, false) => "connected",
        (true, true) => "running",
    };
    vec![
        p.name.clone(),
        state.to_owned(),
        p.features.join(","),
        p.malformed.to_string(),
        p.unlinked.to_string(),
        p.violations.to_string(),
        p.last_error.clone().unwrap_or_default(),
    ]
}

fn direction(d: &DirectionStats) -> Row {
    let drops: Vec<String> = d
        .drops
        .iter()
        .filter(|(_, n)| *n > 0)
        .map(|(reason, n)| format!("{reason}={n}"))
        .collect();
    let drops = if drops.is_empty() {
        "-".to_owned()
    } else {
        drops.join(" ")
    };
    let numbers = [
        d.in_frames,
        d.in_bytes,
        d.out_frames,
        d.out_bytes,
        d.queued,
        d.queued_max,
        d.bytes_copied,
        d.pool_copies,
    ];
    row(
        way(d),
        numbers.map(|n| n.to_string()).into_iter().chain([drops]),
    )
}

fn lateness(d: &DirectionStats) -> Row {
    let l = &d.lateness;
    let times = [l.p50, l.p90, l.p99, l.p999, l.max].map(nanoseconds);
    row(way(d), [l.count.to_string()].into_iter().chain(times))
}

fn shard((number, s): (usize, &ShardStats)) -> Row {
    let all = s.busy_ns + s.polling_ns + s.sleeping_ns;
    let share = |ns: u64| match all {
        0 => "-".to_owned(),
        all => format!("{:.1}%", 100.0 * ns as f64 / all as f64),
    };
    let per_batch = match s.batches {
        0 => "-".to_owned(),
        n => format!("{:.1}", s.batch_frames as f64 / n as f64),
    };
    vec![
        number.to_string(),
        share(s.busy_ns),
        share(s.polling_ns),
        share(s.sleeping_ns),
        s.turns.to_string(),
        s.sleeps.to_string(),
        s.batches.to_string(),
        per_batch,
        s.pool_bytes.to_string(),
        s.pool_frames.to_string(),
        s.pool_frames_max.to_string(),
    ]
}

/// A time with three digits, in the unit that suits it.
fn nanoseconds(ns: u64) -> String {
    let (value, unit) = match ns {
        0..1_000 => return format!("{ns}ns"),
        1_000..1_000_000 => (ns as f64 / 1e3, "us"),
        1_000_000..1_000_000_000 => (ns as f64 / 1e6, "ms"),
        _ => (ns as f64 / 1e9, "s"),
    };
    let digits = match value {
        v if v < 10.0 => 2,
        v if v < 100.0 => 1,
        _ => 0,
    };
    format!("{value:.digits$}{unit}")
}

/// Columns as wide as they need to be, numbers aligned to the right.
struct Table<'a> {
    head: &'a [&'a str],
    numbers: &'a [usize],
}

impl<'a> Table<'a> {
    fn new(head: &'a [&'a str], numbers: &'a [usize]) -> Self {
        Self { head, numbers }
    }

    /// Appends it, after an empty line if there is something already; nothing if it has no rows.
    fn render(&self, out: &mut String, rows: impl Iterator<Item = Row>) {
        let mut rows: Vec<Row> = rows.collect();
        if rows.is_empty() {
            return;
        }
        if !out.is_empty() {
            out.push('\n');
        }
        rows.insert(0, self.head.iter().map(|h| (*h).to_owned()).collect());
        let width = |i: usize| rows.iter().map(|r| r[i].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..self.head.len()).map(width).collect();
        for row in &rows {
            let mut line = String::new();
            for (i, (cell, width)) in row.iter().zip(&widths).enumerate() {
                // Writing to a String does not fail.
                let _ = if self.numbers.contains(&i) {
                    write!(line, "{cell:>width$}  ")
                } else {
                    write!(line, "{cell:width$}  ")
                };
            }
            out.push_str(line.trim_end());
            out.push('\n');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        let times = [0, 999, 1_000, 12_345, 999_499, 1_234_567, 70_000_000_000];
        let told = times.map(nanoseconds);
        assert_eq!(
            told,
            [
                "0ns", "999ns", "1.00us", "12.3us", "999us", "1.23ms", "70.0s"
            ]
        );
    }

    #[test]
    fn columns() {
        let mut out = String::new();
        let rows = [["a", "1", "x y"], ["long name", "1000", "-"]];
        let rows = || rows.iter().map(|r| r.map(str::to_owned).to_vec());
        let table = Table::new(&["NAME", "N", "REST"], &[1]);
        table.render(&mut out, rows());
        table.render(&mut out, rows().take(0));
        let expected = "NAME          N  REST\na             1  x y\nlong name  1000  -\n";
        assert_eq!(out, expected);
    }
}
