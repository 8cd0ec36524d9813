//! A JSON text as a tree that knows where everything stands, and from which what is wrong can be taken out.

use std::fmt;
use std::ops::Range;

use jsonc_parser::ast;
use jsonc_parser::errors::ParseErrorKind;
use jsonc_parser::{CollectOptions, ParseOptions, parse_to_ast};

use crate::report::{Diagnostic, Severity};

/// One step from an object or array to something in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    Key(String),
    Index(usize),
}

impl From<&str> for Step {
    fn from(key: &str) -> Self {
        Self::Key(key.to_owned())
    }
}

impl From<usize> for Step {
    fn from(index: usize) -> Self {
        Self::Index(index)
    }
}

/// Where something stands in the document, from the root.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Path(pub Vec<Step>);

impl Path {
    pub fn of(step: impl Into<Step>) -> Self {
        Self(vec![step.into()])
    }

    #[must_use]
    pub fn at(&self, step: impl Into<Step>) -> Self {
        let mut path = self.clone();
        path.0.push(step.into());
        path
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (depth, step) in self.0.iter().enumerate() {
            match step {
                Step::Key(key) if depth == 0 => f.write_str(key)?,
                Step::Key(key) => write!(f, ".{key}")?,
                Step::Index(index) => write!(f, "[{index}]")?,
            }
        }
        Ok(())
    }
}

/// What of a member of an object an error is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    Key,
    Value,
}

/// A value and where it stands.
#[derive(Debug)]
pub struct Node {
    pub span: Range<usize>,
    pub value: Value,
}

#[derive(Debug)]
pub enum Value {
    Null,
    Bool(bool),
    Number(String),
    String(String),
    Array(Vec<Element>),
    Object(Vec<Member>),
}

#[derive(Debug)]
pub struct Element {
    /// Its index in the text, whatever was taken out before it.
    pub index: usize,
    pub node: Node,
}

#[derive(Debug)]
pub struct Member {
    pub key: String,
    pub key_span: Range<usize>,
    pub node: Node,
}

/// A document and what was taken out of it.
#[derive(Debug)]
pub struct Document {
    pub root: Node,
    /// The root, or something everything else hangs on, was wrong.
    pub unusable: bool,
    removed: Vec<Removed>,
}

#[derive(Debug)]
struct Removed {
    parent: Range<usize>,
    key: Option<String>,
}

impl Document {
    /// Reads strict JSON. A syntax error ends it; of keys that occur twice, the later is reported and left out.
    pub fn parse(text: &str, diagnostics: &mut Vec<Diagnostic>) -> Option<Self> {
        let strict = ParseOptions {
            allow_comments: false,
            allow_loose_object_property_names: false,
            allow_trailing_commas: false,
            allow_missing_commas: false,
            allow_single_quoted_strings: false,
            allow_hexadecimal_numbers: false,
            allow_unary_plus_numbers: false,
            allow_bare_decimal_point_numbers: false,
            allow_non_finite_numbers: false,
            allow_extended_string_escapes: false,
        };
        let parsed = match parse_to_ast(text, &CollectOptions::default(), &strict) {
            Ok(parsed) => parsed,
            Err(error) => {
                let range = error.range();
                // Of what was not closed, the place where it was opened is enough.
                let line = text.get(range.start..range.end).unwrap_or_default();
                let length = line.find(['\r', '\n']).unwrap_or(line.len());
                diagnostics.push(Diagnostic {
                    severity: Severity::Error,
                    span: Some(range.start..range.start + length),
                    path: Path::default(),
                    message: format!("not valid JSON: {}", lower_first(&error.kind().to_string())),
                    help: syntax_help(error.kind()).map(str::to_owned),
                });
                return None;
            }
        };
        let Some(value) = parsed.value else {
            diagnostics.push(Diagnostic {
                severity: Severity::Error,
                span: Some(0..0),
                path: Path::default(),
                message: "the file is empty".into(),
                help: Some("the least there is: {\"nodes\": {\"a\": {\"kind\": \"host\"}}}".into()),
            });
            return None;
        };
        Some(Self {
            root: convert(value, &Path::default(), diagnostics),
            unusable: false,
            removed: Vec::new(),
        })
    }

