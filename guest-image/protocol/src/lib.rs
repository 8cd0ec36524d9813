//! What the launcher and the agent of a node say to each other, over one byte stream
//! (the virtio-serial port named [`PORT_NAME`]).
//!
//! Either side sends frames: a 8-byte header — payload length (`u32`, little endian, at most
//! [`MAX_PAYLOAD`]), stream (`u24`), [`Kind`] (`u8`) — and the payload. Stream 0 carries control
//! messages as JSON ([`ToAgent`], [`ToHost`]), cut into parts if they are long; every `exec` has a stream of its
//! own, chosen by the host, for its raw input and output. A side may send data on a stream only within the window
//! that the other side granted ([`INITIAL_WINDOW`], then [`Kind::Credit`]; see [`SendWindow`] and
//! [`ReceiveWindow`]), so that one reader who stops reading holds up nobody else.
//!
//! [`Receiver`] takes such a stream apart and bounds what it keeps; [`encode_control`], [`encode_data`] and
//! [`encode_credit`] make one.
//!
//! The host speaks first. When the host end of the port closes, or what it sends is not this protocol, the
//! agent ends every exec and waits for a new `Hello`. Data and credit for a stream that is not in use are
//! ignored: they may have crossed an `Exited`.
#![warn(missing_docs)]

mod frame;
mod window;

use serde::{Deserialize, Serialize};

pub use frame::{Incoming, ProtocolError, Receiver, encode_control, encode_credit, encode_data};
pub use window::{ReceiveWindow, SendWindow, WindowError};

/// Version of this protocol; both sides refuse another.
pub const VERSION: u32 = 1;
/// Name of the virtio-serial port, seen in the guest as `/dev/virtio-ports/…` or through sysfs.
pub const PORT_NAME: &str = "hopyard.agent";
/// In the environment of PID 1 of a container: the descriptor on which the launcher connects, as there is no port.
pub const LISTENER: &str = "HOPYARD_LISTENER";
/// Largest payload of a frame, in bytes.
pub const MAX_PAYLOAD: usize = 64 * 1024;
/// Largest control message, in bytes of JSON; it takes several frames.
pub const MAX_CONTROL: usize = 8 * 1024 * 1024;
/// Largest stream number.
pub const MAX_STREAM: u32 = (1 << 24) - 1;
/// Bytes a side may send on a fresh stream before it has been granted more.
pub const INITIAL_WINDOW: u32 = 256 * 1024;

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A control message in JSON, or the last part of one; stream 0 only.
    Control = 0,
    /// Towards the agent: bytes for the command's standard input. Empty: end of file.
    Stdin = 1,
    /// From the agent: bytes of standard output (or of the pty).
    Stdout = 2,
    /// From the agent: bytes of standard error.
    Stderr = 3,
    /// Window granted to the other side: a `u32` of bytes, little endian. Stdout and stderr share one window.
    Credit = 4,
    /// A part of a control message; the next frame of stream 0 goes on with it.
    ControlPart = 5,
}

/// Control messages from the host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum ToAgent {
    /// First message on every connection.
    Hello {
        /// [`VERSION`] of the host.
        version: u32,
    },
    /// Configure the node; sent once per boot.
    Configure(Box<NodeDescription>),
    /// Start a command on stream `stream`.
    Exec {
        /// Chosen by the host; not in use; 1 to [`MAX_STREAM`].
        stream: u32,
        /// Program and arguments; the program is looked up in the node's `PATH`.
        argv: Vec<String>,
        /// Added to the agent's environment.
        env: Vec<(String, String)>,
        /// Working directory; `/root` if absent.
        cwd: Option<String>,
        /// Give it a pty of this size; else three pipes.
        tty: Option<WindowSize>,
    },
    /// Send a signal to the process group of a running command.
    Signal {
        /// The command's stream.
        stream: u32,
        /// Signal number (Linux, x86).
        signal: i32,
    },
    /// The terminal of a command with a pty has a new size.
    Resize {
        /// The command's stream.
        stream: u32,
        /// The new size.
        size: WindowSize,
    },
    /// Answered by `Pong`.
    Ping,
    /// End all processes, sync, switch off (or reboot).
    Shutdown {
        /// Boot again rather than switch off.
        reboot: bool,
    },
}

