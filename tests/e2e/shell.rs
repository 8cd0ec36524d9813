//! `vmm shell` on a real terminal.

use std::io::{Read, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pty_process::Size;
use tests::World;
use tests::process::eventually;

/// Size, line editing, Ctrl-C, window changes and the exit status.
pub fn terminal(world: &World) -> Result<()> {
    let lab = world.launch(&world.file("shell.json", r#"{"nodes": {"a": {"kind": "host"}}}"#)?)?;
    let (pty, pts) = pty_process::blocking::open()?;
    pty.resize(Size::new(31, 97))?;
    let launch = world.vmm_command(&["shell", "a"])?;
    let command = pty_process::blocking::Command::new(launch.get_program())
        .args(launch.get_args())
        .env("HOPYARD_RUN", world.run_folder())
        .env("TERM", "xterm");
    let mut child = command.spawn(pts)?;

    let pty = Arc::new(pty);
    let seen = Arc::new(Mutex::new(String::new()));
    let reader = {
        let (pty, seen) = (Arc::clone(&pty), Arc::clone(&seen));
        std::thread::spawn(move || {
            let mut chunk = [0; 4096];
            // Ends with an error when the shell closes the terminal.
            while let Ok(length @ 1..) = (&*pty).read(&mut chunk) {
                let text = String::from_utf8_lossy(&chunk[..length]).into_owned();
                seen.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push_str(&text);
            }
        })
    };
    let text = || seen.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let expect = |word: &str| {
        eventually(Duration::from_secs(30), || {
            let text = text();
            ensure!(
                text.contains(word),
                "'{word}' was expected on the terminal:\n{text}"
            );
            Ok(())
        })
    };
    let type_in = |keys: &str| (&*pty).write_all(keys.as_bytes()).context("typing");

    // What is typed is echoed: the words looked for must not be in it.
    type_in("echo size-$(stty size | tr ' ' x); tty\r")?;
    expect("size-31x97")?;
    expect("/dev/pts/")?;
    pty.resize(Size::new(40, 120))?;
    type_in("sleep 1; echo size-$(stty size | tr ' ' x)\r")?;
    expect("size-40x120")?;
    type_in("sleep 4321; echo status-$?\r")?;
    lab.wait_for("a", "sleeping", |_| lab.sh("a", "pgrep -x sleep").is_ok())?;
    type_in("\x03")?;
    type_in("echo after-$((40+2))\r")?;
    expect("after-42")?;
    ensure!(
        !text().contains("status-0"),
        "Ctrl-C ends the command:\n{}",
        text()
    );
    type_in("exit 9\r")?;
    let status = child.wait()?;
    ensure!(
        status.code() == Some(9),
        "the shell's status: {status}\n{}",
        text()
    );
    drop(reader);
    lab.stop()
}
