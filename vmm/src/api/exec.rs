//! Commands in a node, over a WebSocket. What is said on it is in [`super::types`].

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use agent_protocol::INITIAL_WINDOW;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{Path, State as Shared};
use axum::http::StatusCode;
use axum::response::Response;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use tokio::sync::mpsc::UnboundedReceiver;

use super::Api;
use super::types::{ExecReply, ExecRequest, NodeState, Problem, STDERR, STDOUT};
use crate::lab::agent::{Agent, Exec, ExecEvent};

/// Linux's numbers.
const SIGHUP: i32 = 1;
const SIGKILL: i32 = 9;
/// How long a command whose client has gone may take to end by itself.
const PATIENCE: Duration = Duration::from_secs(5);

/// Run a command in a machine
///
/// A WebSocket. The first message is a text with an `ExecRequest` of type `start`. Text messages of the client are an
/// `ExecRequest` each, binary messages are bytes for standard input: no more than the window allows, which is 262144
/// bytes at first and grows by what each `credit` says. Text messages of the lab are an `ExecReply` each, binary
/// messages are output: a byte that names the stream (1: standard output, 2: standard error), then the data. The last
/// message is `exited`, `failed` or `lost`. A command whose client goes away is sent SIGHUP, and SIGKILL after 5 s.
#[utoipa::path(
    get, path = "/v1/nodes/{node}/exec", tag = "nodes",
    params(("node" = String, description = "Its name")),
    responses(
        (status = 101, description = "The connection is a WebSocket from now on"),
        (status = 404, description = "There is no such node"),
        (status = 409, description = "It is no machine, or none that can run commands now"),
    ),
)]
pub async fn exec(
    Shared(api): Shared<Api>,
    Path(name): Path<String>,
    upgrade: WebSocketUpgrade,
) -> Result<Response, Problem> {
    let node = api.find_machine(&name)?;
    if node.state == NodeState::Paused {
        let problem = Problem::new(StatusCode::CONFLICT, format!("node {name} is paused"));
        return Err(problem.with_help(format!("`vmm node resume {name}` has it go on")));
    }
    let agent = api.state.agent(&name).ok_or_else(|| {
        let why = match node.state {
            NodeState::Waiting | NodeState::Booting | NodeState::Configuring => "is still starting",
            NodeState::Stopped => "is stopped",
            NodeState::Ended => "has ended",
            _ => "has no agent that answers",
        };
        Problem::new(StatusCode::CONFLICT, format!("node {name} {why}"))
    })?;
    // The window bounds what a client may have sent that was not taken yet.
    let upgrade = upgrade.max_message_size(INITIAL_WINDOW as usize);
    Ok(upgrade.on_upgrade(async move |socket| converse(socket, agent).await))
}

async fn converse(mut socket: WebSocket, agent: Agent) {
    let Some(Ok(Message::Text(text))) = socket.recv().await else {
        return;
    };
    let Ok(ExecRequest::Start {
        argv,
        env,
        cwd,
        tty,
    }) = serde_json::from_str(&text)
    else {
        let message = "the first message has to be a start request".to_owned();
        return refuse(socket, message).await;
    };
    if argv.is_empty() {
        return refuse(socket, "there is no command to run".to_owned()).await;
    }
    let Some((exec, events)) = agent.exec(argv, env, cwd, tty).await else {
        let _ = socket.send(text_of(&lost())).await;
        return;
    };
    let (sink, requests) = socket.split();
    let window = AtomicU64::new(u64::from(INITIAL_WINDOW));
    let mut output = Output {
        sink,
        exec: &exec,
        window: &window,
    };
    let mut events = events;
    tokio::select! {
        () = output.pass_on(&mut events) => {
            let _ = output.sink.close().await;
            return;
        }
        () = take(requests, &exec, &window) => {}
    }
    // First: a node that never tells of the command's end would have the lab keep a descriptor for each.
    drop(output);
    hang_up(&exec, events).await;
}

