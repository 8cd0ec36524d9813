//! The driver's half of a split ring, over memory shared with the switch.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

/// Where the guest's memory begins.
pub const BASE: u64 = 0x10_0000;
/// Bytes of the guest's memory.
pub const SIZE: u64 = 32 << 20;
/// Bytes of a buffer, header included.
pub const BUFFER: u32 = 2048;

pub type Memory = Arc<GuestMemoryMmap>;

/// A memfd of `size` bytes with the given seals.
pub fn memfd(size: u64, seals: SealFlags) -> File {
    let fd = memfd_create("guest", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    ftruncate(&fd, size).unwrap();
    fcntl_add_seals(fd.as_fd(), seals).unwrap();
    File::from(fd)
}

pub fn sealed() -> SealFlags {
    SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL
}

/// Guest memory on `file`.
pub fn map(file: File) -> Memory {
    let range = (
        GuestAddress(BASE),
        SIZE as usize,
        Some(FileOffset::new(file, 0)),
    );
    Arc::new(GuestMemoryMmap::from_ranges_with_files(&[range]).unwrap())
}

/// One ring, as its driver sees it.
pub struct DriverRing {
    pub memory: Memory,
    pub size: u16,
    pub descriptors: u64,
    pub available: u64,
    pub used: u64,
    pub kick: EventFd,
    pub call: EventFd,
    pub event_idx: bool,
    next_avail: u16,
    next_used: u16,
}

impl DriverRing {
    /// A ring whose three parts lie behind `at`.
    pub fn new(memory: Memory, at: u64, size: u16, event_idx: bool) -> Self {
        let n = u64::from(size);
        let descriptors = at;
        let available = descriptors + 16 * n;
        let used = (available + 6 + 2 * n).next_multiple_of(4);
        let eventfd = || EventFd::new(EFD_NONBLOCK).unwrap();
        Self {
            memory,
            size,
            descriptors,
            available,
            used,
            kick: eventfd(),
            call: eventfd(),
            event_idx,
            next_avail: 0,
            next_used: 0,
        }
    }

    /// Bytes a ring of this size takes.
    pub fn bytes(size: u16) -> u64 {
        26 * u64::from(size) + 64
    }

    pub fn descriptor(&self, i: u16, address: u64, len: u32, flags: u16, next: u16) {
        self.descriptor_in(self.descriptors, i, address, len, flags, next);
    }

    /// Writes a descriptor of any table.
    pub fn descriptor_in(&self, table: u64, i: u16, address: u64, len: u32, flags: u16, next: u16) {
        let value = u128::from(address)
            | u128::from(len) << 64
            | u128::from(flags) << 96
            | u128::from(next) << 112;
        let at = GuestAddress(table + 16 * u64::from(i));
        self.memory.write_slice(&value.to_le_bytes(), at).unwrap();
    }

    fn load(&self, at: u64) -> u16 {
        self.memory
            .load(GuestAddress(at), Ordering::SeqCst)
            .unwrap()
    }

    fn store(&self, value: u16, at: u64) {
        self.memory
            .store(value, GuestAddress(at), Ordering::SeqCst)
            .unwrap();
    }

    /// Makes a chain available; the switch sees it after [`DriverRing::publish`].
    pub fn push(&mut self, head: u16) {
        let slot = u64::from(self.next_avail % self.size);
        self.store(head, self.available + 4 + 2 * slot);
        self.next_avail = self.next_avail.wrapping_add(1);
    }

    /// Shows the switch what was pushed; kicks it if it wants that. Whether it did.
    pub fn publish(&mut self) -> bool {
        let old = self.load(self.available + 2);
        self.set_index(self.next_avail);
        let wanted = if self.event_idx {
            let event = self.load(self.used + 4 + 8 * u64::from(self.size));
            self.next_avail.wrapping_sub(event).wrapping_sub(1) < self.next_avail.wrapping_sub(old)
        } else {
            self.load(self.used) & 1 == 0
        };
        if wanted {
            self.kick.write(1).unwrap();
        }
        wanted
    }

    /// Writes the available index, whatever it should be.
    pub fn set_index(&self, index: u16) {
        self.store(index, self.available + 2);
    }

    /// Starts over, as a driver does after a reset of the device.
    pub fn reset(&mut self) {
        (self.next_avail, self.next_used) = (0, 0);
        self.store(0, self.available + 2);
        self.store(0, self.used + 2);
    }

    /// Asks for no interrupts (without EVENT_IDX), or for one at the `n`-th used entry from now.
    pub fn set_no_interrupt(&self, off: bool) {
        self.store(u16::from(off), self.available);
    }

    pub fn set_used_event(&self, event: u16) {
        self.store(event, self.available + 4 + 2 * u64::from(self.size));
    }

    pub fn used_index(&self) -> u16 {
        self.load(self.used + 2)
    }

    pub fn next_used(&self) -> u16 {
        self.next_used
    }

    /// The next used entry.
    pub fn pop(&mut self) -> Option<(u16, u32)> {
        if self.used_index() == self.next_used {
            return None;
        }
        let slot = u64::from(self.next_used % self.size);
        let entry: u64 = self
            .memory
            .read_obj(GuestAddress(self.used + 4 + 8 * slot))
            .unwrap();
        self.next_used = self.next_used.wrapping_add(1);
        if self.event_idx {
            self.set_used_event(self.next_used);
        }
        Some((entry as u16, (entry >> 32) as u32))
    }

    /// Whether the switch has interrupted since the last call.
    pub fn interrupted(&self) -> bool {
        self.call.read().is_ok()
    }
}

/// A virtio-net driver with one pair of rings.
pub struct Guest {
    pub memory: Memory,
    pub rx: DriverRing,
    pub tx: DriverRing,
    pub mergeable: bool,
    /// Bytes of each receive buffer.
    pub rx_buffer: u32,
    /// Offloads agreed on.
    pub offloads: u64,
    rx_buffers: u64,
    tx_buffers: u64,
    free: Vec<u16>,
    /// Descriptors behind each head.
    chained: HashMap<u16, Vec<u16>>,
    chains: u64,
}

/// A virtio-net header.
pub type Header = [u8; 12];

/// Where long frames are sent from, one after the other, around.
const LONG: u64 = BASE + (20 << 20);
const LONG_SLOT: u64 = 160 << 10;
const LONG_SLOTS: u64 = 64;

/// How a guest is made.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    pub size: u16,
    pub event_idx: bool,
    pub mergeable: bool,
    pub rx_buffer: u32,
    /// Feature bits.
    pub offloads: u64,
}

