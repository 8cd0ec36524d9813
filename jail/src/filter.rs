//! Seccomp: a thread keeps the system calls of its kind, and any other ends the process.
//!
//! A [`Table`] is what a person audits: one line per system call, with the reason.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter,
};

/// The system calls of one kind of thread.
#[derive(Debug, Clone, Copy)]
pub struct Table {
    /// The kind of thread.
    pub name: &'static str,
    /// What it may call, besides what is in [`Table::with`].
    pub calls: &'static [Call],
    /// Calls it shares with other kinds.
    pub with: &'static [&'static [Call]],
}

/// A system call that a thread may make.
#[derive(Debug, Clone, Copy)]
pub struct Call {
    /// Its number.
    pub number: i64,
    /// Its name.
    pub name: &'static str,
    /// With which arguments.
    pub when: When,
    /// What for.
    pub reason: &'static str,
}

/// Which arguments a system call may have.
#[derive(Debug, Clone, Copy)]
pub enum When {
    /// Any.
    Always,
    /// The argument of this number, as 32 bits, is one of these; each with its name.
    One(u8, &'static [(u64, &'static str)]),
    /// Of the argument of this number these bits are set so: mask, value, and what it means.
    Bits(u8, u64, u64, &'static str),
}

/// An entry of a [`Table`]: `call!(SYS_read, "why")`, `call!(SYS_ioctl, 1, [FIONREAD], "why")` for one of some values of argument 1,
/// `call!(SYS_mmap, 2, PROT_EXEC => 0, "why")` for bits of argument 2.
#[macro_export]
macro_rules! call {
    ($name:ident, $reason:literal) => {
        $crate::call!(@ $name, $crate::filter::When::Always, $reason)
    };
    ($name:ident, $argument:literal, [$($value:expr),+ $(,)?], $reason:literal) => {
        $crate::call!(
            @ $name,
            $crate::filter::When::One($argument, &[$(($value as u64, stringify!($value))),+]),
            $reason
        )
    };
    ($name:ident, $argument:literal, $mask:expr => $value:expr, $reason:literal) => {
        $crate::call!(
            @ $name,
            $crate::filter::When::Bits(
                $argument,
                $mask as u64,
                $value as u64,
                concat!(stringify!($mask), " = ", stringify!($value)),
            ),
            $reason
        )
    };
    (@ $name:ident, $when:expr, $reason:literal) => {
        $crate::filter::Call {
            number: ::libc::$name,
            name: stringify!($name),
            when: $when,
            reason: $reason,
        }
    };
}

/// What any Rust thread needs to allocate, wait, tell the time and end.
pub const THREAD: &[Call] = &[
    call!(SYS_brk, "the allocator grows the heap"),
    call!(SYS_mmap, 2, libc::PROT_EXEC => 0, "the allocator; a thread's signal stack"),
    call!(SYS_mprotect, 2, libc::PROT_EXEC => 0, "the allocator grows an arena"),
    call!(SYS_mremap, "the allocator resizes a large block"),
    call!(SYS_munmap, "the allocator; the end of a thread"),
    call!(
        SYS_madvise,
        2,
        [libc::MADV_DONTNEED, libc::MADV_FREE],
        "the allocator; the end of a thread"
    ),
    call!(SYS_futex, "locks, channels, waiting for threads"),
    call!(SYS_sched_yield, "a lock that spins"),
    call!(SYS_clock_gettime, "time, where the vDSO cannot tell it"),
    call!(SYS_clock_nanosleep, "pauses"),
    call!(
        SYS_restart_syscall,
        "a pause goes on after SIGSTOP and SIGCONT: `vmm node pause`"
    ),
    call!(SYS_rt_sigprocmask, "the end of a thread; abort"),
    call!(SYS_rt_sigreturn, "the handler of a stack overflow returns"),
    call!(SYS_rt_sigaction, "the handler of a stack overflow; abort"),
    call!(SYS_sigaltstack, "the end of a thread"),
    call!(SYS_getpid, "abort"),
    call!(SYS_gettid, "a panic names its thread; abort"),
    call!(SYS_tgkill, 2, [libc::SIGABRT], "abort"),
    call!(SYS_exit, "the end of a thread"),
    call!(SYS_exit_group, "the end of the process"),
    call!(SYS_close, "descriptors that are of no use any more"),
    call!(
        SYS_fcntl,
        1,
        [libc::F_GETFD],
        "a build with checks looks whether a descriptor that it closes is open"
    ),
    call!(SYS_write, "eventfds, streams, warnings"),
];

