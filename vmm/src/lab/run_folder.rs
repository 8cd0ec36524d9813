//! Where running labs are: one folder per lab, held by a lock for as long as its lab process (or its janitor) lives.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};
use topology::Sources;
use topology::zones::COMMON;

use super::children;
use super::saved::Saved;
use crate::cgroup;
use crate::failure::{Code, Failure};

/// Bytes of the longest path a Unix socket can be bound to (`sockaddr_un`, without the final NUL).
const SOCKET_PATH_MAX: usize = 107;
/// How long a process that was just killed may take to be gone.
const DEATH_PATIENCE: Duration = Duration::from_millis(200);
/// How long the processes of a control group may take to be gone once they were killed.
const GROUP_PATIENCE: Duration = Duration::from_secs(5);
/// How long a launch waits for the janitor of a killed lab of the same name.
const JANITOR_PATIENCE: Duration = Duration::from_secs(5);

/// The folder that holds all labs of a user.
#[derive(Debug, Clone)]
pub struct RunRoot(PathBuf);

/// The paths of one lab.
#[derive(Debug, Clone)]
pub struct LabPaths {
    folder: PathBuf,
}

/// What `lab.json` says about the process that runs a lab.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LabRecord {
    /// The lab process.
    pub pid: u32,
    /// The topology file.
    pub file: PathBuf,
    /// The folders of its control groups.
    #[serde(default)]
    pub groups: Vec<PathBuf>,
}

/// A lab's folder, owned by this process through its lock.
#[derive(Debug)]
pub struct RunFolder {
    /// Its paths.
    pub paths: LabPaths,
    lock: File,
}

impl RunRoot {
    /// `$HOPYARD_RUN`, else `/run/hopyard` for root, else `$XDG_RUNTIME_DIR/hopyard`.
    pub fn from_env() -> Result<Self, Failure> {
        let variable = |name| {
            std::env::var_os(name)
                .filter(|v| !v.is_empty())
                .map(PathBuf::from)
        };
        if let Some(path) = variable("HOPYARD_RUN") {
            let path = std::path::absolute(&path).map_err(|error| {
                Failure::new(
                    Code::Host,
                    format!("HOPYARD_RUN={}: {error}", path.display()),
                )
            })?;
            return Ok(Self(path));
        }
        if rustix::process::geteuid().is_root() {
            return Ok(Self(PathBuf::from("/run/hopyard")));
        }
        variable("XDG_RUNTIME_DIR").map(|path| Self(path.join("hopyard"))).ok_or_else(|| {
            Failure::new(Code::Host, "no folder for running labs: XDG_RUNTIME_DIR is not set")
                .help("set HOPYARD_RUN to a folder of yours with a short path, such as /tmp/lab-$USER")
        })
    }

    /// The paths of the lab called `name`.
    pub fn lab(&self, name: &str) -> LabPaths {
        LabPaths {
            folder: self.0.join(name),
        }
    }

    /// Names of the labs whose process is alive, in order. Removes what killed labs left.
    pub fn labs(&self) -> Vec<String> {
        let mut labs = Vec::new();
        for entry in fs::read_dir(&self.0).into_iter().flatten().flatten() {
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            if name.starts_with('.') {
                // A removal that was interrupted.
                let _ = fs::remove_dir_all(entry.path());
            } else if !remove_if_stale(&self.lab(&name)) {
                labs.push(name);
            }
        }
        labs.sort();
        labs
    }

