//! What a lab was asked for, and what it has delivered.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Lateness;

/// What each link was asked for and what it has delivered, and whether a measurement in this lab means anything.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Report {
    /// The lab's name.
    pub lab: String,
    /// Milliseconds since launch.
    pub at_ms: u64,
    /// Whether the run is valid.
    pub verdict: Verdict,
    /// Why it is not, for people.
    pub reasons: Vec<String>,
    /// What else should be known, for people.
    pub notes: Vec<String>,
    /// Both directions of each link, in the order of the file.
    pub links: Vec<LinkReport>,
}

/// Whether what was asked for was delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It was.
    Valid,
    /// The machine could not keep up: frames came late, or found no room.
    Overloaded,
    /// What was delivered is improbably far from what was asked for, although the machine kept up.
    Deviates,
    /// There was no traffic to judge.
    Idle,
}

/// One direction of a link.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct LinkReport {
    /// The link's name.
    pub link: String,
    /// Where it comes from.
    pub from: String,
    /// Where it leads.
    pub to: String,
    /// Since when it is set as it is, in milliseconds since launch; what is delivered is counted from then on, to the second.
    pub since_ms: u64,
    /// Whether it delivers what it was asked for.
    pub verdict: Verdict,
    /// Why not, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What it was asked for.
    pub asked: Asked,
    /// What it has delivered.
    pub delivered: Delivered,
    /// How much later than ideal frames came since launch: what the machine added to the link.
    pub lateness: Lateness,
}

/// What a direction of a link was asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Asked {
    /// Bit/s on the wire; nothing if unlimited, or if a trace says when what can be sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<u64>,
    /// Nanoseconds of propagation.
    pub delay_ns: u64,
    /// Share of the frames that is to be lost, in the long run; 0 to 1.
    pub loss: f64,
}

/// What a direction of a link has delivered.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Delivered {
    /// Frames.
    pub frames: u64,
    /// The most bit/s on the wire, overhead included, within about a second.
    pub peak_rate: u64,
    /// Nanoseconds of propagation, and what the machine added to them for half of the frames.
    pub delay_p50_ns: u64,
    /// The same for all but 1 % of the frames.
    pub delay_p99_ns: u64,
    /// Share of the frames that were transmitted and lost as `loss` asks.
    pub loss: f64,
    /// Frames dropped, by reason.
    pub drops: BTreeMap<String, u64>,
}
