//! Who may talk to a lab: its user and root, by what the kernel says of whoever connects.

use axum::serve::Listener;
use rustix::process::geteuid;
use tokio::net::unix::SocketAddr;
use tokio::net::{UnixListener, UnixStream};

/// A control socket that closes the connections of others. They cannot reach it while its folder is as the lab made it.
#[derive(Debug)]
pub struct OwnListener(pub UnixListener);

impl Listener for OwnListener {
    type Io = UnixStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (UnixStream, SocketAddr) {
        loop {
            let (stream, address) = Listener::accept(&mut self.0).await;
            let peer = stream.peer_cred().map(|peer| peer.uid());
            if peer.is_ok_and(|uid| may_talk(uid, geteuid().as_raw())) {
                return (stream, address);
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

fn may_talk(peer: u32, owner: u32) -> bool {
    peer == owner || peer == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lab_listens_to_its_user_and_to_root() {
        assert!(may_talk(1000, 1000) && may_talk(0, 1000) && may_talk(0, 0));
        assert!(!may_talk(1001, 1000) && !may_talk(1000, 0));
    }
}
