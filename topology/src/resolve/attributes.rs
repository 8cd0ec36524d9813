//! The attributes of links: ranges, and what belongs together.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use super::Findings;
use super::fault::times;
use crate::document::Path;
use crate::file::{self, AttributesRef, RateOrUnlimited, Toggle};
use crate::host::Folder;
use crate::model::{
    Change, Codel, Discipline, Distribution, DropFrom, FqCodel, GilbertElliott, Jitter, Limit,
    Loss, Patch, Pie, Queue, Red, Reorder, Trace,
};
use crate::quantity::{Probability, QueueLimit, Rate, Size, Time};

const HOUR: Time = Time(Duration::from_hours(1));
const MINUTE: Time = Time(Duration::from_mins(1));
/// The most samples netem takes in a table.
const MAX_TABLE: usize = 16_384;

/// What a place in the file sets of a direction. What is out of range is an error and left out.
pub fn patch(
    written: AttributesRef<'_>,
    path: &Path,
    folder: &Folder,
    findings: &mut Findings<'_>,
) -> Patch {
    Reader { folder, findings }.patch(written, path)
}

/// Changes of a link; a mistake in a file shall not take all memory.
const MAX_CHANGES: usize = 100_000;

/// Timed changes, in the order of time.
pub fn schedule(
    written: &[file::Change],
    path: &Path,
    folder: &Folder,
    findings: &mut Findings<'_>,
) -> Vec<Change> {
    let mut latest = Duration::ZERO;
    let mut changes = Vec::with_capacity(written.len());
    for (index, change) in written.iter().enumerate() {
        let path = path.at(index);
        if change.at.0 < latest {
            findings.error(
                &path.at("at"),
                format!("`at` is {}, before that of the change above it", change.at),
                "write the changes in the order of time",
            );
        }
        latest = latest.max(change.at.0);
        let set = set(&change.set, &path.at("set"), folder, findings);
        let times = times(change.at, change.every, change.count, &path, findings);
        changes.extend(times.into_iter().map(|at| Change {
            at,
            set: set.clone(),
        }));
        if changes.len() > MAX_CHANGES {
            findings.error(
                &path,
                format!("the link changes more than {MAX_CHANGES} times"),
                "a smaller `count`",
            );
            break;
        }
    }
    // Of those at the same time, in the order of the file.
    changes.sort_by_key(|change| change.at);
    changes
}

/// What a change sets in each direction.
pub fn set(
    written: &file::Set,
    path: &Path,
    folder: &Folder,
    findings: &mut Findings<'_>,
) -> [Patch; 2] {
    let known = findings.diagnostics.len();
    let both = patch(written.attributes(), path, folder, findings);
    let sides = [
        ("forward", &written.forward),
        ("backward", &written.backward),
    ];
    let set = sides.map(|(name, side)| match side {
        Some(side) => {
            let side = patch(side.attributes(), &path.at(name), folder, findings);
            both.clone().and(side)
        }
        None => both.clone(),
    });
    // What is wrong with an attribute has been said, and is not that there is none.
    let said = findings.diagnostics.len() > known || findings.document.lost_any(path);
    if set.iter().all(Patch::is_empty) && !said {
        findings.error(
            path,
            "nothing is set",
            "name an attribute of the link, as in {\"rate\": \"10Mbit\"}",
        );
    }
    set
}

struct Reader<'a, 'b> {
    folder: &'a Folder,
    findings: &'a mut Findings<'b>,
}

