//! What is wrong with a topology file: every error and warning with its place, for people and as JSON.

use std::fmt;
use std::ops::Range;
use std::path::{self, PathBuf};

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};
use serde::Serialize;
use serde::ser::{SerializeStruct, Serializer};

use crate::document::Path;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// The file cannot be used.
    Error,
    /// The file can be used, but hardly means what it says.
    Warning,
}

/// One finding, with its place in the text as bytes.
#[derive(Debug, Clone)]
pub(crate) struct Diagnostic {
    pub severity: Severity,
    pub span: Option<Range<usize>>,
    pub path: Path,
    pub message: String,
    pub help: Option<String>,
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// From 1; absent if the file could not be read at all.
    pub line: Option<usize>,
    /// In characters, from 1.
    pub column: Option<usize>,
    /// Where it stands in the document, as in `nodes.pc2.interfaces.eth0.mtu`; empty for the whole document.
    pub path: String,
    /// What is wrong.
    pub message: String,
    /// What would be right.
    pub help: Option<String>,
}

/// All that was found in one file: errors with which it was refused, or the warnings of a usable one.
///
/// Serialized as `{"file": …, "findings": […]}` with the fields of [`Finding`].
#[derive(Debug, Clone)]
pub struct Report {
    file: PathBuf,
    text: String,
    diagnostics: Vec<Diagnostic>,
}

impl Report {
    pub(crate) fn new(file: &path::Path, text: &str, mut diagnostics: Vec<Diagnostic>) -> Self {
        diagnostics
            .sort_by_key(|diagnostic| diagnostic.span.as_ref().map(|span| (span.start, span.end)));
        Self {
            file: file.to_owned(),
            text: text.to_owned(),
            diagnostics,
        }
    }

    /// The file, as it was named to [`Topology::load`](crate::model::Topology::load).
    pub fn file(&self) -> &path::Path {
        &self.file
    }

    /// In the order of the file.
    pub fn findings(&self) -> Vec<Finding> {
        self.diagnostics
            .iter()
            .map(|diagnostic| {
                let place = diagnostic.span.as_ref().map(|span| self.place(span.start));
                Finding {
                    severity: diagnostic.severity,
                    line: place.map(|(line, _)| line),
                    column: place.map(|(_, column)| column),
                    path: diagnostic.path.to_string(),
                    message: diagnostic.message.clone(),
                    help: diagnostic.help.clone(),
                }
            })
            .collect()
    }

    /// Whether there is nothing to say.
    pub fn is_empty(&self) -> bool {
        self.diagnostics.is_empty()
    }

    /// How many of the findings are of this severity.
    pub fn count(&self, severity: Severity) -> usize {
        self.diagnostics
            .iter()
            .filter(|diagnostic| diagnostic.severity == severity)
            .count()
    }

    /// For people: each finding with its line of the file and what would be right; with ANSI colours or without.
    /// Empty if there are no findings, else it ends with a newline.
    pub fn render(&self, colour: bool) -> String {
        let renderer = if colour {
            Renderer::styled()
        } else {
            Renderer::plain()
        };
        let file = self.file.to_string_lossy();
        let mut out = String::new();
        for diagnostic in &self.diagnostics {
            let level = match diagnostic.severity {
                Severity::Error => Level::ERROR,
                Severity::Warning => Level::WARNING,
            };
            let mut group = level
                .primary_title(printable(&diagnostic.message))
                .elements(diagnostic.span.as_ref().map(|span| {
                    Snippet::source(self.text.as_str())
                        .path(file.as_ref())
                        .annotation(AnnotationKind::Primary.span(span.clone()))
                }));
            if let Some(help) = &diagnostic.help {
                group = group.element(Level::HELP.message(printable(help)));
            }
            out.push_str(&renderer.render(&[group]));
            out.push_str("\n\n");
        }
        out.truncate(out.trim_end().len());
        if !out.is_empty() {
            out.push('\n');
        }
        out
    }

    /// Line and column of a byte offset, from 1; columns count characters.
    fn place(&self, offset: usize) -> (usize, usize) {
        let before = self.text.get(..offset).unwrap_or(&self.text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        (
            before.matches('\n').count() + 1,
            before[line_start..].chars().count() + 1,
        )
    }
}

/// A text of the file quoted in a message must not reach the terminal as control characters.
fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.render(false).trim_end())
    }
}

impl std::error::Error for Report {}

impl Serialize for Report {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut report = serializer.serialize_struct("Report", 2)?;
        report.serialize_field("file", &self.file.to_string_lossy())?;
        report.serialize_field("findings", &self.findings())?;
        report.end()
    }
}
