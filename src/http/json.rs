//! A request body that is a JSON object, read field by field, with everything that is wrong with it said at once.
//!
//! What a field may be stands once, in the [`FromJson`] of the type it becomes:
//!
//! ```
//! use attesto::http::json::{JsonFields, FromJson};
//!
//! struct Greeting { name: String, loud: bool }
//!
//! impl FromJson for Greeting {
//!     fn from_json(body: &mut JsonFields<'_>) -> Option<Self> {
//!         let name = body.required_string("name", 1..=40);
//!         let volume = body.optional_one_of("volume", &["normal", "loud"]);
//!         // Only now, when every field has been looked at, may a missing one end the reading.
//!         Some(Self { name: name?, loud: volume == Some("loud") })
//!     }
//! }
//! ```
//!
//! Unknown fields are ignored. `null` is the same as leaving a field out. Lengths count characters (Unicode
//! scalar values). No message repeats what was sent.

use std::borrow::Cow;
use std::fmt;
use std::ops::RangeInclusive;

use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde::de::{
    self, Deserialize, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor,
};
use serde_json::{Map, Value};

use super::body;
use super::body_budget::BodyAdmission;
use super::problem::{Issue, Problem};
use crate::base::json_text::check_storable;

pub use super::body::accept_notifications;

/// Extracts a body of up to 16 KiB, sent with an API key.
#[derive(Clone, Copy, Debug)]
pub struct JsonBody<T>(pub T);

/// What can be read from a JSON object.
pub trait FromJson: Sized {
    /// The fields that are read, as `a` or `a.b`; all others are skipped unread, and of an array or object that is named
    /// itself only its kind is kept. `None`: everything is read, and a name that stands twice in one object is refused.
    const FIELDS: Option<&'static [&'static str]> = None;

    /// Asks `body` for each field there may be. What comes back is used only when no issue was noted; `None` is for
    /// when an issue was, so look at every field before giving up.
    fn from_json(body: &mut JsonFields<'_>) -> Option<Self>;
}

impl<S: Send + Sync, T: FromJson> FromRequest<S> for JsonBody<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _state: &S) -> Result<Self, Problem> {
        receive_json(request, || None).await.map(Self)
    }
}

/// Extracts a body as [`JsonBody`] does, and the default if the request has none.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OptionalJsonBody<T>(pub(crate) T);

impl<S: Send + Sync, T: FromJson + Default> FromRequest<S> for OptionalJsonBody<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _state: &S) -> Result<Self, Problem> {
        receive_json(request, || Some(T::default())).await.map(Self)
    }
}

/// Receives the whole body and reads it. `when_empty` says what an empty one means, if it is not an error.
async fn receive_json<T: FromJson>(
    request: Request,
    when_empty: impl FnOnce() -> Option<T>,
) -> Result<T, Problem> {
    let (parts, body) = request.into_parts();
    let issues = check_headers(&parts.headers);
    let admission = parts.extensions.get::<BodyAdmission>().cloned();
    // The body is read even when its headers are wrong, so that the connection can be used again.
    let bytes = body::read_body(parts, body).await?;
    if bytes.is_empty()
        && let Some(meant) = when_empty()
    {
        return Ok(meant);
    }
    if !issues.is_empty() {
        return Err(Problem::invalid_request(&issues));
    }
    let read = read_json(&bytes);
    drop(bytes);
    // What was read of it is small, and a store may take seconds to answer.
    if let Some(admission) = admission {
        admission.release();
    }
    read
}

/// Reads the bytes of a body.
pub fn read_json<T: FromJson>(bytes: &[u8]) -> Result<T, Problem> {
    let object =
        parse_object(bytes, T::FIELDS).map_err(|issue| Problem::invalid_request(&[issue]))?;
    let mut issues = Vec::new();
    let read = T::from_json(&mut JsonFields {
        object: &object,
        path: String::new(),
        issues: &mut issues,
    });
    match read {
        Some(value) if issues.is_empty() => Ok(value),
        None if issues.is_empty() => Err(Problem::internal_error(
            "a body was refused without a reason",
        )),
        _ => Err(Problem::invalid_request(&issues)),
    }
}

