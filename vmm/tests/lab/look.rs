//! What a person sees of a running lab.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::process::Stdio;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::harness::{Place, kill, line_of};

/// A lab `two` whose nodes `a` and `b` have a link, on which as much has happened as these say.
fn place(attributes: &Value, frames: u64, late_ns: u64) -> Place {
    let place = Place::new();
    let double =
        std::path::Path::new(env!("CARGO_BIN_EXE_vmm")).with_file_name("examples/fake-vswitch");
    place.switch(&format!(
        "FAKE_STATS='{}' exec '{}' \"$@\"",
        place.path("").display(),
        double.display()
    ));
    place.topology(
        r#"{"name": "two", "nodes": {"a": {"kind": "host", "interfaces": {"eth0": {"addresses": ["10.0.0.1/24"]}}},
            "b": {"kind": "router"}}, "links": [{"endpoints": ["a:eth0", "b:eth0"], "rate": "10Mbit"}]}"#,
    );
    count(&place, attributes, frames, late_ns);
    place
}

/// Has the double of the switch say so.
fn count(place: &Place, attributes: &Value, frames: u64, late_ns: u64) {
    let direction = |frames: u64| {
        json!({"in_frames": frames, "in_bytes": frames * 100, "out_frames": frames, "out_bytes": frames * 100,
            "drops": {"queue": 0, "loss": 0}, "duplicated": 0, "corrupted": 0, "marked": 0, "queued": 0, "queued_max": 7,
            "lateness": {"count": frames, "p50": late_ns, "p90": late_ns, "p99": late_ns, "p999": late_ns, "max": late_ns,
                "buckets": [[late_ns, frames]]}})
    };
    let stats = json!({"name": "two", "externals": [], "nodes": [], "shards": [], "captures": 0,
        "ports": [{"name": "a.eth0", "connected": true, "violations": 0, "features": ["TSO4"], "last_error": null},
            {"name": "b.eth0", "connected": true, "violations": 0, "features": [], "last_error": "a chain is too long"}],
        "links": [{"name": "a:eth0--b:eth0", "attributes": [attributes, attributes], "directions": [direction(frames), direction(0)]}]});
    // As a whole, as the double may be reading.
    std::fs::write(place.path("new.json"), stats.to_string()).unwrap();
    std::fs::rename(place.path("new.json"), place.path("stats.json")).unwrap();
}

fn json_of(place: &Place, args: &[&str]) -> Value {
    serde_json::from_str(&place.ok(args)).unwrap()
}

#[test]
fn everything_is_known_about_a_lab_a_node_and_a_link() {
    let place = place(&json!({"rate": "10Mbit"}), 1000, 5000);
    place.launch();
    let lab = json_of(&place, &["inspect", "--json"]);
    assert_eq!(
        (&lab["lab"]["name"], &lab["links"][0]["name"]),
        (&"two".into(), &"a:eth0--b:eth0".into())
    );
    assert!(
        lab["usage"]["switch"]["memory"].as_u64().unwrap() > 0,
        "{lab}"
    );
    let text = place.ok(&["inspect"]);
    for words in [
        "lab two, running",
        "engine      qemu",
        "10.0.0.1/24",
        "rate=10Mbit",
    ] {
        assert!(text.contains(words), "no {words} in {text}");
    }
    let node = json_of(&place, &["inspect", "b", "--json"]);
    assert_eq!(node["node"]["state"], "ready");
    assert_eq!(node["switch"][0]["last_error"], "a chain is too long");
    assert_eq!(node["usage"]["pid"], node["node"]["pid"]);
    let log = node["serial_log"].as_str().unwrap();
    assert!(
        std::fs::read_to_string(log)
            .unwrap()
            .contains("Linux version")
    );
    let text = place.ok(&["inspect", "b"]);
    for words in [
        "router b, ready",
        "b.eth0: connected=true",
        "last_error=a chain is too long",
        "rate=10Mbit",
    ] {
        assert!(text.contains(words), "no {words} in {text}");
    }
    // By one of its ends, and by its name.
    for name in ["a:eth0", "a:eth0--b:eth0"] {
        let link = json_of(&place, &["inspect", name, "--json"]);
        assert_eq!(link["link"]["forward"]["counters"]["out_frames"], 1000);
        assert_eq!(link["report"][0]["asked"]["rate"], 10_000_000);
    }
    let text = place.ok(&["inspect", "b:eth0"]);
    let late = text.lines().find(|line| line.starts_with("late, 99 %"));
    assert!(late.unwrap().contains("5 µs"), "{text}");
    place.ok(&["stop"]);
    place.assert_clean();
}