/// From one receive buffer to the next.
fn stride(rx_buffer: u32) -> u64 {
    u64::from(rx_buffer.max(BUFFER))
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            size: 256,
            event_idx: true,
            mergeable: true,
            rx_buffer: BUFFER,
            offloads: 0,
        }
    }
}

impl Guest {
    pub fn new(shape: Shape) -> Self {
        Self::on(map(memfd(SIZE, sealed())), shape)
    }

    /// With all receive buffers posted.
    pub fn on(memory: Memory, shape: Shape) -> Self {
        let Shape {
            size,
            event_idx,
            mergeable,
            rx_buffer,
            offloads,
        } = shape;
        let ring = DriverRing::bytes(size).next_multiple_of(4096);
        let rx_buffers = BASE + 2 * ring;
        let mut guest = Self {
            rx: DriverRing::new(Arc::clone(&memory), BASE, size, event_idx),
            tx: DriverRing::new(Arc::clone(&memory), BASE + ring, size, event_idx),
            memory,
            mergeable,
            rx_buffer,
            rx_buffers,
            tx_buffers: rx_buffers + u64::from(size) * stride(rx_buffer),
            free: (0..size).collect(),
            chained: HashMap::new(),
            chains: 0,
            offloads,
        };
        guest.post_all();
        guest
    }

    pub fn post_all(&mut self) {
        for i in 0..self.rx.size {
            self.post(i);
        }
        self.rx.publish();
    }

    /// Posts receive buffer `i`.
    pub fn post(&mut self, i: u16) {
        let at = self.rx_buffers + u64::from(i) * stride(self.rx_buffer);
        self.rx.descriptor(i, at, self.rx_buffer, WRITE, 0);
        self.rx.push(i);
    }

    /// Starts over with both rings.
    pub fn reset(&mut self) {
        self.rx.reset();
        self.tx.reset();
        self.free = (0..self.tx.size).collect();
        self.post_all();
    }

    /// Where the guest writes what it sends with descriptor `i`.
    pub fn tx_buffer(&self, i: u16) -> u64 {
        self.tx_buffers + u64::from(i) * u64::from(BUFFER)
    }

    /// Puts a frame of any length up to a buffer's into the ring; `false` if it is full.
    pub fn queue(&mut self, frame: &[u8]) -> bool {
        self.reclaim();
        let Some(i) = self.free.pop() else {
            return false;
        };
        let at = self.tx_buffer(i);
        self.memory.write_slice(&[0; 12], GuestAddress(at)).unwrap();
        self.memory
            .write_slice(frame, GuestAddress(at + 12))
            .unwrap();
        self.tx.descriptor(i, at, frame.len() as u32 + 12, 0, 0);
        self.tx.push(i);
        true
    }

