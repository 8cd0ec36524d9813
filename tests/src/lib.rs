//! What the end-to-end tests are made of: a private world to run labs in, and the proof that nothing is left
//! of them.
#![warn(missing_docs)]

pub mod case;
pub mod lab;
pub mod process;
pub mod traces;
mod tsc;
pub mod user;
pub mod world;

pub use case::{Case, Engine, Needs};
pub use lab::{Foreground, Lab};
pub use process::Output;
pub use world::World;
