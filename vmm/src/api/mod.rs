//! The API of a running lab: HTTP + JSON on its control socket.

mod events;
mod exec;
mod links;
mod logs;
mod problem;
mod topology;
pub mod types;

use std::sync::Arc;

use axum::extract::{Path, State as Shared};
use axum::http::{StatusCode, Uri};
use axum::routing::{get, post};
use axum::{Json, Router};
use tokio::net::UnixListener;

use crate::lab::change::Changes;
use crate::lab::links::Links;
use crate::lab::orders::{Refusal, Roster};
use crate::lab::run_folder::LabPaths;
use crate::lab::state::State;
use types::{Kind, Lab, Node, NodeOrder, Phase, Problem};

/// What every request may need.
#[derive(Debug, Clone)]
pub struct Api {
    /// How the lab stands.
    pub state: State,
    /// Where its files are.
    pub paths: LabPaths,
    /// Its links.
    pub links: Arc<Links>,
    /// Who gives orders to which machine.
    pub roster: Roster,
    /// Who makes it another lab.
    pub changes: Arc<Changes>,
}

/// Serves the API until the lab has ended.
pub async fn serve(listener: UnixListener, api: Api) {
    let mut phases = api.state.phases();
    let router = Router::new()
        .route("/v1/lab", get(lab))
        .route("/v1/lab/stop", post(stop))
        .route("/v1/nodes", get(nodes))
        .route("/v1/nodes/{node}", get(node))
        .route("/v1/nodes/{node}/log", get(logs::log))
        .route("/v1/nodes/{node}/exec", get(exec::exec))
        .route("/v1/nodes/{node}/order", post(order))
        .route("/v1/links", get(links::list))
        .route("/v1/links/{link}", get(links::find).patch(links::set))
        .route("/v1/links/{link}/reset", post(links::reset))
        .route(
            "/v1/topology",
            get(topology::topology)
                .put(topology::apply)
                .layer(topology::limit()),
        )
        .route(
            "/v1/topology/plan",
            post(topology::plan).layer(topology::limit()),
        )
        .route("/v1/events", get(events::events))
        .fallback(unknown)
        .with_state(api);
    let ended = async move {
        let _ = phases.wait_for(|&phase| phase == Phase::Ended).await;
    };
    if let Err(error) = axum::serve(listener, router)
        .with_graceful_shutdown(ended)
        .await
    {
        eprintln!("warning: the lab's API has ended: {error}");
    }
}

async fn lab(Shared(api): Shared<Api>) -> Json<Lab> {
    Json(api.state.lab())
}

async fn stop(Shared(api): Shared<Api>) -> StatusCode {
    api.state.stop();
    StatusCode::ACCEPTED
}

async fn nodes(Shared(api): Shared<Api>) -> Json<Vec<Node>> {
    Json(api.state.lab().nodes)
}

async fn node(Shared(api): Shared<Api>, Path(name): Path<String>) -> Result<Json<Node>, Problem> {
    Ok(Json(api.find(&name)?))
}

/// Has a machine do something. Answered when it is done; a machine that is to boot has then begun to.
async fn order(
    Shared(api): Shared<Api>,
    Path(name): Path<String>,
    Json(order): Json<NodeOrder>,
) -> Result<Json<Node>, Problem> {
    api.find_machine(&name)?;
    let Some(orders) = api.roster.find(&name) else {
        return Err(Problem::inside_the_switch(&name));
    };
    let conflict =
        |refusal: Refusal| Problem::new(StatusCode::CONFLICT, format!("node {name}: {refusal}"));
    orders.give(order).await.map_err(conflict)?;
    Ok(Json(api.find(&name)?))
}

async fn unknown(uri: Uri) -> Problem {
    Problem::new(
        StatusCode::NOT_FOUND,
        format!("there is nothing at {}", uri.path()),
    )
}

impl Api {
    fn find(&self, name: &str) -> Result<Node, Problem> {
        if let Some(node) = self.state.node(name) {
            return Ok(node);
        }
        let lab = self.state.lab();
        let names: Vec<_> = lab.nodes.iter().map(|node| node.name.as_str()).collect();
        Err(Problem::no_such_node(name, &lab.name, &names))
    }

    /// A node with a kernel of its own.
    fn find_machine(&self, name: &str) -> Result<Node, Problem> {
        let node = self.find(name)?;
        match node.kind {
            Kind::Host | Kind::Router => Ok(node),
            Kind::Switch | Kind::Hub | Kind::External => Err(Problem::inside_the_switch(name)),
        }
    }
}
