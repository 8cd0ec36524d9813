//! Links: look at them, change them while traffic runs.

use axum::Json;
use axum::extract::{Path, State as Shared};
use axum::http::StatusCode;
use serde_json::{Map, Value};

use super::Api;
use super::types::{Link, Problem};
use crate::lab::links::LinkError;

/// All links
#[utoipa::path(
    get, path = "/v1/links", tag = "links",
    responses(
        (status = 200, description = "In the order of the file", body = [Link]),
        (status = 502, description = "The switch does not answer"),
    ),
)]
pub async fn list(Shared(api): Shared<Api>) -> Result<Json<Vec<Link>>, Problem> {
    let links = api.links.list().await;
    Ok(Json(links.map_err(|error| api.problem(error))?))
}

/// One link
#[utoipa::path(
    get, path = "/v1/links/{link}", tag = "links",
    params(("link" = String, description = "Its name")),
    responses(
        (status = 200, description = "What each direction is set to, and its counters", body = Link),
        (status = 404, description = "There is no such link"),
        (status = 502, description = "The switch does not answer"),
    ),
)]
pub async fn find(
    Shared(api): Shared<Api>,
    Path(name): Path<String>,
) -> Result<Json<Link>, Problem> {
    let link = api.links.find(&name).await;
    Ok(Json(link.map_err(|error| api.problem(error))?))
}

/// Set attributes of a link
///
/// The body is as the `set` of a schedule in the topology file: attributes for both directions, or in `forward` and
/// `backward`. All are set in one moment, and they hold in the answer.
#[utoipa::path(
    patch, path = "/v1/links/{link}", tag = "links",
    params(("link" = String, description = "Its name")),
    request_body(content = Object, example = json!({"delay": "20ms", "forward": {"loss": "1%"}})),
    responses(
        (status = 200, description = "The link, set", body = Link),
        (status = 404, description = "There is no such link"),
        (status = 422, description = "No such attribute, or a value out of its range"),
        (status = 502, description = "The switch does not answer"),
    ),
)]
pub async fn set(
    Shared(api): Shared<Api>,
    Path(name): Path<String>,
    Json(set): Json<Map<String, Value>>,
) -> Result<Json<Link>, Problem> {
    api.changed(&name, api.links.set(&name, &set).await).await
}

/// Make a link what the topology says
#[utoipa::path(
    post, path = "/v1/links/{link}/reset", tag = "links",
    params(("link" = String, description = "Its name")),
    responses(
        (status = 200, description = "The link, reset", body = Link),
        (status = 404, description = "There is no such link"),
        (status = 502, description = "The switch does not answer"),
    ),
)]
pub async fn reset(
    Shared(api): Shared<Api>,
    Path(name): Path<String>,
) -> Result<Json<Link>, Problem> {
    api.changed(&name, api.links.reset(&name).await).await
}

impl Api {
    async fn changed(
        &self,
        name: &str,
        result: Result<(), LinkError>,
    ) -> Result<Json<Link>, Problem> {
        result.map_err(|error| self.problem(error))?;
        let link = self.links.find(name).await;
        let link = link.map_err(|error| self.problem(error))?;
        self.state.link_changed(link.clone());
        Ok(Json(link))
    }

    /// How an error of the switch is answered.
    pub(super) fn problem(&self, error: LinkError) -> Problem {
        match error {
            LinkError::Unknown(name) => {
                let names = self.links.names();
                Problem::no_such_link(&name, names.iter().map(String::as_str))
            }
            LinkError::Refused(message) => Problem::new(StatusCode::UNPROCESSABLE_ENTITY, message),
            LinkError::Silent(_) => Problem::new(StatusCode::BAD_GATEWAY, error.to_string()),
        }
    }
}
