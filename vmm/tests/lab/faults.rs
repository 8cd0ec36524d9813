//! What goes wrong in a lab: a message that says what to do, and nothing left.

use std::os::unix::net::UnixStream;

use jail::attempt::{Starved, held};

use crate::harness::{Place, text};

fn launch_fails(place: &Place, more: &[&str], status: i32) -> String {
    let mut args = vec!["launch", "--engine", "qemu", "lab.json"];
    args.extend(more);
    let said = place.fails(&args, status);
    place.assert_clean();
    // The same for a detached lab.
    args.push("-d");
    let detached = place.fails(&args, status);
    place.assert_clean();
    let last = |said: &str| {
        said.lines()
            .find(|line| line.starts_with("error:"))
            .map(ToOwned::to_owned)
    };
    assert_eq!(last(&said), last(&detached), "{detached}");
    said
}

#[test]
fn a_missing_image_is_named_with_the_remedy() {
    let place = Place::new();
    std::fs::remove_file(place.path("image/vmlinux")).unwrap();
    let said = launch_fails(&place, &[], 5);
    assert!(
        said.contains("vmlinux") && said.contains("make image"),
        "{said}"
    );
}

#[test]
fn a_missing_engine_or_switch_is_named_with_the_remedy() {
    let place = Place::new();
    let launch = ["launch", "--engine", "qemu", "lab.json"];
    let output = place
        .vmm(&launch)
        .env("HOPYARD_QEMU", "no-such-qemu")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(5));
    assert!(String::from_utf8_lossy(&output.stderr).contains("apt-get install"));
    std::fs::remove_file(place.path("vswitch")).unwrap();
    let said = launch_fails(&place, &[], 5);
    assert!(
        said.contains("vswitch") && said.contains("cargo build"),
        "{said}"
    );
}

/// A lab process that has no descriptor left tells each client so, and goes on when it has.
#[test]
fn a_lab_without_descriptors_says_so() {
    let place = Place::new();
    place.launch();
    let labs: serde_json::Value = serde_json::from_str(&place.ok(&["ls", "--json"])).unwrap();
    let pid = labs[0]["pid"].as_u64().and_then(|pid| pid.try_into().ok());
    let starved = Starved::of(pid.unwrap(), 8);
    let control = place.run_folder().join("two/control.sock");
    // Each takes one, as long as there are.
    let connect = |_| UnixStream::connect(&control).unwrap();
    let idle: Vec<_> = (0..20).map(connect).collect();
    for command in [
        &["exec", "a", "--", "true"][..],
        &["node", "pause", "a"],
        &["link", "ls"],
        &["ls", "two"],
    ] {
        let output = place.run(command);
        let said = text(&output);
        assert!(
            !output.status.success() && said.contains("no file descriptor left"),
            "{command:?}: {said}"
        );
    }
    drop((starved, idle));
    place.ok(&["exec", "a", "--", "true"]);
    place.ok(&["stop"]);
    place.assert_clean();
    held(
        "the lab process has no descriptor left: it says so, and goes on when it has",
        4,
        None,
    );
}

/// What is captured does not fit: that is said, and the lab goes on.
#[test]
fn a_full_disk_ends_a_capture_with_its_name() {
    let place = Place::with_real_switch();
    place.launch();
    let said = place.fails(&["capture", "-w", "/dev/full"], 1);
    assert!(
        said.contains("/dev/full") && said.contains("No space left"),
        "{said}"
    );
    place.ok(&["exec", "a", "--", "true"]);
    place.ok(&["stop"]);
    place.assert_clean();
    held(
        "a capture fills the disk: it ends by name, the lab goes on",
        1,
        None,
    );
}

#[test]
fn a_run_folder_that_is_too_deep_is_refused() {
    let place = Place::new();
    let deep = place.path(&"d".repeat(100));
    let output = place
        .vmm(&["launch", "--engine", "qemu", "lab.json"])
        .env("HOPYARD_RUN", &deep)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(5), "{said}");
    assert!(
        said.contains("Linux allows 107") && said.contains("HOPYARD_RUN"),
        "{said}"
    );
    assert!(!deep.exists());
}

#[test]
fn a_node_that_never_answers_is_named_with_its_last_words() {
    let place = Place::with_faults("b=silent");
    let said = launch_fails(&place, &["--boot-timeout", "700ms"], 6);
    assert!(
        said.contains("node b: it did not start its agent in time"),
        "{said}"
    );
    assert!(
        said.contains("time-out 700ms") && said.contains("--boot-timeout"),
        "{said}"
    );
    assert!(said.contains("    waiting for entropy"), "{said}");
    assert!(!said.contains('\x1b'), "{said:?}");
}