    /// Where `path` stands; if it is not in the document, the nearest thing around it that is.
    pub fn locate(&self, path: &Path, target: Target) -> Range<usize> {
        let mut node = &self.root;
        let mut key: Option<&Range<usize>> = None;
        let mut complete = true;
        for step in &path.0 {
            let next = match (step, &node.value) {
                (Step::Key(name), Value::Object(members)) => members
                    .iter()
                    .find(|member| member.key == *name)
                    .map(|member| (Some(&member.key_span), &member.node)),
                (Step::Index(index), Value::Array(items)) => {
                    items.get(*index).map(|item| (None, &item.node))
                }
                _ => None,
            };
            let Some((next_key, next_node)) = next else {
                complete = false;
                break;
            };
            key = next_key;
            node = next_node;
        }
        let container = matches!(node.value, Value::Object(_) | Value::Array(_));
        match key {
            Some(span) if container || !complete || target == Target::Key => span.clone(),
            // Of something long, its first character is enough to point at.
            _ if container => node.span.start..node.span.start + 1,
            _ => node.span.clone(),
        }
    }

    pub fn get(&self, path: &[Step]) -> Option<&Node> {
        path.iter()
            .try_fold(&self.root, |node, step| match (step, &node.value) {
                (Step::Key(name), Value::Object(members)) => members
                    .iter()
                    .find(|member| member.key == *name)
                    .map(|member| &member.node),
                (Step::Index(index), Value::Array(items)) => {
                    items.get(*index).map(|item| &item.node)
                }
                _ => None,
            })
    }

    /// The same path as it was in the text, before anything was taken out.
    pub fn original(&self, path: &Path) -> Path {
        let steps = path.0.iter().enumerate().map(|(depth, step)| {
            let array = self.get(&path.0[..depth]).map(|node| &node.value);
            match (step, array) {
                (Step::Index(index), Some(Value::Array(items))) => {
                    Step::Index(items.get(*index).map_or(*index, |item| item.index))
                }
                _ => step.clone(),
            }
        });
        Path(steps.collect())
    }

    fn get_mut(&mut self, path: &[Step]) -> Option<&mut Node> {
        path.iter()
            .try_fold(&mut self.root, |node, step| match (step, &mut node.value) {
                (Step::Key(name), Value::Object(members)) => members
                    .iter_mut()
                    .find(|member| member.key == *name)
                    .map(|member| &mut member.node),
                (Step::Index(index), Value::Array(items)) => {
                    items.get_mut(*index).map(|item| &mut item.node)
                }
                _ => None,
            })
    }

    /// Takes out what stands at `path`, so that the rest can be looked at.
    pub fn remove(&mut self, path: &Path) {
        let Some((last, parent)) = path.0.split_last() else {
            self.unusable = true;
            return;
        };
        let Some(node) = self.get_mut(parent) else {
            self.unusable = true;
            return;
        };
        let span = node.span.clone();
        let key = match (last, &mut node.value) {
            (Step::Key(name), Value::Object(members)) => {
                members.retain(|member| member.key != *name);
                Some(name.clone())
            }
            (Step::Index(index), Value::Array(items)) if *index < items.len() => {
                items.remove(*index);
                None
            }
            // An error about something that is not there would come again and again.
            _ => {
                self.unusable = true;
                return;
            }
        };
        self.removed.push(Removed { parent: span, key });
    }

    /// Gives a misspelt key the name that was meant, unless that is there as well.
    pub fn rename(&mut self, path: &Path, to: &str) -> bool {
        let Some((Step::Key(from), parent)) = path.0.split_last() else {
            return false;
        };
        let from = from.clone();
        let Some(Value::Object(members)) = self.get_mut(parent).map(|node| &mut node.value) else {
            return false;
        };
        if members.iter().any(|member| member.key == to) {
            return false;
        }
        let Some(member) = members.iter_mut().find(|member| member.key == from) else {
            return false;
        };
        to.clone_into(&mut member.key);
        true
    }

