//! DPDK's testpmd: as the load, with two virtio-user ports, and as a bare wire between two vhost ports.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::process::{Process, command};

const START: Duration = Duration::from_mins(1);
const ANSWER: Duration = Duration::from_secs(10);

/// A testpmd with two ports that sends on each what it receives on the other.
#[derive(Debug)]
pub struct Testpmd(Process);

/// Who creates the socket of a virtio-user port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listener {
    Switch,
    Load,
}

fn start(name: &str, cpu: &str, devices: [String; 2], more: &[&str]) -> Result<Testpmd> {
    let mut c = command(cpu, "stdbuf");
    c.args(["-oL", "dpdk-testpmd"]);
    c.arg("--lcores").arg(format!("0@{cpu},1@{cpu}"));
    c.args(["--no-huge", "-m", "256", "--no-pci", "--no-telemetry"]);
    c.arg(format!(
        "--file-prefix=hopyard-{name}-{}",
        std::process::id()
    ));
    for device in devices {
        c.args(["--vdev", &device]);
    }
    c.args(["--", "-i", "--forward-mode=io", "--total-num-mbufs=8192"]);
    c.args(more);
    let mut process = Process::start(&format!("testpmd ({name})"), &mut c)?;
    process.say("show config fwd")?;
    process.wait_for("that it is ready", START, |l| {
        l.contains("packet forwarding - ports=2").then_some(())
    })?;
    Ok(Testpmd(process))
}

/// The load, on processor `cpu`.
pub fn load(name: &str, cpu: &str, sockets: [&Path; 2], listener: Listener) -> Result<Testpmd> {
    let device = |n: usize| {
        format!(
            "net_virtio_user{n},path={},queues=1,queue_size=1024,packed_vq=0,mrg_rxbuf=1,in_order=0,server={}",
            sockets[n].display(),
            u8::from(listener == Listener::Load)
        )
    };
    start(
        name,
        cpu,
        [device(0), device(1)],
        &["--txd=1024", "--rxd=1024", "--burst=32"],
    )
}

/// The bare wire, on processor `cpu`; it listens on `sockets`.
pub fn wire(cpu: &str, sockets: [&Path; 2]) -> Result<Testpmd> {
    let device = |n: usize| format!("net_vhost{n},iface={},queues=1", sockets[n].display());
    start(
        "wire",
        cpu,
        [device(0), device(1)],
        &["--auto-start", "--burst=32"],
    )
}

impl Testpmd {
    /// The process.
    pub fn process(&self) -> &Process {
        &self.0
    }

    /// Sends 16 bursts of 32 frames of `len` bytes on each port and keeps them going round; frames per second on both
    /// ports together over `time`, after a warm-up.
    pub fn closed_loop(&mut self, len: u32, warm_up: Duration, time: Duration) -> Result<f64> {
        self.0.say(&format!("set txpkts {len}"))?;
        self.0.say("start tx_first 16")?;
        std::thread::sleep(warm_up);
        self.received()?;
        std::thread::sleep(time);
        let rate = self.received()?;
        // Nothing may be left over for the next measure.
        for line in ["stop", "set fwd rxonly", "start"] {
            self.0.say(line)?;
        }
        std::thread::sleep(Duration::from_millis(100));
        for line in ["stop", "set fwd io"] {
            self.0.say(line)?;
        }
        Ok(rate)
    }

    /// Frames per second received since the last call.
    fn received(&mut self) -> Result<f64> {
        self.0.say("show port stats all")?;
        let mut sum = 0.0;
        for _ in 0..2 {
            sum += self.0.wait_for("its rate", ANSWER, |line| {
                let (_, rest) = line.split_once("Rx-pps:")?;
                rest.split_whitespace().next()?.parse::<f64>().ok()
            })?;
        }
        Ok(sum)
    }

    /// Ends it in good order, which takes its ports from the switch.
    pub fn quit(mut self) -> Result<()> {
        self.0.say("quit").context("testpmd cannot be ended")?;
        self.0.end(Duration::from_secs(5));
        Ok(())
    }
}
