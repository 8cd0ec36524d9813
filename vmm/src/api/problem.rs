//! Errors of the API: RFC 9457 problem documents.

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::types::Problem;
use crate::failure::nearest;

/// So many nodes can be named in a message.
const FEW: usize = 10;

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

    /// There is no node called `name` in `lab`, whose nodes are `nodes`.
    pub fn no_such_node(name: &str, lab: &str, nodes: &[&str]) -> Self {
        let help = match nearest(name, nodes.iter().copied()) {
            Some(near) => format!("did you mean {near}?"),
            None if nodes.len() <= FEW => format!("its nodes are {}", nodes.join(", ")),
            None => format!("`vmm ls {lab}` lists its nodes"),
        };
        let detail = format!("there is no node called {name}");
        Self {
            help: Some(help),
            ..Self::new(StatusCode::NOT_FOUND, detail)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_nodes_are_answered_with_what_there_is() {
        let help = |name, nodes: &[&str]| Problem::no_such_node(name, "lab", nodes).help.unwrap();
        assert_eq!(help("pc3", &["pc1", "r"]), "did you mean pc1?");
        assert_eq!(help("web", &["pc1", "r"]), "its nodes are pc1, r");
        assert_eq!(help("web", &["r"; 11]), "`vmm ls lab` lists its nodes");
    }
}
