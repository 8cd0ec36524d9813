//! Processes killed and labs interrupted at any moment: the message tells, nothing is left, others go on.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use jail::attempt::held;
use rustix::process::Signal;
use serde_json::Value;
use tests::case::Engine;
use tests::lab::kill;
use tests::process::eventually;
use tests::world::config;
use tests::{Lab, Output, World};

const PATIENCE: Duration = Duration::from_mins(1);
/// How often the switch is killed.
const SWITCHES: u64 = 4;
const EXIT_HOST: i32 = 5;
const EXIT_LAB: i32 = 6;
const EXIT_INTERRUPTED: i32 = 130;

/// A lab that has to notice nothing.
fn bystander(world: &World) -> Result<Lab<'_>> {
    let file = world.file(
        "bystander.json",
        r#"{"nodes": {"quiet": {"kind": "host", "memory": "64MiB"}}}"#,
    )?;
    world.launch(&file)
}

fn unharmed(bystander: &Lab<'_>) -> Result<()> {
    bystander
        .exec("quiet", &["true"])?
        .success()
        .context("the other lab was harmed")?;
    let node = bystander.node("quiet")?;
    ensure!(
        node["restarts"] == 0,
        "the other lab's node was restarted: {node}"
    );
    Ok(())
}

/// A node's process is killed: the node has failed, the rest goes on.
pub fn node_killed(world: &World) -> Result<()> {
    let lab = world.launch(&config("lan.json"))?;
    let machines = lab.machines()?;
    let (victim, _) = machines.first().context("a host")?;
    kill(lab.node_pid(victim)?, Signal::KILL)?;
    let node = lab.wait_for(victim, "down", |node| {
        node["state"] == "failed" || node["state"] == "ended"
    })?;
    ensure!(
        node["last_end"]["reason"] == "crash" || node["message"].is_string(),
        "a word about it: {node}"
    );
    let [.., (from, _), (_, to)] = &machines[..] else {
        anyhow::bail!("three hosts")
    };
    let address = to.first().context("an address")?.to_string();
    lab.exec(from, &["ping", "-c", "2", "-W", "5", &address])?
        .success()?;
    lab.stop()
}

/// The switch is killed under traffic, again and again: another takes its place, and the machines go on.
pub fn switch_killed(world: &World) -> Result<()> {
    let bystander = bystander(world)?;
    let lab = world.launch(&config("two-hosts.json"))?;
    let nodes = ["a", "b"].map(|node| lab.node_pid(node));
    let nodes = nodes.into_iter().collect::<Result<Vec<_>>>()?;
    let (_, addresses) = lab.machines()?.into_iter().nth(1).context("a machine")?;
    let to = addresses.first().context("an address")?.to_string();
    world
        .vmm(&["link", "set", "--lab", lab.name(), "a:eth0", "delay=3ms"])?
        .success()?;
    lab.sh("b", "iperf3 -s -D")?;
    lab.sh(
        "a",
        &format!("iperf3 -J -t 600 -c {to} > /tmp/iperf 2>&1 &"),
    )?;
    let carriers = "cat /sys/class/net/eth0/carrier_changes";
    let before = lab.sh("a", carriers)?;
    let events = world.vmm_command(&["events", "--lab", lab.name()])?;
    let events = tests::process::start(events, b"")?;
    let mut silences = Vec::new();
    for killed in 1..=SWITCHES {
        let ping = format!("ping -D -i 0.01 {to} > /tmp/pings 2>&1 & echo $! > /tmp/pid; sleep 2");
        lab.sh("a", &ping)?;
        // TCP fills queues, and a machine that is emulated is slow.
        let undisturbed = lab.longest_silence("a", "/tmp/pings")?;
        kill(lab.switch_pid()?, Signal::KILL)?;
        eventually(PATIENCE, || {
            let restarts = lab.state()?["switch_restarts"].as_u64();
            ensure!(restarts == Some(killed), "{restarts:?} of {killed}");
            Ok(())
        })?;
        lab.exec("a", &["ping", "-c", "2", "-i", "0.2", "-W", "5", &to])?;
        lab.sh("a", "kill $(cat /tmp/pid)")?;
        silences.push((undisturbed, lab.longest_silence("a", "/tmp/pings")?));
        let link = lab.link("a:eth0")?;
        ensure!(
            link["forward"]["attributes"]["delay"] == "3ms",
            "what was set by hand is set again: {link}"
        );
    }
    let flaps = lab.sh("a", carriers)?.trim().parse::<u32>()? - before.trim().parse::<u32>()?;
    // The monitor keeps the carrier; QEMU takes it away while it has no back-end.
    let most = if world.engine() == Engine::Kvm { 0 } else { 2 };
    ensure!(
        u64::from(flaps) <= most * SWITCHES,
        "the carrier changed {flaps} times"
    );
    // A connection from before the first of them still carries data, and ends as it should.
    lab.sh("a", "kill -INT $(pidof iperf3) && sleep 1")?;
    let transfer: Value = serde_json::from_str(&lab.sh("a", "cat /tmp/iperf")?)?;
    let last = transfer["intervals"]
        .as_array()
        .and_then(|all| all.iter().rev().nth(1))
        .context("iperf3 ran for seconds")?;
    ensure!(last["sum"]["bytes"].as_f64() > Some(0.0), "{last}");
    let now = ["a", "b"].map(|node| lab.node_pid(node));
    ensure!(now.into_iter().collect::<Result<Vec<_>>>()? == nodes);
    lab.stop()?;
    let starts = starts_of_switch(&events.wait(PATIENCE)?.stdout)?;
    ensure!(starts.len() == silences.len(), "{starts:?} ms");
    let mut beyond = Vec::new();
    for ((undisturbed, silence), start) in silences.into_iter().zip(starts) {
        beyond.push(silence.saturating_sub(start));
        let [silence, start, undisturbed] = [silence, start, undisturbed].map(|t| t.as_millis());
        println!(
            "no answer to ping for {silence} ms, {start} ms of them to start a switch; before, for {undisturbed} ms"
        );
    }
    held(
        &format!(
            "kill -9 of the switch under iperf3, engine {}: the connection goes on, the carrier changes {flaps} times (no answer to ping, beyond the \
             start of a process, for)",
            world.engine().name()
        ),
        SWITCHES,
        beyond.into_iter().max(),
    );
    unharmed(&bystander)?;
    bystander.stop()?;
    world.expect_nothing_left()
}

