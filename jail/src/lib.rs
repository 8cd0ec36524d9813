//! The jail: what a process that serves a guest cannot do any more once it has entered it.
//!
//! The lab starts such a process in namespaces of its own. The process opens what it needs and calls [`enter`], which
//! leaves it an empty file system but for the [`Mount`]s of its [`Plan`], no capability and no way to get one. It has to be
//! called before the process has a second thread: most of it holds for the thread that asks for it and those it starts.
//! Then each thread takes a [`filter`] that leaves it the system calls of its kind.
//!
//! | to find | look in |
//! |---|---|
//! | the empty root | `root.rs` |
//! | capabilities, limits, core dumps | `privileges.rs` |
//! | Landlock: paths, TCP, signals and abstract sockets | `paths.rs` |
//! | seccomp | `filter.rs`; the tables are where the threads are; `attempt.rs` tries them |
#![warn(missing_docs)]

pub mod attempt;
pub mod filter;
mod paths;
mod privileges;
mod root;

use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What a process keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Whether the process was started in namespaces of its own, so that its file system can be replaced.
    pub namespaces: bool,
    /// What it still sees of the file system, at the same paths.
    pub mounts: Vec<Mount>,
    /// Whether it becomes the second user, and group, of its user namespace: one that nobody else on this machine is.
    #[serde(default)]
    pub own_user: bool,
    /// Whether it keeps the capabilities over the network that it has: a switch with a way out of the lab.
    pub network: bool,
    /// Descriptors it may have open at most; as many as it may have now if 0.
    pub descriptors: u64,
    /// Bytes of the largest file it may write.
    pub file_size: u64,
}

/// A file or folder that stays visible. If `path` is a symbolic link, the link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Absolute.
    pub path: PathBuf,
    /// What can be done with it.
    pub access: Access,
}

/// What can be done with what stays visible.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    /// Read.
    Read,
    /// Read and execute.
    Execute,
    /// Read, write, make and remove files, connect to sockets.
    Write,
    /// Use a device.
    Device,
}

/// What holds for a process that has entered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entered {
    /// The file system was replaced by an empty one.
    pub root: bool,
    /// Landlock's version in this kernel, if it has one.
    pub landlock: Option<u8>,
}

/// Why a process cannot enter.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file system cannot be replaced.
    #[error("cannot {what}{}: {source}", .path.as_ref().map(|p| format!(" {}", p.display())).unwrap_or_default())]
    Root {
        /// What was attempted.
        what: &'static str,
        /// With what.
        path: Option<PathBuf>,
        /// From the system call.
        source: io::Error,
    },
    /// A privilege cannot be given up, or a limit not be set.
    #[error("cannot {what}: {source}")]
    Privilege {
        /// What was attempted.
        what: &'static str,
        /// From the system call.
        source: io::Error,
    },
    /// Landlock is there and refuses.
    #[error("cannot restrict itself with Landlock: {0}")]
    Landlock(#[from] landlock::RulesetError),
}

/// Enters the jail. There is no way back.
///
/// # Errors
/// When the host forbids a part of it. The process is then partly jailed, and of no use.
pub fn enter(plan: &Plan) -> Result<Entered, Error> {
    if plan.namespaces {
        if !plan.network {
            privileges::forbid_user_namespaces()?;
        }
        root::replace(&plan.mounts)?;
    }
    privileges::limit(plan)?;
    privileges::drop_all(plan)?;
    let landlock = paths::restrict(plan)?;
    Ok(Entered {
        root: plan.namespaces,
        landlock,
    })
}
