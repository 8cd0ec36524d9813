//! What ends a command: a message for people, what to do about it, and an exit status for scripts.

use std::fmt;

use serde::Serialize;

/// Exit statuses, the same for every verb (`docs/cli.md` lists them).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Code {
    /// Something went wrong; the message says what.
    General = 1,
    /// The command line makes no sense (clap's own status).
    Usage = 2,
    /// The topology file has errors.
    Topology = 3,
    /// No such lab or node, or several labs run and none was chosen.
    NotFound = 4,
    /// This machine lacks something: image, engine, permission, memory.
    Host = 5,
    /// The lab runs, or ran, and a node or the switch failed.
    Lab = 6,
    /// `exec`, `shell` and `attach`: Hopyard itself failed, not the command.
    Exec = 125,
    /// Ended by SIGINT before the work was done.
    Interrupted = 130,
}

/// An error as a person reads it.
#[derive(Debug, Clone)]
pub struct Failure {
    /// Exit status of the process.
    pub code: Code,
    /// What happened, to what.
    pub message: String,
    /// What to do.
    pub help: Option<String>,
}

impl Failure {
    /// An error without advice.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            help: None,
        }
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// The same error under another exit status.
    #[must_use]
    pub fn with_code(mut self, code: Code) -> Self {
        self.code = code;
        self
    }

    /// Writes the error to standard error, as JSON if `json`.
    pub fn print(&self, json: bool) {
        if json {
            #[derive(Serialize)]
            struct Document<'a> {
                error: &'a str,
                #[serde(skip_serializing_if = "Option::is_none")]
                help: Option<&'a str>,
                status: u8,
            }
            let document = Document {
                error: &self.message,
                help: self.help.as_deref(),
                status: self.code as u8,
            };
            if let Ok(text) = serde_json::to_string(&document) {
                eprintln!("{text}");
            }
        } else {
            eprintln!("{self}");
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.message)?;
        if let Some(help) = &self.help {
            write!(f, "\n help: {help}")?;
        }
        Ok(())
    }
}

/// The nearest of `candidates` to what was typed, if it is near enough to be what was meant.
pub fn nearest<'a>(typed: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(typed, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= candidate.len().max(typed.len()).div_ceil(3))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_name_is_offered_only_when_near() {
        let nodes = ["pc1", "pc2", "router-a"];
        assert_eq!(nearest("ruoter-a", nodes), Some("router-a"));
        assert_eq!(nearest("pc3", nodes), Some("pc1"));
        assert_eq!(nearest("web", nodes), None);
    }
}
