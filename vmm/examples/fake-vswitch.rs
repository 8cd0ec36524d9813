//! A test double for `vswitch`: listens on its control socket and answers with what a test has put into `stats.json`, in the
//! folder that `FAKE_STATS` names. An example only because those are built for tests and not installed.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use serde_json::{Value, json};

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let after = |name: &str| {
        let at = args
            .iter()
            .position(|arg| arg == name)
            .unwrap_or_else(|| panic!("no {name}"));
        args[at + 1].clone()
    };
    let listener = UnixListener::bind(after("--control")).unwrap();
    println!("{}", json!({"event": "ready"}));
    for client in listener.incoming() {
        std::thread::spawn(|| serve(client.unwrap()));
    }
}

fn serve(mut client: UnixStream) {
    let mut lines = BufReader::new(client.try_clone().unwrap()).lines();
    while let Some(Ok(line)) = lines.next() {
        let answer = answer(&serde_json::from_str(&line).unwrap());
        if writeln!(client, "{answer}").is_err() {
            return;
        }
    }
}

fn answer(request: &Value) -> Value {
    match request["op"].as_str() {
        Some("stats" | "brief") => {
            let folder = PathBuf::from(std::env::var_os("FAKE_STATS").expect("FAKE_STATS is set"));
            let text = std::fs::read_to_string(folder.join("stats.json")).unwrap();
            json!({"stats": serde_json::from_str::<Value>(&text).unwrap()})
        }
        Some("set") => {
            if let Some(up) = request["set"]["up"].as_bool() {
                for direction in 0..2 {
                    println!(
                        "{}",
                        json!({"event": "carrier", "link": request["link"], "direction": direction, "up": up})
                    );
                }
            }
            json!({"set": "done"})
        }
        Some("reset") => json!({"reset": "done"}),
        _ => json!({"error": "not a request"}),
    }
}