/// What [`JsonAnswer`] makes room for: most answers fit.
const ANSWER_CAPACITY: usize = 8 * 1024;

/// An answer with the status 200 and this value as JSON. It is written into one buffer, which need not grow.
pub(crate) struct JsonAnswer<T>(pub(crate) T);

impl<T: Serialize> IntoResponse for JsonAnswer<T> {
    fn into_response(self) -> Response {
        let mut body = Vec::with_capacity(ANSWER_CAPACITY);
        match serde_json::to_writer(&mut body, &self.0) {
            Ok(()) => {
                let json = HeaderValue::from_static("application/json");
                ([(header::CONTENT_TYPE, json)], body).into_response()
            }
            Err(error) => Problem::internal_error(error).into_response(),
        }
    }
}

/// The type must be said, because a browser's form may send anything as `text/plain` without asking first.
fn check_headers(headers: &HeaderMap) -> Vec<Issue> {
    let mut issues = Vec::new();
    let is_json = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| {
            let essence = value.split(';').next().unwrap_or_default();
            essence.trim().eq_ignore_ascii_case("application/json")
        });
    if !is_json {
        issues.push(Issue::new("", "Content-Type must be application/json."));
    }
    let is_plain = headers
        .get_all(header::CONTENT_ENCODING)
        .iter()
        .all(|value| value.as_bytes().eq_ignore_ascii_case(b"identity"));
    if !is_plain {
        issues.push(Issue::new(
            "",
            "Content-Encoding is not supported: send the body as it is.",
        ));
    }
    issues
}

/// One JSON object and nothing else: valid UTF-8, nested no deeper than the parser goes, and such that it can be stored. Of all
/// `fields`, or of those that are named.
fn parse_object(
    bytes: &[u8],
    fields: Option<&'static [&'static str]>,
) -> Result<Map<String, Value>, Issue> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err(Issue::new(
            "",
            "The body is empty; it must be a JSON object.",
        ));
    }
    let text = std::str::from_utf8(bytes).map_err(|problem| {
        Issue::new(
            "",
            format!(
                "The body is not valid UTF-8, from byte {} on.",
                problem.valid_up_to()
            ),
        )
    })?;
    // Before the parser: it takes ten times as long, and builds what many small values need much memory for.
    check_storable(text)
        .map_err(|error| Issue::new("", format!("The body is not accepted: {error}.")))?;
    let parsed = match fields {
        None => serde_json::from_str(text).map(|UniqueKeysValue(value)| value),
        Some(fields) => parse_fields(text, fields),
    };
    match parsed {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(Issue::new("", "The body must be a JSON object.")),
        // The parser's messages are made of its own words and a position, never of what it read.
        Err(problem) => Err(Issue::new(
            "",
            format!("The body is not valid JSON: {problem}."),
        )),
    }
}

/// The value, with the named fields only.
fn parse_fields(text: &str, fields: &'static [&'static str]) -> Result<Value, serde_json::Error> {
    let mut parser = serde_json::Deserializer::from_str(text);
    let value = NamedFields {
        fields,
        path: String::new(),
    }
    .deserialize(&mut parser)?;
    parser.end()?;
    Ok(value)
}

/// Reads a value: of an object the fields that are named, of an array nothing.
struct NamedFields {
    fields: &'static [&'static str],
    /// Where the value is: empty at the top, else `a.b.`.
    path: String,
}

impl NamedFields {
    /// Whether a field, or something in it, is named.
    fn is_named(&self, path: &str) -> bool {
        self.fields.iter().any(|field| {
            let rest = field.strip_prefix(path);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        })
    }
}

