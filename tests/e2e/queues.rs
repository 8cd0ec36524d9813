//! Where a queue forms: in the link, whose discipline then rules, or in the guest that sends.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::{Lab, World};

/// Of the links, bit/s: little, as an emulated processor on a busy machine can do little more.
const RATE: u64 = 2_000_000;

fn pair(world: &World, name: &str, link: &str) -> Result<std::path::PathBuf> {
    let text = format!(
        r#"{{"defaults": {{"machine": {{"queue-size": 256}}}}, "nodes": {{
  "a": {{"kind": "host", "interfaces": {{"eth0": {{"addresses": ["10.0.0.1/24", "2001:db8::1/64"]}}}}}},
  "b": {{"kind": "host", "interfaces": {{"eth0": {{"addresses": ["10.0.0.2/24", "2001:db8::2/64"]}}}}}}}},
 "links": [{{"name": "link", "endpoints": ["a:eth0", "b:eth0"], "delay": "5ms", {link}}}]}}"#
    );
    world.file(&format!("{name}.json"), &text)
}

/// What `iperf3 -J` says about a transfer from `a` to `b`; meanwhile `a` notes how many packets wait in it.
fn iperf(lab: &Lab<'_>, arguments: &[&str]) -> Result<Value> {
    // A server that has just started, or has just served somebody else, may refuse.
    let watched = format!(
        "while sleep 0.1; do tc -s qdisc show dev eth0; done >/tmp/qdisc &
         for try in 1 2 3 4 5; do
             iperf3 -J -i 0 -c {} >/tmp/report && break
             sleep 1
         done
         kill $!
         cat /tmp/report",
        arguments.join(" ")
    );
    Ok(serde_json::from_str(&lab.sh("a", &watched)?)?)
}

fn number(report: &Value, pointer: &str) -> Result<f64> {
    let found = report.pointer(pointer).and_then(Value::as_f64);
    found.with_context(|| format!("no {pointer} in {report}"))
}

/// The counters of the direction from `a` to `b`.
fn forward(lab: &Lab<'_>) -> Result<Value> {
    Ok(lab.switch_stats()?["links"][0]["directions"][0].clone())
}

fn drops(direction: &Value, reason: &str) -> Result<u64> {
    let found = direction["drops"][reason].as_u64();
    found.with_context(|| format!("no drops of reason {reason} in {direction}"))
}

/// What happened while a transfer ran.
struct Transfer {
    report: Value,
    /// How many frames waited in the link, at moments while frames came.
    depths: Vec<u64>,
    queue: u64,
    early: u64,
}

impl Transfer {
    fn deepest(&self) -> u64 {
        self.depths.iter().copied().max().unwrap_or(0)
    }

    fn mean(&self) -> f64 {
        self.depths.iter().sum::<u64>() as f64 / self.depths.len().max(1) as f64
    }
}

/// Runs iperf3 and watches the link.
fn transfer(lab: &Lab<'_>, arguments: &[&str]) -> Result<Transfer> {
    let before = forward(lab)?;
    let done = AtomicBool::new(false);
    let (report, depths) = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut depths = Vec::new();
            let mut last = None;
            while !done.load(Ordering::Relaxed) {
                let now = forward(lab)?;
                let came = now["in_bytes"].as_u64();
                if last.replace(came).is_some_and(|last| last != came) {
                    depths.push(now["queued"].as_u64().context("a depth")?);
                }
                std::thread::sleep(Duration::from_millis(50));
            }
            anyhow::Ok(depths)
        });
        let report = iperf(lab, arguments);
        done.store(true, Ordering::Relaxed);
        (report, watcher.join())
    });
    let after = forward(lab)?;
    let dropped = |reason| anyhow::Ok(drops(&after, reason)? - drops(&before, reason)?);
    Ok(Transfer {
        report: report?,
        depths: depths.ok().context("the watcher panicked")??,
        queue: dropped("queue")?,
        early: dropped("early")?,
    })
}

