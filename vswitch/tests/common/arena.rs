//! Somebody to attack, and others whom that must not concern.

use std::time::{Duration, Instant};

use topology::model::{Completion, Direction};

use super::driver::{Guest, Shape};
use super::frontend::Connection;
use super::lab::{Lab, Running};
use super::{eventually, frame, mac};

/// The attacker is `a`, whose link leads to `b`; `c` and `d` have nothing to do with it.
pub struct Arena {
    pub lab: Running,
    pub b: (Guest, Connection),
    c: (Guest, Connection),
    d: (Guest, Connection),
    before: Footprint,
    tag: u32,
}

pub const ATTACKED: &str = "a.eth0";

impl Arena {
    /// With an unshaped link to the attacker.
    pub fn new() -> Self {
        Self::with(&Direction::default(), Completion::Network)
    }

    pub fn with(direction: &Direction, completion: Completion) -> Self {
        let mut lab = Lab::default();
        let machines = ["a", "b", "c", "d"].map(|n| lab.machine(n));
        lab.link(machines[0], machines[1], direction, completion);
        lab.wire(machines[2], machines[3]);
        let lab = lab.run();
        let [b, c, d] = ["b.eth0", "c.eth0", "d.eth0"].map(|name| {
            let guest = Guest::new(Shape::default());
            let connection = Connection::start(&lab.socket(name), &guest);
            (guest, connection)
        });
        Self {
            lab,
            b,
            c,
            d,
            before: Footprint::now(),
            tag: 0,
        }
    }

    pub fn frame(&mut self) -> Vec<u8> {
        self.tag += 1;
        frame(mac(2), mac(1), 500, self.tag)
    }

    /// The others still exchange frames.
    #[track_caller]
    pub fn others_pass_traffic(&mut self, after: &str) {
        let f = self.frame();
        self.c.0.send(&f);
        eventually(&format!("traffic of others after: {after}"), || {
            self.d.0.receive() == Some(f.clone())
        });
    }

    /// … and the port that was attacked serves the next guest.
    #[track_caller]
    pub fn port_serves_the_next(&mut self, after: &str) {
        let mut guest = Guest::new(Shape::default());
        let connection = Connection::start(&self.lab.socket(ATTACKED), &guest);
        let f = self.frame();
        self.b.0.receive_all();
        guest.send(&f);
        eventually(&format!("traffic of the next guest after: {after}"), || {
            self.b.0.receive() == Some(f.clone())
        });
        drop(connection);
        eventually("the end of the next guest", || {
            !self.lab.port(ATTACKED).connected
        });
    }

    /// With the attacker gone, the process has as many descriptors, mappings of guests' memory and threads as at the start.
    #[track_caller]
    pub fn nothing_leaks(&self, after: &str) {
        eventually("the end of the connection", || {
            !self.lab.port(ATTACKED).connected
        });
        let before = self.before;
        let start = Instant::now();
        while Footprint::now() != before {
            let waited = start.elapsed();
            let now = Footprint::now();
            assert!(
                waited < Duration::from_secs(20),
                "{after}: {before:?} before, {now:?} after"
            );
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// What the process holds of the system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Footprint {
    descriptors: usize,
    mappings: usize,
    threads: usize,
}

impl Footprint {
    pub fn now() -> Self {
        let count = |folder| std::fs::read_dir(folder).unwrap().count();
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        Self {
            descriptors: count("/proc/self/fd"),
            mappings: maps.lines().filter(|l| l.contains("memfd:")).count(),
            threads: count("/proc/self/task"),
        }
    }
}
