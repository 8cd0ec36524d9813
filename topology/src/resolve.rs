//! From the file format to the model: names resolved, defaults filled in, ranges checked.

pub mod attributes;
mod external;
mod fault;
mod limits;
mod link;
mod machine;
mod startup;
mod switch;
mod verification;

use std::collections::HashMap;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path;

use crate::document::{Document, Path, Step, Target};
use crate::file;
use crate::host::Folder;
use crate::model::{self, Fabric, NodeKind, Orphaned, Timing, Topology};
use crate::report::{Diagnostic, Severity};

/// Collects what is found, with places in the document.
pub struct Findings<'a> {
    pub document: &'a Document,
    pub diagnostics: &'a mut Vec<Diagnostic>,
}

impl Findings<'_> {
    pub fn add(
        &mut self,
        severity: Severity,
        path: &Path,
        target: Target,
        message: impl Into<String>,
        help: impl Into<String>,
    ) {
        let help = help.into();
        self.diagnostics.push(Diagnostic {
            severity,
            span: Some(self.document.locate(path, target)),
            path: self.document.original(path),
            message: message.into(),
            help: (!help.is_empty()).then_some(help),
        });
    }

    pub fn error(&mut self, path: &Path, message: impl Into<String>, help: impl Into<String>) {
        self.add(Severity::Error, path, Target::Value, message, help);
    }

    pub fn key_error(&mut self, path: &Path, message: impl Into<String>, help: impl Into<String>) {
        self.add(Severity::Error, path, Target::Key, message, help);
    }

    pub fn warning(&mut self, path: &Path, message: impl Into<String>, help: impl Into<String>) {
        self.add(Severity::Warning, path, Target::Value, message, help);
    }

    /// An error that brings its own second line.
    pub fn error_lines(&mut self, path: &Path, lines: &str) {
        let (message, help) = lines.split_once('\n').unwrap_or((lines, ""));
        self.error(path, message, help);
    }

    /// `value` if it is in range; else an error, and nothing.
    pub fn ranged<T: PartialOrd + Display>(
        &mut self,
        path: &Path,
        value: T,
        range: &RangeInclusive<T>,
    ) -> Option<T> {
        if range.contains(&value) {
            return Some(value);
        }
        let field = match path.0.last() {
            Some(Step::Key(field)) => field.as_str(),
            _ => "it",
        };
        self.error(
            path,
            format!("`{field}` is {value}, out of range"),
            format!("it must be from {} to {}", range.start(), range.end()),
        );
        None
    }
}

/// Where an address of an interface stands in the file.
#[derive(Debug, Clone)]
pub struct PlacedAddress {
    pub node: usize,
    pub interface: usize,
    pub address: crate::net::Cidr,
    pub path: Path,
}

/// The model, and the places of what the checks have to point at.
#[derive(Debug)]
pub struct Resolved {
    pub topology: Topology,
    pub addresses: Vec<PlacedAddress>,
    /// By node and index of the route.
    pub routes: HashMap<(usize, usize), Path>,
    /// By link: the index in the file.
    pub link_places: Vec<usize>,
}

/// What all parts of the resolution share.
struct Resolver<'a> {
    lab: &'a file::Lab,
    folder: &'a Folder,
    findings: Findings<'a>,
    out: Resolved,
    /// MAC addresses the file gives, with their places.
    macs: Vec<(usize, usize, Path)>,
}

