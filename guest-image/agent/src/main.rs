//! PID 1 of a node; see the library.

fn main() -> std::process::ExitCode {
    agent::main()
}
