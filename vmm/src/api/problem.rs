//! Errors of the API: RFC 9457 problem documents.

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::types::Problem;
use crate::failure::nearest;

/// So many nodes can be named in a message.
const FEW: usize = 10;

impl Problem {
    /// The media type of a problem document.
    pub const MEDIA_TYPE: &str = "application/problem+json";

    /// A problem of the kind that `status` names.
    pub fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self {
            status: status.as_u16(),
            title: status.canonical_reason().unwrap_or("Error").to_owned(),
            detail: detail.into(),
            help: None,
        }
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn with_help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// The node called `name` is no machine.
    pub fn inside_the_switch(name: &str) -> Self {
        Self::new(
            StatusCode::CONFLICT,
            format!("{name} is a node inside the switch; it has no kernel of its own"),
        )
    }

    /// There is no link called `name`; those there are have the names `links`.
    pub fn no_such_link<'a>(name: &str, links: impl IntoIterator<Item = &'a str>) -> Self {
        let problem = Self::new(
            StatusCode::NOT_FOUND,
            format!("there is no link called {name}"),
        );
        match nearest(name, links) {
            Some(near) => problem.with_help(format!("did you mean {near}?")),
            None => problem.with_help("`vmm link ls` lists the links"),
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
        (status, [(header::CONTENT_TYPE, Self::MEDIA_TYPE)], body).into_response()
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
