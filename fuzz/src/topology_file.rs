//! A topology file of any content; what is accepted is also made into a switch, which gets a little time.

use std::path::Path;

use topology::model::{Patch, Topology};
use vswitch::clock::Time;
use vswitch::config::Plan;
use vswitch::shard::Engine;

/// Runs one input.
pub fn run(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    // Paths in the text lead nowhere from here.
    let file = Path::new("/nonexistent/lab.json");
    match Topology::parse(text, file) {
        Ok(loaded) => {
            let _ = loaded.warnings.render(true);
            play(&loaded.topology);
        }
        Err(report) => {
            assert!(!report.is_empty());
            assert!(!report.render(true).is_empty());
        }
    }
    if let Err(report) = Patch::parse(text, file) {
        assert!(!report.render(true).is_empty());
    }
}

fn play(topology: &Topology) {
    let Ok(plan) = Plan::new(topology, 2) else {
        return;
    };
    for shard in plan.shards {
        let mut now = Time::from_nanos(1_000_000_000);
        let mut engine = Engine::new(shard, topology.timing.into(), now);
        for _ in 0..20 {
            engine.turn(now);
            let Some(next) = engine.next_deadline() else {
                break;
            };
            now = now.max(next);
        }
    }
}
