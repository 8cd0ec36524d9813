//! Nodes that lead out of the lab, as `vmm` shows them and leaves them behind.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use rustix::thread::{UnshareFlags, unshare_unsafe};
use tests::World;
use tests::lab::kill;
use tests::process::eventually;

const EXIT_LAB: i32 = 6;

/// Whether this network namespace has the interface.
fn has(interface: &str) -> Result<bool> {
    // Of this thread, as opposed to /proc/net.
    let devices = std::fs::read_to_string("/proc/thread-self/net/dev")?;
    Ok(devices
        .lines()
        .any(|line| line.trim_start().starts_with(&format!("{interface}:"))))
}

/// A TAP device is there for as long as its lab, however that ends; what cannot be made is said.
pub fn tap(world: &World) -> Result<()> {
    // A network namespace of its own, for this thread and what it starts.
    // SAFETY: only this thread changes its network namespace; no memory and no descriptors are involved.
    if unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.is_err() {
        println!("skipped: a network namespace needs root");
        return Ok(());
    }
    // No machine, so nothing boots.
    let text = r#"{"nodes": {"hub": {"kind": "hub"}, "up": {"kind": "external", "tap": "hop0"}},
                    "links": [{"endpoints": ["up", "hub"]}]}"#;
    let file = world.file("outside.json", text)?;
    for signal in [Signal::INT, Signal::KILL] {
        let mut launch = world.launch_foreground(&file)?;
        launch.wait_ready()?;
        ensure!(has("hop0")?, "there is no hop0");
        let node = launch.lab().node("up")?;
        ensure!(
            node["kind"] == "external"
                && node["state"] == "ready"
                && node["external"] == "tap hop0",
            "{node}"
        );
        world
            .vmm(&["ls", "outside"])?
            .success()?
            .expect_words(&["external", "tap hop0"])?;
        kill(launch.lab().pid()?, signal)?;
        launch.wait()?;
        eventually(Duration::from_secs(20), || {
            ensure!(!has("hop0")?, "hop0 is still there");
            Ok(())
        })?;
        world.expect_nothing_left()?;
    }
    let file = world.file(
        "nowhere.json",
        &text.replace(r#""tap": "hop0""#, r#""interface": "nix0""#),
    )?;
    let file = file.to_str().context("a path is text")?;
    world
        .vmm(&["launch", "--engine", "qemu", file])?
        .expect_code(EXIT_LAB)?
        .expect_words(&["node up", "nix0", "ip link"])?;
    Ok(())
}
