//! Links and their attributes, as a person writes them.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, Error, IntoDeserializer, MapAccess, Visitor};

use super::Toggle;
use crate::quantity::{Probability, QueueLimit, Rate, Size, Time};

/// The attributes of a link, once for each place that may set them.
macro_rules! with_attributes {
    ($(
        $(#[$outer:meta])* pub struct $name:ident {
            $($(#[$attribute:meta])* pub $field:ident: $type:ty,)*
        }
    )*) => {$(
        $(#[$outer])*
        #[derive(Debug, serde::Deserialize, JsonSchema)]
        #[serde(rename_all = "kebab-case", deny_unknown_fields)]
        pub struct $name {
            $($(#[$attribute])* pub $field: $type,)*
            /// On the wire, `overhead` included, 100bit to 1Tbit, or `unlimited`; default: unlimited.
            pub rate: Option<RateOrUnlimited>,
            /// Instead of `rate`: a file of Mahimahi's `mm-link`, relative to this file.
            pub trace: Option<String>,
            /// Added to every frame when its transmission time is reckoned, 0B to 1024B; default 24B
            /// (Ethernet's preamble 8, FCS 4, gap 12).
            pub overhead: Option<Size>,
            /// One-way propagation delay, 0ns to 60min; default 0ns.
            pub delay: Option<Time>,
            /// How much the delay varies: a time, or an object; default 0ns.
            pub jitter: Option<Jitter>,
            /// Whether frames may overtake each other; default false.
            pub reorder: Option<Toggle<Reorder>>,
            /// Which frames are lost after their transmission: a probability, or an object; default 0%.
            pub loss: Option<Loss>,
            /// Errors per bit on the wire, 0 to 1, as in 1e-6; a frame with one is dropped. Default 0.
            pub ber: Option<f64>,
            /// Of a frame, to be transmitted twice; default 0%.
            pub duplicate: Option<Probability>,
            /// Of a frame, to arrive with one bit flipped; default 0%.
            pub corrupt: Option<Probability>,
            /// What waits for the transmitter.
            pub queue: Option<Queue>,
            /// Carrier; default true.
            pub up: Option<bool>,
        }

        impl $name {
            pub fn attributes(&self) -> AttributesRef<'_> {
                AttributesRef {
                    rate: self.rate,
                    trace: self.trace.as_deref(),
                    overhead: self.overhead,
                    delay: self.delay,
                    jitter: self.jitter.as_ref(),
                    reorder: self.reorder.as_ref(),
                    loss: self.loss.as_ref(),
                    ber: self.ber,
                    duplicate: self.duplicate,
                    corrupt: self.corrupt,
                    queue: self.queue.as_ref(),
                    up: self.up,
                }
            }
        }
    )*};
}

/// The attributes that one place sets.
#[derive(Debug, Clone, Copy)]
pub struct AttributesRef<'a> {
    pub rate: Option<RateOrUnlimited>,
    pub trace: Option<&'a str>,
    pub overhead: Option<Size>,
    pub delay: Option<Time>,
    pub jitter: Option<&'a Jitter>,
    pub reorder: Option<&'a Toggle<Reorder>>,
    pub loss: Option<&'a Loss>,
    pub ber: Option<f64>,
    pub duplicate: Option<Probability>,
    pub corrupt: Option<Probability>,
    pub queue: Option<&'a Queue>,
    pub up: Option<bool>,
}

with_attributes! {
    /// For links.
    #[derive(Default)]
    pub struct LinkDefaults {
        /// As in a link.
        pub completion: Option<Completion>,
    }

    /// A link. Attributes hold for both directions unless `forward` or `backward` has its own.
    pub struct Link {
        /// Unique; default made of its ends, as in `a:eth0--b:eth0`.
        pub name: Option<String>,
        /// `node:interface`, or just the name of a switch or hub.
        pub endpoints: [String; 2],
        /// When the sender's descriptor is completed; default `network`.
        pub completion: Option<Completion>,
        /// From the first end to the second.
        pub forward: Option<Direction>,
        /// From the second end to the first.
        pub backward: Option<Direction>,
        /// Changes while the lab runs, in the order of time.
        pub schedule: Option<Vec<Change>>,
    }

    /// Attributes of one direction.
    pub struct Direction {}

    /// Attributes to be changed, all in the same moment. They hold for both directions unless `forward` or `backward` has
    /// its own.
    pub struct Set {
        /// From the first end to the second.
        pub forward: Option<Direction>,
        /// From the second end to the first.
        pub backward: Option<Direction>,
    }
}

/// A timed change.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Change {
    /// Since the start of the lab.
    pub at: Time,
    /// It happens again after so long, with `count`.
    pub every: Option<Time>,
    /// How often it happens, 2 to 10000, with `every`.
    pub count: Option<u64>,
    /// What changes.
    pub set: Set,
}

/// When the switch completes the descriptor of a frame it has taken.
#[derive(Debug, Clone, Copy, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Completion {
    /// At once: the queue of the link is the bottleneck queue.
    Network,
    /// At the end of its transmission, as a NIC of that rate: the queue forms in the guest.
    Nic,
}

/// A rate, or none.
#[derive(Debug, Clone, Copy)]
pub enum RateOrUnlimited {
    Unlimited,
    Rate(Rate),
}

/// Variation of the delay.
#[derive(Debug, JsonSchema)]
#[schemars(untagged)]
pub enum Jitter {
    /// The delay is spread evenly from so much less to so much more.
    Uniform(Time),
    /// With a distribution.
    Detailed(JitterDetails),
}

/// Variation of the delay by a distribution.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct JitterDetails {
    /// Standard deviation, or half the width of `uniform`, 0ns to 60min.
    pub spread: Time,
    /// Default `uniform`, or `table` if there is one.
    pub distribution: Option<Distribution>,
    /// For `table`: a file of whole numbers in 1/8192 of `spread`, as netem has them, relative to this file.
    pub table: Option<String>,
}

