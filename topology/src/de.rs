//! Reads the types of the file format out of a [`Document`], collecting every error instead of stopping at the first.
//!
//! serde stops at an error, so reading goes in rounds: the error is recorded with its place, what it is
//! about is taken out of the document (or replaced by what was evidently meant), and the next round reads the rest.
//! An error that only follows from something taken out is not recorded.

use std::fmt::{self, Display};

use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, Expected, IntoDeserializer,
    MapAccess, SeqAccess, Unexpected, VariantAccess, Visitor,
};

use crate::document::{Document, Element, Member, Node, Path, Step, Target, Value};
use crate::report::{Diagnostic, Severity};

/// The member that says which variant of an enum with fields an object is.
const TAG: &str = "kind";

/// The variant of an enum that is meant where none is named.
const DEFAULTS: [(&str, &str); 1] = [("Queue", "fifo")];

/// More are of no use to anyone.
const MAX_ERRORS: usize = 200;

/// Reads a `T`, with every error on the way; `None` if nothing is left to read it from.
pub fn read<T: DeserializeOwned>(
    document: &mut Document,
    diagnostics: &mut Vec<Diagnostic>,
) -> Option<T> {
    while diagnostics.len() < MAX_ERRORS {
        let error = match T::deserialize(&document.root) {
            Ok(value) => return Some(value),
            Err(error) => *error.0,
        };
        let path = Path(error.path.into_iter().rev().collect());
        let follows = match &error.kind {
            Kind::Missing(field) => document.lost_member(&path, field),
            Kind::Length => document.lost_element(&path),
            Kind::Other => false,
        };
        if !follows {
            diagnostics.push(Diagnostic {
                severity: Severity::Error,
                span: Some(document.locate(&path, error.target)),
                path: document.original(&path),
                message: error.message,
                help: error.help,
            });
        }
        let mended = error.meant.is_some_and(|meant| match error.target {
            Target::Key => document.rename(&path, &meant),
            Target::Value => document.replace(&path, &meant),
        });
        if !mended {
            // Without its kind nothing is known of an object.
            match path.0.split_last() {
                Some((Step::Key(key), object)) if key == TAG && error.target == Target::Value => {
                    document.remove(&Path(object.to_vec()));
                }
                _ => document.remove(&path),
            }
        }
        if document.unusable {
            return None;
        }
    }
    None
}

