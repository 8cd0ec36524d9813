//! Network interfaces of the host, by name.

use std::os::fd::{AsRawFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, netdevice, socket_with};

use super::check;

/// A socket by which the kernel is asked about interfaces.
#[derive(Debug)]
pub(super) struct Netdev(OwnedFd);

impl Netdev {
    pub(super) fn new() -> Result<Self, Errno> {
        let socket = socket_with(
            AddressFamily::INET,
            SocketType::DGRAM,
            SocketFlags::CLOEXEC,
            None,
        );
        socket.map(Self)
    }

    /// The index of an interface.
    pub(super) fn index(&self, name: &str) -> Result<u32, Errno> {
        netdevice::name_to_index(&self.0, name)
    }

    fn ioctl(&self, request: libc::Ioctl, ifreq: &mut libc::ifreq) -> Result<(), Errno> {
        // SAFETY: the requests below take a pointer to an `ifreq`, which lives until the call returns.
        check(unsafe { libc::ioctl(self.0.as_raw_fd(), request, ifreq) }.into())?;
        Ok(())
    }

    fn flags(&self, name: &str) -> Result<i16, Errno> {
        let mut ifreq = ifreq(name);
        self.ioctl(libc::SIOCGIFFLAGS, &mut ifreq)?;
        // SAFETY: SIOCGIFFLAGS has filled this member of the union in.
        Ok(unsafe { ifreq.ifr_ifru.ifru_flags })
    }

    /// Whether an interface is up.
    pub(super) fn is_up(&self, name: &str) -> Result<bool, Errno> {
        Ok(i32::from(self.flags(name)?) & libc::IFF_UP != 0)
    }

    /// Brings an interface up, if it is not.
    pub(super) fn set_up(&self, name: &str) -> Result<(), Errno> {
        let flags = self.flags(name)?;
        if i32::from(flags) & libc::IFF_UP != 0 {
            return Ok(());
        }
        let mut ifreq = ifreq(name);
        ifreq.ifr_ifru.ifru_flags = flags | libc::IFF_UP as i16;
        self.ioctl(libc::SIOCSIFFLAGS, &mut ifreq)
    }

    /// Gives an interface an MTU, if it has another.
    pub(super) fn set_mtu(&self, name: &str, mtu: u16) -> Result<(), Errno> {
        let mut ifreq = ifreq(name);
        self.ioctl(libc::SIOCGIFMTU, &mut ifreq)?;
        // SAFETY: SIOCGIFMTU has filled this member of the union in.
        if unsafe { ifreq.ifr_ifru.ifru_mtu } == i32::from(mtu) {
            return Ok(());
        }
        ifreq.ifr_ifru.ifru_mtu = mtu.into();
        self.ioctl(libc::SIOCSIFMTU, &mut ifreq)
    }
}

/// A request about the interface `name`, which is cut to what a name can have.
pub(super) fn ifreq(name: &str) -> libc::ifreq {
    // SAFETY: all-zero is a value of every member of the union and of the array of bytes.
    let mut ifreq: libc::ifreq = unsafe { std::mem::zeroed() };
    let room = libc::IFNAMSIZ - 1;
    for (to, from) in ifreq.ifr_name[..room].iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    ifreq
}
