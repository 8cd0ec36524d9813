//! The ways a guest ends: each ends or restarts the node as its topology says, and the reason is shown.

use anyhow::{Context, Result, ensure};
use tests::{Engine, World};

const EXIT_LAB: i32 = 6;

const POWER_OFF: &str = "poweroff -f";
const REBOOT: &str = "reboot -f";
const PANIC: &str = "echo c >/proc/sysrq-trigger";
/// The kernel resets the machine by loading an empty interrupt table.
const TRIPLE_FAULT: &str =
    "echo triple >/sys/kernel/reboot/type && echo 1 >/sys/kernel/reboot/force && reboot -f";

/// Four ways to end, each with the action that is not its default next to one that is.
pub fn as_the_topology_says(world: &World) -> Result<()> {
    let file = world.file(
        "ends.json",
        r#"{"defaults": {"machine": {"memory": "64MiB"}}, "nodes": {
  "off": {"kind": "host"},
  "cycle": {"kind": "host"},
  "panic": {"kind": "host", "on": {"panic": "restart"}},
  "fault": {"kind": "host", "on": {"triple-fault": "end", "reboot": "end"}},
  "calm": {"kind": "host"}
}}"#,
    )?;
    let lab = world.launch(&file)?;
    // QEMU reports a triple fault as the reset that follows it.
    let faults: &[&str] = match world.engine() {
        Engine::Kvm => &["triple-fault"],
        Engine::Qemu | Engine::Container => &["triple-fault", "reboot"],
    };
    let cases: [(&str, &str, &str, u64, &[&str]); 4] = [
        ("off", POWER_OFF, "ended", 0, &["power-off"]),
        ("cycle", REBOOT, "ready", 1, &["reboot"]),
        ("panic", PANIC, "ready", 1, &["panic"]),
        ("fault", TRIPLE_FAULT, "ended", 0, faults),
    ];
    for (node, command, ..) in cases {
        // The command takes its own agent with it, so that its status says nothing.
        lab.exec(node, &["sh", "-c", command])?;
    }
    for (name, _, state, restarts, reasons) in cases {
        let node = lab.wait_for(name, state, |node| {
            node["state"] == state && node["restarts"] == restarts && !node["last_end"].is_null()
        })?;
        let reason = node["last_end"]["reason"]
            .as_str()
            .context("a reason")?
            .to_owned();
        ensure!(
            reasons.contains(&&*reason),
            "one of {reasons:?} was expected in {node}"
        );
        if state == "ready" {
            lab.exec(name, &["true"])?
                .success()
                .context("after the restart")?;
        } else {
            lab.exec(name, &["true"])?
                .expect_code(125)?
                .expect_words(&[name])?;
        }
    }
    let calm = lab.node("calm")?;
    ensure!(
        calm["state"] == "ready" && calm["restarts"] == 0,
        "a bystander: {calm}"
    );
    lab.stop()
}

/// `end-lab`: the launcher fails and says which node ended how.
pub fn with_the_lab(world: &World) -> Result<()> {
    let file = world.file(
        "fragile.json",
        r#"{"nodes": {"a": {"kind": "host", "on": {"panic": "end-lab"}}, "b": {"kind": "host"}}}"#,
    )?;
    let mut launch = world.launch_foreground(&file)?;
    launch.wait_ready()?;
    launch.lab().exec("a", &["sh", "-c", PANIC])?;
    launch
        .wait()?
        .expect_code(EXIT_LAB)?
        .expect_words(&["a", "panic"])?;
    world.expect_nothing_left()
}
