//! What a machine may take of the host.

use super::Resolver;
use crate::document::Path;
use crate::file;
use crate::model::Limits;
use crate::quantity::Size;

/// Bytes of the smallest `host-memory`: a monitor without a NIC takes about as much.
const LEAST_MEMORY: u64 = 4 << 20;
const MOST_MEMORY: u64 = 1 << 40;
/// Processors, and the largest number of one: what Linux knows at most, as `CPU_SETSIZE` of the C library.
const PROCESSORS: u64 = 1024;

impl Limits {
    /// These, and what they do not say from `defaults`.
    pub(super) fn or(self, defaults: &Self) -> Self {
        Self {
            cpu: self.cpu.or(defaults.cpu),
            weight: self.weight.or(defaults.weight),
            processors: if self.processors.is_empty() {
                defaults.processors.clone()
            } else {
                self.processors
            },
            memory: self.memory.or(defaults.memory),
        }
    }
}

impl Resolver<'_> {
    pub(super) fn limits(
        &mut self,
        cpu: Option<&file::Cpu>,
        memory: Option<Size>,
        path: &Path,
    ) -> Limits {
        let range = Size(LEAST_MEMORY)..=Size(MOST_MEMORY);
        let memory = memory.and_then(|size| {
            self.findings
                .ranged(&path.at("host-memory"), size, &range)
                .map(|Size(bytes)| bytes)
        });
        let Some(written) = cpu else {
            return Limits {
                memory,
                ..Limits::default()
            };
        };
        let path = path.at("cpu");
        let limit = written.limit.as_ref();
        let weight = written.weight.and_then(|weight| {
            self.findings
                .ranged(&path.at("weight"), weight, &(1..=10_000))
        });
        Limits {
            cpu: limit.and_then(|limit| self.cpu_limit(limit, &path.at("limit"))),
            weight: weight.map(|weight| weight as u32),
            processors: self.processors(written.pin.as_deref(), &path.at("pin")),
            memory,
        }
    }

    /// In thousandths of a processor.
    fn cpu_limit(&mut self, written: &file::Scalar, path: &Path) -> Option<u32> {
        let thousandths = match written {
            file::Scalar::Number(processors) => Some(*processors as f64 * 1000.0),
            file::Scalar::Text(text) => match text.strip_suffix('%') {
                Some(percent) => percent.parse::<f64>().ok().map(|percent| percent * 10.0),
                None => text
                    .parse::<f64>()
                    .ok()
                    .map(|processors| processors * 1000.0),
            },
        };
        match thousandths.map(f64::round) {
            Some(limit) if (10.0..=PROCESSORS as f64 * 1000.0).contains(&limit) => {
                Some(limit as u32)
            }
            Some(_) => {
                self.findings.error(
                    path,
                    "`limit` is out of range",
                    format!("it must be from 1% to {}% of a processor", PROCESSORS * 100),
                );
                None
            }
            None => {
                self.findings.error(
                    path,
                    "`limit` is no amount of processor time",
                    "write processors as in 2 or \"1.5\", or percent of one as in \"50%\"",
                );
                None
            }
        }
    }

    fn processors(&mut self, written: Option<&[u64]>, path: &Path) -> Vec<u16> {
        let Some(written) = written else {
            return Vec::new();
        };
        if written.is_empty() {
            self.findings.error(
                path,
                "`pin` names no processor",
                "name at least one, as in [0], or leave it out",
            );
        }
        let mut processors = Vec::new();
        for (index, number) in written.iter().enumerate() {
            let number = self
                .findings
                .ranged(&path.at(index), *number, &(0..=PROCESSORS - 1));
            processors.extend(number.map(|number| number as u16));
        }
        processors.sort_unstable();
        processors.dedup();
        processors
    }
}
