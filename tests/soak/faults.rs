//! Processes of a lab that are killed or stopped at random moments under traffic.

use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use jail::attempt::held;
use rustix::process::Signal;
use tests::lab::kill;
use tests::process::eventually;
use tests::{Lab, World};

const SOON: Duration = Duration::from_mins(1);

/// Two neighbours that nothing is done to (`c`, `d`), and two machines of which `b` boots again when it has ended.
const LAB: &str = r#"{
    "name": "soak",
    "nodes": {
        "a": {"kind": "host", "interfaces": {"eth0": {"addresses": ["10.0.1.1/24"]}}},
        "b": {"kind": "host", "on": {"crash": "restart"}, "interfaces": {"eth0": {"addresses": ["10.0.1.2/24"]}}},
        "c": {"kind": "host", "interfaces": {"eth0": {"addresses": ["10.0.2.1/24"]}}},
        "d": {"kind": "host", "interfaces": {"eth0": {"addresses": ["10.0.2.2/24"]}}}
    },
    "links": [{"endpoints": ["a:eth0", "b:eth0"]}, {"endpoints": ["c:eth0", "d:eth0"]}]
}"#;

/// How often: `SOAK` of the environment in percent of `whole`.
pub fn times(whole: u32) -> Result<u32> {
    let percent = match std::env::var("SOAK") {
        Ok(text) => text.parse().context("SOAK is a number of percent")?,
        Err(_) => 100,
    };
    Ok((whole * percent / 100).max(1))
}

/// Moments that are never the same.
struct Moments(u64);

impl Moments {
    fn new() -> Result<Self> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
        println!("moments from seed {}", now.as_nanos() as u64 | 1);
        Ok(Self(now.as_nanos() as u64 | 1))
    }

    /// Waits for anything up to `most`.
    fn wait(&mut self, most: Duration) {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        std::thread::sleep(most.mul_f64((self.0 >> 11) as f64 / (1_u64 << 53) as f64));
    }
}

fn launch(world: &World) -> Result<Lab<'_>> {
    launch_as(world, LAB)
}

fn launch_as<'w>(world: &'w World, text: &str) -> Result<Lab<'w>> {
    let lab = world.launch(&world.file("soak.json", text)?)?;
    for (from, to) in [("a", "10.0.1.2"), ("c", "10.0.2.2")] {
        eventually(SOON, || {
            lab.sh(from, &format!("ping -c 1 -W 2 {to}")).map(drop)
        })?;
        lab.sh(
            from,
            &format!("ping -q -f -i 0.002 {to} > /dev/null 2>&1 &"),
        )?;
    }
    Ok(lab)
}

/// The machines that nothing is done to are who they were, and talk to each other.
fn neighbours(lab: &Lab<'_>) -> Result<[u32; 2]> {
    lab.sh("c", "ping -c 1 -W 5 10.0.2.2")?;
    Ok([lab.node_pid("c")?, lab.node_pid("d")?])
}

/// The longest of some times.
fn longest(times: &[Duration]) -> Duration {
    times.iter().max().copied().unwrap_or_default()
}

fn answers(lab: &Lab<'_>, from: &str, to: &str) -> Result<()> {
    let ping = format!("ping -c 1 -W 1 {to}");
    eventually(SOON, || lab.sh(from, &ping).map(drop))
}

pub fn switch_killed(world: &World) -> Result<()> {
    let count = times(100)?;
    let lab = launch(world)?;
    let who = neighbours(&lab)?;
    let nodes = [lab.node_pid("a")?, lab.node_pid("b")?];
    let mut moments = Moments::new()?;
    let mut back = Vec::new();
    for killed in 1..=u64::from(count) {
        moments.wait(Duration::from_secs(1));
        kill(lab.switch_pid()?, Signal::KILL)?;
        let start = Instant::now();
        answers(&lab, "a", "10.0.1.2")?;
        back.push(start.elapsed());
        eventually(SOON, || {
            let restarts = lab.state()?["switch_restarts"].as_u64();
            ensure!(restarts == Some(killed), "{restarts:?} of {killed}");
            Ok(())
        })?;
        // Whoever ends five times within a minute is given up.
        if killed % 4 == 0 {
            std::thread::sleep(Duration::from_secs(61));
        }
    }
    ensure!(neighbours(&lab)? == who);
    ensure!([lab.node_pid("a")?, lab.node_pid("b")?] == nodes);
    held(
        "kill -9 of the switch under traffic: machines go on (until a ping is answered again)",
        count.into(),
        Some(longest(&back)),
    );
    lab.stop()
}