    /// Where the last chain begins in memory.
    pub fn last_chain(&self) -> u64 {
        LONG + (self.chains - 1) % LONG_SLOTS * LONG_SLOT
    }

    fn reclaim(&mut self) {
        while let Some((id, _)) = self.tx.pop() {
            // A guest of the fuzz targets may have written over its own rings.
            if id >= self.tx.size {
                continue;
            }
            self.free.push(id);
            self.free
                .extend(self.chained.remove(&id).unwrap_or_default());
        }
    }

    /// Puts a frame of any length with its header into the ring, in buffers of the given lengths and one for what is left; the last
    /// `indirect` of them in a table of their own.
    #[track_caller]
    pub fn queue_chain(&mut self, header: Header, frame: &[u8], pieces: &[usize], indirect: usize) {
        self.reclaim();
        let bytes = [&header[..], frame].concat();
        let at = LONG + self.chains % LONG_SLOTS * LONG_SLOT;
        let table = at + LONG_SLOT - 4096;
        self.chains += 1;
        self.memory.write_slice(&bytes, GuestAddress(at)).unwrap();
        let mut buffers = Vec::new();
        let mut done = 0;
        for piece in pieces {
            let n = (*piece).min(bytes.len() - done);
            buffers.push((at + done as u64, n as u32));
            done += n;
        }
        buffers.push((at + done as u64, (bytes.len() - done) as u32));
        let inside = buffers.split_off(buffers.len() - indirect.min(buffers.len()));
        for (i, (at, len)) in (0..).zip(&inside) {
            let flags = if usize::from(i) + 1 == inside.len() {
                0
            } else {
                NEXT
            };
            self.tx.descriptor_in(table, i, *at, *len, flags, i + 1);
        }
        if !inside.is_empty() {
            buffers.push((table, 16 * inside.len() as u32));
        }
        let at = self.free.len() - buffers.len();
        let ids = self.free.split_off(at);
        for (i, (at, len)) in buffers.iter().enumerate() {
            let next = ids.get(i + 1);
            let table = next.is_none() && !inside.is_empty();
            let flags = if next.is_some() { NEXT } else { 0 } | if table { INDIRECT } else { 0 };
            let next = next.copied().unwrap_or(0);
            self.tx.descriptor(ids[i], *at, *len, flags, next);
        }
        self.chained.insert(ids[0], ids[1..].to_vec());
        self.tx.push(ids[0]);
    }

    /// Sends a frame.
    #[track_caller]
    pub fn send(&mut self, frame: &[u8]) {
        assert!(self.queue(frame), "the ring is full");
        self.tx.publish();
    }

    /// The next frame received; its buffers are posted again.
    pub fn receive(&mut self) -> Option<Vec<u8>> {
        let frame = self.receive_and_keep();
        self.rx.publish();
        frame.map(|(frame, _)| frame)
    }

    /// The next frame received with its buffers, which are posted again, but not published.
    pub fn receive_and_keep(&mut self) -> Option<(Vec<u8>, u16)> {
        let (header, frame, buffers) = self.receive_one()?;
        assert_eq!(header[..10], [0; 10], "the header asks for something");
        Some((frame, buffers))
    }

    /// All frames received, with their headers, but without `num_buffers`.
    pub fn receive_with_headers(&mut self) -> Vec<(Header, Vec<u8>)> {
        let mut all = Vec::new();
        while let Some((mut header, frame, _)) = self.receive_one() {
            header[10..].fill(0);
            all.push((header, frame));
        }
        self.rx.publish();
        all
    }

    fn receive_one(&mut self) -> Option<(Header, Vec<u8>, u16)> {
        let (mut id, mut len) = self.rx.pop()?;
        let mut bytes = Vec::new();
        let mut buffers = 1;
        let mut left = 0;
        loop {
            let at = self.rx_buffers + u64::from(id) * stride(self.rx_buffer);
            let mut piece = vec![0; len as usize];
            self.memory
                .read_slice(&mut piece, GuestAddress(at))
                .unwrap();
            if bytes.is_empty() {
                buffers = u16::from_le_bytes([piece[10], piece[11]]);
                left = buffers;
            }
            bytes.extend_from_slice(&piece);
            self.post(id);
            left -= 1;
            if left == 0 {
                let frame = bytes.split_off(12);
                return Some((bytes.try_into().unwrap(), frame, buffers));
            }
            // All buffers of a frame become visible at once.
            (id, len) = self.rx.pop().expect("a buffer of the frame is missing");
        }
    }

    pub fn receive_all(&mut self) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| self.receive()).collect()
    }

    /// The guest's address space as the front-end sees it.
    pub fn user(&self, guest: u64) -> u64 {
        self.memory.get_host_address(GuestAddress(guest)).unwrap() as u64
    }
}
