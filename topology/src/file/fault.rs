//! Faults of a lab as a person writes them.

use schemars::JsonSchema;

use crate::quantity::Time;

/// Something that goes wrong at a time: one of `flap`, `partition` and `nodes`.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Fault {
    /// Since the start of the lab's switch.
    pub at: Time,
    /// It happens again after so long, with `count`.
    pub every: Option<Time>,
    /// How often it happens, 2 to 10000, with `every`.
    pub count: Option<u64>,
    /// Links go down and up.
    pub flap: Option<Flap>,
    /// Some of the lab is cut off from the rest.
    pub partition: Option<Partition>,
    /// Machines, for `do`.
    pub nodes: Option<Vec<String>>,
    /// What is done to `nodes`.
    #[serde(rename = "do")]
    pub order: Option<Order>,
}

/// Links that go down and up.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Flap {
    /// By name, or by the end at a machine: `pc1:eth0`.
    pub links: Vec<String>,
    /// How long they are down each time.
    pub down: Time,
    /// How long they are up between two times; required if there are several.
    pub up: Option<Time>,
    /// How many times, 1 to 10000; default 1.
    pub count: Option<u64>,
}

/// A part of the lab that is cut off: one of `nodes` and `links`.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Partition {
    /// These nodes, from all others: every link between one of them and one of the others is down.
    pub nodes: Option<Vec<String>>,
    /// What is down, by name or by the end at a machine.
    pub links: Option<Vec<String>>,
    /// How long.
    #[serde(rename = "for")]
    pub time: Time,
}

/// What can be done to a machine.
#[derive(Debug, Clone, Copy, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// It boots, if it is down.
    Start,
    /// It is taken down, as if its plug were pulled.
    Stop,
    /// Both.
    Restart,
    /// Its processors stand still.
    Pause,
    /// They go on.
    Resume,
}
