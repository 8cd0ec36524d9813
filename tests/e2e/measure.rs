//! Engine `kvm` only: many NICs, throughput, and what a node costs beside its guest's RAM.

use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use agent_protocol::{ToAgent, ToHost, VERSION};
use anyhow::{Context, Result, bail, ensure};
use tests::World;
use tests::world::{config, image_dir};

/// What each further node may cost beside its guest's RAM, KiB.
const OVERHEAD_LIMIT: u64 = 5 * 1024;

/// A router with 24 NICs, each of which answers.
pub fn router_with_24_nics(world: &World) -> Result<()> {
    let (mut host, mut router, mut links) = (String::new(), String::new(), String::new());
    for n in 0..24 {
        let comma = if n == 0 { "" } else { ",\n" };
        write!(
            host,
            r#"{comma}"eth{n}": {{"addresses": ["10.1.{n}.1/24"]}}"#
        )?;
        write!(
            router,
            r#"{comma}"eth{n}": {{"addresses": ["10.1.{n}.2/24"]}}"#
        )?;
        write!(links, r#"{comma}{{"endpoints": ["h:eth{n}", "r:eth{n}"]}}"#)?;
    }
    let text = format!(
        r#"{{"defaults": {{"machine": {{"queue-size": 256}}}}, "nodes": {{
  "h": {{"kind": "host", "interfaces": {{{host}}}}},
  "r": {{"kind": "router", "interfaces": {{{router}}}}}}},
  "links": [{links}]}}"#
    );
    let lab = world.launch(&world.file("nics.json", &text)?)?;
    for n in 0..24 {
        let address = format!("10.1.{n}.2");
        lab.exec(
            "h",
            &[
                "ping",
                "-c",
                "1",
                "-W",
                "5",
                "-I",
                &format!("eth{n}"),
                &address,
            ],
        )?
        .success()?;
    }
    lab.stop()
}

/// TCP in both directions between all pairs of the LAN.
pub fn iperf(world: &World) -> Result<()> {
    let lab = world.launch(&config("lan.json"))?;
    let machines = lab.machines()?;
    for (to, addresses) in &machines {
        lab.exec(to, &["iperf3", "-s", "-D"])?.success()?;
        let address = addresses.first().context("an address")?.to_string();
        for (from, _) in machines.iter().filter(|(from, _)| from != to) {
            let output = lab
                .exec(from, &["iperf3", "-J", "-t", "2", "-c", &address])?
                .success()?;
            let report: serde_json::Value = serde_json::from_str(&output.stdout)?;
            let rate = report["end"]["sum_received"]["bits_per_second"]
                .as_f64()
                .context("a rate")?;
            ensure!(rate > 0.0, "nothing arrived: {report}");
            println!("iperf3 {from} -> {to}: {:.0} Mbit/s", rate / 1e6);
        }
    }
    lab.ping_all_pairs()?;
    lab.stop()
}

/// Resident memory of each monitor of a lab beside guest RAM.
pub fn overhead(world: &World) -> Result<()> {
    let lab = world.launch(&config("lan.json"))?;
    lab.ping_all_pairs()?;
    for (name, _) in lab.machines()? {
        let resident = beside_guest_ram(lab.node_pid(&name)?)?;
        println!("node {name}: {resident}");
        ensure!(
            resident.own < OVERHEAD_LIMIT,
            "the monitor of {name} takes {resident}"
        );
    }
    lab.stop()
}

/// One machine without NICs: time from exec to the agent's answer, and resident memory beside guest RAM, next to
/// QEMU's `microvm` with the same kernel, root and amount of RAM. Reported, for a person to judge.
pub fn boot_time(world: &World) -> Result<()> {
    let socket = world.path("agent.sock");
    let mut ours = Vec::new();
    let mut theirs = Vec::new();
    // Taking turns, so that what else the machine does falls on both.
    for _ in 0..3 {
        ours.push(boot(our_monitor(world, &socket)?, &socket).context("our monitor")?);
        theirs.push(boot(qemu_microvm(&socket), &socket).context("QEMU microvm")?);
    }
    for (name, boots) in [("vmm node", &ours), ("qemu microvm", &theirs)] {
        let best = boots.iter().map(|boot| boot.time).min().unwrap_or_default();
        let worst = boots.iter().map(|boot| boot.time).max().unwrap_or_default();
        println!(
            "{name}: agent ready after {best:.2?} to {worst:.2?}, {}",
            boots[0].beside_guest_ram
        );
    }
    Ok(())
}

const GUEST_RAM_MIB: u64 = 128;

fn our_monitor(world: &World, socket: &Path) -> Result<Command> {
    let image = image_dir();
    let config = serde_json::json!({
        "name": "boot-time",
        "kernel": image.join("vmlinux"),
        "rootfs": image.join("rootfs.erofs"),
        "memory": GUEST_RAM_MIB << 20,
        "vcpus": 1,
        "nics": [],
        "agent_socket": socket,
        "serial_log": world.path("serial.log"),
    });
    let mut command = world.vmm_command(&["node", "--config"])?;
    command.arg(world.file("node.json", &config.to_string())?);
    Ok(command)
}

