//! Serves the API on the lab's control socket: who may talk, and for how long.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::pin::pin;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustix::process::{Uid, geteuid};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::types::{Phase, Problem};

/// Bytes of the longest body of a request that is taken as a whole.
pub const MAX_BODY: usize = 1 << 20;
/// How long a client may take to send the head of a request.
const HEAD_PATIENCE: Duration = Duration::from_secs(30);
/// How long a client may stay that is refused whatever it asks for: its descriptor may be the last.
const REFUSAL_PATIENCE: Duration = Duration::from_millis(200);
/// How long a request may take, body included, whose answer is no stream.
const PATIENCE: Duration = Duration::from_mins(1);
/// Bytes of the head of a request.
const MAX_HEAD: usize = 64 << 10;
/// How long to wait when a connection cannot be had for another reason than descriptors.
const PAUSE: Duration = Duration::from_millis(100);
/// Bytes of an error text that axum writes.
const MAX_TEXT: usize = 64 << 10;

/// Serves `router` until the lab has ended, and what clients have asked for by then to its end.
pub async fn serve(listener: UnixListener, router: Router, phases: watch::Receiver<Phase>) {
    let server = protocol();
    let mut lab_ended = pin!(ended(phases.clone()));
    let mut open = JoinSet::new();
    let mut spare = Spare::new();
    loop {
        spare.keep();
        let accepted = tokio::select! {
            () = &mut lab_ended => break,
            Some(_) = open.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        let (stream, problem) = match accepted {
            Ok((stream, _)) => {
                let problem = check_peer(&stream).err();
                (stream, problem)
            }
            Err(error) if error.kind() == ErrorKind::ConnectionAborted => continue,
            Err(error) => {
                let Some(stream) = spare.accept(&listener, &error) else {
                    tokio::time::sleep(PAUSE).await;
                    continue;
                };
                (stream, Some(no_descriptors()))
            }
        };
        let (router, patience) = match problem {
            None => (router.clone(), None),
            Some(problem) => {
                let refusal = Router::new().fallback(async || problem);
                (refusal, Some(REFUSAL_PATIENCE))
            }
        };
        let connection = server
            .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
            .with_upgrades();
        let lab_ended = ended(phases.clone());
        open.spawn(async move {
            let mut connection = pin!(connection);
            if let Some(patience) = patience {
                let _ = tokio::time::timeout(patience, connection).await;
                return;
            }
            // That a client has gone concerns nobody but the client.
            tokio::select! {
                _ = &mut connection => return,
                () = lab_ended => connection.as_mut().graceful_shutdown(),
            }
            let _ = connection.await;
        });
    }
    drop(listener);
    open.join_all().await;
}

/// HTTP/1.1 as it is served here.
fn protocol() -> http1::Builder {
    let mut server = http1::Builder::new();
    server
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_PATIENCE)
        .max_buf_size(MAX_HEAD);
    server
}

/// Serves one client that is no socket.
#[cfg(feature = "fuzzing")]
pub async fn converse(client: tokio::io::DuplexStream, router: Router) {
    let connection = protocol()
        .serve_connection(TokioIo::new(client), TowerToHyperService::new(router))
        .with_upgrades();
    // That a client breaks off, or the protocol, concerns nobody but the client.
    let _ = connection.await;
}

/// A descriptor that is kept for the client who has to be told that there is none left.
struct Spare(Option<File>);

impl Spare {
    fn new() -> Self {
        Self(None)
    }

    /// Has one again, if that can be.
    fn keep(&mut self) {
        if self.0.is_none() {
            self.0 = File::open("/dev/null").ok();
        }
    }

    /// Takes the connection that could not be accepted because of `error`, in place of the spare one.
    fn accept(&mut self, listener: &UnixListener, error: &io::Error) -> Option<UnixStream> {
        let none_left = [libc::EMFILE, libc::ENFILE].map(Some);
        if !none_left.contains(&error.raw_os_error()) || self.0.take().is_none() {
            return None;
        }
        let accepted = listener.accept().now_or_never()?;
        accepted.ok().map(|(stream, _)| stream)
    }
}

fn no_descriptors() -> Problem {
    let none_left = "the lab process has no file descriptor left";
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, none_left).with_help(format!(
        "end some of what it does for others, or raise its limit: prlimit --pid {} --nofile=N",
        std::process::id()
    ))
}

async fn ended(mut phases: watch::Receiver<Phase>) {
    let _ = phases.wait_for(|&phase| phase == Phase::Ended).await;
}

/// The socket is the user's alone, but whoever has it open already, or got it passed, is not kept out by that.
fn check_peer(stream: &UnixStream) -> Result<(), Problem> {
    let refused = |why| Problem::new(StatusCode::FORBIDDEN, why);
    let peer = stream
        .peer_cred()
        .map_err(|error| refused(format!("cannot tell who asks: {error}")))?;
    if may_talk(Uid::from_raw(peer.uid()), geteuid()) {
        return Ok(());
    }
    Err(refused(format!(
        "this lab belongs to user {}, not to user {}",
        geteuid().as_raw(),
        peer.uid()
    )))
}

fn may_talk(peer: Uid, own: Uid) -> bool {
    peer == own || peer.is_root()
}

/// Bounds the time of a request whose answer is no stream.
pub async fn in_time(request: Request, next: Next) -> Response {
    let answer = tokio::time::timeout(PATIENCE, next.run(request)).await;
    answer.unwrap_or_else(|_| {
        let late = format!("not done within {} s", PATIENCE.as_secs());
        Problem::new(StatusCode::GATEWAY_TIMEOUT, late)
            .with_help("it may still come to pass; look before you ask again")
            .into_response()
    })
}

/// Makes a problem document of every error that is none yet: bodies and parameters that do not parse, methods that are
/// not there.
pub async fn explain(request: Request, next: Next) -> Response {
    let asked = format!("{} {}", request.method(), request.uri().path());
    let response = next.run(request).await;
    let status = response.status();
    let kind = response.headers().get(header::CONTENT_TYPE);
    if !(status.is_client_error() || status.is_server_error())
        || kind.is_some_and(|kind| kind == Problem::MEDIA_TYPE)
    {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let text = axum::body::to_bytes(body, MAX_TEXT).await;
    let text = String::from_utf8_lossy(&text.unwrap_or_default()).into_owned();
    let problem = match status {
        StatusCode::METHOD_NOT_ALLOWED => Problem::new(status, format!("{asked} is not possible"))
            .with_help("docs/api.md lists what is"),
        _ if text.is_empty() => Problem::new(status, format!("{asked} was refused")),
        _ => Problem::new(status, text),
    };
    let (told, body) = problem.into_response().into_parts();
    parts.headers.remove(header::CONTENT_LENGTH);
    parts.headers.extend(told.headers);
    Response::from_parts(parts, body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_owner_and_root_may_talk() {
        let user = Uid::from_raw(1000);
        assert!(may_talk(user, user));
        assert!(may_talk(Uid::ROOT, user));
        assert!(!may_talk(Uid::from_raw(1001), user));
        assert!(!may_talk(user, Uid::ROOT));
    }
}
