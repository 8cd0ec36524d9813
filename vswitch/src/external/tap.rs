//! A TAP device of the host.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;

use super::netdev::{Netdev, ifreq};
use super::{Arrival, Inbox, OpenError, Outbox, check};

const DEVICE: &str = "/dev/net/tun";
const PRIVILEGE: &str = "the switch needs CAP_NET_ADMIN for that: run the lab as root, or let root make the device before, with `ip tuntap add dev NAME mode tap user USER`, and set its MTU and bring it up";

/// An open TAP device. One that was made for it vanishes when it is closed.
#[derive(Debug)]
pub struct Tap(OwnedFd);

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
        // Without a virtio-net header the kernel completes checksums and cuts superframes before it hands frames over.
        ifreq.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as i16;
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
        Ok(Self(fd))
    }

    pub(super) fn receive(&self, inbox: &mut Inbox) -> Result<usize, Errno> {
        inbox.reads(self.as_fd())
    }

    pub(super) fn send(&self, outbox: &mut Outbox) {
        outbox.writes(self.as_fd());
    }
}

pub(super) fn arrival(inbox: &Inbox, n: usize) -> Arrival {
    let received = inbox.received(n);
    if received.truncated {
        return Arrival::Other;
    }
    Arrival::Frame {
        len: received.len,
        tag: None,
        incomplete: None,
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