/// As lean as QEMU gets, with every device it does not need left out.
fn qemu_microvm(socket: &Path) -> Command {
    let image = image_dir();
    let mut command = Command::new("qemu-system-x86_64");
    command.args([
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-no-reboot",
    ]);
    command.args(["-accel", "kvm", "-cpu", "host", "-smp", "1"]);
    command.args([
        "-M",
        "microvm,acpi=on,rtc=off,pit=off,pic=off,isa-serial=on,memory-backend=ram",
    ]);
    command.args(["-m", &format!("{GUEST_RAM_MIB}M")]);
    command.args([
        "-object",
        &format!("memory-backend-memfd,id=ram,size={GUEST_RAM_MIB}M,share=on"),
    ]);
    command.arg("-kernel").arg(image.join("vmlinux"));
    command.args([
        "-append",
        "console=ttyS0 root=/dev/vda rootfstype=erofs ro init=/sbin/hopyard-agent panic=-1 quiet",
    ]);
    command.args(["-serial", "null"]);
    let root = image.join("rootfs.erofs");
    command.args([
        "-drive",
        &format!(
            "id=root,if=none,format=raw,readonly=on,file.locking=off,file={}",
            root.display()
        ),
    ]);
    command.args(["-device", "virtio-blk-device,drive=root"]);
    command.args([
        "-chardev",
        &format!(
            "socket,id=agent,server=on,wait=off,path={}",
            socket.display()
        ),
    ]);
    command.args(["-device", "virtio-serial-device"]);
    command.args([
        "-device",
        &format!(
            "virtserialport,chardev=agent,name={}",
            agent_protocol::PORT_NAME
        ),
    ]);
    command.args([
        "-object",
        "rng-random,id=rng,filename=/dev/urandom",
        "-device",
        "virtio-rng-device,rng=rng",
    ]);
    command
}

struct Boot {
    time: Duration,
    beside_guest_ram: Resident,
}

/// Starts a machine, says hello to its agent as soon as that can be, and ends the machine.
fn boot(mut command: Command, socket: &Path) -> Result<Boot> {
    // The last machine's.
    if socket.exists() {
        fs::remove_file(socket)?;
    }
    let start = Instant::now();
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
    let result = greet(&mut child, socket).and_then(|()| {
        Ok(Boot {
            time: start.elapsed(),
            beside_guest_ram: beside_guest_ram(child.id())?,
        })
    });
    child.kill()?;
    child.wait()?;
    result
}

fn greet(child: &mut Child, socket: &Path) -> Result<()> {
    let deadline = Instant::now() + Duration::from_mins(1);
    let mut stream = loop {
        if let Ok(stream) = UnixStream::connect(socket) {
            break stream;
        }
        if let Some(status) = child.try_wait()? {
            bail!("it ended: {status}");
        }
        ensure!(Instant::now() < deadline, "it does not listen");
        std::thread::sleep(Duration::from_millis(1));
    };
    stream.set_read_timeout(Some(Duration::from_mins(1)))?;
    let hello = serde_json::to_vec(&ToAgent::Hello { version: VERSION })?;
    // Length, then stream 0 and kind 0: a control message.
    stream.write_all(&u64::try_from(hello.len())?.to_le_bytes())?;
    stream.write_all(&hello)?;
    let mut header = [0; 8];
    stream.read_exact(&mut header).context("no answer")?;
    let mut answer = vec![0; u64::from_le_bytes(header).try_into()?];
    stream.read_exact(&mut answer)?;
    let answer: ToHost = serde_json::from_slice(&answer)?;
    ensure!(
        matches!(answer, ToHost::Hello { .. }),
        "not a hello: {answer:?}"
    );
    Ok(())
}

/// Resident memory in KiB.
struct Resident {
    /// What this process alone has.
    own: u64,
    /// Pages of programs and libraries, which all processes that run them share.
    program: u64,
}

impl std::fmt::Display for Resident {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { own, program } = self;
        let all = own + program;
        write!(
            f,
            "{all} KiB resident beside guest RAM: {own} KiB of its own, {program} KiB of program text"
        )
    }
}

/// From smaps, the mappings of the guest's memfd left out.
fn beside_guest_ram(pid: u32) -> Result<Resident> {
    let mut resident = Resident { own: 0, program: 0 };
    let mut guest_ram = false;
    for line in fs::read_to_string(format!("/proc/{pid}/smaps"))?.lines() {
        let mut words = line.split_ascii_whitespace();
        let first = words.next().unwrap_or_default();
        if !first.ends_with(':') {
            // A mapping's first line: range, permissions, …, name.
            guest_ram = line.contains("/memfd:");
        } else if !guest_ram {
            let mut kib = || {
                words
                    .next()
                    .context("a number")?
                    .parse::<u64>()
                    .context("a number")
            };
            match first {
                "Private_Dirty:" | "Shared_Dirty:" => resident.own += kib()?,
                "Private_Clean:" | "Shared_Clean:" => resident.program += kib()?,
                _ => {}
            }
        }
    }
    Ok(resident)
}
