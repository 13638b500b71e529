//! Makes and changes purchases of the App Store, from Rust.

use std::sync::Arc;

use serde_json::{Map, Value};

use crate::simulator::context::SimulatorContext;
use crate::simulator::identity::SimulatedAppleKey;
use crate::simulator::notification_push;
use crate::simulator::pki::JwsForgery;
use crate::simulator::pubsub::PushResponse;
use crate::simulator::state::SimulatorError;
use crate::simulator::state::apple::{
    AppleKeyState, AppleState, NewTransaction, SentConsumptionInfo, SimulatedApp,
    SimulatedAppleSubscription, SimulatedRenewal, SimulatedTransaction, TransactionChange,
    transaction_not_found,
};
use crate::simulator::state::apple_notifications::{
    self as notices, NewNotification, NotificationUrls, PriorSubscriptionStatus,
    SimulatedNotification, TypeAndSubtype,
};

/// Controls the simulated App Store: purchases, notifications, apps and keys.
#[derive(Clone)]
pub struct AppleScenario(Arc<SimulatorContext>);

impl AppleScenario {
    pub(in crate::simulator) fn new(context: Arc<SimulatorContext>) -> Self {
        Self(context)
    }

    fn read<T>(&self, read: impl FnOnce(&AppleState) -> T) -> T {
        read(&self.0.lock_state().stores.apple)
    }

    /// Makes a purchase, and posts its notification where the app has an address for it.
    pub fn create_transaction(
        &self,
        new: NewTransaction,
    ) -> Result<SimulatedTransaction, SimulatorError> {
        let transaction = self.0.update_and_save(|state, now, random| {
            state.apple.create_transaction(new, now, random)
        })?;
        self.publish_for_transaction(
            &transaction,
            notices::notification_for_purchase(&transaction),
        )?;
        Ok(transaction)
    }

