//! A driver's side of a node's devices: `pci` does anything to them, `virtio_blk` sends requests to a disk as a driver may.

use std::fs::File;
use std::io::Write;
use std::sync::OnceLock;

use arbitrary::Arbitrary;
use monitor::fuzzing::{Bench, MEMORY};
use monitor::layout::ECAM;
use vm_memory::{Bytes, GuestAddress};

/// Sectors of the disk.
pub const SECTORS: u64 = 16;
const SECTOR: usize = 512;
/// Functions of slot 0, which is the host bridge; the devices follow.
const FIRST_FUNCTION: u64 = 8;
/// Where the first ring of the first device is; each has four pages.
const RINGS: u64 = 0x4_0000;
/// Where buffers are.
pub const BUFFERS: u64 = 0x8_0000;

/// A disk on which each sector is filled with its number and one.
pub fn disk() -> File {
    static DISK: OnceLock<File> = OnceLock::new();
    let make = || {
        let mut file = tempfile::tempfile().expect("a file");
        for sector in 0..SECTORS {
            let bytes = [sector as u8 + 1; SECTOR];
            file.write_all(&bytes).expect("a disk");
        }
        file
    };
    DISK.get_or_init(make).try_clone().expect("a file")
}

/// Where in PCI configuration space a register of a device is.
pub fn config(device: u8, register: u16) -> u64 {
    let function = FIRST_FUNCTION + u64::from(device);
    ECAM.start + (function << 12) + u64::from(register % 4096)
}

/// A descriptor as a driver may write it.
#[derive(Debug, Clone, Arbitrary)]
pub struct Descriptor {
    address: Address,
    len: u16,
    long: bool,
    flags: u8,
    next: u8,
}

/// Where a buffer is.
#[derive(Debug, Clone, Arbitrary)]
enum Address {
    Buffer(u32),
    Ring(u16),
    AtTheEnd(u8),
    Anywhere(u64),
}

impl Descriptor {
    /// A buffer of `len` bytes, 16 times `at` behind [`BUFFERS`].
    pub fn buffer(at: u32, len: u16) -> Self {
        Self {
            address: Address::Buffer(at),
            len,
            long: false,
            flags: 0,
            next: 0,
        }
    }

    /// Bytes it has.
    pub fn room(&self) -> u32 {
        let len = u32::from(self.len);
        if self.long { len << 12 } else { len }
    }

    fn bytes(&self, flags: u16, next: u16) -> [u8; 16] {
        let address = match self.address {
            Address::Buffer(at) => BUFFERS + u64::from(at % 0x1_8000) * 16,
            Address::Ring(at) => RINGS + u64::from(at),
            Address::AtTheEnd(before) => MEMORY - u64::from(before),
            Address::Anywhere(at) => at,
        };
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&address.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.room().to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        bytes
    }
}

/// Writes to guest memory as far as it goes.
pub fn store(bench: &Bench, at: u64, bytes: &[u8]) {
    // What lies outside is none.
    let _ = bench.memory().write_slice(bytes, GuestAddress(at));
}

/// Reads guest memory; zeros outside.
pub fn load<const N: usize>(bench: &Bench, at: u64) -> [u8; N] {
    let mut bytes = [0; N];
    let _ = bench.memory().read_slice(&mut bytes, GuestAddress(at));
    bytes
}

/// A queue of a device, as its driver has it.
#[derive(Debug, Clone, Copy)]
pub struct Queue {
    device: u8,
    number: u8,
}

impl Queue {
    /// The queue of that number.
    pub fn new(device: u8, number: u8) -> Self {
        Self {
            device: device % 3,
            number: number % 4,
        }
    }

    fn part(self, part: u64) -> u64 {
        RINGS + (u64::from(self.device) * 4 + u64::from(self.number)) * 0x4000 + part * 0x1000
    }

    fn bar(self) -> u64 {
        Bench::bar(self.device.into())
    }

    /// Writes descriptor `n` as it is.
    pub fn write(self, bench: &Bench, n: u8, descriptor: &Descriptor) {
        let bytes = descriptor.bytes(descriptor.flags.into(), descriptor.next.into());
        store(bench, self.part(0) + 16 * u64::from(n), &bytes);
    }

    /// Writes a chain from descriptor 0 on, one behind the other, the last `writable` for the device to write.
    pub fn write_chain(self, bench: &Bench, chain: &[Descriptor], writable: usize) {
        for (n, descriptor) in chain.iter().enumerate() {
            let more = u16::from(n + 1 < chain.len());
            let write = u16::from(n + writable >= chain.len());
            let bytes = descriptor.bytes(more | write << 1, n as u16 + 1);
            store(bench, self.part(0) + 16 * n as u64, &bytes);
        }
    }

    /// Makes the chain that begins at `head` available.
    pub fn offer(self, bench: &Bench, head: u16, size: u16) {
        let index = u16::from_le_bytes(load(bench, self.part(1) + 2));
        let slot = u64::from(index % size.max(1));
        store(bench, self.part(1) + 4 + 2 * slot, &head.to_le_bytes());
        self.set_index(bench, index.wrapping_add(1));
    }

    /// Says that so many were made available.
    pub fn set_index(self, bench: &Bench, index: u16) {
        store(bench, self.part(1) + 2, &index.to_le_bytes());
    }

    /// How many were returned, and the length of the last.
    pub fn used(self, bench: &Bench, size: u16) -> (u16, u32) {
        let index = u16::from_le_bytes(load(bench, self.part(2) + 2));
        let slot = u64::from(index.wrapping_sub(1) % size.max(1));
        let len = load(bench, self.part(2) + 4 + 8 * slot + 4);
        (index, u32::from_le_bytes(len))
    }

    /// Rings the doorbell.
    pub fn notify(self, bench: &Bench) {
        bench.write(self.bar() + 0x3000 + 4 * u64::from(self.number), &[0, 0]);
    }
}

/// Sets a device up as a driver does, with rings of `size` entries (virtio 1.2 §3.1.1).
pub fn set_up(bench: &Bench, device: u8, features: u64, size: u16) {
    let bar = Bench::bar(usize::from(device % 3));
    let write = |register: u64, value: u32, len: usize| {
        bench.write(bar + register, &value.to_le_bytes()[..len]);
    };
    for status in [0, 1, 3] {
        write(0x14, status, 1);
    }
    let features = features | 1 << 32;
    for half in [0, 1] {
        write(0x08, half, 4);
        write(0x0c, (features >> (32 * half)) as u32, 4);
    }
    write(0x14, 11, 1);
    for number in 0..4 {
        let queue = Queue::new(device, number);
        store(bench, queue.part(1), &[0; 4]);
        store(bench, queue.part(2), &[0; 4]);
        write(0x16, number.into(), 2);
        write(0x18, size.into(), 2);
        for part in 0..3 {
            write(0x20 + 8 * part, queue.part(part) as u32, 4);
            write(0x24 + 8 * part, 0, 4);
        }
        write(0x1c, 1, 2);
    }
    write(0x14, 15, 1);
}
