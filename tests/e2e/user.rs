//! Labs of ordinary users.

use std::os::unix::fs::PermissionsExt;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use tests::world::config;
use tests::{Lab, World};

fn launch(world: &World) -> Result<Lab<'_>> {
    // A copy: who runs the tests may keep others out of its folders.
    let text = std::fs::read_to_string(config("two-hosts.json"))?;
    world.launch(&world.file("two-hosts.json", &text)?)
}

/// Everything but a way out of the lab, by somebody without any privilege; and nothing is left, killed or not.
pub fn not_root(world: &World) -> Result<()> {
    let user = world.become_user(None)?;
    let lab = launch(world)?;
    if let Some(user) = user {
        for process in lab.processes()? {
            let users = tests::user::users_of(process.pid)?;
            ensure!(users == [user.uid(); 4], "{process:?} belongs to {users:?}");
        }
    }
    lab.ping_all_pairs()?;
    for node in ["a", "b"] {
        let node = lab.node(node)?;
        ensure!(node["isolation"] == "full", "{node}");
    }
    world.vmm(&["link", "set", "a", "delay=1ms"])?.success()?;
    world.vmm(&["node", "restart", "b"])?.success()?;
    lab.ping_all_pairs()?;
    world.vmm(&["logs", "a"])?.success()?;
    ensure!(
        lab.exec("a", &["hostname"])?.success()?.stdout == "a\n",
        "a command in a node"
    );
    lab.stop()?;
    world.expect_nothing_left()?;

    let lab = launch(world)?;
    tests::lab::kill(lab.pid()?, Signal::KILL)?;
    world.expect_nothing_left()
}

/// Another user of the machine can neither see a lab nor talk to it, even where it gets at the socket.
pub fn others_are_refused(world: &World) -> Result<()> {
    if world.become_user(None)?.is_none() {
        println!("this is an ordinary user's test run: there is no other user to try it with");
        return Ok(());
    }
    let lab = launch(world)?;
    let socket = world.run_folder().join("two-hosts/control.sock");
    let mode = std::fs::metadata(&socket)?.permissions().mode() & 0o777;
    ensure!(mode == 0o600, "the control socket has mode {mode:o}");
    let seen = world.vmm_of_another(&["ls", "--json"])?;
    ensure!(!seen.stdout.contains("two-hosts"), "{seen}");
    // All doors open, for the sake of the lock behind them.
    for path in socket.ancestors().take(4) {
        let mode = if path == socket { 0o666 } else { 0o755 };
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
            .with_context(|| path.display().to_string())?;
    }
    for verb in [
        &["exec", "--lab", "two-hosts", "a", "--", "true"][..],
        &["stop", "two-hosts"],
    ] {
        let refused = world.vmm_of_another(verb)?;
        ensure!(refused.code() != 0, "{refused}");
    }
    lab.exec("a", &["true"])?.success()?;
    lab.stop()
}
