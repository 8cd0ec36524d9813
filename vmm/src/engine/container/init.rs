//! What becomes PID 1 of a container: makes the node's root from the image, and then is the agent.

use std::ffi::CStr;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use agent_protocol::LISTENER;
use monitor::NodeConfig;
use rustix::fs::{FileType, Mode, makedev, mknodat};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount,
};
use rustix::thread::{CapabilitySet, remove_capability_from_bounding_set};

/// The first descriptor behind the standard ones.
const LISTENS_ON: &str = "3";
const LOG: &str = "/proc/1/fd/1";
const AGENT: &str = "/sbin/hopyard-agent";
/// Character devices of a node.
const DEVICES: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];
/// There is no kernel's log of its own, nor a serial port: both are what its engine keeps.
const LINKS: [(&str, &str); 8] = [
    ("console", LOG),
    ("kmsg", LOG),
    ("ttyS0", LOG),
    ("ptmx", "pts/ptmx"),
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
];
/// What is the whole host's, and nobody's business in a node.
const DROPPED: [CapabilitySet; 6] = [
    CapabilitySet::SYS_MODULE,
    CapabilitySet::SYS_RAWIO,
    CapabilitySet::SYS_TIME,
    CapabilitySet::SYSLOG,
    CapabilitySet::MKNOD,
    CapabilitySet::WAKE_ALARM,
];

/// Waits until its interfaces are there and becomes the agent; returns only if that fails.
pub fn become_node(config: &NodeConfig) -> io::Error {
    let mut line = String::new();
    match io::stdin().read_line(&mut line) {
        Ok(1..) => {}
        // The lab has ended, or says why by itself.
        Ok(_) => return io::ErrorKind::UnexpectedEof.into(),
        Err(error) => return error,
    }
    if let Err(error) = make_root(config) {
        return error;
    }
    Command::new(AGENT)
        .env_clear()
        .env(
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        )
        .env("HOME", "/root")
        .env(LISTENER, LISTENS_ON)
        .exec()
}

fn make_root(config: &NodeConfig) -> io::Result<()> {
    let step = |what: &str| {
        let what = what.to_owned();
        move |error: io::Error| io::Error::new(error.kind(), format!("cannot {what}: {error}"))
    };
    rustix::system::sethostname(config.name.as_bytes())?;
    // Nothing that is mounted here shows outside.
    mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )?;
    let base = config.agent_socket.parent().unwrap_or(Path::new("/run"));
    let none = MountFlags::empty();
    mount(c"tmpfs", base, c"tmpfs", none, c"mode=0755")
        .map_err(|error| step("mount a tmpfs for changes to the root")(error.into()))?;
    let folder = |name: &str| base.join(name);
    for name in ["lower", "upper", "work", "root"] {
        fs::create_dir(folder(name))?;
    }
    image(&config.rootfs, &folder("lower"))?;
    let overlay = |name: &str| folder(name).display().to_string();
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        overlay("lower"),
        overlay("upper"),
        overlay("work")
    );
    let options = std::ffi::CString::new(options)?;
    let root = folder("root");
    mount(c"overlay", &root, c"overlay", none, &*options)
        .map_err(|error| step("mount the overlay over the root")(error.into()))?;
    let plain = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let pty = MountFlags::NOSUID | MountFlags::NOEXEC;
    let table: [(&CStr, &str, MountFlags, &CStr); 6] = [
        (c"proc", "proc", plain, c""),
        (c"sysfs", "sys", plain | MountFlags::RDONLY, c""),
        (c"tmpfs", "dev", MountFlags::NOSUID, c"mode=0755"),
        (
            c"devpts",
            "dev/pts",
            pty,
            c"newinstance,mode=0620,gid=5,ptmxmode=0666",
        ),
        (
            c"tmpfs",
            "dev/shm",
            MountFlags::NOSUID | MountFlags::NODEV,
            c"mode=1777",
        ),
        (
            c"tmpfs",
            "run",
            MountFlags::NOSUID | MountFlags::NODEV,
            c"mode=0755",
        ),
    ];
    for (kind, place, flags, options) in table {
        let target = root.join(place);
        fs::create_dir_all(&target)?;
        mount(kind, &target, kind, flags, options)
            .map_err(|error| step(&format!("mount /{place}"))(error.into()))?;
    }
    devices(&root.join("dev")).map_err(step("make devices"))?;
    protect_host(&root).map_err(step("protect the host's settings"))?;
    std::env::set_current_dir(&root)?;
    rustix::process::pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    std::env::set_current_dir("/")?;
    for capability in DROPPED {
        remove_capability_from_bounding_set(capability)?;
    }
    Ok(())
}

/// Mounts the image: by mount(8), which finds a loop device that goes when it is unmounted.
fn image(file: &Path, place: &Path) -> io::Result<()> {
    let output = Command::new("mount")
        .args(["-t", "erofs", "-o", "ro,loop"])
        .args([file, place])
        .output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let problem = format!(
        "cannot mount {}: {} (does the host's kernel have erofs and loop devices?)",
        file.display(),
        said.trim()
    );
    Err(io::Error::other(problem))
}

fn devices(dev: &Path) -> io::Result<()> {
    for (name, major, minor) in DEVICES {
        let place = dev.join(name);
        let mode = Mode::from_raw_mode(0o666);
        mknodat(
            rustix::fs::CWD,
            &place,
            FileType::CharacterDevice,
            mode,
            makedev(major, minor),
        )?;
        // Whatever the umask.
        rustix::fs::chmod(&place, mode)?;
    }
    for (name, target) in LINKS {
        symlink(target, dev.join(name))?;
    }
    Ok(())
}

/// Only the settings of its own network can be changed, and nothing that acts on the whole host.
fn protect_host(root: &Path) -> io::Result<()> {
    let bind =
        |from: &Path, to: &Path| rustix::mount::mount_bind(from, to).map_err(io::Error::from);
    let settings = root.join("proc/sys");
    let network = settings.join("net");
    bind(&settings, &settings)?;
    bind(&network, &network)?;
    let read_only = MountFlags::BIND
        | MountFlags::RDONLY
        | MountFlags::NOSUID
        | MountFlags::NODEV
        | MountFlags::NOEXEC;
    rustix::mount::mount_remount(&settings, read_only, c"")?;
    for file in ["proc/sysrq-trigger", "proc/kcore", "proc/timer_list"] {
        let file = root.join(file);
        if file.exists() {
            bind(&root.join("dev/null"), &file)?;
        }
    }
    Ok(())
}
