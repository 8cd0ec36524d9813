//! The topology of a running lab: look at it, replace it.

use axum::Json;
use axum::extract::{DefaultBodyLimit, State as Shared};
use axum::http::StatusCode;

use super::Api;
use super::types::{ChangePlan, Problem, TopologyRequest, TopologyText};
use crate::lab::change::ChangeError;
use crate::lab::links::LinkError;

/// The most bytes a request may have. A topology file has 64 MiB at most, and a string takes more as JSON.
const MAX_REQUEST: usize = 128 << 20;

/// How long requests with a topology may be.
pub fn limit() -> DefaultBodyLimit {
    DefaultBodyLimit::max(MAX_REQUEST)
}

/// The topology the lab has now
#[utoipa::path(
    get, path = "/v1/topology", tag = "lab",
    responses((status = 200, description = "The text of the file, with its revision", body = TopologyText)),
)]
pub async fn topology(Shared(api): Shared<Api>) -> Json<TopologyText> {
    Json(api.changes.topology().await)
}

/// What it takes to make the lab another one
///
/// Nothing is changed.
#[utoipa::path(
    post, path = "/v1/topology/plan", tag = "lab",
    request_body = TopologyRequest,
    responses(
        (status = 200, description = "The steps that would be taken", body = ChangePlan),
        (status = 409, description = "The lab does not run, or has another revision by now"),
        (status = 422, description = "The topology has errors, is another lab's, or cannot be had on this machine"),
    ),
)]
pub async fn plan(
    Shared(api): Shared<Api>,
    Json(request): Json<TopologyRequest>,
) -> Result<Json<ChangePlan>, Problem> {
    let plan = api.changes.plan(&request).await;
    plan.map(Json).map_err(problem)
}

/// Make the lab another one
///
/// Answered when links are as they are to be; machines that are to boot have then begun to. A topology that is refused changes nothing.
#[utoipa::path(
    put, path = "/v1/topology", tag = "lab",
    request_body = TopologyRequest,
    responses(
        (status = 200, description = "The steps that were taken", body = ChangePlan),
        (status = 409, description = "The lab does not run, or has another revision by now"),
        (status = 422, description = "The topology has errors, is another lab's, or cannot be had on this machine or in the switch"),
        (status = 502, description = "The switch does not answer"),
    ),
)]
pub async fn apply(
    Shared(api): Shared<Api>,
    Json(request): Json<TopologyRequest>,
) -> Result<Json<ChangePlan>, Problem> {
    // A client that dies in the middle does not leave half a change.
    let work = tokio::spawn(async move { api.changes.apply(request).await });
    match work.await {
        Ok(plan) => plan.map(Json).map_err(problem),
        Err(error) => {
            let detail = format!("a bug in vmm: {error}");
            Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, detail))
        }
    }
}

fn problem(error: ChangeError) -> Problem {
    let detail = error.to_string();
    match error {
        ChangeError::OtherLab { ours, .. } => {
            Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail).with_help(format!(
                "`\"name\": \"{ours}\"` in the file would make it this lab's"
            ))
        }
        ChangeError::Stale { .. } => Problem::new(StatusCode::CONFLICT, detail)
            .with_help("look at what it is now, and try again"),
        ChangeError::NotRunning(_) => Problem::new(StatusCode::CONFLICT, detail),
        ChangeError::Host(failure) => Problem {
            help: failure.help.clone(),
            ..Problem::new(StatusCode::UNPROCESSABLE_ENTITY, failure.message)
        },
        ChangeError::Switch(LinkError::Silent(_)) => Problem::new(StatusCode::BAD_GATEWAY, detail),
        ChangeError::Broken(_) | ChangeError::Zone { .. } | ChangeError::Switch(_) => {
            Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail)
        }
    }
}
