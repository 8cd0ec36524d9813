//! Zones: what happens to the switch of one is nothing to the others.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use tests::World;
use tests::lab::kill;
use tests::process::eventually;

const SOON: Duration = Duration::from_mins(1);

const LAB: &str = r#"{
    "name": "zones",
    "nodes": {
        "a": {"kind": "host", "zone": "red", "interfaces": {"eth0": {"addresses": ["10.0.1.1/24"]}}},
        "b": {"kind": "host", "interfaces": {"eth0": {"addresses": ["10.0.1.2/24"]}}},
        "c": {"kind": "host", "zone": "blue", "interfaces": {"eth0": {"addresses": ["10.0.2.1/24"]}}},
        "d": {"kind": "host", "interfaces": {"eth0": {"addresses": ["10.0.2.2/24"]}}},
        "s": {"kind": "switch"}
    },
    "links": [{"endpoints": ["a:eth0", "s"]}, {"endpoints": ["s", "b:eth0"]}, {"endpoints": ["c:eth0", "d:eth0"]}]
}"#;

pub fn apart(world: &World) -> Result<()> {
    let lab = world.launch(&world.file("zones.json", LAB)?)?;
    let ping = |from: &str, to: &str| {
        eventually(SOON, || {
            lab.sh(from, &format!("ping -c 1 -W 2 {to}")).map(drop)
        })
    };
    ping("a", "10.0.1.2")?;
    ping("c", "10.0.2.2")?;
    let switch = |zone: &str| -> Result<u32> {
        let state = lab.state()?;
        let all = state["switches"].as_array().context("switches")?;
        let found = all.iter().find(|switch| switch["zone"] == zone);
        let pid = found.and_then(|switch| switch["pid"].as_u64());
        Ok(u32::try_from(pid.with_context(|| state.to_string())?)?)
    };
    let (red, blue) = (switch("red")?, switch("blue")?);
    let neighbours = [lab.node_pid("c")?, lab.node_pid("d")?];
    lab.sh(
        "c",
        "ping -i 0.05 10.0.2.2 > /tmp/pings 2>&1 & echo $! > /tmp/pid",
    )?;

    kill(red, Signal::KILL)?;
    eventually(SOON, || {
        ensure!(lab.state()?["switch_restarts"] == 1 && switch("red")? != red);
        Ok(())
    })?;
    ping("a", "10.0.1.2")?;
    ensure!(switch("blue")? == blue);
    ensure!([lab.node_pid("c")?, lab.node_pid("d")?] == neighbours);
    lab.sh("c", "kill $(cat /tmp/pid)")?;
    lab.expect_every_ping("c", "/tmp/pings", 3)?;
    lab.stop()
}
