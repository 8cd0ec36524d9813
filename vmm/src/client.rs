//! The CLI's side of a lab's API.

use std::path::Path;
use std::time::Duration;

use futures_util::{Stream, stream};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use tokio::net::UnixStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite;
use topology::model::Check;

use crate::api::types::{
    CaptureRequest, ChangePlan, Event, Keep, Lab, Link, Node, NodeOrder, Problem, Report,
    TopologyRequest, TopologyText, Usage,
};
use crate::failure::{Code, Failure, nearest};
use crate::lab::janitor;
use crate::lab::run_folder::{LabPaths, RunRoot, orphaned};

/// How long a lab may take to say how it stands.
const PATIENCE: Duration = Duration::from_secs(10);

/// A running lab.
#[derive(Debug, Clone)]
pub struct Client {
    name: String,
    paths: LabPaths,
}

/// A WebSocket to a lab.
pub type Socket = WebSocketStream<UnixStream>;

impl Client {
    /// The lab called `name`, or the only one that runs.
    pub fn choose(name: Option<&str>) -> Result<Self, Failure> {
        let root = RunRoot::from_env()?;
        let labs = root.labs();
        let names = || labs.iter().map(String::as_str);
        let name = match (name, labs.as_slice()) {
            (Some(name), _) if names().any(|lab| lab == name) => name,
            (Some(name), _) => {
                let failure = Failure::new(Code::NotFound, format!("no lab called {name} runs"));
                return Err(match nearest(name, names()) {
                    Some(near) => failure.help(format!("did you mean {near}?")),
                    None => failure.help("`vmm ls` lists the running labs"),
                });
            }
            (None, [only]) => only,
            (None, []) => {
                return Err(Failure::new(Code::NotFound, "no lab runs")
                    .help("start one with `vmm launch FILE`"));
            }
            (None, several) => {
                return Err(Failure::new(
                    Code::NotFound,
                    format!("several labs run: {}", several.join(", ")),
                )
                .help("choose one with --lab or HOPYARD_LAB"));
            }
        };
        Ok(Self::at(name, &root.lab(name)))
    }

    /// The lab called `name` with these paths.
    pub fn at(name: &str, paths: &LabPaths) -> Self {
        Self {
            name: name.to_owned(),
            paths: paths.clone(),
        }
    }

    /// The lab's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The lab and its nodes.
    pub async fn lab(&self) -> Result<Lab, Failure> {
        let patience = tokio::time::timeout(PATIENCE, self.json("/v1/lab"));
        patience.await.unwrap_or_else(|_| {
            let silent = format!(
                "lab {} does not answer within {} s",
                self.name,
                PATIENCE.as_secs()
            );
            Err(Failure::new(Code::General, silent)
                .help("its process hangs; killing it ends the lab"))
        })
    }

    /// Asks the lab to end.
    pub async fn stop(&self) -> Result<(), Failure> {
        if self.paths.is_orphaned() {
            return janitor::end(&self.paths).map_err(|error| {
                let message = format!("the janitor of lab {} does not answer: {error}", self.name);
                Failure::new(Code::General, message).help("killing it ends the lab as well")
            });
        }
        self.request(Method::POST, "/v1/lab/stop").await.map(drop)
    }

    /// A node.
    pub async fn node(&self, node: &str) -> Result<Node, Failure> {
        self.json(&format!("/v1/nodes/{}", segment(node))).await
    }

    /// Has a node do something; returns when it is done.
    pub async fn order(&self, node: &str, order: NodeOrder) -> Result<Node, Failure> {
        let path = format!("/v1/nodes/{}/order", segment(node));
        self.send(Method::POST, &path, &order).await
    }

    /// The topology of the lab.
    pub async fn topology(&self) -> Result<TopologyText, Failure> {
        self.json("/v1/topology").await
    }

    /// What it takes to make the lab another one.
    pub async fn plan(&self, request: &TopologyRequest) -> Result<ChangePlan, Failure> {
        self.send(Method::POST, "/v1/topology/plan", request).await
    }

    /// Makes the lab another one.
    pub async fn apply(&self, request: &TopologyRequest) -> Result<ChangePlan, Failure> {
        self.send(Method::PUT, "/v1/topology", request).await
    }

    /// What is worth keeping of a node.
    pub async fn keep(&self, node: &str) -> Result<Keep, Failure> {
        self.json(&format!("/v1/nodes/{}/keep", segment(node)))
            .await
    }

    /// What should hold while the lab runs.
    pub async fn checks(&self) -> Result<Vec<Check>, Failure> {
        self.json("/v1/checks").await
    }