impl Reader<'_, '_> {
    fn patch(&mut self, written: AttributesRef<'_>, path: &Path) -> Patch {
        if let (Some(RateOrUnlimited::Rate(_)), Some(_)) = (written.rate, written.trace) {
            self.findings.error(
                &path.at("trace"),
                "a link has either a `rate` or a `trace`",
                "remove one of them",
            );
        }
        let rate = written.rate.and_then(|rate| match rate {
            RateOrUnlimited::Unlimited => Some(None),
            RateOrUnlimited::Rate(rate) => self
                .within(path, "rate", rate, &(Rate(100)..=Rate(1_000_000_000_000)))
                .map(|Rate(rate)| Some(rate)),
        });
        let overhead = written
            .overhead
            .and_then(|bytes| self.within(path, "overhead", bytes, &(Size(0)..=Size(1024))));
        let delay = written
            .delay
            .and_then(|delay| self.within(path, "delay", delay, &(Time(Duration::ZERO)..=HOUR)));
        let ber = written
            .ber
            .and_then(|ber| self.within(path, "ber", ber, &(0.0..=1.0)));
        Patch {
            rate,
            trace: written
                .trace
                .and_then(|file| self.trace(file, &path.at("trace"))),
            overhead: overhead.map(|Size(bytes)| bytes as u32),
            delay: delay.map(|Time(delay)| delay),
            jitter: written
                .jitter
                .and_then(|jitter| self.jitter(jitter, &path.at("jitter"))),
            reorder: written
                .reorder
                .map(|reorder| self.reorder(reorder, &path.at("reorder"))),
            loss: written
                .loss
                .and_then(|loss| self.loss(loss, &path.at("loss"))),
            ber,
            duplicate: written.duplicate.map(|Probability(p)| p),
            corrupt: written.corrupt.map(|Probability(p)| p),
            queue: written
                .queue
                .map(|queue| self.queue(queue, &path.at("queue"))),
            up: written.up,
        }
    }

    fn within<T: PartialOrd + Display>(
        &mut self,
        path: &Path,
        field: &str,
        value: T,
        range: &RangeInclusive<T>,
    ) -> Option<T> {
        self.findings.ranged(&path.at(field), value, range)
    }

