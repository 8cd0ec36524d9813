//! The topology file of a Hopyard lab: types, units, checks.
#![warn(missing_docs)]
pub mod model;
pub mod net;
