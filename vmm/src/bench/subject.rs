//! What is compared.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::api::types::EngineName;
use crate::engine::auto;
use crate::failure::{Code, Failure};

/// An engine, and what its links are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Subject {
    /// Hopyard's monitor and switch
    Kvm,
    /// QEMU on Hopyard's switch
    Qemu,
    /// QEMU with TAP devices and bridges, as people do it today; takes root
    QemuTap,
    /// Containers on Hopyard's switch; takes root
    Container,
    /// Containers with veth pairs and bridges, as people do it today; takes root
    ContainerVeth,
}

impl Subject {
    /// All, in the order of columns.
    pub const ALL: [Self; 5] = [
        Self::Kvm,
        Self::Qemu,
        Self::QemuTap,
        Self::Container,
        Self::ContainerVeth,
    ];

    /// For people and for `--engine`; what `launch` calls its engine and its fabric.
    const fn names(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::Kvm => ("kvm", "kvm", "vswitch"),
            Self::Qemu => ("qemu", "qemu", "vswitch"),
            Self::QemuTap => ("qemu-tap", "qemu", "kernel"),
            Self::Container => ("container", "container", "vswitch"),
            Self::ContainerVeth => ("container-veth", "container", "kernel"),
        }
    }

    /// As `--engine` has it.
    pub const fn name(self) -> &'static str {
        self.names().0
    }

    /// Options of `vmm launch`.
    pub const fn options(self) -> [&'static str; 4] {
        let (_, engine, fabric) = self.names();
        ["--engine", engine, "--fabric", fabric]
    }

    /// Why it cannot be had here. One that was not `asked` for is not emulated either: it would measure nothing but the emulation.
    fn missing(self, asked: bool) -> Option<String> {
        let found = match self {
            Self::Kvm if !asked => auto::measure().and_then(|choice| match choice.engine.name() {
                EngineName::Kvm => Ok(()),
                _ => Err(Failure::new(Code::Host, choice.reason)),
            }),
            Self::Kvm => auto::kvm().map(drop),
            Self::Qemu => auto::qemu().map(drop),
            Self::QemuTap => auto::qemu().and_then(|_| {
                let root = rustix::process::geteuid().is_root();
                root.then_some(())
                    .ok_or_else(|| Failure::new(Code::Host, "only root can make TAP devices"))
            }),
            Self::Container | Self::ContainerVeth => auto::container().map(drop),
        };
        found.err().map(|failure| failure.message)
    }
}

/// A subject that is to be measured, or why it is not.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Column {
    /// Which.
    pub subject: Subject,
    /// Why it cannot be had here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missing: Option<String>,
}

/// Those that were asked for, or all.
pub fn columns(asked: &[Subject]) -> Vec<Column> {
    let wanted = Subject::ALL
        .into_iter()
        .filter(|subject| asked.is_empty() || asked.contains(subject));
    wanted
        .map(|subject| Column {
            subject,
            missing: subject.missing(!asked.is_empty()),
        })
        .collect()
}
