//! Memory shared with a switch, as a guest's.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::AtomicU16;

use anyhow::{Context, Result};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// A sealed memfd, mapped.
#[derive(Debug)]
pub struct Memory {
    start: NonNull<u8>,
    size: usize,
    file: File,
}

impl Memory {
    pub fn new(size: usize) -> Result<Self> {
        let fd = memfd_create("guest", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        ftruncate(&fd, size as u64)?;
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        fcntl_add_seals(fd.as_fd(), seals)?;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the system's choice touches no other memory.
        let start = unsafe { mmap(ptr::null_mut(), size, protection, MapFlags::SHARED, &fd, 0) }?;
        Ok(Self {
            start: NonNull::new(start.cast()).context("mapped at 0")?,
            size,
            file: File::from(fd),
        })
    }

    pub fn size(&self) -> usize {
        self.size
    }

    pub fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// The address of byte `offset` in this process.
    pub fn address(&self, offset: usize) -> u64 {
        (self.start.addr().get() + offset) as u64
    }

    /// The bytes from `offset` on; they have `len` of them.
    #[inline]
    fn at(&self, offset: usize, len: usize) -> *mut u8 {
        assert!(offset + len <= self.size, "outside the guest's memory");
        // SAFETY: it was just checked that this is inside the mapping.
        unsafe { self.start.add(offset) }.as_ptr()
    }

    /// A 16-bit field shared with the switch.
    #[inline]
    pub fn field(&self, offset: usize) -> &AtomicU16 {
        assert!(offset.is_multiple_of(2));
        let field: *mut u16 = self.at(offset, 2).cast();
        // SAFETY: two aligned bytes of a mapping that lives as long as `self`; the switch, another process, is the only other one
        // to access them.
        unsafe { AtomicU16::from_ptr(field) }
    }

    #[inline]
    pub fn write<const N: usize>(&self, offset: usize, bytes: [u8; N]) {
        // SAFETY: `at` checks the range; bytes need no alignment. The switch does not look at them before an index says so.
        unsafe { ptr::write_volatile(self.at(offset, N).cast(), bytes) };
    }

    #[inline]
    pub fn read<const N: usize>(&self, offset: usize) -> [u8; N] {
        // SAFETY: as for `write`.
        unsafe { ptr::read_volatile(self.at(offset, N).cast()) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: nobody holds a reference into it: `field` borrows `self`.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.size) };
    }
}