    /// What its processes have taken of this machine.
    pub async fn usage(&self) -> Result<Usage, Failure> {
        self.json("/v1/usage").await
    }

    /// Everything that its switch counts.
    pub async fn switch(&self) -> Result<Value, Failure> {
        self.json("/v1/switch").await
    }

    /// What links were asked for and what they have delivered.
    pub async fn report(&self) -> Result<Report, Failure> {
        self.json("/v1/report").await
    }

    /// Its numbers for Prometheus.
    pub async fn metrics(&self) -> Result<String, Failure> {
        let answer = self.request(Method::GET, "/metrics").await?;
        let body = answer.into_body().collect().await;
        let bytes = body.map_err(|error| self.broken(&error))?.to_bytes();
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// All links.
    pub async fn links(&self) -> Result<Vec<Link>, Failure> {
        self.json("/v1/links").await
    }

    /// Sets attributes of a link.
    pub async fn set_link(&self, link: &str, set: &Map<String, Value>) -> Result<Link, Failure> {
        let path = format!("/v1/links/{}", segment(link));
        self.send(Method::PATCH, &path, set).await
    }

    /// Makes a link what the topology says.
    pub async fn reset_link(&self, link: &str) -> Result<Link, Failure> {
        let path = format!("/v1/links/{}/reset", segment(link));
        self.send(Method::POST, &path, &()).await
    }

    /// The events of the lab; ends when the lab has ended.
    pub async fn events(&self) -> Result<impl Stream<Item = Event> + Unpin + use<>, Failure> {
        let body = self.request(Method::GET, "/v1/events").await?.into_body();
        let reader = (body, Vec::new());
        Ok(Box::pin(stream::unfold(
            reader,
            async |(mut body, mut text)| {
                loop {
                    if let Some(event) = take_event(&mut text) {
                        return Some((event, (body, text)));
                    }
                    text.extend_from_slice(&next_chunk(&mut body).await.ok()??);
                }
            },
        )))
    }

    /// The serial log of a node.
    pub async fn log(&self, node: &str, follow: bool) -> Result<ByteStream, Failure> {
        let path = format!("/v1/nodes/{}/log?follow={follow}", segment(node));
        Ok(ByteStream(
            self.request(Method::GET, &path).await?.into_body(),
        ))
    }

    /// Starts a capture: where to end it, and what it captures.
    pub async fn capture(&self, request: &CaptureRequest) -> Result<(String, ByteStream), Failure> {
        let body = serde_json::to_vec(request).map_err(|error| self.broken(&error))?;
        let answer = self
            .request_with(Method::POST, "/v1/captures", body.into())
            .await?;
        let place = answer.headers().get(header::LOCATION);
        let place = place.and_then(|place| place.to_str().ok());
        Ok((
            place.unwrap_or_default().to_owned(),
            ByteStream(answer.into_body()),
        ))
    }

    /// Has the capture at `place` completed and ended.
    pub async fn end_capture(&self, place: &str) -> Result<(), Failure> {
        self.request(Method::DELETE, place).await.map(drop)
    }

    /// Opens the socket for a command in a node.
    pub async fn exec(&self, node: &str) -> Result<Socket, Failure> {
        self.web_socket(&format!("/v1/nodes/{}/exec", segment(node)))
            .await
    }

    /// Opens the socket to the serial port of a node.
    pub async fn console(&self, node: &str) -> Result<Socket, Failure> {
        self.web_socket(&format!("/v1/nodes/{}/console", segment(node)))
            .await
    }

    async fn web_socket(&self, path: &str) -> Result<Socket, Failure> {
        let stream = self.connect().await?;
        let uri = format!("ws://lab{path}");
        match tokio_tungstenite::client_async(uri, stream).await {
            Ok((socket, _)) => Ok(socket),
            Err(tungstenite::Error::Http(response)) => {
                let body = response.body().as_deref().unwrap_or_default();
                Err(self.refused(response.status(), body))
            }
            Err(error) => Err(self.broken(&error)),
        }
    }

    async fn json<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        let answer = self.request(Method::GET, path).await?;
        self.decode(answer).await
    }

    /// Sends `body` as JSON.
    async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, Failure> {
        let body = serde_json::to_vec(body).map_err(|error| self.broken(&error))?;
        let answer = self.request_with(method, path, body.into()).await?;
        self.decode(answer).await
    }

