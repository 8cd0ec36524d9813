//! Guest memory: one sealed memfd, shared with the switch.

use std::fs::File;
use std::io;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};

use crate::error::Error;
use crate::layout::{HIGH_RAM, LOW_RAM_MAX};

/// Guest memory as this process maps it.
pub type GuestMemory = GuestMemoryMmap;

/// `(guest-physical start, length)` of each part of the guest's RAM.
pub fn regions(size: u64) -> Vec<(u64, u64)> {
    let low = size.min(LOW_RAM_MAX);
    let mut regions = vec![(0, low)];
    if size > low {
        regions.push((HIGH_RAM, size - low));
    }
    regions
}

/// Allocates `size` bytes of guest memory in a memfd that can neither shrink nor grow.
///
/// Without the seals whoever holds the descriptor could truncate it under the switch, which
/// would be killed by SIGBUS and take every other node's network along.
pub fn allocate(size: u64) -> Result<GuestMemory, Error> {
    let fail = |source: io::Error| Error::Memory {
        mib: size >> 20,
        source,
    };
    let fd = memfd_create(
        "hopyard-guest",
        MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING,
    )
    .map_err(|e| fail(e.into()))?;
    ftruncate(&fd, size).map_err(|e| fail(e.into()))?;
    fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)
        .map_err(|e| fail(e.into()))?;
    let file = std::sync::Arc::new(File::from(fd));

    let mut offset = 0;
    let ranges: Vec<_> = regions(size)
        .into_iter()
        .map(|(start, len)| {
            let range = (
                GuestAddress(start),
                len as usize,
                Some(FileOffset::from_arc(file.clone(), offset)),
            );
            offset += len;
            range
        })
        .collect();
    GuestMemoryMmap::from_ranges_with_files(ranges).map_err(|e| fail(io::Error::other(e)))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

    use super::*;

    #[test]
    fn memory_skips_the_hole_below_4_gib() {
        assert_eq!(regions(1 << 30), vec![(0, 1 << 30)]);
        assert_eq!(
            regions(4 << 30),
            vec![(0, LOW_RAM_MAX), (HIGH_RAM, (4 << 30) - LOW_RAM_MAX)]
        );
    }

    #[test]
    fn memory_is_sealed_and_shared() {
        let memory = allocate(64 << 20).unwrap();
        let region = memory.iter().next().unwrap();
        let file = region.file_offset().unwrap().file();
        let seals = rustix::fs::fcntl_get_seals(file.as_fd()).unwrap();
        assert!(seals.contains(SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL));
        assert!(file.set_len(4096).is_err());
    }
}
