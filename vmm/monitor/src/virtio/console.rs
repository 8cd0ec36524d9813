//! Console device (virtio 1.2 §5.3) with the multiport feature and one port: the agent's byte stream.
//!
//! The host end is a listening Unix socket that takes one connection at a time. Nothing is thrown away while
//! both ends are open: a host that does not read leaves the guest's buffers in the ring, a guest that does not
//! read leaves the bytes in the socket.

use std::collections::VecDeque;
use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::num::Wrapping;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::Ordering;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use virtio_bindings::virtio_ids::VIRTIO_ID_CONSOLE;
use virtio_queue::{QueueOwnedT, QueueT};
use vm_memory::Bytes;
use vmm_sys_util::eventfd::EventFd;

use super::{Activation, ActiveQueue, VirtioDevice, kicks};
use crate::memory::GuestMemory;
use crate::warn::warn;

const QUEUE_SIZE: u16 = 64;
const CLASS_COMMUNICATION: u32 = 0x07_8000;
const F_MULTIPORT: u64 = 1 << 1;
const PORTS: u32 = 1;
/// Bytes taken from one chain of the guest; Linux sends at most 32 KiB in one.
const CHAIN_MAX: usize = 64 << 10;
/// Bytes read from the socket at once; Linux' receive buffers have a page each.
const READ_MAX: usize = 4096;
/// Control messages that wait for a buffer; the driver would have to open and close its port that often
/// without ever giving one.
const CONTROL_MAX: usize = 16;

/// Control events (§5.3.6.2).
const DEVICE_READY: u16 = 0;
const PORT_ADD: u16 = 1;
const PORT_READY: u16 = 3;
const PORT_OPEN: u16 = 6;
const PORT_NAME: u16 = 7;

/// Queues, which are also the data of their events in the device loop.
const RX: u32 = 0;
const TX: u32 = 1;
const CONTROL_RX: u32 = 2;
const CONTROL_TX: u32 = 3;
const LISTENER: u32 = 4;
const STREAM: u32 = 5;

/// The device.
#[derive(Debug)]
pub struct Console {
    name: &'static str,
    kicks: Vec<EventFd>,
    listener: UnixListener,
    stream: Option<UnixStream>,
    /// Bytes read from the socket that the guest has no buffer for.
    received: Vec<u8>,
    /// A chain of the guest that the socket has not taken completely.
    sending: Option<(u16, Vec<u8>)>,
    control: VecDeque<Vec<u8>>,
    guest_open: bool,
    active: Option<(GuestMemory, [ActiveQueue; 4])>,
}

/// Listens at `path` for the host end of a port.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    // A previous process of this node may have been killed.
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

impl Console {
    /// A device whose port has this name and whose host end is `listener`; and the eventfds for its transport.
    pub fn new(name: &'static str, listener: UnixListener) -> io::Result<(Self, Vec<EventFd>)> {
        let kicks = kicks(4)?;
        let ours = kicks
            .iter()
            .map(EventFd::try_clone)
            .collect::<io::Result<_>>()?;
        Ok((
            Self {
                name,
                kicks: ours,
                listener,
                stream: None,
                received: Vec::new(),
                sending: None,
                control: VecDeque::new(),
                guest_open: false,
                active: None,
            },
            kicks,
        ))
    }

    fn accept(&mut self, ops: &mut EventOps) {
        let Ok((stream, _)) = self.listener.accept() else {
            return;
        };
        // One host at a time: a second one sees its connection close.
        if self.stream.is_some() || stream.set_nonblocking(true).is_err() {
            return;
        }
        if ops
            .add(Events::with_data(&stream, STREAM, EventSet::IN))
            .is_ok()
        {
            self.stream = Some(stream);
            self.tell(PORT_OPEN, 1, &[]);
        }
    }

    fn disconnect(&mut self, ops: &mut EventOps) {
        if let Some(stream) = self.stream.take() {
            let _ = ops.remove(Events::empty(&stream));
            self.received.clear();
            self.tell(PORT_OPEN, 0, &[]);
        }
    }

    /// Queues a control message for the driver.
    fn tell(&mut self, event: u16, value: u16, more: &[u8]) {
        if self.control.len() < CONTROL_MAX {
            let mut message = vec![0; 4]; // port 0
            message.extend(event.to_le_bytes());
            message.extend(value.to_le_bytes());
            message.extend(more);
            self.control.push_back(message);
        }
        self.send_control();
    }

    fn send_control(&mut self) {
        let Some((memory, queues)) = &mut self.active else {
            return;
        };
        let queue = &mut queues[CONTROL_RX as usize];
        let mut used = false;
        while !self.control.is_empty() {
            let Some((head, len)) = queue.fill(memory, &self.control[0]) else {
                break;
            };
            // A buffer too short for the message gets a cut one; Linux gives a page.
            queue.add_used(memory, head, len as u32);
            self.control.pop_front();
            used = true;
        }
        if used {
            queue.notify();
        }
    }

