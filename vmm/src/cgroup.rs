//! Control groups: what the process of a node may take of the host, beside its guest's own memory.
//!
//! A lab has one group, in it one group for each node that asks for limits. Version 2 (cgroups(7)) is used where it has the
//! controllers, else version 1. Writing a few files is all there is to it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use topology::model::Limits;

/// What the kernel's default period of bandwidth control is, µs.
const PERIOD: u64 = 100_000;
/// The weight of a group that says nothing: version 2's, and what that is in version 1.
const WEIGHT: u64 = 100;
const SHARES: u64 = 1024;
/// What a person can do where no group can be made.
const REMEDY: &str = "run vmm as root, or in a group of its own: \
     `systemd-run --user --scope -p Delegate=yes vmm launch …`";

/// The group of a lab.
#[derive(Debug)]
pub struct LabGroup {
    version: Version,
    /// One in version 2; one for each controller in version 1.
    folders: Vec<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// The group of a node.
#[derive(Debug, Clone)]
pub struct NodeGroup(Vec<PathBuf>);

impl LabGroup {
    /// Makes the group of the lab called `name`; an error says why there can be none.
    pub fn create(name: &str) -> Result<Self, String> {
        let host = Host::read().map_err(|error| format!("/proc/self cannot be read: {error}"))?;
        let name = format!("hopyard-{name}-{}", std::process::id());
        match host.create(&name) {
            Ok(group) => Ok(group),
            Err(error) => Err(format!("{error}; {REMEDY}")),
        }
    }

    /// That of a lab that runs; `None` if it has none.
    pub fn of(folders: Vec<PathBuf>) -> Option<Self> {
        let first = folders.first()?;
        let version = if first.join("cgroup.controllers").exists() {
            Version::Two
        } else {
            Version::One
        };
        Some(Self { version, folders })
    }

    /// Its folders, for [`remove`].
    pub fn folders(&self) -> &[PathBuf] {
        &self.folders
    }

