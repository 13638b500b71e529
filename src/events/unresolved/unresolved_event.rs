//! An event whose state could not be told, what its store says of it later, and the event that tells it.

use std::time::Duration;

use serde::Serialize;
use serde_json::value::RawValue;

use crate::base::id::{EventId, TenantId};
use crate::events::{
    AppUserIdSource, EventEnvironment, EventSource, EventSubject, EventType, NewEvent,
    PurchaseState, StateError, SubjectType,
};

/// For how long the state of an event is asked for.
pub(crate) const MAX_UNRESOLVED_TIME: Duration = Duration::from_hours(72);
/// The first pause: a notification that is received at the same time may tell what this one lacks.
pub(crate) const FIRST_RETRY_DELAY: Duration = Duration::from_secs(2);
/// With a quarter more, the pause between two rounds and the time of a question it is less than the minute within which a
/// state must follow once its store answers.
const MAX_RETRY_DELAY: Duration = Duration::from_secs(30);
/// For a replaced purchase. Its store never names the one that took its place: that one names it, and ends the pause.
const MAX_SUCCESSOR_RETRY_DELAY: Duration = Duration::from_mins(10);

/// The pause after the try number `attempt`, without jitter. `missing`: what the try has shown to be missing.
pub(crate) fn retry_delay(attempt: u32, missing: StateError) -> Duration {
    let max = match missing {
        StateError::StoreUnavailable => MAX_RETRY_DELAY,
        StateError::ReplacedByUnknown => MAX_SUCCESSOR_RETRY_DELAY,
    };
    let factor = 1_u32.checked_shl(attempt.min(16)).unwrap_or(u32::MAX);
    FIRST_RETRY_DELAY.saturating_mul(factor).min(max)
}

/// An event without a state, claimed by this process until its lease ends.
#[derive(Clone, Debug)]
pub(crate) struct UnresolvedEvent {
    pub(crate) id: EventId,
    pub(crate) tenant: TenantId,
    pub(crate) source: EventSource,
    /// Its name, as in [`EventType`].
    pub(crate) event_type: String,
    pub(crate) environment: Option<EventEnvironment>,
    pub(crate) subject_key: String,
    pub(crate) product_id: Option<String>,
    pub(crate) subject_type: SubjectType,
    pub(crate) app_user_id: Option<String>,
    /// The notification, decoded.
    pub(crate) data: Box<RawValue>,
    /// What was missing when the event was stored.
    pub(crate) state_error: StateError,
    /// How often the store was asked, this time included.
    pub(crate) attempt: u32,
    /// How long ago it was stored.
    pub(crate) age: Duration,
    /// Whether a later event of the subject has told a state that is newer than this event, which needs none then.
    pub(crate) is_superseded: bool,
    /// The end of the lease, which tells this claim from others.
    pub(super) lease: time::OffsetDateTime,
}

/// What a store says of an unresolved event's purchase.
#[derive(Debug)]
pub(crate) enum StateAnswer {
    Known(Box<LatePurchase>),
    /// The store answered, and this is still missing.
    Incomplete(StateError),
    /// The store gave no answer. The other events of the account would get none either.
    Unavailable {
        /// For the log: nothing of a purchase.
        class: String,
        cause: String,
        /// When to ask again, if the store said so.
        retry_after: Option<Duration>,
    },
    /// The store says that there is no such purchase.
    NotFound {
        reason: String,
        /// Whether it may only be too fresh.
        may_be_early: bool,
    },
}

impl StateAnswer {
    /// No answer, from a store that did not say when to ask again.
    pub(crate) fn unavailable(class: &str, cause: impl Into<String>) -> Self {
        Self::Unavailable {
            class: class.to_owned(),
            cause: cause.into(),
            retry_after: None,
        }
    }
}

/// What is known of a purchase now.
#[derive(Debug)]
pub(crate) struct LatePurchase {
    pub(crate) state: PurchaseState,
    pub(crate) environment: Option<EventEnvironment>,
    pub(crate) subject: EventSubject,
    pub(crate) app_user: Option<(String, AppUserIdSource)>,
}

/// The `data` of an event `purchase.state`: which event it completes.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CompletionData<'a> {
    event_id: &'a EventId,
    event: &'a str,
    state_error: StateError,
}

impl UnresolvedEvent {
    /// The event that tells the state. Every process gives it the same external id.
    pub(crate) fn complete_with(&self, purchase: LatePurchase) -> NewEvent {
        let data = CompletionData {
            event_id: &self.id,
            event: &self.event_type,
            state_error: self.state_error,
        };
        let (app_user_id, app_user_id_source) = purchase.app_user.unzip();
        NewEvent {
            tenant: self.tenant.clone(),
            source: self.source,
            external_id: format!("state:{}", self.id),
            event_type: EventType::PurchaseState,
            reason: None,
            platform_event: "attesto.purchase_state".to_owned(),
            occurred_at: Some(purchase.state.as_of),
            environment: purchase.environment.or(self.environment),
            subject: Some(purchase.subject),
            app_user_id,
            app_user_id_source,
            state: Some(purchase.state),
            state_error: None,
            data: serde_json::value::to_raw_value(&data).expect("strings"),
            facts: None,
            // No store sent it.
            raw: RawValue::NULL.to_owned(),
            shared_content: None,
            answer_by: None,
            is_recovered: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_doubles_up_to_what_a_minute_allows_and_longer_where_the_store_cannot_tell() {
        let seconds = |missing| {
            let attempts = [1, 2, 3, 4, 5, 9, 100];
            attempts.map(|attempt| retry_delay(attempt, missing).as_secs())
        };
        assert_eq!(
            seconds(StateError::StoreUnavailable),
            [4, 8, 16, 30, 30, 30, 30]
        );
        assert_eq!(
            seconds(StateError::ReplacedByUnknown),
            [4, 8, 16, 32, 64, 600, 600]
        );
    }
}
