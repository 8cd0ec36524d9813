//! Files of the host that a topology file names.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::path::{self, PathBuf};

use serde::{Deserialize, Serialize};

use crate::document::Path;
use crate::quantity::Size;
use crate::resolve::Findings;

/// A larger text is not configuration.
const MOST: u64 = 1 << 20;

/// What files contain, by absolute path.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Files(BTreeMap<PathBuf, String>);

impl Files {
    /// Adds others; what they contain is newer.
    pub fn extend(&mut self, others: Self) {
        self.0.extend(others.0);
    }
}

/// Where relative paths start: the folder of the topology file.
#[derive(Debug)]
pub struct Folder {
    base: PathBuf,
    given: Option<Files>,
    read: RefCell<Files>,
}

impl Folder {
    /// The folder `file` is in.
    pub fn of(file: &path::Path) -> Self {
        Self {
            base: file.parent().map(PathBuf::from).unwrap_or_default(),
            given: None,
            read: RefCell::default(),
        }
    }

    /// The folder `file` is in, for a process that cannot see it any more: there are these files in it, and no others.
    pub fn with_files(file: &path::Path, files: Files) -> Self {
        Self {
            given: Some(files),
            ..Self::of(file)
        }
    }

    /// What has been read so far.
    pub fn files(&self) -> Files {
        self.read.borrow().clone()
    }

    /// A path made absolute; `None` after an error.
    pub(crate) fn absolute(
        &self,
        text: &str,
        place: &Path,
        findings: &mut Findings<'_>,
    ) -> Option<PathBuf> {
        if text.is_empty() || text.contains('\0') {
            findings.error(place, "the path is empty", "name a file");
            return None;
        }
        match path::absolute(self.base.join(text)) {
            Ok(absolute) => Some(absolute),
            Err(error) => {
                findings.error(place, format!("`{text}` is not a path: {error}"), "");
                None
            }
        }
    }

    /// The content of a text file; `None` after an error.
    pub(crate) fn read(
        &self,
        text: &str,
        place: &Path,
        findings: &mut Findings<'_>,
    ) -> Option<String> {
        let name = self.absolute(text, place, findings)?;
        let content = match &self.given {
            Some(files) => files.0.get(&name).cloned().ok_or_else(|| {
                io::Error::new(io::ErrorKind::NotFound, "its content is not known here")
            }),
            None => std::fs::metadata(&name).and_then(|metadata| {
                if !metadata.is_file() {
                    return Err(io::Error::other("not a regular file"));
                }
                if metadata.len() > MOST {
                    return Err(io::Error::other(format!("larger than {}", Size(MOST))));
                }
                std::fs::read_to_string(&name)
            }),
        };
        match content {
            Ok(content) => {
                self.read.borrow_mut().0.insert(name, content.clone());
                Some(content)
            }
            Err(error) => {
                findings.error(
                    place,
                    format!("cannot read {}: {error}", name.display()),
                    "a UTF-8 text file; its path is relative to the topology file",
                );
                None
            }
        }
    }
}
