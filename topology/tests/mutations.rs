//! Whatever is done to a file, reading it ends in a topology or a report that renders.

use std::path::Path;

use proptest::prelude::*;
use proptest::sample::{Index, select};
use topology::model::Topology;

const FULL: &str = include_str!("full.json");

/// Pieces that mean something to the format.
const PIECES: [&str; 24] = [
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "\"",
    "null",
    "true",
    "0",
    "-1",
    "1e400",
    "\"1Mbit\"",
    "\"50packets\"",
    "\"kind\"",
    "\"switch\"",
    "\"hub\"",
    "\"a:eth0\"",
    "\"sw\"",
    "\"10.0.0.1/24\"",
    "\"\"",
    "\\u0000",
    "é",
    "18446744073709551616",
];

fn read(text: &str) {
    match Topology::parse(text, Path::new("full.json")) {
        Ok(loaded) => {
            let _ = loaded.warnings.render(true);
        }
        Err(report) => {
            assert!(!report.is_empty());
            assert!(!report.render(true).is_empty());
            for finding in report.findings() {
                assert!(finding.line.is_some());
            }
        }
    }
}

#[test]
fn the_file_that_is_mutated_is_right() {
    let loaded =
        Topology::parse(FULL, Path::new("full.json")).unwrap_or_else(|report| panic!("{report}"));
    assert!(loaded.warnings.is_empty(), "{}", loaded.warnings);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn pieces_put_in_or_in_place(
        edits in prop::collection::vec((any::<Index>(), 0usize..12, select(&PIECES[..])), 1..4)
    ) {
        let mut text = FULL.to_owned();
        for (at, length, piece) in edits {
            let mut start = at.index(text.len());
            let mut end = (start + length).min(text.len());
            while !text.is_char_boundary(start) { start -= 1; }
            while !text.is_char_boundary(end) { end -= 1; }
            text.replace_range(start.min(end)..end, piece);
        }
        read(&text);
    }

    /// Values swapped for each other keep the syntax, so that the later stages get their share.
    #[test]
    fn values_in_each_others_places(swaps in prop::collection::vec((any::<Index>(), any::<Index>()), 1..5)) {
        let mut document: serde_json::Value = serde_json::from_str(FULL).unwrap();
        for (from, to) in swaps {
            let mut places = Vec::new();
            pointers(&document, String::new(), &mut places);
            let value = document.pointer(from.get(&places).as_str()).cloned().unwrap();
            *document.pointer_mut(to.get(&places).as_str()).unwrap() = value;
        }
        read(&document.to_string());
    }

    #[test]
    fn values_taken_out(gone in prop::collection::vec(any::<Index>(), 1..6)) {
        let mut document: serde_json::Value = serde_json::from_str(FULL).unwrap();
        for index in gone {
            let mut places = Vec::new();
            pointers(&document, String::new(), &mut places);
            let place = index.get(&places).clone();
            let Some((parent, last)) = place.rsplit_once('/') else { continue };
            match document.pointer_mut(parent) {
                Some(serde_json::Value::Object(members)) => {
                    members.remove(&last.replace("~1", "/"));
                }
                Some(serde_json::Value::Array(items)) => {
                    items.remove(last.parse().unwrap());
                }
                _ => {}
            }
        }
        read(&document.to_string());
    }
}

fn pointers(value: &serde_json::Value, at: String, out: &mut Vec<String>) {
    match value {
        serde_json::Value::Object(members) => {
            for (key, member) in members {
                pointers(member, format!("{at}/{}", key.replace('/', "~1")), out);
            }
        }
        serde_json::Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                pointers(item, format!("{at}/{index}"), out);
            }
        }
        _ => {}
    }
    out.push(at);
}
