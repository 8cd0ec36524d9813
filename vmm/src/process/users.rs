//! The users of a user namespace (user_namespaces(7)): who is who outside of it.

use std::fs;
use std::io;
use std::process::{Command, Stdio};

use rustix::process::{getegid, geteuid};

/// Ranges of users and groups that this machine has set aside for whoever runs the lab (subuid(5), subgid(5)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Users {
    users: Range,
    groups: Range,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range {
    first: u32,
    count: u32,
}

impl Users {
    /// Those of this user; `None` if there are none.
    pub fn find() -> Option<Self> {
        let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
        let number = geteuid().as_raw().to_string();
        let name = name_of(&passwd, &number);
        let range = |file| {
            let text = fs::read_to_string(file).ok()?;
            Range::find(&text, [name, Some(number.as_str())])
        };
        Some(Self {
            users: range("/etc/subuid")?,
            groups: range("/etc/subgid")?,
        })
    }
}

/// The name of the user with this number.
fn name_of<'a>(passwd: &'a str, number: &str) -> Option<&'a str> {
    let mut lines = passwd.lines().map(|line| line.split(':'));
    lines.find_map(|mut fields| {
        let name = fields.next()?;
        (fields.nth(1)? == number).then_some(name)
    })
}

impl Range {
    /// The first that belongs to somebody of one of these names.
    fn find(text: &str, names: [Option<&str>; 2]) -> Option<Self> {
        text.lines().find_map(|line| {
            let mut fields = line.trim().split(':');
            let owner = fields.next()?;
            if !names.contains(&Some(owner)) {
                return None;
            }
            let (first, count) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
            let is_whole = count > 0 && first > 0 && u32::checked_add(first, count).is_some();
            is_whole.then_some(Self { first, count })
        })
    }

    /// The one of process `pid`. Numbers of processes are unique among those that run, so users are too as long as there are as many;
    /// beyond that two processes may share one.
    fn of(self, pid: u32) -> u32 {
        self.first + pid % self.count
    }
}

/// Says who the users of the namespace of process `pid` are outside: the first is who runs the lab, and needs the capabilities of the
/// namespace to set up the jail; the second, if there is one, is nobody else.
pub fn map(pid: u32, users: Option<Users>) -> io::Result<()> {
    let (user, group) = (geteuid().as_raw(), getegid().as_raw());
    let Some(Users { users, groups }) = users else {
        // Without privileges only after this.
        write(pid, "setgroups", "deny")?;
        write(pid, "uid_map", &format!("0 {user} 1"))?;
        return write(pid, "gid_map", &format!("0 {group} 1"));
    };
    for (file, program, ours, own) in [
        ("uid_map", "newuidmap", user, users.of(pid)),
        ("gid_map", "newgidmap", group, groups.of(pid)),
    ] {
        if geteuid().is_root() {
            write(pid, file, &format!("0 {ours} 1\n1 {own} 1"))?;
        } else {
            // It is set-user-ID and knows what this user may map.
            let lines = [pid, 0, ours, 1, 1, own, 1].map(|number| number.to_string());
            run(program, &lines)?;
        }
    }
    Ok(())
}

fn write(pid: u32, file: &str, text: &str) -> io::Result<()> {
    fs::write(format!("/proc/{pid}/{file}"), text)
}

fn run(program: &str, arguments: &[String]) -> io::Result<()> {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| io::Error::new(error.kind(), format!("{program}: {error}")))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(said.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_found_by_name_or_number() {
        let passwd = "root:x:0:0:root:/root:/bin/bash\nalice:x:1000:1000::/home/alice:/bin/sh\n";
        assert_eq!(name_of(passwd, "1000"), Some("alice"));
        assert_eq!(name_of(passwd, "7"), None);
        let text = "bob:100000:65536\nalice:165536:65536\nalice:1:9\n1001:231072:10\nbad\n";
        let range = |name: &'static str| Range::find(text, [Some(name), None]);
        let (first, count) = (165_536, 65_536);
        assert_eq!(range("alice"), Some(Range { first, count }));
        assert_eq!(
            Range::find(text, [None, Some("1001")]).map(|r| r.of(25)),
            Some(231_077)
        );
        for none in ["carol", "bad", ""] {
            assert_eq!(range(none), None);
        }
        for broken in ["a:0:5", "a:5:0", "a:4294967295:2", "a:1"] {
            assert_eq!(Range::find(broken, [Some("a"), None]), None, "{broken}");
        }
    }
}
