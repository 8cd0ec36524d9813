//! The virtual switch of a Hopyard lab: vhost-user ports, shaped links, layer-2 nodes.
//!
//! [`switch::Switch`] is the whole. [`port`] is the socket side, [`shard`] the data side: its [`shard::Engine`] is the
//! packet path, without threads and on an injected clock; [`ring`] holds the virtqueues, [`link`] the shaper. [`kernel`] has
//! the host do the same, for comparison.
#![warn(missing_docs)]

pub mod attributes;
pub mod capture;
pub mod classify;
pub mod cli;
pub mod clock;
pub mod config;
pub mod control;
pub mod counters;
pub mod event;
pub mod external;
pub mod filters;
pub mod frame;
pub mod guard;
pub mod histogram;
mod inventory;
pub mod kernel;
pub mod l2;
pub mod link;
pub mod memory;
mod names;
pub mod net_header;
pub mod offload;
pub mod port;
pub mod rewiring;
pub mod ring;
pub mod shard;
pub mod socket;
pub mod stats;
pub mod switch;
