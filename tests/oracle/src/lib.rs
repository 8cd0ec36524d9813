//! The reference back-end: two ports with a wire between them, as plain as `vhost-user-backend` and `virtio-queue` allow.
//!
//! A frame is copied out of the sender's buffers, then into the receiver's, by the thread that was kicked; without a
//! buffer it is lost. What the switch does on an unshaped link has to come out the same, and faster.

pub mod offload;
mod port;
mod wire;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use vhost::vhost_user::Listener;
use vhost_user_backend::VhostUserDaemon;
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

use port::Port;
use wire::{Receiver, Wire};

/// Listens on both sockets, which must not exist, and serves front-ends on both, one after the other, in threads that
/// never end by themselves. Both sockets listen when this returns.
pub fn serve(sockets: [PathBuf; 2]) -> io::Result<[JoinHandle<io::Error>; 2]> {
    let wire = Arc::new(Wire::default());
    let mut threads = Vec::with_capacity(2);
    for (side, socket) in sockets.into_iter().enumerate() {
        let listener = Listener::new(&socket, false).map_err(io::Error::other)?;
        let wire = Arc::clone(&wire);
        let name = format!("port {side}");
        let thread = std::thread::Builder::new().name(name);
        threads.push(thread.spawn(move || run(side, listener, &wire))?);
    }
    threads
        .try_into()
        .map_err(|_| io::Error::other("there are two sockets"))
}

fn run(side: usize, mut listener: Listener, wire: &Arc<Wire>) -> io::Error {
    loop {
        let ended = once(side, &mut listener, wire);
        wire.disconnect(side);
        if let Err(e) = ended {
            return e;
        }
    }
}

/// Serves one front-end until it is gone.
fn once(side: usize, listener: &mut Listener, wire: &Arc<Wire>) -> io::Result<()> {
    let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
    let (port, rings) = Port::new(side, Arc::clone(wire), memory.clone())?;
    let port = Arc::new(port);
    let name = format!("front-end {side}");
    let daemon = VhostUserDaemon::new(name, Arc::clone(&port), memory.clone());
    let mut daemon = daemon.map_err(|e| io::Error::other(e.to_string()))?;
    // Rings are shown to handlers of events only; the other side needs the receive ring before this one's first kick.
    for handler in daemon.get_epoll_handlers() {
        port.ask_for_rings(&handler)?;
    }
    let vring = rings.recv().map_err(io::Error::other)?;
    wire.connect(side, Receiver::new(vring, memory, port.features()));
    daemon
        .start(listener)
        .map_err(|e| io::Error::other(e.to_string()))?;
    // A front-end that breaks the protocol is simply gone.
    let _ = daemon.wait();
    Ok(())
}
