//! Block device (virtio 1.2 §5.2), read-only: the root file system, one image for all nodes.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use event_manager::{EventOps, Events, MutEventSubscriber};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR,
    VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use virtio_queue::QueueOwnedT;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestMemoryBackend, VolatileSlice};
use vmm_sys_util::eventfd::EventFd;

use super::{Activation, ActiveQueue, VirtioDevice, kicks};
use crate::memory::GuestMemory;

const QUEUE_SIZE: u16 = 128;
const SECTOR: u64 = 512;
/// Data descriptors of one request.
const SEGMENTS: u32 = 64;
/// Type, priority, sector.
const HEADER: u32 = 16;
const CLASS_STORAGE: u32 = 0x01_8000;
/// What `VIRTIO_BLK_T_GET_ID` answers.
const SERIAL: &[u8] = b"hopyard-root";

/// A read-only disk over a file.
#[derive(Debug)]
pub struct Blk {
    file: File,
    /// In bytes; a last part of a sector is out of reach.
    size: u64,
    kicks: Vec<EventFd>,
    active: Option<(GuestMemory, ActiveQueue)>,
}

impl Blk {
    /// A disk with the contents of `file`, and the eventfds for its transport.
    pub fn new(file: File) -> io::Result<(Self, Vec<EventFd>)> {
        let size = file.metadata()?.len() & !(SECTOR - 1);
        let kicks = kicks(1)?;
        let ours = vec![kicks[0].try_clone()?];
        let disk = Self {
            file,
            size,
            kicks: ours,
            active: None,
        };
        Ok((disk, kicks))
    }

    fn serve(&mut self) {
        let Some((memory, active)) = &mut self.active else {
            return;
        };
        let mut used = false;
        // Bounded by the ring: a driver that adds requests meanwhile kicks again.
        for _ in 0..active.queue_size() {
            let Some(chain) = active.pop(memory) else {
                break;
            };
            let head = chain.0;
            let written = request(&self.file, self.size, memory, &chain.1);
            active.add_used(memory, head, written);
            used = true;
        }
        if used {
            active.notify();
        }
    }
}

impl ActiveQueue {
    fn queue_size(&self) -> u16 {
        use virtio_queue::QueueT;
        self.queue.size()
    }

    /// Takes the next chain: its head and its descriptors, at most [`SEGMENTS`] and the two around them.
    fn pop(&mut self, memory: &GuestMemory) -> Option<(u16, Vec<Descriptor>)> {
        let chain = self.queue.iter(memory).ok()?.next()?;
        let head = chain.head_index();
        Some((head, chain.take(SEGMENTS as usize + 2).collect()))
    }
}

/// Carries out one request; returns how many bytes it wrote into guest memory.
fn request(file: &File, size: u64, memory: &GuestMemory, chain: &[Descriptor]) -> u32 {
    // A header to read, a status byte to write as the last: anything else gets no answer but its buffers back.
    let [header, data @ .., status] = chain else {
        return 0;
    };
    if header.is_write_only()
        || header.len() < HEADER
        || !status.is_write_only()
        || status.len() < 1
    {
        return 0;
    }
    let Ok(fields) = memory.read_obj::<[u8; HEADER as usize]>(header.addr()) else {
        return 0;
    };
    let [k0, k1, k2, k3, _, _, _, _, sector @ ..] = fields;
    let kind = u32::from_le_bytes([k0, k1, k2, k3]);
    let sector = u64::from_le_bytes(sector);
    let (code, written) = match kind {
        VIRTIO_BLK_T_IN => match read(file, size, memory, sector, data) {
            Ok(written) => (VIRTIO_BLK_S_OK, written),
            Err(_) => (VIRTIO_BLK_S_IOERR, 0),
        },
        VIRTIO_BLK_T_GET_ID => {
            let mut id = [0; VIRTIO_BLK_ID_BYTES as usize];
            id[..SERIAL.len()].copy_from_slice(SERIAL);
            match data {
                [to] if to.is_write_only()
                    && to.len() as usize >= id.len()
                    && memory.write_slice(&id, to.addr()).is_ok() =>
                {
                    (VIRTIO_BLK_S_OK, VIRTIO_BLK_ID_BYTES)
                }
                _ => (VIRTIO_BLK_S_IOERR, 0),
            }
        }
        _ => (VIRTIO_BLK_S_UNSUPP, 0),
    };
    match memory.write_obj(code as u8, status.addr()) {
        Ok(()) => written + 1,
        Err(_) => 0,
    }
}

