//! Purchases of Play, made and changed.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::clock::Timestamp;
use crate::simulator::identity::{GoogleSigner, ServiceAccount};
use crate::simulator::pubsub::{self, PUSH_ACCOUNT, Pushed, TokenFlaw};
use crate::simulator::shared::Shared;
use crate::simulator::state::Refused;
use crate::simulator::state::google::{
    Account, Change, NewProduct, NewSubscription, Product, ProductChange, Replacement, Subscription,
};
use crate::simulator::state::pubsub::{self as notices, Message, PushSubscription};

/// The simulated Play, seen from the side of those who buy and of its own staff.
#[derive(Clone)]
pub struct Play(Arc<Shared>);

impl Play {
    pub(in crate::simulator) fn new(shared: Arc<Shared>) -> Self {
        Self(shared)
    }

    /// Somebody subscribes. Published unless it is not paid for yet.
    pub fn subscribe(&self, new: NewSubscription) -> Result<Subscription, Refused> {
        let pending = new.pending;
        let sold = self
            .0
            .change(|state, now, random| state.google.subscribe(new, now, random))?;
        if !pending {
            self.publish_all([notices::of_subscription(&sold, 4, self.0.now())]);
        }
        Ok(sold)
    }

    /// Something happens to a subscription. Published, except what the app or this simulator does to it.
    pub fn change_subscription(
        &self,
        token: &str,
        change: &Change,
    ) -> Result<Subscription, Refused> {
        let (changed, before, now) = self.0.change(|state, now, _| {
            let before = state.google.subscription(token);
            let before = before.map_or("", |before| before.state(now));
            let changed = state.google.change_subscription(token, change, now)?;
            Ok((changed, before, now))
        })?;
        self.publish_all(notices::after_change(&changed, before, change, now));
        Ok(changed)
    }

    /// Somebody changes plans: a new subscription, linked to the old one, which ends now. Published as a purchase.
    pub fn replace(&self, token: &str, by: Replacement) -> Result<Subscription, Refused> {
        let sold = self
            .0
            .change(|state, now, random| state.google.replace(token, by, now, random))?;
        self.publish_all([notices::of_subscription(&sold, 4, self.0.now())]);
        Ok(sold)
    }

    /// Somebody buys a one-time product. Published unless it is not paid for yet.
    pub fn sell(&self, new: NewProduct) -> Result<Product, Refused> {
        let pending = new.pending;
        let sold = self
            .0
            .change(|state, now, random| state.google.sell(new, now, random))?;
        if !pending {
            self.publish_all([notices::of_product(&sold, 1, self.0.now())]);
        }
        Ok(sold)
    }

    /// Something happens to a one-time product. Refunds and late payments are published.
    pub fn change_product(&self, token: &str, change: &ProductChange) -> Result<Product, Refused> {
        let (changed, was_pending, now) = self.0.change(|state, now, _| {
            let before = state.google.product(token);
            let was_pending = before.is_some_and(|before| before.purchase_state == 2);
            let changed = state.google.change_product(token, change, now)?;
            Ok((changed, was_pending, now))
        })?;
        self.publish_all(notices::after_product_change(
            &changed,
            was_pending,
            change,
            now,
        ));
        Ok(changed)
    }

    /// From now on, what happens to purchases of an app is pushed.
    pub fn set_push(&self, package: &str, to: PushSubscription) -> Result<(), Refused> {
        if !to.endpoint.starts_with("http://") && !to.endpoint.starts_with("https://") {
            return Err(Refused::impossible(
                "A push subscription's endpoint is a URL that begins with http:// or https://.",
            ));
        }
        self.0.change(|state, _, _| {
            state.google.push.insert(package.to_owned(), to);
            Ok(())
        })
    }

