//! Frames per second through one core, closed loop.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;

use super::Bench;
use crate::ovs::Ovs;
use crate::process::Process;
use crate::report::{Report, Row, Target};
use crate::switch::{Setup, Switch};
use crate::testpmd::{self, Listener, Testpmd};

const SIZES: [u32; 2] = [64, 1500];
const WARM_UP: Duration = Duration::from_millis(250);
const TIME: Duration = Duration::from_millis(750);

/// One that forwards.
enum Forwarder {
    Switch(Switch),
    Wire(Testpmd),
    Ovs(Ovs),
}

impl Forwarder {
    fn process(&self) -> &Process {
        match self {
            Self::Switch(s) => s.process(),
            Self::Wire(w) => w.process(),
            Self::Ovs(o) => o.process(),
        }
    }
}

struct Contestant {
    forwarder: Forwarder,
    load: Testpmd,
    /// By size.
    rates: [Vec<f64>; 2],
}

impl Contestant {
    fn run(&mut self, size: usize) -> Result<()> {
        self.forwarder.process().resume();
        self.load.process().resume();
        let rate = self.load.closed_loop(SIZES[size], WARM_UP, TIME)?;
        self.forwarder.process().pause();
        self.load.process().pause();
        self.rates[size].push(rate / 1e6);
        Ok(())
    }
}

pub fn measure(bench: &Bench, report: &mut Report) -> Result<()> {
    // So much that the link is not what limits; a closed loop ends when its frames are lost, so few are.
    let shaped = json!({
        "rate": "100Gbit",
        "delay": "20us",
        "loss": "0.00001%",
        "queue": { "limit": "2048packets" },
    });
    let dir = tempfile::tempdir()?;
    let wire = ["0", "1"].map(|n| dir.path().join(n));
    let mut all: Vec<Contestant> = Vec::new();
    for n in 0..5 {
        let mut listener = Listener::Switch;
        let (forwarder, sockets) = match n {
            0..3 => {
                let link = if n == 1 { shaped.clone() } else { json!({}) };
                let switch = Switch::start(&Setup {
                    confined: n < 2,
                    ..bench.setup("balanced", link)
                })?;
                let sockets = switch.sockets(0);
                (Forwarder::Switch(switch), sockets)
            }
            3 => {
                let forwarder = testpmd::wire(&bench.switch_cpu, [&wire[0], &wire[1]])
                    .context("DPDK's testpmd, of package dpdk-dev")?;
                (Forwarder::Wire(forwarder), wire.clone())
            }
            _ => {
                let ovs = Ovs::start(&bench.switch_cpu)
                    .context("Open vSwitch, of package openvswitch-switch-dpdk")?;
                listener = Listener::Load;
                let sockets = ovs.sockets();
                (Forwarder::Ovs(ovs), sockets)
            }
        };
        let name = format!("load{n}");
        let load = testpmd::load(&name, &bench.load_cpu, [&sockets[0], &sockets[1]], listener)?;
        if let Forwarder::Ovs(ovs) = &forwarder {
            ovs.wait_for_links()?;
        }
        forwarder.process().pause();
        load.process().pause();
        all.push(Contestant {
            forwarder,
            load,
            rates: Default::default(),
        });
    }
    for _ in 0..bench.rounds {
        for size in 0..SIZES.len() {
            for contestant in &mut all {
                contestant.run(size)?;
            }
        }
    }
    let [plain, shaped, free, wire, ovs] = &all[..] else {
        anyhow::bail!("five were started");
    };
    for (i, size) in SIZES.iter().enumerate() {
        let row = |what: &str, ours: &Contestant, name: &str, theirs: &Contestant| {
            let measure = format!("frames/s, {size} B{what}");
            Row::beside(measure, "M/s", &ours.rates[i], name, &theirs.rates[i])
        };
        let least = [1.0, 1.5][i];
        report.rows.extend([
            row("", plain, "bare wire", wire).target(Target::RatioAtLeast(least)),
            row("", plain, "OVS-DPDK", ovs),
            row("", plain, "no filters", free),
            row(", rate delay loss", shaped, "OVS-DPDK", ovs).target(Target::RatioAtLeast(1.0)),
        ]);
    }
    for contestant in all {
        contestant.load.process().resume();
        contestant.forwarder.process().resume();
        contestant.load.quit()?;
    }
    Ok(())
}
