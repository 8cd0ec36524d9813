//! A tunnel in VXLAN format (RFC 7348 §5): each frame in a UDP datagram behind 8 bytes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::io::Errno;

use super::{Arrival, Inbox, Left, OpenError, Outbox, check, enlarge};

const HEADER: usize = 8;
/// The VNI is valid.
const FLAG_I: u8 = 0x08;

/// One end of a tunnel.
#[derive(Debug)]
pub struct Vxlan {
    socket: UdpSocket,
    remote: IpAddr,
    address: libc::sockaddr_storage,
    address_len: u32,
    header: [u8; HEADER],
}

impl Vxlan {
    pub(super) fn open(vni: u32, remote: SocketAddr, local: SocketAddr) -> Result<Self, OpenError> {
        let cannot = |error: std::io::Error| {
            let error = Errno::from_io_error(&error).unwrap_or(Errno::IO);
            let port = local.port();
            let remedy = match error {
                Errno::ADDRINUSE => format!(
                    "a `vxlan` device of the host or another lab listens there; give the node another `port`, here and at the other end, or another `local` address; `ss -ulpn sport = {port}` shows who"
                ),
                Errno::ADDRNOTAVAIL => format!(
                    "`local` must be an address of this host; {} is none",
                    local.ip()
                ),
                Errno::ACCESS | Errno::PERM => {
                    "ports below 1024 need CAP_NET_BIND_SERVICE".to_owned()
                }
                _ => String::new(),
            };
            OpenError::new(format!("listen on UDP {local}"), error, remedy)
        };
        let socket = UdpSocket::bind(local).map_err(cannot)?;
        socket.set_nonblocking(true).map_err(cannot)?;
        enlarge(socket.as_fd());
        // Larger datagrams than the path takes are cut by the kernel, as those of a `vxlan` device are by default.
        let (level, option) = if remote.is_ipv4() {
            (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER)
        } else {
            (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER)
        };
        let value = libc::IP_PMTUDISC_DONT;
        // SAFETY: the option takes an int, which lives until the call returns.
        let set = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                level,
                option,
                (&raw const value).cast(),
                size_of_val(&value) as u32,
            )
        };
        check(set.into()).map_err(|error| cannot(error.into()))?;
        let (address, address_len) = sockaddr(remote);
        let [_, high, middle, low] = vni.to_be_bytes();
        Ok(Self {
            socket,
            remote: remote.ip(),
            address,
            address_len,
            header: [FLAG_I, 0, 0, 0, high, middle, low, 0],
        })
    }

    pub(super) fn prefix(&self) -> &[u8] {
        &self.header
    }

    pub(super) fn receive(&self, inbox: &mut Inbox) -> Result<usize, Errno> {
        inbox.messages(self.as_fd(), HEADER)
    }

    pub(super) fn send(&self, outbox: &mut Outbox) {
        let to = Some((&self.address, self.address_len));
        outbox.messages(self.as_fd(), to);
    }

    /// Datagrams of others, and of other networks, are not ours. Reserved bits are ignored, as the RFC asks.
    pub(super) fn arrival(&self, inbox: &Inbox, n: usize) -> Arrival {
        let received = inbox.received(n);
        let header = inbox.prefix(n);
        let ours = header[0] & FLAG_I != 0 && header[4..7] == self.header[4..7];
        if received.truncated || !ours || address(inbox.source(n)) != Some(self.remote) {
            return Arrival::Other;
        }
        Arrival::Frame {
            len: received.len,
            tag: None,
            left: Left::Nothing,
        }
    }
}

impl AsFd for Vxlan {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn sockaddr(address: SocketAddr) -> (libc::sockaddr_storage, u32) {
    // SAFETY: all-zero is a value of a `sockaddr_storage`, which is integers.
    let mut storage: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
    let to = &raw mut storage;
    let len = match address {
        SocketAddr::V4(v4) => {
            let v4 = libc::sockaddr_in {
                sin_family: libc::AF_INET as u16,
                sin_port: v4.port().to_be(),
                sin_addr: libc::in_addr {
                    s_addr: u32::from(*v4.ip()).to_be(),
                },
                sin_zero: [0; 8],
            };
            // SAFETY: a `sockaddr_storage` has room for, and the alignment of, every kind of address.
            unsafe { to.cast::<libc::sockaddr_in>().write(v4) };
            size_of_val(&v4)
        }
        SocketAddr::V6(v6) => {
            let v6 = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as u16,
                sin6_port: v6.port().to_be(),
                sin6_flowinfo: 0,
                sin6_addr: libc::in6_addr {
                    s6_addr: v6.ip().octets(),
                },
                sin6_scope_id: 0,
            };
            // SAFETY: as above.
            unsafe { to.cast::<libc::sockaddr_in6>().write(v6) };
            size_of_val(&v6)
        }
    };
    (storage, len as u32)
}

fn address(storage: &libc::sockaddr_storage) -> Option<IpAddr> {
    let from: *const libc::sockaddr_storage = storage;
    match i32::from(storage.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says what it is, and a `sockaddr_storage` is at least as large and as aligned.
            let v4 = unsafe { &*from.cast::<libc::sockaddr_in>() };
            Some(Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let v6 = unsafe { &*from.cast::<libc::sockaddr_in6>() };
            Some(Ipv6Addr::from(v6.sin6_addr.s6_addr).into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_back() {
        for text in ["192.0.2.1:4789", "[2001:db8::1]:8472"] {
            let there: SocketAddr = text.parse().unwrap();
            assert_eq!(address(&sockaddr(there).0), Some(there.ip()));
        }
    }
}
