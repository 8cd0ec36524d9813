//! Layer-2 nodes inside the switch.

mod head;
mod storm;
mod switch;
mod table;
mod vlan;

use topology::model::SwitchNode;

pub use head::{Addresses, HEAD_BYTES, Head, Tag};
pub use switch::Switch;

use crate::clock::Time;

/// What a frame is on a wire; a superframe is several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Frames.
    pub frames: u32,
    /// Their bytes.
    pub bytes: u64,
}

/// An IEEE 802 address.
pub type Mac = [u8; 6];

/// What a layer-2 node does with a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Out of this port.
    Forward(usize),
    /// Out of every port but the one it came from, as far as they are of its VLAN.
    Flood,
    /// Not forwarded: its receiver is where it came from, or it must not leave its segment.
    Filter,
    /// Not forwarded: its port is not of its VLAN.
    WrongVlan,
    /// Not forwarded: its port has sent too much to all.
    Storm,
}

/// A decision on a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision {
    /// What becomes of it.
    pub verdict: Verdict,
    /// Its VLAN; 0 if the node does not look at tags.
    pub vlan: u16,
    /// Something people should know, once in a while.
    pub notice: Option<Notice>,
}

/// Something people should know of a layer-2 node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// A port sends more to all than it may.
    Storm {
        /// Which.
        port: usize,
    },
    /// There is a loop.
    Flapping(Flapping),
}

/// A station that moves between ports all the time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flapping {
    /// Its address.
    pub mac: Mac,
    /// Its VLAN, or 0.
    pub vlan: u16,
    /// Where it was last, and where it is now.
    pub ports: [usize; 2],
}

/// The behaviour of a layer-2 node.
#[derive(Debug)]
pub enum Bridge {
    /// Repeats everything.
    Hub,
    /// Learns.
    Switch(Box<Switch>),
}

impl Bridge {
    /// A learning switch.
    pub fn switch(attributes: &SwitchNode) -> Self {
        Self::Switch(Box::new(Switch::new(attributes)))
    }

    /// Decides on a frame that came in through `port`.
    pub fn decide(&mut self, port: usize, head: &Head, size: Size, now: Time) -> Decision {
        match self {
            Self::Hub => Decision {
                verdict: Verdict::Flood,
                vlan: 0,
                notice: None,
            },
            Self::Switch(switch) => switch.decide(port, head, size, now),
        }
    }

    /// How a frame of `vlan` that is to go out of `port` begins; `None` if that port is not of its VLAN.
    #[inline]
    pub fn leave(&self, port: usize, vlan: u16, head: Head) -> Option<Head> {
        match self {
            Self::Hub => Some(head),
            Self::Switch(switch) => switch.leave(port, vlan, head),
        }
    }

    /// Addresses learnt at the moment, some of them perhaps out of date.
    pub fn learnt(&self) -> usize {
        match self {
            Self::Hub => 0,
            Self::Switch(switch) => switch.learnt(),
        }
    }

    /// How often stations have moved from one port to another.
    pub fn moved(&self) -> u64 {
        match self {
            Self::Hub => 0,
            Self::Switch(switch) => switch.moved(),
        }
    }
}
