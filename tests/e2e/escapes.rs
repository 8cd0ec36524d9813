//! Attempts to escape from each kind of jailed process, by `tests/src/bin/escape.rs` in its place.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use jail::attempt::held;
use tests::World;
use tests::process::{self, eventually};
use tests::world::{bin_dir, config};

/// What every process of a machine can do, jailed or not; without it a test that finds nothing would prove nothing.
const OUTSIDE: [&str; 4] = [
    "read-a-host-file",
    "read-another-process-through-proc",
    "signal-another-process",
    "connect-to-an-abstract-socket",
];

/// Name of each try, and whether it was held.
fn tries(said: &str) -> Result<Vec<(String, bool)>> {
    let (_, rest) = said.split_once("TRIES ").with_context(|| said.to_owned())?;
    let (tries, _) = rest.split_once(" END").with_context(|| said.to_owned())?;
    let each = tries.split(' ').filter_map(|word| word.split_once('='));
    Ok(each
        .map(|(name, how)| (name.to_owned(), how.starts_with("held")))
        .collect())
}

/// `own` is what the process may do, as that is its business.
fn expect_all_held(process: &str, said: &str, own: &[&str]) -> Result<()> {
    let tries = tries(said)?;
    ensure!(tries.len() >= 24, "few tries: {tries:?}");
    let escaped: Vec<_> = tries
        .iter()
        .filter(|(name, held)| !held && !own.contains(&name.as_str()))
        .map(|(name, _)| name)
        .collect();
    ensure!(escaped.is_empty(), "{process} escapes by {escaped:?}");
    held(
        &format!("{process}: tries to escape from its jail"),
        tries.len() as u64,
        None,
    );
    Ok(())
}

/// Listens where whoever shares the host's network namespace gets at it.
fn abstract_socket() -> Result<UnixListener> {
    Ok(UnixListener::bind_addr(&SocketAddr::from_abstract_name(
        "hopyard-escape",
    )?)?)
}

fn two_hosts(world: &World) -> Result<std::path::PathBuf> {
    world.file(
        "two-hosts.json",
        &std::fs::read_to_string(config("two-hosts.json"))?,
    )
}

/// QEMU and the switch, as an ordinary user and, if this is one, as root.
pub fn qemu_and_switch(world: &World) -> Result<()> {
    let _socket = abstract_socket()?;
    let free = process::run(
        Command::new(bin_dir()?.join("escape")),
        b"",
        Duration::from_mins(1),
    )?;
    let free = tries(&free.stderr)?;
    for name in OUTSIDE {
        ensure!(
            free.contains(&(name.to_owned(), false)),
            "outside of a jail {name} works: {free:?}"
        );
    }
    let file = two_hosts(world)?;
    let attack = |who: &str| -> Result<()> {
        // The double has to be where the user finds it.
        let double = world.program("escape")?;
        let double = double
            .get_args()
            .last()
            .unwrap_or(double.get_program())
            .to_owned();
        for (variable, process, own) in [
            ("HOPYARD_QEMU", "qemu", &[][..]),
            (
                "HOPYARD_VSWITCH",
                "vswitch",
                &["make-a-file-in-the-port's-folder"],
            ),
        ] {
            let mut launch = world.vmm_command(&["launch", "--engine", "qemu"])?;
            launch.arg(&file).env(variable, &double);
            let output = process::run(launch, b"", Duration::from_mins(1))?;
            ensure!(output.code() != 0, "{output}");
            expect_all_held(&format!("{process} of {who}"), &output.stderr, own)?;
        }
        Ok(())
    };
    attack("who runs the tests")?;
    if world.become_user(None)?.is_some() {
        attack("an ordinary user")?;
    }
    Ok(())
}

/// The monitor: a double takes its place when its node starts again.
pub fn monitor(world: &World) -> Result<()> {
    if world.become_user(None)?.is_none() {
        println!("this takes root, who mounts the double over the monitor");
        return Ok(());
    }
    let _socket = abstract_socket()?;
    let lab = world.launch(&two_hosts(world)?)?;
    let vmm = world.program("vmm")?;
    let vmm = vmm
        .get_args()
        .last()
        .context("a user's program has arguments")?;
    let mounted = Command::new("nsenter")
        .args([
            "--mount",
            "--target",
            &lab.pid()?.to_string(),
            "mount",
            "--bind",
        ])
        .arg(Path::new(vmm).with_file_name("escape"))
        .arg(vmm)
        .status()?;
    ensure!(mounted.success(), "nsenter: {mounted}");
    world
        .vmm(&["node", "restart", "--no-wait", "a"])?
        .success()?;
    let node = eventually(Duration::from_mins(1), || {
        let node = lab.node("a")?;
        ensure!(node["state"] == "failed", "{node}");
        Ok(node)
    })?;
    expect_all_held("vmm node of an ordinary user", &node.to_string(), &[])?;
    lab.exec("b", &["true"])?.success()?;
    lab.stop()
}
