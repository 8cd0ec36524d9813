//! Quantities as a person writes them: a decimal number and a unit, `"100Mbit"`, `"10ms"`, `"64MiB"`.
//!
//! The unit is mandatory. Rates, times, sizes and packet counts are exact: a text that is not a whole number of the base
//! unit is refused, never rounded. An error is one line that says what is wrong, and a second line, where there
//! is one, that says what would be right.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Deserialize, Deserializer, Error, Visitor};

/// Why a text is not a quantity: what is wrong, and on a second line what would be right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuantityError(String);

impl fmt::Display for QuantityError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for QuantityError {}

/// One kind of quantity: its name, its units and how many base units each of them is.
struct Dimension {
    /// With its article.
    name: &'static str,
    base: &'static str,
    units: &'static [(&'static str, u64)],
    /// Units to name to a person who wrote none.
    usual: &'static [&'static str],
}

const RATE: Dimension = Dimension {
    name: "a rate",
    base: "bit/s",
    units: &[
        ("bit", 1),
        ("kbit", 1_000),
        ("Mbit", 1_000_000),
        ("Gbit", 1_000_000_000),
        ("Tbit", 1_000_000_000_000),
    ],
    usual: &["kbit", "Mbit", "Gbit"],
};

const TIME: Dimension = Dimension {
    name: "a time",
    base: "ns",
    units: &[
        ("ns", 1),
        ("us", 1_000),
        ("ms", 1_000_000),
        ("s", 1_000_000_000),
        ("min", 60_000_000_000),
    ],
    usual: &["us", "ms", "s"],
};

const SIZE: Dimension = Dimension {
    name: "a size",
    base: "B",
    units: &[
        ("B", 1),
        ("kB", 1_000),
        ("KiB", 1 << 10),
        ("MB", 1_000_000),
        ("MiB", 1 << 20),
        ("GB", 1_000_000_000),
        ("GiB", 1 << 30),
    ],
    usual: &["B", "KiB", "MiB"],
};

const PROBABILITY: Dimension = Dimension {
    name: "a probability",
    base: "%",
    units: &[("%", 1)],
    usual: &["%"],
};

const LIMIT: Dimension = Dimension {
    name: "a queue limit",
    base: "",
    units: &[
        ("packets", 1),
        ("packet", 1),
        ("B", 1),
        ("kB", 1_000),
        ("KiB", 1 << 10),
        ("MB", 1_000_000),
        ("MiB", 1 << 20),
        ("GB", 1_000_000_000),
        ("GiB", 1 << 30),
    ],
    usual: &["packets", "KiB"],
};

const STORM: Dimension = Dimension {
    name: "a storm limit",
    base: "",
    units: &[
        ("packets", 1),
        ("packet", 1),
        ("bit", 1),
        ("kbit", 1_000),
        ("Mbit", 1_000_000),
        ("Gbit", 1_000_000_000),
        ("Tbit", 1_000_000_000_000),
    ],
    usual: &["packets", "Mbit"],
};

/// A number with a unit of its dimension, not yet multiplied.
struct Written<'a> {
    number: &'a str,
    unit: &'static str,
    factor: u64,
}

fn error(what: &str, right: &str) -> QuantityError {
    QuantityError(format!("{what}\n{right}"))
}

impl Dimension {
    fn no_unit(&self, number: &str) -> QuantityError {
        let examples: Vec<String> = self
            .usual
            .iter()
            .map(|unit| format!("\"{number}{unit}\""))
            .collect();
        error(
            &format!("{} needs a unit, and `{number}` has none", self.name),
            &format!("write {}", join(&examples, "or")),
        )
    }

