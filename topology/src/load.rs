//! The way from a file to the model.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::check;
use crate::de;
use crate::document::{self, Document};
use crate::file::{Lab, Set};
use crate::host::{Files, Folder};
use crate::model::{Device, NodeKind, Patch, Topology};
use crate::report::{Diagnostic, Report, Severity};
use crate::resolve::{Findings, attributes, resolve};
use crate::routing;

/// Larger files are a mistake.
const MAX_FILE: u64 = 64 << 20;

/// A usable topology.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// What stands in the file.
    pub text: String,
    /// The lab.
    pub topology: Topology,
    /// What hardly means what it says; often empty.
    pub warnings: Report,
    /// The files that the text copies from.
    pub files: Files,
}

/// A topology file with what it copies from: all it takes to check it again where these files are out of sight or have changed.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sources {
    /// Where it stands.
    pub file: PathBuf,
    /// What stands in it.
    pub text: String,
    /// What it copies from.
    pub files: Files,
    /// The devices of interfaces, by `node.interface`.
    #[serde(default)]
    pub devices: BTreeMap<String, Device>,
    /// Only what lies in this zone counts; all of it if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
}

impl Sources {
    /// Checks it.
    ///
    /// # Errors
    /// All that is wrong with the text.
    pub fn load(self) -> Result<Loaded, Report> {
        let folder = Folder::with_files(&self.file, self.files);
        let mut loaded = Topology::parse_in(&self.text, &self.file, &folder)?;
        for node in &mut loaded.topology.nodes {
            let NodeKind::Machine(machine) = &mut node.kind else {
                continue;
            };
            for interface in &mut machine.interfaces {
                let name = format!("{}.{}", node.name, interface.name);
                interface.device = self.devices.get(&name).cloned();
            }
        }
        if let Some(zone) = &self.zone {
            loaded.topology = loaded.topology.part(zone);
        }
        Ok(loaded)
    }
}

impl Topology {
    /// Reads and checks a topology file.
    ///
    /// # Errors
    /// All that is wrong with the file, or why it could not be read.
    pub fn load(file: &Path) -> Result<Loaded, Report> {
        let unreadable = |error: &std::io::Error, help: &str| {
            let diagnostic = Diagnostic {
                severity: Severity::Error,
                span: None,
                path: document::Path::default(),
                message: format!("cannot read {}: {error}", file.display()),
                help: (!help.is_empty()).then(|| help.to_owned()),
            };
            Report::new(file, "", vec![diagnostic])
        };
        let read = std::fs::metadata(file).and_then(|metadata| {
            if metadata.len() > MAX_FILE {
                return Err(std::io::Error::other("it is larger than 64MiB"));
            }
            std::fs::read(file)
        });
        let bytes = match read {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(unreadable(
                    &error,
                    "name a topology file, as in configs/two-hosts.json",
                ));
            }
            Err(error) => return Err(unreadable(&error, "")),
        };
        match String::from_utf8(bytes) {
            Ok(text) => Self::parse(&text, file),
            Err(error) => {
                let at = error.utf8_error().valid_up_to();
                let mut text = String::from_utf8_lossy(&error.as_bytes()[..at]).into_owned();
                text.push('\u{fffd}');
                let diagnostic = Diagnostic {
                    severity: Severity::Error,
                    span: Some(at..text.len()),
                    path: document::Path::default(),
                    message: "the file is not UTF-8 text".into(),
                    help: Some("save it as UTF-8".into()),
                };
                Err(Report::new(file, &text, vec![diagnostic]))
            }
        }
    }

    /// Checks the text of a topology file. `file` names it in messages, gives the lab its name unless the
    /// text does, and is what relative paths in the text are relative to; only files the text copies from are read.
    ///
    /// # Errors
    /// All that is wrong with the text.
    pub fn parse(text: &str, file: &Path) -> Result<Loaded, Report> {
        Self::parse_in(text, file, &Folder::of(file))
    }

    /// As [`Topology::parse`], with the files that `folder` has.
    ///
    /// # Errors
    /// All that is wrong with the text.
    pub fn parse_in(text: &str, file: &Path, folder: &Folder) -> Result<Loaded, Report> {
        let mut diagnostics = Vec::new();
        let topology = read(text, file, folder, &mut diagnostics);
        let failed = diagnostics
            .iter()
            .any(|diagnostic| diagnostic.severity == Severity::Error);
        match topology {
            Some(topology) if !failed => Ok(Loaded {
                text: text.to_owned(),
                topology,
                warnings: Report::new(file, text, diagnostics),
                files: folder.files(),
            }),
            _ => {
                // With parts of the file left out, warnings may be about what is not there.
                diagnostics.retain(|diagnostic| diagnostic.severity == Severity::Error);
                Err(Report::new(file, text, diagnostics))
            }
        }
    }
}

impl Patch {
    /// Checks the text of a change of a link: attributes for both directions, `forward` and `backward` for one, as in the `set` of a
    /// schedule. `file` names it in messages and is what relative paths in it are relative to. First the patch from the
    /// link's first end to its second.
    ///
    /// # Errors
    /// All that is wrong with the text.
    pub fn parse(text: &str, file: &Path) -> Result<[Self; 2], Report> {
        Self::parse_in(text, file, &Folder::of(file))
    }

    /// As [`Patch::parse`], with the files that `folder` has.
    ///
    /// # Errors
    /// All that is wrong with the text.
    pub fn parse_in(text: &str, file: &Path, folder: &Folder) -> Result<[Self; 2], Report> {
        let mut diagnostics = Vec::new();
        let set = Document::parse(text, &mut diagnostics).and_then(|mut document| {
            let written: Set = de::read(&mut document, &mut diagnostics)?;
            let mut findings = Findings {
                document: &document,
                diagnostics: &mut diagnostics,
            };
            let path = document::Path::default();
            Some(attributes::set(&written, &path, folder, &mut findings))
        });
        match set {
            Some(set) if diagnostics.is_empty() => Ok(set),
            _ => Err(Report::new(file, text, diagnostics)),
        }
    }
}

fn read(
    text: &str,
    file: &Path,
    folder: &Folder,
    diagnostics: &mut Vec<Diagnostic>,
) -> Option<Topology> {
    let mut document = Document::parse(text, diagnostics)?;
    let lab: Lab = de::read(&mut document, diagnostics)?;
    let mut resolved = resolve(
        &lab,
        file,
        folder,
        Findings {
            document: &document,
            diagnostics,
        },
    );
    let mut findings = Findings {
        document: &document,
        diagnostics,
    };
    check::check(&resolved, &mut findings);
    routing::configure(&lab, folder, &mut resolved, &mut findings);
    Some(resolved.topology)
}
