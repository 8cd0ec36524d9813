//! From this machine to a node.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use tar::{Builder, EntryType, Header};
use tokio::sync::mpsc;

use super::{ChunkWriter, WAITING, Warnings, bug, keep, last_words, refused, text};
use crate::client::Client;
use crate::failure::{Code, Failure};
use crate::session::{self, Said};

/// Unpacks beside the place, and puts it there when all of it has come. The last entry of the stream tells that.
///
/// A client that goes away ends the input and then hangs up. The end of the input is enough to stop `tar`, and the signal must not
/// reach the `rm` that tidies up after it.
const SCRIPT: &str = r#"
set -eu
place=$1 name=$2
if [ -d "$place" ]; then
    place=${place%/}/$name
elif [ "${place%/}" != "$place" ]; then
    echo 'it is not a folder' >&2; exit 1
fi
folder=$(dirname -- "$place")
[ -d "$folder" ] || { echo "there is no folder $folder in the node" >&2; exit 1; }
trap '' HUP INT TERM
temp=$(mktemp -d "$folder/.vmm-cp.XXXXXX")
trap 'rm -rf "$temp"' EXIT
tar -x -p -o -f - -C "$temp"
[ -e "$temp/complete" ] || { echo 'the copy broke off' >&2; exit 1; }
if [ ! -d "$temp/new" ] || [ -L "$temp/new" ]; then
    [ ! -d "$place" ] || { echo "$place is a folder" >&2; exit 1; }
    mv -f -T "$temp/new" "$place"
elif [ -d "$place" ]; then
    cd "$temp/new"
    find . -type d -exec sh -ec 'to=$1; shift; for it; do [ -d "$to/$it" ] || mkdir -m "$(stat -c %a "$it")" "$to/$it"; done' sh "$place" {} +
    find . ! -type d -exec sh -ec 'to=$1; shift; for it; do mv -f -T "$it" "$to/$it"; done' sh "$place" {} +
else
    mv -T "$temp/new" "$place"
fi
"#;

/// Copies a file or folder to `path` in a node, or into it if that is a folder. Into a folder that is there already its files are put
/// one by one, each in one moment.
pub async fn send(
    client: &Client,
    node: &str,
    from: &Path,
    path: &str,
) -> Result<Warnings, Failure> {
    let cannot = |error: &io::Error| {
        Failure::new(
            Code::General,
            format!("cannot read {}: {error}", from.display()),
        )
    };
    // The links a person names are followed, those inside a folder are copied.
    let metadata = fs::metadata(from).map_err(|error| cannot(&error))?;
    let name = match from.file_name() {
        Some(name) => name.to_string_lossy().into_owned(),
        None => fs::canonicalize(from)
            .map_err(|error| cannot(&error))?
            .file_name()
            .map_or_else(
                || "root".to_owned(),
                |name| name.to_string_lossy().into_owned(),
            ),
    };
    let command = session::command(&["sh", "-c", SCRIPT, "sh", path, &name]);
    let (input, mut output) = session::start(client, node, &command).await?;
    let (sender, mut chunks) = mpsc::channel(WAITING);
    let source = from.to_owned();
    let packing = tokio::task::spawn_blocking(move || pack(&source, &metadata, sender));
    let mut words = Vec::new();
    let feed = async {
        while let Some(chunk) = chunks.recv().await {
            if !input.send(chunk).await {
                break;
            }
        }
    };
    tokio::pin!(feed);
    // It may end before it has everything: a full disk, say.
    let early = loop {
        tokio::select! {
            () = &mut feed => break None,
            said = output.next() => match said? {
                Said::Ended(status) => break Some(status),
                Said::Refused { message, status } => {
                    keep(&mut words, message.as_bytes());
                    break Some(status);
                }
                Said::Stdout(data) | Said::Stderr(data) => keep(&mut words, &data),
            },
        }
    };
    if let Some(status) = early {
        return Err(refused(node, path, &words, status));
    }
    // Without all of the source the end must not look like one: then nothing more is sent, and the node gives up.
    let warnings = packing
        .await
        .map_err(|error| bug(&error))?
        .map_err(|error| cannot(&error))?;
    input.end().await;
    match last_words(&mut output, &mut words).await? {
        0 => Ok(warnings),
        status => Err(refused(node, path, &words, status)),
    }
}

fn pack(from: &Path, metadata: &fs::Metadata, to: mpsc::Sender<Vec<u8>>) -> io::Result<Warnings> {
    let writer = BufWriter::with_capacity(session::CHUNK, ChunkWriter(to));
    let mut builder = Builder::new(writer);
    let mut warnings = Warnings::default();
    if metadata.is_dir() {
        add_folder(
            &mut builder,
            from,
            Path::new("new"),
            metadata,
            &mut warnings,
        )?;
    } else if metadata.is_file() {
        add_file(&mut builder, from, Path::new("new"))?;
    } else {
        return Err(io::Error::other("it is neither a file nor a folder"));
    }
    let mut complete = Header::new_gnu();
    complete.set_mode(0o600);
    complete.set_size(0);
    builder.append_data(&mut complete, "complete", io::empty())?;
    builder
        .into_inner()?
        .into_inner()
        .map_err(io::IntoInnerError::into_error)?;
    Ok(warnings)
}

type Tar = Builder<BufWriter<ChunkWriter>>;

fn header(metadata: &fs::Metadata, kind: EntryType) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(metadata.mode() & 0o7777);
    header.set_mtime(u64::try_from(metadata.mtime()).unwrap_or(0));
    header.set_size(0);
    header
}

fn add_file(tar: &mut Tar, from: &Path, name: &Path) -> io::Result<()> {
    let file = File::open(from)?;
    // Of what was opened: the name may lead elsewhere by now.
    let metadata = file.metadata()?;
    let mut header = header(&metadata, EntryType::Regular);
    header.set_size(metadata.len());
    let exact = Exact {
        file,
        left: metadata.len(),
    };
    tar.append_data(&mut header, name, exact)
}

fn add_folder(
    tar: &mut Tar,
    from: &Path,
    name: &Path,
    metadata: &fs::Metadata,
    warnings: &mut Warnings,
) -> io::Result<()> {
    tar.append_data(
        &mut header(metadata, EntryType::Directory),
        name,
        io::empty(),
    )?;
    let mut entries: Vec<_> = fs::read_dir(from)?.collect::<Result<_, _>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let (from, name) = (entry.path(), name.join(entry.file_name()));
        let metadata = entry.metadata()?;
        if metadata.is_dir() {
            add_folder(tar, &from, &name, &metadata, warnings)?;
        } else if metadata.is_file() {
            add_file(tar, &from, &name)?;
        } else if metadata.is_symlink() {
            let target = fs::read_link(&from)?;
            tar.append_link(&mut header(&metadata, EntryType::Symlink), &name, target)?;
        } else {
            warnings.add(format!(
                "left out {}: it is a device, a pipe or a socket",
                text(from.display().to_string().as_bytes())
            ));
        }
    }
    Ok(())
}

/// A file of the length its header tells: if it changes meanwhile, the rest of the stream must not shift.
struct Exact {
    file: File,
    left: u64,
}

impl Read for Exact {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let length = self.file.read(&mut buffer[..most])?;
        if length == 0 && most > 0 {
            return Err(io::Error::other("it became shorter while it was read"));
        }
        self.left -= length as u64;
        Ok(length)
    }
}
