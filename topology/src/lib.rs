//! The topology file of a Hopyard lab: types, units, checks.
//!
//! [`Topology::load`](model::Topology::load) reads a file into the [`model`], or says everything that is wrong with it in a [`Report`].
#![warn(missing_docs)]

pub mod assignment;
mod check;
mod de;
pub mod difference;
mod document;
pub mod edit;
mod file;
mod host;
mod link;
mod load;
pub mod model;
pub mod net;
pub mod quantity;
mod report;
mod resolve;
mod routing;
mod schema;
pub mod segment;
mod verification;
mod written;
pub mod zones;

pub use host::{Files, Folder};
pub use load::{Loaded, Sources};
pub use report::{Finding, Report, Severity};
pub use schema::json_schema;
