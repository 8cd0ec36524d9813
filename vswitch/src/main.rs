//! The virtual switch of a Hopyard lab.

use std::process::ExitCode;

fn main() -> ExitCode {
    vswitch::cli::main()
}