    /// Answers the driver's control messages.
    fn hear_control(&mut self) {
        for _ in 0..QUEUE_SIZE {
            let Some((memory, queues)) = &mut self.active else {
                return;
            };
            let queue = &mut queues[CONTROL_TX as usize];
            let Some((head, message)) = queue.take(memory, 8) else {
                return;
            };
            queue.add_used(memory, head, 0);
            queue.notify();
            let &[p0, p1, p2, p3, e0, e1, v0, v1] = message.as_slice() else {
                continue;
            };
            let port = u32::from_le_bytes([p0, p1, p2, p3]);
            let value = u16::from_le_bytes([v0, v1]);
            match u16::from_le_bytes([e0, e1]) {
                DEVICE_READY if value == 1 => self.tell(PORT_ADD, 1, &[]),
                PORT_READY if value == 1 && port == 0 => {
                    self.tell(PORT_NAME, 1, self.name.as_bytes());
                    if self.stream.is_some() {
                        self.tell(PORT_OPEN, 1, &[]);
                    }
                }
                PORT_OPEN if port == 0 => self.guest_open = value == 1,
                _ => {}
            }
        }
    }

    /// Guest to host, until the ring is empty or the socket is full.
    fn send(&mut self) {
        let Some((memory, queues)) = &mut self.active else {
            return;
        };
        let queue = &mut queues[TX as usize];
        let mut used = false;
        loop {
            let next = self
                .sending
                .take()
                .or_else(|| queue.take(memory, CHAIN_MAX));
            let Some((head, mut bytes)) = next else {
                break;
            };
            // Without a host the bytes go nowhere: the driver was told that the port is closed.
            if let Some(stream) = &mut self.stream {
                match stream.write(&bytes) {
                    Ok(written) => drop(bytes.drain(..written)),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        self.sending = Some((head, bytes));
                        break;
                    }
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    // The hang-up event that comes with it ends the connection.
                    Err(_) => bytes.clear(),
                }
                if !bytes.is_empty() {
                    self.sending = Some((head, bytes));
                    continue;
                }
            }
            queue.add_used(memory, head, 0);
            used = true;
        }
        if used {
            queue.notify();
        }
    }

    /// Host to guest, until the socket is empty or the guest has no buffers. False if it was the guest.
    fn receive(&mut self) -> bool {
        let Some((memory, queues)) = &mut self.active else {
            return false;
        };
        let (Some(stream), true) = (&mut self.stream, self.guest_open) else {
            return false;
        };
        let queue = &mut queues[RX as usize];
        let mut used = false;
        let mut room = true;
        loop {
            if !queue.has_available(memory) {
                room = false;
                break;
            }
            if self.received.is_empty() {
                let mut bytes = [0; READ_MAX];
                match stream.read(&mut bytes) {
                    // The host has shut down its side; the hang-up that this causes ends the connection.
                    Ok(0) => {
                        let _ = stream.shutdown(Shutdown::Both);
                        break;
                    }
                    Err(_) => break,
                    Ok(len) => self.received.extend_from_slice(&bytes[..len]),
                }
            }
            let Some((head, len)) = queue.fill(memory, &self.received) else {
                room = false;
                break;
            };
            queue.add_used(memory, head, len as u32);
            self.received.drain(..len);
            used = true;
        }
        if used {
            queue.notify();
        }
        room
    }

    /// Waits for what can be acted on only, or the loop would spin.
    fn watch_stream(&self, ops: &mut EventOps, room: bool) {
        if let Some(stream) = &self.stream {
            let mut wanted = EventSet::empty();
            wanted.set(EventSet::IN, room);
            wanted.set(EventSet::OUT, self.sending.is_some());
            let _ = ops.modify(Events::with_data(stream, STREAM, wanted));
        }
    }
}

impl ActiveQueue {
    fn has_available(&self, memory: &GuestMemory) -> bool {
        self.queue
            .avail_idx(memory, Ordering::Acquire)
            .is_ok_and(|index| index != Wrapping(self.queue.next_avail()))
    }

    /// Takes the next chain and what the driver wrote into it, at most `limit` bytes.
    fn take(&mut self, memory: &GuestMemory, limit: usize) -> Option<(u16, Vec<u8>)> {
        let chain = self.queue.iter(memory).ok()?.next()?;
        let head = chain.head_index();
        let mut bytes = Vec::new();
        for buffer in chain.filter(|buffer| !buffer.is_write_only()) {
            let from = bytes.len();
            let len = (buffer.len() as usize).min(limit - from);
            bytes.resize(from + len, 0);
            if memory
                .read_slice(&mut bytes[from..], buffer.addr())
                .is_err()
            {
                bytes.truncate(from);
                break;
            }
        }
        Some((head, bytes))
    }

