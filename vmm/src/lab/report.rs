//! Whether a lab has delivered what it was asked for: a judgement on numbers that were read before.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value};
use topology::model::{Direction, Loss, Patch};

use super::record::{Inner as Record, Track};
use crate::api::types::{
    Asked, Delivered, HostUsage, Lateness, Link, LinkDirection, LinkReport, Node, NodeState,
    ProcessUsage, Report, Usage, Verdict,
};
use crate::units::{nanoseconds, percent};

/// Nanoseconds that a frame may always be late.
const TOLERANCE_NS: u64 = 1_000_000;
/// The part of a link's delay that a frame may be late.
const TOLERANCE_OF_DELAY: u64 = 20;
/// Bits of a full Ethernet frame on the wire: a frame may be late by as long as one takes.
const FULL_FRAME: u64 = 1538 * 8;
/// Share of the frames that may find no room at the receiver.
const NO_ROOM: f64 = 0.001;
/// Share of the time in which a process had work that it may wait for a processor.
const WAITING: f64 = 0.1;
/// A process that has had less work than this is not judged, in milliseconds.
const LITTLE: u64 = 1000;
/// Share of this machine's time beyond which it counts as busy.
const BUSY: f64 = 0.9;
/// Share of this machine's memory below which it is short of it.
const SHORT: f64 = 0.05;
/// Standard deviations that a share of lost frames may be off: exceeded once in two million directions.
const SIGMAS: f64 = 5.0;
/// Names of nodes or links in one sentence.
const FEW: usize = 3;

/// Everything that is judged.
#[derive(Debug)]
pub struct Evidence<'a> {
    /// The lab's name.
    pub lab: &'a str,
    /// Its nodes.
    pub nodes: &'a [Node],
    /// Its links as they are now.
    pub links: &'a [Link],
    /// What they have carried.
    pub record: &'a Record,
    /// What its processes have taken.
    pub usage: &'a Usage,
}

/// The judgement.
pub fn judge(evidence: &Evidence<'_>) -> Report {
    let mut links = Vec::new();
    for link in evidence.links {
        let tracks = evidence.record.links.get(&link.name);
        for (index, direction) in [&link.forward, &link.backward].into_iter().enumerate() {
            links.push(judge_direction(
                &link.name,
                direction,
                tracks.map(|tracks| &tracks[index]),
            ));
        }
    }
    let mut reasons: Vec<_> = links
        .iter()
        .filter_map(|link| {
            Some(format!(
                "{} to {}: {}",
                link.from,
                link.to,
                link.reason.as_ref()?
            ))
        })
        .collect();
    let of = |verdict| links.iter().any(|link| link.verdict == verdict);
    let starved = starved(evidence.usage);
    let verdict = if of(Verdict::Overloaded) || !starved.is_empty() {
        Verdict::Overloaded
    } else if of(Verdict::Deviates) {
        Verdict::Deviates
    } else if of(Verdict::Valid) {
        Verdict::Valid
    } else {
        Verdict::Idle
    };
    reasons.extend(starved);
    let mut notes = Vec::new();
    let host = pressed(evidence.record.host_at_start, evidence.usage.host);
    if verdict == Verdict::Overloaded {
        &mut reasons
    } else {
        &mut notes
    }
    .extend(host);
    notes.extend(evidence.nodes.iter().filter_map(remark));
    notes.extend(links.iter().filter_map(|link| {
        let changed = link.since_ms >= 2000;
        changed.then(|| {
            format!(
                "{} to {} was changed {} s after launch: counted from then on",
                link.from,
                link.to,
                link.since_ms / 1000
            )
        })
    }));
    Report {
        lab: evidence.lab.to_owned(),
        at_ms: evidence.usage.at_ms,
        verdict,
        reasons,
        notes,
        links,
    }
}