fn set(world: &World, lab: &Lab<'_>, what: &str) -> Result<()> {
    let socket = world.run_folder().join(lab.name()).join("vswitch.sock");
    let mut stream = UnixStream::connect(socket)?;
    writeln!(stream, r#"{{"op":"set","link":"link","set":{what}}}"#)?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    ensure!(
        answer.contains("done"),
        "the link was not changed: {answer}"
    );
    Ok(())
}

/// `completion: network`: a bulk transfer fills the link's queue, and the link's discipline decides what is dropped.
pub fn in_the_link(world: &World) -> Result<()> {
    let link = r#""rate": "2Mbit", "queue": {"kind": "fifo", "limit": "40packets"}"#;
    let lab = world.launch(&pair(world, "in-the-link", link)?)?;
    lab.exec("b", &["iperf3", "-s", "-D"])?.success()?;

    let fifo = transfer(&lab, &["10.0.0.2", "-t", "6"])?;
    println!("fifo: {:?}", fifo.depths);
    ensure!(
        fifo.deepest() > 20 && fifo.deepest() <= 40,
        "the queue fills: {:?}",
        fifo.depths
    );
    ensure!(
        fifo.queue > 0 && fifo.early == 0,
        "{} full, {} early",
        fifo.queue,
        fifo.early
    );
    let repeated = number(&fifo.report, "/end/sum_sent/retransmits")?;
    ensure!(repeated > 0.0, "what the link drops is sent again");

    // Three times as much as it carries: the guest sends it all, the link drops two thirds.
    let flood = transfer(
        &lab,
        &["10.0.0.2", "-u", "-b", "12M", "-l", "1400", "-t", "3"],
    )?;
    let sent = number(&flood.report, "/end/sum/bits_per_second")?;
    ensure!(
        sent > 2.0 * RATE as f64,
        "the guest is not held back: {sent} bit/s"
    );
    let lost = number(&flood.report, "/end/sum/lost_packets")?;
    let dropped = flood.queue as f64;
    ensure!(
        lost > 0.0 && (0.9..1.1).contains(&(dropped / lost)),
        "{lost} packets were lost, {dropped} frames dropped"
    );

    set(
        world,
        &lab,
        r#"{"queue": {"kind": "codel", "limit": "40packets"}}"#,
    )?;
    let codel = transfer(&lab, &["10.0.0.2", "-t", "6"])?;
    println!("codel: {:?}", codel.depths);
    ensure!(codel.early > 0, "codel drops before the queue is full");
    // At the start a superframe of the guest, up to 45 segments, may find no room for the last of them.
    ensure!(
        codel.queue <= fifo.queue + 45,
        "{} drops of a full queue, {} without codel",
        codel.queue,
        fifo.queue
    );
    ensure!(
        codel.mean() < fifo.mean(),
        "the queue is {} deep with codel, {} without",
        codel.mean(),
        fifo.mean()
    );
    lab.stop()
}

