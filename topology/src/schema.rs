//! The JSON schema of the topology file.

use schemars::Schema;
use schemars::generate::SchemaSettings;
use schemars::transform::{RecursiveTransform, Transform};
use serde_json::Value;

use crate::file::Lab;

/// The JSON schema (draft 2020-12) of the topology file, as pretty-printed JSON that ends with a newline.
///
/// It describes the shape; ranges, names and references are checked only by [`Topology::load`](crate::model::Topology::load).
pub fn json_schema() -> String {
    let mut schema = SchemaSettings::draft2020_12()
        .into_generator()
        .into_root_schema_for::<Lab>();
    RecursiveTransform(without_null).transform(&mut schema);
    format!("{:#}\n", schema.to_value())
}

/// An optional field may be left out, but is never `null`.
fn without_null(schema: &mut Schema) {
    let Some(object) = schema.as_object_mut() else {
        return;
    };
    object.retain(|key, value| !(key == "default" && value.is_null()));
    if let Some(Value::Array(types)) = object.get_mut("type") {
        types.retain(|kind| kind != "null");
        if let [only] = types.as_slice() {
            let only = only.clone();
            object.insert("type".to_owned(), only);
        }
    }
    if let Some(Value::Array(choices)) = object.get_mut("anyOf") {
        choices.retain(|choice| choice.get("type").is_none_or(|kind| kind != "null"));
        if let [Value::Object(only)] = choices.as_slice() {
            let only = only.clone();
            object.remove("anyOf");
            object.extend(only);
        }
    }
}
