//! What a person does to a running lab: its links and its nodes.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::process::eventually;
use tests::world::config;
use tests::{Lab, World};

const SOON: Duration = Duration::from_secs(20);

/// Least round trip of a few pings from `a` to `b`, in ms.
fn round_trip(lab: &Lab<'_>) -> Result<f64> {
    let out = lab.sh("a", "ping -c 5 -i 0.2 -W 5 -q b")?;
    let times = out
        .lines()
        .find_map(|line| line.strip_prefix("rtt min/avg/max/mdev = "))
        .with_context(|| format!("no round trip in {out}"))?;
    let least = times.split('/').next().context("the least")?;
    Ok(least.parse()?)
}

fn carrier(lab: &Lab<'_>, node: &str, expected: &str) -> Result<()> {
    eventually(SOON, || {
        let seen = lab.sh(node, "cat /sys/class/net/eth0/carrier")?;
        ensure!(
            seen.trim() == expected,
            "{node} sees carrier {seen}, not {expected}"
        );
        Ok(())
    })
}

fn links(world: &World) -> Result<Value> {
    Ok(serde_json::from_str(
        &world.vmm(&["link", "ls", "--json"])?.success()?.stdout,
    )?)
}

/// A link gets slower, loses its carrier, gets it back, and becomes what it was.
pub fn links_live(world: &World) -> Result<()> {
    let lab = world.launch(&config("two-hosts.json"))?;
    lab.ping_all_pairs()?;
    let before = round_trip(&lab)?;
    // Both directions, and two attributes in one step.
    let done = world
        .vmm(&[
            "link",
            "set",
            "a:eth0",
            "delay=150ms",
            "queue.limit=77packets",
        ])?
        .success()?;
    done.expect_words(&["delay=150ms", "queue.limit=77packets"])?;
    let slow = round_trip(&lab)?;
    ensure!(slow >= 300.0, "two times 150 ms take {slow} ms");
    // One direction.
    world
        .vmm(&["link", "set", "a", "--out", "delay=1ms"])?
        .success()?;
    let half = round_trip(&lab)?;
    ensure!(
        (150.0..slow).contains(&half),
        "one way of 150 ms takes {half} ms, both took {slow} ms"
    );
    world.vmm(&["link", "reset", "b"])?.success()?;
    let after = round_trip(&lab)?;
    ensure!(
        after < 150.0,
        "as at the start ({before} ms), but {after} ms"
    );

    world.vmm(&["link", "down", "a"])?.success()?;
    carrier(&lab, "a", "0")?;
    carrier(&lab, "b", "0")?;
    let ping = lab.exec("a", &["ping", "-c", "1", "-W", "1", "b"])?;
    ensure!(ping.code() != 0, "nothing passes\n{ping}");
    ensure!(
        links(world)?[0]["forward"]["attributes"]["up"] == false,
        "the link is shown as down"
    );
    world.vmm(&["link", "up", "a"])?.success()?;
    carrier(&lab, "a", "1")?;
    carrier(&lab, "b", "1")?;
    lab.ping_all_pairs()?;

    for (arguments, status, words) in [
        (&["set", "c:eth0", "delay=1ms"][..], 4, "did you mean"),
        (&["set", "a", "dealy=1ms"], 1, "delay"),
        (&["set", "a", "delay=5"], 1, "ms"),
        (&["set", "a", "delay=90min"], 1, "to 3600s"),
        (&["set", "a", "delay"], 2, "ATTRIBUTE=VALUE"),
    ] {
        let arguments = [&["link"], arguments].concat();
        world
            .vmm(&arguments)?
            .expect_code(status)?
            .expect_words(&[words])
            .with_context(|| format!("{arguments:?}"))?;
    }
    lab.ping_all_pairs()?;
    lab.stop()
}

