//! The guest image: which one, and whether it fits this program.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::failure::{Code, Failure};

/// A guest image that has been checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// The uncompressed kernel.
    pub kernel: PathBuf,
    /// The read-only root file system.
    pub rootfs: PathBuf,
}

/// The layout of an image folder that this program knows.
const FORMAT: u32 = 1;

/// What `image.json` says, as far as the launcher needs it.
#[derive(Debug, Deserialize)]
struct Manifest {
    format: u32,
    /// Of the agent in it; it says so itself when it boots.
    protocol: Option<u32>,
}

/// Finds the image in `folder`, or the current one of the cache.
pub fn find(folder: Option<&Path>) -> Result<Image, Failure> {
    let folder = match folder {
        Some(folder) => folder.to_path_buf(),
        None => cache()?.join("current"),
    };
    load(&folder)
}

fn load(folder: &Path) -> Result<Image, Failure> {
    let build = "build it with `make image`, or name another with --image DIR";
    let missing = |file: &Path, error: &std::io::Error| {
        Failure::new(
            Code::Host,
            format!("the guest image has no {}: {error}", file.display()),
        )
        .help(build)
    };
    if let Err(error) = std::fs::metadata(folder) {
        return Err(Failure::new(
            Code::Host,
            format!("no guest image at {}: {error}", folder.display()),
        )
        .help(build));
    }
    // An image that is replaced while the lab runs must not change under it.
    let folder = folder.canonicalize().map_err(|e| missing(folder, &e))?;
    let manifest_path = folder.join("image.json");
    let text = std::fs::read_to_string(&manifest_path).map_err(|e| missing(&manifest_path, &e))?;
    let manifest: Manifest = serde_json::from_str(&text).map_err(|error| {
        Failure::new(
            Code::Host,
            format!("{} is damaged: {error}", manifest_path.display()),
        )
        .help(build)
    })?;
    if manifest.format != FORMAT {
        return Err(Failure::new(
            Code::Host,
            format!(
                "the guest image at {} has format {}, not {FORMAT}",
                folder.display(),
                manifest.format
            ),
        )
        .help(build));
    }
    if let Some(protocol) = manifest
        .protocol
        .filter(|&version| version != agent_protocol::VERSION)
    {
        return Err(Failure::new(
            Code::Host,
            format!(
                "the guest image at {} speaks version {protocol} of the agent protocol, this vmm version {}",
                folder.display(),
                agent_protocol::VERSION
            ),
        )
        .help(build));
    }
    let image = Image {
        kernel: folder.join("vmlinux"),
        rootfs: folder.join("rootfs.erofs"),
    };
    for file in [&image.kernel, &image.rootfs] {
        readable(file).map_err(|e| missing(file, &e))?;
    }
    Ok(image)
}

/// Whether `file` can be opened for reading.
pub fn readable(file: &Path) -> std::io::Result<()> {
    std::fs::File::open(file).map(drop)
}

fn cache() -> Result<PathBuf, Failure> {
    let variable = |name| {
        std::env::var_os(name)
            .filter(|v| !v.is_empty())
            .map(PathBuf::from)
    };
    variable("HOPYARD_CACHE")
        .or_else(|| Some(variable("XDG_CACHE_HOME")?.join("hopyard")))
        .or_else(|| Some(variable("HOME")?.join(".cache/hopyard")))
        .ok_or_else(|| {
            Failure::new(
                Code::Host,
                "cannot tell where the guest image is: HOME is not set",
            )
            .help("set HOPYARD_CACHE, or name the image with --image DIR")
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(protocol: u32) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for file in ["vmlinux", "rootfs.erofs"] {
            std::fs::write(folder.path().join(file), "").unwrap();
        }
        let manifest = format!(r#"{{"format":1,"protocol":{protocol},"hash":"x"}}"#);
        std::fs::write(folder.path().join("image.json"), manifest).unwrap();
        folder
    }

    #[test]
    fn a_complete_image_is_found() {
        let folder = folder(agent_protocol::VERSION);
        let image = load(folder.path()).unwrap();
        assert!(image.kernel.ends_with("vmlinux") && image.rootfs.ends_with("rootfs.erofs"));
    }

    #[test]
    fn what_is_missing_is_named_with_the_remedy() {
        let folder = folder(agent_protocol::VERSION);
        std::fs::remove_file(folder.path().join("vmlinux")).unwrap();
        let failure = load(folder.path()).unwrap_err();
        assert!(failure.message.contains("vmlinux"), "{failure}");
        assert!(failure.to_string().contains("make image"), "{failure}");
        let failure = load(Path::new("/nonexistent/image")).unwrap_err();
        assert!(failure.message.contains("/nonexistent/image"), "{failure}");
    }

    #[test]
    fn another_protocol_version_is_refused() {
        let failure = load(folder(agent_protocol::VERSION + 1).path()).unwrap_err();
        assert!(failure.message.contains("agent protocol"), "{failure}");
        assert_eq!(failure.code, Code::Host);
    }
}