    /// The address in a push's token, where a push subscription does not say another.
    pub fn push_account(&self) -> &'static str {
        PUSH_ACCOUNT
    }

    /// Publishes any notification of an app: `block` is such as `subscriptionNotification`, `fields` what stands in it.
    pub fn notify(&self, package: &str, block: &str, fields: Value) -> Message {
        let notification = notices::notification(package, self.0.now(), block, fields);
        self.publish(package, notification.to_string().as_bytes())
    }

    /// Publishes what the console's button publishes.
    pub fn test_notification(&self, package: &str) -> Message {
        self.notify(package, "testNotification", json!({ "version": "1.0" }))
    }

    /// Publishes anything at all to an app's topic.
    pub fn publish(&self, package: &str, data: &[u8]) -> Message {
        pubsub::publish(&self.0, package, data)
    }

    fn publish_all(&self, notifications: impl IntoIterator<Item = Value>) {
        for notification in notifications {
            let package = notification["packageName"].as_str().unwrap_or_default();
            self.publish(package, notification.to_string().as_bytes());
        }
    }

    /// Every message published, oldest first.
    pub fn messages(&self) -> Vec<Message> {
        self.0.inside().messages.iter().cloned().collect()
    }

    /// Pushes a message once more and waits for the answer.
    pub async fn push(&self, message_id: &str) -> Result<Pushed, Refused> {
        self.push_with(message_id, None).await
    }

    /// Pushes a message with a token that must not be believed, and waits for the answer.
    pub async fn push_badly(&self, message_id: &str, flaw: TokenFlaw) -> Result<Pushed, Refused> {
        self.push_with(message_id, Some(flaw)).await
    }

    async fn push_with(&self, id: &str, flaw: Option<TokenFlaw>) -> Result<Pushed, Refused> {
        pubsub::push(&self.0, id, flaw).await.ok_or_else(|| {
            Refused::unknown(
                "There is no such message, or no push subscription for its app: see /control/google/messages and /control/google/push.",
            )
        })
    }

    /// Pushes again, without waiting, what no push has brought to where it should be. How many messages that is.
    pub fn redeliver(&self) -> usize {
        let waiting: Vec<String> = {
            let inside = self.0.inside();
            let waiting = inside.messages.iter().filter(|one| !one.is_acknowledged());
            waiting.map(|one| one.message_id.clone()).collect()
        };
        for id in &waiting {
            pubsub::push_soon(&self.0, id);
        }
        waiting.len()
    }

    /// The token that a push of an app would carry now. `None` without a push subscription, and for a flaw that is to
    /// have none.
    pub fn push_token(&self, package: &str, flaw: Option<TokenFlaw>) -> Option<String> {
        let subscription = self.0.inside().state.google.push.get(package).cloned()?;
        pubsub::token(&self.0, &subscription, flaw)
    }

    /// Google signs with a new key from now on. The last one stays published beside it, unless it is to be gone.
    pub fn rotate_keys(&self, drop_old: bool) {
        let new = GoogleSigner::new();
        let old = self.0.signer();
        self.0.inside().signers = if drop_old { vec![new] } else { vec![new, old] };
    }

    /// A subscription, if it is known.
    pub fn subscription(&self, token: &str) -> Option<Subscription> {
        self.0.inside().state.google.subscription(token).cloned()
    }

    /// A one-time product, if it is known.
    pub fn product(&self, token: &str) -> Option<Product> {
        self.0.inside().state.google.product(token).cloned()
    }

    /// Every subscription, oldest first.
    pub fn subscriptions(&self) -> Vec<Subscription> {
        let inside = self.0.inside();
        inside
            .state
            .google
            .subscriptions()
            .into_iter()
            .cloned()
            .collect()
    }

    /// Every one-time product, oldest first.
    pub fn products(&self) -> Vec<Product> {
        let inside = self.0.inside();
        inside
            .state
            .google
            .products()
            .into_iter()
            .cloned()
            .collect()
    }

    /// One more service account. Its private key is not kept here. `name` becomes part of its address.
    pub fn new_service_account(&self, name: &str) -> Result<ServiceAccount, Refused> {
        let is_plain = |letter: u8| letter.is_ascii_lowercase() || letter.is_ascii_digit();
        if name.is_empty()
            || name.len() > 30
            || !name
                .bytes()
                .all(|letter| is_plain(letter) || letter == b'-')
        {
            return Err(Refused::impossible(
                "A service account's name has 1 to 30 of a–z, 0–9 and '-'.",
            ));
        }
        let account = ServiceAccount::new(name);
        let own = self.0.identity.service_account().client_email.clone();
        self.0.change(|state, _, _| {
            let accounts = &mut state.google.accounts;
            if account.client_email == own || accounts.contains_key(&account.client_email) {
                return Err(Refused::impossible(format!(
                    "There is a service account {} already.",
                    account.client_email
                )));
            }
            let kept = Account {
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
    pub fn set_account_disabled(&self, email: &str, disabled: bool) -> Result<(), Refused> {
        self.set_account(email, |account| account.disabled = disabled)
    }

    /// Takes away a service account's permission in the Play Console (403 `permissionDenied`), or gives it back.
    pub fn set_account_denied(&self, email: &str, denied: bool) -> Result<(), Refused> {
        self.set_account(email, |account| account.denied = denied)
    }

    fn set_account(&self, email: &str, change: impl FnOnce(&mut Account)) -> Result<(), Refused> {
        let is_own = self.0.identity.service_account().client_email == email;
        self.0.change(|state, _, _| {
            let accounts = &mut state.google.accounts;
            if is_own && !accounts.contains_key(email) {
                let usual = Account {
                    key: None,
                    disabled: false,
                    denied: false,
                };
                accounts.insert(email.to_owned(), usual);
            }
            let account = accounts.get_mut(email).ok_or_else(|| {
                Refused::unknown(format!("There is no service account {email} here."))
            })?;
            change(account);
            Ok(())
        })
    }

    /// Makes every access token given out so far worthless, before its time.
    pub fn expire_access_tokens(&self) {
        let over = Timestamp::from_millis(0);
        for (_, expires) in self.0.inside().tokens.values_mut() {
            *expires = over;
        }
    }
}