/// A node goes and comes back, its links as they were set; a paused one answers nothing and loses nothing.
pub fn nodes_live(world: &World) -> Result<()> {
    let lab = world.launch(&config("two-hosts.json"))?;
    world.vmm(&["link", "set", "a", "delay=100ms"])?.success()?;
    world.vmm(&["link", "down", "a", "--out"])?.success()?;
    lab.sh("b", "echo here > /root/mark")?;
    world
        .vmm(&["node", "restart", "b"])?
        .success()?
        .expect_words(&["b is ready"])?;
    ensure!(
        lab.exec("b", &["cat", "/root/mark"])?.code() != 0,
        "a node that was restarted has forgotten what it wrote"
    );
    // What a sends does not arrive: b has no carrier, from its first moment on.
    carrier(&lab, "b", "0")?;
    carrier(&lab, "a", "1")?;
    world.vmm(&["link", "up", "a"])?.success()?;
    carrier(&lab, "b", "1")?;
    lab.ping_all_pairs()?;
    let slow = round_trip(&lab)?;
    ensure!(
        slow >= 200.0,
        "the link is as slow as it was set: {slow} ms"
    );

    world.vmm(&["node", "stop", "b"])?.success()?;
    let ping = lab.exec("a", &["ping", "-c", "1", "-W", "1", "b"])?;
    ensure!(ping.code() == 1, "nobody answers\n{ping}");
    world.vmm(&["node", "start", "b"])?.success()?;
    lab.ping_all_pairs().context("after it was started")?;

    lab.sh("b", "sleep 1000 & echo $! > /root/pid")?;
    world.vmm(&["node", "pause", "b"])?.success()?;
    let ping = lab.exec("a", &["ping", "-c", "1", "-W", "1", "b"])?;
    ensure!(ping.code() == 1, "nobody answers\n{ping}");
    world.vmm(&["node", "resume", "b"])?.success()?;
    // A kernel whose clock has jumped may be busy with that for a while.
    eventually(SOON, || lab.ping_all_pairs()).context("after it was resumed")?;
    lab.sh("b", "kill -0 $(cat /root/pid)")?;
    lab.stop()
}

/// What a person sees of a lab agrees with what was done to it, whichever verb shows it.
pub fn looked_at(world: &World) -> Result<()> {
    let lab = world.launch(&config("two-hosts.json"))?;
    world
        .vmm(&["link", "set", "a", "delay=20ms", "rate=50Mbit"])?
        .success()?;
    lab.ping_all_pairs()?;
    let json = |arguments: &[&str]| -> Result<Value> {
        Ok(serde_json::from_str(
            &world.vmm(arguments)?.success()?.stdout,
        )?)
    };
    // The change is on the record within a second, and frames are counted from then on.
    eventually(SOON, || {
        lab.ping_all_pairs()?;
        let report = json(&["report", "--json"])?;
        let link = &report["links"][0];
        ensure!(link["asked"]["delay_ns"] == 20_000_000, "asked: {link}");
        ensure!(link["asked"]["rate"] == 50_000_000, "asked: {link}");
        let delivered = &link["delivered"];
        ensure!(delivered["frames"].as_u64() > Some(0), "{link}");
        ensure!(delivered["peak_rate"].as_u64() > Some(0), "{link}");
        ensure!(
            delivered["delay_p50_ns"].as_u64() >= Some(20_000_000),
            "{link}"
        );
        ensure!(link["lateness"]["count"].as_u64() > Some(0), "{link}");
        ensure!(link["verdict"] != "deviates", "nothing is lost: {link}");
        Ok(())
    })?;
    world
        .vmm(&["report"])?
        .success()?
        .expect_words(&["after launch", "20 ms", "50 Mbit/s"])?;

    let page = json(&["top", "--json"])?;
    let node = &page["nodes"][0];
    ensure!(
        node["cpu"].is_number() && node["memory"].as_u64() > Some(16 << 20),
        "{page}"
    );
    world
        .vmm(&["top", "--once"])?
        .success()?
        .expect_words(&["2 of 2 nodes ready", "delay=20ms"])?;

    let shown = json(&["inspect", "a", "--json"])?;
    ensure!(
        shown["node"]["kernel"]
            .as_str()
            .is_some_and(|kernel| kernel.starts_with("6.")),
        "{shown}"
    );
    ensure!(shown["switch"][0]["connected"] == true, "{shown}");
    world.vmm(&["inspect", "a"])?.success()?.expect_words(&[
        "host a, ready",
        "eth0",
        "delay=20ms",
    ])?;
    let metrics = world.vmm(&["metrics"])?.success()?;
    let count = metrics.stdout.lines().find_map(|line| {
        let start = "hopyard_link_lateness_seconds_count{";
        line.starts_with(start).then(|| line.rsplit(' ').next())?
    });
    let count: u64 = count.context("lateness is a metric")?.parse()?;
    ensure!(count > 0, "no frame was counted\n{metrics}");
    metrics.expect_words(&[
        "hopyard_process_cpu_seconds_total",
        "process=\"node\",node=\"b\"",
    ])?;
    world
        .vmm(&["graph"])?
        .success()?
        .expect_words(&["<svg", ">a<", ">b<", "delay=20ms"])?;
    lab.stop()
}
