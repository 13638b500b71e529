//! Purchases of the App Store, made and changed.

use std::sync::Arc;

use serde_json::{Map, Value};

use crate::simulator::context::SimulatorContext;
use crate::simulator::identity::SimulatedAppleKey;
use crate::simulator::notification_push;
use crate::simulator::pki::JwsForgery;
use crate::simulator::pubsub::PushResponse;
use crate::simulator::state::SimulatorError;
use crate::simulator::state::apple::{
    AppleKeyState, NewTransaction, SimulatedApp, SimulatedRenewal, SimulatedTransaction,
    TransactionChange,
};
use crate::simulator::state::apple_notifications::{
    self as notices, NewNotification, NotificationUrls, PriorSubscriptionStatus,
    SimulatedNotification, TypeAndSubtype,
};

/// The simulated App Store, seen from the side of those who buy and of its own staff.
#[derive(Clone)]
pub struct AppleScenario(Arc<SimulatorContext>);

impl AppleScenario {
    pub(in crate::simulator) fn new(shared: Arc<SimulatorContext>) -> Self {
        Self(shared)
    }

    /// Somebody buys. Reported where the app has an address for that.
    pub fn create_transaction(
        &self,
        new: NewTransaction,
    ) -> Result<SimulatedTransaction, SimulatorError> {
        let bought = self.0.update_and_save(|state, now, random| {
            state.apple.create_transaction(new, now, random)
        })?;
        self.publish_for_transaction(&bought, notices::notification_for_purchase(&bought))?;
        Ok(bought)
    }

    /// Something happens to a purchase, named by any of its transactions. Gives the transaction that now tells the
    /// story: the new one after a renewal. Reported, except what this simulator does to it.
    pub fn change_transaction(
        &self,
        id: &str,
        change: &TransactionChange,
    ) -> Result<SimulatedTransaction, SimulatorError> {
        let (told, report) = self.0.update_and_save(|state, now, random| {
            let before = state
                .apple
                .find_transaction(id)
                .map(|named| {
                    let original = &named.original_transaction_id;
                    let renewal = state.apple.find_renewal(original);
                    PriorSubscriptionStatus {
                        status: state.apple.subscription_status(original, now),
                        had_grace_period: renewal.is_some_and(|one| one.grace_expires.is_some()),
                    }
                })
                .unwrap_or_default();
            let told = state.apple.change_transaction(id, change, now, random)?;
            let renewal = state.apple.find_renewal(&told.original_transaction_id);
            let report = notices::notification_after_change(&told, renewal, before, change);
            Ok((told, report))
        })?;
        if let Some(report) = report {
            self.publish_for_transaction(&told, report)?;
        }
        Ok(told)
    }

    fn publish_for_transaction(
        &self,
        about: &SimulatedTransaction,
        (kind, subtype): TypeAndSubtype,
    ) -> Result<(), SimulatorError> {
        let new = NewNotification {
            transaction_id: Some(about.transaction_id.clone()),
            ..NewNotification::new(kind, subtype)
        };
        notification_push::publish_notification(&self.0, &about.bundle_id, &new, None).map(drop)
    }

    /// From now on, what happens to purchases of an app is reported.
    pub fn set_notification_urls(
        &self,
        bundle_id: &str,
        to: NotificationUrls,
    ) -> Result<(), SimulatorError> {
        let is_url = |url: &String| url.starts_with("http://") || url.starts_with("https://");
        let urls = [&to.production, &to.sandbox];
        if !urls.into_iter().flatten().all(is_url) {
            return Err(SimulatorError::invalid_request(
                "Where notifications are posted is a URL that begins with http:// or https://.",
            ));
        }
        self.0.update_and_save(|state, _, _| {
            state.apple.push.insert(bundle_id.to_owned(), to);
            Ok(())
        })
    }

    /// Reports anything of an app: any type, any subtype, about a purchase or none.
    pub fn publish_notification(
        &self,
        bundle_id: &str,
        new: &NewNotification,
    ) -> Result<SimulatedNotification, SimulatorError> {
        notification_push::publish_notification(&self.0, bundle_id, new, None)?.ok_or_else(|| {
            SimulatorError::invalid_request(format!(
                "{bundle_id} has no address for this notification: see /control/apple/push."
            ))
        })
    }

    /// Every notification, oldest first.
    pub fn list_notifications(&self) -> Vec<SimulatedNotification> {
        self.0
            .lock_state()
            .notification_log
            .iter()
            .cloned()
            .collect()
    }

    /// Posts a notification once more and waits for the answer.
    pub async fn push_notification(&self, uuid: &str) -> Result<PushResponse, SimulatorError> {
        self.push_or_not_found(uuid, None).await
    }

    /// Posts a notification in a form that must not be believed, and waits for the answer.
    pub async fn push_forged_notification(
        &self,
        uuid: &str,
        forgery: JwsForgery,
    ) -> Result<PushResponse, SimulatorError> {
        self.push_or_not_found(uuid, Some(forgery)).await
    }

