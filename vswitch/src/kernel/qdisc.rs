//! The attributes of one direction of a link as queue disciplines of the kernel, or why they cannot be had there.
//!
//! netem delays and loses (tc-netem(8)), below it a token bucket transmits (tc-tbf(8)), and below that is the queue. A frame meets them in
//! this order: it is lost and delayed first, then queued, then transmitted. End to end the times add up to the same; that a lost frame
//! costs no bandwidth is netem's way.

use std::fmt::Write;
use std::time::Duration;

use topology::model::{
    Codel, Direction, Discipline, Distribution, DropFrom, Jitter, Limit, Loss, Pie, Queue,
};

/// Frames in the delay line: never its limit, as the queue has one of its own.
const DELAY_LINE: u32 = 1_000_000;
/// A token bucket must be deep enough for what is sent between two of its timer's ticks; this much time of its rate is.
const BURST: Duration = Duration::from_millis(1);
/// The least depth of a bucket, in bytes: two large frames.
const LEAST_BURST: u64 = 4096;

/// What the kernel cannot do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{attribute}`: the kernel {why}")]
pub struct Unsupported {
    /// The attribute, as the topology names it.
    pub attribute: &'static str,
    why: &'static str,
}

/// A queue discipline: its kind and its settings, by name.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Layer {
    kind: &'static str,
    settings: Vec<(&'static str, String)>,
}

impl Layer {
    fn new(kind: &'static str) -> Self {
        Self {
            kind,
            settings: Vec::new(),
        }
    }

    #[expect(
        clippy::needless_pass_by_value,
        reason = "numbers are written as they come"
    )]
    fn with(mut self, name: &'static str, value: impl ToString) -> Self {
        self.settings.push((name, value.to_string()));
        self
    }

    /// Whether `other` is the same but for numbers, so that one can be changed into the other.
    fn is_like(&self, other: &Self) -> bool {
        fn names(layer: &Layer) -> impl Iterator<Item = &'static str> {
            layer.settings.iter().map(|(name, _)| *name)
        }
        self.kind == other.kind && names(self).eq(names(other))
    }
}

/// The queue disciplines at the device at which a direction ends, the outermost first; none on a link that only passes on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Qdiscs(Vec<Layer>);

impl Qdiscs {
    /// Those for `direction`, whose frames have packets of up to `mtu` bytes.
    pub fn of(direction: &Direction, mtu: u32) -> Result<Self, Unsupported> {
        refuse(direction)?;
        let mut layers: Vec<_> = netem(direction)?.into_iter().collect();
        if let Some(rate) = direction.rate {
            layers.push(token_bucket(rate, direction.overhead, mtu));
            layers.push(queue(&direction.queue)?);
        }
        Ok(Self(layers))
    }

    /// Lines for tc(8) that make of those on `device`, which are `old`, these. What waits stays where it is, if nothing but numbers is
    /// different. `handle` is one that the device has not had lately; the next few are taken as well.
    pub fn replace(&self, old: &Self, device: &str, handle: u16, old_handle: u16) -> String {
        let mut text = String::new();
        let alike = self.0.len() == old.0.len()
            && (self.0.iter().zip(&old.0)).all(|(new, old)| new.is_like(old));
        if self.0.is_empty() && !old.0.is_empty() {
            let _ = writeln!(text, "qdisc del dev {device} root");
        }
        let (verb, first) = if alike {
            ("change", old_handle)
        } else {
            ("replace", handle)
        };
        for (layer, number) in self.0.iter().zip(first..) {
            let place = if number == first {
                "root".to_owned()
            } else {
                format!("parent {:x}:1", number - 1)
            };
            let kind = layer.kind;
            let _ = write!(
                text,
                "qdisc {verb} dev {device} {place} handle {number:x}: {kind}"
            );
            for (name, value) in &layer.settings {
                let _ = write!(text, " {name} {value}");
            }
            text = text.trim_end().to_owned();
            text.push('\n');
        }
        text
    }
}

/// Refuses what no queue discipline does.
fn refuse(direction: &Direction) -> Result<(), Unsupported> {
    let no = |attribute, why| Err(Unsupported { attribute, why });
    if direction.trace.is_some() {
        return no("trace", "sends at a rate, not at given times");
    }
    if direction.ber > 0.0 {
        return no(
            "ber",
            "loses frames without regard to their length: use `loss` with the default fabric's `ber` in mind, or `corrupt`",
        );
    }
    if let Loss::Every(_) = direction.loss {
        return no(
            "loss",
            "cannot count frames: a probability or `gilbert-elliott` it can",
        );
    }
    Ok(())
}