    fn split<'a>(&self, text: &'a str) -> Result<Written<'a>, QuantityError> {
        let end = text
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(text.len());
        let (number, unit) = text.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
        if whole.is_empty() || fraction.is_empty() || fraction.contains('.') || number.len() > 30 {
            let what = if text.starts_with('-') {
                format!("{} cannot be negative", self.name)
            } else {
                format!("`{text}` is not {}", self.name)
            };
            let example = format!(
                "write a decimal number and a unit, as in \"10{}\"",
                self.usual[0]
            );
            return Err(error(&what, &example));
        }
        if unit.is_empty() {
            return Err(self.no_unit(number));
        }
        if let Some(&(unit, factor)) = self.units.iter().find(|(name, _)| *name == unit) {
            return Ok(Written {
                number,
                unit,
                factor,
            });
        }
        let names: Vec<&str> = self.units.iter().map(|(name, _)| *name).collect();
        let mut right = format!("units of {}: {}", &self.name[2..], names.join(", "));
        if let Some(meant) = names.iter().find(|name| same_unit(name, unit)) {
            right = format!("did you mean \"{number}{meant}\"? {right}");
        }
        Err(error(
            &format!("`{unit}` is not a unit of {}", &self.name[2..]),
            &right,
        ))
    }

    fn whole(&self, text: &str) -> Result<u64, QuantityError> {
        self.split(text)?.whole(self)
    }

    fn pattern(&self) -> String {
        let names: Vec<&str> = self.units.iter().map(|(name, _)| *name).collect();
        format!("^[0-9]+(\\.[0-9]+)?({})$", names.join("|"))
    }

    fn schema(&self) -> Schema {
        let examples: Vec<String> = self.usual.iter().map(|unit| format!("10{unit}")).collect();
        json_schema!({"type": "string", "pattern": self.pattern(), "examples": examples})
    }

    /// In the largest unit that is not larger than the value; decimal units only.
    fn decimal(&self, value: u64) -> String {
        let (unit, factor) = self
            .units
            .iter()
            .rev()
            .filter(|(_, factor)| factor.to_string().trim_end_matches('0') == "1")
            .find(|(_, factor)| *factor <= value)
            .unwrap_or(&self.units[0]);
        let digits = factor.ilog10() as usize;
        let fraction = format!("{:0digits$}", value % factor);
        let fraction = fraction.trim_end_matches('0');
        let point = if fraction.is_empty() || digits == 0 {
            String::new()
        } else {
            format!(".{fraction}")
        };
        format!("{}{point}{unit}", value / factor)
    }
}

impl Written<'_> {
    fn whole(&self, dimension: &Dimension) -> Result<u64, QuantityError> {
        let text = format!("{}{}", self.number, self.unit);
        let (whole, fraction) = self.number.split_once('.').unwrap_or((self.number, ""));
        let fraction = fraction.trim_end_matches('0');
        // At most 30 digits (checked by `split`): fits.
        let digits = format!("{whole}{fraction}").parse::<u128>();
        let divisor = 10u128.checked_pow(fraction.len() as u32);
        let value = digits
            .ok()
            .and_then(|digits| digits.checked_mul(u128::from(self.factor)))
            .zip(divisor);
        let Some((scaled, divisor)) = value else {
            return Err(error(
                &format!("`{text}` has too many digits"),
                "write fewer",
            ));
        };
        if scaled % divisor != 0 {
            let base = if dimension.base.is_empty() {
                match self.unit {
                    "packet" | "packets" => "packets",
                    unit if unit.ends_with("bit") => "bit/s",
                    _ => "B",
                }
            } else {
                dimension.base
            };
            return Err(error(
                &format!("`{text}` is not a whole number of {base}"),
                "write it with fewer decimals",
            ));
        }
        u64::try_from(scaled / divisor)
            .map_err(|_| error(&format!("`{text}` is too large"), "write a smaller number"))
    }
}

/// Whether a person who wrote `written` means `unit`: another case, or a rate spelt `Mbps` or `Mbit/s`.
fn same_unit(unit: &str, written: &str) -> bool {
    let written = written.trim_start().to_lowercase();
    let unit = unit.to_lowercase();
    written == unit
        || written == format!("{unit}/s")
        || unit
            .strip_suffix("it")
            .is_some_and(|short| written == format!("{short}ps") || written == format!("{unit}s"))
        || (unit == "us" && written == "µs")
        || (unit == "s" && (written == "sec" || written == "seconds"))
}

fn join(items: &[String], last: &str) -> String {
    match items {
        [] => String::new(),
        [only] => only.clone(),
        [start @ .., end] => format!("{} {last} {end}", start.join(", ")),
    }
}

/// A bit rate, in bit/s.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rate(pub u64);

/// A span of time, to the nanosecond.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(pub Duration);

/// A size, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

/// A probability, 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct Probability(pub f64);

/// How much may wait in a queue.
///
/// Packets and bytes do not compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueueLimit {
    /// Frames.
    Packets(u64),
    /// Bytes.
    Size(Size),
}

/// How much may be sent to all, per second.
///
/// Packets and bits do not compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StormLimit {
    /// Frames.
    Packets(u64),
    /// Bits of frames.
    Rate(Rate),
}

impl Time {
    /// A span of so many nanoseconds.
    pub const fn from_nanos(ns: u64) -> Self {
        Self(Duration::from_nanos(ns))
    }
}

impl PartialOrd for QueueLimit {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        match (self, other) {
            (Self::Packets(a), Self::Packets(b)) => Some(a.cmp(b)),
            (Self::Size(a), Self::Size(b)) => Some(a.cmp(b)),
            _ => None,
        }
    }
}

impl PartialOrd for StormLimit {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        match (self, other) {
            (Self::Packets(a), Self::Packets(b)) => Some(a.cmp(b)),
            (Self::Rate(a), Self::Rate(b)) => Some(a.cmp(b)),
            _ => None,
        }
    }
}