    /// Takes the next chain and writes as much of `bytes` into it as it has room for.
    fn fill(&mut self, memory: &GuestMemory, bytes: &[u8]) -> Option<(u16, usize)> {
        let chain = self.queue.iter(memory).ok()?.next()?;
        let head = chain.head_index();
        let mut done = 0;
        for buffer in chain.filter(virtio_queue::desc::split::Descriptor::is_write_only) {
            let len = (buffer.len() as usize).min(bytes.len() - done);
            if memory
                .write_slice(&bytes[done..done + len], buffer.addr())
                .is_err()
            {
                break;
            }
            done += len;
        }
        Some((head, done))
    }
}

impl VirtioDevice for Console {
    fn id(&self) -> u16 {
        VIRTIO_ID_CONSOLE as u16
    }

    fn class(&self) -> u32 {
        CLASS_COMMUNICATION
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; 4]
    }

    fn features(&self) -> u64 {
        F_MULTIPORT
    }

    fn config(&self) -> Vec<u8> {
        // struct virtio_console_config: columns, rows, max_nr_ports, emerg_wr.
        let mut config = vec![0; 4];
        config.extend(PORTS.to_le_bytes());
        config.extend([0; 4]);
        config
    }

    fn activate(&mut self, activation: Activation) -> Result<(), String> {
        if activation.features & F_MULTIPORT == 0 {
            return Err("the driver does not know ports".into());
        }
        let queues: Option<Vec<_>> = activation.queues.into_iter().collect();
        let queues = queues.ok_or("not all queues are enabled")?;
        let queues = queues.try_into().map_err(|_| "queues")?;
        self.active = Some((activation.memory, queues));
        Ok(())
    }

    fn reset(&mut self) -> bool {
        self.active = None;
        self.guest_open = false;
        self.sending = None;
        self.control.clear();
        // The streams of the two sides no longer match: the host has to start anew. The device loop, which owns the
        // registration, sees the hang-up and closes.
        if let Some(stream) = &self.stream {
            let _ = stream.shutdown(Shutdown::Both);
        }
        true
    }
}

impl MutEventSubscriber for Console {
    fn process(&mut self, events: Events, ops: &mut EventOps) {
        match events.data() {
            LISTENER => self.accept(ops),
            STREAM => {
                let gone = events
                    .event_set()
                    .intersects(EventSet::HANG_UP | EventSet::ERROR | EventSet::READ_HANG_UP);
                if gone {
                    self.receive();
                    self.disconnect(ops);
                }
            }
            kick => {
                if let Some(kick) = self.kicks.get(kick as usize) {
                    let _ = kick.read();
                }
            }
        }
        self.hear_control();
        self.send_control();
        self.send();
        let room = self.receive();
        self.watch_stream(ops, room);
    }