    async fn push_or_not_found(
        &self,
        uuid: &str,
        forgery: Option<JwsForgery>,
    ) -> Result<PushResponse, SimulatorError> {
        let pushed = notification_push::push_notification(&self.0, uuid, forgery).await;
        pushed.ok_or_else(|| {
            SimulatorError::not_found(
                "There is no such notification, or no address for it: see /control/apple/notifications and /control/apple/push.",
            )
        })
    }

    /// Posts again, without waiting, what no attempt has brought to where it should be. How many notifications that is.
    pub fn redeliver_undelivered(&self) -> usize {
        let waiting: Vec<String> = {
            let inside = self.0.lock_state();
            let waiting = inside
                .notification_log
                .iter()
                .filter(|one| !one.is_delivered());
            waiting.map(|one| one.notification_uuid.clone()).collect()
        };
        for uuid in &waiting {
            notification_push::spawn_push(&self.0, uuid);
        }
        waiting.len()
    }

    /// A transaction, if it is known.
    pub fn find_transaction(&self, id: &str) -> Result<SimulatedTransaction, SimulatorError> {
        self.0.lock_state().stores.apple.find_transaction(id).cloned().ok_or_else(|| {
            SimulatorError::not_found(format!(
                "No transaction {id} is known here. GET /control/apple/transactions lists those that are."
            ))
        })
    }

    /// Every transaction, oldest first.
    pub fn list_transactions(&self) -> Vec<SimulatedTransaction> {
        let inside = self.0.lock_state();
        inside
            .stores
            .apple
            .list_transactions()
            .into_iter()
            .cloned()
            .collect()
    }

    /// The App Store's number for how a transaction's subscription stands: 1 active, 2 expired, 3 billing retry,
    /// 4 grace, 5 revoked. `None` for what is no subscription.
    pub fn subscription_status(&self, transaction: &SimulatedTransaction) -> Option<u8> {
        let now = self.0.now();
        let inside = self.0.lock_state();
        inside
            .stores
            .apple
            .subscription_status(&transaction.original_transaction_id, now)
    }

    /// What will become of a transaction's subscription. `None` for what is no subscription.
    pub fn find_renewal(&self, transaction: &SimulatedTransaction) -> Option<SimulatedRenewal> {
        let inside = self.0.lock_state();
        inside
            .stores
            .apple
            .find_renewal(&transaction.original_transaction_id)
            .cloned()
    }

    /// A transaction's payload as it would be signed now.
    pub fn transaction_payload(&self, id: &str) -> Result<Map<String, Value>, SimulatorError> {
        Ok(self.find_transaction(id)?.to_payload(self.0.now()))
    }

    /// A transaction signed now, as `StoreKit` 2 gives it to an app.
    pub fn sign_transaction(&self, id: &str) -> Result<String, SimulatorError> {
        Ok(self.sign_payload(&self.transaction_payload(id)?))
    }

    /// Any payload, signed.
    pub fn sign_payload(&self, payload: &Map<String, Value>) -> String {
        self.0.identity.certificate_authority().sign_jws(payload)
    }

    /// A transaction in a form that must not be believed.
    pub fn forge_transaction(
        &self,
        id: &str,
        forgery: JwsForgery,
    ) -> Result<String, SimulatorError> {
        let payload = self.transaction_payload(id)?;
        Ok(self
            .0
            .identity
            .certificate_authority()
            .forge_jws(forgery, &payload))
    }

    /// An app; every bundle id has one.
    pub fn get_app(&self, bundle_id: &str) -> SimulatedApp {
        self.0.lock_state().stores.apple.get_app(bundle_id)
    }

    /// Says something else of an app than is usual.
    pub fn set_app(&self, app: SimulatedApp) -> Result<(), SimulatorError> {
        self.0.update_and_save(|state, _, _| {
            state.apple.set_app(app);
            Ok(())
        })
    }

    /// The key for the App Store Server API that every simulator has.
    pub fn api_key(&self) -> SimulatedAppleKey {
        self.0.identity.apple_key().clone()
    }

    /// One more key of the same team. Its private half is not kept here.
    pub fn create_api_key(&self) -> Result<SimulatedAppleKey, SimulatorError> {
        let key = SimulatedAppleKey::new(&self.api_key().issuer_id);
        self.0.update_and_save(|state, _, _| {
            let kept = AppleKeyState {
                public_key: Some(key.public_key.clone()),
                revoked: false,
            };
            state.apple.keys.insert(key.key_id.clone(), kept);
            Ok(())
        })?;
        Ok(key)
    }

    /// Revokes a key, or takes that back.
    pub fn set_key_revoked(&self, key_id: &str, revoked: bool) -> Result<(), SimulatorError> {
        let is_own = self.api_key().key_id == key_id;
        self.0.update_and_save(|state, _, _| {
            if is_own {
                let kept = AppleKeyState {
                    public_key: None,
                    revoked,
                };
                state.apple.keys.insert(key_id.to_owned(), kept);
            } else {
                let key = state.apple.keys.get_mut(key_id).ok_or_else(|| {
                    SimulatorError::not_found(format!(
                        "{key_id} is not the id of one of the team's keys."
                    ))
                })?;
                key.revoked = revoked;
            }
            Ok(())
        })
    }
}
