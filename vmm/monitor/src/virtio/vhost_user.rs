//! The vhost-user front-end: hands the NICs' rings to the switch, one thread for all NICs of a node.
//!
//! Calls to the switch block, so they are made on this thread and never on a virtual processor. When the switch
//! goes away the thread connects again until it is back, and hands the same rings over once more, from the used
//! index in guest memory: the switch completes in order, so at most the frames in flight are lost.

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vhost::vhost_user::message::{
    VhostUserHeaderFlag, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};
use vmm_sys_util::eventfd::EventFd;

use super::net::QUEUES;
use crate::error::Error;
use crate::memory::GuestMemory;
use crate::poll::{descriptor, is};
use crate::warn::warn;
use jail::filter::Confine;

/// How long the switch may take to answer when the node starts.
const FIRST_ANSWER: Duration = Duration::from_secs(10);
/// Pause between two attempts to reach a switch that is gone.
const RETRY: Duration = Duration::from_millis(20);
const PROTOCOL_FEATURES: u64 = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();

/// One NIC's rings, as the driver set them up.
#[derive(Debug)]
pub struct Rings {
    /// What driver and switch agreed on.
    pub features: u64,
    /// The memory the rings and buffers lie in.
    pub memory: GuestMemory,
    /// Receive, transmit.
    pub queues: Vec<SharedQueue>,
}

/// One ring. Addresses are guest-physical and inside guest memory.
#[derive(Debug)]
pub struct SharedQueue {
    /// Entries.
    pub size: u16,
    /// Descriptor table.
    pub descriptors: u64,
    /// Available ring.
    pub available: u64,
    /// Used ring.
    pub used: u64,
    /// The driver's notifications.
    pub kick: EventFd,
    /// The driver's interrupt.
    pub call: EventFd,
}

/// One NIC's handle on the thread.
#[derive(Debug)]
pub struct Client {
    index: usize,
    orders: Orders,
    /// False from [`Client::stop`] until the switch has let go of the rings.
    stopped: Arc<AtomicBool>,
}

#[derive(Debug, Clone)]
struct Orders {
    sender: Sender<Order>,
    wake: Arc<EventFd>,
}

#[derive(Debug)]
enum Order {
    Start(usize, Rings),
    Stop(usize),
}

impl Client {
    /// Hands the rings to the switch, soon.
    pub fn start(&self, rings: Rings) {
        self.give(Order::Start(self.index, rings));
    }

    /// Takes the rings back; [`Client::stopped`] tells when that is done.
    pub fn stop(&self) {
        self.stopped.store(false, Ordering::Release);
        self.give(Order::Stop(self.index));
    }

    /// Whether the switch has let go of the rings.
    pub fn stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    fn give(&self, order: Order) {
        // The thread lives as long as the process.
        let _ = self.orders.sender.send(order);
        let _ = self.orders.wake.write(1);
    }
}

/// Connects to the switch for every NIC. Returns each one's handle and the features the switch offers it.
pub fn connect(sockets: Vec<PathBuf>, confine: Confine) -> Result<Vec<(Client, u64)>, Error> {
    if sockets.is_empty() {
        return Ok(Vec::new());
    }
    let (sender, receiver) = channel();
    let wake = EventFd::new(vmm_sys_util::eventfd::EFD_NONBLOCK)
        .map_err(Error::system("create an eventfd"))?;
    let orders = Orders {
        sender,
        wake: Arc::new(wake),
    };
    let stopped: Vec<_> = sockets
        .iter()
        .map(|_| Arc::new(AtomicBool::new(true)))
        .collect();
    let ports = sockets
        .iter()
        .zip(&stopped)
        .map(|(socket, stopped)| Port {
            socket: socket.clone(),
            frontend: None,
            rings: None,
            running: false,
            stopped: stopped.clone(),
            complained: false,
        })
        .collect();
    let (answer, answers) = channel();
    let thread = Thread {
        ports,
        orders: receiver,
        wake: orders.wake.clone(),
    };
    std::thread::Builder::new()
        .name("switch".into())
        .spawn(move || {
            confine.this_thread();
            thread.run(&answer);
        })
        .map_err(Error::system("start the switch thread"))?;

    let mut clients = Vec::with_capacity(sockets.len());
    for (index, (socket, stopped)) in sockets.into_iter().zip(stopped).enumerate() {
        let fail = |reason: String| Error::Switch {
            index,
            socket: socket.clone(),
            reason,
        };
        let offered = match answers.recv_timeout(FIRST_ANSWER) {
            Ok(answer) => answer.map_err(&fail)?,
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                return Err(fail(format!(
                    "it did not answer within {} s",
                    FIRST_ANSWER.as_secs()
                )));
            }
        };
        let client = Client {
            index,
            orders: orders.clone(),
            stopped,
        };
        clients.push((client, offered));
    }
    Ok(clients)
}

struct Thread {
    ports: Vec<Port>,
    orders: Receiver<Order>,
    wake: Arc<EventFd>,
}

impl Thread {
    fn run(mut self, answer: &Sender<Result<u64, String>>) {
        for port in &mut self.ports {
            let _ = answer.send(port.connect());
        }
        loop {
            self.wait();
            let _ = self.wake.read();
            while let Ok(order) = self.orders.try_recv() {
                match order {
                    Order::Start(index, rings) => self.ports[index].rings = Some(rings),
                    Order::Stop(index) => self.ports[index].stop(),
                }
            }
            for port in &mut self.ports {
                port.follow();
            }
        }
    }