async fn refuse(mut socket: WebSocket, message: String) {
    let status = 126;
    let _ = socket
        .send(text_of(&ExecReply::Failed { message, status }))
        .await;
}

fn lost() -> ExecReply {
    ExecReply::Lost {
        message: "the node ended, or its agent broke off".to_owned(),
    }
}

fn text_of(reply: &ExecReply) -> Message {
    Message::Text(serde_json::to_string(reply).unwrap_or_default().into())
}

struct Output<'a> {
    sink: SplitSink<WebSocket, Message>,
    exec: &'a Exec,
    /// Bytes of standard input that the client may still send.
    window: &'a AtomicU64,
}

impl Output<'_> {
    /// Sends what the command says, until its last word.
    async fn pass_on(&mut self, events: &mut UnboundedReceiver<ExecEvent>) {
        loop {
            let (reply, last) = match events.recv().await {
                Some(ExecEvent::Stdout(data)) => {
                    self.send_data(STDOUT, &data).await;
                    continue;
                }
                Some(ExecEvent::Stderr(data)) => {
                    self.send_data(STDERR, &data).await;
                    continue;
                }
                Some(ExecEvent::Credit(bytes)) => {
                    self.window.fetch_add(u64::from(bytes), Ordering::Relaxed);
                    (ExecReply::Credit { bytes }, false)
                }
                Some(ExecEvent::Failed { message, status }) => {
                    (ExecReply::Failed { message, status }, true)
                }
                Some(ExecEvent::Exited(status)) => (ExecReply::Exited { status }, true),
                None => (lost(), true),
            };
            // That the client has gone is seen where its requests are read.
            let _ = self.sink.send(text_of(&reply)).await;
            if last {
                return;
            }
        }
    }

    async fn send_data(&mut self, stream: u8, data: &[u8]) {
        let mut message = Vec::with_capacity(1 + data.len());
        message.push(stream);
        message.extend_from_slice(data);
        if self
            .sink
            .send(Message::Binary(message.into()))
            .await
            .is_ok()
        {
            // The client has taken it, as far as the socket's buffer goes: its window opens again.
            self.exec.grant(data.len()).await;
        }
    }
}

/// Carries out the client's requests until it is gone, or breaks the rules.
async fn take(mut requests: SplitStream<WebSocket>, exec: &Exec, window: &AtomicU64) {
    while let Some(Ok(message)) = requests.next().await {
        match message {
            Message::Binary(data) if data.is_empty() => {}
            Message::Binary(data) => {
                let left = window.fetch_sub(data.len() as u64, Ordering::Relaxed);
                if left < data.len() as u64 {
                    return;
                }
                exec.stdin(&data).await;
            }
            Message::Text(text) => match serde_json::from_str(&text) {
                Ok(ExecRequest::StdinEnd) => exec.stdin(&[]).await,
                Ok(ExecRequest::Signal { signal }) => exec.signal(signal).await,
                Ok(ExecRequest::Resize { size }) => exec.resize(size).await,
                Ok(ExecRequest::Start { .. }) | Err(_) => return,
            },
            Message::Close(_) => return,
            Message::Ping(_) | Message::Pong(_) => {}
        }
    }
}

/// Ends a command whose client has gone, as a terminal does that is closed; its output is nobody's.
async fn hang_up(exec: &Exec, mut events: UnboundedReceiver<ExecEvent>) {
    exec.stdin(&[]).await;
    exec.signal(SIGHUP).await;
    if tokio::time::timeout(PATIENCE, drain(exec, &mut events))
        .await
        .is_err()
    {
        exec.signal(SIGKILL).await;
        drain(exec, &mut events).await;
    }
}

async fn drain(exec: &Exec, events: &mut UnboundedReceiver<ExecEvent>) {
    while let Some(event) = events.recv().await {
        if let ExecEvent::Stdout(data) | ExecEvent::Stderr(data) = event {
            exec.grant(data.len()).await;
        }
    }
}
