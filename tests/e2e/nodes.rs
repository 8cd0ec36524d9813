//! What a person does inside of nodes, and a whole story of operating a lab.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::process::{self, eventually};
use tests::world::config;
use tests::{Lab, World};

const SOON: Duration = Duration::from_mins(1);

const LAB: &str = r#"{
  "nodes": {
    "a": { "kind": "host", "labels": { "role": "client" }, "after": ["b"],
      "interfaces": { "eth0": { "addresses": ["10.0.0.1/24"] } },
      "commands": ["n=0; while :; do n=$((n+1)); echo tick $n; sleep 0.3; done", "echo one; echo two >&2; exit 3"],
      "save": ["/etc/hostname", "/root/site"] },
    "b": { "kind": "host", "labels": { "role": "server" },
      "interfaces": { "eth0": { "addresses": ["10.0.0.2/24"] } },
      "commands": ["socat TCP-LISTEN:80,fork,reuseaddr EXEC:cat"],
      "ready": { "tcp": "10.0.0.2:80" } }
  },
  "links": [{ "endpoints": ["a:eth0", "b:eth0"], "rate": "100Mbit", "delay": "5ms" }],
  "checks": [
    { "kind": "ping", "from": "a", "to": "b", "min-rtt": "10ms", "within": "30s" },
    { "kind": "ping", "from": "a", "to": "10.0.0.77", "count": 1, "expect": "unreachable" },
    { "kind": "path", "from": "a", "to": "b", "via": [] },
    { "kind": "throughput", "from": "a", "to": "b", "max": "100Mbit", "time": "1s" },
    { "kind": "reachability" },
    { "kind": "throughput", "from": "a", "to": "b", "min": "1Gbit", "time": "1s", "name": "faster than the link" }
  ]
}"#;

