//! Labs of ordinary users.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use tests::process::{self, eventually};
use tests::world::config;
use tests::{Lab, World};

/// The first of the users that are set aside.
const FIRST: u32 = 200_000;

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

/// Where this machine has set users aside for who runs the lab, the process of each machine is one of them.
pub fn of_their_own(world: &World) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        println!("this takes root, who sets users aside for the time of the test");
        return Ok(());
    }
    let ranges = world.file("ranges", &format!("root:{FIRST}:65536\n"))?;
    let file = world.file(
        "two-hosts.json",
        &std::fs::read_to_string(config("two-hosts.json"))?,
    )?;
    let mut launch = world.vmm_command(&["launch", "-d", "--engine", world.engine().name()])?;
    launch.arg(file);
    // In a mount namespace of its own, which nobody else has to clean up.
    let script = "mount --bind \"$1\" /etc/subuid && mount --bind \"$1\" /etc/subgid && shift && exec \"$@\"";
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--propagation", "private", "sh", "-ec", script])
        .args(["sh".as_ref(), ranges.as_os_str(), launch.get_program()])
        .args(launch.get_args());
    if let Some(folder) = launch.get_current_dir() {
        command.current_dir(folder);
    }
    for (name, value) in launch.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    process::run(command, b"", Duration::from_mins(3))?.success()?;
    let lab = world.lab("two-hosts");
    ensure!(lab.state()?["isolation"]["own_users"] == true);
    let mut users = Vec::new();
    for node in ["a", "b"] {
        let pid = lab.node_pid(node)?;
        let user = tests::user::users_of(pid)?;
        ensure!(
            user == [user[0]; 4] && user[0] >= FIRST,
            "{node} is {user:?}"
        );
        users.push(user[0]);
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let is_bare = |line: &str| match line.split_once(':') {
            Some(("Groups", groups)) => groups.trim().is_empty(),
            Some(("CapEff" | "CapPrm" | "CapBnd", set)) => set.trim().bytes().all(|b| b == b'0'),
            _ => true,
        };
        ensure!(status.lines().all(is_bare), "{status}");
    }
    ensure!(users[0] != users[1], "{users:?}");
    lab.ping_all_pairs()?;
    // The sockets of another switch are theirs as well.
    tests::lab::kill(lab.switch_pid()?, Signal::KILL)?;
    eventually(Duration::from_mins(1), || {
        let restarts = lab.state()?["switch_restarts"].as_u64();
        ensure!(restarts == Some(1), "{restarts:?}");
        Ok(())
    })?;
    eventually(Duration::from_mins(1), || lab.ping_all_pairs())?;
    world.vmm(&["node", "restart", "b"])?.success()?;
    lab.ping_all_pairs()?;
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
