//! Labs that work: launch, look, run commands, stop.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::process::{self, eventually};
use tests::world::config;
use tests::{Lab, World};

const ONE_HOST: &str = r#"{"nodes": {"a": {"kind": "host"}}}"#;

/// The smallest network: ping, `ls`, `logs`, a second launch of the same name, `stop`.
pub fn two_hosts(world: &World) -> Result<()> {
    let file = config("two-hosts.json");
    let lab = world.launch(&file)?;
    lab.ping_all_pairs()?;

    let labs = world.ls()?;
    let names: Vec<_> = labs
        .as_array()
        .into_iter()
        .flatten()
        .map(|lab| lab["name"].clone())
        .collect();
    ensure!(names == ["two-hosts"], "one lab runs, but ls says {labs}");
    let state = lab.state()?;
    ensure!(
        state["engine"] == world.engine().name(),
        "the engine in {state}"
    );
    for node in state["nodes"].as_array().context("a lab has nodes")? {
        ensure!(
            node["state"] == "ready",
            "after launch -d every node is ready: {node}"
        );
        ensure!(
            node["boot"]["booted_ms"].as_u64() > Some(0),
            "the time to boot in {node}"
        );
    }
    world
        .vmm(&["ls", "two-hosts"])?
        .success()?
        .expect_words(&["a", "b", "ready"])?;
    lab.sh("a", "echo written-by-a >/dev/console")?;
    eventually(Duration::from_secs(10), || {
        let logs = world.vmm(&["logs", "a"])?.success()?;
        logs.expect_words(&["written-by-a"])
    })?;

    let again = world.vmm(&["launch", "-d", file.to_str().context("a path is text")?])?;
    ensure!(again.code() != 0, "a second lab of the same name\n{again}");
    again.expect_words(&["two-hosts", "vmm stop"])?;
    lab.ping_all_pairs()
        .context("after a second launch was refused")?;

    lab.stop()?;
    ensure!(
        world.ls()?.as_array().is_some_and(Vec::is_empty),
        "no lab runs after stop"
    );
    world.expect_nothing_left()
}

/// `vmm exec`: exit codes, signals, standard input and output.
pub fn exec(world: &World) -> Result<()> {
    let lab = world.launch(&world.file("exec.json", ONE_HOST)?)?;
    ensure!(
        lab.exec("a", &["hostname"])?.success()?.stdout == "a\n",
        "the host name"
    );
    for code in [0, 1, 42, 255] {
        lab.exec("a", &["sh", "-c", &format!("exit {code}")])?
            .expect_code(code)?;
    }
    lab.exec("a", &["no-such-program"])?
        .expect_code(127)?
        .expect_words(&["no-such-program"])?;
    lab.exec("a", &["/etc"])?.expect_code(126)?;
    lab.exec("a", &["sh", "-c", "kill -9 $$"])?
        .expect_code(128 + 9)?;

    let both = lab
        .exec("a", &["sh", "-c", "echo out; echo err >&2"])?
        .success()?;
    ensure!(
        both.stdout == "out\n" && both.stderr == "err\n",
        "the two streams\n{both}"
    );
    // More than any buffer on the way, through standard input and back.
    let text = "0123456789abcde\n".repeat(100_000);
    let copy = lab
        .exec_with_input("a", &["cat"], text.as_bytes())?
        .success()?;
    ensure!(
        copy.stdout == text,
        "{} bytes came back of {}",
        copy.stdout.len(),
        text.len()
    );
    // A reader who stops early.
    lab.exec_with_input("a", &["head", "-c", "10"], text.as_bytes())?
        .success()?;

    // A signal to `vmm exec` reaches the command.
    let command = world.vmm_command(&[
        "exec",
        "a",
        "--",
        "sh",
        "-c",
        "trap 'exit 7' TERM; echo on; while :; do sleep 0.1; done",
    ])?;
    let running = process::start(command, b"")?;
    lab.wait_for("a", "running the command", |_| {
        lab.sh("a", "pgrep -f 'exit 7'").is_ok()
    })?;
    tests::lab::kill(running.pid(), rustix::process::Signal::TERM)?;
    running.wait(Duration::from_secs(30))?.expect_code(7)?;
    // The end of `vmm exec` ends the command.
    let running = process::start(
        world.vmm_command(&["exec", "a", "--", "sleep", "4321"])?,
        b"",
    )?;
    lab.wait_for("a", "running the command", |_| {
        lab.sh("a", "pgrep -f 'sleep 4321'").is_ok()
    })?;
    tests::lab::kill(running.pid(), rustix::process::Signal::KILL)?;
    running
        .wait(Duration::from_secs(30))?
        .expect_code(128 + 9)?;
    lab.wait_for("a", "rid of the command", |_| {
        lab.exec("a", &["pgrep", "-x", "sleep"])
            .is_ok_and(|o| o.code() == 1)
    })?;
    lab.stop()
}

