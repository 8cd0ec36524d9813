//! `vmm cp`. The double's guests have this machine's files, so both ends of a copy can be looked at.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::process::Signal;

use crate::harness::{Place, kill};

fn launched() -> (Place, PathBuf) {
    let place = Place::new();
    place.launch();
    let guest = place.path("guest");
    fs::create_dir(&guest).unwrap();
    (place, guest)
}

fn inside(path: &Path) -> String {
    format!("a:{}", path.display())
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// No copy has left anything half done in `folder`.
fn nothing_half_done(place: &Place, folder: &Path) {
    place.wait_until("what was half done is removed", || {
        let entries = fs::read_dir(folder).unwrap().flatten();
        entries
            .filter(|entry| entry.file_name().to_string_lossy().starts_with(".vmm-cp"))
            .count()
            == 0
    });
}

#[test]
fn folders_go_there_and_back_as_they_are() {
    let (place, guest) = launched();
    let site = place.path("site");
    fs::create_dir_all(site.join("sub/empty")).unwrap();
    fs::write(site.join("run"), "#!/bin/sh\n").unwrap();
    set_mode(&site.join("run"), 0o750);
    let bytes: Vec<u8> = (0..5_000_000_u32).map(|n| (n % 251) as u8).collect();
    fs::write(site.join("sub/large"), &bytes).unwrap();
    fs::write(site.join("sub").join("n".repeat(200)), "long").unwrap();
    std::os::unix::fs::symlink("../run", site.join("sub/link")).unwrap();
    set_mode(&site.join("sub"), 0o711);

    // To a name that is not there, into a folder that is.
    place.ok(&["cp", "site", &inside(&guest.join("copy"))]);
    place.ok(&["cp", "site", &inside(&guest)]);
    for copy in [guest.join("copy"), guest.join("site")] {
        assert_eq!(mode(&copy.join("run")), 0o750);
        assert_eq!(mode(&copy.join("sub")), 0o711);
        assert!(fs::read(copy.join("sub/large")).unwrap() == bytes);
        assert!(copy.join("sub/empty").is_dir());
        let link = fs::read_link(copy.join("sub/link")).unwrap();
        assert_eq!(link, Path::new("../run"));
    }
    place.ok(&["cp", &inside(&guest.join("copy")), "back"]);
    let back = place.path("back");
    assert_eq!(
        (mode(&back.join("run")), mode(&back.join("sub"))),
        (0o750, 0o711)
    );
    assert!(fs::read(back.join("sub/large")).unwrap() == bytes);
    assert_eq!(
        fs::read_link(back.join("sub/link")).unwrap(),
        Path::new("../run")
    );
    assert_eq!(
        fs::read(back.join("sub").join("n".repeat(200))).unwrap(),
        b"long"
    );

    // Once more, over what is there: it is brought up to date, and what is only there stays.
    fs::write(site.join("run"), "new").unwrap();
    fs::create_dir(site.join("more")).unwrap();
    fs::write(guest.join("site/own"), "own").unwrap();
    place.ok(&["cp", "site", &inside(&guest)]);
    assert_eq!(fs::read(guest.join("site/run")).unwrap(), b"new");
    assert!(guest.join("site/more").is_dir() && guest.join("site/own").is_file());
    fs::create_dir(place.path("site/later")).unwrap();
    place.ok(&["cp", &inside(&guest.join("site")), "."]);
    assert_eq!(fs::read(site.join("own")).unwrap(), b"own");
    for folder in [place.path("."), guest] {
        nothing_half_done(&place, &folder);
    }
}

#[test]
fn several_files_go_into_a_folder() {
    let (place, guest) = launched();
    for name in ["x", "y"] {
        fs::write(place.path(name), name).unwrap();
    }
    place.ok(&["cp", "x", "y", &inside(&guest)]);
    assert_eq!(fs::read(guest.join("y")).unwrap(), b"y");
    fs::create_dir(place.path("here")).unwrap();
    place.ok(&[
        "cp",
        &inside(&guest.join("x")),
        &inside(&guest.join("y")),
        "here",
    ]);
    assert_eq!(fs::read(place.path("here/x")).unwrap(), b"x");
    // A link that is named is followed.
    std::os::unix::fs::symlink("x", guest.join("link")).unwrap();
    place.ok(&["cp", &inside(&guest.join("link")), "there"]);
    assert!(fs::symlink_metadata(place.path("there")).unwrap().is_file());
    let said = place.fails(&["cp", "x", "y", &inside(&guest.join("x"))], 1);
    assert!(said.contains("not a folder"), "{said}");
    let said = place.fails(&["cp", "x", "y", "here/x"], 2);
    assert!(said.contains("need a folder"), "{said}");
}

#[test]
fn a_client_that_dies_leaves_both_ends_as_they_were() {
    let (place, guest) = launched();
    // Holes are enough: what counts is that it takes a while.
    let huge = place.path("huge");
    let file = fs::File::create(&huge).unwrap();
    file.set_len(4 << 30).unwrap();
    fs::write(guest.join("old"), "old").unwrap();
    let half_done = |folder: &Path| {
        let entries = fs::read_dir(folder).unwrap().flatten();
        entries
            .filter(|entry| entry.file_name().to_string_lossy().starts_with(".vmm-cp"))
            .any(|entry| entry.path().join("new").exists())
    };
    for signal in [Signal::KILL, Signal::INT] {
        let mut child = place
            .vmm(&["cp", "huge", &inside(&guest.join("old"))])
            .spawn()
            .unwrap();
        place.wait_until("the copy is under way", || half_done(&guest));
        kill(child.id(), signal);
        child.wait().unwrap();
        nothing_half_done(&place, &guest);
        assert_eq!(fs::read(guest.join("old")).unwrap(), b"old");
    }
    let here = place.path("here");
    fs::create_dir(&here).unwrap();
    fs::write(here.join("huge"), "old").unwrap();
    let mut child = place.vmm(&["cp", &inside(&huge), "here"]).spawn().unwrap();
    place.wait_until("the copy is under way", || half_done(&here));
    kill(child.id(), Signal::TERM);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    nothing_half_done(&place, &here);
    assert_eq!(fs::read(here.join("huge")).unwrap(), b"old");
    // No command of the copies is left.
    place.wait_until("tar has ended", || {
        !place
            .processes()
            .iter()
            .any(|(_, line)| line.starts_with("tar"))
    });
    place.ok(&["stop"]);
    place.assert_clean();
}

#[test]
fn what_cannot_be_copied_is_named() {
    let (place, guest) = launched();
    fs::write(place.path("x"), "x").unwrap();
    let nowhere = inside(&guest.join("no/where"));
    for (args, status, words) in [
        (&["y", "a:/tmp"][..], 1, "cannot read y"),
        (&["x", &nowhere], 1, "there is no folder"),
        (
            &[&nowhere, "."],
            1,
            "there is no such file or folder in the node",
        ),
        (&["a:/etc/hostname", "no/where"], 1, "cannot write no/where"),
        (
            &["a:/etc/hostname", "nowhere/"],
            1,
            "there is no such folder",
        ),
        (&["/dev/null", "a:/tmp"], 1, "neither a file nor a folder"),
        (&["x", "y"], 2, "both places are on this machine"),
        (&["a:x", "b:x"], 2, "both places are in nodes"),
        (&["x", "aa:"], 4, "did you mean a?"),
        (&["x"], 2, "2 values required"),
    ] {
        let args = [&["cp"], args].concat();
        let said = place.fails(&args, status);
        assert!(said.contains(words), "{args:?}: {said}");
    }
}
