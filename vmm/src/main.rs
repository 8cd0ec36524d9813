//! `vmm`: launches and operates Hopyard labs.

mod api;
mod cli;
mod client;
mod engine;
mod failure;
mod image;
mod lab;
mod sanitize;
mod units;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
