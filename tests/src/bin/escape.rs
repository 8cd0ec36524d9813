//! Stands in for a process of a lab that a guest has taken over: enters the jail it is given, as that process would, and tries to
//! get out. Says on standard error which tries were held, on one line.

use std::ffi::CString;
use std::io;
use std::net::TcpStream;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

/// A try: its name, and whether it is held.
type Try = (&'static str, fn() -> Result<(), io::Error>);

/// Everything that a process of a lab has no business with. `Ok` is an escape.
const TRIES: &[Try] = &[
    ("read-a-host-file", || {
        std::fs::read("/etc/passwd").map(drop)
    }),
    ("read-another-process-through-proc", || {
        std::fs::read("/proc/1/status").map(drop)
    }),
    ("list-the-labs", || {
        std::fs::read_dir("/run").and_then(|mut all| all.next().map(drop).ok_or_else(nothing))
    }),
    ("reach-the-lab's-control-socket", || {
        UnixStream::connect(beside("control.sock")).map(drop)
    }),
    ("reach-another-node's-port", || {
        // One of them is its own.
        UnixStream::connect(beside("ports/a/eth0.sock"))?;
        UnixStream::connect(beside("ports/b/eth0.sock")).map(drop)
    }),
    ("write-to-the-root", || std::fs::write("/escaped", "x")),
    ("write-to-usr", || std::fs::write("/usr/escaped", "x")),
    ("make-a-file-in-the-port's-folder", || {
        std::fs::write(beside("ports/a/escaped"), "x")
    }),
    ("signal-another-process", signal_others),
    ("trace-another-process", || {
        others(|pid| unsafe_call(libc::SYS_ptrace, [PTRACE_SEIZE, pid, 0, 0, 0]))
    }),
    ("read-another-process's-memory", read_others),
    ("mount", || mount(c"tmpfs")),
    ("mount-proc", || mount(c"proc")),
    ("become-root-of-new-namespaces", || {
        unsafe_call(libc::SYS_unshare, [libc::CLONE_NEWUSER.into(), 0, 0, 0, 0])
    }),
    ("get-a-network-namespace", || {
        unsafe_call(libc::SYS_unshare, [libc::CLONE_NEWNET.into(), 0, 0, 0, 0])
    }),
    ("change-the-root", || {
        unsafe_call(libc::SYS_chroot, [c"/".as_ptr() as i64, 0, 0, 0, 0])
    }),
    ("become-another-user", || {
        unsafe_call(libc::SYS_setuid, [12, 0, 0, 0, 0])
    }),
    ("get-capabilities", get_capabilities),
    ("connect-by-tcp", || {
        TcpStream::connect_timeout(&([127, 0, 0, 1], 9).into(), Duration::from_secs(1)).map(drop)
    }),
    ("connect-to-an-abstract-socket", abstract_socket),
    ("make-a-raw-socket", || {
        descriptor(
            libc::SYS_socket,
            [libc::AF_INET.into(), libc::SOCK_RAW.into(), 1, 0, 0],
        )
    }),
    ("watch-the-kernel", || {
        unsafe_call(libc::SYS_syslog, [3, 0, 0, 0, 0])
    }),
    ("open-a-file-by-its-handle", || {
        unsafe_call(
            libc::SYS_open_by_handle_at,
            [libc::AT_FDCWD.into(), (&raw const HANDLE) as i64, 0, 0, 0],
        )
    }),
    ("raise-a-limit", || {
        unsafe_call(
            libc::SYS_prlimit64,
            [
                0,
                libc::RLIMIT_CORE.into(),
                (&raw const UNLIMITED) as i64,
                0,
                0,
            ],
        )
    }),
    ("dump-a-core", || {
        unsafe_call(libc::SYS_prctl, [libc::PR_SET_DUMPABLE.into(), 2, 0, 0, 0])
    }),
    ("run-a-set-user-ID-program", set_user_id),
];

/// Unlike PTRACE_ATTACH it does not stop the process.
const PTRACE_SEIZE: i64 = 0x4206;
/// What can be tried outside of a jail.
const HARMLESS: [&str; 4] = [
    "read-a-host-file",
    "read-another-process-through-proc",
    "signal-another-process",
    "connect-to-an-abstract-socket",
];

/// A `struct file_handle` of eight bytes and a type that ext4 and tmpfs know.
static HANDLE: [u32; 4] = [8, 1, 2, 0];
static UNLIMITED: [u64; 2] = [u64::MAX; 2];

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().collect();
    let after = |name: &str| {
        let place = arguments.iter().position(|argument| argument == name)?;
        arguments.get(place + 1)
    };
    // QEMU's double finds itself in jail; the others enter by themselves.
    if let Some(plan) = after("--jail") {
        let plan = serde_json::from_str(plan).map_err(io::Error::other);
        let entered = plan.and_then(|plan| jail::enter(&plan).map_err(io::Error::other));
        if let Err(error) = entered {
            eprintln!("no jail: {error}");
            return ExitCode::from(3);
        }
    }
    // Outside of a jail only what leaves no trace: it is the host that the rest would harm.
    let jailed = std::process::id() == 1;
    let mut words = Vec::new();
    for (name, attempt) in TRIES {
        if !jailed && !HARMLESS.contains(name) {
            continue;
        }
        words.push(match attempt() {
            Ok(()) => format!("{name}=ESCAPED"),
            Err(error) => format!("{name}=held({})", error.raw_os_error().unwrap_or(0)),
        });
    }
    eprintln!("TRIES {} END", words.join(" "));
    ExitCode::from(3)
}

