//! An empty file system in place of the host's.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::CWD;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen,
    mount_change, move_mount, open_tree, unmount,
};
use rustix::process::{chdir, fchdir, pivot_root};

use crate::{Access, Error, Mount};

/// Where the new root is for a moment before it is the root: a folder that every system has.
const STAGE: &str = "/proc";
/// What the empty file system may hold: folders and links to mounts.
const SIZE: &str = "256k";

/// Of `mount_setattr(2)`.
#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns_fd: u64,
}

/// What a path of the host becomes.
enum Kept {
    /// A mount of its own.
    Mount(OwnedFd, bool),
    /// The same symbolic link.
    Link(PathBuf),
}

/// Replaces the file system of this process, in a mount namespace of its own, by `mounts` alone.
pub fn replace(mounts: &[Mount]) -> Result<(), Error> {
    let fail = |what: &'static str, path: Option<&Path>| {
        let path = path.map(ToOwned::to_owned);
        move |source: io::Error| Error::Root { what, path, source }
    };
    // What is mounted from now on is nobody else's to see, nor the other way round.
    mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
    .map_err(|e| fail("part with the host's mounts", None)(e.into()))?;
    // Before anything hides them.
    let mut kept = Vec::new();
    for mount in mounts {
        let part = keep(mount).map_err(fail("keep", Some(&mount.path)))?;
        kept.push((mount.path.as_path(), part));
    }
    let root = empty().map_err(fail("make an empty file system", None))?;
    move_mount(
        &root,
        "",
        CWD,
        STAGE,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
    .map_err(|e| fail("place an empty file system", None)(e.into()))?;
    fchdir(&root).map_err(|e| fail("enter an empty file system", None)(e.into()))?;
    for (path, part) in &kept {
        place(path, part).map_err(fail("place", Some(path)))?;
    }
    // Nothing is to be added to it any more.
    set_attributes(&root, MountAttrFlags::MOUNT_ATTR_RDONLY, false)
        .map_err(fail("make the empty file system read-only", None))?;
    // The old root comes to lie on the new one (pivot_root(2), "." for both), from where it is taken away with all its mounts.
    pivot_root(".", ".").map_err(|e| fail("replace the root", None)(e.into()))?;
    unmount(".", UnmountFlags::DETACH)
        .map_err(|e| fail("let go of the host's root", None)(e.into()))?;
    chdir("/").map_err(|e| fail("enter the new root", None)(e.into()))
}

fn keep(mount: &Mount) -> io::Result<Kept> {
    let metadata = fs::symlink_metadata(&mount.path)?;
    if metadata.is_symlink() {
        return Ok(Kept::Link(fs::read_link(&mount.path)?));
    }
    // A copy of the mount, attached nowhere yet; what is mounted below comes along, as a part of what is hidden below a
    // mount must not show.
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    flags.set(OpenTreeFlags::AT_RECURSIVE, metadata.is_dir());
    let copy = open_tree(CWD, &mount.path, flags)?;
    let all = MountAttrFlags::MOUNT_ATTR_NOSUID;
    let attributes = match mount.access {
        Access::Read => {
            all | MountAttrFlags::MOUNT_ATTR_RDONLY
                | MountAttrFlags::MOUNT_ATTR_NODEV
                | MountAttrFlags::MOUNT_ATTR_NOEXEC
        }
        Access::Execute => {
            all | MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NODEV
        }
        Access::Write => all | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC,
        Access::Device => all | MountAttrFlags::MOUNT_ATTR_NOEXEC,
    };
    set_attributes(&copy, attributes, metadata.is_dir())?;
    Ok(Kept::Mount(copy, metadata.is_dir()))
}

fn empty() -> io::Result<OwnedFd> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(context.as_fd(), "size", SIZE)?;
    fsconfig_set_string(context.as_fd(), "mode", "0755")?;
    fsconfig_create(context.as_fd())?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    Ok(fsmount(
        context.as_fd(),
        FsMountFlags::FSMOUNT_CLOEXEC,
        attributes,
    )?)
}

/// Puts what is kept at its path, relative to the working directory.
fn place(path: &Path, kept: &Kept) -> io::Result<()> {
    let path = path.strip_prefix("/").unwrap_or(path);
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    match kept {
        Kept::Link(target) => std::os::unix::fs::symlink(target, path),
        Kept::Mount(copy, is_folder) => {
            if *is_folder {
                fs::create_dir_all(path)?;
            } else {
                fs::File::create(path)?;
            }
            let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
            Ok(move_mount(copy, "", CWD, path, flags)?)
        }
    }
}

/// Adds attributes to a mount, and to those below it if `recursive`.
fn set_attributes(mount: &OwnedFd, set: MountAttrFlags, recursive: bool) -> io::Result<()> {
    let attributes = MountAttr {
        set: u64::from(set.bits()),
        clear: 0,
        propagation: 0,
        userns_fd: 0,
    };
    let recursive = if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a NUL-terminated literal, the attributes are a `struct mount_attr` of the size that is given, and
    // both live until the call returns.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | recursive,
            &raw const attributes,
            size_of::<MountAttr>(),
        )
    };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
