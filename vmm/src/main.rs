//! Launches and operates Hopyard labs.

fn main() -> std::process::ExitCode {
    vmm::main()
}