fn nothing() -> io::Error {
    io::ErrorKind::NotFound.into()
}

/// A path of the lab `two-hosts`, as the test has told where that is; the environment of a jail does not.
fn beside(name: &str) -> std::path::PathBuf {
    let mut lab = std::env::args()
        .find_map(|argument| {
            let start = argument.find("/hopyard-test.")?;
            let folder = argument[start + 1..].split('/').next()?;
            Some(Path::new("/tmp").join(folder))
        })
        .unwrap_or_default();
    lab.extend(["run", "two-hosts", name]);
    lab
}

fn unsafe_call(number: i64, arguments: [i64; 5]) -> io::Result<()> {
    let [first, second, third, fourth, fifth] = arguments;
    // SAFETY: what these calls point to is static; one that succeeds has failed its purpose, and this process ends soon.
    match unsafe { libc::syscall(number, first, second, third, fourth, fifth) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// As above, for calls whose bad arguments are looked at only once they are permitted.
fn descriptor(number: i64, arguments: [i64; 5]) -> io::Result<()> {
    match unsafe_call(number, arguments) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EFAULT | libc::EINVAL)) => Ok(()),
        result => result,
    }
}

/// The first other process for which the call succeeds.
fn others(call: impl Fn(i64) -> io::Result<()>) -> io::Result<()> {
    let this = i64::from(std::process::id());
    let parent = i64::from(std::os::unix::process::parent_id());
    let mut last = Err(nothing());
    for pid in [parent]
        .into_iter()
        .chain(1..40_000)
        .filter(|pid| *pid != this && *pid > 0)
    {
        last = call(pid);
        if last.is_ok() {
            break;
        }
    }
    last
}

fn signal_others() -> io::Result<()> {
    others(|pid| unsafe_call(libc::SYS_kill, [pid, 0, 0, 0, 0]))
}

fn read_others() -> io::Result<()> {
    static LOCAL: [u64; 2] = [0; 2];
    others(|pid| {
        let empty = (&raw const LOCAL) as i64;
        unsafe_call(libc::SYS_process_vm_readv, [pid, empty, 1, empty, 1])
    })
}

fn mount(kind: &std::ffi::CStr) -> io::Result<()> {
    let (kind, target) = (kind.as_ptr() as i64, c"/".as_ptr() as i64);
    unsafe_call(libc::SYS_mount, [kind, target, kind, 0, 0])
}

fn get_capabilities() -> io::Result<()> {
    // struct __user_cap_header_struct and two of __user_cap_data_struct, all capabilities set.
    static HEADER: [u32; 2] = [0x2008_0522, 0];
    static ALL: [u32; 6] = [u32::MAX; 6];
    unsafe_call(
        libc::SYS_capset,
        [(&raw const HEADER) as i64, (&raw const ALL) as i64, 0, 0, 0],
    )
}

fn abstract_socket() -> io::Result<()> {
    UnixStream::connect_addr(&SocketAddr::from_abstract_name("hopyard-escape")?).map(drop)
}

fn set_user_id() -> io::Result<()> {
    let su = ["/usr/bin/su", "/bin/su"]
        .into_iter()
        .find(|path| Path::new(path).exists());
    let su = CString::new(su.ok_or_else(nothing)?).map_err(io::Error::other)?;
    let output = Command::new(su.to_string_lossy().as_ref())
        .args(["-c", "grep -q 'CapEff:.*[1-9a-f]' /proc/self/status"])
        .output()?;
    if output.status.success() {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(libc::EPERM))
    }
}
