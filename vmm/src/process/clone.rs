//! Between `clone3` and `execve`.
//!
//! The new process is a copy of one that has other threads, so that between the two only what is async-signal-safe may be
//! called: system calls on memory that was prepared before.

use std::ffi::{CString, OsStr, OsString};
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::ptr;

use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::process::{Signal, set_parent_process_death_signal, setsid};
use rustix::thread::{CpuSet, sched_setaffinity};

use super::Namespaces;

/// Descriptors a process can inherit at most.
const MOST: usize = 64;
/// A number above all of theirs.
const ABOVE: RawFd = 128;

/// Everything the new process needs, made before it exists.
pub struct Child {
    program: CString,
    /// Keep what the pointers below point to.
    _strings: Vec<CString>,
    arguments: Vec<*const libc::c_char>,
    environment: Vec<*const libc::c_char>,
    /// What it inherits, from standard input on.
    descriptors: Vec<OwnedFd>,
    processors: Option<CpuSet>,
    outlives: bool,
}

fn c_string(text: &OsStr) -> io::Result<CString> {
    CString::new(text.as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

impl Child {
    pub fn new(
        program: &Path,
        arguments: &[OsString],
        environment: impl Iterator<Item = (OsString, OsString)>,
        descriptors: Vec<OwnedFd>,
        processors: Option<CpuSet>,
        outlives: bool,
    ) -> io::Result<Self> {
        if descriptors.len() > MOST {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let program = c_string(program.as_os_str())?;
        let mut strings = vec![program.clone()];
        for argument in arguments {
            strings.push(c_string(argument)?);
        }
        let count = strings.len();
        for (name, value) in environment {
            let pair = [name.into_vec(), value.into_vec()].join(&b'=');
            strings.push(CString::new(pair).map_err(io::Error::other)?);
        }
        let null_ended = |strings: &[CString]| {
            let pointers = strings.iter().map(|string| string.as_ptr());
            pointers.chain([ptr::null()]).collect()
        };
        Ok(Self {
            program,
            arguments: null_ended(&strings[..count]),
            environment: null_ended(&strings[count..]),
            _strings: strings,
            descriptors,
            processors,
            outlives,
        })
    }

    /// Makes the process, lets it go on once `admit` agrees, and returns its number once it has executed its program.
    pub fn start(
        &self,
        jailed: Option<Namespaces>,
        admit: impl FnOnce(u32) -> io::Result<()>,
    ) -> io::Result<u32> {
        let (go, mut sign) = io::pipe()?;
        let (mut failure, report) = io::pipe()?;
        let mut arguments = CloneArguments {
            flags: jailed.map_or(0, flags),
            exit_signal: libc::SIGCHLD as u64,
            ..CloneArguments::default()
        };
        let (pointer, size) = (&raw mut arguments, size_of::<CloneArguments>());
        // SAFETY: without CLONE_VM the new process has a copy of this one's memory, and its thread goes on behind this call in it;
        // it calls nothing but `run`, which keeps to the rules and does not return. The arguments live until the call returns.
        let pid = unsafe { libc::syscall(libc::SYS_clone3, pointer, size) };
        match pid {
            0 => self.run(&go, &sign, &report),
            1.. => {}
            _ => return Err(io::Error::last_os_error()),
        }
        let pid = pid as u32;
        drop((go, report));
        let result = admit(pid).and_then(|()| sign.write_all(&[1]));
        // Without a sign it ends by itself.
        drop(sign);
        let mut errno = [0; 4];
        let read = failure.read_exact(&mut errno);
        let error = match (result, read) {
            // Closed by `execve`.
            (Ok(()), Err(_)) => return Ok(pid),
            (Err(error), _) => error,
            (Ok(()), Ok(())) => io::Error::from_raw_os_error(i32::from_ne_bytes(errno)),
        };
        // SAFETY: the process is this one's child and nobody else waits for it; a null pointer asks for no status.
        unsafe { libc::waitpid(pid.cast_signed(), ptr::null_mut(), 0) };
        Err(error)
    }

    /// The new process. `sign` is its copy of what the other end of `go` is written with. Here and below only bare system calls
    /// are made: those of rustix are, and so are these of the C library.
    fn run(&self, go: &PipeReader, sign: &PipeWriter, report: &PipeWriter) -> ! {
        let errno = match self.prepare(go, sign, report) {
            Ok(report) => {
                let program = self.program.as_ptr();
                let (arguments, environment) = (self.arguments.as_ptr(), self.environment.as_ptr());
                // SAFETY: a NUL-terminated string and two arrays of such strings, each ended by a null pointer; `self` keeps them.
                unsafe { libc::execve(program, arguments, environment) };
                let errno = io::Error::last_os_error().raw_os_error();
                (errno.unwrap_or(libc::EINVAL), report)
            }
            Err(errno) => (errno.raw_os_error(), report.as_raw_fd()),
        };
        let (errno, report) = errno;
        // SAFETY: one or the other is open, and nobody closes it.
        let report = unsafe { BorrowedFd::borrow_raw(report) };
        let _ = rustix::io::write(report, &errno.to_ne_bytes());
        exit()
    }

    /// Returns where to report a failure to from then on.
    fn prepare(
        &self,
        go: &PipeReader,
        sign: &PipeWriter,
        report: &PipeWriter,
    ) -> Result<RawFd, Errno> {
        // First: the lab may end at any moment, and then nobody else would end this process.
        if !self.outlives {
            set_parent_process_death_signal(Some(Signal::KILL))?;
        }
        // Ctrl-C in the lab's terminal is for the lab alone; and the group is what the lab kills. A session of its own, not only a group, as
        // the kernel sends SIGHUP to a group with stopped processes (a paused node) whose last tie to its session, the lab, ends.
        setsid()?;
        // Else the lab's death would not be seen below.
        // SAFETY: the copy of this process, which nobody else in it uses: it has no other thread, and does not return.
        unsafe { rustix::io::close(sign.as_raw_fd()) };
        loop {
            match rustix::io::read(go, &mut [0; 1]) {
                Ok(1) => break,
                Err(Errno::INTR) => {}
                // The lab has died, or does not want this process.
                _ => exit(),
            }
        }
        // In two steps, as the numbers they are to have may be those of others now.
        let mut moved = [0; MOST];
        for (moved, descriptor) in moved.iter_mut().zip(&self.descriptors) {
            *moved = fcntl_dupfd_cloexec(descriptor, ABOVE)?.into_raw_fd();
        }
        let report = fcntl_dupfd_cloexec(report, ABOVE)?.into_raw_fd();
        let count = self.descriptors.len();
        for (number, moved) in (0..).zip(moved.iter().take(count)) {
            // SAFETY: takes numbers; what was open as `number` is of no use here any more.
            check(unsafe { libc::dup2(*moved, number) }.into())?;
        }
        // Whatever else the lab has open, by whoever's mistake.
        let (first, last) = (count as libc::c_uint, libc::c_uint::MAX);
        let flags = libc::CLOSE_RANGE_CLOEXEC;
        // SAFETY: takes numbers, and closes nothing before `execve`.
        check(unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) })?;
        if let Some(processors) = &self.processors {
            sched_setaffinity(None, processors)?;
        }
        // As a shell would start it: Rust programs ignore SIGPIPE, and the lab may block signals.
        // SAFETY: sets a disposition, not a handler.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
        // SAFETY: plain bits; all of them zero are the empty set.
        let none: libc::sigset_t = unsafe { std::mem::zeroed() };
        let (set, old) = (&raw const none, ptr::null_mut());
        // SAFETY: reads `none`, which lives until the call returns; the former mask is not asked for.
        check(unsafe { libc::sigprocmask(libc::SIG_SETMASK, set, old) }.into())?;
        Ok(report)
    }
}

fn check(result: libc::c_long) -> Result<(), Errno> {
    if result == -1 {
        let error = io::Error::last_os_error();
        return Err(Errno::from_io_error(&error).unwrap_or(Errno::INVAL));
    }
    Ok(())
}

/// Ends the new process without what the lab has registered for its own end.
fn exit() -> ! {
    // SAFETY: ends the process; nothing of it is used afterwards.
    unsafe { libc::_exit(127) }
}

/// Of clone(2), as far as every kernel with `clone3` knows it.
#[repr(C, align(8))]
#[derive(Default)]
struct CloneArguments {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
}

fn flags(namespaces: Namespaces) -> u64 {
    let inner = libc::CLONE_NEWNS
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWCGROUP;
    let all = match namespaces {
        Namespaces::Own => inner | libc::CLONE_NEWUSER | libc::CLONE_NEWNET,
        Namespaces::OwnButNetwork => inner,
        Namespaces::OwnButUsers => inner | libc::CLONE_NEWNET,
        Namespaces::Hosts => 0,
    };
    all as u64
}
