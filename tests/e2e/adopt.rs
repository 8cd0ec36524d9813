//! The lab process is killed: machines and links go on, and so do those who talk over them, while another process takes over.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use jail::attempt::held;
use rustix::process::Signal;
use tests::lab::kill;
use tests::process::eventually;
use tests::{Lab, World};

const PATIENCE: Duration = Duration::from_mins(1);
const TIMES: u64 = 3;

const LAB: &str = r#"{
    "name": "kept",
    "orphaned": "keep",
    "nodes": {
        "a": {"kind": "host", "interfaces": {"eth0": {"addresses": ["10.0.0.1/24"]}}},
        "b": {"kind": "host", "interfaces": {"eth0": {"addresses": ["10.0.0.2/24"]}}}
    },
    "links": [{"endpoints": ["a:eth0", "b:eth0"], "delay": "2ms"}]
}"#;

/// Everything of a lab that is not to change.
fn who(lab: &Lab<'_>) -> Result<(u32, [u32; 2])> {
    Ok((lab.switch_pid()?, [lab.node_pid("a")?, lab.node_pid("b")?]))
}

fn is(lab: &Lab<'_>, phase: &str) -> Result<()> {
    let state = lab.state()?;
    ensure!(state["phase"] == phase, "{}", state["phase"]);
    Ok(())
}

pub fn under_traffic(world: &World) -> Result<()> {
    let lab = world.launch(&world.file("kept.json", LAB)?)?;
    world
        .vmm(&["link", "set", "--lab", lab.name(), "a:eth0", "delay=5ms"])?
        .success()?;
    lab.sh("a", "ping -i 0.01 10.0.0.2 > /tmp/pings 2>&1 &")?;
    let before = who(&lab)?;
    let mut took = Duration::ZERO;
    for _ in 0..TIMES {
        kill(lab.pid()?, Signal::KILL)?;
        eventually(PATIENCE, || is(&lab, "orphaned"))?;
        let start = Instant::now();
        world.vmm(&["adopt", lab.name()])?.success()?;
        took = took.max(start.elapsed());
        is(&lab, "running")?;
        lab.sh("b", "true")?;
        ensure!(who(&lab)? == before);
        let link = lab.link("a:eth0")?;
        ensure!(link["forward"]["attributes"]["delay"] == "5ms", "{link}");
    }
    // Who has taken over can do all that who has launched could.
    world
        .vmm(&["link", "set", "--lab", lab.name(), "a:eth0", "up=false"])?
        .success()?;
    eventually(PATIENCE, || {
        let carrier = lab.sh("b", "cat /sys/class/net/eth0/carrier || true")?;
        ensure!(carrier.trim() == "0", "{carrier}");
        Ok(())
    })?;
    lab.expect_every_ping("a", "/tmp/pings", 20)?;
    world
        .vmm(&["link", "set", "--lab", lab.name(), "a:eth0", "up=true"])?
        .success()?;
    world
        .vmm(&["node", "restart", "--lab", lab.name(), "b"])?
        .success()?;
    lab.wait_for("b", "ready again", |node| node["state"] == "ready")?;
    eventually(PATIENCE, || {
        lab.sh("a", "ping -c 1 -W 2 10.0.0.2").map(drop)
    })?;
    let node = lab.node("a")?;
    ensure!(node["restarts"] == 0, "{node}");
    held(
        &format!(
            "kill -9 of the lab process under traffic, `orphaned: keep`, engine {}: no ping is lost (until `vmm adopt` has the lab)",
            world.engine().name()
        ),
        TIMES,
        Some(took),
    );
    lab.stop()?;
    world.expect_nothing_left().context("after it ended")?;

    // Without anyone who takes over, the lab can be ended.
    let lab = world.launch(&world.file("kept.json", LAB)?)?;
    kill(lab.pid()?, Signal::KILL)?;
    eventually(PATIENCE, || is(&lab, "orphaned"))?;
    lab.stop()?;
    world.expect_nothing_left()
}