    /// Puts the string that was meant in the place of a misspelt one.
    pub fn replace(&mut self, path: &Path, by: &str) -> bool {
        match self.get_mut(&path.0).map(|node| &mut node.value) {
            Some(Value::String(text)) => {
                by.clone_into(text);
                true
            }
            _ => false,
        }
    }

    /// Whether a member of that name was taken out of the object at `path`.
    pub fn lost_member(&self, path: &Path, key: &str) -> bool {
        self.get(&path.0).is_some_and(|node| {
            self.removed
                .iter()
                .any(|removed| removed.parent == node.span && removed.key.as_deref() == Some(key))
        })
    }

    /// Whether anything was taken out of what is at `path`.
    pub fn lost_any(&self, path: &Path) -> bool {
        self.get(&path.0).is_some_and(|node| {
            self.removed
                .iter()
                .any(|removed| removed.parent == node.span)
        })
    }

    /// Whether an element was taken out of the array at `path`.
    pub fn lost_element(&self, path: &Path) -> bool {
        self.get(&path.0).is_some_and(|node| {
            self.removed
                .iter()
                .any(|removed| removed.parent == node.span && removed.key.is_none())
        })
    }
}

/// The parser bounds the depth, so recursion is safe.
fn convert(value: ast::Value<'_>, path: &Path, diagnostics: &mut Vec<Diagnostic>) -> Node {
    let range = jsonc_parser::common::Ranged::range(&value);
    let value = match value {
        ast::Value::NullKeyword(_) => Value::Null,
        ast::Value::BooleanLit(lit) => Value::Bool(lit.value),
        ast::Value::NumberLit(lit) => Value::Number(lit.value.to_owned()),
        ast::Value::StringLit(lit) => Value::String(lit.value.into_owned()),
        ast::Value::Array(array) => Value::Array(
            array
                .elements
                .into_iter()
                .enumerate()
                .map(|(index, element)| Element {
                    index,
                    node: convert(element, &path.at(index), diagnostics),
                })
                .collect(),
        ),
        ast::Value::Object(object) => {
            let mut members: Vec<Member> = Vec::new();
            for property in object.properties {
                let range = jsonc_parser::common::Ranged::range(&property.name);
                let key = property.name.into_string();
                let path = path.at(key.as_str());
                let node = convert(property.value, &path, diagnostics);
                if members.iter().any(|member| member.key == key) {
                    diagnostics.push(Diagnostic {
                        severity: Severity::Error,
                        span: Some(range.start..range.end),
                        path,
                        message: format!("`{key}` occurs twice in the same object"),
                        help: Some("rename or remove one of them".into()),
                    });
                    continue;
                }
                members.push(Member {
                    key,
                    key_span: range.start..range.end,
                    node,
                });
            }
            Value::Object(members)
        }
    };
    Node {
        span: range.start..range.end,
        value,
    }
}

fn syntax_help(kind: &ParseErrorKind) -> Option<&'static str> {
    Some(match kind {
        ParseErrorKind::UnterminatedObject => "it starts here, and its `}` is missing",
        ParseErrorKind::UnterminatedArray => "it starts here, and its `]` is missing",
        ParseErrorKind::TrailingCommasNotAllowed => "remove the comma",
        ParseErrorKind::ExpectedComma => "put a comma before this",
        ParseErrorKind::CommentsNotAllowed => "remove the comment; `description` is for people",
        ParseErrorKind::ExpectedStringObjectProperty => "write the name in double quotes",
        ParseErrorKind::SingleQuotedStringsNotAllowed => "use double quotes",
        _ => return None,
    })
}

fn lower_first(text: &str) -> String {
    let mut chars = text.chars();
    chars
        .next()
        .map(|first| first.to_lowercase().chain(chars).collect())
        .unwrap_or_default()
}
