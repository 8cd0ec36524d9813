//! The virtual switch of a Hopyard lab: vhost-user ports, shaped links, layer-2 nodes.
#![warn(missing_docs)]

pub mod clock;
pub mod config;
pub mod counters;
pub mod frame;
pub mod l2;
pub mod link;
pub mod memory;
pub mod net_header;
pub mod port;
pub mod ring;
pub mod shard;
pub mod socket;
