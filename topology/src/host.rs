//! Files of the host that a topology file names.

use std::path::{self, PathBuf};

use crate::document::Path;
use crate::quantity::Size;
use crate::resolve::Findings;

/// A larger text is not configuration.
const MOST: u64 = 1 << 20;

/// Where relative paths start: the folder of the topology file.
#[derive(Debug)]
pub struct Folder(PathBuf);

impl Folder {
    /// The folder `file` is in.
    pub fn of(file: &path::Path) -> Self {
        Self(file.parent().map(PathBuf::from).unwrap_or_default())
    }

    /// A path made absolute; `None` after an error.
    pub fn absolute(
        &self,
        text: &str,
        place: &Path,
        findings: &mut Findings<'_>,
    ) -> Option<PathBuf> {
        if text.is_empty() || text.contains('\0') {
            findings.error(place, "the path is empty", "name a file");
            return None;
        }
        match path::absolute(self.0.join(text)) {
            Ok(absolute) => Some(absolute),
            Err(error) => {
                findings.error(place, format!("`{text}` is not a path: {error}"), "");
                None
            }
        }
    }

    /// The content of a text file; `None` after an error.
    pub fn read(&self, text: &str, place: &Path, findings: &mut Findings<'_>) -> Option<String> {
        let name = self.absolute(text, place, findings)?;
        let content = std::fs::metadata(&name).and_then(|metadata| {
            if !metadata.is_file() {
                return Err(std::io::Error::other("not a regular file"));
            }
            if metadata.len() > MOST {
                return Err(std::io::Error::other(format!("larger than {}", Size(MOST))));
            }
            std::fs::read_to_string(&name)
        });
        match content {
            Ok(content) => Some(content),
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
