//! The system call filters of a switch: every call that is not in a thread's table ends the process, and the tables in the
//! documentation are these.

use std::ffi::c_long;

use jail::attempt::{end_of, every_other_call, held};
use jail::filter::Table;
use vswitch::filters::{CONTROL, PORT, SHARD, TABLES, WATCHDOG};

#[test]
fn every_call_that_is_not_in_the_table_ends_the_process() {
    let tried = every_other_call(&TABLES);
    held(
        "a thread of the switch makes a system call that is not in its table",
        tried as u64,
        None,
    );
}

#[test]
fn calls_that_are_allowed_with_some_arguments_end_the_process_with_others() {
    let exec = c_long::from(libc::PROT_READ | libc::PROT_EXEC);
    for table in &TABLES {
        for number in [libc::SYS_mmap, libc::SYS_mprotect] {
            assert_eq!(
                end_of(table, number, [0, 0, exec]),
                Err(libc::SIGSYS),
                "{}",
                table.name
            );
        }
    }
    // TIOCSTI types into a terminal; the others make a TAP device persistent, or attach a program to it.
    for request in [0x5412, 0x4004_54cb, 0x8004_54e0] {
        for table in [CONTROL, SHARD, PORT] {
            let call = end_of(&table, libc::SYS_ioctl, [0, request, 0]);
            assert_eq!(call, Err(libc::SIGSYS), "{}: {request:#x}", table.name);
        }
    }
    for family in [
        libc::AF_INET,
        libc::AF_INET6,
        libc::AF_NETLINK,
        libc::AF_PACKET,
        libc::AF_VSOCK,
    ] {
        for table in [PORT, SHARD] {
            let call = end_of(&table, libc::SYS_socket, [family.into(), 1, 0]);
            assert_eq!(call, Err(libc::SIGSYS), "{}: {family}", table.name);
        }
    }
    // Seals are looked at, not set; locks and leases are nobody's.
    for command in [
        libc::F_ADD_SEALS,
        libc::F_SETLK,
        libc::F_SETLEASE,
        libc::F_SETOWN,
    ] {
        let call = end_of(&PORT, libc::SYS_fcntl, [0, command.into(), 0]);
        assert_eq!(call, Err(libc::SIGSYS), "fcntl {command}");
    }
    // Nobody is killed but by itself, and nobody but the watchdog wakes.
    let kill =
        |table: &Table, signal: i32| end_of(table, libc::SYS_tgkill, [-1, -1, signal.into()]);
    for table in [SHARD, PORT, CONTROL] {
        assert_eq!(kill(&table, libc::SIGKILL), Err(libc::SIGSYS));
        assert_eq!(kill(&table, libc::SIGURG), Err(libc::SIGSYS));
    }
    assert_eq!(kill(&WATCHDOG, libc::SIGURG), Ok(()));
}

#[test]
fn the_tables_in_the_documentation_are_current() {
    let tables: Vec<_> = TABLES.iter().map(Table::describe).collect();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/isolation.md");
    jail::filter::check_documentation(path.as_ref(), "vswitch", &tables.join("\n"));
}
