//! `vmm`: launches and operates Hopyard labs.

mod api;
mod bench;
mod cgroup;
mod cli;
mod client;
mod copy;
mod engine;
mod failure;
mod image;
mod isolation;
mod lab;
mod process;
mod sanitize;
mod session;
mod units;
mod verify;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
