//! What a machine's interface may send: frames no longer than its MTU allows and, if it is locked, none in another's name.
//!
//! A locked interface's frames are looked at in the switch's own memory, never in the guest's, which could change them between the look
//! and the copy.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use topology::model::{Interface, Lock};

use crate::classify::{IPV4, IPV6, MAX_TAGS, behind_tags};
use crate::counters::Drop;
use crate::frame;
use crate::offload::Gso;

const ARP: u16 = 0x0806;
/// Bytes of a frame besides its IP packet: Ethernet, and two VLAN tags.
const AROUND: u32 = 14 + 8;
const ICMPV6: u8 = 58;
/// Router advertisement, neighbour advertisement, redirect (RFC 4861 §4).
const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const REDIRECT: u8 = 137;

/// The rules for one interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guard {
    /// Bytes of the longest frame.
    longest: u32,
    lock: Option<Names>,
}

/// In whose name a locked interface sends.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Names {
    mac: [u8; 6],
    /// `None`: any.
    addresses: Option<Vec<IpAddr>>,
}

impl Default for Guard {
    /// Nothing but what every frame must be.
    fn default() -> Self {
        Self {
            longest: frame::MAX_LEN,
            lock: None,
        }
    }
}

impl Guard {
    /// As the topology has it.
    pub fn of(interface: &Interface) -> Self {
        let names = |addresses| Names {
            mac: interface.mac.0,
            addresses,
        };
        let own = || {
            let own = interface.addresses.iter().map(|cidr| cidr.address);
            own.chain([link_local(interface.mac.0).into()]).collect()
        };
        Self {
            longest: u32::from(interface.mtu) + AROUND,
            lock: match interface.lock {
                Lock::None => None,
                Lock::Mac => Some(names(None)),
                Lock::Address => Some(names(Some(own()))),
            },
        }
    }

    /// Bytes of the longest frame.
    #[inline]
    pub fn longest(&self) -> u32 {
        self.longest
    }

    /// Whether frames have to be shown to [`Guard::check`] one by one.
    #[inline]
    pub fn is_locked(&self) -> bool {
        self.lock.is_some()
    }

    /// Whether a frame of `len` bytes, of a superframe each of its segments, is one that the MTU allows.
    ///
    /// # Errors
    /// [`Drop::Mtu`] if it is not.
    #[inline]
    pub fn check_len(&self, len: u32, gso: Option<&Gso>) -> Result<(), Drop> {
        let longest = gso.map_or(len, |gso| len.min(gso.longest()));
        if longest <= self.longest {
            Ok(())
        } else {
            Err(Drop::Mtu)
        }
    }

    /// Whether the interface may send a frame of these bytes, which nobody changes any more.
    ///
    /// # Errors
    /// [`Drop::Lock`] if it may not.
    pub fn check(&self, frame: &[u8]) -> Result<(), Drop> {
        match &self.lock {
            Some(names) if names.cover(frame) != Some(true) => Err(Drop::Lock),
            _ => Ok(()),
        }
    }
}

impl Names {
    /// Whether a frame is in these names; `None` of one that is too short to tell.
    fn cover(&self, frame: &[u8]) -> Option<bool> {
        if frame.get(6..12)? != self.mac {
            return Some(false);
        }
        let Some(addresses) = &self.addresses else {
            return Some(true);
        };
        let (kind, at) = behind_tags(frame, MAX_TAGS)?;
        let packet = frame.get(at..)?;
        match kind {
            ARP => self.cover_arp(addresses, packet),
            IPV4 => cover_v4(addresses, packet),
            IPV6 => cover_v6(addresses, packet),
            _ => Some(false),
        }
    }

    /// RFC 826: the sender's addresses are the interface's. One that probes for an address has none yet (RFC 5227 §2.1.1).
    fn cover_arp(&self, addresses: &[IpAddr], packet: &[u8]) -> Option<bool> {
        // Ethernet and IPv4, the one kind there is.
        if packet.get(..6)? != [0, 1, 8, 0, 6, 4] {
            return Some(false);
        }
        let protocol: [u8; 4] = *packet.get(14..)?.first_chunk()?;
        let protocol = Ipv4Addr::from(protocol);
        let known = protocol.is_unspecified() || addresses.contains(&protocol.into());
        Some(known && packet.get(8..14)? == self.mac)
    }
}

/// RFC 8200, and of RFC 4861 what speaks of addresses: a neighbour advertisement is about the sender's own, and only routers, whose
/// interfaces are not locked like this, advertise themselves and redirect.
fn cover_v6(addresses: &[IpAddr], packet: &[u8]) -> Option<bool> {
    let source: [u8; 16] = *packet.get(8..)?.first_chunk()?;
    let destination: [u8; 16] = *packet.get(24..)?.first_chunk()?;
    let (source, destination) = (Ipv6Addr::from(source), Ipv6Addr::from(destination));
    // One that makes sure that nobody has its address does not use it yet (RFC 4862 §5.4.2).
    let nobody = source.is_unspecified() && destination.is_multicast();
    if packet.first()? >> 4 != 6 || !(nobody || addresses.contains(&source.into())) {
        return Some(false);
    }
    let (mut next, mut at) = (*packet.get(6)?, 40);
    loop {
        let units = |more| Some(usize::from(*packet.get(at + 1)?) + more);
        let len = match next {
            0 | 43 | 60 => units(1)? * 8,
            51 => units(2)? * 4,
            _ => break,
        };
        next = *packet.get(at)?;
        at += len;
    }
    // Receivers take no neighbour discovery in fragments (RFC 6980).
    if next != ICMPV6 {
        return Some(true);
    }
    match *packet.get(at)? {
        ROUTER_ADVERTISEMENT | REDIRECT => Some(false),
        NEIGHBOUR_ADVERTISEMENT => {
            let target: [u8; 16] = *packet.get(at + 8..)?.first_chunk()?;
            Some(addresses.contains(&Ipv6Addr::from(target).into()))
        }
        _ => Some(true),
    }
}

/// RFC 791. One that asks for an address by DHCP has none yet (RFC 2131 §4.1).
fn cover_v4(addresses: &[IpAddr], packet: &[u8]) -> Option<bool> {
    let source: [u8; 4] = *packet.get(12..)?.first_chunk()?;
    let destination: [u8; 4] = *packet.get(16..)?.first_chunk()?;
    let (source, destination) = (Ipv4Addr::from(source), Ipv4Addr::from(destination));
    let nobody = source.is_unspecified() && destination.is_broadcast();
    Some(packet.first()? >> 4 == 4 && (nobody || addresses.contains(&source.into())))
}

/// The address that an interface makes of its MAC address (RFC 4291 §2.5.6 and appendix A).
fn link_local(mac: [u8; 6]) -> Ipv6Addr {
    let mut address = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xfe, 0, 0, 0];
    address[8..11].copy_from_slice(&mac[..3]);
    address[13..].copy_from_slice(&mac[3..]);
    address[8] ^= 2;
    address.into()
}
