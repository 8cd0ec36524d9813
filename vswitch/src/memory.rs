//! A front-end's guest memory, mapped.
//!
//! The switch serves guests that do not trust each other, so one front-end must not be able to end it. Touching a page
//! past the end of a file raises `SIGBUS`; therefore memory must be a memfd that is as large as its region says and is
//! sealed against shrinking, and must not be on hugetlbfs, where a punched hole can fault as well.

use std::fs::File;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::Arc;

use rustix::fs::{SealFlags, fcntl_get_seals, fstat, fstatfs};
use thiserror::Error;
use vm_memory::{FileOffset, MmapRegion};

/// Regions one front-end may have mapped at a time.
pub const MAX_REGIONS: usize = 32;

/// Bytes one front-end may have mapped at a time. The address space of the switch, 128 TiB, is for all of them.
pub const MAX_BYTES: u64 = 256 << 30;

const HUGETLBFS_MAGIC: i64 = 0x9584_58f6;

/// Why a front-end's memory was refused.
#[expect(missing_docs, reason = "the messages say it")]
#[derive(Debug, Error)]
pub enum MemoryError {
    #[error(
        "it is not a memfd, so it cannot be sealed; share the guest's memory as a sealed memfd"
    )]
    NotMemfd,
    #[error(
        "its memfd is not sealed against shrinking (F_SEAL_SHRINK); seal it, or start the switch with --allow-unsealed"
    )]
    NotSealed,
    #[error(
        "it is on hugetlbfs, where a punched hole faults; use ordinary pages, or start the switch with --allow-unsealed"
    )]
    HugePages,
    #[error("its file has {actual} bytes, but the region needs {needed}")]
    TooShort { needed: u64, actual: u64 },
    #[error("the region is empty or wraps around the address space")]
    BadRange,
    #[error("it overlaps another region")]
    Overlap,
    #[error("more than {MAX_REGIONS} regions")]
    TooMany,
    #[error("more than {} GiB together", MAX_BYTES >> 30)]
    TooLarge,
    #[error("no such region is mapped")]
    Unknown,
    #[error("it cannot be mapped: {0}")]
    Map(String),
}

/// Where a region lies, as the front-end states it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RegionSpec {
    /// Guest-physical address of the first byte.
    pub guest: u64,
    /// Bytes.
    pub size: u64,
    /// Address of the first byte in the front-end's own address space; ring addresses come in these terms.
    pub user: u64,
    /// Offset of the first byte in the file.
    pub offset: u64,
}

/// One mapped region.
#[derive(Debug)]
pub struct Region {
    spec: RegionSpec,
    map: MmapRegion<()>,
}

impl Region {
    /// Checks and maps `file`.
    pub fn map(spec: RegionSpec, file: File, allow_unsealed: bool) -> Result<Self, MemoryError> {
        let RegionSpec {
            guest,
            size,
            user,
            offset,
        } = spec;
        let needed = offset.checked_add(size).ok_or(MemoryError::BadRange)?;
        if size == 0 || guest.checked_add(size).is_none() || user.checked_add(size).is_none() {
            return Err(MemoryError::BadRange);
        }
        if size > MAX_BYTES {
            return Err(MemoryError::TooLarge);
        }
        let length = usize::try_from(size).map_err(|_| MemoryError::BadRange)?;
        if !allow_unsealed {
            check_sealed(file.as_fd())?;
        }
        let stat = fstat(&file).map_err(|e| MemoryError::Map(e.to_string()))?;
        let actual = u64::try_from(stat.st_size).unwrap_or(0);
        if actual < needed {
            return Err(MemoryError::TooShort { needed, actual });
        }
        let map = MmapRegion::from_file(FileOffset::new(file, offset), length)
            .map_err(|e| MemoryError::Map(e.to_string()))?;
        Ok(Self { spec, map })
    }

    /// Where it lies.
    pub fn spec(&self) -> RegionSpec {
        self.spec
    }

    fn span(&self) -> Option<Span> {
        Some(Span {
            guest: self.spec.guest,
            size: self.spec.size,
            start: NonNull::new(self.map.as_ptr())?,
        })
    }

    /// The mapping from `offset` on, if `offset` lies inside; with the number of bytes left.
    #[inline]
    fn at(&self, offset: u64) -> Option<(NonNull<u8>, u64)> {
        let left = self
            .spec
            .size
            .checked_sub(offset)
            .filter(|left| *left > 0)?;
        // `wrapping_add` stays inside the mapping, as `offset` is less than its size.
        NonNull::new(self.map.as_ptr().wrapping_add(offset as usize)).map(|p| (p, left))
    }
}

fn check_sealed(fd: std::os::fd::BorrowedFd<'_>) -> Result<(), MemoryError> {
    // F_GET_SEALS fails on everything that is not a memfd.
    let seals = fcntl_get_seals(fd).map_err(|_| MemoryError::NotMemfd)?;
    if !seals.contains(SealFlags::SHRINK) {
        return Err(MemoryError::NotSealed);
    }
    let fs = fstatfs(fd).map_err(|e| MemoryError::Map(e.to_string()))?;
    if fs.f_type as i64 == HUGETLBFS_MAGIC {
        return Err(MemoryError::HugePages);
    }
    Ok(())
}

