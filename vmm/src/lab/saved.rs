//! What a lab leaves in its folder for the process that takes it over, should its own be killed.
//!
//! Topology and files are there anyway, for switches that are started again; processes and what leads to them are with the janitor.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast::error::RecvError;
use topology::Sources;

use super::children;
use super::links::{Links, Touch};
use super::run_folder::LabPaths;
use super::state::State;
use crate::api::types::{Lab, Phase};
use crate::image::Image;
use crate::isolation::Wish;

/// The field of `/proc/PID/stat` behind the name of the program that says when the process was started (proc(5): the 22nd of all).
const START_TIME: usize = 19;

/// All of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Saved {
    /// How it stood.
    pub lab: Lab,
    /// What it was launched with.
    pub terms: Terms,
    /// When it was launched.
    pub launched: Moment,
    /// When its switches were started for the first time.
    pub origin: Moment,
    /// What links were set to by hand.
    pub touches: BTreeMap<String, Touch>,
    /// Its processes: number, and when the kernel says that they were started.
    processes: Vec<(u32, u64)>,
}

/// What a lab is launched with beside its topology.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Terms {
    /// For machines that name no kernel or root of their own.
    pub image: Option<Image>,
    /// How long a machine may take until it is configured.
    pub boot_timeout: Duration,
    /// How many machines boot at the same time.
    pub boots_at_once: usize,
    /// How far its processes were to be jailed.
    pub isolation: Wish,
    /// Whether links are made of the host's kernel.
    pub kernel_fabric: bool,
}

/// A moment, in nanoseconds of the clock that does not jump (`CLOCK_MONOTONIC`), which all processes of a machine have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment(u64);

impl From<Instant> for Moment {
    fn from(instant: Instant) -> Self {
        Self(now().saturating_sub(nanoseconds(instant.elapsed())))
    }
}

impl From<Moment> for Instant {
    fn from(moment: Moment) -> Self {
        let ago = Duration::from_nanos(now().saturating_sub(moment.0));
        let instant = Self::now();
        instant.checked_sub(ago).unwrap_or(instant)
    }
}

fn now() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let time = Duration::new(
        now.tv_sec.try_into().unwrap_or(0),
        now.tv_nsec.try_into().unwrap_or(0),
    );
    nanoseconds(time)
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

impl Saved {
    /// What a lab has left.
    pub fn read(paths: &LabPaths) -> io::Result<Self> {
        Ok(serde_json::from_slice(&fs::read(paths.saved())?)?)
    }

    /// Its topology, as of the last change.
    pub fn sources(&self, paths: &LabPaths) -> io::Result<Sources> {
        let switch = self.lab.switches.first();
        let path = switch.map(|switch| paths.sources(&switch.zone));
        let sources: Sources = serde_json::from_slice(&fs::read(path.unwrap_or_default())?)?;
        Ok(Sources {
            zone: None,
            ..sources
        })
    }

    /// Kills what is left of its processes. Their numbers may be others' by now, the times of their starts are not.
    pub fn kill(&self) {
        for (pid, started) in &self.processes {
            let Some(pidfd) =
                children::raw_pid(*pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok())
            else {
                continue;
            };
            // Looked at when the number can no longer become another's behind this descriptor.
            if start_time(*pid) == Some(*started) {
                let _ = pidfd_send_signal(&pidfd, Signal::KILL);
            }
        }
    }
}

fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may have blanks and parentheses.
    let (_, fields) = stat.rsplit_once(") ")?;
    fields.split(' ').nth(START_TIME)?.parse().ok()
}

/// Saves the lab whenever something changes, until it ends.
pub async fn keep(paths: LabPaths, terms: Terms, origin: Instant, state: State, links: Arc<Links>) {
    let mut changes = state.changes();
    loop {
        let lab = state.lab();
        if !matches!(lab.phase, Phase::Starting | Phase::Running) {
            return;
        }
        let nodes = lab.nodes.iter().filter_map(|node| node.pid);
        let pids = nodes.chain(lab.switches.iter().filter_map(|switch| switch.pid));
        let processes = pids.filter_map(|pid| Some((pid, start_time(pid)?)));
        let saved = Saved {
            processes: processes.collect(),
            terms: terms.clone(),
            launched: state.launched().into(),
            origin: origin.into(),
            touches: links.touches(),
            lab,
        };
        if let Err(error) = write(&paths, &saved) {
            eprintln!(
                "warning: cannot write {}: {error}; what has changed is lost if this process is killed",
                paths.saved().display()
            );
        }
        match changes.recv().await {
            Err(RecvError::Closed) => return,
            // However many they are.
            Ok(_) | Err(RecvError::Lagged(_)) => changes = changes.resubscribe(),
        }
    }
}

/// All or nothing.
fn write(paths: &LabPaths, saved: &Saved) -> io::Result<()> {
    let new = paths.saved().with_extension("new");
    fs::write(&new, serde_json::to_vec(saved)?)?;
    fs::rename(new, paths.saved())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_the_same_in_every_process() {
        let before = Instant::now().checked_sub(Duration::from_secs(5)).unwrap();
        let text = serde_json::to_string(&Moment::from(before)).unwrap();
        let after = Instant::from(serde_json::from_str::<Moment>(&text).unwrap());
        let apart = after
            .saturating_duration_since(before)
            .max(before.saturating_duration_since(after));
        assert!(apart < Duration::from_millis(500), "{apart:?}");
    }

    #[test]
    fn only_processes_of_that_start_are_killed() {
        let mut child = std::process::Command::new("sleep")
            .arg("1000")
            .spawn()
            .unwrap();
        let started = start_time(child.id()).unwrap();
        let mut saved = Saved {
            lab: crate::lab::view::tests::lab(),
            terms: Terms {
                image: None,
                boot_timeout: Duration::ZERO,
                boots_at_once: 1,
                isolation: Wish::Full,
                kernel_fabric: false,
            },
            launched: Moment(0),
            origin: Moment(0),
            touches: BTreeMap::new(),
            processes: vec![(child.id(), started + 1)],
        };
        saved.kill();
        assert!(child.try_wait().unwrap().is_none());
        saved.processes = vec![(child.id(), started)];
        saved.kill();
        assert!(!child.wait().unwrap().success());
    }
}
