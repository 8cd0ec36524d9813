//! From a node to this machine.
//!
//! What comes is a guest's: names that lead elsewhere, links to walk out by, devices, set-user-ID programs. All is unpacked in a
//! new folder that is opened once; below it no link is followed, and no name but a plain one is taken.

use std::fs;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, openat2};
use tar::{Archive, Entry, EntryType};
use tokio::sync::mpsc;

use super::{ChunkReader, WAITING, Warnings, bug, keep, refused, text};
use crate::client::Client;
use crate::failure::{Code, Failure};
use crate::session::{self, Said};

/// A name longer than this is refused (`PATH_MAX`).
const NAME: u64 = 4096;
/// What may follow the end of the archive, which tar pads.
const PADDING: u64 = 1 << 20;

/// `readlink`, as the links a person names are followed.
const SCRIPT: &str = r#"
set -eu
path=$(readlink -f -- "$1") && [ -e "$path" ] || { echo 'there is no such file or folder in the node' >&2; exit 2; }
cd / && exec tar -c -f - -C "$(dirname -- "$path")" -- "$(basename -- "$path")"
"#;

/// Copies a file or folder at `path` in a node to `place`, or into it if that is a folder. Into a folder that is there already
/// its files are put one by one, each in one moment.
pub async fn receive(
    client: &Client,
    node: &str,
    path: &str,
    place: &Path,
) -> Result<Warnings, Failure> {
    let cannot = |error: &io::Error| {
        Failure::new(
            Code::General,
            format!("cannot write {}: {error}", place.display()),
        )
    };
    let place = final_place(place, path).map_err(|error| cannot(&error))?;
    let folder = match place.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let temp = tempfile::Builder::new()
        .prefix(".vmm-cp.")
        .tempdir_in(folder)
        .map_err(|error| cannot(&error))?;

    let command = session::command(&["sh", "-c", SCRIPT, "sh", path]);
    let (input, mut output) = session::start(client, node, &command).await?;
    input.end().await;
    let (sender, chunks) = mpsc::channel(WAITING);
    // The thread has the folder, so that it is removed when nothing is put into it any more, whatever ends this.
    let unpacking = tokio::task::spawn_blocking(move || {
        let rest = hyper::body::Bytes::new();
        let unpacked = unpack(ChunkReader { chunks, rest }, temp.path());
        (unpacked, temp)
    });
    let mut words = Vec::new();
    let status = loop {
        match output.next().await? {
            Said::Stdout(data) => {
                if sender.send(data).await.is_err() {
                    // It has ended, and says why.
                    break 0;
                }
            }
            Said::Stderr(data) => keep(&mut words, &data),
            Said::Refused { message, status } => {
                keep(&mut words, message.as_bytes());
                break status;
            }
            Said::Ended(status) => break status,
        }
    };
    drop(sender);
    let (unpacked, temp) = unpacking.await.map_err(|error| bug(&error))?;
    // 1 is GNU tar's for a file that has changed while it was read; all of the archive is there.
    if status > 1 || (status == 1 && unpacked.is_err()) {
        return Err(refused(node, path, &words, status));
    }
    let mut warnings =
        unpacked.map_err(|error| Failure::new(Code::General, format!("{node}:{path}: {error}")))?;
    if status == 1 {
        warnings.add(text(&words));
    }
    put(&temp.path().join("new"), &place).map_err(|error| cannot(&error))?;
    Ok(warnings)
}

/// Where a copy of `path` goes if a person says `place`.
fn final_place(place: &Path, path: &str) -> io::Result<PathBuf> {
    if place.is_dir() {
        let name = Path::new(path).file_name();
        return Ok(place.join(name.unwrap_or_else(|| "root".as_ref())));
    }
    if place.as_os_str().as_bytes().ends_with(b"/") {
        return Err(io::Error::other("there is no such folder"));
    }
    Ok(place.to_owned())
}

