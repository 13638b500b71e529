//! What the purchase of a stored event is worth, where that was not known when its notification was received.

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

use super::api_error::GoogleNotFound;
use super::notifications::{
    app_user, event_environment, event_state, event_subject, owed_acknowledgement,
};
use super::payload::DeveloperNotification;
use super::purchase_lookup::PurchaseLookup;
use super::verify::GoogleVerifier;
use crate::events::StateError;
use crate::events::unresolved::{LatePurchase, StateAnswer, UnresolvedEvent};
use crate::stores::shared::state_completer::StateSource;

/// Asks Google about the purchases of stored events.
pub(crate) struct GoogleStates {
    google: GoogleVerifier,
}

impl GoogleStates {
    pub(crate) fn new(google: &GoogleVerifier) -> Self {
        Self {
            google: google.clone(),
        }
    }

    /// Asks as if the notification had just been received.
    async fn look_up(&self, event: &UnresolvedEvent) -> StateAnswer {
        let credentials = match self.google.get_credentials(&event.tenant).await {
            Ok(Some(credentials)) => credentials,
            Ok(None) => {
                return StateAnswer::unavailable("google no credentials", "no credentials");
            }
            Err(error) => {
                return StateAnswer::unavailable("google credentials", error.to_string());
            }
        };
        let Ok(notification) = serde_json::from_str::<DeveloperNotification>(event.data.get())
        else {
            return StateAnswer::Incomplete(event.state_error);
        };
        let mut lookup =
            PurchaseLookup::new(&self.google, &event.tenant, &credentials).without_failure_log();
        let purchase = lookup.load_context(&notification).await;
        let subject = event_subject(&notification, &purchase);
        match (event_state(&notification, &purchase), subject) {
            (Some(Ok(state)), Some(subject)) => {
                let (database, now) = (&self.google.database, self.google.clock.now());
                if let Some(owed) = owed_acknowledgement(&notification, &purchase)
                    && let Err(error) = owed.list(database, &event.tenant, now).await
                {
                    return StateAnswer::unavailable(
                        &crate::db::error_class(&error),
                        crate::db::describe_cause(&error),
                    );
                }
                StateAnswer::Known(Box::new(LatePurchase {
                    state,
                    environment: event_environment(&purchase),
                    subject,
                    app_user: app_user(&notification, &purchase),
                }))
            }
            (Some(Err(StateError::ReplacedByUnknown)), _) => {
                StateAnswer::Incomplete(StateError::ReplacedByUnknown)
            }
            _ => match (lookup.failure(), lookup.not_found()) {
                (Some(failure), _) => StateAnswer::Unavailable {
                    class: failure.class.clone(),
                    cause: failure.cause.clone(),
                    retry_after: failure.retry_after,
                },
                (None, Some(reason)) => StateAnswer::NotFound {
                    reason: reason.to_string(),
                    may_be_early: reason == GoogleNotFound::Unknown,
                },
                (None, None) => StateAnswer::Incomplete(StateError::StoreUnavailable),
            },
        }
    }
}

impl StateSource for GoogleStates {
    fn fetch_state<'a>(&'a self, event: &'a UnresolvedEvent) -> BoxFuture<'a, StateAnswer> {
        self.look_up(event).boxed()
    }
}