/// `completion: nic`: the same transfers are held back; the queue forms in the guest, and the link drops nothing.
pub fn in_the_guest(world: &World) -> Result<()> {
    let link =
        r#""rate": "2Mbit", "completion": "nic", "queue": {"kind": "fifo", "limit": "10packets"}"#;
    let lab = world.launch(&pair(world, "in-the-guest", link)?)?;
    lab.exec("b", &["iperf3", "-s", "-D"])?.success()?;

    let bulk = transfer(&lab, &["10.0.0.2", "-t", "5"])?;
    println!("bulk: {:?}", bulk.depths);
    ensure!(
        bulk.deepest() <= 10,
        "the link's queue is short: {:?}",
        bulk.depths
    );
    ensure!(
        bulk.mean() < 5.0,
        "TCP keeps no more than it must below its socket: {:?}",
        bulk.depths
    );
    ensure!(
        bulk.queue + bulk.early == 0,
        "the link dropped {}",
        bulk.queue
    );

    // Three times as much as it carries, from more sockets than fit the ring: what does not fit waits in the guest's own queue.
    let flood = [
        "10.0.0.2", "-u", "-b", "1500K", "-l", "1400", "-t", "3", "-P", "8",
    ];
    let flood = transfer(&lab, &flood)?;
    println!("flood: {:?}", flood.depths);
    ensure!(
        flood.deepest() <= 10,
        "the link's queue is short: {:?}",
        flood.depths
    );
    ensure!(
        flood.queue + flood.early == 0,
        "the link dropped {}",
        flood.queue
    );
    let sent = number(&flood.report, "/end/sum_sent/bits_per_second")?;
    ensure!(
        sent < 2.0 * RATE as f64,
        "the guest is held back: {sent} bit/s"
    );
    let backlog = lab.sh(
        "a",
        "awk '/backlog/ {print $3+0}' /tmp/qdisc | sort -n | tail -1",
    )?;
    println!("{} packets in the guest's queue", backlog.trim());
    let backlog: u64 = backlog.trim().parse().context("a backlog")?;
    ensure!(backlog > 0, "nothing waits in the guest");
    lab.stop()
}

/// TCP and UDP, IPv4 and IPv6, both directions of an uneven link: never faster than it is, as uneven, and with no drops below its rate.
pub fn iperf_through_a_shaped_link(world: &World) -> Result<()> {
    let link = r#""forward": {"rate": "2Mbit"}, "backward": {"rate": "500kbit"}"#;
    let lab = world.launch(&pair(world, "uneven", link)?)?;
    lab.exec("b", &["iperf3", "-s", "-D"])?.success()?;
    for address in ["10.0.0.2", "2001:db8::2"] {
        let received = |arguments: &[&str], rate: u64| {
            let report = iperf(&lab, &[&[address], arguments].concat())?;
            let got = number(&report, "/end/sum_received/bits_per_second")?;
            println!("{address} {arguments:?}: {:.2} Mbit/s", got / 1e6);
            // A receiver that starts to count late sees a little more.
            ensure!(
                got > 0.0 && got < 1.1 * rate as f64,
                "{got} bit/s through {rate}"
            );
            anyhow::Ok(got)
        };
        // A machine that is too busy for its guests is slower than any link; that passes.
        let mut tries = 0;
        loop {
            let there = received(&["-t", "2"], RATE)?;
            let back = received(&["-t", "2", "-R"], RATE / 4)?;
            tries += 1;
            if there > 2.0 * back {
                break;
            }
            ensure!(tries < 4, "{there} bit/s there, {back} back");
        }
        let before = forward(&lab)?;
        received(&["-u", "-l", "1200", "-t", "2", "-b", "1M"], RATE)?;
        let after = forward(&lab)?;
        ensure!(
            drops(&after, "queue")? == drops(&before, "queue")?,
            "drops below the rate: {after}"
        );
    }
    set(world, &lab, r#"{"forward": {"loss": {"every": 10}}}"#)?;
    let before = forward(&lab)?;
    let report = iperf(
        &lab,
        &["10.0.0.2", "-u", "-l", "1200", "-t", "2", "-b", "1M"],
    )?;
    let after = forward(&lab)?;
    let frames = number(&after, "/in_frames")? - number(&before, "/in_frames")?;
    let lost = drops(&after, "loss")?;
    ensure!(
        (frames - 10.0 * lost as f64).abs() < 20.0,
        "{lost} of {frames} frames instead of every tenth"
    );
    let missed = number(&report, "/end/sum/lost_packets")?;
    // A few of the frames are of the connection that controls the transfer.
    ensure!(
        missed + 10.0 > lost as f64,
        "{missed} datagrams missed, {lost} frames lost"
    );
    lab.stop()
}