fn judge_direction(link: &str, direction: &LinkDirection, track: Option<&Track>) -> LinkReport {
    // A change of the last second is not on the record yet.
    let track = track.filter(|track| track.attributes == direction.attributes);
    let set = resolve(&direction.attributes);
    let asked = Asked {
        rate: set.rate,
        delay_ns: u64::try_from(set.delay.as_nanos()).unwrap_or(u64::MAX),
        loss: share_lost(set.loss),
    };
    let lateness = &direction.counters.lateness;
    let before = track.map(|track| track.before.clone()).unwrap_or_default();
    let since = |now: u64, before: u64| now.saturating_sub(before);
    let counters = &direction.counters;
    let drops: BTreeMap<_, _> = counters
        .drops
        .iter()
        .map(|(reason, count)| {
            (
                reason.clone(),
                since(
                    *count,
                    before.drops.get(reason).copied().unwrap_or_default(),
                ),
            )
        })
        .filter(|(_, count)| *count > 0)
        .collect();
    let dropped = |reason: &str| drops.get(reason).copied().unwrap_or_default();
    let entered = since(counters.in_frames, before.in_frames);
    let transmitted = ["queue", "early", "carrier", "bit_error"]
        .map(dropped)
        .iter()
        .sum::<u64>()
        + counters.queued;
    let transmitted = entered.saturating_sub(transmitted);
    let lost = dropped("loss");
    let delivered = Delivered {
        frames: since(counters.out_frames, before.out_frames),
        peak_rate: track.map_or(0, |track| track.peak_rate),
        delay_p50_ns: asked.delay_ns.saturating_add(lateness.p50),
        delay_p99_ns: asked.delay_ns.saturating_add(lateness.p99),
        loss: share(lost, transmitted),
        drops: drops.clone(),
    };
    let tolerated = tolerated(&asked);
    let no_room = dropped("no_rx_buffer") + dropped("pool");
    let (verdict, reason) = if entered == 0 && lateness.count == 0 {
        (Verdict::Idle, None)
    } else if lateness.p99 > tolerated {
        let late = format!(
            "1 % of the frames came more than {} late, {} is tolerated",
            nanoseconds(lateness.p99),
            nanoseconds(tolerated)
        );
        (Verdict::Overloaded, Some(late))
    } else if share(no_room, entered) > NO_ROOM {
        let full = format!(
            "{no_room} of {entered} frames found no room at the receiver, which did not keep up"
        );
        (Verdict::Overloaded, Some(full))
    } else if is_improbable(set.loss, lost, transmitted) {
        let off = format!(
            "{} of {transmitted} frames were lost, {} was asked for",
            percent(delivered.loss),
            percent(asked.loss)
        );
        (Verdict::Deviates, Some(off))
    } else {
        (Verdict::Valid, None)
    };
    LinkReport {
        link: link.to_owned(),
        from: direction.from.clone(),
        to: direction.to.clone(),
        since_ms: track.map_or(0, |track| track.since_ms),
        verdict,
        reason,
        asked,
        delivered,
        lateness: Lateness {
            buckets: Vec::new(),
            ..lateness.clone()
        },
    }
}

/// What the switch says a direction is set to. What it only describes, such as a trace, is left out.
fn resolve(attributes: &Map<String, Value>) -> Direction {
    let known = ["rate", "delay", "loss"].into_iter();
    let known: Map<_, _> = known
        .filter_map(|name| Some((name.to_owned(), attributes.get(name)?.clone())))
        .collect();
    let mut direction = Direction::default();
    if let Ok([patch, _]) = Patch::parse(&Value::Object(known).to_string(), Path::new("link")) {
        patch.apply(&mut direction);
    }
    direction
}

/// How late a frame may be before a measurement suffers: a little, or a part of what the link asks for anyway.
fn tolerated(asked: &Asked) -> u64 {
    let frame = asked
        .rate
        .and_then(|rate| (FULL_FRAME * 1_000_000_000).checked_div(rate));
    TOLERANCE_NS
        .max(asked.delay_ns / TOLERANCE_OF_DELAY)
        .max(frame.unwrap_or_default())
}

