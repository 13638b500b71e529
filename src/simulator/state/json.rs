//! JSON objects as the stores write them: an absent field is left out, not null.

use serde_json::{Map, Value};

/// The fields of an object, without those that are null.
pub(in crate::simulator) fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(mut fields) => {
            fields.retain(|_, value| !value.is_null());
            fields
        }
        _ => Map::new(),
    }
}

/// Adds fields, replaces those that exist, and removes those that are null in `fields`.
pub(in crate::simulator) fn override_fields(
    object: &mut Map<String, Value>,
    fields: &Map<String, Value>,
) {
    for (name, value) in fields {
        if value.is_null() {
            object.remove(name);
        } else {
            object.insert(name.clone(), value.clone());
        }
    }
}
