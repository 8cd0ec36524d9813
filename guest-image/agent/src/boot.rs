//! From the first instruction of PID 1 to a complete, writable root.

use std::ffi::CStr;
use std::fs;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use agent_protocol::{LISTENER, PORT_NAME};
use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, UnmountFlags};

const NONE: MountFlags = MountFlags::empty();

/// Puts a writable layer in guest memory over the read-only root, and mounts what programs expect.
/// Goes on after a failure: a node with half a root can still be looked at. Returns what failed.
pub fn mount_root() -> Vec<String> {
    let mut problems = Vec::new();
    let root = match overlay() {
        Ok(root) => root,
        Err(problem) => {
            problems.push(problem);
            Path::new("/")
        }
    };
    let hardened = MountFlags::NOSUID | MountFlags::NODEV;
    let plain = hardened | MountFlags::NOEXEC;
    let pty = MountFlags::NOSUID | MountFlags::NOEXEC;
    for (kind, place, flags, options) in [
        (c"proc", "proc", plain, c""),
        (c"sysfs", "sys", plain, c""),
        (c"devtmpfs", "dev", MountFlags::NOSUID, c"mode=0755"),
        (c"devpts", "dev/pts", pty, c"mode=0620,gid=5,ptmxmode=0666"),
        (c"tmpfs", "dev/shm", hardened, c"mode=1777"),
        (c"tmpfs", "run", hardened, c"mode=0755"),
        (c"cgroup2", "sys/fs/cgroup", plain, c""),
    ] {
        let target = root.join(place);
        // Some are folders of a file system mounted just before.
        let result = fs::create_dir_all(&target).and_then(|()| {
            Ok(rustix::mount::mount(
                kind,
                &target,
                kind,
                flags,
                Some(options),
            )?)
        });
        if let Err(error) = result {
            problems.push(format!(
                "cannot mount {} on /{place}: {error}",
                kind.to_string_lossy()
            ));
        }
    }
    if root != Path::new("/")
        && let Err(error) = enter(root)
    {
        problems.push(format!("cannot make {} the root: {error}", root.display()));
    }
    problems
}

fn overlay() -> Result<&'static Path, String> {
    let step = |what: &'static str| {
        move |error: rustix::io::Errno| format!("cannot mount {what}: {error}")
    };
    let mount = |kind: &CStr, target: &str, options: &CStr| {
        rustix::mount::mount(kind, target, kind, NONE, Some(options))
    };
    mount(c"tmpfs", "/run", c"mode=0755").map_err(step("a tmpfs for changes to the root"))?;
    for folder in ["/run/upper", "/run/work", "/run/root"] {
        fs::create_dir(folder).map_err(|error| format!("cannot make {folder}: {error}"))?;
    }
    mount(
        c"overlay",
        "/run/root",
        c"lowerdir=/,upperdir=/run/upper,workdir=/run/work",
    )
    .map_err(step("the overlay over the root"))?;
    Ok(Path::new("/run/root"))
}

fn enter(root: &Path) -> io::Result<()> {
    std::env::set_current_dir(root)?;
    rustix::process::pivot_root(".", ".")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH)?;
    std::env::set_current_dir("/")
}

/// Where the launcher connects, if this is PID 1 of a container and not of a machine.
pub fn container() -> Option<OwnedFd> {
    let number = std::env::var(LISTENER).ok()?.parse().ok()?;
    // What runs in the node does not need to know.
    // SAFETY: this is the first thing that is done, and there are no other threads.
    unsafe { std::env::remove_var(LISTENER) };
    // SAFETY: the engine has left this descriptor open for PID 1, and this is asked once.
    Some(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Opens the port to the launcher, if the kernel has found it.
pub fn open_port() -> Option<OwnedFd> {
    let name = port_name(Path::new("/sys/class/virtio-ports"))?;
    rustix::fs::open(
        Path::new("/dev").join(name),
        OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY,
        Mode::empty(),
    )
    .ok()
}

/// The device name (`vport1p1`) of the port that calls itself [`PORT_NAME`].
fn port_name(ports: &Path) -> Option<PathBuf> {
    fs::read_dir(ports)
        .ok()?
        .flatten()
        .find(|port| {
            fs::read_to_string(port.path().join("name"))
                .is_ok_and(|name| name.trim_end() == PORT_NAME)
        })
        .map(|port| port.file_name().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_is_found_by_its_name() {
        let ports = tempfile::tempdir().unwrap();
        for (device, name) in [
            ("vport1p0", "org.example.other\n"),
            ("vport1p2", "hopyard.agent\n"),
        ] {
            fs::create_dir(ports.path().join(device)).unwrap();
            fs::write(ports.path().join(device).join("name"), name).unwrap();
        }
        assert_eq!(port_name(ports.path()), Some(PathBuf::from("vport1p2")));
        assert_eq!(port_name(&ports.path().join("missing")), None);
    }
}