#[test]
fn a_wrong_name_is_answered_with_the_nearest_by_every_verb() {
    let place = place(&json!({}), 0, 0);
    place.launch();
    for (args, status, near) in [
        (&["inspect", "a:eth9"][..], 4, "a:eth0"),
        (&["inspect", "aa"], 4, "a"),
        (&["exec", "aa", "--", "true"], 125, "a"),
        (&["logs", "aa"], 4, "a"),
        (&["node", "stop", "bb"], 4, "b"),
        (&["link", "set", "b:eth1", "delay=1ms"], 4, "b:eth0"),
        (&["link", "down", "b:eth1"], 4, "b:eth0"),
        (&["link", "reset", "b:eth1"], 4, "b:eth0"),
        (&["link", "ls", "b:eth1"], 4, "b:eth0"),
        (&["ls", "tow"], 4, "two"),
        (&["stop", "tow"], 4, "two"),
        (&["inspect", "--lab", "tow"], 4, "two"),
        (&["report", "--lab", "tow"], 4, "two"),
        (&["events", "--lab", "tow"], 4, "two"),
        (&["graph", "--lab", "tow"], 4, "two"),
        (&["metrics", "--lab", "tow"], 4, "two"),
        (&["top", "--once", "--lab", "tow"], 4, "two"),
    ] {
        let said = place.fails(args, status);
        assert!(
            said.contains(&format!("did you mean {near}?")),
            "{args:?}: {said}"
        );
    }
    let said = place.fails(&["top", "--once", "--interval", "100"], 2);
    assert!(said.contains("0.2 to 60 seconds"), "{said}");
    let said = place.fails(&["report", "--jsno", "--json"], 2);
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(said["status"], 2);
    assert!(said["error"].as_str().unwrap().contains("--jsno"), "{said}");
    assert_eq!(
        serde_json::from_str::<Value>(&place.fails(&["inspect", "aa", "--json"], 4)).unwrap()["status"],
        4
    );
    place.ok(&["stop"]);
    place.assert_clean();
}

#[test]
fn a_report_says_whether_a_run_counts() {
    let place = place(&json!({"rate": "10Mbit"}), 1000, 5000);
    place.launch();
    let report = json_of(&place, &["report", "--json"]);
    // The machine may be busy with other tests, which is a reason of its own.
    assert_eq!(report["links"][0]["verdict"], "valid", "{report}");
    assert_eq!(report["links"][1]["verdict"], "idle");
    assert_eq!(report["links"][0]["delivered"]["delay_p99_ns"], 5000);
    count(&place, &json!({"rate": "10Mbit"}), 2000, 9_000_000);
    let report = json_of(&place, &["report", "--json"]);
    assert_eq!(
        (&report["verdict"], &report["links"][0]["verdict"]),
        (&"overloaded".into(), &"overloaded".into())
    );
    let text = place.ok(&["report"]);
    for words in [
        "not valid: this machine was overloaded",
        "1 % of the frames came more than 9 ms late",
        "10 Mbit/s",
    ] {
        assert!(text.contains(words), "no {words} in {text}");
    }
    assert_eq!(place.run(&["report", "--strict"]).status.code(), Some(1));
    // Frames that pass from now on are seen as a peak.
    let mut frames = 2000;
    place.wait_until("there is a peak", || {
        frames += 1000;
        count(&place, &json!({"rate": "10Mbit"}), frames, 5000);
        json_of(&place, &["report", "--json"])["links"][0]["delivered"]["peak_rate"].as_u64()
            > Some(0)
    });
    // Set to something else, it starts anew.
    count(&place, &json!({"rate": "20Mbit"}), frames, 5000);
    place.wait_until("the change is on the record", || {
        let link = json_of(&place, &["report", "--json"])["links"][0].clone();
        link["asked"]["rate"] == 20_000_000
            && link["delivered"]["frames"] == 0
            && link["since_ms"].as_u64() > Some(0)
    });
    place.ok(&["stop"]);
    place.assert_clean();
}

