//! End-to-end tests: the programs as a person runs them, with real guests.
//!
//! Every case of [`LABS`] runs twice, under engine `qemu` on this machine and under engine `kvm`, which needs
//! hardware virtualization or else the nested host of `tests/nested`.

mod adopt;
mod attacks;
mod bad_input;
mod change;
mod containers;
mod copies;
mod ends;
mod escapes;
mod faults;
mod guard;
mod launch;
mod limits;
mod measure;
mod nodes;
mod offloads;
mod operate;
mod outside;
mod queues;
mod shell;
mod tutorial;
mod user;
mod zones;

use std::process::ExitCode;

use anyhow::Result;
use tests::{Case, Engine, Needs, World};

type Run = fn(&World) -> Result<()>;

const PROGRAMS: &[(&str, Run)] = &[
    ("bad_input::topologies", bad_input::topologies),
    ("bad_input::warnings", bad_input::warnings),
    ("bad_input::image_missing", bad_input::image_missing),
    ("bad_input::no_such_lab", bad_input::no_such_lab),
    ("bad_input::no_kvm", bad_input::no_kvm),
    ("launch::generated", launch::generated),
    ("outside::tap", outside::tap),
    ("bad_input::cache_disk_full", bad_input::cache_disk_full),
];

const LABS: &[(&str, Run)] = &[
    ("launch::two_hosts", launch::two_hosts),
    ("launch::exec", launch::exec),
    ("launch::lan", launch::lan),
    ("launch::two_labs", launch::two_labs),
    ("launch::figure3", launch::figure3),
    ("shell::terminal", shell::terminal),
    ("ends::as_the_topology_says", ends::as_the_topology_says),
    ("ends::with_the_lab", ends::with_the_lab),
    ("faults::node_killed", faults::node_killed),
    ("faults::switch_killed", faults::switch_killed),
    ("faults::launcher_killed", faults::launcher_killed),
    ("faults::at_any_moment", faults::at_any_moment),
    ("adopt::under_traffic", adopt::under_traffic),
    ("faults::never_ready", faults::never_ready),
    ("faults::never_answers", faults::never_answers),
    ("faults::too_much_memory", faults::too_much_memory),
    ("copies::one_per_frame", copies::one_per_frame),
    ("operate::links_live", operate::links_live),
    ("operate::nodes_live", operate::nodes_live),
    ("change::while_it_runs", change::while_it_runs),
    ("change::a_partition_heals", change::a_partition_heals),
    ("user::not_root", user::not_root),
    ("user::of_their_own", user::of_their_own),
    ("user::others_are_refused", user::others_are_refused),
    ("limits::enforced", limits::enforced),
    ("limits::not_enforced", limits::not_enforced),
    ("operate::looked_at", operate::looked_at),
    ("offloads::on_and_off", offloads::on_and_off),
    ("nodes::in_and_out", nodes::in_and_out),
    ("nodes::story", nodes::story),
    ("attacks::by_a_driver", attacks::by_a_driver),
];

/// An emulated processor inside an emulated processor is too slow for the rates these need, and a page is typed once.
const QEMU_ONLY: &[(&str, Run)] = &[
    ("tutorial::typed", tutorial::typed),
    ("escapes::qemu_and_switch", escapes::qemu_and_switch),
    ("guard::names", guard::names),
    ("zones::apart", zones::apart),
    ("queues::in_the_link", queues::in_the_link),
    ("queues::in_the_guest", queues::in_the_guest),
    (
        "queues::iperf_through_a_shaped_link",
        queues::iperf_through_a_shaped_link,
    ),
];

const KVM_ONLY: &[(&str, Run)] = &[
    ("escapes::monitor", escapes::monitor),
    ("faults::clock_jumps", faults::clock_jumps),
    ("measure::router_with_24_nics", measure::router_with_24_nics),
    ("limits::delegated", limits::delegated),
    ("measure::iperf", measure::iperf),
    ("measure::overhead", measure::overhead),
    ("measure::boot_time", measure::boot_time),
    ("containers::beside_machines", containers::beside_machines),
    ("containers::compared", containers::compared),
];

/// What containers are to do as machines do, and what is theirs alone.
const CONTAINERS: &[(&str, Run)] = &[
    ("launch::two_hosts", launch::two_hosts),
    ("launch::exec", launch::exec),
    ("launch::lan", launch::lan),
    ("launch::two_labs", launch::two_labs),
    ("launch::figure3", launch::figure3),
    ("shell::terminal", shell::terminal),
    ("faults::node_killed", faults::node_killed),
    ("faults::launcher_killed", faults::launcher_killed),
    ("adopt::under_traffic", adopt::under_traffic),
    ("operate::links_live", operate::links_live),
    ("change::while_it_runs", change::while_it_runs),
    ("containers::what_they_are", containers::what_they_are),
    ("containers::beside_machines", containers::beside_machines),
    ("containers::the_switch_dies", containers::the_switch_dies),
    ("containers::kernel_fabric", containers::kernel_fabric),
    ("containers::measured", containers::measured),
    ("zones::apart", zones::apart),
];

fn main() -> ExitCode {
    let programs = PROGRAMS.iter().map(|&(name, run)| Case {
        name: name.to_owned(),
        needs: Needs::Programs,
        run,
    });
    let with = |engine: Engine| {
        move |&(name, run): &(&str, Run)| Case {
            name: format!("{}::{name}", engine.name()),
            needs: Needs::Machines(engine),
            run,
        }
    };
    let qemu = LABS.iter().chain(QEMU_ONLY).map(with(Engine::Qemu));
    let kvm = LABS.iter().chain(KVM_ONLY).map(with(Engine::Kvm));
    let container = CONTAINERS.iter().map(with(Engine::Container));
    tests::case::main(programs.chain(qemu).chain(kvm).chain(container).collect())
}