/// Hosts on a learning switch.
pub fn lan(world: &World) -> Result<()> {
    let lab = world.launch(&config("lan.json"))?;
    lab.ping_all_pairs()?;
    lab.stop()
}

/// Two labs at once, with the same addresses, do not hear each other.
pub fn two_labs(world: &World) -> Result<()> {
    let text = std::fs::read_to_string(config("two-hosts.json"))?;
    let named = |name: &str| -> Result<Lab<'_>> {
        let mut topology: serde_json::Value = serde_json::from_str(&text)?;
        topology["name"] = name.into();
        world.launch(&world.file(&format!("{name}.json"), &topology.to_string())?)
    };
    let (left, right) = (named("left")?, named("right")?);
    left.ping_all_pairs()?;
    right.ping_all_pairs()?;
    let machines = left.machines()?;
    let (b, addresses) = machines.last().context("two hosts")?;
    let address = addresses.first().context("an address")?.to_string();
    // With its own peer cut off, the same address in the other lab must not answer.
    left.sh(b, "ip link set eth0 down")?;
    let ping = left.exec(&machines[0].0, &["ping", "-c", "2", "-W", "1", &address])?;
    ensure!(ping.code() == 1, "nobody answers\n{ping}");
    let refused = world.vmm(&["exec", b, "--", "true"])?.expect_code(125)?;
    refused.expect_words(&["left", "right", "--lab"])?;
    left.stop()?;
    right
        .ping_all_pairs()
        .context("after the other lab has ended")?;
    right.stop()
}

/// The network of the paper: OSPF finds the path, and the hops are those of its figure.
pub fn figure3(world: &World) -> Result<()> {
    let lab = world.launch(&config("imunes-figure3.json"))?;
    let trace = lab.sh("pc2", "traceroute -n 10.0.4.2")?;
    let hops: Vec<_> = trace
        .lines()
        .filter(|line| line.trim_start().starts_with(|c: char| c.is_ascii_digit()))
        .filter_map(|line| line.split_ascii_whitespace().nth(1))
        .collect();
    ensure!(
        hops == ["10.0.3.1", "10.0.2.1", "10.0.1.1", "10.0.4.2"],
        "the path\n{trace}"
    );
    let routes = lab.sh("pc2", "ip route")?;
    ensure!(
        routes.contains("proto ospf"),
        "routes are learnt by OSPF\n{routes}"
    );
    lab.stop()
}

/// What the program writes about itself: each in the form that its reader takes.
pub fn generated(world: &World) -> Result<()> {
    let bash = world.vmm(&["completions", "bash"])?.success()?.stdout;
    let sourced = std::process::Command::new("bash")
        .args(["-c", "source /dev/stdin && complete -p vmm"])
        .stdin(std::process::Stdio::from(file_of(
            world,
            "completion",
            &bash,
        )?))
        .output()?;
    ensure!(sourced.status.success(), "{sourced:?}");
    let page = world.vmm(&["man"])?.success()?.stdout;
    ensure!(page.contains(".TH vmm 1"), "{page}");
    let api = world.vmm(&["openapi"])?.success()?.stdout;
    let api: serde_json::Value = serde_json::from_str(&api)?;
    ensure!(
        api["openapi"].is_string() && api["paths"]["/v1/lab"].is_object(),
        "{api}"
    );
    Ok(())
}

fn file_of(world: &World, name: &str, text: &str) -> Result<std::fs::File> {
    Ok(std::fs::File::open(world.file(name, text)?)?)
}
