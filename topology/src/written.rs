//! The attributes of a link as the file writes them, for those who show or save them.

use serde_json::{Map, Value, json};

use crate::link::{
    Codel, Direction, Discipline, Distribution, DropFrom, Jitter, Limit, Loss, Queue, Reorder,
};
use crate::quantity::{Probability, QueueLimit, Rate, Size, Time};

impl Direction {
    /// Those attributes that are not the default, as the file writes them: the `set` of a [`Patch`](crate::model::Patch)
    /// that makes a direction of defaults into this one. What was read from another file (`trace`, the table of a `jitter`)
    /// is described instead.
    pub fn written(&self) -> Map<String, Value> {
        let default = Self::default();
        let mut set = Map::new();
        let mut put = |name: &str, differs: bool, value: &dyn Fn() -> Value| {
            if differs {
                set.insert(name.to_owned(), value());
            }
        };
        put("rate", self.rate != default.rate, &|| rate(self.rate));
        put("trace", self.trace.is_some(), &|| {
            let opportunities = self.trace.as_ref().map_or(0, |t| t.opportunities.len());
            format!("({opportunities} delivery opportunities)").into()
        });
        put("overhead", self.overhead != default.overhead, &|| {
            size(self.overhead.into())
        });
        put("delay", self.delay != default.delay, &|| {
            text(Time(self.delay))
        });
        put("jitter", self.jitter != default.jitter, &|| {
            jitter(&self.jitter)
        });
        put("reorder", self.reorder != default.reorder, &|| {
            reorder(self.reorder)
        });
        put("loss", self.loss != default.loss, &|| loss(self.loss));
        put("ber", self.ber > 0.0, &|| self.ber.into());
        put("duplicate", self.duplicate > 0.0, &|| {
            text(Probability(self.duplicate))
        });
        put("corrupt", self.corrupt > 0.0, &|| {
            text(Probability(self.corrupt))
        });
        put("queue", self.queue != default.queue, &|| queue(&self.queue));
        put("up", self.up != default.up, &|| self.up.into());
        set
    }
}

fn text(quantity: impl std::fmt::Display) -> Value {
    quantity.to_string().into()
}

fn size(bytes: u64) -> Value {
    text(Size(bytes))
}

fn rate(rate: Option<u64>) -> Value {
    rate.map_or_else(|| "unlimited".into(), |rate| text(Rate(rate)))
}

fn jitter(jitter: &Jitter) -> Value {
    let spread = text(Time(jitter.spread));
    match &jitter.distribution {
        Distribution::Uniform => spread,
        Distribution::Normal => json!({"spread": spread, "distribution": "normal"}),
        Distribution::Pareto => json!({"spread": spread, "distribution": "pareto"}),
        Distribution::Table(table) => {
            json!({"spread": spread, "distribution": "table", "table": format!("({} samples)", table.len())})
        }
    }
}

fn reorder(reorder: Option<Reorder>) -> Value {
    match reorder {
        None => false.into(),
        Some(Reorder { probability, gap }) => {
            json!({"probability": text(Probability(probability)), "gap": gap})
        }
    }
}

fn loss(loss: Loss) -> Value {
    match loss {
        Loss::Random(probability) => text(Probability(probability)),
        Loss::Every(every) => json!({"every": every}),
        Loss::GilbertElliott(model) => json!({"gilbert-elliott": {
            "p": text(Probability(model.p)),
            "r": text(Probability(model.r)),
            "1-h": text(Probability(model.loss_bad)),
            "1-k": text(Probability(model.loss_good)),
        }}),
    }
}

fn limit(limit: Limit) -> Value {
    match limit {
        Limit::Packets(packets) => text(QueueLimit::Packets(packets.into())),
        Limit::Bytes(bytes) => text(QueueLimit::Size(Size(bytes))),
    }
}

