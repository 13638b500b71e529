//! The questions that still take an answer, those first whose deadline is nearest: for the route, the command and the doctor.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::Serialize;
use utoipa::ToSchema;

use super::store;
use crate::base::clock::Timestamp;
use crate::base::id::TenantId;
use crate::db::{Database, Error};
use crate::events::EventSource;

/// The most questions in one answer.
pub(crate) const MAX_PAGE_QUESTIONS: usize = 100;
/// How many questions an answer has if the request does not say it.
pub(crate) const DEFAULT_PAGE_QUESTIONS: usize = 50;

/// A question of a store about a refund that still takes an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = answers::RefundQuestion)]
pub(crate) struct OpenQuestion {
    /// The tenant whose purchase it is about.
    #[schema(value_type = String)]
    pub(crate) tenant_id: TenantId,
    /// The store that asks: `apple` or `google`.
    #[schema(value_type = String, examples("google"))]
    pub(crate) source: EventSource,
    /// The purchase, as `POST /v1/apple/consumption` names it. Null for Google.
    #[schema(examples("2000000123456789"))]
    pub(crate) transaction_id: Option<String>,
    /// The purchase, as `POST /v1/google/refund-review` names it. Null for Apple.
    #[schema(examples("GPA.3345-1234-5678-90123"))]
    pub(crate) order_id: Option<String>,
    /// What Google calls this question. Null for Apple.
    #[schema(examples("AO-J1OxKq3ld"))]
    pub(crate) pending_refund_token: Option<String>,
    /// Where Apple asks: `production` or `sandbox`. Null for Google.
    #[schema(examples("production"))]
    pub(crate) environment: Option<String>,
    /// When the question was received.
    #[schema(value_type = String, format = DateTime)]
    pub(crate) asked_at: Timestamp,
    /// The store takes no answer after that time.
    #[schema(value_type = String, format = DateTime)]
    pub(crate) answer_by: Timestamp,
    /// How many seconds there are until then, rounded down.
    pub(crate) remaining_seconds: u64,
    /// Whether the tenant has a default answer for this store.
    pub(crate) has_default_answer: bool,
    /// When the default answer is sent, or tried again, unless the backend answers before. Null where there is none, and where the
    /// store has refused it.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub(crate) default_answer_at: Option<Timestamp>,
    /// Why the default answer was not taken, if it was tried.
    pub(crate) default_answer_error: Option<String>,
}

/// Open questions in the order of their deadlines.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = answers::RefundQuestions)]
pub(crate) struct OpenQuestionPage {
    /// At most `limit` of them.
    pub(crate) questions: Vec<OpenQuestion>,
    /// Where the list goes on: send it as `after` in the next request. Null at the end of the list.
    #[schema(examples(
        "1775917330000000-9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
    ))]
    pub(crate) next: Option<String>,
}

/// Which questions are read.
#[derive(Clone, Debug, Default)]
pub(crate) struct OpenQuestionQuery {
    /// `None`: of all tenants.
    pub(crate) tenant: Option<TenantId>,
    /// Only those whose deadline is at most so far away.
    pub(crate) due_within: Option<Duration>,
    /// The cursor of the answer before. `None`: from the nearest deadline on.
    pub(crate) after: Option<QuestionCursor>,
    /// The most questions of the answer.
    pub(crate) limit: usize,
}

/// The last question of an answer. As text: its deadline in microseconds since 1970, a dash, and the hash of its id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct QuestionCursor {
    pub(super) answer_by: time::OffsetDateTime,
    pub(super) question_hash: Vec<u8>,
}

/// A text is not a cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "is not a cursor: send `next` of an earlier answer, or leave it out to begin with the nearest deadline"
)]
pub(crate) struct MalformedCursorError;

impl FromStr for QuestionCursor {
    type Err = MalformedCursorError;

    fn from_str(text: &str) -> Result<Self, MalformedCursorError> {
        let (micros, hash) = text.split_once('-').ok_or(MalformedCursorError)?;
        let is_number = !micros.starts_with('0') && micros.bytes().all(|b| b.is_ascii_digit());
        let micros: Option<i128> = micros.parse().ok().filter(|_| is_number);
        let answer_by = micros
            .and_then(|micros| micros.checked_mul(1000))
            .and_then(|nanos| time::OffsetDateTime::from_unix_timestamp_nanos(nanos).ok());
        Ok(Self {
            answer_by: answer_by.ok_or(MalformedCursorError)?,
            question_hash: parse_hash(hash).ok_or(MalformedCursorError)?,
        })
    }
}

impl fmt::Display for QuestionCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let micros = self.answer_by.unix_timestamp_nanos() / 1000;
        let hash = crate::crypto::token::encode_hex(&self.question_hash);
        write!(f, "{micros}-{hash}")
    }
}

/// 64 hexadecimal digits in lower case.
fn parse_hash(text: &str) -> Option<Vec<u8>> {
    let is_hash = text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let digits = is_hash.then_some(text)?;
    let byte = |at: usize| u8::from_str_radix(&digits[at..at + 2], 16).ok();
    (0..64).step_by(2).map(byte).collect()
}

/// Reads a page of open questions.
pub(crate) async fn load_open_questions(
    database: &Database,
    query: &OpenQuestionQuery,
) -> Result<OpenQuestionPage, Error> {
    // One more than the page has tells whether the list goes on.
    let mut found = store::list_open(database, query, query.limit.saturating_add(1)).await?;
    let has_more = found.len() > query.limit;
    found.truncate(query.limit);
    let next = found.last().filter(|_| has_more);
    Ok(OpenQuestionPage {
        next: next.map(|(cursor, _)| cursor.to_string()),
        questions: found.into_iter().map(|(_, question)| question).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_has_one_spelling() {
        let hash = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";
        let good = format!("1775917330000001-{hash}");
        let cursor: QuestionCursor = good.parse().expect("a cursor");
        assert_eq!(cursor.question_hash.len(), 32);
        assert_eq!(cursor.to_string(), good);
        for bad in [
            String::new(),
            "1".to_owned(),
            format!("-{hash}"),
            format!("01-{hash}"),
            format!("+1-{hash}"),
            format!("1.5-{hash}"),
            format!("99999999999999999999999-{hash}"),
            format!("1-{}", &hash[1..]),
            format!("1-{}", hash.to_uppercase()),
            format!("1-{}", "é".repeat(32)),
        ] {
            assert_eq!(
                bad.parse::<QuestionCursor>(),
                Err(MalformedCursorError),
                "{bad}"
            );
        }
    }
}