/// The known name nearest to `written`, if one is near enough to be what was meant.
pub fn nearest<'a>(written: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = written.to_lowercase();
    let length = |text: &str| text.chars().count();
    known
        .into_iter()
        .map(|name| {
            (
                strsim::damerau_levenshtein(&lower, &name.to_lowercase()),
                name,
            )
        })
        .filter(|(distance, name)| {
            *distance <= 1.max(length(name) / 3) && *distance < length(name).max(length(written))
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// Why a value is not what the format asks for.
#[derive(Debug)]
struct Fault {
    kind: Kind,
    message: String,
    help: Option<String>,
    /// From the inside out.
    path: Vec<Step>,
    target: Target,
    /// The known name that was meant.
    meant: Option<String>,
}

#[derive(Debug)]
enum Kind {
    Missing(&'static str),
    Length,
    Other,
}

#[derive(Debug)]
pub struct ReadError(Box<Fault>);

impl ReadError {
    fn new(message: String, help: Option<String>) -> Self {
        Self(Box::new(Fault {
            kind: Kind::Other,
            message,
            help,
            path: Vec::new(),
            target: Target::Value,
            meant: None,
        }))
    }

    fn within(mut self, step: Step) -> Self {
        self.0.path.push(step);
        self
    }

    fn length(found: usize, expected: &dyn Display) -> Self {
        let elements = if found == 1 { "element" } else { "elements" };
        let expected = expected.to_string();
        let expected = expected.trim_start_matches("an array of length ");
        let mut error = Self::new(
            format!("found {found} {elements}, expected {expected}"),
            None,
        );
        error.0.kind = Kind::Length;
        error
    }

    fn unknown(message: String, written: &str, known: &[&'static str], what: &str) -> Self {
        let meant = nearest(written, known.iter().copied());
        let help = match meant {
            Some(meant) => format!("did you mean `{meant}`?"),
            None if known.is_empty() => format!("there are no {what} here"),
            None => format!("{what}: {}", known.join(", ")),
        };
        let mut error = Self::new(message, Some(help));
        error.0.meant = meant.map(str::to_owned);
        error
    }
}

impl Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl std::error::Error for ReadError {}

impl de::Error for ReadError {
    /// The first line is what is wrong, the second what would be right.
    fn custom<T: Display>(text: T) -> Self {
        let text = text.to_string();
        match text.split_once('\n') {
            Some((message, help)) => Self::new(message.to_owned(), Some(help.to_owned())),
            None => Self::new(text, None),
        }
    }

    fn invalid_type(unexpected: Unexpected<'_>, expected: &dyn Expected) -> Self {
        let found = match unexpected {
            Unexpected::Bool(value) => format!("`{value}`"),
            Unexpected::Unsigned(value) => format!("the number {value}"),
            Unexpected::Signed(value) => format!("the number {value}"),
            Unexpected::Float(value) => format!("the number {value:?}"),
            Unexpected::Str(value) => format!("the string \"{value}\""),
            Unexpected::Unit => "`null`".to_owned(),
            Unexpected::Seq => "an array".to_owned(),
            Unexpected::Map => "an object".to_owned(),
            other => other.to_string(),
        };
        // What serde says by itself is in its terms, not in JSON's.
        let expected = expected.to_string();
        let expected = match expected.split(' ').next_back() {
            _ if expected.starts_with("struct ") => "an object",
            _ if expected.starts_with("enum ") || expected.starts_with("variant ") => "a string",
            Some("map") => "an object",
            Some("sequence") => "an array",
            Some("boolean") => "true or false",
            Some("u64") => "a whole number, 0 or greater",
            Some("f64") => "a number",
            _ => &expected,
        };
        Self::new(format!("found {found}, expected {expected}"), None)
    }

    fn invalid_value(unexpected: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::invalid_type(unexpected, expected)
    }

    fn invalid_length(length: usize, expected: &dyn Expected) -> Self {
        Self::length(length, &expected.to_string())
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        Self::unknown(
            format!("unknown value `{variant}`"),
            variant,
            expected,
            "values",
        )
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        Self::unknown(
            format!("unknown field `{field}`"),
            field,
            expected,
            "fields",
        )
    }

    fn missing_field(field: &'static str) -> Self {
        let mut error = Self::new(format!("`{field}` is missing"), None);
        error.0.kind = Kind::Missing(field);
        error
    }
}

impl<'de> Deserializer<'de> for &'de Node {
    type Error = ReadError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        match &self.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::String(text) => visitor.visit_str(text),
            Value::Number(text) => {
                if let Ok(number) = text.parse::<u64>() {
                    visitor.visit_u64(number)
                } else if let Ok(number) = text.parse::<i64>() {
                    visitor.visit_i64(number)
                } else {
                    visitor.visit_f64(text.parse().unwrap_or(f64::NAN))
                }
            }
            Value::Array(items) => {
                let mut elements = Elements { items, next: 0 };
                let value = visitor.visit_seq(&mut elements)?;
                if elements.next < items.len() {
                    return Err(ReadError::length(items.len(), &elements.next));
                }
                Ok(value)
            }
            Value::Object(members) => visitor.visit_map(Members {
                all: members,
                skip: None,
                next: 0,
            }),
        }
    }

    /// serde's derived types would take an array for their fields in order.
    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        match &self.value {
            Value::Array(_) => Err(de::Error::invalid_type(Unexpected::Seq, &"an object")),
            _ => self.deserialize_any(visitor),
        }
    }

    /// There is no `null` in the format: a field that is not set is left out.
    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        visitor.visit_newtype_struct(self)
    }

    /// Either a string that names the variant, or an object whose member `kind` does and whose others are its fields.
    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        match &self.value {
            Value::String(_) => visitor.visit_enum(Choice {
                tag: Tag::Written(self),
                members: None,
            }),
            Value::Object(members) => {
                let tag = members.iter().find(|member| member.key == TAG);
                let default = DEFAULTS.iter().find(|(of, _)| *of == name);
                let tag = match (tag, default) {
                    (Some(member), _) => Some(Tag::Written(&member.node)),
                    (None, Some((_, kind))) => Some(Tag::Default(kind)),
                    (None, None) => None,
                };
                let Some(tag) = tag else {
                    let mut error = <ReadError as de::Error>::missing_field(TAG);
                    error.0.help = Some(format!("one of: {}", variants.join(", ")));
                    return Err(error);
                };
                visitor.visit_enum(Choice {
                    tag,
                    members: Some(members),
                })
            }
            _ => self.deserialize_any(visitor),
        }
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit
        unit_struct seq tuple tuple_struct map identifier ignored_any
    }
}

