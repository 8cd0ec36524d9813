//! The agent from outside: its loop on a socket pair, and the whole of it as PID 1 of a node under QEMU.
//!
//! Without QEMU or an image the latter are counted as ignored, with the reason.

mod client;
mod node;
mod qemu;
mod serve;

use libtest_mimic::{Arguments, Trial};

fn main() -> std::process::ExitCode {
    if serve::is_server() {
        return serve::server();
    }
    let arguments = Arguments::from_args();
    let mut trials = serve::trials();
    let image = qemu::image();
    if let Err(reason) = &image
        && !arguments.list
    {
        eprintln!("the tests in a node are skipped: {reason}");
    }
    trials.extend(
        node::trials()
            .into_iter()
            .map(|trial| trial.with_ignored_flag(image.is_err())),
    );
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// A test that fails by panicking.
fn trial(name: &str, test: fn()) -> Trial {
    Trial::test(name, move || {
        test();
        Ok(())
    })
}