/// A piece of guest memory that lies in one mapping.
///
/// It is valid for as long as the [`Memory`] it was made from; whoever keeps one keeps that, too.
#[derive(Debug, Clone, Copy)]
pub struct Segment {
    /// The first byte.
    pub(crate) ptr: NonNull<u8>,
    /// Bytes, never 0.
    pub(crate) len: u32,
}

/// Where one region lies, in both address spaces; valid for as long as the [`Memory`] it was asked of.
#[derive(Debug, Clone, Copy)]
pub struct Span {
    guest: u64,
    size: u64,
    start: NonNull<u8>,
}

/// No region: nothing lies in it.
impl Default for Span {
    fn default() -> Self {
        Self {
            guest: 0,
            size: 0,
            start: NonNull::dangling(),
        }
    }
}

impl Span {
    /// The `len` bytes at `guest`, if they are not none and lie in this region.
    #[inline]
    pub fn piece(&self, guest: u64, len: u32) -> Option<Segment> {
        let offset = guest.wrapping_sub(self.guest);
        // The last byte lies in it; with none there is no last one.
        if offset >= self.size || u64::from(len).wrapping_sub(1) >= self.size - offset {
            return None;
        }
        // SAFETY: `offset` is less than the size of the mapping that begins at `start`.
        let ptr = unsafe { self.start.add(offset as usize) };
        Some(Segment { ptr, len })
    }
}

/// All of a front-end's memory; immutable, replaced as a whole.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    /// Sorted by guest address, not overlapping.
    regions: Vec<Arc<Region>>,
}

impl Memory {
    /// This memory and one more region.
    pub fn with(&self, region: Region) -> Result<Self, MemoryError> {
        if self.regions.len() >= MAX_REGIONS {
            return Err(MemoryError::TooMany);
        }
        let new = region.spec;
        let bytes: u64 = self.regions.iter().map(|r| r.spec.size).sum();
        if bytes + new.size > MAX_BYTES {
            return Err(MemoryError::TooLarge);
        }
        let overlaps = |a: u64, b: u64, other: u64, size: u64| a < other + size && other < a + b;
        if self.regions.iter().map(|r| r.spec).any(|r| {
            overlaps(new.guest, new.size, r.guest, r.size)
                || overlaps(new.user, new.size, r.user, r.size)
        }) {
            return Err(MemoryError::Overlap);
        }
        let mut regions = self.regions.clone();
        let at = regions.partition_point(|r| r.spec.guest < new.guest);
        regions.insert(at, Arc::new(region));
        Ok(Self { regions })
    }

    /// This memory without the region at `guest`, `user` of `size` bytes.
    pub fn without(&self, guest: u64, user: u64, size: u64) -> Result<Self, MemoryError> {
        let same = |r: RegionSpec| r.guest == guest && r.user == user && r.size == size;
        let at = self
            .regions
            .iter()
            .position(|r| same(r.spec))
            .ok_or(MemoryError::Unknown)?;
        let mut regions = self.regions.clone();
        regions.remove(at);
        Ok(Self { regions })
    }

    /// Whether nothing is mapped.
    pub fn is_empty(&self) -> bool {
        self.regions.is_empty()
    }

    /// The `len` bytes at front-end address `user`, if one region holds them all.
    pub fn at_user(&self, user: u64, len: u64) -> Option<NonNull<u8>> {
        self.regions.iter().find_map(|r| {
            let offset = user.checked_sub(r.spec.user)?;
            r.at(offset)
                .filter(|(_, left)| len <= *left)
                .map(|(p, _)| p)
        })
    }

    /// The `len` bytes at guest address `guest`, if one region holds them all.
    pub fn at_guest(&self, guest: u64, len: u64) -> Option<NonNull<u8>> {
        self.find(guest)
            .filter(|(_, left)| len <= *left)
            .map(|(p, _)| p)
    }

    /// Hands the pieces of the `len` bytes at `guest` to `push`, in order; adjacent regions may share them.
    /// `false` when some byte is not mapped.
    #[inline]
    pub fn segments(&self, mut guest: u64, len: u32, mut push: impl FnMut(Segment)) -> bool {
        let mut rest = len;
        while rest > 0 {
            let Some((ptr, left)) = self.find(guest) else {
                return false;
            };
            let len = u32::try_from(left).map_or(rest, |left| left.min(rest));
            push(Segment { ptr, len });
            rest -= len;
            // A region ends before 2^64, so the next address does not wrap.
            guest += u64::from(len);
        }
        true
    }

    /// The region that holds the byte at `guest`.
    pub fn span(&self, guest: u64) -> Option<Span> {
        let regions = self.regions.iter().map(|r| r.span());
        regions
            .flatten()
            .find(|s| guest.wrapping_sub(s.guest) < s.size)
    }

