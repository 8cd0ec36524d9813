//! The API as any program may use it, not only the command line.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde_json::Value;

use crate::harness::Place;

/// Sends `request` and reads until the lab closes: the status, the head and the body.
fn send(place: &Place, request: &str) -> (u16, String, String) {
    let mut stream = UnixStream::connect(place.run_folder().join("two/control.sock")).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    // A lab that has seen enough closes before it was sent all.
    let _ = stream.write_all(request.as_bytes());
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, head.to_ascii_lowercase(), body.to_owned())
}

fn ask(place: &Place, line: &str, body: &str) -> (u16, String, String) {
    let length = body.len();
    let json = "Content-Type: application/json";
    send(
        place,
        &format!(
            "{line} HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n{json}\r\nContent-Length: {length}\r\n\r\n{body}"
        ),
    )
}

#[test]
fn every_error_is_a_problem_document() {
    let place = Place::new();
    place.launch();
    let huge = format!("\"{}\"", "x".repeat(2 << 20));
    for (line, body, status, words) in [
        ("GET /v1/nodes/aa", "", 404, "did you mean a?"),
        (
            "GET /v1/nodes/a/nothing",
            "",
            404,
            "nothing at /v1/nodes/a/nothing",
        ),
        ("GET /", "", 404, "nothing at /"),
        (
            "DELETE /v1/links/x",
            "",
            405,
            "DELETE /v1/links/x is not possible",
        ),
        ("POST /v1/nodes/a/order", "{", 400, "EOF while parsing"),
        (
            "POST /v1/nodes/a/order",
            "\"dance\"",
            422,
            "unknown variant `dance`",
        ),
        (
            "POST /v1/nodes/a/order",
            &huge,
            413,
            "length limit exceeded",
        ),
        ("GET /v1/nodes/a/log?follow=perhaps", "", 400, "follow"),
        ("GET /v1/nodes/%FF", "", 400, "UTF-8"),
        ("GET /v1/nodes/a/exec", "", 400, "onnection"),
        ("GET /v1/links", "", 502, "the switch does not answer"),
    ] {
        let (got, head, text) = ask(&place, line, body);
        assert_eq!(got, status, "{line}: {text}");
        assert!(
            head.contains("content-type: application/problem+json"),
            "{line}: {head}"
        );
        let problem: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(problem["status"], status);
        assert!(!problem["title"].as_str().unwrap().is_empty());
        assert!(text.contains(words), "{line}: {text}");
    }
    let (_, head, _) = ask(&place, "DELETE /v1/lab", "");
    assert!(head.contains("allow: get,head"), "{head}");
    // What is no HTTP never gets as far as that.
    let (status, _, _) = send(
        &place,
        "GET /v1/lab HTTP/1.1\r\nHost: lab\r\nContent-Length: x\r\n\r\n",
    );
    assert_eq!(status, 400);
    let head = "X-Long: x\r\n".repeat(20_000);
    let (status, _, _) = send(
        &place,
        &format!("GET /v1/lab HTTP/1.1\r\nHost: lab\r\n{head}\r\n"),
    );
    assert_eq!(status, 431);
    place.ok(&["exec", "a", "--", "true"]);
    place.ok(&["stop"]);
    place.assert_clean();
}

#[test]
fn a_lab_describes_its_api() {
    let place = Place::new();
    place.launch();
    let (status, _, served) = ask(&place, "GET /v1/openapi.json", "");
    let served: Value = serde_json::from_str(&served).unwrap();
    assert_eq!((status, &served["openapi"]), (200, &"3.1.0".into()));
    let printed: Value = serde_json::from_str(&place.ok(&["openapi"])).unwrap();
    assert_eq!(served, printed);
    let socket = place.run_folder().join("two/control.sock");
    let mode = std::fs::metadata(socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    place.ok(&["stop"]);
    place.assert_clean();
}

#[test]
fn a_stranger_is_turned_away_even_where_files_let_him_in() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("not tested: only root can be someone else for a moment");
        return;
    }
    let place = Place::new();
    place.launch();
    let open = |path: &std::path::Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    let folder = place.run_folder().join("two");
    for folder in [&place.path(""), &place.run_folder(), &folder] {
        open(folder, 0o755);
    }
    open(&folder.join("control.sock"), 0o666);
    let (status, problem) = std::thread::scope(|scope| {
        let stranger = scope.spawn(|| {
            let nobody = rustix::process::Uid::from_raw(65534);
            // Of this thread alone.
            rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
            let (status, _, problem) = ask(&place, "POST /v1/lab/stop", "");
            (status, problem)
        });
        stranger.join().unwrap()
    });
    assert_eq!(status, 403, "{problem}");
    assert!(
        problem.contains("belongs to user 0, not to user 65534"),
        "{problem}"
    );
    place.ok(&["exec", "a", "--", "true"]);
    place.ok(&["stop"]);
    place.assert_clean();
}