/// Control messages from the agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum ToHost {
    /// Answer to `Hello`.
    Hello {
        /// [`VERSION`] of the agent.
        version: u32,
        /// `uname -r`.
        kernel: String,
        /// True if this boot was configured already (the host has reconnected). What became of it follows:
        /// `Configured`, `Ready` or `Failed`, as far as it has come.
        configured: bool,
    },
    /// The network is configured, daemons and commands are started.
    Configured,
    /// The readiness condition holds (sent at once after `Configured` if there is none).
    Ready,
    /// Configuration or readiness failed; the node stays up so that a person can look.
    Failed {
        /// What, to what, and why; for people.
        message: String,
    },
    /// A start-up command or a daemon ended although it should not have.
    Warning {
        /// What ended and how; for people.
        message: String,
    },
    /// `Exec` could not start the program.
    ExecFailed {
        /// The command's stream.
        stream: u32,
        /// For people.
        message: String,
        /// 127 if there is no such program, else 126, as in a shell.
        status: i32,
    },
    /// A command has ended and all its output was sent; the stream is free again.
    Exited {
        /// The command's stream.
        stream: u32,
        /// How it ended.
        status: ExitStatus,
    },
    /// Answer to `Ping`.
    Pong,
    /// The guest is about to switch off or reboot, at someone's request.
    Ending {
        /// Reboot rather than switch off.
        reboot: bool,
    },
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExitStatus {
    /// It exited with this code.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
}

/// Size of a terminal in character cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowSize {
    /// Lines.
    pub rows: u16,
    /// Columns.
    pub cols: u16,
}

/// All that a node has to be told about itself.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NodeDescription {
    /// The node's name.
    pub hostname: String,
    /// Its NICs, found by their MAC addresses.
    pub interfaces: Vec<InterfaceDescription>,
    /// Static routes.
    pub routes: Vec<RouteDescription>,
    /// Kernel settings, dotted name and value, applied in order before addresses are set.
    pub sysctls: Vec<(String, String)>,
    /// Lines of `/etc/hosts`: address and name.
    pub hosts: Vec<(String, String)>,
    /// Files to write before anything starts.
    pub files: Vec<FileDescription>,
    /// Routing daemons.
    pub frr: Option<FrrDescription>,
    /// Shell commands, started in order and left running; their output goes to `/var/log/command-N.log`.
    pub commands: Vec<String>,
    /// Readiness condition.
    pub ready: Option<ReadyDescription>,
}

/// One NIC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceDescription {
    /// The name it gets.
    pub name: String,
    /// Its address, `02:00:…`.
    pub mac: String,
    /// Bytes.
    pub mtu: u16,
    /// `address/prefix`, IPv4 and IPv6.
    pub addresses: Vec<String>,
}

/// One static route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteDescription {
    /// `address/prefix`.
    pub to: String,
    /// Next hop.
    pub via: Option<String>,
    /// Interface.
    pub dev: Option<String>,
    /// Preference.
    pub metric: Option<u32>,
}

/// One file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileDescription {
    /// Absolute.
    pub path: String,
    /// Text.
    pub content: String,
    /// Permission bits.
    pub mode: u32,
}

/// Routing daemons and their configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrrDescription {
    /// `zebra` first.
    pub daemons: Vec<String>,
    /// `frr.conf`.
    pub config: String,
}

/// A readiness condition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadyDescription {
    /// Shell command, repeated until it exits with 0.
    pub exec: String,
    /// Milliseconds before it counts as failed.
    pub timeout_ms: u64,
}