/// How long each switch took to serve, as the lab's events tell.
fn starts_of_switch(events: &str) -> Result<Vec<Duration>> {
    let times = events.lines().filter_map(|line| {
        let (_, took) = line.split_once("the switch serves again after ")?;
        took.split_once(" ms").map(|(took, _)| took)
    });
    times
        .map(|took| Ok(Duration::from_millis(took.parse()?)))
        .collect()
}

/// The clock of this machine jumps a day ahead and two back: links and machines do not notice.
pub fn clock_jumps(world: &World) -> Result<()> {
    if !tests::case::is_nested() {
        println!("this sets the clock of the machine, and so only the nested host's");
        return Ok(());
    }
    let lab = world.launch(&config("two-hosts.json"))?;
    let (_, addresses) = lab.machines()?.into_iter().nth(1).context("a machine")?;
    let to = addresses.first().context("an address")?.to_string();
    let delay = ["link", "set", "--lab", lab.name(), "a:eth0", "delay=20ms"];
    world.vmm(&delay)?.success()?;
    lab.sh(
        "a",
        &format!("ping -i 0.2 {to} > /tmp/pings 2>&1 & echo $! > /tmp/pid"),
    )?;
    for jump in ["+1 day", "-2 days", "+1 day"] {
        let set = Command::new("date").arg("-s").arg(jump).output()?;
        ensure!(set.status.success(), "date -s {jump}: {set:?}");
        let ping = ["ping", "-c", "3", "-i", "0.2", "-W", "5", &to];
        lab.exec("a", &ping)?.success()?;
    }
    lab.sh("a", "kill $(cat /tmp/pid)")?;
    lab.expect_every_ping("a", "/tmp/pings", 5)?;
    held(
        "the clock jumps a day ahead and two back: nothing is lost",
        3,
        None,
    );
    lab.stop()
}

/// The lab process is killed: the janitor removes the rest.
pub fn launcher_killed(world: &World) -> Result<()> {
    let bystander = bystander(world)?;
    let mut launch = world.launch_foreground(&config("two-hosts.json"))?;
    launch.wait_ready()?;
    let lab = launch.lab().clone();
    kill(lab.pid()?, Signal::KILL)?;
    launch.wait()?;
    gone(world, lab.name())?;
    unharmed(&bystander)?;
    bystander.stop()?;
    world.expect_nothing_left()?;
    // Its name is free again.
    world.launch(&config("two-hosts.json"))?.stop()
}