struct Elements<'de> {
    items: &'de [Element],
    next: usize,
}

impl<'de> SeqAccess<'de> for Elements<'de> {
    type Error = ReadError;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, ReadError> {
        let index = self.next;
        let Some(item) = self.items.get(index) else {
            return Ok(None);
        };
        self.next += 1;
        seed.deserialize(&item.node)
            .map(Some)
            .map_err(|error| error.within(Step::Index(index)))
    }
}

struct Members<'de> {
    all: &'de [Member],
    /// A member that was read already.
    skip: Option<&'static str>,
    next: usize,
}

impl<'de> MapAccess<'de> for Members<'de> {
    type Error = ReadError;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, ReadError> {
        if let (Some(skip), Some(member)) = (self.skip, self.all.get(self.next))
            && member.key == skip
        {
            self.next += 1;
        }
        let Some(member) = self.all.get(self.next) else {
            return Ok(None);
        };
        seed.deserialize(member.key.as_str().into_deserializer())
            .map(Some)
            .map_err(|mut error: ReadError| {
                error.0.target = Target::Key;
                error.within(Step::Key(member.key.clone()))
            })
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, ReadError> {
        let Some(member) = self.all.get(self.next) else {
            return Err(de::Error::custom("an object ended within a member"));
        };
        self.next += 1;
        seed.deserialize(&member.node)
            .map_err(|error| error.within(Step::Key(member.key.clone())))
    }
}

/// What names the variant of an enum.
#[derive(Clone, Copy)]
enum Tag<'de> {
    Written(&'de Node),
    Default(&'static str),
}

/// An enum: what names its variant and, where it has fields, the object they are in.
struct Choice<'de> {
    tag: Tag<'de>,
    members: Option<&'de [Member]>,
}

impl<'de> EnumAccess<'de> for Choice<'de> {
    type Error = ReadError;
    type Variant = Fields<'de>;

    fn variant_seed<V: DeserializeSeed<'de>>(
        self,
        seed: V,
    ) -> Result<(V::Value, Fields<'de>), ReadError> {
        let variant = match self.tag {
            Tag::Written(node) => seed.deserialize(node),
            Tag::Default(kind) => seed.deserialize(kind.into_deserializer()),
        };
        let variant = variant.map_err(|error: ReadError| {
            if self.members.is_some() {
                error.within(Step::Key(TAG.to_owned()))
            } else {
                error
            }
        })?;
        let name = match self.tag {
            Tag::Default(kind) => kind,
            Tag::Written(Node {
                value: Value::String(name),
                ..
            }) => name.as_str(),
            Tag::Written(_) => "",
        };
        Ok((
            variant,
            Fields {
                name,
                members: self.members,
            },
        ))
    }
}

struct Fields<'de> {
    name: &'de str,
    members: Option<&'de [Member]>,
}

impl Fields<'_> {
    /// An unknown field says of which variant it is not a field.
    fn name_variant(&self, mut error: ReadError) -> ReadError {
        if error.0.target == Target::Key && error.0.path.len() == 1 {
            error.0.message = format!("{} of kind `{}`", error.0.message, self.name);
        }
        error
    }
}

impl<'de> VariantAccess<'de> for Fields<'de> {
    type Error = ReadError;

    fn unit_variant(self) -> Result<(), ReadError> {
        match self.members {
            None => Ok(()),
            Some(_) => Err(de::Error::custom("found an object, expected a string")),
        }
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, ReadError> {
        let Some(members) = self.members else {
            let right = format!("write {{\"{TAG}\": \"{}\"}}", self.name);
            return Err(ReadError::new(
                "found a string, expected an object".to_owned(),
                Some(right),
            ));
        };
        let members = Members {
            all: members,
            skip: Some(TAG),
            next: 0,
        };
        seed.deserialize(de::value::MapAccessDeserializer::new(members))
            .map_err(|error| self.name_variant(error))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, ReadError> {
        Err(de::Error::invalid_type(Unexpected::TupleVariant, &visitor))
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        Err(de::Error::invalid_type(Unexpected::StructVariant, &visitor))
    }
}