/// Puts what was unpacked where it belongs.
fn put(new: &Path, place: &Path) -> io::Result<()> {
    let kind = |path: &Path| fs::symlink_metadata(path).map(|metadata| metadata.file_type());
    let (Ok(old), true) = (kind(place), kind(new)?.is_dir()) else {
        if place.is_dir() {
            return Err(io::Error::other("it is a folder"));
        }
        return fs::rename(new, place);
    };
    if !old.is_dir() {
        // Not even through a link: where it leads was not said by whoever copies.
        let place = place.display();
        return Err(io::Error::other(format!(
            "{place} is there and is no folder"
        )));
    }
    for entry in fs::read_dir(new)? {
        let entry = entry?;
        put(&entry.path(), &place.join(entry.file_name()))?;
    }
    Ok(())
}

/// What is wrong with an archive.
#[derive(Debug, thiserror::Error)]
enum Bad {
    #[error("what the node sends is no whole archive: {0}")]
    Archive(io::Error),
    #[error("the node sends a file under the name `{0}`, which leads elsewhere")]
    Name(String),
    #[error("the node sends a name of {0} bytes")]
    LongName(u64),
    #[error("the node's tar writes a format that is not read here (entry of type `{0}`)")]
    Format(char),
    #[error("cannot write {0}: {1}")]
    Write(String, io::Error),
    #[error("the node sends nothing")]
    Empty,
    #[error("the node sends more after the end of its archive")]
    Trailing,
}

/// Unpacks into `folder`, as `new`.
fn unpack(from: impl Read, folder: &Path) -> Result<Warnings, Bad> {
    let mut unpacker = Unpacker {
        root: rustix::fs::open(
            folder,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(|error| Bad::Write(folder.display().to_string(), error.into()))?,
        warnings: Warnings::default(),
        folders: Vec::new(),
    };
    let mut archive = Archive::new(from);
    let (mut name, mut link) = (None, None);
    let mut empty = true;
    // Raw: names of any length would be read into memory otherwise.
    for entry in archive.entries().map_err(Bad::Archive)?.raw(true) {
        let mut entry = entry.map_err(Bad::Archive)?;
        match entry.header().entry_type() {
            EntryType::GNULongName => name = Some(long_name(&mut entry)?),
            EntryType::GNULongLink => link = Some(long_name(&mut entry)?),
            _ => {
                let name = name
                    .take()
                    .unwrap_or_else(|| entry.path_bytes().into_owned());
                let link = link.take();
                unpacker.take(&mut entry, &name, link)?;
                empty = false;
            }
        }
    }
    if empty {
        return Err(Bad::Empty);
    }
    let trailing = io::copy(&mut archive.into_inner().take(PADDING), &mut io::sink());
    if trailing.map_err(Bad::Archive)? == PADDING {
        return Err(Bad::Trailing);
    }
    // Last, as nothing can be put into a folder that may not be written to.
    for (path, mode) in unpacker.folders.iter().rev() {
        let folder = unpacker.folder(path)?;
        let set = rustix::fs::chmodat(&folder, ".", Mode::from_raw_mode(*mode), AtFlags::empty());
        set.map_err(|error| Bad::Write(path.display().to_string(), error.into()))?;
    }
    Ok(unpacker.warnings)
}

fn long_name(entry: &mut Entry<'_, impl Read>) -> Result<Vec<u8>, Bad> {
    let size = entry.size();
    if size > NAME {
        return Err(Bad::LongName(size));
    }
    let mut name = Vec::new();
    entry.read_to_end(&mut name).map_err(Bad::Archive)?;
    while name.last() == Some(&0) {
        name.pop();
    }
    Ok(name)
}

struct Unpacker {
    root: OwnedFd,
    warnings: Warnings,
    /// What was made, with the permissions it is to have.
    folders: Vec<(PathBuf, u32)>,
}

impl Unpacker {
    fn take(
        &mut self,
        entry: &mut Entry<'_, impl Read>,
        name: &[u8],
        link: Option<Vec<u8>>,
    ) -> Result<(), Bad> {
        let shown = text(name);
        let path = plain(name).ok_or_else(|| Bad::Name(shown.clone()))?;
        let write = |error: rustix::io::Errno| Bad::Write(shown.clone(), error.into());
        // No set-user-ID, set-group-ID or sticky bit: the node decides on them, not the owner of the copy.
        let mode = entry.header().mode().map_err(Bad::Archive)? & 0o777;
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => self.folder(folder)?,
            _ => self.folder(Path::new("."))?,
        };
        let last = path.file_name().unwrap_or_default();
        match entry.header().entry_type() {
            EntryType::Directory => {
                rustix::fs::mkdirat(&folder, last, Mode::RWXU).map_err(write)?;
                self.folders.push((path, mode));
            }
            EntryType::Regular | EntryType::Continuous => {
                let flags = OFlags::CREATE
                    | OFlags::EXCL
                    | OFlags::WRONLY
                    | OFlags::NOFOLLOW
                    | OFlags::CLOEXEC;
                let file = rustix::fs::openat(&folder, last, flags, Mode::RUSR | Mode::WUSR)
                    .map_err(write)?;
                let mut file = fs::File::from(file);
                let size = entry.size();
                let copied = io::copy(entry, &mut file)
                    .and_then(|copied| {
                        file.set_permissions(fs::Permissions::from_mode(mode))?;
                        Ok(copied)
                    })
                    .map_err(|error| Bad::Write(shown.clone(), error))?;
                if copied != size {
                    return Err(Bad::Archive(io::ErrorKind::UnexpectedEof.into()));
                }
            }
            EntryType::Symlink => {
                let target =
                    link.or_else(|| entry.link_name_bytes().map(std::borrow::Cow::into_owned));
                let target = target.unwrap_or_default();
                let depth = path.components().count().saturating_sub(2);
                if path.components().count() > 1 && stays_inside(&target, depth) {
                    rustix::fs::symlinkat(target, &folder, last).map_err(write)?;
                } else {
                    let target = text(&target);
                    self.warnings.add(format!(
                        "left out the link {shown} -> {target}: it leads out of what is copied"
                    ));
                }
            }
            EntryType::Link => {
                let target =
                    link.or_else(|| entry.link_name_bytes().map(std::borrow::Cow::into_owned));
                let target = target.unwrap_or_default();
                let old = plain(&target).ok_or_else(|| Bad::Name(text(&target)))?;
                let old_folder = self.folder(old.parent().unwrap_or(Path::new(".")))?;
                let old = old.file_name().unwrap_or_default();
                rustix::fs::linkat(&old_folder, old, &folder, last, AtFlags::empty())
                    .map_err(write)?;
            }
            EntryType::Char | EntryType::Block | EntryType::Fifo => {
                self.warnings
                    .add(format!("left out {shown}: it is a device or a pipe"));
            }
            other => return Err(Bad::Format(char::from(other.as_byte()))),
        }
        Ok(())
    }

    /// A folder that was made, reached without a link.
    fn folder(&self, path: &Path) -> Result<OwnedFd, Bad> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let path = if path.as_os_str().is_empty() {
            Path::new(".")
        } else {
            path
        };
        openat2(&self.root, path, flags, Mode::empty(), resolve)
            .map_err(|error| Bad::Write(path.display().to_string(), error.into()))
    }
}

