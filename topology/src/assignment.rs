//! Attributes on a command line: `delay=5ms`, `queue.kind=codel`.

use serde_json::{Map, Value};
use thiserror::Error;

/// Why a word sets nothing.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum AssignmentError {
    /// There is no `=`, or nothing before it.
    #[error("`{0}` sets nothing: write ATTRIBUTE=VALUE, as in delay=5ms")]
    NoValue(String),
    /// The attribute has been set before, or is set as a value and as an object.
    #[error("`{0}` is set twice")]
    Twice(String),
}

/// The object that a file would have for `words`, each an `ATTRIBUTE=VALUE`. A dot leads into an object: `queue.kind=codel` is
/// `{"queue": {"kind": "codel"}}`. What JSON takes for a truth value, a number or an object is one, everything else is a text.
///
/// # Errors
/// The first word that cannot be meant.
pub fn object<'a>(
    words: impl IntoIterator<Item = &'a str>,
) -> Result<Map<String, Value>, AssignmentError> {
    let mut object = Value::Object(Map::new());
    for word in words {
        let (path, value) = word
            .split_once('=')
            .filter(|(path, _)| path.split('.').all(|key| !key.is_empty()))
            .ok_or_else(|| AssignmentError::NoValue(word.to_owned()))?;
        let twice = || AssignmentError::Twice(path.to_owned());
        let mut place = &mut object;
        for key in path.split('.') {
            if place.is_null() {
                *place = Value::Object(Map::new());
            }
            let inside = place.as_object_mut().ok_or_else(twice)?;
            place = inside.entry(key).or_insert(Value::Null);
        }
        if !place.is_null() {
            return Err(twice());
        }
        *place = match serde_json::from_str(value) {
            Ok(value @ (Value::Bool(_) | Value::Number(_) | Value::Object(_))) => value,
            _ => value.into(),
        };
    }
    match object {
        Value::Object(object) => Ok(object),
        _ => unreachable!("it was made an object, and only its members are set"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn words_become_what_the_file_would_have() {
        let words = [
            "delay=5ms",
            "up=false",
            "ber=1e-9",
            "queue.kind=codel",
            "queue.limit=5packets",
            "forward.loss.every=3",
            r#"backward={"rate":"1Mbit"}"#,
        ];
        let expected = json!({
            "delay": "5ms",
            "up": false,
            "ber": 1e-9,
            "queue": {"kind": "codel", "limit": "5packets"},
            "forward": {"loss": {"every": 3}},
            "backward": {"rate": "1Mbit"},
        });
        assert_eq!(Value::Object(object(words).unwrap()), expected);
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for bad in ["delay", "=5ms", "queue.=1", ""] {
            assert_eq!(
                object([bad]),
                Err(AssignmentError::NoValue(bad.to_owned())),
                "{bad}"
            );
        }
        for words in [
            ["delay=1ms", "delay=2ms"],
            ["queue=codel", "queue.limit=5packets"],
            ["queue.limit=5packets", "queue=codel"],
        ] {
            assert!(
                matches!(object(words), Err(AssignmentError::Twice(_))),
                "{words:?}"
            );
        }
    }
}