    fn init(&mut self, ops: &mut EventOps) {
        super::watch(ops, &self.kicks);
        if let Err(error) = ops.add(Events::with_data(&self.listener, LISTENER, EventSet::IN)) {
            warn(format_args!(
                "the agent's socket cannot be watched: {error}"
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use event_manager::{EventManager, SubscriberOps};
    use std::sync::{Arc, Mutex};
    use vm_memory::GuestAddress;

    use super::super::testing::Driver;
    use super::*;
    use crate::memory::allocate;

    const AREA: u64 = 0x20_0000;

    struct Bench {
        _folder: tempfile::TempDir,
        path: std::path::PathBuf,
        memory: GuestMemory,
        manager: EventManager<Arc<Mutex<Console>>>,
        drivers: [Driver; 4],
        kicks: Vec<EventFd>,
    }

    fn bench() -> Bench {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.sock");
        let memory = allocate(64 << 20).unwrap();
        let (mut console, kicks) = Console::new("port", listen(&path).unwrap()).unwrap();
        let mut drivers = Vec::new();
        let mut queues = Vec::new();
        for number in 0..4 {
            let (driver, queue) = Driver::new(&memory, 0x10_0000 + number * 0x1_0000);
            drivers.push(driver);
            queues.push(Some(queue));
        }
        console
            .activate(Activation {
                memory: memory.clone(),
                features: F_MULTIPORT,
                queues,
            })
            .unwrap();
        let mut manager = EventManager::new().unwrap();
        manager.add_subscriber(Arc::new(Mutex::new(console)));
        Bench {
            _folder: folder,
            path,
            memory,
            manager,
            drivers: drivers.try_into().unwrap(),
            kicks,
        }
    }

    impl Bench {
        fn turn(&mut self) {
            while self.manager.run_with_timeout(20).unwrap() > 0 {}
        }

        fn kick(&mut self, queue: u32) {
            self.kicks[queue as usize].write(1).unwrap();
            self.turn();
        }

        /// The driver sends a control message.
        fn say(&mut self, event: u16, value: u16) {
            let mut message = vec![0; 4];
            message.extend(event.to_le_bytes());
            message.extend(value.to_le_bytes());
            self.memory
                .write_slice(&message, GuestAddress(AREA))
                .unwrap();
            self.drivers[CONTROL_TX as usize].add(&[(AREA, 8, false)]);
            self.kick(CONTROL_TX);
        }

        /// The driver receives a control message: event, value, what follows.
        fn hear(&mut self) -> (u16, u16, Vec<u8>) {
            self.drivers[CONTROL_RX as usize].add(&[(AREA + 0x1000, 64, true)]);
            self.kick(CONTROL_RX);
            let len = self.drivers[CONTROL_RX as usize].used().unwrap();
            let mut bytes = vec![0; len as usize];
            self.memory
                .read_slice(&mut bytes, GuestAddress(AREA + 0x1000))
                .unwrap();
            (
                u16::from_le_bytes([bytes[4], bytes[5]]),
                u16::from_le_bytes([bytes[6], bytes[7]]),
                bytes[8..].to_vec(),
            )
        }

        fn open(&mut self) -> UnixStream {
            let host = UnixStream::connect(&self.path).unwrap();
            host.set_read_timeout(Some(std::time::Duration::from_secs(5)))
                .unwrap();
            self.turn();
            assert_eq!(self.hear(), (PORT_OPEN, 1, vec![]));
            self.say(PORT_OPEN, 1);
            host
        }
    }

    #[test]
    fn port_is_announced_with_its_name() {
        let mut bench = bench();
        bench.say(DEVICE_READY, 1);
        assert_eq!(bench.hear(), (PORT_ADD, 1, vec![]));
        bench.say(PORT_READY, 1);
        assert_eq!(bench.hear(), (PORT_NAME, 1, b"port".to_vec()));
    }

    #[test]
    fn bytes_pass_both_ways_and_a_hang_up_is_told() {
        let mut bench = bench();
        let mut host = bench.open();

        bench
            .memory
            .write_slice(b"from the guest", GuestAddress(AREA))
            .unwrap();
        bench.drivers[TX as usize].add(&[(AREA, 5, false), (AREA + 5, 9, false)]);
        bench.kick(TX);
        assert_eq!(bench.drivers[TX as usize].used(), Some(0));
        let mut bytes = [0; 14];
        host.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"from the guest");

        host.write_all(b"from the host").unwrap();
        for expected in ["from ", "the h", "ost"] {
            bench.drivers[RX as usize].add(&[(AREA, 3, true), (AREA + 3, 2, true)]);
            bench.kick(RX);
            let len = bench.drivers[RX as usize].used().unwrap();
            let mut bytes = vec![0; len as usize];
            bench
                .memory
                .read_slice(&mut bytes, GuestAddress(AREA))
                .unwrap();
            assert_eq!(bytes, expected.as_bytes());
        }

        drop(host);
        bench.turn();
        assert_eq!(bench.hear(), (PORT_OPEN, 0, vec![]));
        bench.open();
    }

    #[test]
    fn a_host_that_does_not_read_holds_up_the_ring_and_loses_nothing() {
        let mut bench = bench();
        let mut host = bench.open();
        let chunk = vec![7u8; 60_000];
        bench
            .memory
            .write_slice(&chunk, GuestAddress(AREA))
            .unwrap();
        let mut sent = 0;
        loop {
            bench.drivers[TX as usize].add(&[(AREA, chunk.len() as u32, false)]);
            bench.kick(TX);
            sent += chunk.len();
            if bench.drivers[TX as usize].used().is_none() {
                break;
            }
            assert!(sent < 100 << 20, "the socket never filled up");
        }
        let mut received = 0;
        let mut bytes = vec![0; 1 << 16];
        while received < sent {
            received += host.read(&mut bytes).unwrap();
            bench.turn();
        }
        assert_eq!(received, sent);
        assert_eq!(bench.drivers[TX as usize].used(), Some(0));
    }

    #[test]
    fn hostile_chains_get_their_buffers_back() {
        let mut bench = bench();
        let _host = bench.open();
        for chain in [
            (u64::MAX - 3, 64, false),
            (AREA, u32::MAX, false),
            (AREA, 0, false),
            (AREA, 64, true),
        ] {
            for queue in [TX, CONTROL_TX] {
                bench.drivers[queue as usize].add(&[chain]);
                bench.kick(queue);
                assert_eq!(bench.drivers[queue as usize].used(), Some(0), "{chain:?}");
            }
        }
    }
}
