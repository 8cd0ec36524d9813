//! The API of a running lab: HTTP + JSON on its control socket.

mod captures;
mod console;
mod events;
mod exec;
mod links;
mod logs;
mod look;
mod openapi;
mod problem;
#[cfg(test)]
mod reference;
mod server;
mod topology;
pub mod types;

use std::sync::Arc;

use ::topology::model::Check;
use axum::extract::{DefaultBodyLimit, Path, State as Shared};
use axum::http::{StatusCode, Uri};
use axum::middleware::from_fn;
use axum::routing::get;
use axum::{Json, Router};
use tokio::net::UnixListener;
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::lab::change::Changes;
use crate::lab::links::Links;
use crate::lab::orders::{Refusal, Roster};
use crate::lab::record::Record;
use crate::lab::run_folder::LabPaths;
use crate::lab::state::State;
use crate::lab::usage;
pub use captures::Captures;
use types::{Keep, Kind, Lab, Node, NodeOrder, Problem};

/// What every request may need.
#[derive(Debug, Clone)]
pub struct Api {
    /// How the lab stands.
    pub state: State,
    /// Where its files are.
    pub paths: LabPaths,
    /// Its links.
    pub links: Arc<Links>,
    /// The captures that run.
    pub captures: Captures,
    /// Who gives orders to which machine.
    pub roster: Roster,
    /// Who makes it another lab.
    pub changes: Arc<Changes>,
    /// What its links have carried.
    pub record: Arc<Record>,
}

/// Serves the API until the lab has ended.
pub async fn serve(listener: UnixListener, api: Api) {
    let phases = api.state.phases();
    server::serve(listener, router().with_state(api), phases).await;
}

/// Everything that can be asked for.
fn router() -> Router<Api> {
    let (router, document) = routes();
    router
        .route("/v1/openapi.json", get(async || Json(document)))
        .fallback(unknown)
        .layer(DefaultBodyLimit::max(server::MAX_BODY))
        .layer(from_fn(server::explain))
}

/// What the API makes of the bytes of one client, for fuzz targets.
#[cfg(feature = "fuzzing")]
pub async fn converse(api: Api, client: tokio::io::DuplexStream) {
    static ROUTER: std::sync::LazyLock<Router<Api>> = std::sync::LazyLock::new(router);
    server::converse(client, ROUTER.clone().with_state(api)).await;
}

/// The description of the API.
pub fn document() -> OpenApi {
    routes().1
}

/// The routes of the API and their description.
fn routes() -> (Router<Api>, OpenApi) {
    let prompt = OpenApiRouter::with_openapi(openapi::common())
        .routes(routes!(lab))
        .routes(routes!(stop))
        .routes(routes!(nodes))
        .routes(routes!(node))
        .routes(routes!(order))
        .routes(routes!(keep))
        .routes(routes!(checks))
        .routes(routes!(captures::end))
        .routes(routes!(links::list))
        .routes(routes!(links::find, links::set))
        .routes(routes!(links::reset))
        .routes(routes!(look::usage))
        .routes(routes!(look::switch))
        .routes(routes!(look::report))
        .routes(routes!(look::metrics))
        .route_layer(from_fn(server::in_time));
    let topologies = OpenApiRouter::new()
        .routes(routes!(topology::topology, topology::apply))
        .routes(routes!(topology::plan))
        .route_layer(topology::limit());
    // These take as long as they take.
    let streams = OpenApiRouter::new()
        .merge(topologies)
        .routes(routes!(logs::log))
        .routes(routes!(exec::exec))
        .routes(routes!(console::console))
        .routes(routes!(captures::start))
        .routes(routes!(events::events));
    let (router, mut document) = prompt.merge(streams).split_for_parts();
    openapi::complete(&mut document);
    (router, document)
}

/// The lab and all its nodes
#[utoipa::path(get, path = "/v1/lab", tag = "lab", responses((status = 200, description = "The lab", body = Lab)))]
async fn lab(Shared(api): Shared<Api>) -> Json<Lab> {
    Json(usage::of_nodes(api.state.lab()))
}

/// End the lab
#[utoipa::path(post, path = "/v1/lab/stop", tag = "lab", responses((status = 202, description = "It is ending")))]
async fn stop(Shared(api): Shared<Api>) -> StatusCode {
    api.state.stop();
    StatusCode::ACCEPTED
}

/// All nodes
#[utoipa::path(get, path = "/v1/nodes", tag = "nodes", responses((status = 200, description = "In the order of the file", body = [Node])))]
async fn nodes(Shared(api): Shared<Api>) -> Json<Vec<Node>> {
    Json(usage::of_nodes(api.state.lab()).nodes)
}

/// One node
#[utoipa::path(
    get, path = "/v1/nodes/{node}", tag = "nodes",
    params(("node" = String, description = "Its name")),
    responses((status = 200, description = "The node", body = Node), (status = 404, description = "There is no such node")),
)]
async fn node(Shared(api): Shared<Api>, Path(name): Path<String>) -> Result<Json<Node>, Problem> {
    Ok(Json(usage::of_node(api.find(&name)?)))
}

/// The checks of the topology
///
/// What should hold while the lab runs, with every name resolved. What there can be is in docs/topology.md; times are in nanoseconds, rates in bit/s.
#[utoipa::path(get, path = "/v1/checks", tag = "lab", responses((status = 200, description = "In the order of the file", body = [Object])))]
async fn checks(Shared(api): Shared<Api>) -> Json<Vec<Check>> {
    Json(api.changes.checks())
}

/// What is worth keeping of a machine
#[utoipa::path(
    get, path = "/v1/nodes/{node}/keep", tag = "nodes",
    params(("node" = String, description = "Its name")),
    responses(
        (status = 200, description = "What `vmm save` collects", body = Keep),
        (status = 404, description = "There is no such node"),
        (status = 409, description = "It is no machine"),
    ),
)]
async fn keep(Shared(api): Shared<Api>, Path(name): Path<String>) -> Result<Json<Keep>, Problem> {
    api.find_machine(&name)?;
    Ok(Json(api.changes.keep(&name)))
}

/// Have a machine do something
///
/// Answered when it is done; a machine that is to boot has then begun to.
#[utoipa::path(
    post, path = "/v1/nodes/{node}/order", tag = "nodes",
    params(("node" = String, description = "Its name")),
    request_body = NodeOrder,
    responses(
        (status = 200, description = "The node as it is then", body = Node),
        (status = 404, description = "There is no such node"),
        (status = 409, description = "It is in no state for that, or no machine"),
    ),
)]
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
