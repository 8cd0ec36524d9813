//! `vmm capture`, with this test in the place of the switch.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use crate::harness::{PATIENCE, Place, kill, text};

const FRAMES: &[u8] = b"\x0a\x0d\x0d\x0a these are frames \x00\xff\n and more";

/// A lab of two nodes and a link, whose switch is `listener`.
fn launched() -> (Place, UnixListener) {
    let place = Place::new();
    place.topology(
        r#"{"name": "two", "nodes": {"a": {"kind": "host"}, "b": {"kind": "host"}},
            "links": [{"endpoints": ["a:eth0", "b:eth0"]}]}"#,
    );
    place.launch();
    let listener = UnixListener::bind(place.run_folder().join("two/vswitch.sock")).unwrap();
    (place, listener)
}

/// Answers until a capture is asked for: the request, and its connection.
fn asked(listener: &UnixListener) -> (Value, UnixStream) {
    loop {
        let (stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line).unwrap();
        let request: Value = serde_json::from_str(&line).unwrap();
        match request["op"].as_str() {
            Some("stats" | "brief") => answer_stats(&stream),
            Some("capture") => return (request["capture"].clone(), stream),
            other => panic!("not expected: {other:?}"),
        }
    }
}

fn answer_stats(mut stream: &UnixStream) {
    let direction = r#"{"in_frames":0,"in_bytes":0,"out_frames":0,"out_bytes":0,"drops":{},"duplicated":0,"corrupted":0,
        "marked":0,"queued":0,"queued_max":0,"lateness":{"count":0,"p50":0,"p99":0,"max":0}}"#;
    let link = format!(
        r#"{{"name":"a:eth0--b:eth0","attributes":[{{}},{{}}],"directions":[{direction},{direction}]}}"#
    );
    let answer = format!(r#"{{"stats":{{"links":[{link}]}}}}"#).replace('\n', "");
    // Who asked may be gone.
    let _ = writeln!(stream, "{answer}");
}

fn start(place: &Place, args: &[&str]) -> Child {
    let mut command = place.vmm(&[&["capture"], args].concat());
    command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Whether the lab has asked for the end of the capture, or is gone.
fn ended(mut stream: &UnixStream) {
    match stream.read(&mut [0; 1]) {
        Ok(0) => {}
        // Gone, with frames it has not read.
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        other => panic!("no end of file but {other:?}"),
    }
}

#[test]
fn frames_pass_through_and_an_interrupt_completes_them() {
    let (place, listener) = launched();
    let child = start(&place, &["a", "--point", "before,drops", "--snaplen", "96"]);
    let (request, mut switch) = asked(&listener);
    assert_eq!(
        request.to_string(),
        r#"{"links":["a:eth0--b:eth0"],"points":["before","drops"],"snaplen":96}"#
    );
    switch.write_all(b"{\"capture\":\"started\"}\n").unwrap();
    switch.write_all(FRAMES).unwrap();
    let mut child = child;
    let mut seen = vec![0; FRAMES.len()];
    child
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut seen)
        .unwrap();
    assert_eq!(seen, FRAMES);
    kill(child.id(), Signal::INT);
    ended(&switch);
    // As `timeout -s INT` does: the process has its signal, then its group.
    kill(child.id(), Signal::INT);
    switch.write_all(b"statistics").unwrap();
    drop(switch);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(output.stdout, b"statistics");
}

#[test]
fn a_file_is_made_only_by_a_capture_that_starts() {
    let (place, listener) = launched();
    std::fs::write(place.path("out.pcapng"), "the last one").unwrap();
    let child = start(&place, &["a:eth0", "-w", "out.pcapng"]);
    let (_, mut switch) = asked(&listener);
    switch
        .write_all(b"{\"error\":\"the switch is ending\"}\n")
        .unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(
        text(&output).contains("the switch is ending"),
        "{}",
        text(&output)
    );
    assert_eq!(
        std::fs::read(place.path("out.pcapng")).unwrap(),
        b"the last one"
    );

    let child = start(&place, &["-w", "out.pcapng"]);
    let (request, mut switch) = asked(&listener);
    assert_eq!(request.to_string(), r#"{"points":["after"]}"#);
    switch.write_all(b"{\"capture\":\"started\"}\n").unwrap();
    switch.write_all(FRAMES).unwrap();
    switch.shutdown(Shutdown::Write).unwrap();
    drop(switch);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(std::fs::read(place.path("out.pcapng")).unwrap(), FRAMES);
}

#[test]
fn a_reader_that_pauses_holds_up_only_the_switchs_capture() {
    let (place, listener) = launched();
    let child = start(&place, &["a"]);
    let (_, mut switch) = asked(&listener);
    switch.write_all(b"{\"capture\":\"started\"}\n").unwrap();
    // Nobody reads: at some time nothing more is taken, instead of being kept somewhere.
    switch
        .set_write_timeout(Some(Duration::from_secs(1)))
        .unwrap();
    let chunk = vec![7; 1 << 20];
    let mut taken = 0;
    while let Ok(length) = switch.write(&chunk) {
        taken += length;
        assert!(taken < 64 << 20, "the lab keeps what nobody reads");
    }
    assert_eq!(place.ok(&["exec", "b", "--", "echo", "hi"]), "hi\n");
    // A client that is killed is gone for the switch, too.
    let mut child = child;
    child.kill().unwrap();
    child.wait().unwrap();
    ended(&switch);
    assert!(switch.write_all(&chunk).is_err());
    place.ok(&["stop"]);
    place.assert_clean();
}

#[test]
fn a_pipe_that_nobody_reads_ends_the_capture_without_a_frame() {
    let (place, listener) = launched();
    let mut child = start(&place, &["a"]);
    let (_, mut switch) = asked(&listener);
    switch.write_all(b"{\"capture\":\"started\"}\n").unwrap();
    drop(child.stdout.take());
    ended(&switch);
    assert!(child.wait().unwrap().success());
}

#[test]
fn what_makes_no_sense_is_refused_before_anything_starts() {
    let (place, listener) = launched();
    // As often as it is asked; the thread ends with the test.
    std::thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            // Whoever finds the answer before he has asked gets an error.
            let mut asked = String::new();
            if BufReader::new(&stream).read_line(&mut asked).is_ok() {
                answer_stats(&stream);
            }
        }
    });
    let said = place.fails(&["capture", "a:eth1"], 4);
    assert!(said.contains("did you mean a:eth0?"), "{said}");
    let said = place.fails(&["capture", "a", "--filter", "port nonsense"], 2);
    assert!(
        said.contains("the filter `port nonsense` is refused"),
        "{said}"
    );
    let said = place.fails(&["capture", "a", "--point", "middle"], 2);
    assert!(said.contains("before, after, drops"), "{said}");
    let said = place.fails(&["capture", "a", "--snaplen", "0"], 2);
    assert!(said.contains("1..=262144"), "{said}");
}
