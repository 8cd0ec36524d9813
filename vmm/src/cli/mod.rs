//! The command line: one module per verb.

mod adopt;
mod apply;
mod attach;
mod bench;
mod capture;
mod check;
mod console;
mod container;
mod cp;
mod enter;
mod events;
mod exec;
mod generate;
mod graph;
mod inspect;
mod launch;
mod link;
mod logs;
mod ls;
mod metrics;
mod node;
mod progress;
mod report;
mod save;
mod stop;
mod table;
mod terminal;
mod top;
mod verify;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::failure::{Code, Failure};
use crate::lab::janitor;

const EXIT_STATUS: &str = "\
Exit status:
  0    success
  1    something went wrong; the message says what
  2    the command line makes no sense
  3    the topology file has errors
  4    no such lab or node, or several labs run and none was chosen
  5    this machine lacks something: image, engine, permission, memory
  6    a node or the switch of the lab failed
  125  exec, shell, attach: Hopyard itself failed (whatever the reason), not the command
  130  ended by Ctrl-C before the work was done
exec, shell and attach otherwise pass on the status of the command; 128+N if signal N ended it.

Examples:
  vmm launch two-hosts.json      a lab until Ctrl-C
  vmm exec a -- ping -c 3 b      in another terminal
  vmm link set a:eth0 delay=20ms

Environment:
  HOPYARD_LAB      the lab to talk to, as --lab
  HOPYARD_IMAGE    folder of the guest image, as --image
  HOPYARD_CACHE    where images are kept (default: $XDG_CACHE_HOME/hopyard, ~/.cache/hopyard)
  HOPYARD_RUN      where running labs are kept (default: /run/hopyard, $XDG_RUNTIME_DIR/hopyard)
  HOPYARD_ISOLATION  how far the lab's processes are jailed, as --isolation
  HOPYARD_VSWITCH  the vswitch program (default: beside vmm)
  HOPYARD_QEMU     the QEMU program (default: qemu-system-x86_64)";

/// Runs whole networks on one machine: every node a microVM, every link shaped.
#[derive(Debug, Parser)]
#[command(name = "vmm", version, after_help = EXIT_STATUS, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Start a lab and stay with it; Ctrl-C ends it
    Launch(launch::LaunchArgs),
    /// Check a topology file and say what is wrong with it
    Check(check::CheckArgs),
    /// List the running labs, or the nodes of one
    Ls(ls::LsArgs),
    /// Run a command in a node
    Exec(exec::ExecArgs),
    /// Open a shell in a node
    Shell(exec::ShellArgs),
    /// Show the output of a start-up command of a node, as it comes
    Attach(attach::AttachArgs),
    /// Sit at the serial port of a node
    Console(console::ConsoleArgs),
    /// Copy files and folders between this machine and a node
    Cp(cp::CpArgs),
    /// Show what a node wrote to its serial port
    Logs(logs::LogsArgs),
    /// Start, stop, restart, pause or resume nodes of a running lab
    Node(node::NodeArgs),
    /// Look at links, and change them while traffic runs
    Link(link::LinkArgs),
    /// Make a running lab what a topology file says; shows the plan first
    Apply(apply::ApplyArgs),
    /// Add nodes and links to a running lab
    Add(apply::AddArgs),
    /// Remove nodes or links from a running lab
    Rm(apply::RmArgs),
    /// Capture frames of links, for Wireshark or a file
    Capture(capture::CaptureArgs),
    /// Collect routing configurations and named files of nodes into a folder
    Save(save::SaveArgs),
    /// Look whether the checks of the topology hold
    Verify(verify::VerifyArgs),
    /// Show everything that is known about a lab, a node or a link
    Inspect(inspect::InspectArgs),
    /// Show what links were asked for and have delivered, and whether the run is valid
    Report(report::ReportArgs),
    /// Watch what nodes take and what links carry, on a screen
    Top(top::TopArgs),
    /// Follow what changes in a lab
    Events(events::EventsArgs),
    /// Draw a lab, or a topology file
    Graph(graph::GraphArgs),
    /// Print the numbers of a lab for Prometheus, or let it ask for them
    Metrics(metrics::MetricsArgs),
    /// Measure engines side by side on this machine
    Bench(bench::BenchArgs),
    /// Take over a lab whose process was killed
    Adopt(adopt::AdoptArgs),
    /// End a lab
    Stop(stop::StopArgs),
    /// Print a completion script for a shell
    Completions(generate::CompletionsArgs),
    /// Print the manual page
    Man(generate::ManArgs),
    /// Enter a jail, then become a program
    #[command(hide = true)]
    Enter(enter::EnterArgs),
    #[command(hide = true)]
    Container(container::ContainerArgs),
    /// Print the OpenAPI document of the API that every lab has on its control socket
    Openapi(generate::OpenapiArgs),
    /// Wait for the lab process to be gone, then remove what is left
    #[command(hide = true)]
    Janitor(janitor::JanitorArgs),
}

/// Which of the running labs a verb is about.
#[derive(Debug, Args)]
struct LabChoice {
    /// The lab; not needed if only one runs
    #[arg(short, long, value_name = "LAB", env = "HOPYARD_LAB")]
    lab: Option<String>,
}

