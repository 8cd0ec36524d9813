//! Layer-2 nodes inside the switch.

mod table;

use topology::model::SwitchNode;

pub use table::{Mac, MacTable};

use crate::clock::Time;

/// Destination and source address of a frame, in this order, as they are on the wire.
pub type Addresses = [u8; 12];

/// What a layer-2 node does with a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Out of this port.
    Forward(usize),
    /// Out of every port but the one it came from.
    Flood,
    /// Not forwarded: its receiver is where it came from, or it must not leave its segment.
    Filter,
}

/// The behaviour of a layer-2 node.
#[derive(Debug)]
pub enum Bridge {
    /// Repeats everything.
    Hub,
    /// Learns.
    Switch(MacTable),
}

impl Bridge {
    /// A learning switch.
    pub fn switch(attributes: &SwitchNode) -> Self {
        Self::Switch(MacTable::new(
            attributes.ageing,
            attributes.table_limit as usize,
        ))
    }

    /// Decides on a frame that came in through `port`.
    pub fn decide(&mut self, port: usize, addresses: &Addresses, now: Time) -> Verdict {
        match self {
            Self::Hub => Verdict::Flood,
            Self::Switch(table) => table.decide(port, addresses, now),
        }
    }

    /// Addresses learnt at the moment, some of them perhaps out of date.
    pub fn learnt(&self) -> usize {
        match self {
            Self::Hub => 0,
            Self::Switch(table) => table.len(),
        }
    }
}
