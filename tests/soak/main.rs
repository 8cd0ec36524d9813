//! What takes too long for every change: faults by the hundred, labs by the thousand. `make soak` runs it.

mod faults;
mod launches;

use std::process::ExitCode;

use tests::{Case, Engine, Needs};

fn main() -> ExitCode {
    let case = |name: &str, engine, run| Case {
        name: format!("{}::{name}", Engine::name(engine)),
        needs: Needs::Machines(engine),
        run,
    };
    tests::case::main(vec![
        case("faults::switch_killed", Engine::Qemu, faults::switch_killed),
        case("faults::node_killed", Engine::Qemu, faults::node_killed),
        case("faults::lab_killed", Engine::Qemu, faults::lab_killed),
        case(
            "faults::janitor_killed",
            Engine::Qemu,
            faults::janitor_killed,
        ),
        case("faults::lab_adopted", Engine::Qemu, faults::lab_adopted),
        case("faults::stopped", Engine::Qemu, faults::stopped),
        case("launches::in_a_row", Engine::Container, launches::in_a_row),
    ])
}
