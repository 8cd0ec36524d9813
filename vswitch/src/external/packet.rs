//! An interface of the host, through a packet socket (packet(7)).

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::Errno;

use super::netdev::Netdev;
use super::{Arrival, Inbox, Incomplete, Left, OpenError, Outbox, check, enlarge};

/// A virtio-net header that asks for nothing: what is sent is complete.
pub(super) const PREFIX: &[u8] = &[0; VNET_HEADER];
/// Bytes of a virtio-net header without `num_buffers`.
const VNET_HEADER: usize = 10;
/// Of a frame that has a tag before its network header, as opposed to one whose tag is 0.
const TP_STATUS_VLAN_VALID: u32 = 1 << 4;
const TP_STATUS_VLAN_TPID_VALID: u32 = 1 << 6;

/// A socket that gets every frame that comes in by an interface, and sends by it.
#[derive(Debug)]
pub struct Packet(OwnedFd);

impl Packet {
    pub(super) fn open(name: &str) -> Result<Self, OpenError> {
        let cannot = |what: &str, error, remedy: &str| {
            OpenError::new(format!("{what} the interface {name}"), error, remedy)
        };
        let netdev = Netdev::new().map_err(|error| cannot("look for", error, ""))?;
        let index = netdev.index(name).map_err(|error| {
            let remedy = "`ip link` lists those there are where the switch runs";
            cannot("find", error, remedy)
        })?;
        let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        // Without a protocol it gets nothing until it is bound to the interface.
        // SAFETY: no pointers are involved.
        let fd =
            check(unsafe { libc::socket(libc::AF_PACKET, kind, 0) }.into()).map_err(|error| {
                let remedy = match error {
                    Errno::PERM | Errno::ACCESS => {
                        "the switch needs CAP_NET_RAW for that: run the lab as root"
                    }
                    Errno::AFNOSUPPORT => {
                        "the host's kernel has no packet sockets; `modprobe af_packet` loads them"
                    }
                    _ => "",
                };
                cannot("open a packet socket on", error, remedy)
            })?;
        // SAFETY: the call has returned a descriptor that nobody else has.
        let socket = Self(unsafe { OwnedFd::from_raw_fd(fd as i32) });
        socket
            .set_up(index)
            .map_err(|error| cannot("get the frames of", error, ""))?;
        Ok(socket)
    }

    fn set_up(&self, index: u32) -> Result<(), Errno> {
        enlarge(self.as_fd());
        // Frames come with what their sender left to the hardware, and with tags that the kernel has taken out.
        self.option(libc::PACKET_VNET_HDR, &1i32)?;
        self.option(libc::PACKET_AUXDATA, &1i32)?;
        // What the host sends by the interface is not for the lab; what the lab sends least of all.
        self.option(libc::PACKET_IGNORE_OUTGOING, &1i32)?;
        let everything = libc::packet_mreq {
            mr_ifindex: index as i32,
            mr_type: libc::PACKET_MR_PROMISC as u16,
            mr_alen: 0,
            mr_address: [0; 8],
        };
        self.option(libc::PACKET_ADD_MEMBERSHIP, &everything)?;
        // SAFETY: all-zero is a value of a `sockaddr_ll`, which is integers.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
        address.sll_ifindex = index as i32;
        let len = size_of_val(&address) as u32;
        // SAFETY: `address` is `len` bytes and lives until the call returns.
        let bound = unsafe { libc::bind(self.0.as_raw_fd(), (&raw const address).cast(), len) };
        check(bound.into())?;
        Ok(())
    }

    fn option<T>(&self, option: i32, value: &T) -> Result<(), Errno> {
        let len = size_of::<T>() as u32;
        let value: *const T = value;
        // SAFETY: `value` is `len` bytes and lives until the call returns.
        let set = unsafe {
            libc::setsockopt(
                self.0.as_raw_fd(),
                libc::SOL_PACKET,
                option,
                value.cast(),
                len,
            )
        };
        check(set.into())?;
        Ok(())
    }

    pub(super) fn receive(&self, inbox: &mut Inbox) -> Result<usize, Errno> {
        inbox.messages(self.as_fd(), VNET_HEADER)
    }

    pub(super) fn send(&self, outbox: &mut Outbox) {
        outbox.messages(self.as_fd(), None);
    }
}

pub(super) fn arrival(inbox: &Inbox, n: usize) -> Arrival {
    let received = inbox.received(n);
    if received.truncated {
        return Arrival::Other;
    }
    Arrival::Frame {
        len: received.len,
        tag: tag(inbox, n),
        left: Incomplete::from_header(inbox.prefix(n)).map_or(Left::Nothing, Left::Complete),
    }
}

/// The tag the kernel has taken out of a frame.
fn tag(inbox: &Inbox, n: usize) -> Option<[u8; 4]> {
    // struct tpacket_auxdata: status, len, snaplen (32 bits each), mac, net, vlan_tci, vlan_tpid (16 bits each).
    let data = inbox.control(n, libc::SOL_PACKET, libc::PACKET_AUXDATA, 20)?;
    let status = u32::from_ne_bytes(*data.first_chunk()?);
    if status & TP_STATUS_VLAN_VALID == 0 {
        return None;
    }
    let at = |at: usize| u16::from_ne_bytes([data[at], data[at + 1]]).to_be_bytes();
    let [tci, tpid] = [at(16), at(18)];
    let tpid = if status & TP_STATUS_VLAN_TPID_VALID == 0 {
        [0x81, 0]
    } else {
        tpid
    };
    Some([tpid[0], tpid[1], tci[0], tci[1]])
}

impl AsFd for Packet {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
