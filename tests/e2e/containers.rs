//! Nodes that are containers: what they have of their own, and labs in which they stand beside virtual machines.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::Value;
use tests::lab::kill;
use tests::process::eventually;
use tests::world::config;
use tests::{Engine, World};

const SOON: Duration = Duration::from_mins(1);

/// The TAP devices of labs on this machine.
fn devices() -> Result<Vec<String>> {
    let names = std::fs::read_dir("/sys/class/net")?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<Vec<_>>>()?;
    Ok(names
        .into_iter()
        .filter(|name| name.starts_with("hy"))
        .collect())
}

/// A container has its own network, processes, mounts and name; it ends and boots as a machine does, and cannot change the host.
pub fn what_they_are(world: &World) -> Result<()> {
    let lab = world.launch(&config("two-hosts.json"))?;
    let node = lab.node("a")?;
    ensure!(
        node["engine"] == "container" && node["isolation"] == "none",
        "{node}"
    );
    let host = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    ensure!(
        lab.sh("a", "uname -r")?.trim() == host.trim(),
        "the kernel is the host's"
    );
    ensure!(lab.sh("a", "cat /proc/sys/kernel/hostname")?.trim() == "a");
    ensure!(
        lab.sh("a", "ls /sys/class/net")?
            .split_whitespace()
            .eq(["eth0", "lo"])
    );
    let processes: u32 = lab.sh("a", "ls -d /proc/[0-9]* | wc -l")?.trim().parse()?;
    ensure!(processes < 10, "{processes} processes");
    ensure!(devices()?.is_empty(), "moved: {:?}", devices()?);
    for forbidden in [
        "echo 1 > /proc/sys/kernel/sysrq",
        "date -s 2001-01-01",
        "mknod /tmp/loop0 b 7 0",
    ] {
        let tried = lab.exec("a", &["sh", "-c", forbidden])?;
        ensure!(tried.code() != 0, "{forbidden}: {tried}");
    }
    lab.sh("a", "echo 1 > /proc/sys/net/ipv4/ip_forward")?;
    let paused = world.vmm(&["node", "pause", "a"])?;
    paused
        .expect_code(1)?
        .expect_words(&["it is a container"])?;
    let console = world.vmm(&["console", "a"])?;
    console.expect_words(&["is a container, which has no serial port"])?;

    lab.exec("b", &["poweroff"])?;
    lab.wait_for("b", "ended", |node| {
        node["last_end"]["reason"] == "power-off"
    })?;
    world.vmm(&["node", "start", "b"])?.success()?;
    lab.ping_all_pairs()?;
    lab.exec("b", &["reboot"])?;
    lab.wait_for("b", "ready again", |node| {
        node["last_end"]["reason"] == "reboot" && node["state"] == "ready"
    })?;
    lab.ping_all_pairs()?;
    lab.stop()?;
    world.expect_nothing_left()?;
    ensure!(devices()?.is_empty(), "{:?} are left", devices()?);
    // The kernel lets go of a loop device a little later.
    eventually(SOON, || {
        let loops = std::process::Command::new("losetup").arg("-a").output()?;
        let loops = String::from_utf8(loops.stdout)?;
        ensure!(!loops.contains("rootfs.erofs"), "{loops}");
        Ok(())
    })
}

/// Two virtual machines and two containers on one switch.
pub fn beside_machines(world: &World) -> Result<()> {
    let machine = match world.engine() {
        Engine::Kvm => "kvm",
        Engine::Qemu | Engine::Container => "qemu",
    };
    let node = |n: u32, engine: &str| {
        format!(
            r#"{{"kind": "host", "engine": "{engine}", "interfaces": {{"eth0": {{"addresses": ["10.0.0.{n}/24"]}}}}}}"#
        )
    };
    let file = world.file(
        "mixed.json",
        &format!(
            r#"{{"nodes": {{"v1": {}, "v2": {}, "c1": {}, "c2": {}, "s": {{"kind": "switch"}}}},
                "links": [{{"endpoints": ["v1:eth0", "s"]}}, {{"endpoints": ["v2:eth0", "s"]}},
                    {{"endpoints": ["c1:eth0", "s"], "delay": "2ms"}}, {{"endpoints": ["c2:eth0", "s"], "rate": "50Mbit"}}]}}"#,
            node(1, machine),
            node(2, machine),
            node(3, "container"),
            node(4, "container")
        ),
    )?;
    let lab = world.launch(&file)?;
    for (node, engine) in [("v1", machine), ("c2", "container")] {
        ensure!(lab.node(node)?["engine"] == engine);
    }
    lab.ping_all_pairs()?;
    let machines = lab.machines()?;
    for (to, addresses) in &machines {
        lab.sh(to, "iperf3 -s -D")?;
        let address = addresses.first().context("an address")?.to_string();
        for (from, _) in machines.iter().filter(|(from, _)| from != to) {
            let said = eventually(SOON, || {
                let said = lab.sh(from, &format!("iperf3 -J -n 1M -c {address}"))?;
                let said: Value = serde_json::from_str(&said)?;
                // The server may still be busy with the one before.
                ensure!(said["error"].is_null(), "{said}");
                Ok(said)
            })?;
            let sent = said["end"]["sum_sent"]["bytes"].as_f64();
            ensure!(sent >= Some(1e6), "{from} -> {to}: {said}");
            let rate = said["end"]["sum_received"]["bits_per_second"].as_f64();
            println!(
                "iperf3 {from} -> {to}: {:.0} Mbit/s",
                rate.unwrap_or(0.0) / 1e6
            );
        }
    }
    lab.stop()?;
    world.expect_nothing_left()
}

