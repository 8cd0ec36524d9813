//! The control socket: one JSON request per line, one JSON answer per line.
//!
//! `{"op":"stats"}` is answered with `{"stats":{…}}`; `{"op":"set","link":"…","set":{…}}`, with attributes as in the `set` of a
//! schedule, with `{"set":"done"}` as soon as they hold; everything else with `{"error":"…"}`.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use thiserror::Error;
use topology::model::Patch;
use tracing::warn;

use crate::socket::Socket;
use crate::stats::Stats;
use crate::switch::View;

/// The most bytes a request may have.
const MAX_REQUEST: usize = 4096;
/// The most bytes an answer may have, for a client.
const MAX_ANSWER: u64 = 64 << 20;
/// How long a client may take for a request, or to read an answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Clients served at a time.
const MAX_CLIENTS: usize = 16;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    op: Op,
    #[serde(skip_serializing_if = "Option::is_none")]
    link: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    set: Option<Box<RawValue>>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Op {
    Stats,
    Set,
}

const STATS: Request = Request {
    op: Op::Stats,
    link: None,
    set: None,
};
/// What a request that is none is answered with.
const REQUESTS: &str =
    r#"try {"op":"stats"} or {"op":"set","link":"a:eth0--b:eth0","set":{"rate":"10Mbit"}}"#;

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Answer {
    Stats(Stats),
    Set(Done),
    Error(String),
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Done {
    Done,
}

/// The running server; ends when it is dropped.
#[derive(Debug)]
pub struct Server {
    socket: Arc<Socket>,
    ending: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Answers requests on `socket` with what `view` shows.
    pub fn start(socket: Socket, view: Arc<View>) -> io::Result<Self> {
        let socket = Arc::new(socket);
        let ending = Arc::new(AtomicBool::new(false));
        let thread = std::thread::Builder::new().name("control".into()).spawn({
            let (socket, ending) = (Arc::clone(&socket), Arc::clone(&ending));
            move || accept(&socket, &view, &ending)
        })?;
        Ok(Self {
            socket,
            ending,
            thread: Some(thread),
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::Release);
        self.socket.close();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn accept(socket: &Socket, view: &Arc<View>, ending: &AtomicBool) {
    let clients = Arc::new(AtomicUsize::new(0));
    loop {
        match socket.listener().accept() {
            Ok((stream, _)) => {
                if clients.fetch_add(1, Ordering::AcqRel) >= MAX_CLIENTS {
                    clients.fetch_sub(1, Ordering::AcqRel);
                    continue;
                }
                let seat = Seat(Arc::clone(&clients));
                let view = Arc::clone(view);
                let client = std::thread::Builder::new()
                    .name("control-client".into())
                    .stack_size(256 << 10);
                let started = client.spawn(move || {
                    let _seat = seat;
                    // A client that does not keep to the rules is left to itself.
                    let _ = serve(stream, &view);
                });
                if let Err(e) = started {
                    warn!("cannot serve a client of the control socket: {e}");
                }
            }
            Err(_) if ending.load(Ordering::Acquire) => return,
            Err(e) => {
                warn!("the control socket: {e}");
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    }
}

/// One of the [`MAX_CLIENTS`].
struct Seat(Arc<AtomicUsize>);

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

fn serve(mut stream: UnixStream, view: &View) -> io::Result<()> {
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut pending = Vec::new();
    while let Some(line) = read_line(&mut stream, &mut pending)? {
        let answer = match serde_json::from_slice(&line) {
            Ok(request) => answer(view, request),
            Err(e) => Answer::Error(format!("not a request: {e}; {REQUESTS}")),
        };
        let mut bytes = serde_json::to_vec(&answer)?;
        bytes.push(b'\n');
        stream.write_all(&bytes)?;
    }
    Ok(())
}

fn answer(view: &View, request: Request) -> Answer {
    match request {
        Request {
            op: Op::Stats,
            link: None,
            set: None,
        } => Answer::Stats(view.stats()),
        Request {
            op: Op::Set,
            link: Some(link),
            set: Some(set),
        } => match change(view, &link, set.get()) {
            Ok(()) => Answer::Set(Done::Done),
            Err(e) => Answer::Error(e),
        },
        _ => Answer::Error(format!("not a request; {REQUESTS}")),
    }
}

fn change(view: &View, link: &str, set: &str) -> Result<(), String> {
    let set = Patch::parse(set, Path::new("set")).map_err(|report| report.to_string())?;
    view.change(link, set).map_err(|e| e.to_string())
}

/// The next line, of bounded length and within bounded time; what follows it stays in `pending`.
fn read_line(stream: &mut UnixStream, pending: &mut Vec<u8>) -> io::Result<Option<Vec<u8>>> {
    let deadline = Instant::now() + PATIENCE;
    let mut chunk = [0; 1024];
    loop {
        if let Some(end) = pending.iter().position(|b| *b == b'\n') {
            let mut line: Vec<u8> = pending.drain(..=end).collect();
            line.pop();
            return Ok(Some(line));
        }
        if pending.len() > MAX_REQUEST {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut chunk)? {
            0 => return Ok(None),
            n => pending.extend_from_slice(&chunk[..n]),
        }
    }
}

/// Why the counters of a running switch cannot be had.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Nobody answers.
    #[error(
        "cannot reach a switch at {0}: {1}; is it running, and is this the path given to --control?"
    )]
    Unreachable(String, io::Error),
    /// The answer does not come or is none.
    #[error("no usable answer from {0}: {1}")]
    NoAnswer(String, String),
}

/// Asks the switch behind the control socket at `path` for its counters.
pub fn stats(path: &Path) -> Result<Stats, ClientError> {
    let name = path.display().to_string();
    let lost = |e: &dyn std::fmt::Display| ClientError::NoAnswer(name.clone(), e.to_string());
    let mut stream =
        UnixStream::connect(path).map_err(|e| ClientError::Unreachable(name.clone(), e))?;
    stream
        .set_read_timeout(Some(PATIENCE))
        .map_err(|e| lost(&e))?;
    let mut request = serde_json::to_vec(&STATS).map_err(|e| lost(&e))?;
    request.push(b'\n');
    stream.write_all(&request).map_err(|e| lost(&e))?;
    stream
        .shutdown(std::net::Shutdown::Write)
        .map_err(|e| lost(&e))?;
    let mut answer = Vec::new();
    stream
        .take(MAX_ANSWER)
        .read_to_end(&mut answer)
        .map_err(|e| lost(&e))?;
    match serde_json::from_slice(&answer).map_err(|e| lost(&e))? {
        Answer::Stats(stats) => Ok(stats),
        Answer::Error(e) => Err(lost(&e)),
        Answer::Set(_) => Err(lost(&"it answers something else")),
    }
}
