//! `vmm launch`: starts a lab and stays with it, or leaves it running.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use clap::{Args, ValueEnum};
use rustix::process::{Signal, kill_process};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use topology::model::{Fabric, Topology};
use topology::quantity::Time;
use topology::{Loaded, Severity};

use super::progress::{self, Seen, Until};
use super::{EngineChoice, ImageChoice, Json, block_on};
use crate::client::Client;
use crate::engine::{Engines, auto, devices};
use crate::failure::{Code, Failure};
use crate::image;
use crate::isolation::{Isolation, Wish};
use crate::lab::run_folder::{LabPaths, RunRoot};
use crate::lab::{self, EndSignals, Plan, Prepared, children};

/// How long the last words of a lab may take to be shown.
const LAST_EVENTS: Duration = Duration::from_secs(1);

/// What a person has done who ended a launch.
const NOT_READY: &str = "the lab was ended before every node was ready";

/// Arguments of `vmm launch`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  vmm launch configs/two-hosts.json\n  vmm launch -d --name lab2 configs/two-hosts.json"
)]
pub struct LaunchArgs {
    /// The topology file
    file: PathBuf,
    /// What runs the machines
    #[arg(long, value_enum, default_value = "auto")]
    engine: EngineChoice,
    /// What links are made of (default: as the file says)
    #[arg(long, value_enum)]
    fabric: Option<FabricChoice>,
    /// Name of the lab (default: as the file says)
    #[arg(long)]
    name: Option<String>,
    #[command(flatten)]
    image: ImageChoice,
    /// Leave the lab running once every node is ready
    #[arg(short, long)]
    detach: bool,
    /// How long a machine may take until its network is set up (default: 60s, engine qemu 180s)
    #[arg(long, value_name = "TIME", value_parser = time)]
    boot_timeout: Option<Duration>,
    /// How many machines boot at the same time (default: by the number of processors)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    boots: Option<u16>,
    /// How far the lab's processes are jailed
    #[arg(long, value_enum, default_value = "full", env = "HOPYARD_ISOLATION")]
    isolation: Wish,
    #[command(flatten)]
    pub json: Json,
    /// Be the lab process of a detached lab
    #[arg(long, hide = true)]
    lab_process: bool,
}

/// `--fabric`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum FabricChoice {
    /// Hopyard's switch
    Vswitch,
    /// Bridges, pairs and queue disciplines of the host's kernel: for comparison; takes root, and engine qemu or container
    Kernel,
}

/// What a detached lab process tells the process that started it, once its API listens.
#[derive(Debug, Serialize, Deserialize)]
struct Handshake {
    name: String,
}

fn time(text: &str) -> Result<Duration, String> {
    let time: Time = text
        .parse()
        .map_err(|error: topology::quantity::QuantityError| error.to_string())?;
    Ok(time.0)
}

pub fn run(args: &LaunchArgs) -> Result<ExitCode, Failure> {
    if args.detach {
        return block_on(background(args.json.json, verdict));
    }
    let root = RunRoot::from_env()?;
    root.labs();
    let Some(plan) = plan(args, &root)? else {
        return Ok(ExitCode::from(Code::Topology as u8));
    };
    let say = |text: &str| {
        if !args.json.json {
            eprintln!("{text}");
        }
    };
    let engine = super::ls::engine(plan.choice.engine.name());
    say(&format!("engine {engine}: {}", plan.choice.reason));
    for warning in lab::warnings(&plan) {
        say(&format!("warning: {warning}"));
    }
    let name = plan.name.clone();
    block_on(async {
        // Before there is anything that would be left behind.
        let signals = EndSignals::listen()?;
        let prepared = lab::prepare(&plan, &root)?;
        if let Some(why) = prepared.limits_missing() {
            say(&format!(
                "warning: limits on processor time and memory are not enforced: {why}"
            ));
        }
        if args.lab_process {
            part_from_starter(prepared.paths(), &name)?;
            prepared.run(signals).await?;
            return Ok(ExitCode::SUCCESS);
        }
        stay(prepared, signals, &name, args.json.json).await
    })
}

