//! What a lab could leave behind: processes, files, sockets, mounts, namespaces, network interfaces, cgroups.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::Path;

/// Everything of this machine that a lab could have made, one line each.
#[derive(Debug, Clone, Default)]
pub struct Traces(BTreeSet<String>);

impl Traces {
    /// As things stand, the process `except` left out. Of processes only the descendants of this one count (it adopts orphans, see
    /// [`crate::World`]), of files and sockets those in the folder `own`, and those elsewhere whose name tells.
    pub fn now(own: &Path, except: u32) -> Self {
        let mut found = BTreeSet::new();
        found.extend(
            descendants(std::process::id())
                .into_iter()
                .filter(|p| p.pid != except)
                .map(|p| format!("process {} ({})", p.pid, p.command)),
        );
        walk(own, 6, &mut |path| {
            found.insert(format!("file {path}"));
        });
        for folder in ["/tmp", "/dev/shm", "/run", "/var/tmp"] {
            for name in names(Path::new(folder)).filter(|name| is_ours(name)) {
                found.insert(format!("file {folder}/{name}"));
            }
        }
        let own = own.to_string_lossy();
        for line in lines("/proc/net/unix").filter(|line| line.contains(&*own)) {
            let path = line.split_ascii_whitespace().last().unwrap_or_default();
            found.insert(format!("socket {path}"));
        }
        for line in lines("/proc/self/mountinfo") {
            let point = line.split(' ').nth(4).unwrap_or_default();
            found.insert(format!("mount {point}"));
        }
        found
            .extend(names(Path::new("/run/netns")).map(|name| format!("network namespace {name}")));
        found.extend(
            names(Path::new("/sys/class/net")).map(|name| format!("network interface {name}")),
        );
        walk(Path::new("/sys/fs/cgroup"), 5, &mut |path| {
            if is_ours(path) && Path::new(path).is_dir() {
                found.insert(format!("cgroup {path}"));
            }
        });
        Self(found)
    }

    /// What is here and was not in `before`.
    pub fn since<'a>(&'a self, before: &'a Self) -> impl Iterator<Item = &'a String> {
        self.0.difference(&before.0)
    }
}

fn is_ours(name: &str) -> bool {
    // The tests' own folders come and go.
    ["hopyard", "vswitch"]
        .iter()
        .any(|word| name.contains(word))
        && !["hopyard-test", "hopyard-nested"]
            .iter()
            .any(|word| name.contains(word))
}

fn lines(file: &str) -> impl Iterator<Item = String> {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.lines()
        .map(str::to_owned)
        .collect::<Vec<_>>()
        .into_iter()
}

fn names(folder: &Path) -> impl Iterator<Item = String> {
    fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
}

fn walk(folder: &Path, depth: usize, seen: &mut impl FnMut(&str)) {
    for name in names(folder) {
        let path = folder.join(name);
        seen(&path.to_string_lossy());
        if depth > 1 && path.is_dir() && !path.is_symlink() {
            walk(&path, depth - 1, seen);
        }
    }
}

/// A process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// `comm`: at most 15 bytes of the program's name.
    pub command: String,
}

/// All processes below `root`, those that have ended and wait for their parent left out.
pub fn descendants(root: u32) -> Vec<Process> {
    let mut children: HashMap<u32, Vec<Process>> = HashMap::new();
    for pid in names(Path::new("/proc")).filter_map(|name| name.parse::<u32>().ok()) {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // proc(5): pid (comm) state ppid …; comm may hold parentheses and spaces.
        let Some((head, tail)) = stat.rsplit_once(')') else {
            continue;
        };
        let command = head
            .split_once('(')
            .map_or("", |(_, command)| command)
            .to_owned();
        let mut fields = tail.split_ascii_whitespace();
        let (Some(state), Some(Ok(parent))) = (fields.next(), fields.next().map(str::parse)) else {
            continue;
        };
        if state != "Z" && state != "X" {
            children
                .entry(parent)
                .or_default()
                .push(Process { pid, command });
        }
    }
    let mut found = Vec::new();
    let mut parents = vec![root];
    while let Some(parent) = parents.pop() {
        for child in children.remove(&parent).unwrap_or_default() {
            parents.push(child.pid);
            found.push(child);
        }
    }
    found
}
