//! A TAP device of the host.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;

use super::netdev::{Netdev, ifreq};
use super::{Arrival, Inbox, Left, OpenError, Outbox, check};
use crate::net_header::{self, Layout};
use crate::port::features::{
    CSUM, GUEST_CSUM, GUEST_ECN, GUEST_TSO4, GUEST_TSO6, GUEST_USO4, GUEST_USO6, HOST_ECN,
    HOST_TSO4, HOST_TSO6, HOST_USO,
};

const DEVICE: &str = "/dev/net/tun";
const PRIVILEGE: &str = "the switch needs CAP_NET_ADMIN for that: run the lab as root, or let root make the device before, with `ip tuntap add dev NAME mode tap user USER`, and set its MTU and bring it up";

/// `_IOW('T', …)`, from linux/if_tun.h.
const TUNSETOFFLOAD: libc::Ioctl = 0x4004_54d0;
const TUNSETVNETLE: libc::Ioctl = 0x4004_54dc;
/// What the kernel may leave to the switch: checksums, TCP superframes over IPv4 and IPv6, both also with CWR; and UDP superframes, of
/// kernels since 6.2.
const TCP_OFFLOADS: libc::c_ulong = 0x01 | 0x02 | 0x04 | 0x08;
const UDP_OFFLOADS: libc::c_ulong = 0x20 | 0x40;
/// The same as features of a network card, in both directions.
const TCP_FEATURES: u64 =
    CSUM | HOST_TSO4 | HOST_TSO6 | HOST_ECN | GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | GUEST_ECN;
const UDP_FEATURES: u64 = HOST_USO | GUEST_USO4 | GUEST_USO6;

/// An open TAP device. One that was made for it vanishes when it is closed.
///
/// It is as a guest is: frames have a virtio-net header, by which the kernel and the switch leave checksums to each other and hand on
/// superframes whole.
#[derive(Debug)]
pub struct Tap {
    fd: OwnedFd,
    layout: Layout,
}

impl Tap {
    /// Makes the device, or takes one that is there, gives it its MTU and brings it up.
    pub(super) fn open(name: &str, mtu: u16) -> Result<Self, OpenError> {
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = open(DEVICE, flags, Mode::empty()).map_err(|error| {
            let remedy = match error {
                Errno::NOENT | Errno::NODEV | Errno::NXIO => {
                    "the host's kernel has no TAP devices; `modprobe tun` loads them"
                }
                Errno::ACCESS | Errno::PERM => "the switch may not use it: run the lab as root",
                _ => "",
            };
            OpenError::new(format!("open {DEVICE}"), error, remedy)
        })?;
        let mut ifreq = ifreq(name);
        let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        ifreq.ifr_ifru.ifru_flags = flags as i16;
        // SAFETY: TUNSETIFF takes a pointer to an `ifreq`, which lives until the call returns.
        let set = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF as _, &mut ifreq) };
        check(set.into()).map_err(|error| {
            let remedy = match error {
                Errno::PERM | Errno::ACCESS => PRIVILEGE,
                Errno::BUSY => "another program has it open; give the node another name for its device",
                Errno::INVAL | Errno::EXIST => {
                    "there is an interface of that name that is no TAP device, or one for several queues; `ip -d link` shows it"
                }
                _ => "",
            };
            OpenError::new(format!("use the TAP device {name}"), error, remedy)
        })?;
        let layout = offloads(&fd).map_err(|error| {
            let what = format!("agree on offloads with the TAP device {name}");
            OpenError::new(what, error, "")
        })?;
        let netdev = Netdev::new().map_err(|error| OpenError::new("open a socket", error, ""))?;
        let privilege = |error| match error {
            Errno::PERM | Errno::ACCESS => PRIVILEGE,
            _ => "",
        };
        netdev.set_mtu(name, mtu).map_err(|error| {
            let what = format!("give the TAP device {name} an MTU of {mtu}");
            OpenError::new(what, error, privilege(error))
        })?;
        netdev.set_up(name).map_err(|error| {
            let what = format!("bring the TAP device {name} up");
            OpenError::new(what, error, privilege(error))
        })?;
        Ok(Self { fd, layout })
    }

    /// What stands before frames, and what may be left to do to them.
    pub(super) fn layout(&self) -> Layout {
        self.layout
    }

    pub(super) fn receive(&self, inbox: &mut Inbox) -> Result<usize, Errno> {
        inbox.reads(self.as_fd(), self.layout.bytes())
    }

    pub(super) fn send(&self, outbox: &mut Outbox) {
        outbox.writes(self.as_fd());
    }
}

/// Tells the kernel what it may leave to the switch.
fn offloads(fd: &OwnedFd) -> Result<Layout, Errno> {
    let little_endian: libc::c_int = 1;
    // SAFETY: TUNSETVNETLE takes a pointer to an integer, which lives until the call returns.
    let set = unsafe { libc::ioctl(fd.as_raw_fd(), TUNSETVNETLE, &raw const little_endian) };
    check(set.into())?;
    let offer = |offloads: libc::c_ulong| {
        // SAFETY: TUNSETOFFLOAD takes a number.
        check(unsafe { libc::ioctl(fd.as_raw_fd(), TUNSETOFFLOAD, offloads) }.into())
    };
    let features = match offer(TCP_OFFLOADS | UDP_OFFLOADS) {
        Ok(_) => TCP_FEATURES | UDP_FEATURES,
        Err(Errno::INVAL) => offer(TCP_OFFLOADS).map(|_| TCP_FEATURES)?,
        Err(error) => return Err(error),
    };
    Ok(Layout::from_features(features))
}

impl Tap {
    pub(super) fn arrival(&self, inbox: &Inbox, n: usize) -> Arrival {
        let received = inbox.received(n);
        if received.truncated {
            return Arrival::Other;
        }
        let mut header = [0; net_header::MAX_LEN];
        let len = self.layout.bytes();
        header[..len].copy_from_slice(&inbox.prefix(n)[..len]);
        match self.layout.read(&header) {
            Ok(request) => Arrival::Frame {
                len: received.len,
                tag: None,
                left: Left::Asked(request),
            },
            Err(_) => Arrival::Other,
        }
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