/// Why a filter does not hold.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// The table is no filter.
    #[error("the system call filter {0} cannot be built: {1}")]
    Build(&'static str, #[source] seccompiler::BackendError),
    /// The kernel refuses it.
    #[error("the system call filter {0} is refused; is CONFIG_SECCOMP_FILTER in this kernel? {1}")]
    Apply(&'static str, #[source] seccompiler::Error),
}

/// A table in the form the kernel takes.
#[derive(Debug, Clone)]
pub struct Filter {
    name: &'static str,
    program: BpfProgram,
}

impl Filter {
    /// From now on the calling thread, and what it starts, makes only the calls of the table; another ends the process with
    /// SIGSYS.
    pub fn apply(&self) -> Result<(), FilterError> {
        apply_filter(&self.program).map_err(|error| FilterError::Apply(self.name, error))
    }
}

/// To be called before the process has a second thread. The C library would give threads heaps of their own, and open files to find out
/// how many there may be (`/sys/devices/system/cpu/online`) and whether memory of them can be given back (`/proc/sys/vm/overcommit_memory`),
/// at a moment that nobody foresees. Threads that are confined share one heap; where it counts they do not allocate.
pub fn prepare() {
    // SAFETY: sets a number of the allocator's.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

/// A filter, or none outside of a jail.
#[derive(Debug, Clone, Default)]
pub struct Confine(Option<Filter>);

impl Confine {
    /// Confines the calling thread. If that fails the process ends: it is not to serve guests like that.
    pub fn this_thread(&self) {
        if let Some(Err(error)) = self.0.as_ref().map(Filter::apply) {
            eprintln!("{error}");
            std::process::exit(1);
        }
    }
}

impl Table {
    /// Translates it for a thread.
    pub fn confine(&self) -> Result<Confine, FilterError> {
        self.compile().map(|filter| Confine(Some(filter)))
    }

    /// All its calls.
    pub fn all(&self) -> impl Iterator<Item = &Call> {
        let shared = self.with.iter().flat_map(|calls| calls.iter());
        self.calls.iter().chain(shared)
    }

    /// Translates it for the kernel.
    pub fn compile(&self) -> Result<Filter, FilterError> {
        let build = |error| FilterError::Build(self.name, error);
        let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
        let mut always = Vec::new();
        for call in self.all() {
            let of_call = rules.entry(call.number).or_default();
            let conditions = call.when.conditions().map_err(build)?;
            if conditions.is_empty() {
                always.push(call.number);
            }
            for condition in conditions {
                of_call.push(SeccompRule::new(vec![condition]).map_err(build)?);
            }
        }
        // A call that is listed without conditions has none, wherever else it is listed.
        for number in always {
            rules.insert(number, Vec::new());
        }
        let filter = SeccompFilter::new(
            rules,
            SeccompAction::KillProcess,
            SeccompAction::Allow,
            TargetArch::x86_64,
        )
        .map_err(build)?;
        Ok(Filter {
            name: self.name,
            program: filter.try_into().map_err(build)?,
        })
    }

    /// For people: a Markdown table.
    pub fn describe(&self) -> String {
        let mut text = format!(
            "### `{}`\n\n| system call | if | for |\n|---|---|---|\n",
            self.name
        );
        let mut calls: Vec<_> = self.all().collect();
        calls.sort_by_key(|call| call.name);
        for Call {
            name, when, reason, ..
        } in calls
        {
            let name = name.trim_start_matches("SYS_");
            let _ = writeln!(text, "| `{name}` | {} | {reason} |", when.describe());
        }
        text
    }
}

impl When {
    /// Alternatives; none for any arguments.
    fn conditions(self) -> Result<Vec<SeccompCondition>, seccompiler::BackendError> {
        // The kernel takes these arguments as 32 bits, whatever is above.
        let condition = |argument, operator, value| {
            SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)
        };
        match self {
            Self::Always => Ok(Vec::new()),
            Self::One(argument, values) => values
                .iter()
                .map(|(value, _)| condition(argument, SeccompCmpOp::Eq, *value & 0xffff_ffff))
                .collect(),
            Self::Bits(argument, mask, value, _) => Ok(vec![condition(
                argument,
                SeccompCmpOp::MaskedEq(mask),
                value,
            )?]),
        }
    }

    fn describe(self) -> String {
        match self {
            Self::Always => String::new(),
            Self::One(argument, values) => {
                let names: Vec<_> = values
                    .iter()
                    .map(|(_, name)| format!("`{}`", name.rsplit("::").next().unwrap_or(name)))
                    .collect();
                format!("argument {argument} is {}", names.join(", "))
            }
            Self::Bits(argument, _, _, meaning) => {
                format!("argument {argument}: `{}`", meaning.replace("libc::", ""))
            }
        }
    }
}

/// For tests: compares the part of a Markdown file between the comments `<!-- begin: NAME -->` and `<!-- end: NAME -->` with `text`;
/// with `UPDATE` in the environment replaces it.
pub fn check_documentation(path: &std::path::Path, name: &str, text: &str) {
    let (begin, end) = (
        format!("<!-- begin: {name} -->\n"),
        format!("<!-- end: {name} -->"),
    );
    let document = std::fs::read_to_string(path).expect("the documentation can be read");
    let (before, rest) = document
        .split_once(&begin)
        .expect("the beginning is marked");
    let (current, after) = rest.split_once(&end).expect("the end is marked");
    if current == text {
        return;
    }
    assert!(
        std::env::var_os("UPDATE").is_some(),
        "{} is not current; run this test with UPDATE=1",
        path.display()
    );
    std::fs::write(path, format!("{before}{begin}{text}{end}{after}"))
        .expect("the documentation can be written");
}