/// Everything the lab needs, checked; `None` if the topology has errors, which were shown.
fn plan(args: &LaunchArgs, root: &RunRoot) -> Result<Option<Plan>, Failure> {
    let colour = std::io::stderr().is_terminal();
    let loaded = match Topology::load(&args.file) {
        Ok(loaded) => loaded,
        Err(report) if args.json.json => {
            let errors = report.count(Severity::Error);
            return Err(Failure::new(
                Code::Topology,
                format!("{} has {errors} errors", args.file.display()),
            )
            .help("`vmm check --json` lists them"));
        }
        Err(report) => {
            eprint!("{}", report.render(colour));
            return Ok(None);
        }
    };
    let Loaded {
        mut topology,
        text,
        warnings,
        files,
    } = loaded;
    if !args.json.json {
        eprint!("{}", warnings.render(colour));
    }
    let name = args.name.clone().unwrap_or_else(|| topology.name.clone());
    check_name(&name)?;
    let file = args.file.canonicalize().map_err(|error| {
        Failure::new(
            Code::General,
            format!("cannot use {}: {error}", args.file.display()),
        )
    })?;
    let image = if lab::machines::needs_image(&topology) {
        Some(image::find(args.image.image.as_deref())?)
    } else {
        None
    };
    let choice = match args.engine {
        EngineChoice::Auto => auto::measure()?,
        EngineChoice::Kvm => auto::kvm()?,
        EngineChoice::Qemu => auto::qemu()?,
        EngineChoice::Container => auto::container()?,
    };
    match args.fabric {
        Some(FabricChoice::Vswitch) => topology.fabric = Fabric::Vswitch,
        Some(FabricChoice::Kernel) => topology.fabric = Fabric::Kernel,
        None => {}
    }
    let engines = Engines::find(choice.engine.clone(), &topology)?;
    devices::assign(&mut topology, choice.engine.name(), &root.lab(&name));
    let isolation = block_on(Isolation::find(args.isolation))?;
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    Ok(Some(Plan {
        name,
        file,
        text,
        files,
        topology,
        image,
        boot_timeout: args
            .boot_timeout
            .unwrap_or_else(|| choice.engine.boot_timeout()),
        boots_at_once: args
            .boots
            .map_or_else(|| choice.engine.boots_at_once(processors), usize::from),
        choice,
        engines,
        isolation,
    }))
}

fn check_name(name: &str) -> Result<(), Failure> {
    let fits = (1..=32).contains(&name.len())
        && name
            .bytes()
            .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'))
        && !name.starts_with('-');
    if fits {
        return Ok(());
    }
    Err(
        Failure::new(Code::Usage, format!("{name:?} is no name for a lab"))
            .help("use 1 to 32 characters of a-z, 0-9 and -, not - first"),
    )
}

/// Runs the lab in this process and shows what happens.
async fn stay(
    prepared: Prepared,
    signals: EndSignals,
    name: &str,
    json: bool,
) -> Result<ExitCode, Failure> {
    let client = Client::at(name, prepared.paths());
    let view =
        tokio::spawn(
            async move { progress::watch(client.events().await?, Until::Ended, json).await },
        );
    prepared.run(signals).await?;
    let seen = match tokio::time::timeout(LAST_EVENTS, view).await {
        Ok(Ok(seen)) => seen?,
        _ => Seen::default(),
    };
    if !seen.running {
        return Err(Failure::new(Code::Interrupted, NOT_READY));
    }
    Ok(verdict(&seen.failed))
}

fn verdict(failed: &[String]) -> ExitCode {
    if failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(Code::Lab as u8)
    }
}

