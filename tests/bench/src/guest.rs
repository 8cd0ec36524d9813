//! A guest with one virtio-net device: the driver's half of two split rings, and their front-end.

use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::atomic::{Ordering, fence};

use anyhow::{Context, Result};
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::memory::Memory;

/// Bytes of a buffer for ordinary frames, header included.
const BUFFER: usize = 2048;
/// Bytes of a virtio-net header.
const HEADER: usize = 12;
const WRITE: u16 = 2;
const VERSION_1: u64 = 1 << 32;
const EVENT_IDX: u64 = 1 << 29;
const MRG_RXBUF: u64 = 1 << 15;
const PROTOCOL_FEATURES: u64 = 1 << 30;

/// One ring. Descriptor `i` is always buffer `i`.
#[derive(Debug)]
struct Ring {
    size: u16,
    descriptors: usize,
    available: usize,
    used: usize,
    buffers: usize,
    /// Bytes of each.
    buffer: usize,
    next_avail: u16,
    shown: u16,
    next_used: u16,
    kick: EventFd,
    call: EventFd,
}

impl Ring {
    fn bytes(size: u16) -> usize {
        let n = usize::from(size);
        (16 * n + 6 + 2 * n + 2).next_multiple_of(64) + (6 + 8 * n).next_multiple_of(4096)
    }

    fn new(at: usize, buffers: usize, buffer: usize, size: u16) -> Result<Self> {
        let n = usize::from(size);
        let available = at + 16 * n;
        let eventfd = || EventFd::new(EFD_NONBLOCK).context("no eventfd");
        Ok(Self {
            size,
            descriptors: at,
            available,
            used: (available + 6 + 2 * n + 2).next_multiple_of(64),
            buffers,
            buffer,
            next_avail: 0,
            shown: 0,
            next_used: 0,
            kick: eventfd()?,
            call: eventfd()?,
        })
    }

    fn buffer(&self, i: u16) -> usize {
        self.buffers + usize::from(i) * self.buffer
    }

    fn describe(&self, memory: &Memory, i: u16, len: u32, flags: u16) {
        let value = self.buffer(i) as u128 | u128::from(len) << 64 | u128::from(flags) << 96;
        memory.write(self.descriptors + 16 * usize::from(i), value.to_le_bytes());
    }

    #[inline]
    fn push(&mut self, memory: &Memory, head: u16) {
        let slot = usize::from(self.next_avail % self.size);
        memory
            .field(self.available + 4 + 2 * slot)
            .store(head, Ordering::Relaxed);
        self.next_avail = self.next_avail.wrapping_add(1);
    }

    /// Shows the switch what was pushed, and kicks it if it wants that.
    #[inline]
    fn publish(&mut self, memory: &Memory) {
        let old = std::mem::replace(&mut self.shown, self.next_avail);
        memory
            .field(self.available + 2)
            .store(self.next_avail, Ordering::Release);
        fence(Ordering::SeqCst);
        let event = memory.field(self.used + 4 + 8 * usize::from(self.size));
        let event = event.load(Ordering::Relaxed);
        let new = self.next_avail;
        if new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old) {
            // A full counter is a kick that is under way.
            let _ = self.kick.write(1);
        }
    }

    #[inline]
    fn pop(&mut self, memory: &Memory) -> Option<u16> {
        if memory.field(self.used + 2).load(Ordering::Acquire) == self.next_used {
            return None;
        }
        let slot = usize::from(self.next_used % self.size);
        let id: [u8; 4] = memory.read(self.used + 4 + 8 * slot);
        self.next_used = self.next_used.wrapping_add(1);
        Some(u32::from_le_bytes(id) as u16)
    }

    /// Asks not to be interrupted: for the position that is furthest away.
    fn no_interrupts(&self, memory: &Memory) {
        let event = self.next_used.wrapping_sub(1);
        memory
            .field(self.available + 4 + 2 * usize::from(self.size))
            .store(event, Ordering::Relaxed);
    }
}

/// A guest that polls its rings.
pub struct Guest {
    memory: Memory,
    rx: Ring,
    tx: Ring,
    /// Transmit buffers that are not with the switch.
    free: Vec<u16>,
    _frontend: Frontend,
}

impl Guest {
    /// A guest with rings of `size` entries and all its receive buffers posted, connected to `socket`.
    pub fn connect(socket: &Path, size: u16) -> Result<Self> {
        Self::with_buffers(socket, size, BUFFER)
    }

