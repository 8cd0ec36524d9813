//! A client of a lab's API: bytes of any content, or requests that are made of them.

use arbitrary::{Arbitrary, Unstructured};

use crate::all;

/// Where there is something; `{}` is any text.
const PATHS: [&str; 25] = [
    "/v1/lab",
    "/v1/lab/stop",
    "/v1/nodes",
    "/v1/nodes/a",
    "/v1/nodes/{}",
    "/v1/nodes/a/order",
    "/v1/nodes/b/order",
    "/v1/nodes/a/keep",
    "/v1/nodes/a/log",
    "/v1/nodes/a/exec",
    "/v1/nodes/b/exec",
    "/v1/nodes/a/console",
    "/v1/checks",
    "/v1/links",
    "/v1/links/a:eth0--b:eth0",
    "/v1/links/{}",
    "/v1/links/a:eth0--b:eth0/reset",
    "/v1/captures",
    "/v1/captures/{}",
    "/v1/usage",
    "/v1/report",
    "/v1/topology",
    "/v1/topology/plan",
    "/v1/events",
    "{}",
];
const METHODS: [&str; 6] = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];
/// Of which the nonce of RFC 6455, section 1.3, is the best known.
const UPGRADE: &str = "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

/// One thing a client says.
#[derive(Arbitrary)]
enum Said<'a> {
    /// Whatever this is.
    Bytes(&'a [u8]),
    /// A request with a body.
    Request {
        method: u8,
        path: u8,
        text: &'a str,
        query: &'a str,
        body: &'a [u8],
    },
    /// The beginning of a WebSocket.
    Upgrade { path: u8, text: &'a str },
    /// A message on it: what kind, and whether it is the last part.
    Message { kind: u8, payload: &'a [u8] },
}

/// Runs one input: the first byte decides whether the rest is what a client says or what it is made of.
pub fn run(bytes: &[u8]) {
    let Some((first, rest)) = bytes.split_first() else {
        return;
    };
    let mut said = Vec::new();
    if first % 8 == 0 {
        said.extend_from_slice(rest);
    } else {
        for next in all::<Said<'_>>(&mut Unstructured::new(rest)) {
            next.say(&mut said);
        }
    }
    let answer = vmm::fuzzing::answer(&said);
    // Of the version that was asked in, and no mistake of the lab's own.
    let answer = String::from_utf8_lossy(&answer);
    let (version, rest) = answer.split_once(' ').unwrap_or_default();
    assert!(
        answer.is_empty() || version.starts_with("HTTP/1."),
        "{answer}"
    );
    assert!(!rest.starts_with("500"), "{answer}");
}

impl Said<'_> {
    fn say(&self, to: &mut Vec<u8>) {
        match self {
            Self::Bytes(bytes) => to.extend_from_slice(bytes),
            Self::Request {
                method,
                path,
                text,
                query,
                body,
            } => {
                let method = METHODS[usize::from(*method) % METHODS.len()];
                let mut path = path_of(*path, text);
                if !query.is_empty() {
                    path = format!("{path}?{}", escaped(query));
                }
                let head = format!(
                    "{method} {path} HTTP/1.1\r\nhost: lab\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
                    body.len()
                );
                to.extend_from_slice(head.as_bytes());
                to.extend_from_slice(body);
            }
            Self::Upgrade { path, text } => {
                let path = path_of(*path, text);
                let head = format!("GET {path} HTTP/1.1\r\nhost: lab\r\n{UPGRADE}\r\n");
                to.extend_from_slice(head.as_bytes());
            }
            // RFC 6455, section 5.2: masked, with a key of zeros.
            Self::Message { kind, payload } => {
                let payload = &payload[..payload.len().min(125)];
                to.extend_from_slice(&[*kind, 0x80 | payload.len() as u8, 0, 0, 0, 0]);
                to.extend_from_slice(payload);
            }
        }
    }
}

fn path_of(path: u8, text: &str) -> String {
    PATHS[usize::from(path) % PATHS.len()].replace("{}", &escaped(text))
}

/// Without what would end the path, mostly escaped.
fn escaped(text: &str) -> String {
    let characters = text.bytes().map(|byte| match byte {
        b'a'..=b'z'
        | b'A'..=b'Z'
        | b'0'..=b'9'
        | b'/'
        | b':'
        | b'.'
        | b'='
        | b'&'
        | b'%'
        | b'-' => char::from(byte).to_string(),
        byte => format!("%{byte:02X}"),
    });
    characters.collect()
}
