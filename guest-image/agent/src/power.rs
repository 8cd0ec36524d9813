//! The end of a node.

use std::thread::sleep;
use std::time::Duration;

use rustix::process::{Pid, Signal};
use rustix::system::RebootCommand;

use crate::log;
use crate::signals;

/// How long programs may take to end by themselves. Nothing a node holds outlives it.
const GRACE: Duration = Duration::from_millis(100);

/// Ends all programs and then the machine. Returns only if the kernel refuses.
pub fn end(reboot: bool) {
    log::info(if reboot { "rebooting" } else { "switching off" });
    for signal in [libc::SIGTERM, libc::SIGKILL] {
        // SAFETY: `kill` has no memory effects; -1 is every process but this one, as this is PID 1.
        unsafe { libc::kill(-1, signal) };
        if signal == libc::SIGTERM {
            sleep(GRACE);
        }
    }
    rustix::fs::sync();
    let command = if reboot {
        RebootCommand::Restart
    } else {
        RebootCommand::PowerOff
    };
    if let Err(error) = rustix::system::reboot(command) {
        log::error(format_args!("the kernel refuses to end: {error}"));
    }
}

/// What a user's `poweroff`, `halt`, `reboot` or `shutdown` asks PID 1 for; `None` if it is none of these.
pub fn requested_by(program: &str, arguments: &[String]) -> Option<Signal> {
    let reboot = match program {
        "poweroff" | "halt" => false,
        "reboot" => true,
        "shutdown" => arguments
            .iter()
            .any(|argument| argument == "-r" || argument == "--reboot"),
        _ => return None,
    };
    Signal::from_named_raw(if reboot {
        signals::REBOOT
    } else {
        signals::POWER_OFF
    })
}

/// Asks PID 1.
pub fn ask(signal: Signal) -> rustix::io::Result<()> {
    rustix::process::kill_process(Pid::INIT, signal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_of_the_program_say_what_is_asked() {
        let ask = |program, arguments: &[&str]| {
            let arguments: Vec<String> =
                arguments.iter().map(|&argument| argument.into()).collect();
            requested_by(program, &arguments)
        };
        let [off, again] = [signals::POWER_OFF, signals::REBOOT].map(Signal::from_named_raw);
        assert_eq!(ask("poweroff", &[]), off);
        assert_eq!(ask("halt", &["-p"]), off);
        assert_eq!(ask("shutdown", &["-h", "now"]), off);
        assert_eq!(ask("shutdown", &["-r", "now"]), again);
        assert_eq!(ask("reboot", &["-f"]), again);
        assert_eq!(ask("hopyard-agent", &[]), None);
    }
}