    /// Takes the folder of the lab called `name`; refused while another lab of that name runs.
    pub fn create(&self, name: &str) -> Result<RunFolder, Failure> {
        let paths = self.lab(name);
        let cannot = |path: &Path, error: &io::Error| {
            Failure::new(
                Code::Host,
                format!("cannot set up the lab's folder {}: {error}", path.display()),
            )
            .help("free space there, or set HOPYARD_RUN to another folder")
        };
        create_private(&self.0).map_err(|e| cannot(&self.0, &e))?;
        let deadline = Instant::now() + JANITOR_PATIENCE;
        let lock = loop {
            match create_private(&paths.folder).and_then(|()| try_lock(&paths)) {
                Ok(Some(lock)) => break lock,
                Ok(None) => {}
                // Removed by a janitor, or by whoever sweeps, between two steps.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(cannot(&paths.folder, &error)),
            }
            if paths.is_orphaned() {
                return Err(orphaned(name));
            }
            // The lock of a killed lab is held by its janitor for a moment.
            if let Some(record) = paths.record().filter(|r| alive(r.pid)) {
                return Err(Failure::new(
                    Code::General,
                    format!(
                        "a lab called {name} runs already (process {}, from {})",
                        record.pid,
                        record.file.display()
                    ),
                )
                .help(format!(
                    "end it with `vmm stop {name}`, or give this one another name with --name"
                )));
            }
            if Instant::now() > deadline {
                return Err(Failure::new(
                    Code::General,
                    format!("another process holds {}", paths.lock().display()),
                )
                .help("a lab of this name is starting or ending; try again, or use --name"));
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        let folder = RunFolder { paths, lock };
        // Whatever is here besides the lock is of a lab that was killed.
        folder
            .clear()
            .map_err(|e| cannot(&folder.paths.folder, &e))?;
        let nodes = folder.paths.nodes();
        create_private(&nodes).map_err(|e| cannot(&nodes, &e))?;
        Ok(folder)
    }
}

impl LabPaths {
    /// The paths of the lab in `folder`.
    pub fn at(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// The lab's folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn lock(&self) -> PathBuf {
        self.folder.join("lock")
    }

    fn record_path(&self) -> PathBuf {
        self.folder.join("lab.json")
    }

    /// The API's socket.
    pub fn control(&self) -> PathBuf {
        self.folder.join("control.sock")
    }

    /// Where the janitor of a lab without a process waits for whoever takes it over.
    pub fn orphan(&self) -> PathBuf {
        self.folder.join("orphan.sock")
    }

    /// What it takes to take the lab over.
    pub fn saved(&self) -> PathBuf {
        self.folder.join("saved.json")
    }

    /// Whether the lab goes on although its process was killed.
    pub fn is_orphaned(&self) -> bool {
        self.orphan().exists()
    }

    /// The folder of a zone: the lab's for nodes that are in none.
    fn zone(&self, zone: &str) -> PathBuf {
        if zone == COMMON {
            self.folder.clone()
        } else {
            self.folder.join("zones").join(zone)
        }
    }

    /// Makes the folders of a zone.
    pub fn create_zone(&self, zone: &str) -> io::Result<()> {
        if zone != COMMON {
            create_private(&self.folder.join("zones"))?;
            create_private(&self.zone(zone))?;
        }
        create_private(&self.ports(zone))
    }

    /// The control socket of a zone's switch.
    pub fn vswitch(&self, zone: &str) -> PathBuf {
        self.zone(zone).join("vswitch.sock")
    }

    /// What a detached lab process writes.
    pub fn log(&self) -> PathBuf {
        self.folder.join("lab.log")
    }

    /// The folder of a zone's vhost-user sockets: all that its switch sees of the lab.
    pub fn ports(&self, zone: &str) -> PathBuf {
        self.zone(zone).join("ports")
    }

    /// The folder of a machine's vhost-user sockets: all that its process sees of the lab.
    pub fn node_ports(&self, zone: &str, node: &str) -> PathBuf {
        self.ports(zone).join(node)
    }

    /// The vhost-user socket of an interface.
    pub fn port(&self, zone: &str, node: &str, interface: &str) -> PathBuf {
        self.node_ports(zone, node)
            .join(format!("{interface}.sock"))
    }

    fn nodes(&self) -> PathBuf {
        self.folder.join("nodes")
    }

    /// The folder of a node.
    pub fn node(&self, node: &str) -> PathBuf {
        self.nodes().join(node)
    }

    /// Makes the folders of a node. Its process, which may be another user in its jail, gets at that of its ports, and nobody else to whom
    /// the folders above are closed.
    pub fn create_node(&self, zone: &str, node: &str) -> io::Result<()> {
        let ports = self.node_ports(zone, node);
        create_private(&ports)?;
        fs::set_permissions(&ports, fs::Permissions::from_mode(0o711))?;
        create_private(&self.node(node))
    }

    /// What the switch of a zone runs, should it have to be started again.
    pub fn sources(&self, zone: &str) -> PathBuf {
        self.zone(zone).join("topology.json")
    }

    /// Writes that, all or nothing.
    pub fn write_sources(&self, zone: &str, sources: &Sources) -> io::Result<()> {
        let new = self.zone(zone).join("topology.json.new");
        fs::write(&new, serde_json::to_vec(sources)?)?;
        fs::rename(new, self.sources(zone))
    }

    /// The socket that leads to a node's agent.
    pub fn agent(&self, node: &str) -> PathBuf {
        self.node(node).join("agent.sock")
    }

    /// What a node wrote to its serial port.
    pub fn serial(&self, node: &str) -> PathBuf {
        self.node(node).join("serial.log")
    }

    /// Who runs the lab, as far as it has said so.
    pub fn record(&self) -> Option<LabRecord> {
        serde_json::from_slice(&fs::read(self.record_path()).ok()?).ok()
    }

    /// Refuses the first of `paths` that no socket can be bound to.
    pub fn check_socket_lengths(paths: impl IntoIterator<Item = PathBuf>) -> Result<(), Failure> {
        for path in paths {
            let length = path.as_os_str().len();
            if length > SOCKET_PATH_MAX {
                return Err(Failure::new(
                    Code::Host,
                    format!(
                        "the socket path {} has {length} bytes; Linux allows {SOCKET_PATH_MAX}",
                        path.display()
                    ),
                )
                .help("set HOPYARD_RUN to a folder with a shorter path, or shorten the names of lab or node"));
            }
        }
        Ok(())
    }
}

impl RunFolder {
    /// Says who runs the lab.
    pub fn write_record(&self, record: &LabRecord) -> io::Result<()> {
        fs::write(self.paths.record_path(), serde_json::to_vec(record)?)
    }

    /// Another handle on the lock, for the janitor: the lab counts as running until both are closed.
    pub fn share_lock(&self) -> io::Result<File> {
        self.lock.try_clone()
    }

    /// Removes the folder with all that is in it.
    pub fn remove(self) -> io::Result<()> {
        remove(&self.paths)
    }

    /// The folder with a lock that this process got from the lab process, unless the folder has become another lab's.
    pub fn inherit(paths: LabPaths, lock: File) -> Option<Self> {
        is_lock_of(&lock, &paths)
            .ok()?
            .then_some(Self { paths, lock })
    }

    fn clear(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.paths.folder)? {
            let entry = entry?;
            if entry.file_name() == "lock" {
            } else if entry.file_type()?.is_dir() {
                fs::remove_dir_all(entry.path())?;
            } else {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }
}

/// The lab called `name` goes on without its process, and nobody can talk to it.
pub fn orphaned(name: &str) -> Failure {
    let message = format!("the process of lab {name} was killed; its nodes and links go on");
    Failure::new(Code::General, message).help(format!(
        "take it over with `vmm adopt {name}`, or end it with `vmm stop {name}`"
    ))
}

fn create_private(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)?;
    // An existing folder of somebody else's is no place for a control socket.
    let metadata = fs::metadata(path)?;
    if metadata.uid() != rustix::process::geteuid().as_raw() {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "it belongs to another user",
        ));
    }
    if metadata.permissions().mode() & 0o077 != 0 {
        fs::set_permissions(path, fs::Permissions::from_mode(0o700))?;
    }
    Ok(())
}

