//! The serial log of a node, as the guest wrote it.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, Query, State as Shared};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::Deserialize;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt, SeekFrom};

use super::Api;
use super::types::{Phase, Problem};
use crate::lab::state::State;

/// Between two looks at a log that is followed.
const LOOK: Duration = Duration::from_millis(200);

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct LogQuery {
    /// Go on with what comes, until the lab ends
    #[serde(default)]
    follow: bool,
}

/// What a machine wrote to its serial port
#[utoipa::path(
    get, path = "/v1/nodes/{node}/log", tag = "nodes",
    params(("node" = String, description = "Its name"), LogQuery),
    responses(
        (status = 200, description = "Bytes as the guest wrote them", body = [u8], content_type = "application/octet-stream"),
        (status = 404, description = "There is no such node"),
        (status = 409, description = "It is no machine"),
    ),
)]
pub async fn log(
    Shared(api): Shared<Api>,
    Path(name): Path<String>,
    Query(query): Query<LogQuery>,
) -> Result<Response, Problem> {
    api.find_machine(&name)?;
    let reader = LogReader {
        path: api.paths.serial(&name),
        offset: 0,
        follow: query.follow.then(|| api.state.clone()),
        look: LOOK,
    };
    let body = Body::from_stream(stream::unfold(reader, async |mut reader| {
        let chunk = reader.next().await;
        chunk.transpose().map(|chunk| (chunk, reader))
    }));
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], body).into_response())
}

/// Reads a serial log.
pub struct LogReader {
    path: PathBuf,
    offset: u64,
    follow: Option<State>,
    look: Duration,
}

impl LogReader {
    /// What is written from now on, with a look at it every so often.
    pub async fn from_now(path: PathBuf, state: State, look: Duration) -> Self {
        let size = tokio::fs::metadata(&path)
            .await
            .map(|metadata| metadata.len());
        Self {
            offset: size.unwrap_or(0),
            path,
            follow: Some(state),
            look,
        }
    }

    /// The next piece; nothing at its end.
    pub async fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            let chunk = match self.read().await {
                Ok(chunk) => chunk,
                // It has not booted yet.
                Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
                Err(error) => return Err(error),
            };
            if !chunk.is_empty() {
                return Ok(Some(chunk));
            }
            let Some(state) = &self.follow else {
                return Ok(None);
            };
            let mut phases = state.phases();
            tokio::select! {
                () = tokio::time::sleep(self.look) => {}
                _ = phases.wait_for(|&phase| phase == Phase::Ended) => return Ok(None),
            }
        }
    }

    async fn read(&mut self) -> io::Result<Vec<u8>> {
        let mut file = File::open(&self.path).await?;
        let size = file.metadata().await?.len();
        if size < self.offset {
            // The older half was dropped; what was read is somewhere in the rest.
            self.offset = size;
        }
        file.seek(SeekFrom::Start(self.offset)).await?;
        let mut chunk = vec![0; 64 << 10];
        let length = file.read(&mut chunk).await?;
        chunk.truncate(length);
        self.offset += length as u64;
        Ok(chunk)
    }
}