impl FromStr for Rate {
    type Err = QuantityError;
    fn from_str(text: &str) -> Result<Self, QuantityError> {
        RATE.whole(text).map(Self)
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&RATE.decimal(self.0))
    }
}

impl FromStr for Time {
    type Err = QuantityError;
    fn from_str(text: &str) -> Result<Self, QuantityError> {
        TIME.whole(text).map(|ns| Self(Duration::from_nanos(ns)))
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A `Time` that was parsed fits; of any other only the printed form saturates (at 584 years).
        let ns = u64::try_from(self.0.as_nanos()).unwrap_or(u64::MAX);
        f.write_str(&TIME.decimal(ns))
    }
}

impl FromStr for Size {
    type Err = QuantityError;
    fn from_str(text: &str) -> Result<Self, QuantityError> {
        SIZE.whole(text).map(Self)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, factor) = SIZE
            .units
            .iter()
            .rev()
            .find(|(_, factor)| self.0 >= *factor && self.0.is_multiple_of(*factor))
            .unwrap_or(&SIZE.units[0]);
        write!(f, "{}{unit}", self.0 / factor)
    }
}

impl FromStr for Probability {
    type Err = QuantityError;
    fn from_str(text: &str) -> Result<Self, QuantityError> {
        let written = PROBABILITY.split(text)?;
        // The exponent divides by a hundred before the one rounding to f64.
        match format!("{}e-2", written.number).parse::<f64>() {
            Ok(value) if value <= 1.0 => Ok(Self(value)),
            _ => Err(error(
                &format!("`{text}` is out of range"),
                "a probability is \"0%\" to \"100%\"",
            )),
        }
    }
}

impl fmt::Display for Probability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // `Display` of f64 is the shortest decimal that reads back the same: moving its point keeps that.
        let text = self.0.to_string();
        let (whole, fraction) = text.split_once('.').unwrap_or((&text, ""));
        let fraction = format!("{fraction:0<2}");
        let (percent, rest) = fraction.split_at(2);
        let whole = format!("{whole}{percent}");
        let whole = whole.trim_start_matches('0');
        let whole = if whole.is_empty() { "0" } else { whole };
        let point = if rest.is_empty() { "" } else { "." };
        write!(f, "{whole}{point}{rest}%")
    }
}

impl FromStr for QueueLimit {
    type Err = QuantityError;
    fn from_str(text: &str) -> Result<Self, QuantityError> {
        let written = LIMIT.split(text)?;
        let value = written.whole(&LIMIT)?;
        Ok(if written.unit.starts_with("packet") {
            Self::Packets(value)
        } else {
            Self::Size(Size(value))
        })
    }
}

impl fmt::Display for QueueLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Packets(1) => f.write_str("1packet"),
            Self::Packets(n) => write!(f, "{n}packets"),
            Self::Size(size) => size.fmt(f),
        }
    }
}

impl FromStr for StormLimit {
    type Err = QuantityError;
    fn from_str(text: &str) -> Result<Self, QuantityError> {
        let written = STORM.split(text)?;
        let value = written.whole(&STORM)?;
        Ok(if written.unit.starts_with("packet") {
            Self::Packets(value)
        } else {
            Self::Rate(Rate(value))
        })
    }
}

impl fmt::Display for StormLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Packets(1) => f.write_str("1packet"),
            Self::Packets(n) => write!(f, "{n}packets"),
            Self::Rate(rate) => rate.fmt(f),
        }
    }
}

/// Reading from the file: a string that parses; a bare number is answered with the units that would do.
macro_rules! from_file {
    ($($type:ident: $dimension:expr;)*) => {$(
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Text;
                impl Visitor<'_> for Text {
                    type Value = $type;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        write!(f, "{} such as \"10{}\"", $dimension.name, $dimension.usual[0])
                    }
                    fn visit_str<E: Error>(self, text: &str) -> Result<$type, E> {
                        text.parse().map_err(E::custom)
                    }
                    fn visit_u64<E: Error>(self, number: u64) -> Result<$type, E> {
                        Err(E::custom($dimension.no_unit(&number.to_string())))
                    }
                    fn visit_f64<E: Error>(self, number: f64) -> Result<$type, E> {
                        Err(E::custom($dimension.no_unit(&number.to_string())))
                    }
                }
                deserializer.deserialize_any(Text)
            }
        }

        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                $dimension.schema()
            }
        }
    )*};
}

from_file! {
    Rate: RATE;
    Time: TIME;
    Size: SIZE;
    Probability: PROBABILITY;
    QueueLimit: LIMIT;
    StormLimit: STORM;
}