/// A name in the archive as one below the folder: its first part, whatever the node calls it, is `new`. Nothing if it is no
/// plain path.
fn plain(name: &[u8]) -> Option<PathBuf> {
    let name = Path::new(std::ffi::OsStr::from_bytes(name));
    let mut parts = name.components();
    // Copied is one thing, so its name is one part; the root's is `.` or `/`.
    match parts.next()? {
        Component::Normal(_) | Component::CurDir | Component::RootDir => {}
        Component::ParentDir | Component::Prefix(_) => return None,
    }
    let mut path = PathBuf::from("new");
    for part in parts {
        match part {
            Component::Normal(part) => path.push(part),
            _ => return None,
        }
    }
    Some(path)
}

/// Whether a link in a folder `depth` below the copied one leads to something in that. Up only at the beginning: behind a name, which may be
/// a link itself, up may be anywhere.
fn stays_inside(target: &[u8], depth: usize) -> bool {
    let target = Path::new(std::ffi::OsStr::from_bytes(target));
    let mut ups = 0;
    let mut down = false;
    for part in target.components() {
        match part {
            Component::Normal(_) => down = true,
            Component::ParentDir if !down => ups += 1,
            Component::CurDir => {}
            _ => return false,
        }
    }
    ups <= depth && !target.as_os_str().is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tar::{Builder, Header};

    fn header(kind: EntryType, mode: u32, size: u64) -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(size);
        header
    }

    /// An archive of a folder `d`, with what `add` adds; names are written as they are.
    fn archive(add: impl FnOnce(&mut Builder<Vec<u8>>)) -> Vec<u8> {
        let mut builder = Builder::new(Vec::new());
        entry(&mut builder, EntryType::Directory, "d", 0o755, "", b"");
        add(&mut builder);
        builder.into_inner().unwrap()
    }

    fn entry(
        to: &mut Builder<Vec<u8>>,
        kind: EntryType,
        name: &str,
        mode: u32,
        link: &str,
        data: &[u8],
    ) {
        let mut header = header(kind, mode, data.len() as u64);
        let fields = header.as_old_mut();
        fields.name[..name.len()].copy_from_slice(name.as_bytes());
        fields.linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        to.append(&header, data).unwrap();
    }

    struct Place(tempfile::TempDir);

    impl Place {
        fn unpack(archive: &[u8]) -> (Self, Result<Vec<String>, String>) {
            let folder = tempfile::tempdir().unwrap();
            fs::create_dir(folder.path().join("inside")).unwrap();
            let unpacked = unpack(archive, &folder.path().join("inside"));
            let unpacked = unpacked
                .map(Warnings::lines)
                .map_err(|error| error.to_string());
            (Self(folder), unpacked)
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join("inside/new").join(name)
        }

        fn mode(&self, name: &str) -> u32 {
            fs::metadata(self.path(name)).unwrap().permissions().mode() & 0o7777
        }

        /// Nothing is beside the folder.
        fn nothing_outside(&self) -> bool {
            fs::read_dir(self.0.path()).unwrap().count() == 1
        }
    }

    #[test]
    fn files_folders_and_links_inside_arrive_with_their_modes() {
        let long = format!("d/{}", "x".repeat(200));
        let (place, unpacked) = Place::unpack(&archive(|to| {
            entry(to, EntryType::Directory, "d/locked", 0o500, "", b"");
            entry(to, EntryType::Regular, "d/locked/run", 0o4751, "", b"#!");
            entry(
                to,
                EntryType::Symlink,
                "d/locked/up",
                0o777,
                "../locked/run",
                b"",
            );
            entry(to, EntryType::Link, "d/again", 0o644, "d/locked/run", b"");
            let mut header = header(EntryType::Regular, 0o600, 4);
            to.append_data(&mut header, &long, &b"long"[..]).unwrap();
        }));
        assert_eq!(unpacked.unwrap(), [""; 0]);
        assert_eq!(
            place.mode("locked/run"),
            0o751,
            "without the set-user-ID bit"
        );
        assert_eq!((place.mode("locked"), place.mode("")), (0o500, 0o755));
        assert_eq!(fs::read(place.path("locked/up")).unwrap(), b"#!");
        assert_eq!(fs::read(place.path("again")).unwrap(), b"#!");
        assert_eq!(fs::read(place.path(&long[2..])).unwrap(), b"long");
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        for name in ["../x", "d/../../x", "d/..", "d/./../../x"] {
            let (place, unpacked) = Place::unpack(&archive(|to| {
                entry(to, EntryType::Regular, name, 0o644, "", b"!");
            }));
            assert!(unpacked.unwrap_err().contains("leads elsewhere"), "{name}");
            assert!(place.nothing_outside(), "{name}");
        }
        // Whatever the first part is called, it becomes the folder itself.
        let (place, unpacked) = Place::unpack(&archive(|to| {
            entry(to, EntryType::Regular, "/etc/passwd", 0o644, "", b"!");
        }));
        assert!(unpacked.is_err() && place.nothing_outside());
    }

    #[test]
    fn links_that_lead_out_are_left_out_and_none_is_followed() {
        for target in ["/etc", "..", "../..", "x/../..", "inner/../../out", ""] {
            let (place, unpacked) = Place::unpack(&archive(|to| {
                entry(to, EntryType::Symlink, "d/out", 0o777, target, b"");
            }));
            let warnings = unpacked.unwrap();
            assert!(warnings[0].contains("leads out"), "{target}: {warnings:?}");
            assert!(fs::symlink_metadata(place.path("out")).is_err(), "{target}");
        }
        // Through a link, even one that stays inside, nothing is written.
        let (place, unpacked) = Place::unpack(&archive(|to| {
            entry(to, EntryType::Directory, "d/real", 0o755, "", b"");
            entry(to, EntryType::Symlink, "d/link", 0o777, "real", b"");
            entry(to, EntryType::Regular, "d/link/x", 0o644, "", b"!");
        }));
        assert!(unpacked.unwrap_err().contains("cannot write"));
        assert!(!place.path("real/x").exists());
        // Nor does a file replace one that was sent before, which may be a link.
        let (_place, unpacked) = Place::unpack(&archive(|to| {
            entry(to, EntryType::Regular, "d/x", 0o644, "", b"1");
            entry(to, EntryType::Regular, "d/x", 0o644, "", b"2");
        }));
        assert!(unpacked.unwrap_err().contains("exists"));
        let (place, unpacked) = Place::unpack(&archive(|to| {
            entry(
                to,
                EntryType::Link,
                "d/hard",
                0o644,
                "../../etc/passwd",
                b"",
            );
        }));
        assert!(unpacked.unwrap_err().contains("leads elsewhere") && place.nothing_outside());
    }

    #[test]
    fn devices_are_left_out_and_told_of_within_bounds() {
        let (place, unpacked) = Place::unpack(&archive(|to| {
            for number in 0..100 {
                entry(
                    to,
                    EntryType::Char,
                    &format!("d/null{number}"),
                    0o666,
                    "",
                    b"",
                );
            }
            entry(to, EntryType::Regular, "d/file", 0o644, "", b"!");
        }));
        let warnings = unpacked.unwrap();
        assert_eq!(warnings.len(), super::super::WARNINGS + 1);
        assert_eq!(warnings.last().unwrap(), "90 more were left out");
        assert_eq!(fs::read_dir(place.path("")).unwrap().count(), 1);
    }

    #[test]
    fn what_is_no_archive_is_an_error() {
        let whole = archive(|to| entry(to, EntryType::Regular, "d/x", 0o644, "", &[7; 5000]));
        let cut = &whole[..2000];
        for (bytes, words) in [
            (&b""[..], "sends nothing"),
            (&[7; 5000], "no whole archive"),
            (cut, "no whole archive"),
        ] {
            let (_place, unpacked) = Place::unpack(bytes);
            let error = unpacked.unwrap_err();
            assert!(error.contains(words), "{error}");
        }
        let (_place, unpacked) = Place::unpack(&archive(|to| {
            entry(
                to,
                EntryType::GNULongName,
                "././@LongLink",
                0,
                "",
                &[b'x'; 5000],
            );
        }));
        assert!(unpacked.unwrap_err().contains("a name of 5000 bytes"));
        let (_place, unpacked) = Place::unpack(&archive(|to| {
            entry(to, EntryType::XHeader, "pax", 0, "", b"12 path=../x\n");
        }));
        assert!(unpacked.unwrap_err().contains("a format that is not read"));
    }

    #[test]
    fn copies_are_put_where_people_say() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let write = |name: &str, text: &str| {
            fs::create_dir_all(at(name).parent().unwrap()).unwrap();
            fs::write(at(name), text).unwrap();
        };
        write("place/old", "old");
        write("place/both", "old");
        write("new/both", "new");
        write("new/deep/x", "new");
        put(&at("new"), &at("place")).unwrap();
        let read = |name: &str| fs::read_to_string(at(name)).unwrap();
        assert_eq!(read("place/old"), "old");
        assert_eq!(
            (read("place/both"), read("place/deep/x")),
            ("new".into(), "new".into())
        );
        // Not through a link, not over a folder.
        write("new2/out/x", "new");
        std::os::unix::fs::symlink("/", at("place/out")).unwrap();
        assert!(put(&at("new2"), &at("place")).is_err());
        write("file", "new");
        assert!(put(&at("file"), &at("place")).is_err());

        assert_eq!(
            final_place(&at("place"), "/etc/hosts").unwrap(),
            at("place/hosts")
        );
        assert_eq!(
            final_place(&at("other"), "/etc/hosts").unwrap(),
            at("other")
        );
        assert!(final_place(Path::new("/nonexistent/"), "x").is_err());
    }
}
