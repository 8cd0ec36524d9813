//! Guests that attack the switch and their own monitor.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use jail::attempt::held;
use serde_json::Value;
use tests::process::{self, eventually};
use tests::world::bin_dir;
use tests::{Engine, Lab, World};

const SOON: Duration = Duration::from_mins(1);

/// The attacker is `a`; `c` and `d` have a link of their own, which takes little of the processor, as that is not what is attacked.
const LAB: &str = r#"{
    "name": "attacks",
    "nodes": {
        "a": {"kind": "host", "interfaces": {"eth0": {"addresses": ["10.0.1.1/24"]}}},
        "b": {"kind": "host", "interfaces": {"eth0": {"addresses": ["10.0.1.2/24"]}}},
        "c": {"kind": "host", "interfaces": {"eth0": {"addresses": ["10.0.2.1/24"]}}},
        "d": {"kind": "host", "interfaces": {"eth0": {"addresses": ["10.0.2.2/24"]}}}
    },
    "links": [{"endpoints": ["a:eth0", "b:eth0"]}, {"endpoints": ["c:eth0", "d:eth0"], "rate": "2Mbit"}]
}"#;

/// Bits per second from `c` to `d`.
fn rate(lab: &Lab<'_>, seconds: u32) -> Result<f64> {
    let said = lab.sh("c", &format!("iperf3 -J -t {seconds} -c 10.0.2.2"))?;
    let said: Value = serde_json::from_str(&said)?;
    let rate = said["end"]["sum_received"]["bits_per_second"].as_f64();
    rate.with_context(|| said.to_string())
}

/// A driver that breaks every rule of rings, registers, PCI configuration and MSI-X: the neighbours keep their rate, its monitor and the
/// switch go on, and its own NIC works again when the kernel's driver has it back.
pub fn by_a_driver(world: &World) -> Result<()> {
    let lab = world.launch(&world.file("attacks.json", LAB)?)?;
    let program = bin_dir()?.join("hostile-driver");
    let program = program.to_str().context("a path")?;
    world
        .vmm(&["cp", program, "a:/tmp/hostile-driver"])?
        .success()?;
    let pids = || -> Result<_> {
        // That of a machine that has ended is none.
        let nodes = ["a", "b", "c", "d"].map(|node| lab.node_pid(node).ok());
        Ok((lab.switch_pid()?, nodes))
    };
    let before = pids()?;
    lab.sh("d", "iperf3 -s -D")?;
    let alone = rate(&lab, 4)?;

    let attack = ["exec", "a", "--", "/tmp/hostile-driver", "eth0", "12", "7"];
    let attack = process::start(world.vmm_command(&attack)?, b"")?;
    let attacked = eventually(SOON, || rate(&lab, 8))?;
    let attack = attack.wait(SOON)?;
    let tries = attack
        .stdout
        .split(['=', ' ', '\n'])
        .filter_map(|word| word.parse::<u64>().ok())
        .sum();
    println!("{}", attack.stdout.trim());
    ensure!(attacked >= 0.8 * alone, "{attacked} of {alone}");
    let after = pids()?;
    ensure!(
        (after.0, &after.1[1..]) == (before.0, &before.1[1..]),
        "a process has ended: {}",
        lab.state()?
    );
    if world.engine() == Engine::Qemu {
        // QEMU 7.2 may have stopped at one of its own assertions, when a ring was taken from under it, and the guest's kernel may have
        // disabled an interrupt that came too often: both have harmed themselves.
        let order = if after.1[0].is_some() {
            "restart"
        } else {
            "start"
        };
        world.vmm(&["node", order, "a"])?.success()?;
    } else {
        ensure!(
            after.1[0] == before.1[0],
            "its monitor has ended: {}",
            lab.state()?
        );
        let said = attack.success()?.stdout;
        for (name, count) in said.split_whitespace().filter_map(|w| w.split_once('=')) {
            ensure!(count.parse::<u64>()? > 0, "{name}: {said}");
        }
        lab.sh(
            "a",
            "ip address add 10.0.1.1/24 dev eth0 && ip link set eth0 up",
        )?;
    }
    eventually(SOON, || lab.sh("a", "ping -c 1 -W 2 10.0.1.2").map(drop))?;
    held(
        &format!(
            "a driver in a guest of engine {} breaks every rule: the neighbours keep {:.0} % of their rate",
            world.engine().name(),
            100.0 * attacked / alone
        ),
        tries,
        None,
    );
    lab.stop()
}
