//! Links: look at them, change them while traffic runs.

use axum::Json;
use axum::extract::{Path, State as Shared};
use axum::http::StatusCode;
use serde_json::{Map, Value};

use super::Api;
use super::types::{Link, Problem};
use crate::lab::links::LinkError;

/// All links.
pub async fn list(Shared(api): Shared<Api>) -> Result<Json<Vec<Link>>, Problem> {
    let links = api.links.list().await;
    Ok(Json(links.map_err(|error| api.problem(error))?))
}

/// One link.
pub async fn find(
    Shared(api): Shared<Api>,
    Path(name): Path<String>,
) -> Result<Json<Link>, Problem> {
    let link = api.links.find(&name).await;
    Ok(Json(link.map_err(|error| api.problem(error))?))
}

/// Sets attributes, as the `set` of a schedule in the topology file has them; all in one moment, and they hold in the answer.
pub async fn set(
    Shared(api): Shared<Api>,
    Path(name): Path<String>,
    Json(set): Json<Map<String, Value>>,
) -> Result<Json<Link>, Problem> {
    api.changed(&name, api.links.set(&name, &set).await).await
}

/// Makes a link what the topology says.
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

    fn problem(&self, error: LinkError) -> Problem {
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