/// Builds the model as far as the file allows; what does not allow it is among the findings.
pub fn resolve(
    lab: &file::Lab,
    file: &path::Path,
    folder: &Folder,
    findings: Findings<'_>,
) -> Resolved {
    let mut resolver = Resolver {
        lab,
        folder,
        findings,
        out: Resolved {
            topology: Topology {
                name: String::new(),
                description: lab.description.clone(),
                seed: lab.seed.unwrap_or(1),
                timing: match lab.timing {
                    Some(file::Timing::Eco) => Timing::Eco,
                    Some(file::Timing::Exact) => Timing::Exact,
                    Some(file::Timing::Balanced) | None => Timing::Balanced,
                },
                fabric: match lab.fabric {
                    Some(file::Fabric::Kernel) => Fabric::Kernel,
                    Some(file::Fabric::Vswitch) | None => Fabric::Vswitch,
                },
                orphaned: match lab.orphaned {
                    Some(file::Orphaned::Keep) => Orphaned::Keep,
                    Some(file::Orphaned::End) | None => Orphaned::End,
                },
                nodes: Vec::new(),
                links: Vec::new(),
                node_faults: Vec::new(),
                checks: Vec::new(),
            },
            addresses: Vec::new(),
            routes: HashMap::new(),
            link_places: Vec::new(),
        },
        macs: Vec::new(),
    };
    resolver.name(file);
    resolver.nodes();
    resolver.links();
    resolver.finish_switches();
    resolver.externals_apart();
    resolver.faults();
    resolver.finish_machines();
    resolver.start_order();
    resolver.checks();
    resolver.out
}

impl Resolver<'_> {
    fn name(&mut self, file: &path::Path) {
        const RULE: &str =
            "a lab's name has 1 to 32 characters of `a-z`, `0-9` and `-`, the first not a `-`";
        let stem = file.file_stem().unwrap_or_default().to_string_lossy();
        let name = self.lab.name.as_deref().unwrap_or(&stem);
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if name.is_empty() || name.len() > 32 || name.starts_with('-') || !name.chars().all(plain) {
            if self.lab.name.is_some() {
                let message = format!("`{name}` cannot be the name of a lab");
                self.findings.error(&Path::of("name"), message, RULE);
            } else if !self.findings.document.lost_member(&Path::default(), "name") {
                self.findings.error(
                    &Path::default(),
                    format!(
                        "the lab has no name of its own, and its file's, `{name}`, cannot be one"
                    ),
                    format!("add \"name\": …; {RULE}"),
                );
            }
        }
        name.clone_into(&mut self.out.topology.name);
    }

    fn nodes(&mut self) {
        let nodes = Path::of("nodes");
        if self.lab.nodes.is_empty() && !self.findings.document.lost_any(&nodes) {
            self.findings.key_error(
                &nodes,
                "the lab has no nodes",
                "the least there is: {\"a\": {\"kind\": \"host\"}}",
            );
        }
        let defaults = self.machine_defaults();
        let mut seen: HashMap<String, &str> = HashMap::new();
        let lab = self.lab;
        for (name, node) in &lab.nodes {
            let path = nodes.at(name.as_str());
            self.node_name(name, &path);
            if let Some(other) = seen.insert(name.to_lowercase(), name) {
                self.findings.key_error(
                    &path,
                    format!("`{name}` and `{other}` are the same host name"),
                    "names must differ in more than upper and lower case",
                );
            }
            let kind = match node {
                file::Node::Host(machine) => {
                    self.machine(model::Role::Host, machine, &defaults, &path)
                }
                file::Node::Router(machine) => {
                    self.machine(model::Role::Router, machine, &defaults, &path)
                }
                file::Node::Switch(switch) => self.switch(switch, &path),
                file::Node::Hub(_) => NodeKind::Hub,
                // An error was reported; whatever stands for it, the lab is not run.
                file::Node::External(external) => self
                    .external(external, &path)
                    .map_or(NodeKind::Hub, NodeKind::External),
            };
            self.out.topology.nodes.push(model::Node {
                name: name.clone(),
                kind,
            });
        }
    }

    fn node_name(&mut self, name: &str, path: &Path) {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
        if name.is_empty()
            || name.len() > 32
            || name.starts_with('-')
            || name.ends_with('-')
            || !name.chars().all(plain)
        {
            self.findings.key_error(
                path,
                format!("`{name}` cannot be the name of a node"),
                "a node's name is a host name: 1 to 32 letters, digits and `-`, the first and last not a `-`",
            );
        }
    }
}
