//! Purchases of Play, made and changed.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::base::clock::Timestamp;
use crate::simulator::context::SimulatorContext;
use crate::simulator::identity::{GoogleSigningKey, SimulatedServiceAccount};
use crate::simulator::pubsub::{self, PUSH_SERVICE_ACCOUNT, PushResponse, PushTokenFlaw};
use crate::simulator::state::SimulatorError;
use crate::simulator::state::google::{
    NewProduct, NewSubscription, ProductChange, ServiceAccountState, SimulatedProductPurchase,
    SimulatedSubscription, SubscriptionChange, SubscriptionReplacement,
};
use crate::simulator::state::google_notifications::{
    self as notices, PublishedMessage, PushSubscription,
};

/// The simulated Play, seen from the side of those who buy and of its own staff.
#[derive(Clone)]
pub struct GoogleScenario(Arc<SimulatorContext>);

impl GoogleScenario {
    pub(in crate::simulator) fn new(shared: Arc<SimulatorContext>) -> Self {
        Self(shared)
    }

    pub(super) fn now(&self) -> Timestamp {
        self.0.now()
    }

    /// Somebody subscribes. Published unless it is not paid for yet.
    pub fn buy_subscription(
        &self,
        new: NewSubscription,
    ) -> Result<SimulatedSubscription, SimulatorError> {
        let pending = new.pending;
        let sold = self.0.update_and_save(|state, now, random| {
            state.google.buy_subscription(new, now, random)
        })?;
        if !pending {
            self.publish_notifications([notices::subscription_notification(
                &sold,
                4,
                self.0.now(),
            )]);
        }
        Ok(sold)
    }

    /// Something happens to a subscription. Published, except what the app or this simulator does to it.
    pub fn change_subscription(
        &self,
        token: &str,
        change: &SubscriptionChange,
    ) -> Result<SimulatedSubscription, SimulatorError> {
        let (changed, before, now) = self.0.update_and_save(|state, now, _| {
            let before = state.google.find_subscription(token);
            let before = before.map_or("", |before| before.state_name(now));
            let changed = state.google.change_subscription(token, change, now)?;
            Ok((changed, before, now))
        })?;
        self.publish_notifications(notices::notifications_after_change(
            &changed, before, change, now,
        ));
        Ok(changed)
    }

    /// Somebody changes plans: a new subscription, linked to the old one, which ends now. Published as a purchase.
    pub fn replace_subscription(
        &self,
        token: &str,
        by: SubscriptionReplacement,
    ) -> Result<SimulatedSubscription, SimulatorError> {
        let sold = self.0.update_and_save(|state, now, random| {
            state.google.replace_subscription(token, by, now, random)
        })?;
        self.publish_notifications([notices::subscription_notification(&sold, 4, self.0.now())]);
        Ok(sold)
    }

    /// Somebody buys a one-time product. Published unless it is not paid for yet.
    pub fn buy_product(&self, new: NewProduct) -> Result<SimulatedProductPurchase, SimulatorError> {
        let pending = new.pending;
        let sold = self
            .0
            .update_and_save(|state, now, random| state.google.buy_product(new, now, random))?;
        if !pending {
            self.publish_notifications([notices::product_notification(&sold, 1, self.0.now())]);
        }
        Ok(sold)
    }

    /// Something happens to a one-time product. Refunds and late payments are published.
    pub fn change_product(
        &self,
        token: &str,
        change: &ProductChange,
    ) -> Result<SimulatedProductPurchase, SimulatorError> {
        let (changed, was_pending, now) = self.0.update_and_save(|state, now, _| {
            let before = state.google.find_product(token);
            let was_pending = before.is_some_and(|before| before.purchase_state == 2);
            let changed = state.google.change_product(token, change, now)?;
            Ok((changed, was_pending, now))
        })?;
        self.publish_notifications(notices::notification_after_product_change(
            &changed,
            was_pending,
            change,
            now,
        ));
        Ok(changed)
    }

