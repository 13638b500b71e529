//! One question to our own server: asked over HTTP, shown as the `curl` line that asks the same, and judged.

use std::fmt::Write as _;

use serde_json::Value;

/// A word longer than this is shortened when an answer is shown: a JWS is 4 KB of noise to a reader.
const LONGEST_SHOWN: usize = 72;

/// A question and what its answer must be.
pub(super) struct Question {
    /// The question in words.
    pub(super) title: String,
    /// Where it goes.
    pub(super) url: String,
    /// Sent as a Bearer token.
    pub(super) key: String,
    /// The body.
    pub(super) body: Body,
    /// The status and the fields that make the answer the right one.
    pub(super) expected: Expected,
}

/// What is sent.
pub(super) enum Body {
    /// A JSON text, sent and printed as it is.
    Json(String),
    /// A JSON text with a hole for something too long to print. The printed line fetches it from `url`.
    Filled {
        /// The text before the hole.
        before: String,
        /// What `url` answered just now.
        value: String,
        /// Where the printed line gets it.
        url: String,
        /// The text after the hole.
        after: String,
    },
}

/// What a right answer looks like.
pub(super) struct Expected {
    pub(super) status: u16,
    /// Pointers into the answer and the value there.
    pub(super) fields: Vec<(&'static str, Value)>,
}

/// What came back.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Value,
}

impl Question {
    /// Asks over HTTP.
    pub(super) async fn ask(&self, client: &reqwest::Client) -> Result<Answer, String> {
        let body = match &self.body {
            Body::Json(text) => text.clone(),
            Body::Filled {
                before,
                value,
                after,
                ..
            } => format!("{before}{value}{after}"),
        };
        let request = client
            .post(&self.url)
            .bearer_auth(&self.key)
            .header("Content-Type", "application/json")
            .body(body);
        let response = request.send().await.map_err(|error| error.to_string())?;
        let status = response.status().as_u16();
        let body = response
            .json()
            .await
            .map_err(|error| format!("the answer is not JSON: {error}"))?;
        Ok(Answer { status, body })
    }

    /// The same question as a line for a POSIX shell that works exactly as it stands.
    pub(super) fn curl(&self) -> String {
        let (url, key) = (&self.url, &self.key);
        let mut line = format!("curl -s {url} -H 'Authorization: Bearer {key}'");
        match &self.body {
            Body::Json(text) => {
                let _ = write!(
                    line,
                    " -H 'Content-Type: application/json' -d {}",
                    quoted(text)
                );
            }
            Body::Filled {
                before, url, after, ..
            } => {
                let _ = write!(
                    line,
                    " -H 'Content-Type: application/json' -d {}\"$(curl -s {url})\"{}",
                    quoted(before),
                    quoted(after)
                );
            }
        }
        line
    }

    /// What is wrong with the answer; nothing when it is the right one.
    pub(super) fn objections(&self, answer: &Answer) -> Vec<String> {
        let mut objections = Vec::new();
        if answer.status != self.expected.status {
            objections.push(format!(
                "the status is {}, expected {}",
                answer.status, self.expected.status
            ));
        }
        for (pointer, expected) in &self.expected.fields {
            let found = answer.body.pointer(pointer).unwrap_or(&Value::Null);
            if found != expected {
                objections.push(format!("{pointer} is {found}, expected {expected}"));
            }
        }
        objections
    }
}

/// A text as one word of a POSIX shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// An answer as a person reads it: indented, long texts shortened.
pub(super) fn shown(body: &Value) -> String {
    serde_json::to_string_pretty(&shortened(body)).unwrap_or_default()
}

fn shortened(value: &Value) -> Value {
    match value {
        Value::String(text) if !text.contains(' ') && text.chars().count() > LONGEST_SHOWN => {
            let head: String = text.chars().take(LONGEST_SHOWN - 24).collect();
            Value::String(format!("{head}… ({} characters)", text.chars().count()))
        }
        Value::Array(items) => items.iter().map(shortened).collect(),
        Value::Object(fields) => {
            // What the store sent, whole, is the least useful part to a first reader, and the longest.
            let brief = |name: &str, value: &Value| match (name, value) {
                ("rawDecodedPayload" | "rawResponse", Value::Object(raw)) => {
                    Value::String(format!("… ({} fields as the store sent them)", raw.len()))
                }
                _ => shortened(value),
            };
            Value::Object(
                fields
                    .iter()
                    .map(|(name, value)| (name.clone(), brief(name, value)))
                    .collect(),
            )
        }
        other => other.clone(),
    }
}

/// Standard output is where the questions go, whoever reads it.
pub(super) fn say(text: &str) {
    use std::io::Write as _;
    // Whoever reads may have read enough: `attesto dev | head`.
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn question(body: Body) -> Question {
        Question {
            title: "Is it real?".into(),
            url: "http://127.0.0.1:1/v1".into(),
            key: "k".into(),
            body,
            expected: Expected {
                status: 200,
                fields: vec![("/valid", json!(true))],
            },
        }
    }

    #[test]
    fn a_line_is_quoted_for_the_shell() {
        assert_eq!(
            question(Body::Json(r#"{"name":"it's"}"#.into())).curl(),
            r#"curl -s http://127.0.0.1:1/v1 -H 'Authorization: Bearer k' -H 'Content-Type: application/json' -d '{"name":"it'\''s"}'"#
        );
        let filled = Body::Filled {
            before: r#"{"signedTransaction":""#.into(),
            value: "abc".into(),
            url: "http://127.0.0.1:2/jws".into(),
            after: r#""}"#.into(),
        };
        assert_eq!(
            question(filled).curl(),
            r#"curl -s http://127.0.0.1:1/v1 -H 'Authorization: Bearer k' -H 'Content-Type: application/json' -d '{"signedTransaction":"'"$(curl -s http://127.0.0.1:2/jws)"'"}'"#
        );
    }

    #[test]
    fn a_wrong_answer_is_objected_to() {
        let question = question(Body::Json(String::new()));
        let answer = |status, body| Answer { status, body };
        assert!(
            question
                .objections(&answer(200, json!({"valid": true})))
                .is_empty()
        );
        assert_eq!(
            question.objections(&answer(200, json!({"valid": false}))),
            ["/valid is false, expected true"]
        );
        assert_eq!(
            question.objections(&answer(500, json!({}))),
            [
                "the status is 500, expected 200",
                "/valid is null, expected true"
            ]
        );
    }

    #[test]
    fn a_long_text_is_shortened_and_the_raw_payload_counted() {
        let long = "x".repeat(4000);
        let shown = shown(&json!({"jws": long, "short": "kept", "rawResponse": {"a": 1, "b": 2}}));
        assert!(shown.contains("… (4000 characters)") && shown.contains("kept"));
        assert!(
            shown.contains("… (2 fields as the store sent them)"),
            "{shown}"
        );
    }
}
