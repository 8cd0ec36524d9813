//! What every program of a node finds around itself.

use std::path::Path;
use std::process::Command;

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Where programs start.
pub fn home() -> &'static str {
    if Path::new("/root").is_dir() {
        "/root"
    } else {
        "/"
    }
}

/// Gives `command` this environment and no other.
pub fn apply(command: &mut Command) {
    command.env_clear().envs([
        ("PATH", PATH),
        ("HOME", home()),
        ("USER", "root"),
        ("LOGNAME", "root"),
        ("SHELL", "/bin/bash"),
        ("LANG", "C.UTF-8"),
        ("VTYSH_PAGER", "cat"),
    ]);
}