    /// Changes a purchase, named by any of its transactions, and posts the notification of the change.
    ///
    /// Returns the changed transaction; after a renewal or an upgrade, the new one.
    pub fn change_transaction(
        &self,
        id: &str,
        change: &TransactionChange,
    ) -> Result<SimulatedTransaction, SimulatorError> {
        let (changed, notification) = self.0.update_and_save(|state, now, random| {
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
            let changed = state.apple.change_transaction(id, change, now, random)?;
            let renewal = state.apple.find_renewal(&changed.original_transaction_id);
            let notification =
                notices::notification_after_change(&changed, renewal, before, change);
            Ok((changed, notification))
        })?;
        if let Some(notification) = notification {
            self.publish_for_transaction(&changed, notification)?;
        }
        Ok(changed)
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

    /// Sets where the notifications of an app are posted.
    pub fn set_notification_urls(
        &self,
        bundle_id: &str,
        urls: NotificationUrls,
    ) -> Result<(), SimulatorError> {
        let is_url = |url: &String| url.starts_with("http://") || url.starts_with("https://");
        let both = [&urls.production, &urls.sandbox];
        if !both.into_iter().flatten().all(is_url) {
            return Err(SimulatorError::invalid_request(
                "The address of notifications is a URL that begins with http:// or https://.",
            ));
        }
        self.0.update_and_save(|state, _, _| {
            state.apple.push.insert(bundle_id.to_owned(), urls);
            Ok(())
        })
    }

    /// Posts a notification of any type and subtype, about a purchase or none.
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

    /// The last 10,000 notifications, oldest first.
    pub fn list_notifications(&self) -> Vec<SimulatedNotification> {
        let log = &self.0.lock_state().notification_log;
        log.iter().cloned().collect()
    }

    /// The notifications made after the one with this id, oldest first; all without an id.
    pub fn list_notifications_after(&self, uuid: Option<&str>) -> Vec<SimulatedNotification> {
        let log = &self.0.lock_state().notification_log;
        let newest_first = log.iter().rev();
        let mut newer: Vec<_> = newest_first
            .take_while(|one| Some(one.notification_uuid.as_str()) != uuid)
            .cloned()
            .collect();
        newer.reverse();
        newer
    }

    /// Posts a notification again and waits for the answer.
    pub async fn push_notification(&self, uuid: &str) -> Result<PushResponse, SimulatorError> {
        self.push_or_not_found(uuid, None).await
    }

    /// Posts a forgery of a notification, which must be refused, and waits for the answer.
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

    /// Posts every undelivered notification again, without waiting. Returns their number.
    pub fn redeliver_undelivered(&self) -> usize {
        let undelivered: Vec<String> = {
            let log = &self.0.lock_state().notification_log;
            let all = log.iter().filter(|it| !it.is_delivered());
            all.map(|it| it.notification_uuid.clone()).collect()
        };
        for uuid in &undelivered {
            notification_push::spawn_push(&self.0, uuid);
        }
        undelivered.len()
    }

    /// What developers sent about how purchases were used, oldest first.
    pub fn list_consumption(&self) -> Vec<SentConsumptionInfo> {
        self.read(|apple| apple.list_consumption().to_vec())
    }

    /// Whether a server has finished a transaction.
    pub fn is_finished(&self, transaction_id: &str) -> bool {
        self.read(|apple| apple.is_finished(transaction_id))
    }

    /// A transaction by its id.
    pub fn find_transaction(&self, id: &str) -> Result<SimulatedTransaction, SimulatorError> {
        let found = self.read(|apple| apple.find_transaction(id).cloned());
        found.ok_or_else(|| transaction_not_found(id))
    }

    /// A subscription by its original transaction id. `None` for a purchase that is no subscription.
    pub fn find_subscription(&self, original: &str) -> Option<SimulatedAppleSubscription> {
        self.read(|apple| apple.find_subscription(original))
    }

    /// Every transaction, oldest first.
    pub fn list_transactions(&self) -> Vec<SimulatedTransaction> {
        self.read(|apple| apple.list_transactions().into_iter().cloned().collect())
    }

    /// Apple's status of a transaction's subscription: 1 active, 2 expired, 3 billing retry, 4 grace period, 5 revoked.
    /// `None` for a purchase that is no subscription.
    pub fn subscription_status(&self, transaction: &SimulatedTransaction) -> Option<u8> {
        let (original, now) = (&transaction.original_transaction_id, self.0.now());
        self.read(|apple| apple.subscription_status(original, now))
    }

    /// The renewal of a transaction's subscription. `None` for a purchase that is no subscription.
    pub fn find_renewal(&self, transaction: &SimulatedTransaction) -> Option<SimulatedRenewal> {
        let original = &transaction.original_transaction_id;
        self.read(|apple| apple.find_renewal(original).cloned())
    }

    /// The payload that would be signed for a transaction now.
    pub fn transaction_payload(&self, id: &str) -> Result<Map<String, Value>, SimulatorError> {
        Ok(self.find_transaction(id)?.to_payload(self.0.now()))
    }

    /// Signs a transaction now, as `StoreKit` 2 gives it to an app.
    pub fn sign_transaction(&self, id: &str) -> Result<String, SimulatorError> {
        Ok(self.sign_payload(&self.transaction_payload(id)?))
    }

    /// Signs any payload.
    pub fn sign_payload(&self, payload: &Map<String, Value>) -> String {
        self.0.identity.certificate_authority().sign_jws(payload)
    }

    /// Signs any text, for what no JSON value can hold.
    pub fn sign_text(&self, payload: &str) -> String {
        let authority = self.0.identity.certificate_authority();
        authority.sign_jws_text(payload)
    }

    /// A forgery of a signed transaction, which must be refused.
    pub fn forge_transaction(
        &self,
        id: &str,
        forgery: JwsForgery,
    ) -> Result<String, SimulatorError> {
        let payload = self.transaction_payload(id)?;
        let authority = self.0.identity.certificate_authority();
        Ok(authority.forge_jws(forgery, &payload))
    }

    /// An app by its bundle id; every bundle id has one.
    pub fn get_app(&self, bundle_id: &str) -> SimulatedApp {
        self.read(|apple| apple.get_app(bundle_id))
    }

    /// Changes the properties of an app.
    pub fn set_app(&self, app: SimulatedApp) -> Result<(), SimulatorError> {
        self.0.update_and_save(|state, _, _| {
            state.apple.set_app(app);
            Ok(())
        })
    }

    /// The default key for the App Store Server API.
    pub fn api_key(&self) -> SimulatedAppleKey {
        self.0.identity.apple_key().clone()
    }

    /// Creates one more key of the same team. The simulator does not store its private half.
    pub fn create_api_key(&self) -> Result<SimulatedAppleKey, SimulatorError> {
        let key = SimulatedAppleKey::new(&self.api_key().issuer_id);
        self.0.update_and_save(|state, _, _| {
            let key_state = AppleKeyState {
                public_key: Some(key.public_key.clone()),
                revoked: false,
            };
            state.apple.keys.insert(key.key_id.clone(), key_state);
            Ok(())
        })?;
        Ok(key)
    }

    /// Revokes a key, or restores it.
    pub fn set_key_revoked(&self, key_id: &str, revoked: bool) -> Result<(), SimulatorError> {
        let is_own = self.api_key().key_id == key_id;
        self.0.update_and_save(|state, _, _| {
            if is_own {
                let key_state = AppleKeyState {
                    public_key: None,
                    revoked,
                };
                state.apple.keys.insert(key_id.to_owned(), key_state);
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
