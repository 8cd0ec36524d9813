//! `vmm`: launches and operates Hopyard labs.

mod api;
mod cgroup;
mod cli;
mod client;
mod engine;
mod failure;
mod image;
mod isolation;
mod lab;
mod process;
mod sanitize;
mod usage;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