fn percent(probability: f64) -> String {
    format!("{:.7}%", probability * 100.0)
}

fn time(time: Duration) -> String {
    // tc(8) knows no nanoseconds everywhere, but takes fractions.
    format!("{:.3}us", time.as_nanos() as f64 / 1e3)
}

/// Delay, loss and other faults of the way, if there are any.
fn netem(direction: &Direction) -> Result<Option<Layer>, Unsupported> {
    let Direction {
        delay,
        jitter,
        reorder,
        loss,
        duplicate,
        corrupt,
        ..
    } = direction;
    let nothing = Direction::default();
    let has_fault = !delay.is_zero()
        || *jitter != nothing.jitter
        || *loss != nothing.loss
        || *duplicate > 0.0
        || *corrupt > 0.0;
    if !has_fault {
        return Ok(None);
    }
    let mut layer = Layer::new("netem").with("limit", DELAY_LINE);
    layer = layer.with("delay", delay_of(*delay, jitter, reorder.is_some())?);
    layer = match loss {
        Loss::Random(probability) => {
            layer.with("loss", format!("random {}", percent(*probability)))
        }
        Loss::GilbertElliott(model) => layer.with(
            "loss gemodel",
            [model.p, model.r, model.loss_bad, model.loss_good]
                .map(percent)
                .join(" "),
        ),
        // Refused before.
        Loss::Every(_) => layer,
    };
    layer = layer
        .with("duplicate", percent(*duplicate))
        .with("corrupt", percent(*corrupt));
    if let Some(reorder) = reorder
        && reorder.probability > 0.0
    {
        layer = layer
            .with("reorder", percent(reorder.probability))
            .with("gap", reorder.gap);
    }
    Ok(Some(layer))
}

fn delay_of(delay: Duration, jitter: &Jitter, reorder: bool) -> Result<String, Unsupported> {
    if jitter.spread.is_zero() {
        return Ok(time(delay));
    }
    let no = |why| {
        Err(Unsupported {
            attribute: "jitter",
            why,
        })
    };
    if !reorder {
        return no(
            "lets frames overtake whose delays vary: say `\"reorder\": true` if that is fine",
        );
    }
    let distribution = match &jitter.distribution {
        Distribution::Uniform => "uniform",
        Distribution::Normal => "normal",
        Distribution::Pareto => "pareto",
        Distribution::Table(_) => return no("has its own tables of distributions, not this file"),
    };
    Ok(format!(
        "{} {} distribution {distribution}",
        time(delay),
        time(jitter.spread)
    ))
}

fn token_bucket(rate: u64, overhead: u32, mtu: u32) -> Layer {
    let frame = u64::from(mtu) + 64;
    let burst = (rate / 8 / (1000 / BURST.as_millis() as u64))
        .max(LEAST_BURST)
        .max(2 * frame);
    // The limit is that of the queue below.
    Layer::new("tbf")
        .with("rate", format!("{rate}bit"))
        .with("burst", burst)
        .with("overhead", overhead)
        .with("limit", burst)
}

fn queue(queue: &Queue) -> Result<Layer, Unsupported> {
    let no = |why| {
        Err(Unsupported {
            attribute: "queue",
            why,
        })
    };
    let packets = match queue.limit {
        Limit::Packets(packets) => packets,
        Limit::Bytes(bytes) if queue.discipline == Discipline::Fifo(DropFrom::Tail) => {
            return Ok(Layer::new("bfifo").with("limit", bytes));
        }
        Limit::Bytes(_) => return no("limits this discipline in packets only"),
    };
    let codel = |layer: Layer, codel: &Codel| {
        let Codel {
            target,
            interval,
            ecn,
        } = codel;
        layer
            .with("target", time_us(*target))
            .with("interval", time_us(*interval))
            .with(if *ecn { "ecn" } else { "noecn" }, "")
    };
    Ok(match &queue.discipline {
        Discipline::Fifo(DropFrom::Tail) => Layer::new("pfifo").with("limit", packets),
        Discipline::Fifo(DropFrom::Head) => Layer::new("pfifo_head_drop").with("limit", packets),
        Discipline::Codel(settings) => codel(Layer::new("codel").with("limit", packets), settings),
        Discipline::FqCodel(settings) => codel(
            Layer::new("fq_codel")
                .with("limit", packets)
                .with("flows", settings.flows)
                .with("quantum", settings.quantum),
            &settings.codel,
        ),
        Discipline::Pie(settings) => {
            let fixed = Pie {
                target: settings.target,
                t_update: settings.t_update,
                ecn: settings.ecn,
                ..Pie::default()
            };
            if *settings != fixed {
                return no("has PIE with other settings than target, t-update and ecn fixed");
            }
            Layer::new("pie")
                .with("limit", packets)
                .with("target", time_us(settings.target))
                .with("tupdate", time_us(settings.t_update))
                .with(if settings.ecn { "ecn" } else { "noecn" }, "")
        }
        Discipline::Drr { .. } | Discipline::Wfq { .. } | Discipline::Wf2q { .. } => {
            return no("has no fair queueing that needs no classes but fq_codel");
        }
        Discipline::Red(_) => return no("has RED only by bytes and without `gentle`"),
    })
}

