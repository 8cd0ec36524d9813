//! What a person can get wrong: the message names it, and nothing is left behind.

use anyhow::{Context, Result};
use std::process::Command;
use std::time::Duration;
use tests::World;
use tests::process;
use tests::world::{cache_dir, workspace};

const EXIT_TOPOLOGY: i32 = 3;
const EXIT_NOT_FOUND: i32 = 4;
const EXIT_HOST: i32 = 5;

/// What is wrong, the file, and what the message has to say.
const TOPOLOGIES: &[(&str, &str, &[&str])] = &[
    (
        "syntax error",
        "{\n  \"nodes\": {,}\n}",
        &["topology.json:2:"],
    ),
    (
        "unknown field",
        r#"{"nodes": {"a": {"kind": "host", "memmory": "64MiB"}}}"#,
        &["topology.json:1:", "memmory", "memory"],
    ),
    (
        "missing unit",
        r#"{"nodes": {"a": {"kind": "host", "memory": 64}}}"#,
        &["topology.json:1:", "MiB"],
    ),
    (
        "two names",
        r#"{"nodes": {"a": {"kind": "host"},
 "a": {"kind": "host"}}}"#,
        &["topology.json:2:", "a"],
    ),
    (
        "two MAC addresses",
        r#"{"nodes": {
 "a": {"kind": "host", "interfaces": {"eth0": {"mac": "02:00:00:00:00:01"}}},
 "b": {"kind": "host", "interfaces": {"eth0": {"mac": "02:00:00:00:00:01"}}}},
 "links": [{"endpoints": ["a:eth0", "b:eth0"]}]}"#,
        &["topology.json:3:", "02:00:00:00:00:01"],
    ),
    (
        "two addresses on one link",
        r#"{"nodes": {
 "a": {"kind": "host", "interfaces": {"eth0": {"addresses": ["10.0.0.1/24"]}}},
 "b": {"kind": "host", "interfaces": {"eth0": {"addresses": ["10.0.0.1/24"]}}}},
 "links": [{"endpoints": ["a:eth0", "b:eth0"]}]}"#,
        &["topology.json:3:", "10.0.0.1"],
    ),
    (
        "no such node",
        r#"{"nodes": {"alpha": {"kind": "host"}, "b": {"kind": "host"}},
 "links": [{"endpoints": ["alpha:eth0", "bb:eth0"]}]}"#,
        &["topology.json:2:", "bb"],
    ),
    (
        "two links on one interface",
        r#"{"nodes": {"a": {"kind": "host"}, "b": {"kind": "host"}, "c": {"kind": "host"}},
 "links": [{"endpoints": ["a:eth0", "b:eth0"]},
 {"endpoints": ["a:eth0", "c:eth0"]}]}"#,
        &["topology.json:3:", "a:eth0"],
    ),
    (
        "several at once",
        r#"{"nodes": {"a": {"kind": "host", "memory": 64},
 "b": {"kind": "hosst"}},
 "links": [{"endpoints": ["a:eth0", "c:eth0"], "delay": 5}]}"#,
        &[
            "topology.json:1:",
            "topology.json:2:",
            "topology.json:3:",
            "hosst",
            "ms",
        ],
    ),
];

/// `vmm check` and `vmm launch` refuse every one of [`TOPOLOGIES`] with file, line and the thing at fault.
pub fn topologies(world: &World) -> Result<()> {
    for (what, text, words) in TOPOLOGIES {
        let file = world.file("topology.json", text)?;
        let file = file.to_str().context("a path is text")?;
        for verb in ["check", "launch"] {
            world
                .vmm(&[verb, file])?
                .expect_code(EXIT_TOPOLOGY)
                .and_then(|output| output.expect_words(words))
                .with_context(|| format!("vmm {verb} with {what}"))?;
        }
    }
    world
        .vmm(&["check", "/nonexistent.json"])?
        .expect_words(&["/nonexistent.json"])?;
    Ok(())
}