/// A distribution around zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Distribution {
    /// All the same from -1 to 1.
    Uniform,
    /// Standard deviation 1.
    Normal,
    /// Of shape 3, with mean 0 and standard deviation 1.
    Pareto,
    /// From a file.
    Table,
}

/// Frames overtake each other if jitter says so, and some skip the delay.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Reorder {
    /// Of a frame, to skip the delay; default 0%.
    pub probability: Option<Probability>,
    /// At most one of so many frames in a row skips it, 1 to 1000000; default 1.
    pub gap: Option<u64>,
}

/// Which frames are lost.
#[derive(Debug, JsonSchema)]
#[schemars(untagged)]
pub enum Loss {
    /// Each with this probability.
    Random(Probability),
    /// By a model.
    Model(LossModel),
}

/// Exactly one of these.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct LossModel {
    /// Bursts.
    pub gilbert_elliott: Option<GilbertElliott>,
    /// Every n-th frame, 1 to 4294967295.
    pub every: Option<u64>,
}

/// A good and a bad state, named as in the literature.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GilbertElliott {
    /// From the good to the bad state, after each frame.
    pub p: Probability,
    /// From the bad to the good state, after each frame.
    pub r: Probability,
    /// Of loss in the bad state; default 100%.
    #[serde(rename = "1-h")]
    pub loss_bad: Option<Probability>,
    /// Of loss in the good state; default 0%.
    #[serde(rename = "1-k")]
    pub loss_good: Option<Probability>,
}

/// The queue of one direction; `kind` is its discipline, `fifo` if it is left out.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(tag = "kind", transform = kind_may_be_left_out)]
pub enum Queue {
    /// First in, first out.
    Fifo(Fifo),
    /// Deficit round robin.
    Drr(Drr),
    /// Fair queueing.
    Wfq(Fair),
    /// Worst-case fair fair queueing.
    #[serde(rename = "wf2q+")]
    Wf2q(Fair),
    /// Random early detection.
    Red(Red),
    /// Controlled delay, RFC 8289.
    Codel(Codel),
    /// Flow queue CoDel, RFC 8290.
    #[serde(rename = "fq_codel")]
    FqCodel(FqCodel),
    /// Proportional integral controller enhanced, RFC 8033.
    Pie(Pie),
}

/// First in, first out.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Fifo {
    /// 1packet to 1000000packets, or 64B to 1GiB; default 1000packets.
    pub limit: Option<QueueLimit>,
    /// What goes when it is full; default `tail`.
    pub drop: Option<DropFrom>,
}

/// Deficit round robin.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Drr {
    /// 1packet to 1000000packets, or 64B to 1GiB; default 1000packets.
    pub limit: Option<QueueLimit>,
    /// What goes when it is full, of the longest flow; default `tail`.
    pub drop: Option<DropFrom>,
    /// Flows told apart, 1 to 65536; default 1024.
    pub flows: Option<u64>,
    /// What a flow may send per round, 64B to 1MiB; default 1514B.
    pub quantum: Option<Size>,
}

/// Fair queueing.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Fair {
    /// 1packet to 1000000packets, or 64B to 1GiB; default 1000packets.
    pub limit: Option<QueueLimit>,
    /// What goes when it is full, of the longest flow; default `tail`.
    pub drop: Option<DropFrom>,
    /// Flows told apart, 1 to 65536; default 1024.
    pub flows: Option<u64>,
}

/// Random early detection.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Red {
    /// 1packet to 1000000packets, or 64B to 1GiB; default 1000packets.
    pub limit: Option<QueueLimit>,
    /// No drops while the average queue is below this; default 5packets.
    pub min_th: Option<QueueLimit>,
    /// The average queue at which `max-p` is reached, greater than `min-th`; default three times `min-th`.
    pub max_th: Option<QueueLimit>,
    /// Default 10%.
    pub max_p: Option<Probability>,
    /// Weight of the present queue in the average, above 0 to 1; default 0.002.
    pub w_q: Option<f64>,
    /// Whether the probability rises gently from `max-p` to 100% up to twice `max-th`; default true.
    pub gentle: Option<bool>,
    /// Marks instead of drops where it may; default false.
    pub ecn: Option<bool>,
}

