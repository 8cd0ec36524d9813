//! What a node may take of the host.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use tests::process::eventually;
use tests::{Lab, World};

/// A node that is limited in every way, and one that is not at all.
const TOPOLOGY: &str = r#"{"nodes": {
  "slow": {"kind": "host", "memory": "128MiB", "host-memory": "256MiB", "cpu": {"limit": "40%", "weight": 50, "pin": [0]}},
  "free": {"kind": "host"}
}}"#;

/// The group of a process and of this controller, by version 2 or 1.
fn group_of(pid: u32, controller: &str) -> Result<PathBuf> {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let version_1 = groups.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?);
        controllers
            .split(',')
            .any(|c| c == controller)
            .then_some((format!("/sys/fs/cgroup/{controller}"), path))
    });
    let version_2 = groups.lines().find_map(|line| line.strip_prefix("0::"));
    let (mount, path) = match (version_1, version_2) {
        (Some(found), _) => found,
        (None, Some(path)) => ("/sys/fs/cgroup".to_owned(), path),
        (None, None) => anyhow::bail!("process {pid} is in no group: {groups}"),
    };
    Ok(Path::new(&mount).join(path.trim_start_matches('/')))
}

fn read(folder: &Path, names: [&str; 2]) -> Result<String> {
    let file = names
        .iter()
        .map(|name| folder.join(name))
        .find(|file| file.exists());
    let file = file.with_context(|| format!("neither of {names:?} in {}", folder.display()))?;
    Ok(fs::read_to_string(file)?.trim().to_owned())
}

/// The group of `slow` has its limits, and the kernel holds it to them.
fn expect_limits(lab: &Lab<'_>) -> Result<()> {
    let pid = lab.node_pid("slow")?;
    let (cpu, memory) = (group_of(pid, "cpu")?, group_of(pid, "memory")?);
    for group in [&cpu, &memory] {
        ensure!(group.ends_with("node-slow"), "{}", group.display());
    }
    let quota = read(&cpu, ["cpu.max", "cpu.cfs_quota_us"])?;
    ensure!(
        quota.split(' ').next() == Some("40000"),
        "a quota of {quota}"
    );
    let weight = read(&cpu, ["cpu.weight", "cpu.shares"])?;
    ensure!(weight == "50" || weight == "512", "a weight of {weight}");
    let most = read(&memory, ["memory.max", "memory.limit_in_bytes"])?;
    ensure!(
        most == (384_u64 << 20).to_string(),
        "a limit of {most} bytes"
    );
    let taken = read(&memory, ["memory.current", "memory.usage_in_bytes"])?;
    ensure!(
        taken.parse::<u64>()? > 16 << 20,
        "the guest's own memory counts: {taken}"
    );
    let allowed = fs::read_to_string(format!("/proc/{pid}/status"))?;
    ensure!(allowed.contains("Cpus_allowed_list:\t0\n"), "{allowed}");
    let free = lab.node_pid("free")?;
    ensure!(
        !group_of(free, "cpu")?.ends_with("node-free"),
        "no limits, no group"
    );

    lab.sh("slow", "timeout 3 sh -c 'while :; do :; done' || true")?;
    eventually(Duration::from_secs(10), || {
        let stat = read(&cpu, ["cpu.stat", "cpu.stat"])?;
        let throttled = stat
            .lines()
            .find_map(|line| line.strip_prefix("nr_throttled "));
        ensure!(throttled.is_some_and(|times| times != "0"), "{stat}");
        Ok(())
    })?;
    let node = lab.node("slow")?;
    let limits = &node["limits"];
    ensure!(
        limits["cpu"] == 0.4 && limits["processors"][0] == 0 && limits["enforced"] == true,
        "{node}"
    );
    ensure!(node["usage"]["cpu_ms"].as_u64() > Some(100), "{node}");
    ensure!(
        node["usage"]["guest_memory"].as_u64() > Some(16 << 20),
        "{node}"
    );
    Ok(())
}

/// Limits hold, and their groups go with the lab, even if it is killed.
pub fn enforced(world: &World) -> Result<()> {
    let file = world.file("limits.json", TOPOLOGY)?;
    let lab = world.launch(&file)?;
    expect_limits(&lab)?;
    world.vmm(&["node", "restart", "slow"])?.success()?;
    ensure!(
        group_of(lab.node_pid("slow")?, "cpu")?.ends_with("node-slow"),
        "after a restart"
    );
    lab.stop()?;
    world.expect_nothing_left()?;
    let lab = world.launch(&file)?;
    tests::lab::kill(lab.pid()?, Signal::KILL)?;
    world.expect_nothing_left()?;

    let nowhere = world.file("nowhere.json", &TOPOLOGY.replace("[0]", "[1023]"))?;
    let nowhere = nowhere.to_str().context("a path is text")?;
    world
        .vmm(&["launch", "--engine", world.engine().name(), nowhere])?
        .expect_code(5)?
        .expect_words(&["no processor 1023", "can be used"])?;
    Ok(())
}

/// Where no group can be made that is said, and the lab runs.
pub fn not_enforced(world: &World) -> Result<()> {
    if world.become_user(None)?.is_none() {
        println!("this is an ordinary user's test run: it may have a group of its own");
        return Ok(());
    }
    let file = world.file("limits.json", TOPOLOGY)?;
    let file = file.to_str().context("a path is text")?;
    world
        .vmm(&["launch", "-d", "--engine", world.engine().name(), file])?
        .success()?
        .expect_words(&["not enforced", "systemd-run"])?;
    let lab = world.lab("limits");
    let node = lab.node("slow")?;
    ensure!(node["limits"]["enforced"] == false, "{node}");
    ensure!(
        lab.state()?["limits_missing"].is_string(),
        "{}",
        lab.state()?
    );
    // What takes no group holds.
    let status = fs::read_to_string(format!("/proc/{}/status", lab.node_pid("slow")?))?;
    ensure!(status.contains("Cpus_allowed_list:\t0\n"), "{status}");
    lab.stop()
}

/// An ordinary user in a group that was made over to it.
pub fn delegated(world: &World) -> Result<()> {
    let top = Path::new("/sys/fs/cgroup");
    if !top.join("cgroup.controllers").exists() {
        println!("this machine has control groups of version 1, where nothing is delegated");
        return Ok(());
    }
    fs::write(top.join("cgroup.subtree_control"), "+cpu +memory")?;
    let group = top.join("delegated-to-a-user");
    fs::create_dir(&group)?;
    let result = (|| {
        if world.become_user(Some(&group))?.is_none() {
            return Ok(());
        }
        let lab = world.launch(&world.file("limits.json", TOPOLOGY)?)?;
        expect_limits(&lab)?;
        lab.stop()?;
        world.expect_nothing_left()
    })();
    // The group has to be empty again.
    let removed = eventually(Duration::from_secs(10), || Ok(fs::remove_dir(&group)?));
    result.and(removed)
}
