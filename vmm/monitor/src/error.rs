//! What a monitor can fail at, worded for the person who launched the lab.

use std::io;
use std::path::PathBuf;

/// A monitor could not start its node, or could not go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `/dev/kvm` cannot be opened.
    #[error("cannot open /dev/kvm: {source}; {}", kvm_hint(.source))]
    OpenKvm {
        /// From `open`.
        source: io::Error,
    },
    /// A KVM call failed.
    #[error("KVM refused to {what}: {source}")]
    Kvm {
        /// What was asked of it.
        what: &'static str,
        /// From `ioctl`.
        source: kvm_ioctls::Error,
    },
    /// A value in the configuration is out of range.
    #[error("{0}")]
    Config(String),
    /// Guest memory could not be had.
    #[error(
        "cannot allocate {mib} MiB of guest memory: {source}; lower the node's \"memory\" or free some on the host"
    )]
    Memory {
        /// What was asked for.
        mib: u64,
        /// From `memfd_create`, `ftruncate` or `mmap`.
        source: io::Error,
    },
    /// The kernel cannot be loaded.
    #[error("cannot boot kernel {}: {reason}", .path.display())]
    Kernel {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A file cannot be used.
    #[error("cannot {what} {}: {source}", .path.display())]
    File {
        /// `open`, `create`, …
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// From the system call.
        source: io::Error,
    },
    /// The switch cannot be reached or refuses the port.
    #[error("network interface {index} cannot use the switch's port {}: {reason}", .socket.display())]
    Switch {
        /// The n-th interface, from 0.
        index: usize,
        /// The port's socket.
        socket: PathBuf,
        /// Why.
        reason: String,
    },
    /// A system resource (thread, eventfd, epoll) cannot be had.
    #[error("cannot {what}: {source}")]
    System {
        /// What was attempted.
        what: &'static str,
        /// From the system call.
        source: io::Error,
    },
    /// The kernel does not confine a thread.
    #[error("{0}")]
    Filter(#[source] jail::filter::FilterError),
    /// The virtual processor stopped in a way that no guest should be able to cause.
    #[error("virtual processor {vcpu} stopped: {reason}")]
    Vcpu {
        /// Its number.
        vcpu: u8,
        /// The exit, with what KVM says about it.
        reason: String,
    },
}

fn kvm_hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => {
            "load the kernel module kvm_intel or kvm_amd, or use --engine qemu"
        }
        io::ErrorKind::PermissionDenied => {
            "add yourself to the group that owns it (usually kvm), or use --engine qemu"
        }
        _ => "use --engine qemu",
    }
}

impl Error {
    pub(crate) fn kvm(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Self {
        move |source| Self::Kvm { what, source }
    }

    pub(crate) fn system(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { what, source }
    }
}
