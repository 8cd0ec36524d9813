//! PID 1 of every node: makes the root usable, configures the node as the launcher says, starts what is to
//! run, and serves the launcher's commands over one virtio-serial port (`agent-protocol`).
//!
//! One thread, one `poll` loop. PID 1 must not end: what fails is reported and the node stays up.
#![warn(missing_docs)]

mod attach;
mod boot;
mod commands;
mod configure;
mod connection;
mod console;
mod environment;
mod exec;
mod frr;
mod log;
mod power;
mod server;
mod services;
mod signals;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Duration;

use rustix::net::{SocketFlags, accept_with};

pub use server::Server;
pub use signals::Signals;

/// What PID 1 does. Does not return.
pub fn init() -> ! {
    std::panic::set_hook(Box::new(|panic| log::error(format_args!("bug: {panic}"))));
    let container = boot::container();
    let problems = match container {
        None => boot::mount_root(),
        // Its engine has mounted all there is.
        Some(_) => Vec::new(),
    };
    for problem in &problems {
        log::error(problem);
    }
    let signals = loop {
        match Signals::new() {
            Ok(signals) => break signals,
            Err(error) => log::error(format_args!("no signals: {error}")),
        }
        std::thread::sleep(Duration::from_secs(1));
    };
    let mut server = match container {
        None => Server::new(signals, Box::new(boot::open_port), problems).with_console(),
        Some(listener) => {
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            let accept = move || accept_with(&listener, flags).ok();
            Server::new(signals, Box::new(accept), problems)
        }
    };
    loop {
        match catch_unwind(AssertUnwindSafe(|| server.run())) {
            Ok(reboot) => power::end(reboot),
            // The connection may be in any state; the host sees it close and can come back.
            Err(_) => server.disconnect(),
        }
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// The program under any of its names: `poweroff` and the like ask PID 1, PID 1 serves.
pub fn main() -> ExitCode {
    let mut arguments = std::env::args();
    let program = arguments.next().unwrap_or_default();
    let program = program.rsplit('/').next().unwrap_or_default();
    let arguments: Vec<_> = arguments.collect();
    if let Some(signal) = power::requested_by(program, &arguments) {
        return match power::ask(signal) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{program}: PID 1 cannot be asked to end the node: {error}");
                ExitCode::FAILURE
            }
        };
    }
    if let Some((verb, rest)) = arguments.split_first()
        && verb == "attach"
    {
        return ExitCode::from(attach::main(rest));
    }
    if std::process::id() != 1 {
        eprintln!("{program}: this is PID 1 of a Hopyard node; there is nothing it can do here");
        return ExitCode::FAILURE;
    }
    init()
}