/// Two ends of one link in different subnets may be meant.
pub fn warnings(world: &World) -> Result<()> {
    let file = world.file(
        "subnets.json",
        r#"{"nodes": {
 "a": {"kind": "host", "interfaces": {"eth0": {"addresses": ["10.0.1.1/24"]}}},
 "b": {"kind": "host", "interfaces": {"eth0": {"addresses": ["10.0.2.1/24"]}}}},
 "links": [{"endpoints": ["a:eth0", "b:eth0"]}]}"#,
    )?;
    world
        .vmm(&["check", file.to_str().context("a path is text")?])?
        .success()?
        .expect_words(&["warning", "10.0.1.1/24", "10.0.2.1/24"])?;
    Ok(())
}

/// Without an image the message says how to get one.
pub fn image_missing(world: &World) -> Result<()> {
    let file = world.file("one.json", r#"{"nodes": {"a": {"kind": "host"}}}"#)?;
    let file = file.to_str().context("a path is text")?;
    world
        .vmm(&[
            "launch",
            "--engine",
            "qemu",
            "--image",
            "/nonexistent-image",
            file,
        ])?
        .expect_code(EXIT_HOST)?
        .expect_words(&["/nonexistent-image", "make image"])?;
    Ok(())
}

/// Verbs about a lab that does not run.
pub fn no_such_lab(world: &World) -> Result<()> {
    for arguments in [
        &["exec", "--lab", "gone", "a", "--", "true"][..],
        &["logs", "--lab", "gone", "a"],
        &["stop", "gone"],
    ] {
        let output = world.vmm(arguments)?.expect_words(&["gone"])?;
        // exec keeps the statuses below 125 for the command.
        let code = if arguments[0] == "exec" {
            125
        } else {
            EXIT_NOT_FOUND
        };
        output.expect_code(code)?;
    }
    Ok(())
}

/// Engine `kvm` where there is no `/dev/kvm`: a mount namespace without one shows it.
pub fn no_kvm(world: &World) -> Result<()> {
    let file = world.file("one.json", r#"{"nodes": {"a": {"kind": "host"}}}"#)?;
    let launch = world.vmm_command(&["launch", "--engine", "kvm"])?;
    let mut command = Command::new("unshare");
    command.args(["--map-root-user", "--mount", "sh", "-c"]);
    command
        .arg("mount -t tmpfs none /dev && exec \"$@\"")
        .arg("sh");
    command
        .arg(launch.get_program())
        .args(launch.get_args())
        .arg(file);
    for (name, value) in launch.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    process::run(command, b"", Duration::from_secs(30))?
        .expect_code(EXIT_HOST)?
        .expect_words(&["/dev/kvm", "--engine qemu"])?;
    Ok(())
}

/// The image is built on a disk that is too small: named with what is needed and what to do, before any work.
pub fn cache_disk_full(world: &World) -> Result<()> {
    let cache = world.path("small");
    std::fs::create_dir(&cache)?;
    // Mounted for these commands only, and gone with the last of them.
    let script = r#"
        mount -t tmpfs -o size=16m tmpfs "$HOPYARD_CACHE"
        # What apt offers has been looked up already, and may be out of reach by now.
        [ ! -f "$2" ] || cp "$2" "$HOPYARD_CACHE/pins"
        status=0
        "$1" || status=$?
        echo "left: $(find "$HOPYARD_CACHE" -type f -size +0 ! -path "$HOPYARD_CACHE/pins*" | wc -l)" >&2
        exit $status"#;
    let mut command = Command::new("unshare");
    // A user namespace lets everybody mount; root needs none.
    if !rustix::process::geteuid().is_root() {
        command.arg("--map-root-user");
    }
    command
        .args(["--mount", "bash", "-ec", script, "bash"])
        .arg(workspace().join("guest-image/build"))
        .arg(cache_dir().join("pins"))
        .env("HOPYARD_CACHE", &cache);
    process::start(command, b"")?
        .wait(Duration::from_mins(5))?
        .expect_code(1)?
        .expect_words(&["MiB free", "HOPYARD_CACHE", "left: 0"])?;
    Ok(())
}
