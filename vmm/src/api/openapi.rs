//! The description of the API, generated from its code.

use utoipa::openapi::{Content, OpenApi, Ref, RefOr, Response};
use utoipa::{OpenApi as _, ToSchema};

use super::types::{ExecReply, ExecRequest, Problem};

/// What the routes do not say themselves.
#[derive(Debug, utoipa::OpenApi)]
#[openapi(
    info(
        title = "Hopyard lab",
        description = "A running lab, on the Unix socket `control.sock` in its run folder. Every error is a problem document \
                       (RFC 9457) with a detail for people and often a help.",
    ),
    tags(
        (name = "lab", description = "The lab as a whole"),
        (name = "nodes", description = "Machines, and what lives inside the switch"),
        (name = "links", description = "Links between nodes"),
    ),
    components(schemas(ExecRequest, ExecReply, Problem)),
)]
struct Common;

/// A description without routes.
pub fn common() -> OpenApi {
    Common::openapi()
}

/// Adds to each request what all have in common: an error is a problem document.
pub fn complete(document: &mut OpenApi) {
    let content = Content::new(Some(Ref::from_schema_name(Problem::name())));
    for item in document.paths.paths.values_mut() {
        let operations = [
            &mut item.get,
            &mut item.post,
            &mut item.patch,
            &mut item.put,
            &mut item.delete,
        ];
        for operation in operations.into_iter().flatten() {
            let responses = &mut operation.responses.responses;
            let any = || RefOr::T(Response::new("Any other error"));
            responses.entry("default".to_owned()).or_insert_with(any);
            for (status, response) in responses {
                if let RefOr::T(response) = response
                    && (status == "default" || status.starts_with(['4', '5']))
                {
                    response
                        .content
                        .insert(Problem::MEDIA_TYPE.to_owned(), RefOr::T(content.clone()));
                }
            }
        }
    }
}
