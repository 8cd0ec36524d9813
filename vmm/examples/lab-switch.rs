//! The switch, for tests of labs without virtual machines. An example only because those are built for tests and not
//! installed.

use std::process::ExitCode;

fn main() -> ExitCode {
    vswitch::cli::main()
}
