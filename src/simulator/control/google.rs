//! Makes and changes purchases of Play, from Rust.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::base::clock::Timestamp;
use crate::simulator::context::SimulatorContext;
use crate::simulator::identity::{GoogleSigningKey, SimulatedServiceAccount};
use crate::simulator::pubsub::{self, PUSH_SERVICE_ACCOUNT, PushResponse, PushTokenFlaw};
use crate::simulator::state::SimulatorError;
use crate::simulator::state::google::{
    GoogleState, NewProduct, NewSubscription, PlayRules, ProductChange, Resubscription,
    ServiceAccountState, SimulatedProductPurchase, SimulatedSubscription, SubscriptionChange,
    SubscriptionReplacement, purchase_not_found,
};
use crate::simulator::state::google_notifications::{
    self as notices, PublishedMessage, PushSubscription,
};
use crate::simulator::state::google_refund_reviews::SimulatedRefundReview;

/// Controls the simulated Play: purchases, notifications, accounts and keys.
#[derive(Clone)]
pub struct GoogleScenario(Arc<SimulatorContext>);

impl GoogleScenario {
    pub(in crate::simulator) fn new(context: Arc<SimulatorContext>) -> Self {
        Self(context)
    }

    fn read<T>(&self, read: impl FnOnce(&GoogleState) -> T) -> T {
        read(&self.0.lock_state().stores.google)
    }

    pub(super) fn now(&self) -> Timestamp {
        self.0.now()
    }

    /// Sells a subscription, and publishes its notification unless it is pending.
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

    /// Changes a subscription, and publishes the notifications that Play sends for the change.
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

    /// Sells a subscription again after its end, and publishes its notification.
    pub fn resubscribe(
        &self,
        token: &str,
        again: Resubscription,
    ) -> Result<SimulatedSubscription, SimulatorError> {
        let sold = self.0.update_and_save(|state, now, random| {
            state.google.resubscribe(token, again, now, random)
        })?;
        self.publish_notifications([notices::subscription_notification(&sold, 4, self.0.now())]);
        Ok(sold)
    }

    /// Publishes the end of a subscription that was replaced: Play does 2 to 4 seconds after the purchase of the new one.
    pub fn publish_end_of_replaced(&self, token: &str) -> Result<(), SimulatorError> {
        let old = self
            .find_subscription(token)
            .ok_or_else(|| purchase_not_found("subscriptions", token))?;
        self.publish_notifications([notices::subscription_notification(&old, 13, self.0.now())]);
        Ok(())
    }

    /// Changes the plan: sells a new subscription, linked to the old one, which ends now. Published as a purchase, unless it
    /// is pending; [`Self::publish_end_of_replaced`] publishes the end of the old one.
    pub fn replace_subscription(
        &self,
        token: &str,
        replacement: SubscriptionReplacement,
    ) -> Result<SimulatedSubscription, SimulatorError> {
        let pending = replacement.pending;
        let sold = self.0.update_and_save(|state, now, random| {
            state
                .google
                .replace_subscription(token, replacement, now, random)
        })?;
        if !pending {
            let now = self.0.now();
            self.publish_notifications([notices::subscription_notification(&sold, 4, now)]);
        }
        Ok(sold)
    }

    /// Sells a one-time product, and publishes its notification unless it is pending.
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

    /// Changes a one-time product, and publishes the notification of a refund or a late payment.
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

    /// Has Play ask about a refund of a purchase, and publishes the notification.
    pub fn ask_refund_review(
        &self,
        purchase_token: &str,
    ) -> Result<SimulatedRefundReview, SimulatorError> {
        let review = self.0.update_and_save(|state, now, random| {
            state.google.ask_refund_review(purchase_token, now, random)
        })?;
        self.publish_notification(
            &review.package_name,
            "pendingRefundReviewNotification",
            review.to_block(),
        );
        Ok(review)
    }

    /// Every refund about which Play asked, oldest first, with the answers.
    pub fn list_refund_reviews(&self) -> Vec<SimulatedRefundReview> {
        self.read(|google| google.list_refund_reviews().to_vec())
    }

    /// Sets what Play does by itself.
    pub fn set_rules(&self, rules: PlayRules) -> Result<(), SimulatorError> {
        self.0.update_and_save(|state, _, _| {
            state.google.rules = rules;
            Ok(())
        })
    }

    /// Refunds every purchase that is neither acknowledged nor consumed in time, and publishes the refunds.
    /// Returns how many there were.
    pub fn refund_unacknowledged(&self) -> Result<usize, SimulatorError> {
        let (refunded, now) = self
            .0
            .update_and_save(|state, now, _| Ok((state.google.refund_unacknowledged(now), now)))?;
        self.publish_notifications(notices::notifications_of_refunds(&refunded, now));
        Ok(refunded.subscriptions.len() + refunded.products.len())
    }

    /// The same where the rules say that Play does it by itself.
    pub(in crate::simulator) fn apply_rules(&self) -> Result<(), SimulatorError> {
        if self.read(|google| google.rules.refund_unacknowledged) {
            self.refund_unacknowledged()?;
        }
        Ok(())
    }

    /// Sets where the notifications of an app are pushed.
    pub fn set_push_subscription(
        &self,
        package: &str,
        subscription: PushSubscription,
    ) -> Result<(), SimulatorError> {
        if !subscription.endpoint.starts_with("http://")
            && !subscription.endpoint.starts_with("https://")
        {
            return Err(SimulatorError::invalid_request(
                "A push subscription's endpoint is a URL that begins with http:// or https://.",
            ));
        }
        self.0.update_and_save(|state, _, _| {
            state.google.push.insert(package.to_owned(), subscription);
            Ok(())
        })
    }

