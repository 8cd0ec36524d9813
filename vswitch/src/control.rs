//! The control socket: one JSON request per line, one JSON answer per line.
//!
//! `{"op":"stats"}` is answered with `{"stats":{…}}`, and so is `{"op":"brief"}`, without lateness; `{"op":"set","link":"…","set":{…}}`, with attributes as in the `set` of a
//! schedule, with `{"set":"done"}` as soon as they hold; `{"op":"reset","link":"…"}`, which makes a link what it was at the start, with
//! `{"reset":"done"}`; `{"op":"apply","config":"PATH"}` with `{"apply":"done"}` as soon as the switch is what the topology in this file says
//! (`"file"` names the file it was copied from, to which its relative paths are relative); `{"op":"capture",…}` with `{"capture":"started"}`, and then the connection
//! carries pcapng, from the line feed on, until the client closes its writing half; everything else with `{"error":"…"}`.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use jail::filter::Confine;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvFlags, recv};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use thiserror::Error;
use topology::model::{Patch, Topology};
use topology::{Files, Folder, Loaded, Report, Sources};
use tracing::warn;

use crate::capture::{self, Next, Session};
use crate::socket::Socket;
use crate::stats::Stats;

/// The most bytes a request may have; a topology has up to 64 MiB, and the files it copies from come on top.
const MAX_REQUEST: usize = 256 << 20;
/// The most bytes an answer may have, for a client.
const MAX_ANSWER: usize = 64 << 20;
/// How long a client is waited for that is turned away, and how long after an error the next one is accepted.
const PAUSE: Duration = Duration::from_millis(100);
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
    #[serde(skip_serializing_if = "Option::is_none")]
    capture: Option<capture::Request>,
    #[serde(skip_serializing_if = "Option::is_none")]
    config: Option<PathBuf>,
    /// The text of a topology, where the switch cannot see its file.
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<Sources>,
    /// What `set` copies from, where the switch cannot see it.
    #[serde(skip_serializing_if = "Option::is_none")]
    files: Option<Files>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Op {
    Stats,
    Brief,
    Set,
    Reset,
    Apply,
    Capture,
}

