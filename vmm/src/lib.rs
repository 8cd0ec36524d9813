//! `vmm`: launches and operates Hopyard labs.
//!
//! A program; as a library it has what fuzz targets need beside.
#![warn(missing_docs)]

mod api;
mod bench;
mod cgroup;
mod cli;
mod client;
mod copy;
mod engine;
mod failure;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod image;
mod isolation;
mod lab;
mod process;
mod sanitize;
mod session;
mod units;
mod verify;

pub use cli::main;
