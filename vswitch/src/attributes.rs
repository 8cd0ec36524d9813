//! What a link is set to, for those who look: the shard that shapes it is not asked.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use topology::model::{self, Direction, Patch};

use crate::clock::Time;

/// The attributes of a link; first those from its first end to its second.
#[derive(Debug)]
pub struct Attributes(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    at_start: [Direction; 2],
    now: [Direction; 2],
    /// What the schedule will still set.
    coming: VecDeque<(Time, [Patch; 2])>,
}

impl Attributes {
    /// Of a link of a switch that starts at `origin`.
    pub fn new(link: &model::Link, origin: Time) -> Self {
        let timed = |change: &model::Change| (origin + change.at, change.set.clone());
        Self(Mutex::new(Inner {
            at_start: link.directions.clone(),
            now: link.directions.clone(),
            coming: link.schedule.iter().map(timed).collect(),
        }))
    }

    /// Of a link that was `link` at the start and is `now` by now; nothing is to come.
    pub fn of(link: &model::Link, now: [Direction; 2]) -> Self {
        Self(Mutex::new(Inner {
            at_start: link.directions.clone(),
            now,
            coming: VecDeque::new(),
        }))
    }

    /// As they are at `now`, which does not go back from call to call.
    pub fn at(&self, now: Time) -> [Direction; 2] {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inner.advance(now);
        inner.now.clone()
    }

    /// Notes what `work` sets from `now` on, unless it fails. Meanwhile nobody else sets anything, so that what is noted last is
    /// what was set last.
    pub fn set<E>(
        &self,
        set: &[Patch; 2],
        now: Time,
        work: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        work()?;
        inner.advance(now);
        inner.apply(set);
        Ok(())
    }

    /// Notes that the link is now as `link` has it: `set` has been set at `now`, and the rest of its schedule is to come.
    pub fn renew(&self, link: &model::Link, set: &[Patch; 2], now: Time, origin: Time) {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inner.advance(now);
        inner.apply(set);
        inner.at_start.clone_from(&link.directions);
        let coming = link.schedule.iter().map(|c| (origin + c.at, c.set.clone()));
        inner.coming = coming.filter(|(at, _)| *at > now).collect();
    }

    /// What sets the attributes to what they were at the start.
    pub fn at_start(&self) -> [Patch; 2] {
        let inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inner.at_start.each_ref().map(Patch::whole)
    }
}

impl Inner {
    fn advance(&mut self, now: Time) {
        while let Some((_, set)) = self.coming.pop_front_if(|(at, _)| *at <= now) {
            self.apply(&set);
        }
    }

    fn apply(&mut self, set: &[Patch; 2]) {
        for (direction, patch) in self.now.iter_mut().zip(set) {
            patch.apply(direction);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use topology::model::Topology;

    use super::*;

    #[test]
    fn a_link_is_what_was_set_last() {
        let text = r#"{"nodes": {"a": {"kind": "host"}, "b": {"kind": "host"}}, "links": [{
            "endpoints": ["a:eth0", "b:eth0"], "rate": "1Mbit",
            "schedule": [{"at": "1s", "set": {"rate": "2Mbit"}}, {"at": "3s", "set": {"up": false}}]}]}"#;
        let topology = Topology::parse(text, Path::new("lab.json"))
            .unwrap()
            .topology;
        let second = |n: u64| Time::from_nanos(n * 1_000_000_000);
        let attributes = Attributes::new(&topology.links[0], second(10));
        let rate = |now| attributes.at(now)[0].rate.unwrap();
        assert_eq!(rate(second(10)), 1_000_000);
        assert_eq!(rate(second(11)), 2_000_000);
        let set = Patch::parse(r#"{"forward": {"rate": "3Mbit"}}"#, Path::new("set")).unwrap();
        attributes
            .set(&set, second(12), || Ok::<_, ()>(()))
            .unwrap();
        attributes
            .set(&attributes.at_start(), second(12), || Err(()))
            .unwrap_err();
        assert_eq!(rate(second(12)), 3_000_000);
        assert_eq!(attributes.at(second(12))[1].rate, Some(2_000_000));
        assert!(attributes.at(second(12))[0].up && !attributes.at(second(13))[0].up);
        let start = attributes.at_start();
        attributes
            .set(&start, second(14), || Ok::<_, ()>(()))
            .unwrap();
        assert_eq!(attributes.at(second(14)), topology.links[0].directions);
    }
}