/// The lock of a lab, if nobody holds it.
fn try_lock(paths: &LabPaths) -> io::Result<Option<File>> {
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(paths.lock())?;
    match file.try_lock() {
        Ok(()) => {}
        Err(fs::TryLockError::WouldBlock) => return Ok(None),
        Err(fs::TryLockError::Error(error)) => return Err(error),
    }
    // The file may have been removed, or replaced, between opening and locking it.
    Ok(is_lock_of(&file, paths)?.then_some(file))
}

fn is_lock_of(lock: &File, paths: &LabPaths) -> io::Result<bool> {
    let (held, named) = (lock.metadata()?, fs::metadata(paths.lock())?);
    Ok((held.dev(), held.ino()) == (named.dev(), named.ino()))
}

/// Removes the folder of a lab that nobody holds; false if somebody does.
fn remove_if_stale(paths: &LabPaths) -> bool {
    match try_lock(paths) {
        Ok(Some(_lock)) => remove(paths).is_ok(),
        Ok(None) => false,
        Err(_) => true,
    }
}

fn remove(paths: &LabPaths) -> io::Result<()> {
    // Of a lab whose janitor was killed as well.
    if let Ok(saved) = Saved::read(paths) {
        saved.kill();
    }
    for group in paths
        .record()
        .map(|record| record.groups)
        .unwrap_or_default()
    {
        remove_group(&group);
    }
    // Out of the way in one step: a launch of the same name must not find half of it.
    let mut away = paths.folder.clone();
    let name = paths
        .folder
        .file_name()
        .unwrap_or_default()
        .to_string_lossy();
    away.set_file_name(format!(".{name}.{}", std::process::id()));
    fs::rename(&paths.folder, &away)?;
    match fs::remove_dir_all(&away) {
        // Somebody who sweeps was faster.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Removes a control group of a lab that has ended. Its processes were killed, and go when the kernel gets to it.
fn remove_group(folder: &Path) {
    let deadline = Instant::now() + GROUP_PATIENCE;
    while let Err(error) = cgroup::remove(folder) {
        if error.kind() != io::ErrorKind::ResourceBusy || Instant::now() > deadline {
            eprintln!(
                "warning: cannot remove the control group {}: {error}",
                folder.display()
            );
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Whether a process goes on: not if it has been killed, though perhaps nobody has waited for it yet.
fn alive(pid: u32) -> bool {
    children::raw_pid(pid)
        .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok())
        .is_some_and(|pidfd| !children::ends_within(&pidfd, DEATH_PATIENCE))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> (tempfile::TempDir, RunRoot) {
        let folder = tempfile::tempdir().unwrap();
        let root = RunRoot(folder.path().join("run"));
        (folder, root)
    }

    #[test]
    fn folders_are_private_and_removed() {
        let (_guard, root) = root();
        let lab = root.create("one").unwrap();
        let folder = lab.paths.folder().to_path_buf();
        assert_eq!(
            fs::metadata(&folder).unwrap().permissions().mode() & 0o777,
            0o700
        );
        assert_eq!(root.labs(), ["one"]);
        lab.remove().unwrap();
        assert!(root.labs().is_empty());
        assert_eq!(fs::read_dir(folder.parent().unwrap()).unwrap().count(), 0);
    }

    #[test]
    fn a_running_lab_of_the_same_name_is_named() {
        let (_guard, root) = root();
        let lab = root.create("one").unwrap();
        let record = LabRecord {
            pid: std::process::id(),
            file: "/labs/one.json".into(),
            groups: Vec::new(),
        };
        lab.write_record(&record).unwrap();
        let failure = root.create("one").unwrap_err();
        assert!(failure.message.contains("/labs/one.json"), "{failure}");
        assert!(failure.to_string().contains("vmm stop one"), "{failure}");
        root.create("two").unwrap();
    }

    #[test]
    fn what_a_killed_lab_left_is_swept() {
        let (_guard, root) = root();
        let lab = root.create("one").unwrap();
        lab.paths.create_node(COMMON, "a").unwrap();
        fs::write(lab.paths.serial("a"), "log").unwrap();
        let folder = lab.paths.folder().to_path_buf();
        drop(lab);
        assert!(root.labs().is_empty());
        assert!(!folder.exists());
    }

    #[test]
    fn a_launch_clears_what_a_killed_lab_left() {
        let (_guard, root) = root();
        let lab = root.create("one").unwrap();
        lab.paths.create_node(COMMON, "a").unwrap();
        drop(lab);
        let lab = root.create("one").unwrap();
        assert!(!lab.paths.node("a").exists());
    }

    #[test]
    fn a_lock_that_was_replaced_gives_no_right_to_the_folder() {
        let (_guard, root) = root();
        let lab = root.create("one").unwrap();
        let (paths, lock) = (lab.paths.clone(), lab.share_lock().unwrap());
        lab.remove().unwrap();
        let _next = root.create("one").unwrap();
        assert!(RunFolder::inherit(paths, lock).is_none());
    }

    #[test]
    fn too_long_socket_paths_are_refused_with_the_remedy() {
        let long = PathBuf::from(format!("/{}", "x".repeat(107)));
        let failure = LabPaths::check_socket_lengths([long]).unwrap_err();
        assert!(
            failure.message.contains("108 bytes") && failure.to_string().contains("HOPYARD_RUN")
        );
        let fits = PathBuf::from(format!("/{}", "x".repeat(106)));
        assert!(LabPaths::check_socket_lengths([fits]).is_ok());
    }

    #[test]
    fn the_longest_names_fit_roots_default_folder() {
        let root = RunRoot("/run/hopyard".into());
        let paths = root.lab(&"l".repeat(32));
        let port = paths.port(COMMON, &"n".repeat(32), &"i".repeat(15));
        assert!(LabPaths::check_socket_lengths([port, paths.agent(&"n".repeat(32))]).is_ok());
    }
}