/// Starts the lab that this command line is about in a process of its own, and watches it until its nodes are ready, or have failed; those
/// are for the `verdict`.
pub async fn background(
    json: bool,
    verdict: impl Fn(&[String]) -> ExitCode,
) -> Result<ExitCode, Failure> {
    let cannot = |error: std::io::Error| {
        Failure::new(Code::Host, format!("cannot start the lab process: {error}"))
    };
    let mut interrupt = signal(SignalKind::interrupt()).map_err(cannot)?;
    let mut child = start_lab_process().map_err(cannot)?;
    let seen = tokio::select! {
        seen = accompany(&mut child, json) => seen?,
        _ = interrupt.recv() => {
            if let Some(pid) = child.id().and_then(children::raw_pid) {
                let _ = kill_process(pid, Signal::TERM);
            }
            let _ = child.wait().await;
            return Err(Failure::new(Code::Interrupted, NOT_READY));
        }
    };
    let Some((name, seen)) = seen else {
        // It has said why.
        let code = child.wait().await.ok().and_then(|status| status.code());
        return Ok(ExitCode::from(code.unwrap_or(Code::General as i32) as u8));
    };
    if seen.running && !seen.ended {
        if !json {
            eprintln!("{name} goes on; `vmm stop {name}` ends it");
        }
        return Ok(verdict(&seen.failed));
    }
    let _ = child.wait().await;
    Err(match seen.failure {
        Some(reason) => Failure::new(Code::Lab, reason),
        None if seen.ended => Failure::new(Code::Interrupted, NOT_READY),
        None => Failure::new(Code::Lab, "the lab process was killed"),
    })
}

/// This command line again, as the lab process: it checks and reports everything itself.
fn start_lab_process() -> std::io::Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    let arguments = std::env::args_os()
        .skip(1)
        .filter(|argument| argument != "-d" && argument != "--detach");
    command
        .args(arguments)
        .arg("--lab-process")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    children::detach(command.as_std_mut());
    command.spawn()
}

/// Passes on what the lab process says until its API listens, then watches the lab. `None` if it gets not that far.
async fn accompany(child: &mut Child, json: bool) -> Result<Option<(String, Seen)>, Failure> {
    let (Some(stderr), Some(stdout)) = (child.stderr.take(), child.stdout.take()) else {
        return Ok(None);
    };
    let mut line = String::new();
    let (mut stdout, mut stderr) = (BufReader::new(stdout), stderr);
    let (_, _) = tokio::join!(stdout.read_line(&mut line), relay(&mut stderr));
    let Ok(Handshake { name }) = serde_json::from_str(&line) else {
        return Ok(None);
    };
    let client = Client::at(&name, &RunRoot::from_env()?.lab(&name));
    let seen = progress::watch(client.events().await?, Until::Running, json).await?;
    Ok(Some((name, seen)))
}

async fn relay(from: &mut (impl AsyncRead + Unpin)) -> std::io::Result<()> {
    let mut buffer = [0; 4096];
    while let length @ 1.. = from.read(&mut buffer).await? {
        std::io::stderr().write_all(&buffer[..length])?;
    }
    Ok(())
}

/// The lab process: from here on it writes to a log of its own.
pub fn part_from_starter(paths: &LabPaths, name: &str) -> Result<(), Failure> {
    let cannot = |error: std::io::Error| {
        Failure::new(
            Code::Host,
            format!("cannot write {}: {error}", paths.log().display()),
        )
    };
    let handshake = Handshake {
        name: name.to_owned(),
    };
    super::print_json_line(&handshake)?;
    let log = std::fs::File::create(paths.log()).map_err(cannot)?;
    rustix::stdio::dup2_stdout(&log).map_err(|error| cannot(error.into()))?;
    rustix::stdio::dup2_stderr(&log).map_err(|error| cannot(error.into()))?;
    // A file system that holds no file of the lab can be unmounted.
    std::env::set_current_dir("/").map_err(cannot)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_labs_make_good_folders() {
        for good in ["a", "two-hosts", "0", &"x".repeat(32)] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "A", "a/b", "..", "a b", &"x".repeat(33)] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn times_need_a_unit() {
        assert_eq!(time("90s"), Ok(Duration::from_secs(90)));
        assert!(time("90").is_err());
    }
}