pub fn node_killed(world: &World) -> Result<()> {
    let count = times(100)?;
    let lab = launch(world)?;
    let who = neighbours(&lab)?;
    let switch = lab.switch_pid()?;
    let mut moments = Moments::new()?;
    let mut back = Vec::new();
    for _ in 0..count {
        moments.wait(Duration::from_secs(1));
        let pid = lab.node_pid("b")?;
        kill(pid, Signal::KILL)?;
        let start = Instant::now();
        eventually(SOON, || {
            let node = lab.node("b")?;
            ensure!(
                node["state"] == "ready" && node["pid"].as_u64() != Some(pid.into()),
                "{node}"
            );
            Ok(())
        })?;
        answers(&lab, "a", "10.0.1.2")?;
        back.push(start.elapsed());
        ensure!(neighbours(&lab)? == who && lab.switch_pid()? == switch);
    }
    held(
        "kill -9 of a machine under traffic: it boots again, others do not notice",
        count.into(),
        Some(longest(&back)),
    );
    lab.stop()
}

pub fn lab_killed(world: &World) -> Result<()> {
    let count = times(100)?;
    let mut moments = Moments::new()?;
    let mut gone = Vec::new();
    for n in 0..count {
        let lab = launch(world)?;
        moments.wait(Duration::from_millis(500));
        kill(lab.pid()?, Signal::KILL)?;
        let start = Instant::now();
        world
            .expect_nothing_left()
            .with_context(|| format!("lab {n}"))?;
        gone.push(start.elapsed());
    }
    held(
        "kill -9 of the lab process under traffic: nothing is left (until all is gone)",
        count.into(),
        Some(longest(&gone)),
    );
    Ok(())
}

/// The lab notices when it next has something to tell its janitor, here of another process of `b`.
pub fn janitor_killed(world: &World) -> Result<()> {
    let count = times(100)?;
    let lab = launch(world)?;
    let who = neighbours(&lab)?;
    let mut moments = Moments::new()?;
    for _ in 0..count {
        moments.wait(Duration::from_millis(500));
        let killed = lab.janitor_pid()?;
        kill(killed, Signal::KILL)?;
        world
            .vmm(&["node", "restart", "--lab", lab.name(), "b"])?
            .success()?;
        eventually(SOON, || {
            ensure!(lab.janitor_pid()? != killed, "{killed} still");
            Ok(())
        })?;
        answers(&lab, "a", "10.0.1.2")?;
        ensure!(neighbours(&lab)? == who);
    }
    // The last of them knows all that the others knew.
    kill(lab.pid()?, Signal::KILL)?;
    world.expect_nothing_left()?;
    held(
        "kill -9 of the janitor under traffic: another knows what it knew",
        count.into(),
        None,
    );
    Ok(())
}

pub fn lab_adopted(world: &World) -> Result<()> {
    let count = times(100)?;
    let text = LAB.replacen('{', "{\"orphaned\": \"keep\",", 1);
    let lab = launch_as(world, &text)?;
    let who = neighbours(&lab)?;
    let others = [lab.switch_pid()?, lab.node_pid("a")?, lab.node_pid("b")?];
    lab.sh("c", "ping -i 0.01 10.0.2.2 > /tmp/pings 2>&1 &")?;
    let mut moments = Moments::new()?;
    let mut taken = Vec::new();
    for _ in 0..count {
        moments.wait(Duration::from_millis(500));
        let killed = lab.pid()?;
        kill(killed, Signal::KILL)?;
        let start = Instant::now();
        eventually(SOON, || {
            world.vmm(&["adopt", lab.name()])?.success().map(drop)
        })?;
        taken.push(start.elapsed());
        ensure!(lab.pid()? != killed && neighbours(&lab)? == who);
        let now = [lab.switch_pid()?, lab.node_pid("a")?, lab.node_pid("b")?];
        ensure!(now == others, "{now:?} are not {others:?}");
    }
    lab.expect_every_ping("c", "/tmp/pings", 100)?;
    held(
        "kill -9 of the lab process under traffic, `orphaned: keep`: nobody loses a ping (until another has the lab)",
        count.into(),
        Some(longest(&taken)),
    );
    lab.stop()
}

/// Processes that are stopped for ten seconds go on as if nothing had been.
pub fn stopped(world: &World) -> Result<()> {
    const PAUSE: Duration = Duration::from_secs(10);
    let lab = launch(world)?;
    let who = neighbours(&lab)?;
    let mut back = Vec::new();
    let all = [lab.switch_pid()?, lab.node_pid("b")?, lab.pid()?];
    for pid in all {
        kill(pid, Signal::STOP)?;
        std::thread::sleep(PAUSE);
        kill(pid, Signal::CONT)?;
        let start = Instant::now();
        answers(&lab, "a", "10.0.1.2")?;
        back.push(start.elapsed());
        ensure!([lab.switch_pid()?, lab.node_pid("b")?, lab.pid()?] == all);
        ensure!(neighbours(&lab)? == who);
    }
    held(
        "SIGSTOP for 10 s of switch, machine and lab process (until a ping is answered again)",
        3,
        Some(longest(&back)),
    );
    lab.stop()
}
