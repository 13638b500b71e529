//! One line of `attesto tail`, as JSON for programs and as text for people.

use std::fmt::Write as _;

use serde::{Deserialize as _, Serialize};
use serde_json::Value;

use crate::audit::store::LoggedVerification;
use crate::base::clock::Timestamp;
use crate::base::id::{CallbackNumber, DeliveryId, EventId};
use crate::crypto::token::encode_hex;
use crate::deliveries::history::{DeliveryRow, EventRow};
use crate::events::PurchaseState;

/// Something that happened to a tenant.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(
    tag = "kind",
    rename_all = "camelCase",
    rename_all_fields = "camelCase"
)]
pub enum TailLine {
    /// The tenant's backend verified a purchase.
    Verification {
        /// When the request was received.
        at: Timestamp,
        /// `apple` or `google`.
        source: String,
        /// Whether the store confirmed the purchase.
        valid: bool,
        /// Set when the purchase is not valid or could not be verified.
        error_code: Option<String>,
        /// From the request to the answer.
        latency_ms: i32,
        /// `validation_audit.identifier_hash`, in hexadecimal.
        identifier_hash: String,
    },
    /// A store sent a notification.
    Event {
        /// When it was received.
        at: Timestamp,
        /// The id of the new event.
        event_id: EventId,
        /// Attesto's event type, the same for both stores.
        event: String,
        /// The store's own name for it.
        platform_event: String,
        /// The key of the purchase it is about.
        subject: Option<String>,
        /// The event's number among those of this purchase.
        sequence: Option<i64>,
        /// What the purchase was worth when the event was stored.
        state: Option<Value>,
        /// Why that was not known.
        state_error: Option<String>,
        /// `false` without an active callback: the event is stored only.
        has_delivery: bool,
    },
    /// A callback was called, or the delivery was parked.
    Delivery {
        /// When the last attempt started.
        at: Timestamp,
        /// Stays the same over all attempts.
        delivery_id: DeliveryId,
        /// The event that was delivered.
        event_id: EventId,
        /// The type of that event.
        event: String,
        /// Which of the tenant's callbacks it is for.
        callback: CallbackNumber,
        /// The number of attempts so far.
        attempt: i32,
        /// `pending`, `delivered` or `failed`.
        status: String,
        /// Of the last attempt, in one word.
        outcome: Option<String>,
        /// The HTTP status of the callback's answer.
        response_code: Option<i32>,
        /// Why it failed, in one sentence.
        error: Option<String>,
        /// `None` when there is no further attempt.
        next_attempt_at: Option<Timestamp>,
        /// Whether an operator must decide, because several processes crashed while sending it.
        is_parked: bool,
    },
    /// More happened between two polls than is shown.
    Overflow {
        /// The time of the oldest that is shown.
        at: Timestamp,
        /// `verifications`, `events`, `deliveries`, `waiting deliveries`.
        of: &'static str,
    },
}

impl TailLine {
    pub(super) fn from_verification(row: LoggedVerification) -> Self {
        Self::Verification {
            at: row.occurred_at,
            source: row.source,
            valid: row.valid,
            error_code: row.error_code,
            latency_ms: row.latency_ms,
            identifier_hash: encode_hex(&row.identifier_hash),
        }
    }

    pub(super) fn from_event(row: EventRow) -> Self {
        Self::Event {
            at: row.received_at,
            event_id: row.id,
            event: row.event,
            platform_event: row.platform_event,
            subject: row.subject,
            sequence: row.sequence,
            state: row.state,
            state_error: row.state_error,
            has_delivery: row.status.is_some(),
        }
    }

    pub(super) fn from_delivery(row: &DeliveryRow) -> Self {
        Self::Delivery {
            at: row.last_attempt_at.unwrap_or(row.created_at),
            delivery_id: row.id.clone(),
            event_id: row.event_id.clone(),
            event: row.event.clone(),
            callback: row.callback,
            attempt: row.attempt_count,
            status: row.status.clone(),
            outcome: row.last_outcome.clone(),
            response_code: row.last_response_code,
            error: row.last_error.clone(),
            next_attempt_at: row.next_attempt_at,
            is_parked: row.parked_at.is_some(),
        }
    }

    /// Lines are sorted by it.
    pub(crate) fn occurred_at(&self) -> Timestamp {
        match self {
            Self::Verification { at, .. }
            | Self::Event { at, .. }
            | Self::Delivery { at, .. }
            | Self::Overflow { at, .. } => *at,
        }
    }

    /// One line of text for a terminal.
    pub(crate) fn to_text(&self) -> String {
        let what = match self {
            Self::Verification {
                source,
                valid,
                error_code,
                latency_ms,
                ..
            } => {
                let verdict = match (valid, error_code) {
                    (true, _) => "valid",
                    (false, Some(code)) => code,
                    (false, None) => "not valid",
                };
                format!("verification  {source}  {verdict}  {latency_ms} ms")
            }
            Self::Event {
                event_id,
                event,
                platform_event,
                subject,
                sequence,
                state,
                state_error,
                has_delivery,
                ..
            } => {
                let mut about = subject
                    .as_deref()
                    .map(|subject| format!("  about {}", shorten_subject(subject)))
                    .unwrap_or_default();
                // Results of `write!` are ignored: writing to a `String` cannot fail.
                if let Some(sequence) = sequence {
                    let _ = write!(about, ", sequence {sequence}");
                }
                // A later release may have stored a word that this one does not know.
                let known = state
                    .as_ref()
                    .and_then(|state| PurchaseState::deserialize(state).ok());
                if let Some(known) = known {
                    let _ = write!(about, "  {}", known.to_summary());
                } else if let Some(why) = state_error {
                    let _ = write!(about, "  state not known: {why}");
                }
                let nowhere = if *has_delivery {
                    ""
                } else {
                    "  (no active callback: stored, not sent)"
                };
                format!("event         {event}  {platform_event}  {event_id}{about}{nowhere}")
            }
            Self::Delivery {
                event_id,
                event,
                callback,
                attempt,
                status,
                outcome,
                response_code,
                error,
                next_attempt_at,
                is_parked,
                ..
            } => {
                let answer = match (response_code, outcome, error) {
                    (Some(code), _, None) => format!(": {code}"),
                    (None, Some(outcome), None) => format!(": {outcome}"),
                    (_, Some(outcome), Some(error)) => format!(": {outcome} ({error})"),
                    (_, None, Some(error)) => format!(": {error}"),
                    (None, None, None) => String::new(),
                };
                let then = match (next_attempt_at, is_parked, status.as_str()) {
                    (_, true, _) => ", parked".to_owned(),
                    (Some(next), ..) => format!(", next attempt at {next}"),
                    (None, false, "failed") => ", failed permanently".to_owned(),
                    (None, false, _) => String::new(),
                };
                let word = if status == "delivered" {
                    "delivered"
                } else {
                    "tried"
                };
                let callback = if *callback == CallbackNumber::FIRST {
                    String::new()
                } else {
                    format!(" to callback {callback}")
                };
                format!(
                    "delivery      {event}  {event_id}  {word}{callback}, attempt {attempt}{answer}{then}"
                )
            }
            Self::Overflow { of, .. } => {
                format!("…             more {of} than can be shown; earlier ones are left out")
            }
        };
        format!("{}  {what}", self.occurred_at())
    }
}

/// Google's purchase tokens are too long for a line.
fn shorten_subject(subject: &str) -> String {
    const KEPT: usize = 24;
    match subject.char_indices().nth(KEPT) {
        Some((end, _)) => format!("{}…", &subject[..end]),
        None => subject.to_owned(),
    }
}