/// Waits until no lab of that name is listed and its folder is gone.
fn gone(world: &World, name: &str) -> Result<()> {
    eventually(Duration::from_secs(20), || {
        let labs = world.ls()?;
        ensure!(
            labs.as_array()
                .is_some_and(|labs| labs.iter().all(|lab| lab["name"] != name)),
            "{name} is still listed: {labs}"
        );
        ensure!(
            !world.run_folder().join(name).exists(),
            "the run folder of {name} is still there"
        );
        Ok(())
    })
}

/// Ctrl-C and `kill -9` at moments spread over the whole launch.
pub fn at_any_moment(world: &World) -> Result<()> {
    let bystander = bystander(world)?;
    let file = config("two-hosts.json");
    let start = Instant::now();
    let mut launch = world.launch_foreground(&file)?;
    launch.wait_ready()?;
    let whole = start.elapsed();
    launch.signal(Signal::INT)?;
    // A lab that was up and is ended by Ctrl-C has done its work.
    launch.wait()?.success()?;
    gone(world, "two-hosts")?;

    // Irregular, so that repeated runs do not always meet the same moment.
    let seed = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)?
        .subsec_nanos();
    println!("moments from seed {seed}, a launch takes {whole:?}");
    let share = |round: u32| f64::from(seed.rotate_left(5 * round) % 1000) / 1000.0;
    for (round, signal) in [
        Signal::INT,
        Signal::KILL,
        Signal::INT,
        Signal::KILL,
        Signal::TERM,
    ]
    .into_iter()
    .enumerate()
    {
        let moment = whole.mul_f64((round as f64 + share(round as u32)) / 5.0 * 0.9);
        let launch = world.launch_foreground(&file)?;
        std::thread::sleep(moment);
        launch.signal(signal)?;
        let output = launch
            .wait()
            .with_context(|| format!("{signal:?} after {moment:?}"))?;
        if signal == Signal::INT && output.code() != 0 {
            output
                .expect_code(EXIT_INTERRUPTED)
                .with_context(|| format!("{signal:?} after {moment:?}"))?;
        }
        gone(world, "two-hosts").with_context(|| format!("{signal:?} after {moment:?}"))?;
        unharmed(&bystander)?;
    }
    bystander.stop()?;
    world.expect_nothing_left()
}

/// A node whose condition never holds: the launch fails and names node and time-out.
pub fn never_ready(world: &World) -> Result<()> {
    let file = world.file(
        "never.json",
        r#"{"nodes": {"slow": {"kind": "host", "ready": {"exec": "false", "timeout": "2s"}}}}"#,
    )?;
    let output = launch_detached(world, &file, &[])?.expect_code(EXIT_LAB)?;
    output.expect_words(&["slow", "2 s", "false"])?;
    world.vmm(&["stop", "--all"])?.success()?;
    world.expect_nothing_left()
}

/// A node whose agent does not answer in time.
pub fn never_answers(world: &World) -> Result<()> {
    let file = world.file("mute.json", r#"{"nodes": {"mute": {"kind": "host"}}}"#)?;
    let output = launch_detached(world, &file, &["--boot-timeout", "20ms"])?;
    output
        .expect_code(EXIT_LAB)?
        .expect_words(&["mute", "--boot-timeout"])?;
    world.vmm(&["stop", "--all"])?.success()?;
    world.expect_nothing_left()
}

fn launch_detached(world: &World, file: &Path, options: &[&str]) -> Result<Output> {
    let path = file.to_str().context("a path is text")?;
    let engine = world.engine().name();
    world.vmm(&[&["launch", "-d", "--engine", engine, path], options].concat())
}

/// More memory than there is.
pub fn too_much_memory(world: &World) -> Result<()> {
    let file = world.file(
        "huge.json",
        r#"{"nodes": {"glutton": {"kind": "host", "memory": "1024GiB"}}}"#,
    )?;
    let output = launch_detached(world, &file, &[])?;
    ensure!(
        [EXIT_HOST, EXIT_LAB].contains(&output.code()),
        "the launch fails\n{output}"
    );
    output.expect_words(&["memory"])?;
    world.expect_nothing_left()
}