const STATS: Request = Request {
    op: Op::Stats,
    link: None,
    set: None,
    capture: None,
    config: None,
    text: None,
    files: None,
};
/// What a request that is none is answered with.
const REQUESTS: &str = r#"try {"op":"stats"}, {"op":"set","link":"a:eth0--b:eth0","set":{"rate":"10Mbit"}}, {"op":"reset","link":"a:eth0--b:eth0"}, {"op":"apply","config":"/path/lab.json"} or {"op":"capture","capture":{"links":["a:eth0--b:eth0"]}}"#;

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Answer {
    Stats(Stats),
    Set(Done),
    Reset(Done),
    Apply(Done),
    Capture(Started),
    Error(String),
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Done {
    Done,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Started {
    Started,
}

/// What makes the links of a lab, and answers for them. Errors are for people.
pub trait Fabric: Send + Sync + 'static {
    /// All counters.
    fn stats(&self) -> Stats;

    /// All counters but those that take much time to read: for those who ask often.
    fn brief(&self) -> Stats {
        self.stats()
    }

    /// Changes attributes of a link, first those from its first end to its second; they hold when this returns.
    fn change(&self, link: &str, set: &[Patch; 2]) -> Result<(), String>;

    /// Makes all attributes of a link what they were at the start.
    fn reset(&self, link: &str) -> Result<(), String>;

    /// Becomes what runs `topology`; nothing has changed if it fails.
    fn rewire(&self, topology: &Topology) -> Result<(), String>;

    /// Starts a capture.
    fn capture(self: &Arc<Self>, request: &capture::Request) -> Result<Session, String>;
}

/// The running server; ends when it is dropped.
#[derive(Debug)]
pub struct Server {
    socket: Arc<Socket>,
    ending: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Answers requests on `socket` for `fabric`.
    pub fn start<F: Fabric>(socket: Socket, fabric: Arc<F>, confine: Confine) -> io::Result<Self> {
        let socket = Arc::new(socket);
        let ending = Arc::new(AtomicBool::new(false));
        let thread = std::thread::Builder::new().name("control".into()).spawn({
            let (socket, ending) = (Arc::clone(&socket), Arc::clone(&ending));
            move || {
                // What it starts for its clients has the same.
                confine.this_thread();
                accept(&socket, &fabric, &ending);
            }
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

fn accept<F: Fabric>(socket: &Socket, fabric: &Arc<F>, ending: &AtomicBool) {
    let clients = Arc::new(AtomicUsize::new(0));
    // For the client who has to be told that there is no other.
    let mut spare = None;
    loop {
        if spare.is_none() {
            spare = socket.listener().try_clone().ok();
        }
        match socket.listener().accept() {
            Ok((stream, _)) => {
                if clients.fetch_add(1, Ordering::AcqRel) >= MAX_CLIENTS {
                    clients.fetch_sub(1, Ordering::AcqRel);
                    continue;
                }
                let seat = Seat(Arc::clone(&clients));
                let fabric = Arc::clone(fabric);
                let client = std::thread::Builder::new()
                    .name("control-client".into())
                    .stack_size(256 << 10);
                let started = client.spawn(move || {
                    let _seat = seat;
                    // A client that does not keep to the rules is left to itself.
                    let _ = serve(stream, &fabric);
                });
                if let Err(e) = started {
                    warn!("cannot serve a client of the control socket: {e}");
                }
            }
            Err(_) if ending.load(Ordering::Acquire) => return,
            Err(e) if is_without_descriptors(&e) && spare.take().is_some() => {
                if let Ok((stream, _)) = socket.listener().accept() {
                    // Who does not listen to that is left to itself.
                    let _ = turn_away(stream);
                }
            }
            Err(e) => {
                warn!("the control socket: {e}");
                std::thread::sleep(PAUSE);
            }
        }
    }
}

fn is_without_descriptors(error: &io::Error) -> bool {
    [libc::EMFILE, libc::ENFILE]
        .map(Some)
        .contains(&error.raw_os_error())
}

/// Tells a client that there is no descriptor for it.
fn turn_away(mut stream: UnixStream) -> io::Result<()> {
    let why =
        "the switch has no file descriptor left; raise its limit: prlimit --pid PID --nofile=N";
    stream.set_write_timeout(Some(PAUSE))?;
    send(&mut stream, &Answer::Error(why.to_owned()))?;
    // A client that still sends its request would find the stream closed, and not look for an answer.
    stream.set_read_timeout(Some(PAUSE))?;
    stream.read(&mut [0; 4096]).map(drop)
}

/// One of the [`MAX_CLIENTS`].
struct Seat(Arc<AtomicUsize>);

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

fn serve<F: Fabric>(mut stream: UnixStream, fabric: &Arc<F>) -> io::Result<()> {
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut pending = Vec::new();
    while let Some(line) = read_line(&mut stream, &mut pending)? {
        let answer = match serde_json::from_slice(&line) {
            Ok(Request {
                op: Op::Capture,
                link: None,
                set: None,
                capture: Some(request),
                config: None,
                text: None,
                files: None,
            }) => match fabric.capture(&request) {
                Ok(session) => return stream_capture(stream, session),
                Err(e) => Answer::Error(e),
            },
            Ok(request) => answer(&**fabric, request),
            Err(e) => Answer::Error(format!("not a request: {e}; {REQUESTS}")),
        };
        send(&mut stream, &answer)?;
    }
    Ok(())
}

/// Turns the rest of the connection into a capture.
fn stream_capture(mut stream: UnixStream, session: Session) -> io::Result<()> {
    send(&mut stream, &Answer::Capture(Started::Started))?;
    // A reader that takes its time is not gone; what it misses meanwhile is counted.
    stream.set_write_timeout(None)?;
    let out = stream.try_clone()?;
    session.run(out, |time| {
        if client_is_done(&stream, time) {
            Next::End
        } else {
            Next::Continue
        }
    })
}

/// Waits until the client has closed its writing half or is gone, at most for `time`.
fn client_is_done(mut stream: &UnixStream, time: Duration) -> bool {
    let mut fds = [PollFd::new(&stream, PollFlags::IN | PollFlags::RDHUP)];
    let time = Timespec {
        tv_sec: 0,
        tv_nsec: time.subsec_nanos().into(),
    };
    match poll(&mut fds, Some(&time)) {
        // A client has nothing to say now, and is not listened to.
        Ok(n) if n > 0 => !matches!(stream.read(&mut [0; 256]), Ok(1..)),
        _ => false,
    }
}

fn send(stream: &mut UnixStream, answer: &Answer) -> io::Result<()> {
    let mut bytes = serde_json::to_vec(answer)?;
    bytes.push(b'\n');
    stream.write_all(&bytes)
}

fn answer(fabric: &impl Fabric, request: Request) -> Answer {
    let Request {
        op,
        link,
        set,
        capture,
        config,
        text,
        files,
    } = request;
    let done = |answer: fn(Done) -> Answer, result: Result<(), String>| match result {
        Ok(()) => answer(Done::Done),
        Err(e) => Answer::Error(e),
    };
    match (op, link, set, capture, config, text) {
        (Op::Stats, None, None, None, None, None) => Answer::Stats(fabric.stats()),
        (Op::Brief, None, None, None, None, None) => Answer::Stats(fabric.brief()),
        (Op::Set, Some(link), Some(set), None, None, None) => {
            done(Answer::Set, change(fabric, &link, set.get(), files))
        }
        (Op::Reset, Some(link), None, None, None, None) => done(Answer::Reset, fabric.reset(&link)),
        (Op::Apply, None, None, None, Some(config), None) => {
            done(Answer::Apply, apply(fabric, Topology::load(&config)))
        }
        (Op::Apply, None, None, None, None, Some(sources)) => {
            done(Answer::Apply, apply(fabric, sources.load()))
        }
        _ => Answer::Error(format!("not a request; {REQUESTS}")),
    }
}

fn apply(fabric: &impl Fabric, loaded: Result<Loaded, Report>) -> Result<(), String> {
    let loaded = loaded.map_err(|report| report.to_string())?;
    fabric.rewire(&loaded.topology)
}

fn change(fabric: &impl Fabric, link: &str, set: &str, files: Option<Files>) -> Result<(), String> {
    let file = Path::new("set");
    let folder = match files {
        Some(files) => Folder::with_files(file, files),
        None => Folder::of(file),
    };
    let set = Patch::parse_in(set, file, &folder).map_err(|report| report.to_string())?;
    fabric.change(link, &set)
}

/// The next line, of bounded length and within bounded time; what follows it stays in `pending`.
fn read_line(stream: &mut UnixStream, pending: &mut Vec<u8>) -> io::Result<Option<Vec<u8>>> {
    let deadline = Instant::now() + PATIENCE;
    let mut chunk = vec![0; 64 << 10];
    let mut searched = 0;
    loop {
        if let Some(end) = pending[searched..].iter().position(|b| *b == b'\n') {
            let mut line: Vec<u8> = pending.drain(..=searched + end).collect();
            line.pop();
            return Ok(Some(line));
        }
        searched = pending.len();
        if searched > MAX_REQUEST {
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

/// Why a running switch does not do what it is asked for.
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
    /// It refuses.
    #[error("{0}")]
    Refused(String),
}

/// Asks the switch behind the control socket at `path` for its counters.
pub fn stats(path: &Path) -> Result<Stats, ClientError> {
    match ask(path, &STATS)?.0 {
        Answer::Stats(stats) => Ok(stats),
        other => Err(unexpected(path, other)),
    }
}

/// Asks the switch behind the control socket at `path` for a capture. What is read from the connection is pcapng; closing its
/// writing half ends the capture.
pub fn capture(path: &Path, request: capture::Request) -> Result<UnixStream, ClientError> {
    let request = Request {
        op: Op::Capture,
        capture: Some(request),
        ..STATS
    };
    match ask(path, &request)? {
        (Answer::Capture(Started::Started), stream) => {
            stream
                .set_read_timeout(None)
                .map_err(|e| no_answer(path, &e))?;
            Ok(stream)
        }
        (other, _) => Err(unexpected(path, other)),
    }
}

/// Sends a request; the answer, and the connection behind it.
fn ask(path: &Path, request: &Request) -> Result<(Answer, UnixStream), ClientError> {
    let unreachable = |e| ClientError::Unreachable(path.display().to_string(), e);
    let mut stream = UnixStream::connect(path).map_err(unreachable)?;
    let line = exchange(&mut stream, request).map_err(|e| no_answer(path, &e))?;
    let answer = serde_json::from_slice(&line).map_err(|e| no_answer(path, &e))?;
    Ok((answer, stream))
}

fn exchange(stream: &mut UnixStream, request: &Request) -> io::Result<Vec<u8>> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut request = serde_json::to_vec(request)?;
    request.push(b'\n');
    stream.write_all(&request)?;
    let mut line = Vec::new();
    // What follows the line is not to be read here.
    let mut peeked = [0; 4096];
    loop {
        let (n, _) = recv(&*stream, &mut peeked[..], RecvFlags::PEEK)?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let end = peeked[..n].iter().position(|byte| *byte == b'\n');
        let wanted = end.map_or(n, |end| end + 1);
        stream.read_exact(&mut peeked[..wanted])?;
        line.extend_from_slice(&peeked[..wanted]);
        if end.is_some() {
            return Ok(line);
        }
        if line.len() > MAX_ANSWER {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
}

fn no_answer(path: &Path, reason: &dyn std::fmt::Display) -> ClientError {
    ClientError::NoAnswer(path.display().to_string(), reason.to_string())
}

fn unexpected(path: &Path, answer: Answer) -> ClientError {
    match answer {
        Answer::Error(e) => ClientError::Refused(e),
        _ => no_answer(path, &"it answers something else"),
    }
}