/// `--json`.
#[derive(Debug, Args)]
struct Json {
    /// Print JSON, errors too
    #[arg(long)]
    json: bool,
}

/// `--engine`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum EngineChoice {
    /// Measure whether KVM has hardware behind it, else QEMU
    Auto,
    /// Hopyard's own monitor on KVM
    Kvm,
    /// QEMU's processor emulation: slower, runs anywhere
    Qemu,
    /// Containers instead of virtual machines: for comparison; takes root, and is no wall around hostile nodes
    Container,
}

/// `--image`.
#[derive(Debug, Args)]
struct ImageChoice {
    /// Folder of the guest image: vmlinux, rootfs.erofs, image.json
    #[arg(long, value_name = "DIR", env = "HOPYARD_IMAGE")]
    image: Option<PathBuf>,
}

/// Parses the command line, runs the verb and reports its error.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() && wants_json(std::env::args_os()) => {
            let text = error.render().to_string();
            let said = text.split("\n\n").next().unwrap_or_default();
            Failure::new(Code::Usage, said.trim_start_matches("error: "))
                .help("--help tells what can be said")
                .print(true);
            return ExitCode::from(Code::Usage as u8);
        }
        Err(error) => error.exit(),
    };
    let (json, result) = match cli.verb {
        Verb::Launch(args) => (args.json.json, launch::run(&args)),
        Verb::Check(args) => (args.json.json, check::run(&args)),
        Verb::Ls(args) => (args.json.json, ls::run(&args)),
        Verb::Exec(args) => (false, exec::run(args)),
        Verb::Shell(args) => (false, exec::shell(&args)),
        Verb::Logs(args) => (false, logs::run(&args)),
        Verb::Inspect(args) => (args.json.json, inspect::run(&args)),
        Verb::Report(args) => (args.json.json, report::run(&args)),
        Verb::Top(args) => (args.json.json, top::run(&args)),
        Verb::Events(args) => (args.json.json, events::run(&args)),
        Verb::Graph(args) => (false, graph::run(&args)),
        Verb::Metrics(args) => (false, metrics::run(&args)),
        Verb::Adopt(args) => (args.json.json, adopt::run(&args)),
        Verb::Stop(args) => (args.json.json, stop::run(&args)),
        Verb::Completions(args) => (false, generate::completions(&args)),
        Verb::Man(args) => (false, generate::man(&args)),
        Verb::Openapi(args) => (false, generate::openapi(&args)),
        Verb::Node(args) => (args.json(), node::run(&args)),
        Verb::Link(args) => (args.json(), link::run(&args)),
        Verb::Apply(args) => (args.how.json.json, apply::apply(&args)),
        Verb::Add(args) => (args.how.json.json, apply::add(&args)),
        Verb::Rm(args) => (args.json(), apply::rm(&args)),
        Verb::Bench(args) => (args.json(), bench::run(&args)),
        Verb::Enter(args) => (false, enter::run(&args)),
        Verb::Container(args) => (false, container::run(&args)),
        Verb::Attach(args) => (false, attach::run(&args)),
        Verb::Console(args) => (false, console::run(&args)),
        Verb::Cp(args) => (args.json.json, cp::run(&args)),
        Verb::Save(args) => (args.json.json, save::run(&args)),
        Verb::Verify(args) => (args.json.json, verify::run(&args)),
        Verb::Capture(args) => (args.json.json, capture::run(&args)),
        Verb::Janitor(args) => (false, janitor::run(&args)),
    };
    result.unwrap_or_else(|failure| {
        failure.print(json);
        ExitCode::from(failure.code as u8)
    })
}

/// Whether a command line that makes no sense asks for errors as JSON.
fn wants_json(args: impl Iterator<Item = OsString>) -> bool {
    // What comes behind is for a node.
    args.take_while(|arg| arg != "--")
        .any(|arg| arg == "--json")
}

/// Runs an asynchronous verb on this thread.
fn block_on<T>(verb: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| {
            Failure::new(
                Code::General,
                format!("cannot set up the event loop: {error}"),
            )
        })?
        .block_on(verb)
}

/// Writes to standard output. A reader that went away (`vmm ls | head -1`) is no error.
fn print(text: &str) -> Result<(), Failure> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(Failure::new(
            Code::General,
            format!("cannot write to standard output: {error}"),
        )),
        _ => Ok(()),
    }
}

/// Prints `value` as JSON with a line end.
fn print_json(value: &impl serde::Serialize) -> Result<(), Failure> {
    let mut text = serde_json::to_string_pretty(value)
        .map_err(|error| Failure::new(Code::General, format!("cannot write JSON: {error}")))?;
    text.push('\n');
    print(&text)
}

/// Prints `value` as JSON on one line, for programs.
fn print_json_line(value: &impl serde::Serialize) -> Result<(), Failure> {
    let mut text = serde_json::to_string(value)
        .map_err(|error| Failure::new(Code::General, format!("cannot write JSON: {error}")))?;
    text.push('\n');
    print(&text)
}
