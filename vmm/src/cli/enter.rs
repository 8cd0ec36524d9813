//! `vmm enter`: enters a jail, then becomes the program that is to run in it.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use clap::Args;
use jail::Plan;

use crate::failure::{Code, Failure};

/// Arguments of the hidden verb.
#[derive(Debug, Args)]
pub struct EnterArgs {
    /// What it keeps, as JSON
    #[arg(value_parser = plan)]
    plan: Plan,
    /// The program and its arguments; none to say what holds in the jail
    #[arg(last = true)]
    program: Vec<OsString>,
}

/// Reads a plan.
pub fn plan(text: &str) -> Result<Plan, String> {
    serde_json::from_str(text).map_err(|error| error.to_string())
}

pub fn run(args: &EnterArgs) -> Result<ExitCode, Failure> {
    let entered =
        jail::enter(&args.plan).map_err(|error| Failure::new(Code::Host, error.to_string()))?;
    let [program, arguments @ ..] = &args.program[..] else {
        super::print_json_line(&entered)?;
        return Ok(ExitCode::SUCCESS);
    };
    let error = Command::new(program).args(arguments).exec();
    let program = program.display();
    Err(Failure::new(
        Code::Host,
        format!("cannot start {program} in its jail: {error}"),
    ))
}
