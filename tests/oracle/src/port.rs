//! One end of the wire as a vhost-user device.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Sender};

use vhost::vhost_user::VhostUserProtocolFeatures;
use vhost::vhost_user::message::VhostUserVirtioFeatures;
use vhost_user_backend::{VhostUserBackend, VringEpollHandler, VringRwLock, VringT};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::QueueT;
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{
    EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier,
};

use crate::offload;
use crate::wire::{Wire, read};

pub(crate) type Memory = GuestMemoryAtomic<GuestMemoryMmap>;
pub(crate) type Vring = VringRwLock;

const RX: usize = 0;
const TX: u16 = 1;
/// Behind the rings and the event by which threads end.
const ASK: u16 = 3;

const FEATURES: u64 = 1 << VIRTIO_F_VERSION_1
    | 1 << VIRTIO_RING_F_EVENT_IDX
    | 1 << VIRTIO_RING_F_INDIRECT_DESC
    | 1 << VIRTIO_NET_F_MRG_RXBUF
    | 1 << VIRTIO_NET_F_MAC
    | 1 << VIRTIO_NET_F_MTU
    | 1 << VIRTIO_NET_F_STATUS
    | offload::FEATURES
    | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();

/// The device of one connection.
pub(crate) struct Port {
    side: usize,
    wire: Arc<Wire>,
    features: Arc<AtomicU64>,
    memory: Memory,
    rings: Sender<Vring>,
    ask: (EventConsumer, EventNotifier),
    exit: (EventConsumer, EventNotifier),
}

impl Port {
    /// A device in `memory`, and where its receive ring will be told after [`Port::ask_for_rings`].
    pub(crate) fn new(
        side: usize,
        wire: Arc<Wire>,
        memory: Memory,
    ) -> io::Result<(Self, mpsc::Receiver<Vring>)> {
        let (rings, told) = mpsc::channel();
        let port = Self {
            side,
            wire,
            features: Arc::default(),
            memory,
            rings,
            ask: new_event_consumer_and_notifier(EventFlag::NONBLOCK)?,
            exit: new_event_consumer_and_notifier(EventFlag::NONBLOCK)?,
        };
        Ok((port, told))
    }

    /// What is agreed on with the front-end, always as it is.
    pub(crate) fn features(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.features)
    }

    /// Has `handler` show the rings.
    pub(crate) fn ask_for_rings(&self, handler: &VringEpollHandler<Arc<Self>>) -> io::Result<()> {
        let (consumer, notifier) = &self.ask;
        handler.register_listener(consumer.as_raw_fd(), EventSet::IN, ASK.into())?;
        notifier.notify()
    }

    /// Carries what the guest has sent to the other side.
    fn forward(&self, tx: &Vring) -> io::Result<()> {
        let mut other = self.wire.lock(1 - self.side);
        let mut tx = tx.get_mut();
        let memory = self.memory.memory();
        let from = self.features.load(Ordering::Relaxed);
        loop {
            tx.disable_notification().map_err(io::Error::other)?;
            while let Some(chain) = tx.get_queue_mut().pop_descriptor_chain(memory.clone()) {
                let head = chain.head_index();
                let frame = read(chain, &memory)?;
                if let Some(receiver) = &mut *other {
                    receiver.receive(from, &frame)?;
                }
                tx.add_used(head, 0).map_err(io::Error::other)?;
            }
            if tx.needs_notification().map_err(io::Error::other)? {
                tx.signal_used_queue()?;
            }
            if let Some(receiver) = &mut *other {
                receiver.signal()?;
            }
            if !tx.enable_notification().map_err(io::Error::other)? {
                return Ok(());
            }
        }
    }
}

impl VhostUserBackend for Port {
    type Bitmap = ();
    type Vring = Vring;

    fn num_queues(&self) -> usize {
        2
    }

    fn max_queue_size(&self) -> usize {
        32768
    }

    fn features(&self) -> u64 {
        FEATURES
    }

    fn acked_features(&self, features: u64) {
        self.features.store(features, Ordering::Relaxed);
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::REPLY_ACK | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
    }

    // The crate tells the queues.
    fn set_event_idx(&self, _enabled: bool) {}

    // It is in the place we gave to the crate.
    fn update_memory(&self, _memory: Memory) -> io::Result<()> {
        Ok(())
    }

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        let (consumer, notifier) = &self.exit;
        Some((consumer.try_clone().ok()?, notifier.try_clone().ok()?))
    }

    fn handle_event(&self, event: u16, _: EventSet, vrings: &[Vring], _: usize) -> io::Result<()> {
        match event {
            TX => self.forward(&vrings[usize::from(TX)]),
            ASK => {
                self.ask.0.consume()?;
                self.rings
                    .send(vrings[RX].clone())
                    .map_err(io::Error::other)
            }
            // The guest has posted buffers, which are looked for when they are needed.
            _ => Ok(()),
        }
    }
}
