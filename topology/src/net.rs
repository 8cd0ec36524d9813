//! Addresses: MAC, and IP with a prefix length.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// An IEEE 802 MAC address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// Whether it is a group address (IEEE 802-2014 §8.2.2): multicast or broadcast.
    pub fn is_multicast(self) -> bool {
        self.0[0] & 1 != 0
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            let colon = if index == 0 { "" } else { ":" };
            write!(f, "{colon}{byte:02x}")?;
        }
        Ok(())
    }
}

impl FromStr for MacAddr {
    type Err = String;

    /// Six pairs of hexadecimal digits with colons between them.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut bytes = [0; 6];
        let mut pairs = text.split(':');
        for byte in &mut bytes {
            *byte = pairs
                .next()
                .filter(|pair| pair.len() == 2 && pair.chars().all(|c| c.is_ascii_hexdigit()))
                .and_then(|pair| u8::from_str_radix(pair, 16).ok())
                .ok_or_else(|| format!("`{text}` is not a MAC address"))?;
        }
        match pairs.next() {
            None => Ok(Self(bytes)),
            Some(_) => Err(format!("`{text}` is not a MAC address")),
        }
    }
}

/// An IP address with the length of its network prefix, as in `10.0.3.2/24`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cidr {
    /// The address itself, host bits included.
    pub address: IpAddr,
    /// 0 to 32 for IPv4, 0 to 128 for IPv6.
    pub prefix: u8,
}

impl Cidr {
    /// The network the address is in: the same with its host bits zero.
    #[must_use]
    pub fn network(self) -> Self {
        let address = match self.address {
            IpAddr::V4(address) => {
                let mask = u32::MAX
                    .checked_shl(32 - u32::from(self.prefix))
                    .unwrap_or(0);
                IpAddr::V4(Ipv4Addr::from_bits(address.to_bits() & mask))
            }
            IpAddr::V6(address) => {
                let mask = u128::MAX
                    .checked_shl(128 - u32::from(self.prefix))
                    .unwrap_or(0);
                IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & mask))
            }
        };
        Self {
            address,
            prefix: self.prefix,
        }
    }

    /// Whether `address` is in the same network.
    pub fn contains(self, address: IpAddr) -> bool {
        let other = Self {
            address,
            prefix: self.prefix,
        };
        address.is_ipv4() == self.address.is_ipv4() && other.network() == self.network()
    }

    /// The directed broadcast address, where there is one: IPv4 with a prefix of at most 30.
    pub fn broadcast(self) -> Option<Ipv4Addr> {
        match self.address {
            IpAddr::V4(address) if self.prefix <= 30 => {
                let host = u32::MAX.checked_shr(u32::from(self.prefix)).unwrap_or(0);
                Some(Ipv4Addr::from_bits(address.to_bits() | host))
            }
            _ => None,
        }
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl FromStr for Cidr {
    type Err = String;

    /// `address/prefix`; the prefix length is not optional. A second line of the error says what would be right.
    fn from_str(text: &str) -> Result<Self, String> {
        let (address, prefix) = text.split_once('/').unwrap_or((text, ""));
        let Ok(address) = address.parse::<IpAddr>() else {
            return Err(format!(
                "`{text}` is not an IP address with a prefix length\nwrite it as in \"10.0.0.1/24\" or \"2001:db8::1/64\""
            ));
        };
        let (usual, most) = if address.is_ipv4() {
            (24, 32)
        } else {
            (64, 128)
        };
        if prefix.is_empty() {
            return Err(format!(
                "`{text}` has no prefix length\nwrite for example \"{address}/{usual}\""
            ));
        }
        match prefix.parse::<u8>() {
            Ok(prefix) if prefix <= most => Ok(Self { address, prefix }),
            _ => Err(format!(
                "`{prefix}` is not a prefix length\nit is 0 to {most}, as in \"{address}/{usual}\""
            )),
        }
    }
}
