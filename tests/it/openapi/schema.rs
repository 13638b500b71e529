//! The part of JSON Schema that the description uses, to validate examples and answers. An unknown
//! keyword is an error, so that nothing passes unchecked.

use serde_json::{Map, Value};

/// The violations of `schema` in `value`, each with its path; references are looked up in
/// `document`. A field that is not described is a violation too, unless the object describes no
/// fields.
pub(crate) fn objections(schema: &Value, value: &Value, document: &Value) -> Vec<String> {
    let mut found = Vec::new();
    judge(schema, value, document, "", &mut found);
    found
}

fn judge(schema: &Value, value: &Value, document: &Value, at: &str, found: &mut Vec<String>) {
    let mut object = |why: String| found.push(format!("{at}: {why}"));
    let Some(words) = schema.as_object() else {
        return object(format!("{schema} is no schema"));
    };
    for (word, bound) in words {
        let number = || bound.as_f64().expect("a number");
        #[expect(clippy::cast_precision_loss, reason = "they are short")]
        let length = || {
            value
                .as_str()
                .map_or(1.0, |text| text.chars().count() as f64)
        };
        let holds = match word.as_str() {
            "type" => match bound {
                Value::Array(kinds) => kinds.iter().any(|kind| is_a(value, kind)),
                kind => is_a(value, kind),
            },
            "enum" => bound.as_array().expect("a list").contains(value),
            "minLength" => !value.is_string() || length() >= number(),
            "maxLength" => !value.is_string() || length() <= number(),
            "minimum" => value.as_f64().is_none_or(|it| it >= number()),
            "maximum" => value.as_f64().is_none_or(|it| it <= number()),
            "format" => match (bound.as_str(), value.as_str()) {
                (Some("date-time"), Some(text)) => {
                    attesto::base::clock::Timestamp::parse(text).is_some()
                }
                _ => true,
            },
            "$ref" => {
                let pointer = bound.as_str().and_then(|it| it.strip_prefix('#'));
                let target = pointer.and_then(|pointer| document.pointer(pointer));
                match target {
                    Some(target) => {
                        judge(target, value, document, at, found);
                        true
                    }
                    None => false,
                }
            }
            "oneOf" => {
                let choices = bound.as_array().expect("a list");
                let complaints = |choice| objections(choice, value, document);
                let all: Vec<_> = choices.iter().map(complaints).collect();
                if all.iter().filter(|one| one.is_empty()).count() != 1 {
                    found.push(format!("{at}: not exactly one of: {all:?}"));
                }
                true
            }
            "required" => {
                let names = bound.as_array().expect("a list").iter();
                names
                    .filter_map(Value::as_str)
                    .all(|name| value.get(name).is_some())
            }
            "properties" => {
                properties(
                    bound.as_object().expect("fields"),
                    value,
                    document,
                    at,
                    found,
                );
                true
            }
            "items" => {
                for (position, item) in value.as_array().into_iter().flatten().enumerate() {
                    judge(bound, item, document, &format!("{at}[{position}]"), found);
                }
                true
            }
            "additionalProperties" => {
                for (name, field) in value.as_object().into_iter().flatten() {
                    judge(bound, field, document, &format!("{at}.{name}"), found);
                }
                true
            }
            // bin/check-api checks regular expressions.
            "description" | "examples" | "pattern" | "propertyNames" => true,
            unknown => panic!("{at}: this judge does not know {unknown}"),
        };
        if !holds {
            found.push(format!("{at}: {value} does not hold {word} {bound}"));
        }
    }
}

fn properties(
    described: &Map<String, Value>,
    value: &Value,
    document: &Value,
    at: &str,
    found: &mut Vec<String>,
) {
    for (name, field) in value.as_object().into_iter().flatten() {
        let at = format!("{at}.{name}");
        match described.get(name) {
            Some(schema) => judge(schema, field, document, &at, found),
            None => found.push(format!("{at}: is not described")),
        }
    }
}

fn is_a(value: &Value, kind: &Value) -> bool {
    match kind.as_str().expect("a type") {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("{other} is no type"),
    }
}
