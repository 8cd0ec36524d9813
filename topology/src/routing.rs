//! Routing daemons.

use std::path;

use crate::file;
use crate::resolve::{Findings, Resolved};

pub fn configure(
    _lab: &file::Lab,
    _file: &path::Path,
    _resolved: &mut Resolved,
    _findings: &mut Findings<'_>,
) {
}
