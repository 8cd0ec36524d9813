//! Captures: frames of links as pcapng, passed on from the switch as it comes.
//!
//! Nothing is kept here: what a client does not take stays in the switch, which then counts the frames it had no room for.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State as Shared};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use tokio::io::{AsyncReadExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use super::Api;
use super::types::{CaptureRequest, Problem};

/// Bytes passed on at once.
const CHUNK: usize = 64 << 10;

/// The captures that run, so that they can be ended.
#[derive(Debug, Clone, Default)]
pub struct Captures(Arc<Mutex<Running>>);

#[derive(Debug, Default)]
struct Running {
    last: u64,
    /// Whoever closes this half asks the switch to complete the capture.
    ends: HashMap<u64, OwnedWriteHalf>,
}

impl Captures {
    fn running(&self) -> MutexGuard<'_, Running> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, end: OwnedWriteHalf) -> Entry {
        let mut running = self.running();
        running.last += 1;
        let number = running.last;
        running.ends.insert(number, end);
        Entry {
            captures: self.clone(),
            number,
        }
    }

    /// Whether there was one.
    fn end(&self, number: u64) -> bool {
        self.running().ends.remove(&number).is_some()
    }
}

/// A capture for as long as its client is there.
struct Entry {
    captures: Captures,
    number: u64,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.captures.end(self.number);
    }
}

/// Capture frames of links
///
/// The frames are the body of the answer, as pcapng (docs/capture.md). Its `location` is what to delete to have the capture completed and
/// ended; whoever just goes away gets no statistics.
#[utoipa::path(
    post, path = "/v1/captures", tag = "links",
    request_body = CaptureRequest,
    responses(
        (status = 200, description = "Frames, as they come", content_type = "application/x-pcapng", headers(("location" = String, description = "The capture"))),
        (status = 404, description = "There is no such link"),
        (status = 422, description = "The switch refuses it"),
    ),
)]
pub async fn start(
    Shared(api): Shared<Api>,
    Json(request): Json<CaptureRequest>,
) -> Result<Response, Problem> {
    let capture = api.links.capture(&request).await;
    let (frames, end) = capture.map_err(|error| api.problem(error))?;
    let entry = api.captures.add(end);
    let location = format!("/v1/captures/{}", entry.number);
    let body = Body::from_stream(stream::unfold(
        (frames, entry),
        async |(mut frames, entry)| {
            let chunk = read(&mut frames).await.transpose()?;
            Some((chunk, (frames, entry)))
        },
    ));
    let kind = "application/x-pcapng".to_owned();
    Ok((
        [(header::CONTENT_TYPE, kind), (header::LOCATION, location)],
        body,
    )
        .into_response())
}

async fn read(frames: &mut BufReader<OwnedReadHalf>) -> io::Result<Option<Vec<u8>>> {
    let mut chunk = vec![0; CHUNK];
    let length = frames.read(&mut chunk).await?;
    chunk.truncate(length);
    Ok((length > 0).then_some(chunk))
}

/// Complete a capture and end it
///
/// What it has so far and its statistics end the body of the answer that carries it.
#[utoipa::path(
    delete, path = "/v1/captures/{capture}", tag = "links",
    params(("capture" = u64, description = "Its number")),
    responses((status = 204, description = "It is ending"), (status = 404, description = "There is no such capture")),
)]
pub async fn end(Shared(api): Shared<Api>, Path(number): Path<u64>) -> Result<StatusCode, Problem> {
    if api.captures.end(number) {
        return Ok(StatusCode::NO_CONTENT);
    }
    let gone = format!("there is no capture {number}");
    Err(Problem::new(StatusCode::NOT_FOUND, gone))
}
