//! Captures: frames of links as a pcapng stream.
//!
//! A [`Tap`] on each shard copies what the filter lets through into a ring without locks; a [`Session`] on a thread of
//! its own writes what comes out as pcapng. The filter is classic BPF, compiled by tcpdump outside the switch
//! ([`capture_filter::compile`]) and run on the shard where the frame lies ([`Program`]).

mod bpf;
mod request;
mod session;
mod stream;
mod tap;
mod view;

pub use bpf::{Program, ProgramError};
pub use capture_filter::Instruction;
pub use request::{FileRequest, Request, RequestError};
pub use session::{Next, Registry, Session, SessionError};
pub use tap::{
    Bytes, InterfaceCounters, Interfaces, Point, Points, RING_BYTES, Record, Records, Settings, Tap,
};
pub use view::View;
