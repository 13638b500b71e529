//! One example request to the service: sent over HTTP, printed as a `curl` line, and its answer checked.

use std::fmt::Write as _;

use serde_json::Value;

/// Longer strings without blanks are shortened when an answer is shown: a JWS has 4 KB.
const MAX_SHOWN_CHARS: usize = 72;

pub(super) struct ExampleRequest {
    pub(super) title: String,
    pub(super) url: String,
    /// Sent as a Bearer token.
    pub(super) api_key: String,
    pub(super) body: ExampleBody,
    pub(super) expected_response: ExpectedResponse,
}

pub(super) enum ExampleBody {
    /// JSON, sent and printed unchanged.
    Json(String),
    /// JSON with a value that is too long to print. The printed line fetches it from `url`.
    Templated {
        before: String,
        /// The answer of `url`.
        value: String,
        /// A word for the shell.
        url: String,
        after: String,
    },
}

pub(super) struct ExpectedResponse {
    pub(super) status: u16,
    /// JSON pointers into the body, and the value expected there.
    pub(super) fields: Vec<(&'static str, Value)>,
}

pub(super) struct ExampleResponse {
    pub(super) status: u16,
    pub(super) body: Value,
}

impl ExampleRequest {
    pub(super) async fn send_request(
        &self,
        client: &reqwest::Client,
    ) -> Result<ExampleResponse, String> {
        let body = match &self.body {
            ExampleBody::Json(text) => text.clone(),
            ExampleBody::Templated {
                before,
                value,
                after,
                ..
            } => format!("{before}{value}{after}"),
        };
        let request = client
            .post(&self.url)
            .bearer_auth(&self.api_key)
            .header("Content-Type", "application/json")
            .body(body);
        let response = request.send().await.map_err(|error| error.to_string())?;
        let status = response.status().as_u16();
        let body = response
            .json()
            .await
            .map_err(|error| format!("the answer is not JSON: {error}"))?;
        Ok(ExampleResponse { status, body })
    }

    /// The same request as a line for a POSIX shell.
    pub(super) fn curl_command(&self) -> String {
        let (url, key) = (&self.url, &self.api_key);
        let mut line = format!("curl -s {url} -H 'Authorization: Bearer {key}'");
        match &self.body {
            ExampleBody::Json(text) => {
                let _ = write!(
                    line,
                    " -H 'Content-Type: application/json' -d {}",
                    shell_quote(text)
                );
            }
            ExampleBody::Templated {
                before, url, after, ..
            } => {
                let _ = write!(
                    line,
                    " -H 'Content-Type: application/json' -d {}\"$(curl -s {url})\"{}",
                    shell_quote(before),
                    shell_quote(after)
                );
            }
        }
        line
    }

    /// A line for each difference between the answer and the expected one.
    pub(super) fn find_mismatches(&self, response: &ExampleResponse) -> Vec<String> {
        let mut mismatches = Vec::new();
        if response.status != self.expected_response.status {
            mismatches.push(format!(
                "the status is {}, expected {}",
                response.status, self.expected_response.status
            ));
        }
        for (pointer, expected) in &self.expected_response.fields {
            let found = response.body.pointer(pointer).unwrap_or(&Value::Null);
            if found != expected {
                mismatches.push(format!("{pointer} is {found}, expected {expected}"));
            }
        }
        mismatches
    }
}

/// Quotes a text as one word of a POSIX shell.
fn shell_quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// Indented JSON with long strings shortened.
pub(super) fn format_json_shortened(body: &Value) -> String {
    serde_json::to_string_pretty(&shorten_long_strings(body)).unwrap_or_default()
}

fn shorten_long_strings(value: &Value) -> Value {
    match value {
        Value::String(text) if !text.contains(' ') && text.chars().count() > MAX_SHOWN_CHARS => {
            let head: String = text.chars().take(MAX_SHOWN_CHARS - 24).collect();
            Value::String(format!("{head}… ({} characters)", text.chars().count()))
        }
        Value::Array(items) => items.iter().map(shorten_long_strings).collect(),
        Value::Object(fields) => {
            // The store's raw answer is the longest part and the least useful to a first reader.
            let brief = |name: &str, value: &Value| match (name, value) {
                ("rawDecodedPayload" | "rawResponse", Value::Object(raw)) => {
                    Value::String(format!("… ({} fields as the store sent them)", raw.len()))
                }
                _ => shorten_long_strings(value),
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

/// Writes to stdout, also when it is no terminal.
pub(super) fn print_stdout(text: &str) {
    use std::io::Write as _;
    // `attesto dev | head` closes the pipe early, which is no failure.
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn example_request(body: ExampleBody) -> ExampleRequest {
        ExampleRequest {
            title: "Is it real?".into(),
            url: "http://127.0.0.1:1/v1".into(),
            api_key: "k".into(),
            body,
            expected_response: ExpectedResponse {
                status: 200,
                fields: vec![("/valid", json!(true))],
            },
        }
    }

    #[test]
    fn a_line_is_quoted_for_the_shell() {
        assert_eq!(
            example_request(ExampleBody::Json(r#"{"name":"it's"}"#.into())).curl_command(),
            r#"curl -s http://127.0.0.1:1/v1 -H 'Authorization: Bearer k' -H 'Content-Type: application/json' -d '{"name":"it'\''s"}'"#
        );
        let filled = ExampleBody::Templated {
            before: r#"{"signedTransaction":""#.into(),
            value: "abc".into(),
            url: "http://127.0.0.1:2/jws".into(),
            after: r#""}"#.into(),
        };
        assert_eq!(
            example_request(filled).curl_command(),
            r#"curl -s http://127.0.0.1:1/v1 -H 'Authorization: Bearer k' -H 'Content-Type: application/json' -d '{"signedTransaction":"'"$(curl -s http://127.0.0.1:2/jws)"'"}'"#
        );
    }

    #[test]
    fn a_wrong_answer_is_reported() {
        let request = example_request(ExampleBody::Json(String::new()));
        let answer = |status, body| ExampleResponse { status, body };
        assert!(
            request
                .find_mismatches(&answer(200, json!({"valid": true})))
                .is_empty()
        );
        assert_eq!(
            request.find_mismatches(&answer(200, json!({"valid": false}))),
            ["/valid is false, expected true"]
        );
        assert_eq!(
            request.find_mismatches(&answer(500, json!({}))),
            [
                "the status is 500, expected 200",
                "/valid is null, expected true"
            ]
        );
    }

    #[test]
    fn a_long_text_is_shortened_and_the_raw_payload_counted() {
        let long = "x".repeat(4000);
        let shown = format_json_shortened(
            &json!({"jws": long, "short": "kept", "rawResponse": {"a": 1, "b": 2}}),
        );
        assert!(shown.contains("… (4000 characters)") && shown.contains("kept"));
        assert!(
            shown.contains("… (2 fields as the store sent them)"),
            "{shown}"
        );
    }
}
