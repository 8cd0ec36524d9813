//! Errors of the API: RFC 9457 problem documents.

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::types::Problem;
use crate::failure::nearest;

impl Problem {
    /// A problem of the kind that `status` names.
    pub fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self {
            status: status.as_u16(),
            title: status.canonical_reason().unwrap_or("Error").to_owned(),
            detail: detail.into(),
            help: None,
        }
    }

    /// There is no node called `name` among `nodes`.
    pub fn no_such_node<'a>(name: &str, nodes: impl IntoIterator<Item = &'a str>) -> Self {
        let help = match nearest(name, nodes) {
            Some(near) => format!("did you mean {near}?"),
            None => "`vmm ls LAB` lists the nodes".to_owned(),
        };
        Self {
            help: Some(help),
            ..Self::new(
                StatusCode::NOT_FOUND,
                format!("there is no node called {name}"),
            )
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_vec(&self).unwrap_or_default();
        (
            status,
            [(header::CONTENT_TYPE, "application/problem+json")],
            body,
        )
            .into_response()
    }
}