/// Reads from the file straight into the guest's buffers, with one system call.
fn read(
    file: &File,
    size: u64,
    memory: &GuestMemory,
    sector: u64,
    buffers: &[Descriptor],
) -> io::Result<u32> {
    let bad = || io::Error::from(io::ErrorKind::InvalidInput);
    let start = sector.checked_mul(SECTOR).ok_or_else(bad)?;
    let mut total: u64 = 0;
    let mut slices: Vec<VolatileSlice<'_, _>> = Vec::with_capacity(buffers.len());
    for buffer in buffers {
        if !buffer.is_write_only() {
            return Err(bad());
        }
        let slice = memory
            .get_slice(buffer.addr(), buffer.len() as usize)
            .map_err(|_| bad())?;
        slices.push(slice);
        total += u64::from(buffer.len());
    }
    let end = start.checked_add(total).ok_or_else(bad)?;
    if end > size || total > u64::from(u32::MAX - 1) {
        return Err(bad());
    }
    let guards: Vec<_> = slices.iter().map(VolatileSlice::ptr_guard_mut).collect();
    let vectors: Vec<_> = guards
        .iter()
        .zip(&slices)
        .map(|(guard, slice)| libc::iovec {
            iov_base: guard.as_ptr().cast(),
            iov_len: slice.len(),
        })
        .collect();
    // SAFETY: every vector is a slice of guest memory that `get_slice` found to be mapped and that `memory` keeps
    // mapped; no reference to it exists, and the kernel writes nowhere else. There are at most 66 vectors.
    let read = unsafe {
        libc::preadv(
            file.as_raw_fd(),
            vectors.as_ptr(),
            vectors.len() as i32,
            start as i64,
        )
    };
    match u64::try_from(read) {
        Err(_) => Err(io::Error::last_os_error()),
        Ok(read) if read == total => Ok(total as u32),
        // The file has become shorter than it was.
        Ok(_) => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

impl VirtioDevice for Blk {
    fn id(&self) -> u16 {
        VIRTIO_ID_BLOCK as u16
    }

    fn class(&self) -> u32 {
        CLASS_STORAGE
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE]
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_BLK_F_RO | 1 << VIRTIO_BLK_F_SEG_MAX
    }

    fn config(&self) -> Vec<u8> {
        // struct virtio_blk_config up to seg_max: capacity in sectors, size_max, seg_max.
        let mut config = (self.size / SECTOR).to_le_bytes().to_vec();
        config.extend(0u32.to_le_bytes());
        config.extend(SEGMENTS.to_le_bytes());
        config
    }

    fn activate(&mut self, activation: Activation) -> Result<(), String> {
        let [Some(queue)] = <[_; 1]>::try_from(activation.queues).map_err(|_| "queues")? else {
            return Err("the request queue is not enabled".into());
        };
        self.active = Some((activation.memory, queue));
        Ok(())
    }

    fn reset(&mut self) -> bool {
        self.active = None;
        true
    }
}

impl MutEventSubscriber for Blk {
    fn process(&mut self, _events: Events, _ops: &mut EventOps) {
        let _ = self.kicks[0].read();
        self.serve();
    }

    fn init(&mut self, ops: &mut EventOps) {
        super::watch(ops, &self.kicks);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use virtio_bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
    use vm_memory::GuestAddress;

    use super::*;
    use crate::memory::allocate;

    const NEXT: u16 = VRING_DESC_F_NEXT as u16;
    const WRITE: u16 = VRING_DESC_F_WRITE as u16;

    /// Header at 0x1000, data at 0x10_0000, status at 0x2000.
    fn ask(kind: u32, sector: u64, data: &[(u64, u32, u16)]) -> (u32, u8, GuestMemory) {
        let mut file = tempfile::tempfile().unwrap();
        for sector in 0..8u8 {
            file.write_all(&[sector; SECTOR as usize]).unwrap();
        }
        let memory = allocate(64 << 20).unwrap();
        memory.write_obj(kind, GuestAddress(0x1000)).unwrap();
        memory.write_obj(sector, GuestAddress(0x1008)).unwrap();
        memory.write_obj(0xffu8, GuestAddress(0x2000)).unwrap();
        let mut chain = vec![Descriptor::new(0x1000, HEADER, NEXT, 1)];
        chain.extend(
            data.iter()
                .map(|(at, len, flags)| Descriptor::new(*at, *len, *flags, 0)),
        );
        chain.push(Descriptor::new(0x2000, 1, WRITE, 0));
        let written = request(&file, 8 * SECTOR, &memory, &chain);
        let status = memory.read_obj(GuestAddress(0x2000)).unwrap();
        (written, status, memory)
    }

    #[test]
    fn reads_go_to_every_buffer_in_turn() {
        let (written, status, memory) = ask(
            VIRTIO_BLK_T_IN,
            2,
            &[
                (0x10_0000, 512, WRITE | NEXT),
                (0x20_0000, 1024, WRITE | NEXT),
            ],
        );
        assert_eq!((written, status), (512 + 1024 + 1, 0));
        assert_eq!(memory.read_obj::<u8>(GuestAddress(0x10_0000)).unwrap(), 2);
        assert_eq!(memory.read_obj::<u8>(GuestAddress(0x20_0000)).unwrap(), 3);
        assert_eq!(memory.read_obj::<u8>(GuestAddress(0x20_03ff)).unwrap(), 4);
    }

    #[test]
    fn hostile_requests_fail_and_touch_nothing() {
        let error = VIRTIO_BLK_S_IOERR as u8;
        for (name, sector, data) in [
            ("past the end", 8, (0x10_0000, 512, WRITE)),
            ("across the end", 7, (0x10_0000, 1024, WRITE)),
            (
                "sector times 512 overflows",
                u64::MAX,
                (0x10_0000, 512, WRITE),
            ),
            (
                "sector plus length overflows",
                u64::MAX / 512,
                (0x10_0000, 512, WRITE),
            ),
            ("buffer outside memory", 0, (0x1000_0000, 512, WRITE)),
            ("buffer wraps", 0, (u64::MAX - 10, 512, WRITE)),
            (
                "buffer is not the device's to write",
                0,
                (0x10_0000, 512, 0),
            ),
            ("length without end", 0, (0x10_0000, u32::MAX, WRITE)),
        ] {
            let (written, status, _) = ask(VIRTIO_BLK_T_IN, sector, &[data]);
            assert_eq!((written, status), (1, error), "{name}");
        }
        let (written, status, _) = ask(1, 0, &[(0x10_0000, 512, 0)]);
        assert_eq!((written, status), (1, VIRTIO_BLK_S_UNSUPP as u8), "a write");
    }

    #[test]
    fn malformed_chains_get_no_answer() {
        let memory = allocate(64 << 20).unwrap();
        let file = tempfile::tempfile().unwrap();
        let header = Descriptor::new(0x1000, HEADER, NEXT, 1);
        let short = Descriptor::new(0x1000, 8, NEXT, 1);
        let status = Descriptor::new(0x2000, 1, WRITE, 0);
        for chain in [
            vec![],
            vec![header],
            vec![short, status],
            vec![status, status],
            vec![header, header],
        ] {
            assert_eq!(request(&file, 4096, &memory, &chain), 0);
        }
    }
}