    async fn decode<T: DeserializeOwned>(&self, answer: Response<Incoming>) -> Result<T, Failure> {
        let bytes = answer
            .into_body()
            .collect()
            .await
            .map_err(|error| self.broken(&error))?
            .to_bytes();
        serde_json::from_slice(&bytes).map_err(|error| {
            Failure::new(
                Code::General,
                format!("lab {} runs another version of vmm: {error}", self.name),
            )
        })
    }

    async fn connect(&self) -> Result<UnixStream, Failure> {
        if self.paths.is_orphaned() {
            return Err(orphaned(&self.name));
        }
        let socket = self.paths.control();
        connect(&socket).await.map_err(|error| {
            Failure::new(
                Code::General,
                format!(
                    "lab {} does not answer on {}: {error}",
                    self.name,
                    socket.display()
                ),
            )
            .help("it may be starting or ending; try again")
        })
    }

    async fn request(&self, method: Method, path: &str) -> Result<Response<Incoming>, Failure> {
        self.request_with(method, path, Bytes::new()).await
    }

    async fn request_with(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Response<Incoming>, Failure> {
        let stream = TokioIo::new(self.connect().await?);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(stream)
            .await
            .map_err(|error| self.broken(&error))?;
        // Its errors are also those of the requests.
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "lab")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| self.broken(&error))?;
        let response = sender
            .send_request(request)
            .await
            .map_err(|error| self.broken(&error))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let body = response
            .into_body()
            .collect()
            .await
            .map_err(|error| self.broken(&error))?;
        Err(self.refused(status, &body.to_bytes()))
    }

    fn broken(&self, error: &dyn std::error::Error) -> Failure {
        Failure::new(
            Code::General,
            format!("lab {} broke off: {error}", self.name),
        )
        .help("it may have ended; `vmm ls` lists the running labs")
    }

    fn refused(&self, status: StatusCode, body: &[u8]) -> Failure {
        let code = match status {
            StatusCode::NOT_FOUND => Code::NotFound,
            _ => Code::General,
        };
        match serde_json::from_slice::<Problem>(body) {
            Ok(problem) => Failure {
                code,
                message: format!("lab {}: {}", self.name, problem.detail),
                help: problem.help,
            },
            Err(_) => Failure::new(code, format!("lab {} answered {status}", self.name)),
        }
    }
}

/// Connects to a lab that may be about to listen.
async fn connect(socket: &Path) -> std::io::Result<UnixStream> {
    let mut attempt = 0;
    loop {
        match UnixStream::connect(socket).await {
            Err(_) if attempt < 20 => {
                attempt += 1;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            result => return result,
        }
    }
}

/// Bytes of a log or a capture, as they come.
#[derive(Debug)]
pub struct ByteStream(Incoming);

impl ByteStream {
    /// The next bytes, or `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        next_chunk(&mut self.0)
            .await
            .map_err(|error| Failure::new(Code::General, format!("the lab broke off: {error}")))
    }
}

async fn next_chunk(body: &mut Incoming) -> Result<Option<Bytes>, hyper::Error> {
    loop {
        match body.frame().await.transpose()? {
            None => return Ok(None),
            Some(frame) => {
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
        }
    }
}

/// Takes the first whole event out of a text of server-sent events.
fn take_event(text: &mut Vec<u8>) -> Option<Event> {
    loop {
        let end = text.windows(2).position(|two| two == b"\n\n")?;
        let block: Vec<u8> = text.drain(..end + 2).collect();
        let block = String::from_utf8_lossy(&block);
        // Comments, which keep the connection alive, have no data.
        let data: String = block
            .lines()
            .filter_map(|line| line.strip_prefix("data:"))
            .collect();
        if let Ok(event) = serde_json::from_str(data.trim_start()) {
            return Some(event);
        }
    }
}

/// `name` as one segment of a path.
fn segment(name: &str) -> String {
    name.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' => {
                char::from(byte).to_string()
            }
            byte => format!("%{byte:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::Change;

    #[test]
    fn events_are_found_among_comments_and_pieces() {
        let mut text =
            b":\n\ndata: {\"at_ms\":7,\"type\":\"lost\",\"count\":3}\n\ndata: {\"at".to_vec();
        let event = take_event(&mut text).unwrap();
        assert_eq!((event.at_ms, event.change), (7, Change::Lost { count: 3 }));
        assert_eq!(take_event(&mut text), None);
        assert_eq!(text, b"data: {\"at");
    }

    #[test]
    fn names_cannot_leave_their_segment() {
        assert_eq!(segment("r1"), "r1");
        assert_eq!(segment("../lab?x"), "..%2Flab%3Fx");
        assert_eq!(segment("ä"), "%C3%A4");
    }
}