/// Share of the frames that is lost in the long run.
fn share_lost(loss: Loss) -> f64 {
    match loss {
        Loss::Random(p) => p,
        Loss::Every(n) => 1.0 / f64::from(n.max(1)),
        Loss::GilbertElliott(ge) if ge.p + ge.r > 0.0 => {
            (ge.r * ge.loss_good + ge.p * ge.loss_bad) / (ge.p + ge.r)
        }
        Loss::GilbertElliott(ge) => ge.loss_good,
    }
}

/// Whether that many lost frames are hardly what was asked for.
fn is_improbable(loss: Loss, lost: u64, of: u64) -> bool {
    let (lost, of) = (lost as f64, of as f64);
    let p = share_lost(loss);
    let variance = match loss {
        Loss::Every(_) => 0.0,
        Loss::Random(p) => of * p * (1.0 - p),
        // Frames of a burst share their fate: neighbours are correlated by 1 - p - r.
        Loss::GilbertElliott(ge) => {
            let together = ((2.0 - ge.p - ge.r) / (ge.p + ge.r).max(f64::EPSILON)).max(1.0);
            of * p * (1.0 - p) * together
        }
    };
    // Frames on their way count as transmitted already, or not yet.
    (lost - of * p).abs() > SIGMAS * variance.sqrt() + 2.0
}

/// Processes that had work and no processor, in words.
fn starved(usage: &Usage) -> Vec<String> {
    let waiting = |process: &ProcessUsage| {
        let waited = process.waited_ms?;
        let work = waited + process.cpu_ms;
        let part = share(waited, work);
        (work > LITTLE && part > WAITING).then_some(part)
    };
    let mut reasons = Vec::new();
    if let Some(part) = usage.switch.as_ref().and_then(waiting) {
        reasons.push(format!(
            "the switch waited for a processor in {} of the time in which it had work",
            percent(part)
        ));
    }
    let mut nodes: Vec<_> = usage
        .nodes
        .iter()
        .filter_map(|node| Some((waiting(node.process.as_ref()?)?, node.name.as_str())))
        .collect();
    nodes.sort_by(|a, b| b.0.total_cmp(&a.0));
    if let Some(&(worst, _)) = nodes.first() {
        let names: Vec<_> = nodes.iter().take(FEW).map(|(_, name)| *name).collect();
        let more = match nodes.len().saturating_sub(FEW) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        reasons.push(format!(
            "{}{more} waited for a processor in up to {} of the time in which they had work",
            names.join(", "),
            percent(worst)
        ));
    }
    reasons
}

/// What this machine is short of, in words.
fn pressed(start: Option<HostUsage>, now: HostUsage) -> Vec<String> {
    let mut words = Vec::new();
    let start = start.unwrap_or_default();
    let busy = now.busy_ms.saturating_sub(start.busy_ms);
    let part = share(busy, busy + now.idle_ms.saturating_sub(start.idle_ms));
    if part > BUSY {
        words.push(format!(
            "the {} processors of this machine were busy for {} of the time",
            now.processors,
            percent(part)
        ));
    }
    if now.memory > 0 && share(now.memory_available, now.memory) < SHORT {
        words.push(format!(
            "this machine has {} MiB of memory left",
            now.memory_available >> 20
        ));
    }
    words
}

fn remark(node: &Node) -> Option<String> {
    let how = match node.state {
        NodeState::Failed => "has failed",
        NodeState::Ended => "has ended",
        NodeState::Stopped => "is stopped",
        NodeState::Paused => "is paused",
        _ if node.restarts > 0 => {
            return Some(format!(
                "node {} was started again (times: {})",
                node.name, node.restarts
            ));
        }
        _ => return None,
    };
    Some(format!("node {} {how}", node.name))
}

