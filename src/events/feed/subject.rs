//! The newest state of a purchase, and what it rests on.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::store::SubjectRow;
use crate::base::clock::Timestamp;
use crate::base::id::EventId;
use crate::events::{EventSource, EventSubject, PurchaseState, StateError};

/// The longest key: a purchase token's.
pub(crate) const MAX_SUBJECT_KEY_CHARS: usize = 4096;

/// What is known of a purchase.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = events::KnownSubject)]
pub(crate) struct KnownSubject {
    /// The store: `apple` or `google`.
    #[schema(value_type = String, examples("google"))]
    pub(crate) source: EventSource,
    /// The subscription or purchase, as in the event, or as in the store's answer.
    #[schema(value_type = EventSubject)]
    pub(crate) subject: Box<RawValue>,
    /// The state with the newest `asOf`: what you have if you keep the states of all events. Null where no event has one.
    pub(crate) state: Option<PurchaseState>,
    /// Why there is no state.
    pub(crate) state_error: Option<StateError>,
    /// The store's time of the state, as in `state`.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub(crate) as_of: Option<Timestamp>,
    /// The event that the state is from; without a state, the newest event. Null where the store was asked now.
    #[schema(value_type = Option<String>, examples("evt_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E"))]
    pub(crate) event_id: Option<EventId>,
    /// The number of that event among those of the purchase.
    #[schema(examples(7))]
    pub(crate) sequence: Option<i64>,
    /// The number of the newest stored event of the purchase. Null where none is stored.
    #[schema(examples(7))]
    pub(crate) last_sequence: Option<i64>,
}

impl KnownSubject {
    /// As the store has just answered.
    pub(crate) fn from_store(
        source: EventSource,
        subject: &EventSubject,
        state: Option<PurchaseState>,
        state_error: Option<StateError>,
        last_sequence: Option<i64>,
    ) -> Self {
        Self {
            source,
            subject: serde_json::value::to_raw_value(subject).expect("strings"),
            as_of: state.as_ref().map(|state| state.as_of),
            state,
            state_error,
            event_id: None,
            sequence: None,
            last_sequence,
        }
    }
}

/// `body`: what the callback gets of the event.
pub(super) fn known_subject(source: EventSource, row: SubjectRow, body: &str) -> KnownSubject {
    #[derive(Deserialize)]
    struct Body {
        subject: Box<RawValue>,
    }
    let subject = serde_json::from_str(body).map(|Body { subject }| subject);
    KnownSubject {
        source,
        subject: subject.unwrap_or_else(|_| RawValue::NULL.to_owned()),
        as_of: row.state.as_ref().map(|state| state.as_of),
        state_error: row.state_error.filter(|_| row.state.is_none()),
        state: row.state,
        event_id: Some(row.event),
        sequence: Some(row.sequence),
        last_sequence: Some(row.last_sequence),
    }
}
