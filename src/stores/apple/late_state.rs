//! What the purchase of a stored event is worth, where that was not known when its notification was received.

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use serde_json::Value;

use super::account::AppleEnvironment;
use super::api::{AppleApiError, AppleNotFound};
use super::error::AppleVerifyError;
use super::state::purchase_state;
use super::verify::AppleVerifier;
use crate::events::unresolved::{LatePurchase, StateAnswer, UnresolvedEvent};
use crate::events::{AppUserIdSource, EventEnvironment, EventSubject, StateError};
use crate::stores::shared::state_completer::StateSource;

/// Asks Apple about the subscriptions of stored events. Of anything else each notification tells the state.
pub(crate) struct AppleStates {
    apple: AppleVerifier,
}

impl AppleStates {
    pub(crate) fn new(apple: &AppleVerifier) -> Self {
        Self {
            apple: apple.clone(),
        }
    }

    async fn look_up(&self, event: &UnresolvedEvent) -> StateAnswer {
        let credentials = match self.apple.get_credentials(&event.tenant).await {
            Ok(Some(credentials)) => credentials,
            Ok(None) => {
                return StateAnswer::unavailable("apple no credentials", "no credentials");
            }
            Err(error) => return StateAnswer::unavailable("apple credentials", error.to_string()),
        };
        let environment = match event.environment {
            Some(EventEnvironment::Sandbox) => AppleEnvironment::Sandbox,
            Some(EventEnvironment::Production) | None => AppleEnvironment::Production,
        };
        let question = self.apple.fetch_subscription(
            &event.tenant,
            &credentials,
            environment,
            &event.subject_key,
        );
        let whole = match question.await {
            Ok(whole) => whole,
            Err(AppleVerifyError::NotFound { reason, .. }) => {
                return StateAnswer::NotFound {
                    reason: reason.to_string(),
                    may_be_early: reason == AppleNotFound::Unknown,
                };
            }
            Err(AppleVerifyError::Api(error)) => {
                let retry_after = match &error {
                    AppleApiError::RateLimited { retry_after } => Some(*retry_after),
                    AppleApiError::Unexpected { retry_after, .. } => *retry_after,
                    _ => None,
                };
                return StateAnswer::Unavailable {
                    class: "apple api".to_owned(),
                    cause: error.to_string(),
                    retry_after,
                };
            }
            Err(error) => return StateAnswer::unavailable("apple answer", error.to_string()),
        };
        let now = self.apple.clock.now();
        let Some(state) = purchase_state(&whole.facts(now), now) else {
            return StateAnswer::Incomplete(StateError::StoreUnavailable);
        };
        let app_user = whole.app_user().map(str::to_owned);
        StateAnswer::Known(Box::new(LatePurchase {
            state,
            environment: None,
            subject: EventSubject {
                key: event.subject_key.clone(),
                product_id: event.product_id.clone(),
                r#type: event.subject_type,
                current: whole.transaction.transaction_id == transaction_id(event),
                superseded_by: None,
            },
            app_user: event
                .app_user_id
                .clone()
                .or(app_user)
                .map(|user| (user, AppUserIdSource::Purchase)),
        }))
    }
}

/// The id of the transaction that the notification is about.
fn transaction_id(event: &UnresolvedEvent) -> Option<String> {
    let data: Value = serde_json::from_str(event.data.get()).ok()?;
    let id = &data["data"]["transactionInfo"]["transactionId"];
    id.as_str().map(str::to_owned)
}

impl StateSource for AppleStates {
    fn fetch_state<'a>(&'a self, event: &'a UnresolvedEvent) -> BoxFuture<'a, StateAnswer> {
        self.look_up(event).boxed()
    }
}