fn share(part: u64, of: u64) -> f64 {
    if of == 0 {
        0.0
    } else {
        part as f64 / of as f64
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use serde_json::json;

    use super::*;
    use crate::api::types::{LinkCounters, NodeUsage};

    /// A link whose first direction is set and has counted like this; the other is idle.
    fn link(attributes: &Value, counters: LinkCounters) -> Link {
        let direction = |from: &str, to: &str, attributes: &Value, counters| LinkDirection {
            from: from.to_owned(),
            to: to.to_owned(),
            attributes: attributes.as_object().unwrap().clone(),
            counters,
        };
        Link {
            name: "l".to_owned(),
            forward: direction("a:eth0", "b:eth0", attributes, counters),
            backward: direction("b:eth0", "a:eth0", &json!({}), LinkCounters::default()),
        }
    }

    fn counters(frames: u64, lost: u64, late_ns: u64) -> LinkCounters {
        LinkCounters {
            in_frames: frames,
            out_frames: frames - lost,
            drops: BTreeMap::from([("loss".to_owned(), lost)]),
            lateness: Lateness {
                count: frames - lost,
                p50: late_ns / 2,
                p99: late_ns,
                max: late_ns * 2,
                buckets: Vec::new(),
            },
            ..LinkCounters::default()
        }
    }

    fn usage() -> Usage {
        Usage {
            at_ms: 60_000,
            host: HostUsage {
                processors: 2,
                busy_ms: 10_000,
                idle_ms: 110_000,
                memory: 8 << 30,
                memory_available: 4 << 30,
            },
            lab: None,
            switch: None,
            nodes: Vec::new(),
        }
    }

    fn report(link: &Link, record: &Record, usage: &Usage) -> Report {
        judge(&Evidence {
            lab: "two",
            nodes: &[],
            links: std::slice::from_ref(link),
            record,
            usage,
        })
    }

    fn of(link: &Link) -> Report {
        report(link, &Record::default(), &usage())
    }

    #[test]
    fn a_link_that_does_as_it_is_told_is_valid() {
        let told = json!({"rate": "100Mbit", "delay": "20ms", "loss": "1%"});
        let report = of(&link(&told, counters(10_000, 104, 80_000)));
        assert_eq!(
            (report.verdict, report.reasons.len()),
            (Verdict::Valid, 0),
            "{report:?}"
        );
        let first = &report.links[0];
        assert_eq!(
            first.asked,
            Asked {
                rate: Some(100_000_000),
                delay_ns: 20_000_000,
                loss: 0.01
            }
        );
        assert_eq!(
            (first.delivered.delay_p50_ns, first.delivered.delay_p99_ns),
            (20_040_000, 20_080_000)
        );
        assert!((first.delivered.loss - 0.0104).abs() < 1e-9);
        assert_eq!(report.links[1].verdict, Verdict::Idle);
    }

    #[test]
    fn no_traffic_is_no_judgement() {
        assert_eq!(
            of(&link(&json!({}), LinkCounters::default())).verdict,
            Verdict::Idle
        );
    }

    #[test]
    fn late_frames_are_an_overload_and_what_is_late_depends_on_the_link() {
        for (told, late_ns, verdict) in [
            (json!({}), 1_000_000, Verdict::Valid),
            (json!({}), 1_000_001, Verdict::Overloaded),
            // 5 % of the delay.
            (json!({"delay": "100ms"}), 5_000_000, Verdict::Valid),
            (json!({"delay": "100ms"}), 5_000_001, Verdict::Overloaded),
            // One frame at this rate takes 12.304 ms.
            (json!({"rate": "1Mbit"}), 12_304_000, Verdict::Valid),
            (json!({"rate": "1Mbit"}), 12_304_001, Verdict::Overloaded),
        ] {
            let report = of(&link(&told, counters(1000, 0, late_ns)));
            assert_eq!(
                report.verdict, verdict,
                "{told} {late_ns}: {:?}",
                report.reasons
            );
        }
        let report = of(&link(&json!({}), counters(1000, 0, 7_300_000)));
        assert_eq!(
            report.reasons,
            ["a:eth0 to b:eth0: 1 % of the frames came more than 7.3 ms late, 1 ms is tolerated"]
        );
    }

    #[test]
    fn loss_is_judged_by_its_probability() {
        let every = json!({"loss": {"every": 100}});
        let burst = json!({"loss": {"gilbert-elliott": {"p": "1%", "r": "10%", "1-h": "50%"}}});
        for (told, frames, lost, verdict) in [
            (json!({"loss": "10%"}), 10_000, 1000 + 145, Verdict::Valid),
            (
                json!({"loss": "10%"}),
                10_000,
                1000 + 155,
                Verdict::Deviates,
            ),
            (json!({"loss": "10%"}), 10_000, 800, Verdict::Deviates),
            (json!({}), 10_000, 3, Verdict::Deviates),
            (every.clone(), 10_000, 99, Verdict::Valid),
            (every, 10_000, 120, Verdict::Deviates),
            // In the long run 1/11 of the frames are in the bad state, and half of these are lost; they come in bursts.
            (burst.clone(), 10_000, 455 + 300, Verdict::Valid),
            (burst, 10_000, 2000, Verdict::Deviates),
        ] {
            let report = of(&link(&told, counters(frames, lost, 1000)));
            assert_eq!(
                report.verdict, verdict,
                "{told} {lost}: {:?}",
                report.links[0]
            );
        }
    }

    #[test]
    fn a_receiver_without_room_is_an_overload() {
        let mut counted = counters(10_000, 0, 1000);
        counted.drops.insert("no_rx_buffer".to_owned(), 10);
        assert_eq!(
            of(&link(&json!({}), counted.clone())).verdict,
            Verdict::Valid
        );
        counted.drops.insert("no_rx_buffer".to_owned(), 11);
        let report = of(&link(&json!({}), counted));
        assert_eq!(report.verdict, Verdict::Overloaded);
        assert!(
            report.reasons[0].contains("11 of 10000 frames found no room"),
            "{report:?}"
        );
    }

    #[test]
    fn what_was_before_a_change_does_not_count() {
        let told = json!({"loss": "50%"});
        let link = link(&told, counters(3000, 1000, 1000));
        assert_eq!(of(&link).verdict, Verdict::Deviates);
        let mut since = Track::test(told.as_object().unwrap(), counters(1000, 0, 1000));
        since.since_ms = 30_000;
        let idle = Track::test(&Map::new(), LinkCounters::default());
        let record = Record {
            host_at_start: None,
            links: HashMap::from([("l".to_owned(), [since, idle])]),
        };
        let report = report(&link, &record, &usage());
        assert_eq!(
            (report.verdict, report.links[0].since_ms),
            (Verdict::Valid, 30_000),
            "{report:?}"
        );
        assert_eq!(report.links[0].delivered.frames, 1000);
        assert!(report.notes[0].contains("30 s after launch"), "{report:?}");
    }

    #[test]
    fn processes_that_wait_for_a_processor_are_an_overload() {
        let link = link(&json!({}), counters(1000, 0, 1000));
        let waiting = |cpu_ms, waited_ms| {
            Some(ProcessUsage {
                cpu_ms,
                waited_ms: Some(waited_ms),
                ..ProcessUsage::default()
            })
        };
        let mut usage = usage();
        // Too little to tell, and not enough.
        usage.switch = waiting(100, 800);
        let node = |name: &str, process| NodeUsage {
            name: name.to_owned(),
            process,
        };
        usage.nodes = vec![node("a", waiting(9000, 1000)), node("b", None)];
        assert_eq!(
            report(&link, &Record::default(), &usage).verdict,
            Verdict::Valid
        );
        usage.switch = waiting(6000, 2000);
        usage.nodes = ["a", "b", "c", "d"]
            .map(|name| node(name, waiting(5000, 5000)))
            .into();
        usage.host.busy_ms = 9 * usage.host.idle_ms + 10;
        let report = report(&link, &Record::default(), &usage);
        assert_eq!(report.verdict, Verdict::Overloaded);
        assert_eq!(
            report.reasons,
            [
                "the switch waited for a processor in 25 % of the time in which it had work",
                "a, b, c and 1 more waited for a processor in up to 50 % of the time in which they had work",
                "the 2 processors of this machine were busy for 90 % of the time",
            ]
        );
    }
}