/// Those disciplines know nothing finer.
fn time_us(time: Duration) -> String {
    format!("{}us", time.as_micros().max(1))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use topology::model::Patch;

    use super::*;

    fn direction(set: &str) -> Direction {
        let [patch, _] = Patch::parse(set, Path::new("set")).unwrap();
        let mut direction = Direction::default();
        patch.apply(&mut direction);
        direction
    }

    fn lines(set: &str) -> String {
        let qdiscs = Qdiscs::of(&direction(set), 1500).unwrap();
        qdiscs.replace(&Qdiscs::default(), "x", 1, 0)
    }

    fn refused(set: &str) -> &'static str {
        Qdiscs::of(&direction(set), 1500).unwrap_err().attribute
    }

    #[test]
    fn a_plain_link_has_none() {
        assert_eq!(lines(r#"{"up": true}"#), "");
        // There is nothing to wait for.
        assert_eq!(lines(r#"{"queue": {"kind": "codel"}}"#), "");
    }

    #[test]
    fn attributes_become_layers() {
        assert_eq!(
            lines(r#"{"rate": "10Mbit"}"#),
            "qdisc replace dev x root handle 1: tbf rate 10000000bit burst 4096 overhead 24 limit 4096\n\
             qdisc replace dev x parent 1:1 handle 2: pfifo limit 1000\n"
        );
        assert_eq!(
            lines(
                r#"{"delay": "10ms", "loss": "1%", "rate": "1Gbit", "overhead": "0B", "queue": {"kind": "fq_codel", "limit": "100packets"}}"#
            ),
            "qdisc replace dev x root handle 1: netem limit 1000000 delay 10000.000us loss random 1.0000000% duplicate 0.0000000% corrupt 0.0000000%\n\
             qdisc replace dev x parent 1:1 handle 2: tbf rate 1000000000bit burst 125000 overhead 0 limit 125000\n\
             qdisc replace dev x parent 2:1 handle 3: fq_codel limit 100 flows 1024 quantum 1514 target 5000us interval 100000us ecn\n"
        );
        assert!(
            lines(r#"{"delay": "5ms", "jitter": {"spread": "1ms", "distribution": "normal"}, "reorder": true}"#)
                .contains("delay 5000.000us 1000.000us distribution normal ")
        );
    }

    #[test]
    fn what_the_kernel_cannot_do_is_named() {
        for (set, attribute) in [
            (r#"{"ber": 1e-6}"#, "ber"),
            (r#"{"loss": {"every": 10}}"#, "loss"),
            (r#"{"delay": "5ms", "jitter": "1ms"}"#, "jitter"),
            (r#"{"rate": "1Mbit", "queue": {"kind": "wfq"}}"#, "queue"),
            (r#"{"rate": "1Mbit", "queue": {"kind": "red"}}"#, "queue"),
            (
                r#"{"rate": "1Mbit", "queue": {"kind": "codel", "limit": "10kB"}}"#,
                "queue",
            ),
        ] {
            assert_eq!(refused(set), attribute, "{set}");
        }
    }

    #[test]
    fn numbers_are_changed_in_place() {
        let of = |set| Qdiscs::of(&direction(set), 1500).unwrap();
        let old = of(r#"{"rate": "10Mbit"}"#);
        let faster = of(r#"{"rate": "20Mbit"}"#).replace(&old, "x", 7, 3);
        assert!(
            faster.starts_with("qdisc change dev x root handle 3: tbf rate 20000000bit")
                && faster.contains("\nqdisc change dev x parent 3:1 handle 4: pfifo limit 1000\n"),
            "{faster}"
        );
        let delayed = of(r#"{"rate": "10Mbit", "delay": "1ms"}"#).replace(&old, "x", 7, 3);
        assert!(
            delayed.starts_with("qdisc replace dev x root handle 7: "),
            "{delayed}"
        );
        assert_eq!(
            Qdiscs::default().replace(&old, "x", 7, 3),
            "qdisc del dev x root\n"
        );
    }
}
