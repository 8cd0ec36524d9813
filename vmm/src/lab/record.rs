//! What each link has carried since it is set as it is, kept second by second, so that a report does not mix what was asked
//! for at different times.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Map, Value};
use tokio::time::MissedTickBehavior;
use topology::quantity::Size;

use super::links::Links;
use super::state::State;
use super::usage;
use crate::api::types::{HostUsage, Link, LinkCounters, LinkDirection, Phase};

/// Between two looks.
const PERIOD: Duration = Duration::from_secs(1);

/// The record of a lab.
#[derive(Debug, Default)]
pub struct Record(Mutex<Inner>);

/// What a report needs of it.
#[derive(Debug, Clone, Default)]
pub struct Inner {
    /// How the machine stood at the first look.
    pub host_at_start: Option<HostUsage>,
    /// By name of the link, its two directions.
    pub links: HashMap<String, [Track; 2]>,
}

/// What one direction of a link has done since it is set as it is.
#[derive(Debug, Clone, PartialEq)]
pub struct Track {
    /// Since when, in milliseconds since launch.
    pub since_ms: u64,
    /// What it is set to.
    pub attributes: Map<String, Value>,
    /// The counters at that time.
    pub before: LinkCounters,
    /// The most bit/s on the wire between two looks.
    pub peak_rate: u64,
    last_ms: u64,
    last: (u64, u64),
}

impl Track {
    fn new(at_ms: u64, direction: &LinkDirection) -> Self {
        Self {
            since_ms: at_ms,
            attributes: direction.attributes.clone(),
            before: direction.counters.clone(),
            peak_rate: 0,
            last_ms: at_ms,
            last: (direction.counters.out_frames, direction.counters.out_bytes),
        }
    }

    /// Of a direction that is set like this since launch.
    #[cfg(test)]
    pub fn test(attributes: &Map<String, Value>, before: LinkCounters) -> Self {
        Self {
            since_ms: 0,
            attributes: attributes.clone(),
            before,
            peak_rate: 0,
            last_ms: 0,
            last: (0, 0),
        }
    }

    fn look(&mut self, at_ms: u64, direction: &LinkDirection) {
        // Another link of this name, which took the place of the one that was removed, has counted less.
        let is_new = direction.counters.in_frames < self.before.in_frames
            || direction.counters.out_frames < self.last.0;
        if is_new || self.attributes != direction.attributes {
            *self = Self::new(at_ms, direction);
            return;
        }
        let counters = &direction.counters;
        let (frames, bytes) = self.last;
        let took = at_ms.saturating_sub(self.last_ms);
        if let Some(bits) = wire_bits(
            &self.attributes,
            counters.out_frames.saturating_sub(frames),
            counters.out_bytes.saturating_sub(bytes),
        )
        .saturating_mul(1000)
        .checked_div(took)
        {
            self.peak_rate = self.peak_rate.max(bits);
        }
        self.last_ms = at_ms;
        self.last = (counters.out_frames, counters.out_bytes);
    }
}

/// Bits that `frames` with `bytes` take on a wire with these attributes.
pub fn wire_bits(attributes: &Map<String, Value>, frames: u64, bytes: u64) -> u64 {
    /// As the topology file has it by default.
    const OVERHEAD: u64 = 24;
    let asked = attributes.get("overhead").and_then(Value::as_str);
    let overhead = asked
        .and_then(|size| size.parse::<Size>().ok())
        .map_or(OVERHEAD, |size| size.0);
    (bytes + frames.saturating_mul(overhead)).saturating_mul(8)
}

impl Record {
    /// As it is now.
    pub fn read(&self) -> Inner {
        self.inner().clone()
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn look(&self, at_ms: u64, links: &[Link]) {
        let mut inner = self.inner();
        if inner.host_at_start.is_none() {
            inner.host_at_start = usage::host();
        }
        inner
            .links
            .retain(|name, _| links.iter().any(|link| link.name == *name));
        for link in links {
            let directions = [&link.forward, &link.backward];
            if let Some(tracks) = inner.links.get_mut(&link.name) {
                for (track, direction) in tracks.iter_mut().zip(directions) {
                    track.look(at_ms, direction);
                }
            } else {
                let tracks = directions.map(|direction| Track::new(at_ms, direction));
                inner.links.insert(link.name.clone(), tracks);
            }
        }
    }
}

/// Keeps the record until the lab has ended.
pub async fn keep(record: Arc<Record>, links: Arc<Links>, state: State) {
    let mut phases = state.phases();
    let mut looks = tokio::time::interval(PERIOD);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = phases.wait_for(|&phase| phase == Phase::Ended) => return,
            _ = looks.tick() => {}
        }
        // A switch that does not answer is noticed elsewhere.
        if let Ok(links) = links.brief().await {
            record.look(state.elapsed_ms(), &links);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::types::Lateness;

    fn link(attributes: &Value, out_frames: u64, out_bytes: u64) -> Link {
        let direction = |from: &str, to: &str| LinkDirection {
            from: from.to_owned(),
            to: to.to_owned(),
            attributes: attributes.as_object().unwrap().clone(),
            counters: LinkCounters {
                out_frames,
                out_bytes,
                ..LinkCounters::default()
            },
        };
        Link {
            name: "l".to_owned(),
            forward: direction("a", "b"),
            backward: direction("b", "a"),
        }
    }

    #[test]
    fn the_peak_is_of_the_time_since_the_last_change() {
        let record = Record::default();
        let fast = json!({"rate": "10Mbit"});
        record.look(0, &[link(&fast, 0, 0)]);
        record.look(1000, &[link(&fast, 1000, 1_000_000)]);
        record.look(2000, &[link(&fast, 1001, 1_000_100)]);
        let track = record.read().links["l"][0].clone();
        assert_eq!((track.since_ms, track.peak_rate), (0, 8 * 1_024_000));
        let slow = json!({"rate": "1Mbit", "overhead": "0B"});
        record.look(3000, &[link(&slow, 2000, 2_000_000)]);
        record.look(5000, &[link(&slow, 2100, 2_100_000)]);
        let track = record.read().links["l"][0].clone();
        assert_eq!((track.since_ms, track.peak_rate), (3000, 400_000));
        assert_eq!(track.before.out_frames, 2000);
        assert_eq!(track.before.lateness, Lateness::default());
        record.look(6000, &[]);
        assert!(record.read().links.is_empty());
    }
}
