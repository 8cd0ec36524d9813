//! For tests: attacks, and how they ended.

use std::collections::BTreeSet;
use std::ffi::c_long;
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};

use crate::filter::Table;

/// Above the last system call of any kernel to come for a while.
const CALLS: c_long = 600;
/// `uretprobe` and `uprobe`: the kernel's own, which it lets pass any filter and which do nothing unless it has placed a probe.
const PROBES: [c_long; 2] = [335, 336];

/// How a process ends that applies the filter and makes a call: by itself, or by this signal.
pub fn end_of(table: &Table, number: c_long, arguments: [c_long; 3]) -> Result<(), i32> {
    let filter = table.compile().expect("a table is a filter");
    // SAFETY: the copy makes three system calls on memory that it has, and ends without returning.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let status = i32::from(filter.apply().is_err());
        let [a, b, c] = arguments;
        // SAFETY: of what is allowed none does harm in a process that ends now; the rest does not come about.
        unsafe { libc::syscall(number, a, b, c, 0, 0, 0) };
        // SAFETY: ends the process.
        unsafe { libc::_exit(status) };
    }
    assert!(pid > 0);
    let mut status = 0;
    // SAFETY: a child of this process that nobody else waits for; the status is written to an integer.
    let waited = unsafe { libc::waitpid(pid, &raw mut status, 0) };
    assert_eq!(waited, pid);
    match (libc::WIFSIGNALED(status), libc::WIFEXITED(status)) {
        (true, _) => Err(libc::WTERMSIG(status)),
        (_, true) if libc::WEXITSTATUS(status) == 0 => Ok(()),
        _ => panic!("{}: the filter was refused: {status:#x}", table.name),
    }
}

/// Says that an attack was made so often and has always been held, and how long it took at most until all was as before. `.ci/attacks` makes
/// a table of these.
pub fn held(attack: &str, tries: u64, recovery: Option<Duration>) {
    let recovery =
        recovery.map_or_else(|| "–".to_owned(), |time| format!("{} ms", time.as_millis()));
    println!("ATTACK | {attack} | {tries} | {recovery} |");
}

/// Makes every call that is not in each table, and panics over one that does not end the process; how many there were.
pub fn every_other_call(tables: &[Table]) -> usize {
    let mut tried = 0;
    for table in tables {
        for number in 0..CALLS {
            if PROBES.contains(&number) || table.all().any(|call| call.number == number) {
                continue;
            }
            let end = end_of(table, number, [0; 3]);
            assert_eq!(end, Err(libc::SIGSYS), "{}: call {number}", table.name);
            tried += 1;
        }
    }
    tried
}

/// A process that may have few descriptors more than it has; dropped, as many as before.
#[derive(Debug)]
pub struct Starved {
    process: Pid,
    before: Rlimit,
}

impl Starved {
    /// Leaves a process, which has the limits of this one, `free` descriptors.
    ///
    /// # Panics
    /// If there is no such process, or it is another user's.
    pub fn of(process: u32, free: usize) -> Self {
        let open = std::fs::read_dir(format!("/proc/{process}/fd")).expect("a process");
        let open: BTreeSet<u64> = open
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .collect();
        let mut gaps = (0..).filter(|number| !open.contains(number));
        let starved = Self {
            process: Pid::from_raw(process.cast_signed()).expect("a process"),
            before: getrlimit(Resource::Nofile),
        };
        starved.set(Rlimit {
            current: gaps.nth(free),
            ..starved.before
        });
        starved
    }

    fn set(&self, limit: Rlimit) {
        prlimit(Some(self.process), Resource::Nofile, limit).expect("a process of one's own");
    }
}

impl Drop for Starved {
    fn drop(&mut self) {
        self.set(self.before);
    }
}
