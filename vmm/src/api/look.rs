//! How a lab does: what it takes, what it delivers, whether that is what was asked for.

use axum::Json;
use axum::extract::State as Shared;
use axum::http::header;
use axum::response::IntoResponse;
use serde_json::Value;

use super::Api;
use super::types::{Problem, Report, Usage};
use crate::lab::report::{self, Evidence};
use crate::lab::{metrics, usage};

/// What the lab's processes take of this machine
#[utoipa::path(
    get, path = "/v1/usage", tag = "lab",
    responses((status = 200, description = "Sums since each process began; rates are the reader's affair", body = Usage)),
)]
pub async fn usage(Shared(api): Shared<Api>) -> Json<Usage> {
    Json(api.usage())
}

/// Everything that the virtual switch counts
#[utoipa::path(
    get, path = "/v1/switch", tag = "lab",
    responses(
        (status = 200, description = "As `vswitch stats --json` prints it (vswitch.md)", body = Object),
        (status = 502, description = "The switch does not answer"),
    ),
)]
pub async fn switch(Shared(api): Shared<Api>) -> Result<Json<Value>, Problem> {
    let all = api.links.switch().await;
    Ok(Json(all.map_err(|error| api.problem(error))?))
}

/// What links were asked for and what they have delivered, and whether the run is valid
#[utoipa::path(
    get, path = "/v1/report", tag = "lab",
    responses(
        (status = 200, description = "The judgement", body = Report),
        (status = 502, description = "The switch does not answer"),
    ),
)]
pub async fn report(Shared(api): Shared<Api>) -> Result<Json<Report>, Problem> {
    let links = api.links.list().await.map_err(|error| api.problem(error))?;
    let lab = api.state.lab();
    Ok(Json(report::judge(&Evidence {
        lab: &lab.name,
        nodes: &lab.nodes,
        links: &links,
        record: &api.record.read(),
        usage: &usage::read(&lab, api.state.elapsed_ms()),
    })))
}

/// The same numbers for Prometheus
#[utoipa::path(
    get, path = "/metrics", tag = "lab",
    responses((status = 200, description = "Its text format; without links while the switch does not answer", body = String, content_type = "text/plain")),
)]
pub async fn metrics(Shared(api): Shared<Api>) -> impl IntoResponse {
    let links = api.links.list().await.unwrap_or_default();
    let text = metrics::text(&api.state.lab(), &links, &api.usage());
    ([(header::CONTENT_TYPE, metrics::MEDIA_TYPE)], text)
}

impl Api {
    fn usage(&self) -> Usage {
        usage::read(&self.state.lab(), self.state.elapsed_ms())
    }
}