    /// Makes the group of a node with these limits; `ram` is its guest's memory.
    pub fn node(&self, name: &str, limits: &Limits, ram: u64) -> io::Result<NodeGroup> {
        let mut folders = Vec::new();
        for folder in &self.folders {
            let folder = folder.join(format!("node-{name}"));
            match fs::create_dir(&folder) {
                // It has booted before.
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
            for (file, value) in self.version.settings(limits, ram) {
                let file = folder.join(file);
                // In version 1 each folder has the files of its own controller.
                if self.version == Version::Two || file.exists() {
                    fs::write(&file, &value).map_err(|error| {
                        let problem =
                            format!("cannot write {value} to {}: {error}", file.display());
                        io::Error::new(error.kind(), problem)
                    })?;
                }
            }
            folders.push(folder);
        }
        Ok(NodeGroup(folders))
    }
}

impl NodeGroup {
    /// Puts a process into it.
    pub fn admit(&self, pid: u32) -> io::Result<()> {
        self.0
            .iter()
            .try_for_each(|folder| fs::write(folder.join("cgroup.procs"), pid.to_string()))
    }
}

/// Removes the group of a lab, whose processes have ended.
pub fn remove(folder: &Path) -> io::Result<()> {
    // Only what this module has made.
    let ours = folder
        .file_name()
        .is_some_and(|name| name.to_string_lossy().starts_with("hopyard-"));
    if !ours || !folder.exists() {
        return Ok(());
    }
    // In a delegated group the lab itself has moved inside (see `delegate`), its janitor with it.
    let inside = members(&folder.join("lab"));
    if let Some(parent) = folder.parent()
        && !inside.is_empty()
    {
        for entry in fs::read_dir(folder)?.flatten() {
            if entry.file_name() != "lab" && entry.path().is_dir() {
                fs::remove_dir(entry.path())?;
            }
        }
        for group in [folder, parent] {
            let enabled = fs::read_to_string(group.join("cgroup.subtree_control"))?;
            for controller in enabled.split_ascii_whitespace() {
                fs::write(
                    group.join("cgroup.subtree_control"),
                    format!("-{controller}"),
                )?;
            }
        }
        for pid in inside {
            fs::write(parent.join("cgroup.procs"), pid.to_string())?;
        }
    }
    for entry in fs::read_dir(folder)?.flatten() {
        if entry.path().is_dir() {
            fs::remove_dir(entry.path())?;
        }
    }
    fs::remove_dir(folder)
}

fn members(group: &Path) -> Vec<u32> {
    let text = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

impl Version {
    /// Files and what to write to them.
    fn settings(self, limits: &Limits, ram: u64) -> Vec<(&'static str, String)> {
        let mut settings = Vec::new();
        let memory = limits
            .memory
            .map(|more| ram.saturating_add(more).to_string());
        let quota = limits
            .cpu
            .map(|thousandths| u64::from(thousandths) * PERIOD / 1000);
        let weight = limits.weight.map(u64::from);
        match self {
            Self::Two => {
                settings.extend(quota.map(|quota| ("cpu.max", format!("{quota} {PERIOD}"))));
                settings.extend(weight.map(|weight| ("cpu.weight", weight.to_string())));
                settings.extend(memory.map(|bytes| ("memory.max", bytes)));
            }
            Self::One => {
                settings.extend(quota.map(|_| ("cpu.cfs_period_us", PERIOD.to_string())));
                settings.extend(quota.map(|quota| ("cpu.cfs_quota_us", quota.to_string())));
                let shares = weight.map(|weight| (weight * SHARES / WEIGHT).max(2));
                settings.extend(shares.map(|shares| ("cpu.shares", shares.to_string())));
                settings.extend(memory.map(|bytes| ("memory.limit_in_bytes", bytes)));
            }
        }
        settings
    }
}

/// The control groups of this machine, and where this process is in them.
struct Host {
    /// `/proc/self/mountinfo`.
    mounts: String,
    /// `/proc/self/cgroup`.
    groups: String,
}

impl Host {
    fn read() -> io::Result<Self> {
        Ok(Self {
            mounts: fs::read_to_string("/proc/self/mountinfo")?,
            groups: fs::read_to_string("/proc/self/cgroup")?,
        })
    }

    /// Mount point and root of the hierarchy of this type, with this option if it is one of version 1 (proc_pid_mountinfo(5)).
    fn mount(&self, kind: &str, controller: Option<&str>) -> Option<(&str, &str)> {
        self.mounts.lines().find_map(|line| {
            let (place, what) = line.split_once(" - ")?;
            let mut what = what.split(' ');
            let (found, _source, options) = (what.next()?, what.next()?, what.next()?);
            let has = controller.is_none_or(|wanted| options.split(',').any(|o| o == wanted));
            let mut place = place.split(' ').skip(3);
            let (root, point) = (place.next()?, place.next()?);
            (found == kind && has).then_some((point, root))
        })
    }

    /// The folder of this process's group: of version 2, or of a controller of version 1.
    fn own(&self, controller: Option<&str>) -> Option<PathBuf> {
        let kind = if controller.is_some() {
            "cgroup"
        } else {
            "cgroup2"
        };
        let (point, root) = self.mount(kind, controller)?;
        let path = self.groups.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            let (controllers, path) = (parts.next()?, parts.next()?);
            let found = match controller {
                None => controllers.is_empty(),
                Some(wanted) => controllers.split(',').any(|c| c == wanted),
            };
            found.then_some(path)
        })?;
        // What is mounted may be a part of the hierarchy.
        let inside = path
            .strip_prefix(root.trim_end_matches('/'))
            .unwrap_or(path);
        Some(Path::new(point).join(inside.trim_start_matches('/')))
    }