fn queue(queue: &Queue) -> Value {
    let drop = |from: DropFrom| match from {
        DropFrom::Head => "head",
        DropFrom::Tail => "tail",
    };
    let mut value = match &queue.discipline {
        Discipline::Fifo(from) => json!({"kind": "fifo", "drop": drop(*from)}),
        Discipline::Drr {
            drop: from,
            flows,
            quantum,
        } => {
            json!({"kind": "drr", "drop": drop(*from), "flows": flows, "quantum": size((*quantum).into())})
        }
        Discipline::Wfq { drop: from, flows } => {
            json!({"kind": "wfq", "drop": drop(*from), "flows": flows})
        }
        Discipline::Wf2q { drop: from, flows } => {
            json!({"kind": "wf2q+", "drop": drop(*from), "flows": flows})
        }
        Discipline::Red(red) => json!({
            "kind": "red",
            "min-th": limit(red.min_th),
            "max-th": limit(red.max_th),
            "max-p": text(Probability(red.max_p)),
            "w-q": red.w_q,
            "gentle": red.gentle,
            "ecn": red.ecn,
        }),
        Discipline::Codel(Codel {
            target,
            interval,
            ecn,
        }) => {
            json!({"kind": "codel", "target": text(Time(*target)), "interval": text(Time(*interval)), "ecn": ecn})
        }
        Discipline::FqCodel(fq) => json!({
            "kind": "fq_codel",
            "flows": fq.flows,
            "quantum": size(fq.quantum.into()),
            "target": text(Time(fq.codel.target)),
            "interval": text(Time(fq.codel.interval)),
            "ecn": fq.codel.ecn,
        }),
        Discipline::Pie(pie) => json!({
            "kind": "pie",
            "target": text(Time(pie.target)),
            "t-update": text(Time(pie.t_update)),
            "max-burst": text(Time(pie.max_burst)),
            "alpha": pie.alpha,
            "beta": pie.beta,
            "ecn": pie.ecn,
            "max-ecnth": text(Probability(pie.max_ecnth)),
        }),
    };
    value["limit"] = limit(queue.limit);
    value
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::model::Patch;

    fn read(set: &str) -> Direction {
        let [patch, _] = Patch::parse(set, Path::new("set")).unwrap();
        let mut direction = Direction::default();
        patch.apply(&mut direction);
        direction
    }

    #[test]
    fn what_is_written_reads_back_the_same() {
        for set in [
            r#"{"rate": "155.52Mbit", "overhead": "38B", "delay": "12.5ms", "up": false}"#,
            r#"{"jitter": "1ms", "reorder": true, "loss": "0.1%", "ber": 1e-9}"#,
            r#"{"jitter": {"spread": "2ms", "distribution": "pareto"}, "duplicate": "1%", "corrupt": "2.5%"}"#,
            r#"{"reorder": {"probability": "25%", "gap": 5}, "loss": {"every": 7}}"#,
            r#"{"loss": {"gilbert-elliott": {"p": "1%", "r": "30%", "1-h": "90%", "1-k": "0.01%"}}}"#,
            r#"{"queue": {"limit": "50packets", "drop": "head"}}"#,
            r#"{"queue": {"kind": "drr", "limit": "64KiB", "flows": 16, "quantum": "300B"}}"#,
            r#"{"queue": {"kind": "wfq", "drop": "head"}}"#,
            r#"{"queue": {"kind": "wf2q+", "flows": 3}}"#,
            r#"{"queue": {"kind": "red", "min-th": "10packets", "w-q": 0.01, "gentle": false, "ecn": true}}"#,
            r#"{"queue": {"kind": "codel", "target": "1ms"}}"#,
            r#"{"queue": {"kind": "fq_codel", "interval": "20ms", "ecn": false}}"#,
            r#"{"queue": {"kind": "pie", "alpha": 0.25, "max-ecnth": "5%"}}"#,
        ] {
            let direction = read(set);
            let written = Value::Object(direction.written()).to_string();
            assert_eq!(read(&written), direction, "{set} was written {written}");
        }
    }

    #[test]
    fn defaults_are_not_written() {
        assert_eq!(Direction::default().written(), Map::new());
    }
}
