//! The serial port of a node, over a WebSocket: binary messages are what the guest writes, and what is typed.

use std::time::Duration;

use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{Path, State as Shared};
use axum::http::StatusCode;
use axum::response::Response;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};

use super::Api;
use super::logs::LogReader;
use super::types::{EngineName, NodeState, Problem};
use crate::lab::state::State;

/// Between two looks at what the guest has written: a person who types waits for it.
const LOOK: Duration = Duration::from_millis(15);
/// The most that may be typed in one message.
const TYPED: usize = 64 << 10;

/// Sit at the serial port of a machine
///
/// A WebSocket. Binary messages of the lab are what the guest writes from now on, those of the client what is typed. A machine that boots
/// again keeps its clients.
#[utoipa::path(
    get, path = "/v1/nodes/{node}/console", tag = "nodes",
    params(("node" = String, description = "Its name")),
    responses(
        (status = 101, description = "The connection is a WebSocket from now on"),
        (status = 404, description = "There is no such node"),
        (status = 409, description = "It is no machine, or does not run"),
    ),
)]
pub async fn console(
    Shared(api): Shared<Api>,
    Path(name): Path<String>,
    upgrade: WebSocketUpgrade,
) -> Result<Response, Problem> {
    let node = api.find_machine(&name)?;
    if node.engine == Some(EngineName::Container) {
        let problem = format!(
            "node {name} is a container, which has no serial port; `vmm shell` opens a shell in it"
        );
        return Err(Problem::new(StatusCode::CONFLICT, problem));
    }
    if api.state.console(&name).is_none() {
        let why = match node.state {
            NodeState::Waiting => "is still starting",
            NodeState::Stopped => "is stopped",
            _ => "has ended",
        };
        return Err(Problem::new(
            StatusCode::CONFLICT,
            format!("node {name} {why}"),
        ));
    }
    let path = api.paths.serial(&name);
    let upgrade = upgrade.max_message_size(TYPED);
    Ok(upgrade.on_upgrade(async move |socket| {
        // What was begun before somebody looked is written out first.
        look(&api.state, &name).await;
        let log = LogReader::from_now(path, api.state.clone(), LOOK).await;
        let (sink, typed) = socket.split();
        tokio::select! {
            () = show(log, sink) => {}
            () = take(typed, &api.state, &name) => {}
        }
    }))
}

async fn look(state: &State, name: &str) {
    if let Some(console) = state.console(name) {
        console.type_in(Vec::new()).await;
    }
}

async fn show(mut log: LogReader, mut sink: SplitSink<WebSocket, Message>) {
    while let Ok(Some(piece)) = log.next().await {
        if sink.send(Message::Binary(piece.into())).await.is_err() {
            return;
        }
    }
    let _ = sink.close().await;
}

/// Types until the person is gone. What is typed while the node is down goes nowhere.
async fn take(mut typed: SplitStream<WebSocket>, state: &State, name: &str) {
    while let Some(Ok(message)) = typed.next().await {
        match message {
            Message::Binary(bytes) if !bytes.is_empty() => {
                if let Some(console) = state.console(name) {
                    console.type_in(bytes.to_vec()).await;
                }
            }
            Message::Close(_) => return,
            _ => {}
        }
    }
}