    #[inline]
    fn find(&self, guest: u64) -> Option<(NonNull<u8>, u64)> {
        let after = self.regions.partition_point(|r| r.spec.guest <= guest);
        let region = self.regions.get(after.checked_sub(1)?)?;
        region.at(guest - region.spec.guest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{MemfdFlags, fcntl_add_seals, ftruncate, memfd_create};

    const PAGE: u64 = 4096;

    fn memfd(size: u64, seals: SealFlags) -> File {
        let fd = memfd_create("guest", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        ftruncate(&fd, size).unwrap();
        fcntl_add_seals(&fd, seals).unwrap();
        File::from(fd)
    }

    fn region(guest: u64, user: u64, size: u64) -> Region {
        let spec = RegionSpec {
            guest,
            size,
            user,
            offset: 0,
        };
        Region::map(spec, memfd(size, SealFlags::SHRINK), false).unwrap()
    }

    #[test]
    fn refuses_what_could_fault() {
        let spec = RegionSpec {
            guest: 0,
            size: 2 * PAGE,
            user: 0,
            offset: 0,
        };
        let refused = |spec, file, unsealed| Region::map(spec, file, unsealed).unwrap_err();
        assert!(matches!(
            refused(spec, memfd(2 * PAGE, SealFlags::GROW), false),
            MemoryError::NotSealed
        ));
        assert!(matches!(
            refused(spec, memfd(PAGE, SealFlags::SHRINK), false),
            MemoryError::TooShort {
                needed: 8192,
                actual: 4096
            }
        ));
        assert!(matches!(
            refused(spec, memfd(PAGE, SealFlags::SHRINK), true),
            MemoryError::TooShort { .. }
        ));
        let past = RegionSpec {
            offset: PAGE,
            ..spec
        };
        assert!(matches!(
            refused(past, memfd(2 * PAGE, SealFlags::SHRINK), false),
            MemoryError::TooShort { .. }
        ));
        let wraps = RegionSpec {
            guest: u64::MAX - PAGE,
            ..spec
        };
        assert!(matches!(
            refused(wraps, memfd(2 * PAGE, SealFlags::SHRINK), false),
            MemoryError::BadRange
        ));
        let ordinary = tempfile::tempfile().unwrap();
        ordinary.set_len(2 * PAGE).unwrap();
        assert!(matches!(
            refused(spec, ordinary, false),
            MemoryError::NotMemfd | MemoryError::NotSealed
        ));
        assert!(Region::map(spec, memfd(2 * PAGE, SealFlags::empty()), true).is_ok());
    }

    #[test]
    fn regions_are_sorted_and_do_not_overlap() {
        let memory = Memory::default()
            .with(region(4 * PAGE, 0x9000_0000, PAGE))
            .and_then(|m| m.with(region(0, 0x1000_0000, PAGE)))
            .unwrap();
        assert_eq!(
            memory
                .regions
                .iter()
                .map(|r| r.spec.guest)
                .collect::<Vec<_>>(),
            [0, 4 * PAGE]
        );
        assert!(matches!(
            memory.with(region(0, 0x5000_0000, PAGE)),
            Err(MemoryError::Overlap)
        ));
        assert!(matches!(
            memory.with(region(PAGE, 0x9000_0000, PAGE)),
            Err(MemoryError::Overlap)
        ));
        let fewer = memory.without(0, 0x1000_0000, PAGE).unwrap();
        assert!(fewer.at_guest(0, 1).is_none());
        assert!(matches!(
            fewer.without(0, 0x1000_0000, PAGE),
            Err(MemoryError::Unknown)
        ));
    }

    #[test]
    fn addresses_are_checked_to_the_last_byte() {
        let memory = Memory::default().with(region(PAGE, 0x1000, PAGE)).unwrap();
        assert!(memory.at_guest(PAGE, PAGE).is_some());
        assert!(memory.at_guest(PAGE, PAGE + 1).is_none());
        assert!(memory.at_guest(PAGE - 1, 1).is_none());
        assert!(memory.at_guest(2 * PAGE, 0).is_none());
        assert!(memory.at_user(0x1fff, 1).is_some());
        assert!(memory.at_user(0x1fff, 2).is_none());
        assert!(memory.at_user(u64::MAX, u64::MAX).is_none());
        assert!(!memory.segments(u64::MAX, u32::MAX, |_| ()));
    }

    #[test]
    fn a_buffer_may_straddle_adjacent_regions() {
        let memory = Memory::default()
            .with(region(0, 0x1000_0000, PAGE))
            .and_then(|m| m.with(region(PAGE, 0x2000_0000, PAGE)))
            .unwrap();
        let mut lengths = Vec::new();
        assert!(memory.segments(PAGE - 10, 30, |s| lengths.push(s.len)));
        assert_eq!(lengths, [10, 20]);
        assert!(!memory.segments(2 * PAGE - 10, 30, |_| ()));
    }
}