    /// As [`Guest::connect`], for frames that fit into `buffer` bytes with their header.
    pub fn with_buffers(socket: &Path, size: u16, buffer: usize) -> Result<Self> {
        let n = usize::from(size);
        let ring = Ring::bytes(size);
        let buffers = (2 * ring).next_multiple_of(4096);
        let memory = Memory::new(buffers + 2 * n * buffer)?;
        let mut rx = Ring::new(0, buffers, buffer, size)?;
        let tx = Ring::new(ring, buffers + n * buffer, buffer, size)?;
        for i in 0..size {
            rx.describe(&memory, i, buffer as u32, WRITE);
            rx.push(&memory, i);
        }
        rx.publish(&memory);
        for ring in [&rx, &tx] {
            ring.no_interrupts(&memory);
        }
        let frontend = connect(socket, &memory, [&rx, &tx])
            .with_context(|| format!("no guest on {}", socket.display()))?;
        Ok(Self {
            memory,
            rx,
            tx,
            free: (0..size).collect(),
            _frontend: frontend,
        })
    }

    /// Puts a frame of `len` bytes that begins with two addresses, a type and `tag` into the ring; `false` if it is full. The
    /// switch sees it after [`Guest::publish`].
    #[inline]
    pub fn send(&mut self, len: u32, tag: u64) -> bool {
        if self.free.is_empty() {
            while let Some(head) = self.tx.pop(&self.memory) {
                self.free.push(head);
            }
            self.tx.no_interrupts(&self.memory);
        }
        let Some(head) = self.free.pop() else {
            return false;
        };
        let at = self.tx.buffer(head);
        self.memory.write(at, [0; HEADER]);
        self.memory
            .write(at + HEADER, *b"\x02\0\0\0\0\x02\x02\0\0\0\0\x01\x88\xb5");
        self.memory.write(at + HEADER + 14, tag.to_le_bytes());
        self.tx.describe(&self.memory, head, len + HEADER as u32, 0);
        self.tx.push(&self.memory, head);
        true
    }

    /// Shows the switch what was sent.
    #[inline]
    pub fn publish(&mut self) {
        self.tx.publish(&self.memory);
    }

    /// The tag of the next frame received; its buffer is posted again.
    #[inline]
    pub fn receive(&mut self) -> Option<u64> {
        let head = self.rx.pop(&self.memory)?;
        let tag = self.memory.read(self.rx.buffer(head) + HEADER + 14);
        self.rx.push(&self.memory, head);
        // Nobody looks for receive buffers but when there is a frame; a batch of them costs less than each.
        if self.rx.next_avail.wrapping_sub(self.rx.shown) >= self.rx.size / 8 {
            self.rx.no_interrupts(&self.memory);
            self.rx.publish(&self.memory);
        }
        Some(u64::from_le_bytes(tag))
    }
}

fn connect(socket: &Path, memory: &Memory, rings: [&Ring; 2]) -> Result<Frontend> {
    let mut frontend = Frontend::connect(socket, 2)?;
    frontend.set_owner()?;
    let offered = frontend.get_features()?;
    let wanted = VERSION_1 | EVENT_IDX | MRG_RXBUF | PROTOCOL_FEATURES;
    let protocol = frontend.get_protocol_features()?;
    frontend.set_protocol_features(protocol & VhostUserProtocolFeatures::REPLY_ACK)?;
    frontend.set_features(offered & wanted)?;
    let region = VhostUserMemoryRegionInfo {
        guest_phys_addr: 0,
        memory_size: memory.size() as u64,
        userspace_addr: memory.address(0),
        mmap_offset: 0,
        mmap_handle: memory.fd().as_raw_fd(),
    };
    frontend.set_mem_table(&[region])?;
    for (i, ring) in rings.into_iter().enumerate() {
        frontend.set_vring_num(i, ring.size)?;
        frontend.set_vring_base(i, 0)?;
        let addresses = VringConfigData {
            queue_max_size: ring.size,
            queue_size: ring.size,
            flags: 0,
            desc_table_addr: memory.address(ring.descriptors),
            used_ring_addr: memory.address(ring.used),
            avail_ring_addr: memory.address(ring.available),
            log_addr: None,
        };
        frontend.set_vring_addr(i, &addresses)?;
        frontend.set_vring_call(i, &ring.call)?;
        frontend.set_vring_kick(i, &ring.kick)?;
        frontend.set_vring_enable(i, true)?;
    }
    Ok(frontend)
}
