//! What the switch tells the one who started it: a JSON object a line on standard output.

use std::io::{self, Write};

use serde::Serialize;

/// Something that has happened.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event<'a> {
    /// All sockets listen.
    Ready,
    /// The carrier of one direction of a link has come or gone.
    Carrier {
        /// The link's name.
        link: &'a str,
        /// 0 is from its first end to its second.
        direction: usize,
        /// Whether there is a carrier now.
        up: bool,
    },
}

/// Tells it. A reader that has gone needs to know nothing.
pub fn tell(event: &Event<'_>) {
    if let Ok(mut line) = serde_json::to_vec(event) {
        line.push(b'\n');
        let mut out = io::stdout().lock();
        let _ = out.write_all(&line).and_then(|()| out.flush());
    }
}
