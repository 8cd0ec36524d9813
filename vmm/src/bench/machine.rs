//! The machine that figures were taken on.

use std::fs;

use serde::{Deserialize, Serialize};

use crate::lab::usage;

/// What a reader needs to know of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Machine {
    /// The processor's name.
    pub processor: String,
    /// How many there are.
    pub processors: u32,
    /// Bytes of memory.
    pub memory: u64,
    /// `uname -r`.
    pub kernel: String,
    /// It runs inside another: the processor says that there is a hypervisor.
    pub nested: bool,
}

impl Machine {
    /// This one.
    pub fn here() -> Self {
        let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let field = |name: &str| {
            let line = info.lines().find(|line| line.starts_with(name));
            line.and_then(|line| Some(line.split_once(':')?.1.trim().to_owned()))
        };
        let host = usage::host().unwrap_or_default();
        let uname = rustix::system::uname();
        Self {
            processor: field("model name").unwrap_or_default(),
            processors: host.processors,
            memory: host.memory,
            kernel: uname.release().to_string_lossy().into_owned(),
            nested: field("flags")
                .is_some_and(|flags| flags.split_whitespace().any(|flag| flag == "hypervisor")),
        }
    }

    /// In a line.
    pub fn describe(&self) -> String {
        let nested = if self.nested {
            ", itself a virtual machine"
        } else {
            ""
        };
        format!(
            "{} × {}, {} GiB, Linux {}{nested}",
            self.processors,
            self.processor,
            self.memory >> 30,
            self.kernel
        )
    }
}
