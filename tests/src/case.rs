//! Test cases, and where each of them can run.
//!
//! A case that cannot run here is listed as ignored, so that the runner counts it as skipped; the reason goes to
//! standard error.

use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::{Arguments, Failed, Trial};

use crate::tsc;
use crate::world::{World, bin_dir, image_dir, workspace};

/// Set inside the nested KVM host.
const NESTED: &str = "HOPYARD_TEST_NESTED";

/// Whether this is the nested host.
pub fn is_nested() -> bool {
    std::env::var_os(NESTED).is_some()
}

/// What runs the machines of a lab.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// Our monitor; inside the nested host unless this machine has hardware virtualization.
    Kvm,
    /// QEMU's processor emulation, on this machine.
    Qemu,
    /// Containers, on this machine.
    Container,
}

impl Engine {
    /// As `--engine` takes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Qemu => "qemu",
            Self::Container => "container",
        }
    }
}

/// What a case cannot run without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// Just the programs.
    Programs,
    /// The guest image, and what the engine takes.
    Machines(Engine),
}

/// A test case.
#[derive(Debug)]
pub struct Case {
    /// Unique.
    pub name: String,
    /// What it cannot run without.
    pub needs: Needs,
    /// The test; what it leaves behind is looked for afterwards.
    pub run: fn(&World) -> Result<()>,
}

/// Lists or runs `cases`, as the arguments of this process say.
///
/// Where engine `kvm` needs the nested host, the cases of one module share a host and count as one test: a boot
/// takes as long as a case.
pub fn main(cases: Vec<Case>) -> ExitCode {
    let arguments = Arguments::from_args();
    let nested = is_nested();
    let in_place = nested || has_kvm();
    let mut tests: Vec<(String, Needs, Test)> = Vec::new();
    for case in cases {
        if case.needs == Needs::Machines(Engine::Kvm) && !in_place {
            let module = case
                .name
                .rsplit_once("::")
                .map_or(&*case.name, |(module, _)| module)
                .to_owned();
            if tests.iter().all(|(name, ..)| *name != module) {
                let test = module.clone();
                tests.push((module, case.needs, Box::new(move || run_nested(&test))));
            }
        } else {
            tests.push((case.name.clone(), case.needs, Box::new(move || run(&case))));
        }
    }
    let mut reasons = Vec::new();
    let trials = tests
        .into_iter()
        .map(|(name, needs, test)| {
            // Inside the nested host a case must run or fail.
            let obstacle = if nested { None } else { obstacle(needs) };
            let ignored = obstacle.is_some();
            reasons.extend(obstacle.map(|reason| format!("SKIP {name}: {reason}")));
            Trial::test(name, move || test().map_err(|error| failed(&error)))
                .with_ignored_flag(ignored)
        })
        .collect();
    // The runner lists twice, once for the ignored ones alone.
    if !arguments.list || arguments.ignored {
        for reason in reasons {
            eprintln!("{reason}");
        }
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

type Test = Box<dyn FnOnce() -> Result<()> + Send>;

fn failed(error: &anyhow::Error) -> Failed {
    // Without the backtrace that `{:?}` adds: it only shows the runner.
    format!("{error:#}").into()
}

fn run(case: &Case) -> Result<()> {
    let engine = match case.needs {
        Needs::Machines(engine) => Some(engine),
        Needs::Programs => None,
    };
    let world = World::new(engine)?;
    let result = (case.run)(&world);
    if result.is_err() {
        world.tell_all();
        world.stop_all();
    }
    let left = world.nothing_left();
    // What went wrong first is what is reported.
    result.and(left)
}

/// Runs the cases of a module in the nested host, one after the other.
fn run_nested(module: &str) -> Result<()> {
    // From the top: a checkout below /tmp is seen in there only if it is the working folder.
    let status = Command::new(workspace().join("tests/nested/run"))
        .current_dir(workspace())
        .args([
            "--timeout",
            "590",
            "--tsc-khz",
            &tsc::khz().to_string(),
            "--",
        ])
        .arg(std::env::current_exe()?)
        .args([&format!("{module}::"), "--test-threads=1", "--nocapture"])
        .env(NESTED, "1")
        .status()
        .context("tests/nested/run cannot be started")?;
    ensure!(status.success(), "failed in the nested host ({status})");
    Ok(())
}

/// Why something cannot run here.
fn obstacle(needs: Needs) -> Option<String> {
    let Needs::Machines(engine) = needs else {
        return None;
    };
    let missing = |path: &Path| !path.exists();
    let image = image_dir();
    if missing(&image.join("vmlinux")) {
        return Some(format!(
            "no guest image in {}; `make image` builds it",
            image.display()
        ));
    }
    if engine == Engine::Kvm && has_kvm() {
        return None;
    }
    if engine == Engine::Container {
        return container_obstacle();
    }
    if !in_path("qemu-system-x86_64") {
        return Some("no qemu-system-x86_64; `apt-get install qemu-system-x86`".to_owned());
    }
    if engine == Engine::Kvm && !in_path("apt-get") {
        return Some(
            "no usable KVM, and the nested KVM host is made of Debian packages".to_owned(),
        );
    }
    None
}

fn container_obstacle() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("containers take root".to_owned());
    }
    let file_systems = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if !file_systems.contains("erofs") {
        return Some("this machine's kernel cannot mount erofs (`modprobe erofs`)".to_owned());
    }
    let missing = ["/dev/net/tun", "/dev/loop-control"].map(Path::new);
    let missing = missing.into_iter().find(|path| !path.exists())?;
    Some(format!("this machine has no {}", missing.display()))
}

/// Whether this machine's KVM has hardware behind it. The processor says so with a flag; a KVM without it emulates.
fn has_kvm() -> bool {
    let flags = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let hardware = flags
        .lines()
        .filter(|line| line.starts_with("flags"))
        .any(|line| {
            line.split_ascii_whitespace()
                .any(|flag| flag == "svm" || flag == "vmx")
        });
    hardware
        && std::fs::File::options()
            .read(true)
            .write(true)
            .open("/dev/kvm")
            .is_ok()
}

fn in_path(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).exists()))
}

/// Fails with what to do if the programs under test are not built.
pub(crate) fn programs_built() -> Result<()> {
    for program in ["vmm", "vswitch"] {
        let path = bin_dir()?.join(program);
        if !path.exists() {
            bail!(
                "{} is missing: run `cargo build --workspace --bins` first",
                path.display()
            );
        }
    }
    Ok(())
}
