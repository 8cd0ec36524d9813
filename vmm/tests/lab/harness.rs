//! A place to launch labs in, without virtual machines: `examples/fake-qemu.rs` stands in for QEMU and its guests, a
//! shell script for the switch.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Longer than anything here takes, even on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A run folder, an image, a switch and a topology of their own.
pub struct Place {
    folder: tempfile::TempDir,
    faults: String,
}

impl Place {
    /// For a lab `two` of nodes `a` and `b`.
    pub fn new() -> Self {
        let place = Self {
            folder: tempfile::tempdir().unwrap(),
            faults: String::new(),
        };
        place.switch("echo '{\"event\":\"ready\"}'; exec sleep 1000");
        place.topology(
            r#"{"name": "two", "nodes": {"a": {"kind": "host"}, "b": {"kind": "host"}}}"#,
        );
        let image = place.path("image");
        std::fs::create_dir(&image).unwrap();
        for file in ["vmlinux", "rootfs.erofs"] {
            std::fs::write(image.join(file), "").unwrap();
        }
        std::fs::write(image.join("image.json"), r#"{"format": 1, "protocol": 1}"#).unwrap();
        place
    }

    /// With nodes that have faults, as the double's `FAKE` names them.
    pub fn with_faults(faults: &str) -> Self {
        let mut place = Self::new();
        faults.clone_into(&mut place.faults);
        place
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn run_folder(&self) -> PathBuf {
        self.path("run")
    }

    /// Replaces the topology.
    pub fn topology(&self, text: &str) {
        std::fs::write(self.path("lab.json"), text).unwrap();
    }

    /// Replaces the switch.
    pub fn switch(&self, script: &str) {
        let path = self.path("vswitch");
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// A place with the real switch.
    pub fn with_real_switch() -> Self {
        let place = Self::new();
        let examples = Path::new(env!("CARGO_BIN_EXE_vmm")).with_file_name("examples");
        let switch = examples.join("lab-switch");
        place.switch(&format!("exec '{}' \"$@\"", switch.display()));
        place
    }

    /// `vmm` with `args`.
    pub fn vmm(&self, args: &[&str]) -> Command {
        let vmm = Path::new(env!("CARGO_BIN_EXE_vmm"));
        let mut command = Command::new(vmm);
        command
            .args(args)
            .current_dir(self.folder.path())
            .env("HOPYARD_RUN", self.run_folder())
            .env("HOPYARD_IMAGE", self.path("image"))
            .env("HOPYARD_VSWITCH", self.path("vswitch"))
            // The doubles are scripts, and what they need is not in a jail.
            .env("HOPYARD_ISOLATION", "none")
            .env(
                "HOPYARD_QEMU",
                vmm.with_file_name("examples").join("fake-qemu"),
            )
            .env("FAKE", &self.faults)
            .env_remove("HOPYARD_LAB")
            .stdin(Stdio::null());
        command
    }

    /// Runs `vmm` to its end.
    pub fn run(&self, args: &[&str]) -> Output {
        self.vmm(args).output().unwrap()
    }

    /// Runs `vmm` to its end, which has to be a success; returns what it printed.
    pub fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {}", text(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs `vmm`, which has to fail with `status`; returns what it said.
    pub fn fails(&self, args: &[&str], status: i32) -> String {
        let output = self.run(args);
        assert_eq!(
            output.status.code(),
            Some(status),
            "{args:?}: {}",
            text(&output)
        );
        String::from_utf8(output.stderr).unwrap()
    }

    /// Launches the lab in the background.
    pub fn launch(&self) {
        self.ok(&["launch", "-d", "--engine", "qemu", "lab.json"]);
    }

    /// Launches the lab in the foreground; returns once all nodes are ready.
    pub fn stay(&self, more: &[&str]) -> Foreground {
        let foreground = self.begin(more);
        self.wait_until("the lab runs", || {
            let output = self.run(&["ls", "--json"]);
            let labs: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
            labs.as_array()
                .is_some_and(|labs| labs.iter().any(|lab| lab["phase"] == "running"))
        });
        foreground
    }

    /// Launches the lab in the foreground, without waiting.
    pub fn begin(&self, more: &[&str]) -> Foreground {
        let mut args = vec!["launch", "--engine", "qemu", "lab.json"];
        args.extend(more);
        // In a process group of its own, as a shell starts it.
        let child = self
            .vmm(&args)
            .process_group(0)
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .spawn();
        Foreground(child.unwrap())
    }

    /// The nodes of the lab `two`.
    pub fn nodes(&self) -> Value {
        serde_json::from_str(&self.ok(&["ls", "two", "--json"])).unwrap()
    }

    /// Processes that belong to this place, with what distinguishes them on their command line.
    pub fn processes(&self) -> Vec<(u32, String)> {
        let mark = format!("HOPYARD_RUN={}\0", self.run_folder().display());
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok())
            else {
                continue;
            };
            let environment = std::fs::read(entry.path().join("environ")).unwrap_or_default();
            if String::from_utf8_lossy(&environment).contains(&mark) {
                let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
                found.push((pid, String::from_utf8_lossy(&line).replace('\0', " ")));
            }
        }
        found
    }

    /// The process whose command line contains `word`.
    pub fn process(&self, word: &str) -> u32 {
        let processes = self.processes();
        let found = processes.iter().find(|(_, line)| line.contains(word));
        found
            .unwrap_or_else(|| panic!("no {word} among {processes:?}"))
            .0
    }

    /// Waits until nothing of any lab is left: no process, no file.
    pub fn assert_clean(&self) {
        let files = || std::fs::read_dir(self.run_folder()).map_or(0, Iterator::count);
        let deadline = Instant::now() + PATIENCE;
        while !self.processes().is_empty() || files() > 0 {
            assert!(
                Instant::now() < deadline,
                "left: {:?}, {} entries in the run folder",
                self.processes(),
                files()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until `holds`.
    pub fn wait_until(&self, what: &str, mut holds: impl FnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !holds() {
            assert!(
                Instant::now() < deadline,
                "never: {what}; {:?}",
                self.processes()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for (pid, _) in self.processes() {
            kill(pid, Signal::KILL);
        }
    }
}

/// A lab in the foreground.
pub struct Foreground(Child);

impl Foreground {
    pub fn signal(&self, signal: Signal) {
        kill(self.0.id(), signal);
    }

    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Waits for its end: status and what it said.
    pub fn end(mut self) -> (Option<i32>, String) {
        let mut said = String::new();
        self.0
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut said)
            .unwrap();
        (self.0.wait().unwrap().code(), said)
    }
}

pub fn kill(pid: u32, signal: Signal) {
    let _ = kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), signal);
}

pub fn text(output: &Output) -> String {
    format!(
        "{}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// Reads one line of what `child` prints.
pub fn line_of(child: &mut Child) -> String {
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap())
        .read_line(&mut line)
        .unwrap();
    line
}