    /// The email address in a push's token, unless the push subscription names another.
    pub fn push_account(&self) -> &'static str {
        PUSH_SERVICE_ACCOUNT
    }

    /// Publishes any notification of an app: `block` is a name such as `subscriptionNotification`, `fields` its content.
    pub fn publish_notification(
        &self,
        package: &str,
        block: &str,
        fields: Value,
    ) -> PublishedMessage {
        let notification = notices::build_notification(package, self.0.now(), block, fields);
        self.publish_message(package, notification.to_string().as_bytes())
    }

    /// Publishes the test notification of the Play Console.
    pub fn publish_test_notification(&self, package: &str) -> PublishedMessage {
        self.publish_notification(package, "testNotification", json!({ "version": "1.0" }))
    }

    /// Publishes any bytes to an app's topic.
    pub fn publish_message(&self, package: &str, data: &[u8]) -> PublishedMessage {
        pubsub::publish_message(&self.0, package, data)
    }

    fn publish_notifications(&self, notifications: impl IntoIterator<Item = Value>) {
        for notification in notifications {
            let package = notification["packageName"].as_str().unwrap_or_default();
            self.publish_message(package, notification.to_string().as_bytes());
        }
    }

    /// The last 20,000 messages, oldest first.
    pub fn published_messages(&self) -> Vec<PublishedMessage> {
        let messages = &self.0.lock_state().published_messages;
        messages.iter().cloned().collect()
    }

    /// The messages published after the one with this id, oldest first; all without an id.
    pub fn list_messages_after(&self, message_id: Option<&str>) -> Vec<PublishedMessage> {
        let messages = &self.0.lock_state().published_messages;
        let newest_first = messages.iter().rev();
        let mut newer: Vec<_> = newest_first
            .take_while(|one| Some(one.message_id.as_str()) != message_id)
            .cloned()
            .collect();
        newer.reverse();
        newer
    }

    /// Pushes a message again and waits for the answer.
    pub async fn push_message(&self, message_id: &str) -> Result<PushResponse, SimulatorError> {
        self.push_or_not_found(message_id, None).await
    }

    /// Pushes a message with a wrong token, which must be refused, and waits for the answer.
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

    /// Pushes every unacknowledged message again, without waiting. Returns their number.
    pub fn redeliver_unacknowledged(&self) -> usize {
        let unacknowledged: Vec<String> = {
            let messages = &self.0.lock_state().published_messages;
            let all = messages.iter().filter(|it| !it.is_acknowledged());
            all.map(|it| it.message_id.clone()).collect()
        };
        for id in &unacknowledged {
            pubsub::spawn_push(&self.0, id);
        }
        unacknowledged.len()
    }

    /// The token that a push of an app would carry now. `None` without a push subscription, and for
    /// [`PushTokenFlaw::NoToken`].
    pub fn push_token(&self, package: &str, flaw: Option<PushTokenFlaw>) -> Option<String> {
        let subscription = self.read(|google| google.push.get(package).cloned())?;
        pubsub::build_push_token(&self.0, &subscription, flaw)
    }

    /// Signs with a new key from now on. The previous key stays published unless `drop_old` is set.
    pub fn rotate_keys(&self, drop_old: bool) {
        let new = GoogleSigningKey::new();
        let old = self.0.google_signing_key();
        self.0.lock_state().google_signing_keys = if drop_old { vec![new] } else { vec![new, old] };
    }

    /// A subscription by its purchase token.
    pub fn find_subscription(&self, token: &str) -> Option<SimulatedSubscription> {
        self.read(|google| google.find_subscription(token).cloned())
    }

    /// A one-time product by its purchase token.
    pub fn find_product(&self, token: &str) -> Option<SimulatedProductPurchase> {
        self.read(|google| google.find_product(token).cloned())
    }

    /// Every subscription, oldest first.
    pub fn list_subscriptions(&self) -> Vec<SimulatedSubscription> {
        self.read(|google| google.list_subscriptions().into_iter().cloned().collect())
    }

    /// Every one-time product, oldest first.
    pub fn list_products(&self) -> Vec<SimulatedProductPurchase> {
        self.read(|google| google.list_products().into_iter().cloned().collect())
    }

    /// Creates a service account; `name` becomes part of its address. The simulator does not store its private key.
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
            let account_state = ServiceAccountState {
                key: Some((account.public_key.clone(), account.private_key_id.clone())),
                ..ServiceAccountState::default()
            };
            accounts.insert(account.client_email.clone(), account_state);
            Ok(())
        })?;
        Ok(account)
    }

    /// Deletes a service account (the token endpoint answers `invalid_grant`), or restores it.
    pub fn set_account_disabled(&self, email: &str, disabled: bool) -> Result<(), SimulatorError> {
        self.update_account(email, |account| account.disabled = disabled)
    }

    /// Removes a service account's permission in the Play Console (403 `permissionDenied`), or restores it.
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
                accounts.insert(email.to_owned(), ServiceAccountState::default());
            }
            let account = accounts.get_mut(email).ok_or_else(|| {
                SimulatorError::not_found(format!("There is no service account {email} here."))
            })?;
            change(account);
            Ok(())
        })
    }

    /// Expires every access token issued so far.
    pub fn expire_access_tokens(&self) {
        let over = Timestamp::from_millis(0);
        for (_, expires) in self.0.lock_state().access_tokens.values_mut() {
            *expires = over;
        }
    }
}
