//! The wire: what one side has sent is written to the other side's buffers.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vhost_user_backend::{VringStateMutGuard, VringT};
use virtio_bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;
use virtio_queue::{DescriptorChain, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestMemoryLoadGuard, GuestMemoryMmap};

use crate::offload;
use crate::port::{Memory, Vring};

type Guard = GuestMemoryLoadGuard<GuestMemoryMmap>;
type Queue<'a> = <Vring as VringStateMutGuard<'a, Memory>>::G;

/// Bytes of the header in front of a frame.
const HEADER: usize = 12;
const NUM_BUFFERS: usize = 10;

/// The receivers at both ends.
#[derive(Default)]
pub(crate) struct Wire {
    ends: [Mutex<Option<Receiver>>; 2],
}

impl Wire {
    pub(crate) fn lock(&self, side: usize) -> MutexGuard<'_, Option<Receiver>> {
        self.ends[side]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn connect(&self, side: usize, receiver: Receiver) {
        *self.lock(side) = Some(receiver);
    }

    pub(crate) fn disconnect(&self, side: usize) {
        *self.lock(side) = None;
    }
}

/// All bytes of a chain a guest has sent.
pub(crate) fn read(chain: DescriptorChain<Guard>, memory: &Guard) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    for d in chain.readable() {
        let at = bytes.len();
        bytes.resize(at + d.len() as usize, 0);
        memory
            .read_slice(&mut bytes[at..], d.addr())
            .map_err(io::Error::other)?;
    }
    Ok(bytes)
}

/// A guest that receives.
pub(crate) struct Receiver {
    vring: Vring,
    memory: Memory,
    features: Arc<AtomicU64>,
    /// Something was received that the guest was not told of.
    pending: bool,
}

impl Receiver {
    pub(crate) fn new(vring: Vring, memory: Memory, features: Arc<AtomicU64>) -> Self {
        Self {
            vring,
            memory,
            features,
            pending: false,
        }
    }

    /// Takes a frame as a guest with the features `from` has sent it, header included.
    pub(crate) fn receive(&mut self, from: u64, sent: &[u8]) -> io::Result<()> {
        let Some((header, frame)) = sent.split_first_chunk::<HEADER>() else {
            return Ok(());
        };
        let to = self.features.load(Ordering::Relaxed);
        for (header, frame) in offload::deliver(from, to, *header, frame) {
            self.write([&header[..], &frame].concat(), to)?;
        }
        Ok(())
    }

    fn write(&mut self, mut bytes: Vec<u8>, features: u64) -> io::Result<()> {
        let memory = self.memory.memory();
        let mergeable = features & 1 << VIRTIO_NET_F_MRG_RXBUF != 0;
        let mut vring = self.vring.get_mut();
        if !vring.is_enabled() {
            return Ok(());
        }
        let Some(chains) = reserve(&mut vring, &memory, bytes.len(), mergeable) else {
            return Ok(());
        };
        bytes[NUM_BUFFERS..HEADER].copy_from_slice(&(chains.len() as u16).to_le_bytes());
        let mut rest = &bytes[..];
        let mut used = Vec::with_capacity(chains.len());
        for chain in chains {
            let head = chain.head_index();
            let before = rest.len();
            for d in chain.writable() {
                let n = rest.len().min(d.len() as usize);
                memory
                    .write_slice(&rest[..n], d.addr())
                    .map_err(io::Error::other)?;
                rest = &rest[n..];
            }
            used.push((head, (before - rest.len()) as u32));
        }
        publish(&mut vring, &memory, &used)?;
        self.pending = true;
        Ok(())
    }

    /// Tells the guest of what it has received.
    pub(crate) fn signal(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.pending) {
            // Always, as the crate does not count entries that become visible together.
            self.vring.signal_used_queue()?;
        }
        Ok(())
    }
}

/// Chains with room for `len` bytes; if there are not enough, none is taken.
fn reserve(
    vring: &mut Queue<'_>,
    memory: &Guard,
    len: usize,
    mergeable: bool,
) -> Option<Vec<DescriptorChain<Guard>>> {
    let queue = vring.get_queue_mut();
    let start = queue.next_avail();
    let mut chains = Vec::new();
    let mut room = 0;
    while room < len && (mergeable || chains.is_empty()) {
        let Some(chain) = queue.pop_descriptor_chain(memory.clone()) else {
            break;
        };
        room += chain
            .clone()
            .writable()
            .map(|d| d.len() as usize)
            .sum::<usize>();
        chains.push(chain);
    }
    if room < len {
        queue.set_next_avail(start);
        return None;
    }
    Some(chains)
}

/// Returns chains, all at once: a guest that sees the first must see the others. `Queue::add_used` moves the index
/// with each, so only the last one goes through it.
fn publish(vring: &mut Queue<'_>, memory: &Guard, used: &[(u16, u32)]) -> io::Result<()> {
    let Some(((last, len), others)) = used.split_last() else {
        return Ok(());
    };
    let queue = vring.get_queue_mut();
    for (head, len) in others {
        let slot = u64::from(queue.next_used() % queue.size());
        let at = GuestAddress(queue.used_ring() + 4 + 8 * slot);
        let entry = u64::from(*len) << 32 | u64::from(*head);
        memory
            .write_obj(entry.to_le(), at)
            .map_err(io::Error::other)?;
        queue.set_next_used(queue.next_used().wrapping_add(1));
    }
    vring.add_used(*last, *len).map_err(io::Error::other)
}
