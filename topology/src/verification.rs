//! Checks of a running lab: what should hold in it, with every name resolved.

use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Something that should hold in the running lab.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Check {
    /// Unique among the lab's checks.
    pub name: String,
    /// It is tried again until so much time has passed; once, if it is zero.
    #[serde(with = "nanoseconds", rename = "within-ns")]
    pub within: Duration,
    /// What should hold.
    #[serde(flatten)]
    pub kind: CheckKind,
}

/// What a check asks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum CheckKind {
    /// Echo requests are answered, or not.
    Ping(Ping),
    /// Packets take this way.
    Path(Way),
    /// TCP is as fast as this.
    Throughput(Throughput),
    /// All of these nodes reach each other.
    Reachability(Reachability),
}

/// The other end of a check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// As the file has it: a node, `node:interface` or an address.
    pub name: String,
    /// Its address.
    pub address: IpAddr,
}

/// Echo requests are answered, or not.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Ping {
    /// The node that sends.
    pub from: String,
    /// Where to.
    pub to: Target,
    /// How many, 1 to 1000.
    pub count: u32,
    /// The most that may get lost, 0 to 1.
    pub loss: f64,
    /// The least the median round trip may take.
    #[serde(with = "nanoseconds::option", rename = "min-rtt-ns", default)]
    pub min_rtt: Option<Duration>,
    /// The most the median round trip may take.
    #[serde(with = "nanoseconds::option", rename = "max-rtt-ns", default)]
    pub max_rtt: Option<Duration>,
    /// False: none may be answered.
    pub reachable: bool,
}

/// Packets take this way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Way {
    /// The node that sends.
    pub from: String,
    /// Where to.
    pub to: Target,
    /// The hops before it.
    pub via: Vec<Hop>,
}

/// One hop.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hop {
    /// As the file has it: a node or an address.
    pub name: String,
    /// With any of which it may answer.
    pub addresses: Vec<IpAddr>,
}

/// TCP is as fast as this.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Throughput {
    /// The node that sends.
    pub from: String,
    /// The node that receives.
    pub to: Target,
    /// The least that arrives, in bit/s of payload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<u64>,
    /// The most that arrives, in bit/s of payload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<u64>,
    /// How long it sends: whole seconds, 1 to 3600.
    #[serde(with = "nanoseconds", rename = "time-ns")]
    pub time: Duration,
}

/// All of these nodes reach each other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reachability {
    /// The nodes.
    pub nodes: Vec<Reachable>,
    /// Pairs `[from, to]` of indices into `nodes`: here `from` must not reach `to`.
    pub except: Vec<[usize; 2]>,
}

/// A node, and where others reach it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reachable {
    /// Its name.
    pub node: String,
    /// Its first IPv4 and IPv6 address, at least one of them.
    pub addresses: Vec<IpAddr>,
}

/// Durations as whole nanoseconds.
mod nanoseconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    fn of(duration: Duration) -> u64 {
        u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
    }

    pub fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(of(*duration))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        u64::deserialize(deserializer).map(Duration::from_nanos)
    }

    pub mod option {
        use super::{Deserialize, Deserializer, Duration, Serializer, of};

        #[expect(clippy::ref_option, reason = "serde asks for it")]
        pub fn serialize<S: Serializer>(
            duration: &Option<Duration>,
            serializer: S,
        ) -> Result<S::Ok, S::Error> {
            match duration {
                Some(duration) => serializer.serialize_some(&of(*duration)),
                None => serializer.serialize_none(),
            }
        }

        pub fn deserialize<'de, D: Deserializer<'de>>(
            deserializer: D,
        ) -> Result<Option<Duration>, D::Error> {
            Ok(Option::<u64>::deserialize(deserializer)?.map(Duration::from_nanos))
        }
    }
}