    /// From now on, what happens to purchases of an app is pushed.
    pub fn set_push_subscription(
        &self,
        package: &str,
        to: PushSubscription,
    ) -> Result<(), SimulatorError> {
        if !to.endpoint.starts_with("http://") && !to.endpoint.starts_with("https://") {
            return Err(SimulatorError::invalid_request(
                "A push subscription's endpoint is a URL that begins with http:// or https://.",
            ));
        }
        self.0.update_and_save(|state, _, _| {
            state.google.push.insert(package.to_owned(), to);
            Ok(())
        })
    }

    /// The address in a push's token, where a push subscription does not say another.
    pub fn push_account(&self) -> &'static str {
        PUSH_SERVICE_ACCOUNT
    }

    /// Publishes any notification of an app: `block` is such as `subscriptionNotification`, `fields` what stands in it.
    pub fn publish_notification(
        &self,
        package: &str,
        block: &str,
        fields: Value,
    ) -> PublishedMessage {
        let notification = notices::build_notification(package, self.0.now(), block, fields);
        self.publish_message(package, notification.to_string().as_bytes())
    }

    /// Publishes what the console's button publishes.
    pub fn publish_test_notification(&self, package: &str) -> PublishedMessage {
        self.publish_notification(package, "testNotification", json!({ "version": "1.0" }))
    }

    /// Publishes anything at all to an app's topic.
    pub fn publish_message(&self, package: &str, data: &[u8]) -> PublishedMessage {
        pubsub::publish_message(&self.0, package, data)
    }

    fn publish_notifications(&self, notifications: impl IntoIterator<Item = Value>) {
        for notification in notifications {
            let package = notification["packageName"].as_str().unwrap_or_default();
            self.publish_message(package, notification.to_string().as_bytes());
        }
    }

    /// Every message published, oldest first.
    pub fn published_messages(&self) -> Vec<PublishedMessage> {
        self.0
            .lock_state()
            .published_messages
            .iter()
            .cloned()
            .collect()
    }

    /// Pushes a message once more and waits for the answer.
    pub async fn push_message(&self, message_id: &str) -> Result<PushResponse, SimulatorError> {
        self.push_or_not_found(message_id, None).await
    }

    /// Pushes a message with a token that must not be believed, and waits for the answer.
    pub async fn push_message_with_flaw(
        &self,
        message_id: &str,
        flaw: PushTokenFlaw,
    ) -> Result<PushResponse, SimulatorError> {
        self.push_or_not_found(message_id, Some(flaw)).await
    }

    async fn push_or_not_found(
        &self,
        id: &str,
        flaw: Option<PushTokenFlaw>,
    ) -> Result<PushResponse, SimulatorError> {
        pubsub::push_message(&self.0, id, flaw).await.ok_or_else(|| {
            SimulatorError::not_found(
                "There is no such message, or no push subscription for its app: see /control/google/messages and /control/google/push.",
            )
        })
    }

    /// Pushes again, without waiting, what no push has brought to where it should be. How many messages that is.
    pub fn redeliver_unacknowledged(&self) -> usize {
        let waiting: Vec<String> = {
            let inside = self.0.lock_state();
            let waiting = inside
                .published_messages
                .iter()
                .filter(|one| !one.is_acknowledged());
            waiting.map(|one| one.message_id.clone()).collect()
        };
        for id in &waiting {
            pubsub::spawn_push(&self.0, id);
        }
        waiting.len()
    }

    /// The token that a push of an app would carry now. `None` without a push subscription, and for a flaw that is to
    /// have none.
    pub fn push_token(&self, package: &str, flaw: Option<PushTokenFlaw>) -> Option<String> {
        let subscription = self
            .0
            .lock_state()
            .stores
            .google
            .push
            .get(package)
            .cloned()?;
        pubsub::build_push_token(&self.0, &subscription, flaw)
    }

    /// Google signs with a new key from now on. The last one stays published beside it, unless it is to be gone.
    pub fn rotate_keys(&self, drop_old: bool) {
        let new = GoogleSigningKey::new();
        let old = self.0.google_signing_key();
        self.0.lock_state().google_signing_keys = if drop_old { vec![new] } else { vec![new, old] };
    }

    /// A subscription, if it is known.
    pub fn find_subscription(&self, token: &str) -> Option<SimulatedSubscription> {
        self.0
            .lock_state()
            .stores
            .google
            .find_subscription(token)
            .cloned()
    }

    /// A one-time product, if it is known.
    pub fn find_product(&self, token: &str) -> Option<SimulatedProductPurchase> {
        self.0
            .lock_state()
            .stores
            .google
            .find_product(token)
            .cloned()
    }

    /// Every subscription, oldest first.
    pub fn list_subscriptions(&self) -> Vec<SimulatedSubscription> {
        let inside = self.0.lock_state();
        inside
            .stores
            .google
            .list_subscriptions()
            .into_iter()
            .cloned()
            .collect()
    }

    /// Every one-time product, oldest first.
    pub fn list_products(&self) -> Vec<SimulatedProductPurchase> {
        let inside = self.0.lock_state();
        inside
            .stores
            .google
            .list_products()
            .into_iter()
            .cloned()
            .collect()
    }

    /// One more service account. Its private key is not kept here. `name` becomes part of its address.
    pub fn create_service_account(
        &self,
        name: &str,
    ) -> Result<SimulatedServiceAccount, SimulatorError> {
        let is_plain = |letter: u8| letter.is_ascii_lowercase() || letter.is_ascii_digit();
        if name.is_empty()
            || name.len() > 30
            || !name
                .bytes()
                .all(|letter| is_plain(letter) || letter == b'-')
        {
            return Err(SimulatorError::invalid_request(
                "A service account's name has 1 to 30 of a–z, 0–9 and '-'.",
            ));
        }
        let account = SimulatedServiceAccount::new(name);
        let own = self.0.identity.service_account().client_email.clone();
        self.0.update_and_save(|state, _, _| {
            let accounts = &mut state.google.accounts;
            if account.client_email == own || accounts.contains_key(&account.client_email) {
                return Err(SimulatorError::invalid_request(format!(
                    "There is a service account {} already.",
                    account.client_email
                )));
            }
            let kept = ServiceAccountState {
                key: Some((account.public_key.clone(), account.private_key_id.clone())),
                disabled: false,
                denied: false,
            };
            accounts.insert(account.client_email.clone(), kept);
            Ok(())
        })?;
        Ok(account)
    }

    /// Deletes a service account (the token endpoint answers `invalid_grant`), or takes that back.
    pub fn set_account_disabled(&self, email: &str, disabled: bool) -> Result<(), SimulatorError> {
        self.update_account(email, |account| account.disabled = disabled)
    }

    /// Takes away a service account's permission in the Play Console (403 `permissionDenied`), or gives it back.
    pub fn set_account_denied(&self, email: &str, denied: bool) -> Result<(), SimulatorError> {
        self.update_account(email, |account| account.denied = denied)
    }

    fn update_account(
        &self,
        email: &str,
        change: impl FnOnce(&mut ServiceAccountState),
    ) -> Result<(), SimulatorError> {
        let is_own = self.0.identity.service_account().client_email == email;
        self.0.update_and_save(|state, _, _| {
            let accounts = &mut state.google.accounts;
            if is_own && !accounts.contains_key(email) {
                let usual = ServiceAccountState {
                    key: None,
                    disabled: false,
                    denied: false,
                };
                accounts.insert(email.to_owned(), usual);
            }
            let account = accounts.get_mut(email).ok_or_else(|| {
                SimulatorError::not_found(format!("There is no service account {email} here."))
            })?;
            change(account);
            Ok(())
        })
    }

    /// Makes every access token given out so far worthless, before its time.
    pub fn expire_access_tokens(&self) {
        let over = Timestamp::from_millis(0);
        for (_, expires) in self.0.lock_state().access_tokens.values_mut() {
            *expires = over;
        }
    }
}