impl<'de> DeserializeSeed<'de> for NamedFields {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for NamedFields {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Value::Array(Vec::new()))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(name) = entries.next_key::<Cow<'de, str>>()? {
            let path = format!("{}{name}", self.path);
            if !self.is_named(&path) {
                entries.next_value::<IgnoredAny>()?;
                continue;
            }
            let value = entries.next_value_seed(NamedFields {
                fields: self.fields,
                path: format!("{path}."),
            })?;
            if object.insert(name.into_owned(), value).is_some() {
                return Err(de::Error::custom("an object names the same field twice"));
            }
        }
        Ok(object.into())
    }
}

/// The fields of a JSON object, and what was found wrong with them.
#[derive(Debug)]
pub struct JsonFields<'a> {
    object: &'a Map<String, Value>,
    /// Where this object is: empty at the top, else `a.b.`.
    path: String,
    issues: &'a mut Vec<Issue>,
}

impl<'a> JsonFields<'a> {
    /// The fields of `object`; what is wrong with them is added to `issues`.
    pub fn new(object: &'a Map<String, Value>, issues: &'a mut Vec<Issue>) -> Self {
        Self {
            object,
            path: String::new(),
            issues,
        }
    }

    /// Notes that something is wrong with a field; with an empty `path`, with the object as a whole.
    pub fn add_issue(&mut self, path: &str, message: impl Into<String>) {
        let path = if path.is_empty() {
            self.path.trim_end_matches('.').to_owned()
        } else {
            format!("{}{path}", self.path)
        };
        self.issues.push(Issue::new(path, message));
    }

    /// Whether a field was given, whatever its value; `null` is not.
    pub fn has_field(&self, name: &str) -> bool {
        self.get_non_null(name).is_some()
    }

    /// A field as it is, for a reader who takes whatever comes; `null` is the same as none.
    pub fn get_value(&self, name: &str) -> Option<&'a Value> {
        self.get_non_null(name)
    }

    /// A string whose number of characters lies in `length`.
    pub fn optional_string(&mut self, name: &str, length: RangeInclusive<usize>) -> Option<String> {
        let text = self.optional_str(name)?;
        if length.contains(&text.chars().count()) {
            return Some(text.to_owned());
        }
        let (least, most) = (length.start(), length.end());
        self.add_issue(name, format!("must have {least} to {most} characters"));
        None
    }

    /// A [string](Self::optional_string) that must be there.
    pub fn required_string(&mut self, name: &str, length: RangeInclusive<usize>) -> Option<String> {
        self.require_field(name)
            .then(|| self.optional_string(name, length))?
    }

    /// One of a few words.
    pub fn optional_one_of(&mut self, name: &str, words: &[&'static str]) -> Option<&'static str> {
        let text = self.optional_str(name)?;
        let word = words.iter().find(|word| **word == text).copied();
        if word.is_none() {
            let quoted: Vec<_> = words.iter().map(|word| format!("\"{word}\"")).collect();
            self.add_issue(name, format!("must be {}", join_with_or(&quoted)));
        }
        word
    }

    /// One of the names of an enum's variants.
    pub(crate) fn optional_enum<T>(&mut self, name: &str) -> Option<T>
    where
        T: strum::VariantNames + std::str::FromStr,
    {
        self.optional_one_of(name, T::VARIANTS)?.parse().ok()
    }

    /// A whole number in `range`.
    pub(crate) fn optional_integer(
        &mut self,
        name: &str,
        range: RangeInclusive<u32>,
    ) -> Option<u32> {
        let number = self.get_non_null(name)?.as_u64();
        let number = number.and_then(|number| u32::try_from(number).ok());
        let number = number.filter(|number| range.contains(number));
        if number.is_none() {
            let (least, most) = (range.start(), range.end());
            self.add_issue(
                name,
                format!("must be a whole number from {least} to {most}"),
            );
        }
        number
    }

    /// A UUID, as five groups of hexadecimal digits; given back in lower case, which is how two of them are compared.
    pub fn optional_uuid(&mut self, name: &str) -> Option<String> {
        let uuid = parse_uuid(self.optional_str(name)?);
        if uuid.is_none() {
            self.add_issue(
                name,
                "must be a UUID, like 7b1c8e0a-5c1e-4f4e-9a54-0d6f5a3b2c1d",
            );
        }
        uuid
    }

    /// `true` or `false`.
    pub fn optional_boolean(&mut self, name: &str) -> Option<bool> {
        let value = self.get_non_null(name)?.as_bool();
        if value.is_none() {
            self.add_issue(name, "must be true or false");
        }
        value
    }

    /// An object inside this one, read by `read`.
    pub fn optional_object<T>(
        &mut self,
        name: &str,
        read: impl FnOnce(&mut JsonFields<'_>) -> Option<T>,
    ) -> Option<T> {
        if let Value::Object(object) = self.get_non_null(name)? {
            return read(&mut JsonFields {
                object,
                path: format!("{}{name}.", self.path),
                issues: self.issues,
            });
        }
        self.add_issue(name, "must be an object");
        None
    }

    /// Whether a field is there; notes an issue when it is not.
    pub fn require_field(&mut self, name: &str) -> bool {
        let given = self.has_field(name);
        if !given {
            self.add_issue(name, "is missing");
        }
        given
    }

    fn get_non_null(&self, name: &str) -> Option<&'a Value> {
        self.object.get(name).filter(|value| !value.is_null())
    }

    fn optional_str(&mut self, name: &str) -> Option<&'a str> {
        let text = self.get_non_null(name)?.as_str();
        if text.is_none() {
            self.add_issue(name, "must be a string");
        }
        text
    }
}

