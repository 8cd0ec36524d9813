//! Learning switches, as a person writes them.

use std::fmt;

use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::de::value::SeqAccessDeserializer;
use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Visitor};

use crate::quantity::{StormLimit, Time};

/// A learning switch. One whose `ports` have `access` or `trunk` keeps VLANs apart (IEEE 802.1Q).
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Switch {
    /// An address not seen for this long is forgotten, 1s to 1000000s; default 300s.
    pub ageing: Option<Time>,
    /// Addresses it can hold, 1 to 1048576; default 4096.
    pub table_limit: Option<u64>,
    /// What becomes of frames to 01-80-C2-00-00-00 to -0F (spanning tree, LACP, LLDP, …); default `drop`.
    pub reserved: Option<Reserved>,
    /// What each port may send to all, per second: 1packets to 100000000packets, or 1kbit to 1Tbit; default: any.
    pub storm: Option<StormLimit>,
    /// By the other end of its link as written there, or by the name of the link.
    #[serde(default)]
    pub ports: IndexMap<String, SwitchPort>,
}

/// What becomes of frames that bridges do not forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Reserved {
    /// As IEEE 802.1D demands.
    Drop,
    /// As a repeater does.
    Forward,
}

/// A port of a switch; at most one of `access` and `trunk`.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct SwitchPort {
    /// The VLAN whose frames come and go without a tag, 1 to 4094; default 1 if other ports of the switch have VLANs.
    pub access: Option<u64>,
    /// The VLANs whose frames come and go with a tag: `all`, or a list of numbers and ranges.
    pub trunk: Option<Trunk>,
    /// Of a trunk: the VLAN whose frames come and go without a tag; default: there are none.
    pub native: Option<u64>,
    /// As in the switch.
    pub storm: Option<StormLimit>,
}

/// The VLANs of a trunk.
#[derive(Debug, JsonSchema)]
#[schemars(untagged)]
pub enum Trunk {
    /// `all`.
    All(AllVlans),
    /// These.
    Listed(Vec<Vlans>),
}

/// Every VLAN.
#[derive(Debug, Clone, Copy, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum AllVlans {
    /// 1 to 4094.
    All,
}

/// A VLAN, or a range as in `100-199`.
#[derive(Debug, Clone, JsonSchema)]
#[schemars(untagged)]
pub enum Vlans {
    /// Its number.
    One(u64),
    /// From the first to the last.
    Range(String),
}

impl<'de> Deserialize<'de> for Trunk {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AllOrList;
        impl<'de> Visitor<'de> for AllOrList {
            type Value = Trunk;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"all\" or an array such as [10, 20, \"100-199\"]")
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Trunk, E> {
                match text {
                    "all" => Ok(Trunk::All(AllVlans::All)),
                    _ => Err(E::custom(format!(
                        "`{text}` is neither \"all\" nor a list of VLANs\nwrite \"all\", or an array such as [10, 20, \"100-199\"]"
                    ))),
                }
            }
            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Trunk, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(seq)).map(Trunk::Listed)
            }
        }
        deserializer.deserialize_any(AllOrList)
    }
}

impl<'de> Deserialize<'de> for Vlans {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NumberOrRange;
        impl Visitor<'_> for NumberOrRange {
            type Value = Vlans;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a VLAN such as 10, or a range such as \"100-199\"")
            }
            fn visit_u64<E: Error>(self, number: u64) -> Result<Vlans, E> {
                Ok(Vlans::One(number))
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Vlans, E> {
                Ok(Vlans::Range(text.to_owned()))
            }
        }
        deserializer.deserialize_any(NumberOrRange)
    }
}