#[test]
fn prometheus_gets_its_numbers() {
    let place = place(&json!({"up": false}), 1000, 5000);
    place.launch();
    let text = place.ok(&["metrics"]);
    let forward = r#"lab="two",link="a:eth0--b:eth0",from="a:eth0",to="b:eth0""#;
    for line in [
        r#"hopyard_node_state{lab="two",node="a",kind="host",state="ready"} 1"#.to_owned(),
        format!("hopyard_link_up{{{forward}}} 0"),
        format!("hopyard_link_out_bytes_total{{{forward}}} 100000"),
        format!(r#"hopyard_link_dropped_frames_total{{{forward},reason="queue"}} 0"#),
        format!(r#"hopyard_link_lateness_seconds_bucket{{{forward},le="0.00001"}} 1000"#),
        format!("hopyard_link_lateness_seconds_sum{{{forward}}} 0.005"),
        format!("hopyard_link_lateness_seconds_count{{{forward}}} 1000"),
    ] {
        assert!(
            text.lines().any(|found| found == line),
            "no {line} in {text}"
        );
    }
    for name in [
        "hopyard_process_cpu_seconds_total",
        "hopyard_process_resident_memory_bytes",
    ] {
        assert!(
            text.contains(&format!(r#"{name}{{lab="two",process="node",node="a"}}"#)),
            "{text}"
        );
        assert!(
            text.contains(&format!(r#"{name}{{lab="two",process="switch"}}"#)),
            "{text}"
        );
    }
    let mut server = place
        .vmm(&["metrics", "--listen", "127.0.0.1:0"])
        .process_group(0)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(server.stderr.as_mut().unwrap())
        .read_line(&mut line)
        .unwrap();
    let address = line
        .strip_prefix("http://")
        .unwrap()
        .split('/')
        .next()
        .unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    stream
        .write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(
        answer.contains("text/plain; version=0.0.4") && answer.contains("hopyard_lab_info"),
        "{answer}"
    );
    kill(server.id(), Signal::TERM);
    assert!(server.wait().unwrap().success());
    place.ok(&["stop"]);
    place.assert_clean();
}

#[test]
fn a_running_lab_is_drawn() {
    let place = place(&json!({"delay": "20ms"}), 0, 0);
    place.launch();
    for (format, start) in [
        ("svg", "<svg"),
        ("mermaid", "---\ntitle"),
        ("dot", "graph \"two\""),
    ] {
        let picture = place.ok(&["graph", "--format", format]);
        assert!(picture.starts_with(start), "{picture}");
        for words in ["10.0.0.1/24", "delay=20ms"] {
            assert!(picture.contains(words), "no {words} in {picture}");
        }
    }
    place.ok(&["node", "stop", "b"]);
    assert!(place.ok(&["graph"]).contains("b (stopped)"));
    place.ok(&["stop"]);
    // What is on file needs no lab, and says what is on file.
    assert!(place.ok(&["graph", "lab.json"]).contains("rate=10Mbit"));
    place.topology("{");
    place.fails(&["graph", "lab.json"], 3);
    place.assert_clean();
}

#[test]
fn events_are_followed_to_the_end() {
    let place = place(&json!({}), 0, 0);
    place.launch();
    let mut json_reader = place
        .vmm(&["events", "--json"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut reader = place
        .vmm(&["events"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let first: Value = serde_json::from_str(&line_of(&mut json_reader)).unwrap();
    assert_eq!(first["type"], "snapshot");
    let mut text = String::new();
    let mut lines = BufReader::new(reader.stdout.take().unwrap());
    lines.read_line(&mut text).unwrap();
    place.ok(&["link", "down", "a"]);
    place.ok(&["node", "restart", "b"]);
    place.ok(&["stop"]);
    lines.read_to_string(&mut text).unwrap();
    for words in [
        "lab two is running, 2 of 2 nodes are ready",
        "a:eth0 to b:eth0 has lost its carrier",
        "b:eth0 to a:eth0 has lost its carrier",
        "a:eth0--b:eth0 is set to",
        "b is booting",
        "b is ready",
        "the lab is ending",
        "the lab is ended",
    ] {
        assert!(text.contains(words), "no {words} in {text}");
    }
    assert!(reader.wait().unwrap().success());
    let mut rest = String::new();
    json_reader
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut rest)
        .unwrap();
    let last: Value = serde_json::from_str(rest.lines().last().unwrap()).unwrap();
    assert_eq!(
        (&last["type"], &last["phase"]),
        (&"lab".into(), &"ended".into())
    );
    json_reader.wait().unwrap();
    place.assert_clean();
}

#[test]
fn top_prints_a_page() {
    let place = place(&json!({"loss": "1%"}), 5000, 5000);
    place.launch();
    let text = place.ok(&["top", "--once", "--interval", "0.2", "--sort", "cpu"]);
    for words in [
        "lab two, running",
        "2 of 2 nodes ready",
        "NODE",
        "LATE p99",
        "a:eth0",
        "loss=1%",
        "5 µs",
    ] {
        assert!(text.contains(words), "no {words} in {text}");
    }
    let page = json_of(&place, &["top", "--json", "--interval", "0.2"]);
    assert_eq!(page["nodes"][0]["name"], "a");
    assert!(page["nodes"][0]["cpu"].is_number(), "{page}");
    let said = place.fails(&["top"], 2);
    assert!(said.contains("--once"), "{said}");
    place.ok(&["stop"]);
    place.assert_clean();
}
