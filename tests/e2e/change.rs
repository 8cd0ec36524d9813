//! Running labs that become others.

use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tests::process::{self, eventually};
use tests::{Lab, World};

const SOON: Duration = Duration::from_mins(1);

/// Two hosts on a switch; `faults` as in a topology file.
fn topology(delay: &str, faults: &Value) -> String {
    let host = |n: u32| json!({"kind": "host", "interfaces": {"eth0": {"addresses": [format!("10.0.0.{n}/24")]}}});
    let lab = json!({
        "name": "change",
        "nodes": {"a": host(1), "b": host(2), "s": {"kind": "switch"}},
        "links": [{"endpoints": ["a:eth0", "s"], "delay": delay}, {"endpoints": ["b:eth0", "s"]}],
        "faults": faults,
    });
    lab.to_string()
}

const C: &str = r#"{"nodes": {"c": {"kind": "host", "interfaces": {"eth0": {"addresses": ["10.0.0.3/24"]}}}},
    "links": [{"endpoints": ["c:eth0", "s"]}]}"#;

fn ping(lab: &Lab<'_>, from: &str, to: &str) -> Result<()> {
    eventually(SOON, || {
        lab.sh(from, &format!("ping -c 1 -W 2 {to}")).map(drop)
    })
}

fn names(lab: &Lab<'_>) -> Result<Vec<String>> {
    let state = lab.state()?;
    let nodes = state["nodes"].as_array().context("a lab has nodes")?.iter();
    Ok(nodes
        .filter_map(|node| Some(node["name"].as_str()?.to_owned()))
        .collect())
}

/// A host and a link come, ping, and go; a link changes; a file with errors changes nothing. Those that stay notice nothing.
pub fn while_it_runs(world: &World) -> Result<()> {
    let file = world.file("change.json", &topology("0ns", &json!([])))?;
    let lab = world.launch(&file)?;
    ping(&lab, "a", "b")?;
    let pids = [lab.node_pid("a")?, lab.node_pid("b")?];
    // Traffic all the time.
    lab.sh(
        "a",
        "ping -i 0.1 10.0.0.2 > /tmp/pings 2>&1 & echo $! > /tmp/pid",
    )?;

    let events = process::start(world.vmm_command(&["events"])?, b"")?;
    let plan = world.vmm(&["add", C])?.success()?;
    plan.expect_words(&["add     node c", "add     link c:eth0--s:2"])?;
    // By its name, which was not known when they booted.
    ping(&lab, "a", "c")?;
    ping(&lab, "c", "b")?;

    let slower = world.file("slower.json", &topology("100ms", &json!([])))?;
    let slower = slower.to_str().context("a path")?;
    let dry = world.vmm(&["apply", "--dry-run", slower])?.success()?;
    dry.expect_words(&["remove  node c", "delay default → 100ms"])?;
    ensure!(names(&lab)? == ["a", "b", "s", "c"]);
    let broken = world.file("broken.json", &topology("100ms", &json!([{"at": "1s"}])))?;
    let refused = world.vmm(&["apply", broken.to_str().context("a path")?])?;
    refused.expect_words(&["a fault is one of", "nothing was changed"])?;
    ensure!(names(&lab)? == ["a", "b", "s", "c"]);
    ping(&lab, "c", "a")?;

    world.vmm(&["rm", "link", "c:eth0"])?.success()?;
    ensure!(lab.sh("c", "cat /sys/class/net/eth0/carrier")?.trim() == "0");
    world.vmm(&["rm", "node", "c"])?.success()?;
    ensure!(names(&lab)? == ["a", "b", "s"]);

    world.vmm(&["apply", slower])?.success()?;
    let set = lab.link("a:eth0")?;
    ensure!(set["forward"]["attributes"]["delay"] == "100ms", "{set}");
    let round_trip = lab.sh(
        "a",
        "ping -c 3 -i 0.3 -W 5 -q 10.0.0.2 | sed -n 's|^rtt.* = \\([0-9]*\\).*|\\1|p'",
    )?;
    ensure!(round_trip.trim().parse::<u32>()? >= 200, "{round_trip}");

    lab.sh("a", "kill $(cat /tmp/pid)")?;
    lab.expect_every_ping("a", "/tmp/pings", 5)?;
    ensure!([lab.node_pid("a")?, lab.node_pid("b")?] == pids);
    lab.stop()?;
    let told = events.wait(SOON)?;
    // Its boot may have begun before anybody listened.
    told.expect_words(&["c is ready", "c is no more"])?;
    Ok(())
}

/// A partition of a fault script, which came to the lab while it ran, heals.
pub fn a_partition_heals(world: &World) -> Result<()> {
    let file = world.file("change.json", &topology("0ns", &json!([])))?;
    let lab = world.launch(&file)?;
    ping(&lab, "a", "b")?;
    let changes = || -> Result<u32> {
        let seen = lab.sh("b", "cat /sys/class/net/eth0/carrier_changes")?;
        Ok(seen.trim().parse()?)
    };
    let (before, far) = (
        changes()?,
        lab.sh("a", "cat /sys/class/net/eth0/carrier_changes")?,
    );
    let launched = lab.state()?["started"].as_u64().context("a time")?;
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)?
        .as_secs();
    let at = format!("{}s", now - launched + 15);
    let faults = json!([{"at": at, "partition": {"nodes": ["b"], "for": "5s"}}]);
    let script = world.file("script.json", &topology("0ns", &faults))?;
    let plan = world
        .vmm(&["apply", script.to_str().context("a path")?])?
        .success()?;
    plan.expect_words(&["schedule, as far as it is to come"])?;
    eventually(SOON, || {
        let seen = changes()?;
        ensure!(
            seen >= before + 2,
            "the carrier went and came: {before}, {seen}"
        );
        Ok(())
    })?;
    ping(&lab, "a", "b")?;
    let still = lab.sh("a", "cat /sys/class/net/eth0/carrier_changes")?;
    ensure!(still == far, "the other side has its carrier all the time");
    let lost = lab.link("b:eth0")?;
    ensure!(lost["forward"]["attributes"]["up"].is_null(), "{lost}");
    lab.stop()
}
