//! The system call filters of a monitor: every call that is not in a thread's table ends the process, and the tables in the
//! documentation are these.

use std::ffi::c_long;

use jail::attempt::{end_of, every_other_call, held};
use jail::filter::Table;
use monitor::filters::{DEVICES, MAIN, ORDERS, SWITCH, TABLES, VCPU};

#[test]
fn every_call_that_is_not_in_the_table_ends_the_process() {
    let tried = every_other_call(&TABLES);
    held(
        "a thread of a monitor makes a system call that is not in its table",
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
            assert_eq!(end_of(table, number, [0, 0, 1]), Ok(()), "{}", table.name);
        }
    }
    // TIOCSTI types into a terminal; KVM_CREATE_VM makes another machine; KVM_SET_USER_MEMORY_REGION gives this one other memory.
    for request in [0x5412, 0xae01, 0x4020_ae46] {
        for table in [VCPU, DEVICES] {
            assert_eq!(
                end_of(&table, libc::SYS_ioctl, [0, request, 0]),
                Err(libc::SIGSYS)
            );
        }
    }
    assert_eq!(end_of(&VCPU, libc::SYS_ioctl, [-1, 0xae80, 0]), Ok(()));
    for family in [
        libc::AF_INET,
        libc::AF_INET6,
        libc::AF_NETLINK,
        libc::AF_PACKET,
        libc::AF_VSOCK,
    ] {
        let call = end_of(&SWITCH, libc::SYS_socket, [family.into(), 1, 0]);
        assert_eq!(call, Err(libc::SIGSYS), "family {family}");
    }
    assert_eq!(
        end_of(&SWITCH, libc::SYS_socket, [libc::AF_UNIX.into(), 1, 0]),
        Ok(())
    );
    // What the processor threads may do the others may not, and the other way round.
    for table in [MAIN, DEVICES, SWITCH, ORDERS] {
        assert_eq!(
            end_of(&table, libc::SYS_ioctl, [-1, 0xae80, 0]),
            Err(libc::SIGSYS)
        );
    }
    for table in [MAIN, VCPU, DEVICES, ORDERS] {
        assert_eq!(
            end_of(&table, libc::SYS_connect, [-1, 0, 0]),
            Err(libc::SIGSYS)
        );
    }
}

#[test]
fn the_tables_in_the_documentation_are_current() {
    let tables: Vec<_> = TABLES.iter().map(Table::describe).collect();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/isolation.md");
    jail::filter::check_documentation(path.as_ref(), "vmm node", &tables.join("\n"));
}
