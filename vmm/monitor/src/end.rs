//! How a guest ended.

use std::fmt;

use serde::Serialize;

/// How a guest ended, and what it said last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct End {
    /// The kind of end.
    pub reason: EndReason,
    /// For people; empty if there is nothing to add.
    pub detail: String,
}

/// The ways in which a guest can end by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum EndReason {
    /// ACPI S5.
    PowerOff,
    /// A write to the ACPI reset register, or to the keyboard controller's reset line.
    Reboot,
    /// The kernel reported a panic through pvpanic.
    Panic,
    /// A triple fault.
    TripleFault,
}

impl fmt::Display for EndReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PowerOff => "power-off",
            Self::Reboot => "reboot",
            Self::Panic => "kernel panic",
            Self::TripleFault => "triple fault",
        })
    }
}