    /// Mahimahi's format: a line per opportunity, each a time in milliseconds.
    fn trace(&mut self, file: &str, path: &Path) -> Option<Arc<Trace>> {
        let text = self.folder.read(file, path, self.findings)?;
        let mut opportunities = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() {
                continue;
            }
            let at = line
                .parse::<u32>()
                .ok()
                .map(|ms| Duration::from_millis(ms.into()));
            match at {
                Some(at) if opportunities.last().is_none_or(|last| *last <= at) => {
                    opportunities.push(at);
                }
                _ => {
                    self.findings.error(
                        path,
                        format!("line {} of `{file}` is `{line}`", number + 1),
                        "each line of a trace is a whole number of milliseconds, not less than the one before it",
                    );
                    return None;
                }
            }
        }
        if opportunities.last().is_none_or(Duration::is_zero) {
            self.findings.error(
                path,
                format!("`{file}` holds no time after 0"),
                "the last line of a trace is its length in milliseconds",
            );
            return None;
        }
        Some(Arc::new(Trace { opportunities }))
    }

    fn jitter(&mut self, written: &file::Jitter, path: &Path) -> Option<Jitter> {
        let range = Time(Duration::ZERO)..=HOUR;
        let details = match written {
            file::Jitter::Uniform(spread) => {
                let Time(spread) = self.findings.ranged(path, *spread, &range)?;
                return Some(Jitter {
                    spread,
                    distribution: Distribution::Uniform,
                });
            }
            file::Jitter::Detailed(details) => details,
        };
        let Time(spread) = self.within(path, "spread", details.spread, &range)?;
        let distribution = match (details.distribution, &details.table) {
            (Some(file::Distribution::Table) | None, Some(table)) => {
                Distribution::Table(self.table(table, &path.at("table"))?)
            }
            (Some(_), Some(_)) => {
                self.findings.error(
                    &path.at("table"),
                    "only the distribution `table` has a table",
                    "remove `table` or `distribution`",
                );
                return None;
            }
            (Some(file::Distribution::Table), None) => {
                if !self.findings.document.lost_member(path, "table") {
                    self.findings
                        .error(path, "`table` is missing", "name a file of numbers");
                }
                return None;
            }
            (Some(file::Distribution::Normal), None) => Distribution::Normal,
            (Some(file::Distribution::Pareto), None) => Distribution::Pareto,
            (Some(file::Distribution::Uniform) | None, None) => Distribution::Uniform,
        };
        Some(Jitter {
            spread,
            distribution,
        })
    }

    /// The format of netem's distribution files: whole numbers apart by white space, lines that begin with `#` left out.
    fn table(&mut self, file: &str, path: &Path) -> Option<Arc<[i16]>> {
        let text = self.folder.read(file, path, self.findings)?;
        let words = text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .flat_map(str::split_whitespace);
        let mut table = Vec::new();
        for word in words {
            let Ok(number) = word.parse() else {
                self.findings.error(
                    path,
                    format!("`{word}` in `{file}` is not a number of a table"),
                    "a table holds whole numbers from -32768 to 32767, in 1/8192",
                );
                return None;
            };
            table.push(number);
        }
        if table.is_empty() || table.len() > MAX_TABLE {
            self.findings.error(
                path,
                format!("`{file}` holds {} numbers", table.len()),
                format!("a table holds 1 to {MAX_TABLE}"),
            );
            return None;
        }
        Some(table.into())
    }

    fn reorder(&mut self, written: &Toggle<file::Reorder>, path: &Path) -> Option<Reorder> {
        let (probability, gap) = match written {
            Toggle::Plain(false) => return None,
            Toggle::Plain(true) => (None, None),
            Toggle::Detailed(details) => (details.probability, details.gap),
        };
        let gap = self.within(path, "gap", gap.unwrap_or(1), &(1..=1_000_000));
        Some(Reorder {
            probability: probability.map_or(0.0, |Probability(p)| p),
            gap: gap.unwrap_or(1) as u32,
        })
    }

    fn loss(&mut self, written: &file::Loss, path: &Path) -> Option<Loss> {
        let model = match written {
            file::Loss::Random(Probability(p)) => return Some(Loss::Random(*p)),
            file::Loss::Model(model) => model,
        };
        match (&model.gilbert_elliott, model.every) {
            (Some(ge), None) => Some(Loss::GilbertElliott(GilbertElliott {
                p: ge.p.0,
                r: ge.r.0,
                loss_bad: ge.loss_bad.map_or(1.0, |Probability(p)| p),
                loss_good: ge.loss_good.map_or(0.0, |Probability(p)| p),
            })),
            (None, Some(n)) => self
                .within(path, "every", n, &(1..=u64::from(u32::MAX)))
                .map(|n| Loss::Every(n as u32)),
            _ => {
                if !self.findings.document.lost_any(path) {
                    self.findings.error(
                        path,
                        "exactly one of `gilbert-elliott` and `every` is needed",
                        "for independent losses write a probability, as in \"1%\"",
                    );
                }
                None
            }
        }
    }

    fn queue(&mut self, written: &file::Queue, path: &Path) -> Queue {
        const FLOWS: u64 = 1024;
        const QUANTUM: Size = Size(1514);
        let (limit, default, discipline) = match written {
            file::Queue::Fifo(q) => (q.limit, 1000, Discipline::Fifo(drop_from(q.drop))),
            file::Queue::Drr(q) => {
                let discipline = Discipline::Drr {
                    drop: drop_from(q.drop),
                    flows: self.flows(q.flows.unwrap_or(FLOWS), path),
                    quantum: self.quantum(q.quantum.unwrap_or(QUANTUM), path),
                };
                (q.limit, 1000, discipline)
            }
            file::Queue::Wfq(q) => {
                let (drop, flows) = (
                    drop_from(q.drop),
                    self.flows(q.flows.unwrap_or(FLOWS), path),
                );
                (q.limit, 1000, Discipline::Wfq { drop, flows })
            }
            file::Queue::Wf2q(q) => {
                let (drop, flows) = (
                    drop_from(q.drop),
                    self.flows(q.flows.unwrap_or(FLOWS), path),
                );
                (q.limit, 1000, Discipline::Wf2q { drop, flows })
            }
            file::Queue::Red(q) => (q.limit, 1000, Discipline::Red(self.red(q, path))),
            file::Queue::Codel(q) => {
                let codel = self.codel(Codel::default(), q.target, q.interval, q.ecn, path);
                (q.limit, 1000, Discipline::Codel(codel))
            }
            file::Queue::FqCodel(q) => {
                let default = FqCodel::default();
                let flows = q.flows.unwrap_or(default.flows.into());
                let quantum = q.quantum.unwrap_or(Size(default.quantum.into()));
                let fq = FqCodel {
                    flows: self.flows(flows, path),
                    quantum: self.quantum(quantum, path),
                    codel: self.codel(default.codel, q.target, q.interval, q.ecn, path),
                };
                // RFC 8290 §5.2.5.
                (q.limit, 10_240, Discipline::FqCodel(fq))
            }
            file::Queue::Pie(q) => (q.limit, 1000, Discipline::Pie(self.pie(q, path))),
        };
        let limit = limit.and_then(|limit| self.limit(limit, &path.at("limit")));
        Queue {
            limit: limit.unwrap_or(Limit::Packets(default)),
            discipline,
        }
    }

    fn limit(&mut self, limit: QueueLimit, path: &Path) -> Option<Limit> {
        let (low, high) = match limit {
            QueueLimit::Packets(_) => (QueueLimit::Packets(1), QueueLimit::Packets(1_000_000)),
            QueueLimit::Size(_) => (QueueLimit::Size(Size(64)), QueueLimit::Size(Size(1 << 30))),
        };
        let limit = self.findings.ranged(path, limit, &(low..=high))?;
        Some(match limit {
            QueueLimit::Packets(packets) => Limit::Packets(packets as u32),
            QueueLimit::Size(Size(bytes)) => Limit::Bytes(bytes),
        })
    }

    fn flows(&mut self, flows: u64, path: &Path) -> u32 {
        self.within(path, "flows", flows, &(1..=65_536))
            .unwrap_or(1) as u32
    }

    fn quantum(&mut self, quantum: Size, path: &Path) -> u32 {
        let range = Size(64)..=Size(1 << 20);
        self.within(path, "quantum", quantum, &range)
            .map_or(1514, |Size(bytes)| bytes as u32)
    }

    fn red(&mut self, written: &file::Red, path: &Path) -> Red {
        let default = Red::default();
        let min_th = written
            .min_th
            .and_then(|th| self.limit(th, &path.at("min-th")));
        let max_th = written
            .max_th
            .and_then(|th| self.limit(th, &path.at("max-th")));
        let min_th = min_th.unwrap_or(default.min_th);
        let max_th = max_th.unwrap_or(match min_th {
            Limit::Packets(n) => Limit::Packets(n.saturating_mul(3)),
            Limit::Bytes(n) => Limit::Bytes(n.saturating_mul(3)),
        });
        let ordered = match (min_th, max_th) {
            (Limit::Packets(min), Limit::Packets(max)) => min < max,
            (Limit::Bytes(min), Limit::Bytes(max)) => min < max,
            _ => false,
        };
        if !ordered {
            self.findings.error(
                &path.at("max-th"),
                "`max-th` is not greater than `min-th`",
                "write both in packets or both as sizes, `max-th` about three times `min-th`",
            );
        }
        let w_q = written.w_q.unwrap_or(default.w_q);
        Red {
            min_th,
            max_th,
            max_p: written.max_p.map_or(default.max_p, |Probability(p)| p),
            w_q: self
                .within(path, "w-q", w_q, &(1e-9..=1.0))
                .unwrap_or(default.w_q),
            gentle: written.gentle.unwrap_or(default.gentle),
            ecn: written.ecn.unwrap_or(default.ecn),
        }
    }

    fn time(
        &mut self,
        written: Option<Time>,
        low: u64,
        default: Duration,
        field: &str,
        path: &Path,
    ) -> Duration {
        written
            .and_then(|time| self.within(path, field, time, &(Time::from_nanos(low)..=MINUTE)))
            .map_or(default, |Time(time)| time)
    }

    fn codel(
        &mut self,
        default: Codel,
        target: Option<Time>,
        interval: Option<Time>,
        ecn: Option<bool>,
        path: &Path,
    ) -> Codel {
        Codel {
            target: self.time(target, 1, default.target, "target", path),
            interval: self.time(interval, 1, default.interval, "interval", path),
            ecn: ecn.unwrap_or(default.ecn),
        }
    }

    fn pie(&mut self, written: &file::Pie, path: &Path) -> Pie {
        let default = Pie::default();
        let mut weight = |written: Option<f64>, default, field| {
            written
                .and_then(|hz| self.within(path, field, hz, &(0.0..=1000.0)))
                .unwrap_or(default)
        };
        let alpha = weight(written.alpha, default.alpha, "alpha");
        let beta = weight(written.beta, default.beta, "beta");
        Pie {
            target: self.time(written.target, 1, default.target, "target", path),
            t_update: self.time(
                written.t_update,
                100_000,
                default.t_update,
                "t-update",
                path,
            ),
            max_burst: self.time(written.max_burst, 0, default.max_burst, "max-burst", path),
            alpha,
            beta,
            ecn: written.ecn.unwrap_or(default.ecn),
            max_ecnth: written
                .max_ecnth
                .map_or(default.max_ecnth, |Probability(p)| p),
        }
    }
}

fn drop_from(written: Option<file::DropFrom>) -> DropFrom {
    match written {
        Some(file::DropFrom::Head) => DropFrom::Head,
        Some(file::DropFrom::Tail) | None => DropFrom::Tail,
    }
}