#[test]
fn an_engine_that_ends_at_once_is_quoted() {
    let place = Place::with_faults("a=die");
    let said = launch_fails(&place, &[], 6);
    assert!(
        said.contains("node a") && said.contains("Cannot allocate memory"),
        "{said}"
    );
}

#[test]
fn an_agent_of_another_version_is_refused() {
    let place = Place::with_faults("a=old");
    let said = launch_fails(&place, &[], 6);
    assert!(
        said.contains("version 2 of the protocol") && said.contains("make image"),
        "{said}"
    );
}

#[test]
fn a_node_whose_configuration_fails_stays_up_to_be_looked_at() {
    let place = Place::with_faults("b=fail");
    let said = place.fails(&["launch", "-d", "--engine", "qemu", "lab.json"], 6);
    assert!(
        said.contains("b: failed: eth0: no such interface"),
        "{said:?}"
    );
    assert_eq!(place.nodes()[1]["state"], "failed");
    place.ok(&["exec", "b", "--", "true"]);
    place.ok(&["stop"]);
    place.assert_clean();
}

#[test]
fn an_agent_that_talks_nonsense_is_cut_off() {
    let place = Place::with_faults("b=babble");
    place.run(&["launch", "-d", "--engine", "qemu", "lab.json"]);
    place.wait_until("b has failed", || place.nodes()[1]["state"] == "failed");
    let message = place.nodes()[1]["message"].to_string();
    assert!(message.contains("broke the protocol"), "{message}");
    place.ok(&["exec", "a", "--", "true"]);
    assert!(
        !place
            .processes()
            .iter()
            .any(|(_, line)| line.contains("guest=b"))
    );
}

#[test]
fn ends_of_guests_are_reported_and_the_lab_goes_on() {
    let place = Place::with_faults("b=panic");
    let said = place.fails(&["launch", "-d", "--engine", "qemu", "lab.json"], 6);
    assert!(
        said.contains("b: ended: kernel panic: VFS: unable to mount root"),
        "{said}"
    );
    let end = &place.nodes()[1]["last_end"];
    assert_eq!(end["reason"], "panic");
    place.run(&["exec", "a", "--", "poweroff"]);
    place.wait_until("a has ended", || place.nodes()[0]["state"] == "ended");
    assert_eq!(place.nodes()[0]["last_end"]["reason"], "power-off");
    let table = place.ok(&["ls", "two"]);
    assert!(table.contains("ended (power-off)"), "{table}");
    assert!(
        table.contains("b: last ended by kernel panic: VFS: unable"),
        "{table}"
    );
}

#[test]
fn an_end_may_end_the_lab() {
    let place = Place::with_faults("b=panic");
    place.topology(
        r#"{"name": "two", "nodes": {"a": {"kind": "host"}, "b": {"kind": "host", "on": {"panic": "end-lab"}}}}"#,
    );
    let said = launch_fails(&place, &[], 6);
    assert!(said.contains("node b: ended (kernel panic"), "{said}");
}

#[test]
fn a_node_that_reboots_is_configured_again() {
    let place = Place::with_faults("b=reboot-once");
    place.launch();
    place.wait_until("b is back", || {
        let node = &place.nodes()[1];
        node["restarts"] == 1 && node["state"] == "ready"
    });
    assert_eq!(place.nodes()[1]["last_end"]["reason"], "reboot");
    place.ok(&["exec", "b", "--", "true"]);
    // Its log has both boots.
    assert_eq!(place.ok(&["logs", "b"]).matches("booting").count(), 2);
    place.ok(&["stop"]);
    place.assert_clean();
}

#[test]
fn a_boot_loop_is_given_up() {
    let place = Place::with_faults("b=reboot-loop");
    let said = place.fails(&["launch", "-d", "--engine", "qemu", "lab.json"], 6);
    assert!(
        said.contains("5 boots in a row ended before the node was ready"),
        "{said}"
    );
    assert_eq!(place.nodes()[1]["state"], "failed");
}

#[test]
fn a_switch_that_fails_ends_the_launch_with_its_words() {
    let place = Place::new();
    place.switch("echo 'port a.eth0: Address already in use' >&2; exit 1");
    let said = launch_fails(&place, &[], 6);
    assert!(
        said.contains("the switch exited with status 1") && said.contains("already in use"),
        "{said}"
    );
}
