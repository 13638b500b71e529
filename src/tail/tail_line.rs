//! One thing that happened, for a program and for a person.

use serde::Serialize;

use crate::audit::store::LoggedVerification;
use crate::base::clock::Timestamp;
use crate::base::id::{DeliveryId, EventId};
use crate::crypto::token::encode_hex;
use crate::deliveries::history::{DeliveryRow, EventRow};

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(
    tag = "kind",
    rename_all = "camelCase",
    rename_all_fields = "camelCase"
)]
pub enum TailLine {
    /// The tenant's backend asked about a purchase and was answered.
    Verification {
        /// When.
        at: Timestamp,
        /// Which store.
        source: String,
        /// What was answered.
        valid: bool,
        /// Why not.
        error_code: Option<String>,
        /// How long that took.
        latency_ms: i32,
        /// The purchase, as the log of verifications knows it; hexadecimal.
        identifier_hash: String,
    },
    /// A store reported something.
    Event {
        /// When it was received.
        at: Timestamp,
        /// Its id.
        event_id: EventId,
        /// The word for both stores.
        event: String,
        /// The store's own name.
        platform_event: String,
        /// What it is about.
        subject: Option<String>,
        /// Whether it goes anywhere: not without an active callback.
        has_delivery: bool,
    },
    /// An event was brought to a callback, or was tried to be.
    Delivery {
        /// When the attempt began.
        at: Timestamp,
        /// Its id.
        delivery_id: DeliveryId,
        /// Of which event.
        event_id: EventId,
        /// The event's word.
        event: String,
        /// The attempts so far.
        attempt: i32,
        /// Where it stands: `pending`, `delivered`, `failed`.
        status: String,
        /// How the attempt ended, in one word.
        outcome: Option<String>,
        /// What the receiver answered.
        response_code: Option<i32>,
        /// When it is tried again.
        next_attempt_at: Option<Timestamp>,
        /// It waits for a person, because workers died over it again and again.
        is_parked: bool,
    },
    /// So much happened between two looks that not all of it is shown.
    Overflow {
        /// The moment of the oldest that is shown.
        at: Timestamp,
        /// Of what: `verifications`, `events`, `deliveries`, `waiting deliveries`.
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
            has_delivery: row.status.is_some(),
        }
    }

    pub(super) fn from_delivery(row: &DeliveryRow) -> Self {
        Self::Delivery {
            at: row.last_attempt_at.unwrap_or(row.created_at),
            delivery_id: row.id.clone(),
            event_id: row.event_id.clone(),
            event: row.event.clone(),
            attempt: row.attempt_count,
            status: row.status.clone(),
            outcome: row.last_outcome.clone(),
            response_code: row.last_response_code,
            next_attempt_at: row.next_attempt_at,
            is_parked: row.parked_at.is_some(),
        }
    }

    /// When it happened.
    pub fn occurred_at(&self) -> Timestamp {
        match self {
            Self::Verification { at, .. }
            | Self::Event { at, .. }
            | Self::Delivery { at, .. }
            | Self::Overflow { at, .. } => *at,
        }
    }

    /// The same for a person: one line, its columns under those of its kind.
    pub fn to_text(&self) -> String {
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
                has_delivery,
                ..
            } => {
                let about = subject
                    .as_deref()
                    .map(|subject| format!("  about {}", shorten_subject(subject)))
                    .unwrap_or_default();
                let nowhere = if *has_delivery {
                    ""
                } else {
                    "  (no active callback: stored, sent nowhere)"
                };
                format!("event         {event}  {platform_event}  {event_id}{about}{nowhere}")
            }
            Self::Delivery {
                event_id,
                event,
                attempt,
                status,
                outcome,
                response_code,
                next_attempt_at,
                is_parked,
                ..
            } => {
                let answer = match (response_code, outcome) {
                    (Some(code), _) => format!(": {code}"),
                    (None, Some(outcome)) => format!(": {outcome}"),
                    (None, None) => String::new(),
                };
                let then = match (next_attempt_at, is_parked, status.as_str()) {
                    (_, true, _) => ", set aside for a person".to_owned(),
                    (Some(next), ..) => format!(", again at {next}"),
                    (None, false, "failed") => ", given up".to_owned(),
                    (None, false, _) => String::new(),
                };
                let word = if status == "delivered" {
                    "delivered"
                } else {
                    "tried"
                };
                format!(
                    "delivery      {event}  {event_id}  {word}, attempt {attempt}{answer}{then}"
                )
            }
            Self::Overflow { of, .. } => {
                format!(
                    "…             more {of} than can be followed; those before this are not shown"
                )
            }
        };
        format!("{}  {what}", self.occurred_at())
    }
}

/// The beginning of what is too long for a line: Google's purchase tokens.
fn shorten_subject(subject: &str) -> String {
    const KEPT: usize = 24;
    match subject.char_indices().nth(KEPT) {
        Some((end, _)) => format!("{}…", &subject[..end]),
        None => subject.to_owned(),
    }
}