    /// Sleeps until there is an order, a switch has gone, or it is time to look for a lost one.
    fn wait(&self) {
        let mut fds = vec![PollFd::from_borrowed_fd(
            descriptor(&*self.wake),
            PollFlags::IN,
        )];
        for port in &self.ports {
            if let Some(frontend) = &port.frontend {
                fds.push(PollFd::from_borrowed_fd(
                    descriptor(frontend),
                    PollFlags::RDHUP,
                ));
            }
        }
        let lost = fds.len() <= self.ports.len();
        let pause = Timespec {
            tv_sec: 0,
            tv_nsec: RETRY.as_nanos() as i64,
        };
        let _ = poll(&mut fds, lost.then_some(&pause));
    }
}

/// The switch's side of one NIC.
struct Port {
    socket: PathBuf,
    frontend: Option<Frontend>,
    rings: Option<Rings>,
    /// The switch serves `rings`.
    running: bool,
    stopped: Arc<AtomicBool>,
    /// One warning per loss of the switch.
    complained: bool,
}

impl Port {
    /// Connects and returns what the switch offers.
    fn connect(&mut self) -> Result<u64, String> {
        let stream = UnixStream::connect(&self.socket)
            .map_err(|e| format!("{e}; is the vswitch running?"))?;
        let frontend = Frontend::from_stream(stream, QUEUES as u64);
        let features = greet(&frontend).map_err(|e| e.to_string())?;
        self.frontend = Some(frontend);
        Ok(features)
    }

    /// Brings the switch to where the driver wants it.
    fn follow(&mut self) {
        if let Some(frontend) = &self.frontend
            && is(frontend, PollFlags::RDHUP)
        {
            self.lose();
        }
        let again = self.frontend.is_none();
        if again && self.connect().is_err() {
            return;
        }
        let (Some(frontend), Some(rings), false) = (&self.frontend, &self.rings, self.running)
        else {
            return;
        };
        match hand_over(frontend, rings) {
            Ok(()) => {
                self.running = true;
                self.complained = false;
                // Notifications of either side may have been lost with the old connection.
                for queue in &rings.queues {
                    let _ = queue.kick.write(1);
                    let _ = queue.call.write(1);
                }
            }
            Err(error) => {
                if !std::mem::replace(&mut self.complained, true) {
                    warn(format_args!(
                        "the switch's port {} refused the guest's rings: {error}",
                        self.socket.display()
                    ));
                }
                self.lose();
            }
        }
    }

    /// The connection is of no use any more; closing it makes the switch let go of the rings.
    fn lose(&mut self) {
        self.frontend = None;
        self.running = false;
    }

    fn stop(&mut self) {
        self.rings = None;
        if let (Some(frontend), true) = (&self.frontend, self.running) {
            let taken_back = (0..QUEUES).all(|queue| frontend.get_vring_base(queue).is_ok());
            if taken_back {
                self.running = false;
            } else {
                self.lose();
            }
        }
        self.stopped.store(true, Ordering::Release);
    }
}

/// The part of the handshake that does not depend on the driver.
fn greet(frontend: &Frontend) -> Result<u64, vhost::Error> {
    frontend.set_owner()?;
    let features = frontend.get_features()?;
    if features & PROTOCOL_FEATURES != 0 {
        let ours = VhostUserProtocolFeatures::REPLY_ACK;
        let mut frontend = frontend.clone();
        let agreed = frontend.get_protocol_features()? & ours;
        frontend.set_protocol_features(agreed)?;
        if agreed.contains(VhostUserProtocolFeatures::REPLY_ACK) {
            frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        }
    }
    Ok(features)
}

/// Gives the switch memory and rings.
fn hand_over(frontend: &Frontend, rings: &Rings) -> Result<(), vhost::Error> {
    let bad = |_| vhost::Error::InvalidGuestMemory;
    let memory = &rings.memory;
    frontend.set_features(rings.features | PROTOCOL_FEATURES)?;
    let regions = memory
        .iter()
        .map(VhostUserMemoryRegionInfo::from_guest_region)
        .collect::<Result<Vec<_>, _>>()?;
    frontend.set_mem_table(&regions)?;
    for (index, queue) in rings.queues.iter().enumerate() {
        // The protocol speaks of this process's addresses.
        let host = |address: u64| {
            let pointer = memory
                .get_host_address(GuestAddress(address))
                .map_err(bad)?;
            Ok::<_, vhost::Error>(pointer as u64)
        };
        frontend.set_vring_num(index, queue.size)?;
        // Zero on a fresh ring; where the switch had got to if it was lost. `used` is followed by flags, then the index.
        let used: u16 = memory.read_obj(GuestAddress(queue.used + 2)).map_err(bad)?;
        frontend.set_vring_base(index, used)?;
        frontend.set_vring_addr(
            index,
            &VringConfigData {
                queue_max_size: queue.size,
                queue_size: queue.size,
                flags: 0,
                desc_table_addr: host(queue.descriptors)?,
                used_ring_addr: host(queue.used)?,
                avail_ring_addr: host(queue.available)?,
                log_addr: None,
            },
        )?;
        frontend.set_vring_call(index, &queue.call)?;
        frontend.set_vring_kick(index, &queue.kick)?;
    }
    let mut frontend = frontend.clone();
    for index in 0..rings.queues.len() {
        frontend.set_vring_enable(index, true)?;
    }
    Ok(())
}