    fn create(&self, name: &str) -> io::Result<LabGroup> {
        if let Some(own) = self.own(None)
            && has_controllers(&own, "cgroup.controllers")
        {
            let root = self
                .mount("cgroup2", None)
                .map(|(point, _)| PathBuf::from(point));
            return delegate(&own, name).or_else(|error| {
                // Root may make groups at the top, where the rule that groups with groups have no processes does not hold.
                let top = root.filter(|root| *root != own && rustix::process::geteuid().is_root());
                top.map_or(Err(error), |top| version_2(&top, name))
            });
        }
        let mut folders = Vec::new();
        for controller in ["cpu", "memory"] {
            let own = self.own(Some(controller)).ok_or_else(|| {
                let missing = format!("this machine has no control groups for {controller}");
                io::Error::new(io::ErrorKind::Unsupported, missing)
            })?;
            let folder = own.join(name);
            // Both may be in one hierarchy.
            if !folders.contains(&folder) {
                make(&folder).inspect_err(|_| {
                    for made in &folders {
                        let _ = remove(made);
                    }
                })?;
                folders.push(folder);
            }
        }
        Ok(LabGroup {
            version: Version::One,
            folders,
        })
    }
}

fn make(folder: &Path) -> io::Result<()> {
    fs::create_dir(folder).map_err(|error| {
        let problem = format!(
            "cannot make the control group {}: {error}",
            folder.display()
        );
        io::Error::new(error.kind(), problem)
    })
}

fn has_controllers(group: &Path, file: &str) -> bool {
    let text = fs::read_to_string(group.join(file)).unwrap_or_default();
    ["cpu", "memory"]
        .iter()
        .all(|wanted| text.split_ascii_whitespace().any(|has| has == *wanted))
}

/// Lets groups below `group` have limits.
fn enable(group: &Path) -> io::Result<()> {
    if has_controllers(group, "cgroup.subtree_control") {
        return Ok(());
    }
    fs::write(group.join("cgroup.subtree_control"), "+cpu +memory").map_err(|error| {
        let problem = format!(
            "{} cannot have groups with limits: {error}",
            group.display()
        );
        io::Error::new(error.kind(), problem)
    })
}

fn version_2(parent: &Path, name: &str) -> io::Result<LabGroup> {
    enable(parent)?;
    let folder = parent.join(name);
    make(&folder)?;
    enable(&folder).inspect_err(|_| {
        let _ = fs::remove_dir(&folder);
    })?;
    Ok(LabGroup {
        version: Version::Two,
        folders: vec![folder],
    })
}

/// Makes the lab's group in its own group, and moves the lab inside if it is alone there: a group with limited groups in it may
/// have no processes (the "no internal processes" rule of cgroups(7)), unless it is the root.
fn delegate(own: &Path, name: &str) -> io::Result<LabGroup> {
    let error = match version_2(own, name) {
        Ok(group) => return Ok(group),
        Err(error) => error,
    };
    // Beside the lab process perhaps the one that has started it in the background.
    let program = |pid: &u32| fs::read_link(format!("/proc/{pid}/exe")).ok();
    let this = program(&std::process::id());
    let inhabitants = members(own);
    let alone = inhabitants.iter().all(|pid| program(pid) == this);
    if error.kind() != io::ErrorKind::ResourceBusy || !alone {
        return Err(error);
    }
    let folder = own.join(name);
    let inside = folder.join("lab");
    make(&folder)?;
    let moved = make(&inside)
        .and_then(|()| {
            let file = inside.join("cgroup.procs");
            inhabitants
                .iter()
                .try_for_each(|pid| fs::write(&file, pid.to_string()))
        })
        .and_then(|()| enable(own))
        .and_then(|()| enable(&folder));
    moved.inspect_err(|_| {
        let _ = remove(&folder);
    })?;
    Ok(LabGroup {
        version: Version::Two,
        folders: vec![folder],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        cpu: Some(1500),
        weight: Some(50),
        processors: Vec::new(),
        memory: Some(8 << 20),
    };

    #[test]
    fn limits_are_what_the_kernel_calls_them() {
        assert_eq!(
            Version::Two.settings(&LIMITS, 128 << 20),
            [
                ("cpu.max", "150000 100000".to_owned()),
                ("cpu.weight", "50".to_owned()),
                ("memory.max", (136 << 20).to_string()),
            ]
        );
        assert_eq!(
            Version::One.settings(&LIMITS, 128 << 20),
            [
                ("cpu.cfs_period_us", "100000".to_owned()),
                ("cpu.cfs_quota_us", "150000".to_owned()),
                ("cpu.shares", "512".to_owned()),
                ("memory.limit_in_bytes", (136 << 20).to_string()),
            ]
        );
    }

    #[test]
    fn a_process_finds_its_own_groups() {
        let host = Host {
            mounts: "\
30 24 0:26 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
31 24 0:27 /docker/x /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
32 24 0:28 / /sys/fs/cgroup/cpu,cpuacct rw shared:1 - cgroup cgroup rw,cpu,cpuacct
"
            .to_owned(),
            groups: "4:memory:/docker/x/lab\n2:cpu,cpuacct:/\n0::/user.slice/s.scope\n".to_owned(),
        };
        let own = |controller| host.own(controller).unwrap().display().to_string();
        assert_eq!(own(None), "/sys/fs/cgroup/unified/user.slice/s.scope");
        assert_eq!(own(Some("memory")), "/sys/fs/cgroup/memory/lab");
        assert_eq!(own(Some("cpu")), "/sys/fs/cgroup/cpu,cpuacct/");
        assert_eq!(host.own(Some("pids")), None);
    }

    #[test]
    fn only_groups_of_labs_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let other = folder.path().join("precious");
        fs::create_dir(&other).unwrap();
        remove(&other).unwrap();
        assert!(other.exists());
        let ours = folder.path().join("hopyard-x-1");
        fs::create_dir_all(ours.join("node-a")).unwrap();
        remove(&ours).unwrap();
        assert!(!ours.exists());
        remove(&ours).unwrap();
    }
}
