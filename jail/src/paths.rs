//! Landlock, as far as the kernel has it: a second fence behind the empty root, and the only one where namespaces are forbidden.

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, LandlockStatus,
    PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreatedAttr, Scope,
};

use crate::{Access, Error, Plan};

/// The newest version whose rights are known here; a kernel with an older one restricts what it can.
const KNOWN: ABI = ABI::V6;
/// Rights that apply to a file; the others are about what is in a folder.
const OF_FILES: [AccessFs; 5] = [
    AccessFs::Execute,
    AccessFs::ReadFile,
    AccessFs::WriteFile,
    AccessFs::Truncate,
    AccessFs::IoctlDev,
];

/// Restricts this thread and its descendants to the plan's mounts, to processes of the jail, and, unless the plan keeps the
/// network, to no TCP at all. Returns Landlock's version, `None` where the kernel has none.
pub fn restrict(plan: &Plan) -> Result<Option<u8>, Error> {
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(KNOWN))?
        .scope(Scope::from_all(KNOWN))?;
    if !plan.network {
        rules = rules.handle_access(AccessNet::from_all(KNOWN))?;
    }
    let mut rules = rules.create()?;
    for mount in &plan.mounts {
        let metadata = match std::fs::symlink_metadata(&mount.path) {
            Ok(metadata) if !metadata.is_symlink() => metadata,
            // What a link leads to is a mount of its own, or not to be reached.
            _ => continue,
        };
        let mut rights: BitFlags<AccessFs> = match mount.access {
            Access::Read => AccessFs::ReadFile | AccessFs::ReadDir,
            Access::Execute => AccessFs::Execute | AccessFs::ReadFile | AccessFs::ReadDir,
            Access::Write => {
                AccessFs::ReadFile
                    | AccessFs::ReadDir
                    | AccessFs::WriteFile
                    | AccessFs::Truncate
                    | AccessFs::MakeReg
                    | AccessFs::MakeSock
                    | AccessFs::RemoveFile
            }
            Access::Device => AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev,
        };
        if !metadata.is_dir() {
            rights &= OF_FILES.into_iter().collect::<BitFlags<_>>();
        }
        let path = PathFd::new(&mount.path).map_err(|error| Error::Root {
            what: "open",
            path: Some(mount.path.clone()),
            source: std::io::Error::other(error.to_string()),
        })?;
        rules = rules.add_rule(PathBeneath::new(path, rights))?;
    }
    let status = rules.restrict_self()?;
    Ok(match status.landlock {
        LandlockStatus::Available { effective_abi, .. } => Some(effective_abi as i32 as u8),
        LandlockStatus::NotEnabled | LandlockStatus::NotImplemented => None,
    })
}