/// Exec in several nodes, copies, attach, console, save, verify: as a person types them.
pub fn in_and_out(world: &World) -> Result<()> {
    let lab = world.launch(&world.file("inside.json", LAB)?)?;
    let all = world.vmm(&["exec", "--all", "--", "hostname"])?.success()?;
    let mut lines: Vec<_> = all.stdout.lines().collect();
    lines.sort_unstable();
    ensure!(lines == ["a: a", "b: b"], "{all}");
    let one = world.vmm(&["exec", "--label", "role=server", "--", "hostname"])?;
    ensure!(one.success()?.stdout == "b: b\n");
    world
        .vmm(&["exec", "a,b", "--", "test", "-e", "/no/where"])?
        .expect_code(1)?
        .expect_words(&["a (1), b (1)"])?;
    copies(world, &lab)?;

    let attached = world.vmm(&["attach", "a", "2"])?.expect_code(3)?;
    ensure!(attached.stdout == "one\ntwo\n", "{attached}");
    world
        .vmm(&["attach", "a"])?
        .expect_code(125)?
        .expect_words(&["which of the start-up commands", "ended 3: echo one"])?;
    let ticks = Watched::start(world, &["attach", "a", "1"])?;
    ticks.until("tick 1\n")?;
    ticks.until("tick 3\n")?;
    drop(ticks);
    // It goes on without its listener.
    let ticks = Watched::start(world, &["attach", "a", "1"])?;
    ticks.until("tick 5\n")?;
    drop(ticks);
    console(world)?;

    world.vmm(&["save", "-o", "kept"])?.success()?;
    let kept = |name: &str| std::fs::read_to_string(world.path("kept").join(name));
    ensure!(kept("a/etc/hostname")? == "a\n" && kept("a/root/site/page")? == "page");

    let verified = world
        .vmm(&["verify", "--json", "--junit", "out.xml"])?
        .expect_code(1)?;
    let results: Value = serde_json::from_str(&verified.stdout)?;
    let outcomes: Vec<_> = results
        .as_array()
        .context("results")?
        .iter()
        .map(|result| result["outcome"].as_str().unwrap_or_default())
        .collect();
    let expected = ["passed", "passed", "passed", "passed", "passed", "failed"];
    ensure!(outcomes == expected, "{verified}");
    let junit = std::fs::read_to_string(world.path("out.xml"))?;
    ensure!(
        junit.contains(r#"tests="6""#) && junit.contains(r#"failures="1""#),
        "{junit}"
    );
    lab.stop()
}

fn copies(world: &World, lab: &Lab<'_>) -> Result<()> {
    let site = world.path("site");
    std::fs::create_dir(&site)?;
    std::fs::write(site.join("page"), "page")?;
    let bytes: Vec<u8> = (0..2_000_000_u32).map(|n| (n % 251) as u8).collect();
    std::fs::write(site.join("large"), &bytes)?;
    std::fs::set_permissions(site.join("page"), std::fs::Permissions::from_mode(0o751))?;
    world.vmm(&["cp", "site", "a:"])?.success()?;
    ensure!(lab.sh("a", "stat -c %a /root/site/page")? == "751\n");
    // Again, over what is there.
    std::fs::write(site.join("page"), "page")?;
    world.vmm(&["cp", "site", "a:/root"])?.success()?;
    lab.sh(
        "a",
        "ln -s /etc/passwd site/out; ln -s page site/in; mkfifo site/pipe",
    )?;
    world
        .vmm(&["cp", "a:site", "back"])?
        .success()?
        .expect_words(&["left out the link", "it is a device or a pipe"])?;
    let back = world.path("back");
    ensure!(
        std::fs::read(back.join("large"))? == bytes,
        "what came back is what went"
    );
    ensure!(std::fs::read_to_string(back.join("in"))? == "page");
    ensure!(std::fs::symlink_metadata(back.join("out")).is_err());
    ensure!(std::fs::metadata(back.join("page"))?.permissions().mode() & 0o777 == 0o751);
    let left = lab.sh("a", "ls -A /root")?;
    ensure!(
        !left.contains(".vmm-cp"),
        "nothing half done is left: {left}"
    );
    lab.sh("a", "rm site/out site/in site/pipe")?;
    Ok(())
}

fn console(world: &World) -> Result<()> {
    let mut console = Watched::start(world, &["console", "b"])?;
    console.type_in("\r")?;
    console.until("#")?;
    console.type_in("echo mark-$((40+2)) on $(tty)\r")?;
    console.until("mark-42 on /dev/ttyS0")?;
    // The shell ends, and Enter starts another.
    console.type_in("exit\r")?;
    console.until("the shell has ended")?;
    console.type_in("\r")?;
    console.until("#")?;
    console.type_in("echo again-$((40+2))\r")?;
    console.until("again-42")?;
    Ok(())
}

/// A `vmm` that goes on, and what it has printed.
struct Watched {
    child: std::process::Child,
    seen: std::sync::Arc<std::sync::Mutex<String>>,
}

impl Watched {
    fn start(world: &World, arguments: &[&str]) -> Result<Self> {
        let mut child = world
            .vmm_command(arguments)?
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut stdout = child.stdout.take().context("it was asked for")?;
        let seen = std::sync::Arc::new(std::sync::Mutex::new(String::new()));
        let notes = seen.clone();
        std::thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(length @ 1..) = stdout.read(&mut chunk) {
                if let Ok(mut notes) = notes.lock() {
                    notes.push_str(&String::from_utf8_lossy(&chunk[..length]));
                }
            }
        });
        Ok(Self { child, seen })
    }

    fn type_in(&mut self, text: &str) -> Result<()> {
        let stdin = self.child.stdin.as_mut().context("it was asked for")?;
        Ok(stdin.write_all(text.as_bytes())?)
    }

    /// Waits until `words` are among what it has printed, and forgets what was up to them.
    fn until(&self, words: &str) -> Result<()> {
        eventually(SOON, || {
            let mut seen = self
                .seen
                .lock()
                .map_err(|_| anyhow::anyhow!("a reader panicked"))?;
            let at = seen.find(words);
            let at = at.with_context(|| format!("'{words}' was expected:\n{seen}"))?;
            seen.drain(..at + words.len());
            Ok(())
        })
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A whole story: the network of the paper is verified; while a link is captured it flaps and gets slow, as the report tells, a router restarts and OSPF finds its way
/// again; what was captured agrees with the counters.
pub fn story(world: &World) -> Result<()> {
    let lab = world.launch(&config("imunes-figure3.json"))?;
    world
        .vmm(&["verify"])?
        .success()?
        .expect_words(&["r1 → r2 → r3 → server", "2 of 2 checks hold"])?;

    // Nothing is delivered over a link that is down: the counters stand still at both ends of the capture.
    world.vmm(&["link", "down", "r1:eth1"])?.success()?;
    let before = delivered(world)?;
    let capture = process::start(
        world.vmm_command(&["capture", "r1:eth1", "-w", "story.pcapng"])?,
        b"",
    )?;
    eventually(SOON, || {
        let begun = std::fs::metadata(world.path("story.pcapng"))?.len() > 0;
        ensure!(begun, "the capture has begun");
        Ok(())
    })?;
    world.vmm(&["link", "up", "r1:eth1"])?.success()?;
    world
        .vmm(&["verify"])?
        .success()
        .context("after the link came back")?;

    world
        .vmm(&["link", "set", "r1:eth1", "delay=150ms"])?
        .success()?;
    let slow = lab.sh("pc2", "ping -c 2 -q -W 5 10.0.4.2")?;
    ensure!(slow.contains(" 0% packet loss"), "{slow}");
    report(world)?;
    for _ in 0..3 {
        world.vmm(&["link", "down", "r1:eth1"])?.success()?;
        world.vmm(&["link", "up", "r1:eth1"])?.success()?;
    }
    world.vmm(&["link", "reset", "r1:eth1"])?.success()?;
    world
        .vmm(&["node", "restart", "r2"])?
        .success()?
        .expect_words(&["r2 is ready"])?;
    world
        .vmm(&["verify"])?
        .success()
        .context("OSPF has found its way again")?
        .expect_words(&["r1 → r2 → r3 → server"])?;

    world.vmm(&["link", "down", "r1:eth1"])?.success()?;
    // What was on its way is there or lost by now.
    let after = eventually(SOON, || {
        let after = delivered(world)?;
        std::thread::sleep(Duration::from_millis(200));
        ensure!(after == delivered(world)?, "frames still arrive");
        Ok(after)
    })?;
    tests::lab::kill(capture.pid(), rustix::process::Signal::INT)?;
    capture.wait(SOON)?.success()?;
    let captured = captured(&world.path("story.pcapng"))?;
    let counted = [after[0] - before[0], after[1] - before[1]];
    ensure!(
        captured == counted,
        "captured {captured:?}, counted {counted:?}"
    );
    ensure!(
        counted[0] > 10 && counted[1] > 10,
        "there was traffic: {counted:?}"
    );
    lab.stop()
}

/// The report tells what the slow link was asked for, and that it delivers no sooner.
fn report(world: &World) -> Result<()> {
    let report = world.vmm(&["report", "--json"])?.success()?;
    let report: Value = serde_json::from_str(&report.stdout)?;
    let links = report["links"].as_array().context("links")?;
    let slow = links.iter().find(|link| link["from"] == "r1:eth1");
    let slow = slow.with_context(|| format!("no link from r1:eth1 in {report}"))?;
    ensure!(slow["asked"]["delay_ns"] == 150_000_000, "{slow}");
    let delivered = slow["delivered"]["delay_p50_ns"].as_u64();
    ensure!(delivered >= Some(150_000_000), "{slow}");
    ensure!(report["verdict"].is_string(), "{report}");
    Ok(())
}

/// Frames delivered over the link between r1 and r2, in each direction.
fn delivered(world: &World) -> Result<[u64; 2]> {
    let links = world.vmm(&["link", "ls", "r1:eth1", "--json"])?.success()?;
    let links: Value = serde_json::from_str(&links.stdout)?;
    let count = |direction: &str| links[0][direction]["counters"]["out_frames"].as_u64();
    Ok([
        count("forward").context("a counter")?,
        count("backward").context("a counter")?,
    ])
}

/// Frames in a capture by where they come from, r1 and r2, as tshark reads them.
fn captured(file: &Path) -> Result<[u64; 2]> {
    let mut tshark = Command::new("tshark");
    tshark
        .arg("-r")
        .arg(file)
        .args(["-T", "fields", "-e", "frame.interface_name"]);
    let output = process::run(tshark, b"", Duration::from_mins(3))?.success()?;
    let mut counts = [0, 0];
    for line in BufReader::new(output.stdout.as_bytes()).lines() {
        let line = line?;
        let from = ["r1.eth1 > ", "r2.eth0 > "];
        let from = from.iter().position(|from| line.starts_with(from));
        counts[from.with_context(|| format!("an interface '{line}'"))?] += 1;
    }
    Ok(counts)
}