/// Controlled delay.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Codel {
    /// 1packet to 1000000packets, or 64B to 1GiB; default 1000packets.
    pub limit: Option<QueueLimit>,
    /// The standing delay that is tolerated, 1ns to 60s; default 5ms.
    pub target: Option<Time>,
    /// How long the delay must stay above it, 1ns to 60s; default 100ms.
    pub interval: Option<Time>,
    /// Marks instead of drops where it may; default false.
    pub ecn: Option<bool>,
}

/// Flow queue CoDel.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct FqCodel {
    /// 1packet to 1000000packets, or 64B to 1GiB; default 10240packets.
    pub limit: Option<QueueLimit>,
    /// Flows told apart, 1 to 65536; default 1024.
    pub flows: Option<u64>,
    /// What a flow may send per round, 64B to 1MiB; default 1514B.
    pub quantum: Option<Size>,
    /// The standing delay that is tolerated, 1ns to 60s; default 5ms.
    pub target: Option<Time>,
    /// How long the delay must stay above it, 1ns to 60s; default 100ms.
    pub interval: Option<Time>,
    /// Marks instead of drops where it may; default true.
    pub ecn: Option<bool>,
}

/// Proportional integral controller enhanced.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Pie {
    /// 1packet to 1000000packets, or 64B to 1GiB; default 1000packets.
    pub limit: Option<QueueLimit>,
    /// QDELAY_REF, 1ns to 60s; default 15ms.
    pub target: Option<Time>,
    /// T_UPDATE, 100us to 60s; default 15ms.
    pub t_update: Option<Time>,
    /// MAX_BURST, 0ns to 60s; default 150ms.
    pub max_burst: Option<Time>,
    /// In Hz, 0 to 1000; default 0.125.
    pub alpha: Option<f64>,
    /// In Hz, 0 to 1000; default 1.25.
    pub beta: Option<f64>,
    /// Marks instead of drops where it may; default false.
    pub ecn: Option<bool>,
    /// MAX_ECNTH, the probability above which it drops all the same; default 10%.
    pub max_ecnth: Option<Probability>,
}

/// Which frame a full queue drops.
#[derive(Debug, Clone, Copy, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DropFrom {
    /// The oldest.
    Head,
    /// The newest.
    Tail,
}

fn kind_may_be_left_out(schema: &mut Schema) {
    if let Some(fifo) = schema
        .pointer_mut("/oneOf/0")
        .and_then(|v| v.as_object_mut())
    {
        fifo.remove("required");
    }
}

impl<'de> Deserialize<'de> for RateOrUnlimited {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = RateOrUnlimited;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a rate such as \"10Mbit\"")
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<RateOrUnlimited, E> {
                match text {
                    "unlimited" => Ok(RateOrUnlimited::Unlimited),
                    _ => text.parse().map(RateOrUnlimited::Rate).map_err(E::custom),
                }
            }
            fn visit_u64<E: Error>(self, number: u64) -> Result<RateOrUnlimited, E> {
                Rate::deserialize(number.into_deserializer()).map(RateOrUnlimited::Rate)
            }
            fn visit_f64<E: Error>(self, number: f64) -> Result<RateOrUnlimited, E> {
                Rate::deserialize(number.into_deserializer()).map(RateOrUnlimited::Rate)
            }
        }
        deserializer.deserialize_any(Text)
    }
}

impl JsonSchema for RateOrUnlimited {
    fn schema_name() -> Cow<'static, str> {
        "RateOrUnlimited".into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let rate = generator.subschema_for::<Rate>();
        json_schema!({"anyOf": [rate, {"const": "unlimited"}]})
    }
}

/// A quantity as a string, or an object.
macro_rules! quantity_or_object {
    ($($type:ident: $plain:ident($quantity:ty) or $detailed:ident($object:ty), $expecting:literal;)*) => {$(
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Either;
                impl<'de> Visitor<'de> for Either {
                    type Value = $type;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($expecting)
                    }
                    fn visit_str<E: Error>(self, text: &str) -> Result<$type, E> {
                        text.parse().map($type::$plain).map_err(E::custom)
                    }
                    fn visit_u64<E: Error>(self, number: u64) -> Result<$type, E> {
                        <$quantity>::deserialize(number.into_deserializer()).map($type::$plain)
                    }
                    fn visit_f64<E: Error>(self, number: f64) -> Result<$type, E> {
                        <$quantity>::deserialize(number.into_deserializer()).map($type::$plain)
                    }
                    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<$type, A::Error> {
                        <$object>::deserialize(MapAccessDeserializer::new(map)).map($type::$detailed)
                    }
                }
                deserializer.deserialize_any(Either)
            }
        }
    )*};
}

quantity_or_object! {
    Jitter: Uniform(Time) or Detailed(JitterDetails), "a time such as \"10us\" or an object with `spread`";
    Loss: Random(Probability) or Model(LossModel), "a probability such as \"1%\" or an object with `gilbert-elliott` or `every`";
}