/// The devices of containers go with the switch; they are started again when it is.
pub fn the_switch_dies(world: &World) -> Result<()> {
    let lab = world.launch(&config("two-hosts.json"))?;
    kill(lab.switch_pid()?, Signal::KILL)?;
    eventually(SOON, || {
        let restarts = lab.state()?["switch_restarts"].as_u64();
        ensure!(restarts == Some(1), "{restarts:?}");
        Ok(())
    })?;
    eventually(SOON, || lab.ping_all_pairs())?;
    lab.stop()?;
    ensure!(devices()?.is_empty(), "{:?} are left", devices()?);
    world.expect_nothing_left()
}

/// Links made by the host's kernel: containers and a virtual machine on a bridge, a link that is shaped, taken down and added while traffic
/// runs, a node and the fabric that go and come again. What the kernel cannot do is refused by name.
pub fn kernel_fabric(world: &World) -> Result<()> {
    let topology = |attributes: &str| {
        format!(
            r#"{{"name": "fabric", "fabric": "kernel", "nodes": {{
                "v": {{"kind": "host", "engine": "qemu", "interfaces": {{"eth0": {{"addresses": ["10.0.0.1/24"]}}}}}},
                "c": {{"kind": "host", "interfaces": {{"eth0": {{"addresses": ["10.0.0.2/24"]}}}}}},
                "d": {{"kind": "host", "interfaces": {{"eth0": {{"addresses": ["10.0.0.3/24"]}}}}}},
                "s": {{"kind": "switch"}}}},
                "links": [{{"endpoints": ["v:eth0", "s"]}}, {{"endpoints": ["d:eth0", "s"]}},
                    {{"name": "c", "endpoints": ["c:eth0", "s"]{attributes}}}]}}"#
        )
    };
    for (attributes, name, without) in [
        (r#", "ber": 1e-6"#, "`ber`", "kernel"),
        (
            r#", "rate": "1Mbit", "queue": {"kind": "wfq"}"#,
            "`queue`",
            "kernel",
        ),
        (r#", "completion": "nic""#, "`completion: nic`", "container"),
    ] {
        let file = world.file("refused.json", &topology(attributes))?;
        let file = file.to_str().context("a path")?;
        let tried = world.vmm(&["launch", "-d", "--engine", "container", file])?;
        ensure!(tried.code() != 0, "{tried}");
        tried.expect_words(&["link c", name, without])?;
    }
    let kvm = config("two-hosts.json");
    let kvm = kvm.to_str().context("a path")?;
    let tried = world.vmm(&["launch", "-d", "--engine", "kvm", "--fabric", "kernel", kvm])?;
    tried.expect_words(&["the kernel's fabric: node a", "engine kvm"])?;

    let lab = world.launch(&world.file("fabric.json", &topology(""))?)?;
    ensure!(devices()?.is_empty(), "on the host: {:?}", devices()?);
    lab.ping_all_pairs()?;
    lab.sh("d", "iperf3 -s -D")?;
    let rate = || -> Result<f64> {
        eventually(SOON, || {
            let said = lab.sh("c", "iperf3 -J -t 2 -c 10.0.0.3")?;
            let said: Value = serde_json::from_str(&said)?;
            let rate = said["end"]["sum_received"]["bits_per_second"].as_f64();
            rate.with_context(|| said.to_string())
        })
    };
    let free = rate()?;
    world.vmm(&["link", "set", "c", "rate=8Mbit"])?.success()?;
    let shaped = rate()?;
    println!(
        "iperf3 c -> d: {:.0} Mbit/s, at 8 Mbit/s {:.2} Mbit/s",
        free / 1e6,
        shaped / 1e6
    );
    // 1448 of 1538 bytes are payload; the bucket is a burst on top.
    ensure!(shaped < 8.5e6 && shaped < free, "{shaped} of {free}");
    let refused = world.vmm(&["link", "set", "c", "ber=1e-6"])?;
    refused.expect_code(1)?.expect_words(&["`ber`"])?;
    let link = |attribute: &str| world.vmm(&["link", "set", "c", attribute])?.success();
    let carrier = |up: &str| {
        eventually(SOON, || {
            let now = lab.sh("c", "cat /sys/class/net/eth0/carrier")?;
            ensure!(now.trim() == up, "carrier {now}");
            Ok(())
        })
    };
    link("up=false")?;
    carrier("0")?;
    link("up=true")?;
    carrier("1")?;
    world.vmm(&["node", "restart", "c"])?.success()?;
    lab.wait_for("c", "ready again", |node| node["state"] == "ready")?;
    eventually(SOON, || lab.ping_all_pairs())?;

    kill(lab.switch_pid()?, Signal::KILL)?;
    eventually(SOON, || {
        let restarts = lab.state()?["switch_restarts"].as_u64();
        ensure!(restarts == Some(1), "{restarts:?}");
        Ok(())
    })?;
    eventually(SOON, || lab.ping_all_pairs())?;
    lab.stop()?;
    world.expect_nothing_left()
}

/// `vmm bench`, as short as can be: every figure is there, in all its files, and nothing stays.
pub fn measured(world: &World) -> Result<()> {
    let table1 = bench(world, &["table1", "--engine", "container"])?;
    ensure!(table1.figures.len() == 12 && table1.csv.lines().count() == 1 + 12);

    let veth = "container,container-veth";
    let hops = bench(world, &["hops", "--most", "1", "--engine", veth])?;
    // Two subjects, four quantities.
    ensure!(hops.figures.len() == 2 * 4, "{}", hops.said);
    ensure!(
        hops.said.contains("container : container-veth"),
        "{}",
        hops.said
    );

    let scale = bench(world, &["scale", "--most", "2", "--engine", veth])?;
    ensure!(scale.figures.len() == 2 * 3, "{}", scale.said);

    for name in ["table1-ping", "hops-tcp", "scale-launch"] {
        let picture = std::fs::read_to_string(world.path("figures").join(format!("{name}.svg")))?;
        ensure!(picture.contains("<circle"), "{name}: {picture}");
    }
    let page = std::fs::read_to_string(world.path("figures").join("report.html"))?;
    for part in ["id=\"hops\"", "id=\"scale\"", "id=\"table1\"", "<svg"] {
        ensure!(page.contains(part), "{part}");
    }
    ensure!(
        !page.contains("http-equiv") && !page.contains("src="),
        "it needs nothing else"
    );
    let tried = world.vmm(&["bench", "hops", "--most", "0"])?;
    tried.expect_code(2)?;
    world.expect_nothing_left()
}

/// Where KVM works: what a packet costs a virtual machine of each kind, and what links deliver of what the kernel and the switch are asked for.
pub fn compared(world: &World) -> Result<()> {
    let exits = bench(world, &["exits", "--engine", "kvm,qemu,qemu-tap"])?;
    for subject in ["kvm", "qemu", "qemu-tap"] {
        for quantity in ["exits per packet", "interrupts per packet"] {
            let figure = exits.figure(quantity, "TCP", subject)?;
            ensure!(figure > 0.0, "{subject}, {quantity}: {figure}");
        }
    }
    // One copy on an unshaped link, whoever runs the machines.
    for subject in ["kvm", "qemu"] {
        let copies = exits.figure("copies in the switch per packet", "TCP", subject)?;
        ensure!((copies - 1.0).abs() < 0.01, "{subject}: {copies} copies");
    }
    let fidelity = bench(world, &["fidelity", "--engine", "container,container-veth"])?;
    for subject in ["container", "container-veth"] {
        for ms in [1.0, 5.0, 20.0, 100.0] {
            let label = format!("{ms}ms");
            let time = fidelity.figure("round trip of a delay each way", &label, subject)?;
            // Nothing arrives early; how late it is is the machine's.
            ensure!(
                time >= 2.0 * ms,
                "{subject}: {time} ms over {ms} ms each way"
            );
        }
        let lost = fidelity.figure("echo requests without an answer", "20%", subject)?;
        // 36 % of a thousand, five standard deviations off.
        ensure!((28.0..44.0).contains(&lost), "{subject}: {lost} % lost");
    }
    println!("{}\n{}", exits.said, fidelity.said);
    world.expect_nothing_left()
}

struct Benched {
    said: String,
    csv: String,
    figures: Vec<Value>,
}

/// Runs a benchmark once, a second for each transfer, and checks that its files say what it has printed.
fn bench(world: &World, arguments: &[&str]) -> Result<Benched> {
    let folder = world.path("figures");
    let out = folder.to_str().context("a path")?;
    let how = ["--repeat", "1", "--seconds", "1", "--out", out];
    let said = world
        .vmm(&[&["bench"], arguments, &how].concat())?
        .success()?
        .stdout;
    let name = arguments.first().context("a benchmark")?;
    let read = |ending: &str| std::fs::read_to_string(folder.join(format!("{name}.{ending}")));
    ensure!(said == read("md")?, "{said}");
    let json: Value = serde_json::from_str(&read("json")?)?;
    Ok(Benched {
        said,
        csv: read("csv")?,
        figures: json["figures"].as_array().context("figures")?.clone(),
    })
}

impl Benched {
    fn figure(&self, quantity: &str, at: &str, subject: &str) -> Result<f64> {
        let figure = self.figures.iter().find(|figure| {
            figure["quantity"] == quantity && figure["label"] == at && figure["subject"] == subject
        });
        let value = figure.and_then(|figure| figure["values"][0].as_f64());
        value.with_context(|| format!("{quantity}, {at}, {subject}: {}", self.said))
    }
}
