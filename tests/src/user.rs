//! An ordinary user: the programs as somebody runs them who is not root.

use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Numbers that no user of this machine has.
const UID: u32 = 61_234;
const OTHER: u32 = 61_235;

/// Where the user finds the programs and the image, wherever they are and whoever may read them there.
const BIN: &str = "bin";
const IMAGE: &str = "image";

/// A user of this machine for the time of a test.
#[derive(Debug)]
pub struct User {
    folder: PathBuf,
    bin: PathBuf,
    image: PathBuf,
    /// A control group to run in.
    group: Option<PathBuf>,
}

impl User {
    /// Owns `folder` and all that is in it from now on, and `group`; sees the programs in `bin` and the image in `image` there.
    pub(crate) fn new(
        folder: &Path,
        bin: &Path,
        image: &Path,
        group: Option<&Path>,
    ) -> Result<Self> {
        for name in [BIN, IMAGE] {
            std::fs::create_dir(folder.join(name))?;
        }
        own(folder)?;
        if let Some(group) = group {
            own(group)?;
        }
        Ok(Self {
            folder: folder.to_owned(),
            bin: bin.to_owned(),
            image: std::fs::canonicalize(image)?,
            group: group.map(ToOwned::to_owned),
        })
    }

    /// Its number.
    pub fn uid(&self) -> u32 {
        UID
    }

    /// A program of this workspace, run by it.
    pub(crate) fn program(&self, name: &str) -> Command {
        self.program_as(UID, name)
    }

    /// A program of this workspace, run by another ordinary user.
    pub(crate) fn others_program(&self, name: &str) -> Command {
        self.program_as(OTHER, name)
    }

    fn program_as(&self, uid: u32, name: &str) -> Command {
        // In a mount namespace of its own, which nobody else has to clean up.
        let script = "mount --bind \"$1\" \"$2\" && mount --bind \"$3\" \"$4\" && \
            { [ -z \"$5\" ] || echo $$ 2>/dev/null >\"$5/cgroup.procs\" || :; } && uid=$6 && shift 6 && \
            exec setpriv --reuid \"$uid\" --regid \"$uid\" --clear-groups -- \"$@\"";
        let mut command = Command::new("unshare");
        command
            .args([
                "--mount",
                "--propagation",
                "private",
                "sh",
                "-ec",
                script,
                "sh",
            ])
            .args([
                &self.bin,
                &self.folder.join(BIN),
                &self.image,
                &self.folder.join(IMAGE),
            ])
            .arg(self.group.as_deref().unwrap_or(Path::new("")))
            .arg(uid.to_string())
            .arg(self.folder.join(BIN).join(name))
            .env("HOPYARD_IMAGE", self.folder.join(IMAGE))
            .env("HOME", &self.folder)
            .env_remove("XDG_RUNTIME_DIR");
        command
    }
}

/// Makes a file or folder, and what is in it, the user's.
fn own(path: &Path) -> Result<()> {
    chown(path, Some(UID), Some(UID)).with_context(|| format!("chown {}", path.display()))?;
    if path.is_dir() && !path.is_symlink() {
        for entry in std::fs::read_dir(path)? {
            own(&entry?.path())?;
        }
    }
    Ok(())
}

/// The users a process belongs to: real, effective, saved and file system.
pub fn users_of(pid: u32) -> Result<Vec<u32>> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    let users = line
        .context("a process has users")?
        .split_ascii_whitespace();
    let users: Vec<_> = users.filter_map(|text| text.parse().ok()).collect();
    ensure!(users.len() == 4, "{status}");
    Ok(users)
}