/// `"a"`, `"a" or "b"`, `"a", "b" or "c"`.
fn join_with_or(words: &[String]) -> String {
    match words {
        [] => String::new(),
        [one] => one.clone(),
        [first @ .., last] => format!("{} or {last}", first.join(", ")),
    }
}

/// A UUID in lower case, if the text is one: five groups of hexadecimal digits.
pub(crate) fn parse_uuid(text: &str) -> Option<String> {
    let is_uuid = text.len() == 36
        && text.bytes().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        });
    is_uuid.then(|| text.to_ascii_lowercase())
}

/// A JSON value in which no object names a field twice: two programs that read such a body can differ on what it says.
struct UniqueKeysValue(Value);

impl<'de> Deserialize<'de> for UniqueKeysValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(UniqueKeysVisitor)
    }
}

struct UniqueKeysVisitor;

impl<'de> Visitor<'de> for UniqueKeysVisitor {
    type Value = UniqueKeysValue;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<UniqueKeysValue, E> {
        Ok(UniqueKeysValue(Value::Null))
    }

    fn visit_bool<E>(self, value: bool) -> Result<UniqueKeysValue, E> {
        Ok(UniqueKeysValue(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<UniqueKeysValue, E> {
        Ok(UniqueKeysValue(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<UniqueKeysValue, E> {
        Ok(UniqueKeysValue(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<UniqueKeysValue, E> {
        Ok(UniqueKeysValue(value.into()))
    }

    fn visit_str<E>(self, value: &str) -> Result<UniqueKeysValue, E> {
        Ok(UniqueKeysValue(value.into()))
    }

    fn visit_string<E>(self, value: String) -> Result<UniqueKeysValue, E> {
        Ok(UniqueKeysValue(value.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<UniqueKeysValue, A::Error> {
        let mut list = Vec::new();
        while let Some(UniqueKeysValue(item)) = items.next_element()? {
            list.push(item);
        }
        Ok(UniqueKeysValue(list.into()))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<UniqueKeysValue, A::Error> {
        let mut object = Map::new();
        while let Some((name, UniqueKeysValue(value))) =
            entries.next_entry::<String, UniqueKeysValue>()?
        {
            if object.insert(name, value).is_some() {
                return Err(de::Error::custom("an object names the same field twice"));
            }
        }
        Ok(UniqueKeysValue(object.into()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// One field of each kind.
    #[derive(Debug, PartialEq)]
    struct Everything {
        name: String,
        nick: Option<String>,
        kind: Option<&'static str>,
        user: Option<String>,
        inner: Option<bool>,
    }

    impl FromJson for Everything {
        fn from_json(body: &mut JsonFields<'_>) -> Option<Self> {
            let name = body.required_string("name", 1..=5);
            let nick = body.optional_string("nick", 1..=5);
            let kind = body.optional_one_of("kind", &["a", "b", "c"]);
            let user = body.optional_uuid("user");
            let inner = body.optional_object("inner", |inner| inner.optional_boolean("flag"));
            Some(Self {
                name: name?,
                nick,
                kind,
                user,
                inner,
            })
        }
    }

    fn read_issues(body: &str) -> Vec<(String, String)> {
        let problem = read_json::<Everything>(body.as_bytes()).expect_err("it must be refused");
        let issues = problem.details["issues"].as_array().unwrap();
        issues
            .iter()
            .map(|issue| {
                let text = |name: &str| issue[name].as_str().unwrap().to_owned();
                (text("path"), text("message"))
            })
            .collect()
    }

    #[test]
    fn a_good_body_is_read() {
        let body = json!({
            "name": "Zoë😀", "nick": null, "kind": "b", "user": "7B1C8E0A-5C1E-4F4E-9A54-0D6F5A3B2C1D",
            "inner": {"flag": true}, "unknown": [1, {"deep": true}],
        });
        assert_eq!(
            read_json::<Everything>(body.to_string().as_bytes()).unwrap(),
            Everything {
                name: "Zoë😀".into(),
                nick: None,
                kind: Some("b"),
                user: Some("7b1c8e0a-5c1e-4f4e-9a54-0d6f5a3b2c1d".into()),
                inner: Some(true),
            }
        );
    }

    #[test]
    fn everything_wrong_is_said_at_once() {
        let body =
            json!({"nick": "toolong", "kind": 7, "user": "not-a-uuid", "inner": {"flag": 1.5}});
        let expected = [
            ("name", "is missing"),
            ("nick", "must have 1 to 5 characters"),
            ("kind", "must be a string"),
            (
                "user",
                "must be a UUID, like 7b1c8e0a-5c1e-4f4e-9a54-0d6f5a3b2c1d",
            ),
            ("inner.flag", "must be true or false"),
        ]
        .map(|(path, message)| (path.to_owned(), message.to_owned()));
        assert_eq!(read_issues(&body.to_string()), expected);
        assert_eq!(
            read_issues(r#"{"name":"x","kind":"d"}"#),
            [("kind".to_owned(), r#"must be "a", "b" or "c""#.to_owned())]
        );
    }

    #[test]
    fn a_body_that_is_no_object_is_explained_without_repeating_it() {
        let deep = "[".repeat(200);
        for (body, part) in [
            ("", "is empty"),
            (" \r\n", "is empty"),
            ("[]", "must be a JSON object"),
            ("\"hunter2\"", "must be a JSON object"),
            ("null", "must be a JSON object"),
            ("hunter2", "at line 1 column 1"),
            ("{\"a\":1}\n hunter2", "at line 2 column 2"),
            ("{\"a\":\n\"hunter2", "at line 2 column 8"),
            ("{\"a\": NaN}", "at line 1 column 7"),
            ("{'a': 1}", "at line 1 column 2"),
            ("{\"a\": 1e999}", "number out of range"),
            ("{\"a\": \"\\ud800\"}", "hex escape"),
            ("{\"hunter2\":1,\"hunter2\":1}", "the same field twice"),
            (
                "{\"a\":{\"hunter2\":1,\"hunter2\":1}}",
                "the same field twice",
            ),
            ("\u{feff}{}", "at line 1 column 1"),
            (deep.as_str(), "recursion limit"),
        ] {
            let issues = read_issues(body);
            assert_eq!(issues.len(), 1);
            let (path, message) = &issues[0];
            assert_eq!(path, "");
            assert!(message.contains(part), "{body:?} gives {message:?}");
            assert!(!message.contains("hunter2"), "{message:?}");
        }
        let problem = read_json::<Everything>(b"{\"a\":\"\xff\"}").unwrap_err();
        assert!(
            problem.message.contains("UTF-8, from byte 6"),
            "{}",
            problem.message
        );
    }

    /// Some fields of a large body.
    struct Parts {
        kind: Option<String>,
        id: Option<String>,
        is_list: bool,
    }

    impl FromJson for Parts {
        const FIELDS: Option<&'static [&'static str]> = Some(&["kind", "list", "message.id"]);

        fn from_json(body: &mut JsonFields<'_>) -> Option<Self> {
            Some(Self {
                kind: body.optional_string("kind", 1..=9),
                id: body.optional_object("message", |message| message.optional_string("id", 1..=9)),
                is_list: body.get_value("list") == Some(&json!([])),
            })
        }
    }

    #[test]
    fn fields_that_are_not_named_are_skipped_and_must_be_json() {
        let read = |text: &str| read_json::<Parts>(text.as_bytes());
        let parts = read(
            r#"{"kind":"a","other":{"kind":1,"x":[{}]},"list":[1,{"kind":2}],
                "message":{"id":"b","data":{"id":[1]}},"id":7}"#,
        )
        .expect("it is good");
        assert_eq!(parts.kind.as_deref(), Some("a"));
        assert_eq!(parts.id.as_deref(), Some("b"));
        assert!(parts.is_list);
        for (text, part) in [
            (r#"{"other":nonsense}"#, "not valid JSON"),
            (r#"{"other":[1,}"#, "not valid JSON"),
            (r#"{"kind":"a"} more"#, "not valid JSON"),
            (r#"[{"kind":"a"}]"#, "must be a JSON object"),
            (r#"{"kind":"a","kind":"b"}"#, "the same field twice"),
            (r#"{"message":{"id":"a","id":"b"}}"#, "the same field twice"),
            (r#"{"other":1e-400000}"#, "exponent"),
            (r#"{"other":"\ud800"}"#, "surrogate"),
        ] {
            let problem = read(text).map(|_| ()).expect_err("it is refused");
            assert!(
                problem.message.contains(part),
                "{text}: {}",
                problem.message
            );
        }
        let problem = read(r#"{"message":7}"#).map(|_| ()).expect_err("no object");
        assert_eq!(problem.details["issues"][0]["path"], "message");
    }

    #[test]
    fn the_type_must_be_json_and_the_encoding_none() {
        let count = |set: &[(&'static str, &'static str)]| {
            let headers = set
                .iter()
                .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
                .collect();
            check_headers(&headers).len()
        };
        assert_eq!(count(&[("content-type", "application/json")]), 0);
        assert_eq!(
            count(&[("content-type", "Application/JSON; charset=utf-8")]),
            0
        );
        assert_eq!(count(&[]), 1);
        assert_eq!(count(&[("content-type", "text/plain")]), 1);
        assert_eq!(count(&[("content-type", "application/jsonx")]), 1);
        assert_eq!(
            count(&[
                ("content-type", "application/json"),
                ("content-encoding", "gzip")
            ]),
            1
        );
        assert_eq!(
            count(&[
                ("content-type", "application/json"),
                ("content-encoding", "identity")
            ]),
            0
        );
        assert_eq!(count(&[("content-encoding", "br")]), 2);
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read_json::<Everything>(&bytes);
        }

        #[test]
        fn what_serde_json_reads_is_read_the_same(text in r#"[\[\]{}:,0-9a"\\ ]{0,30}"#) {
            let theirs = serde_json::from_str::<Value>(&text);
            let ours = serde_json::from_str::<UniqueKeysValue>(&text);
            if let Ok(ours) = ours {
                prop_assert_eq!(ours.0, theirs.unwrap());
            }
        }
    }
}
