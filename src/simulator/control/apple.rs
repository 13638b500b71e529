//! Purchases of the App Store, made and changed.

use std::sync::Arc;

use serde_json::{Map, Value};

use crate::simulator::identity::AppleKey;
use crate::simulator::notifications;
use crate::simulator::pki::Forgery;
use crate::simulator::pubsub::Pushed;
use crate::simulator::shared::Shared;
use crate::simulator::state::Refused;
use crate::simulator::state::apple::{App, Change, Key, NewTransaction, Renewal, Transaction};
use crate::simulator::state::notifications::{
    self as notices, Before, NewNotification, Notification, NotificationUrls, Report,
};

/// The simulated App Store, seen from the side of those who buy and of its own staff.
#[derive(Clone)]
pub struct AppStore(Arc<Shared>);

impl AppStore {
    pub(in crate::simulator) fn new(shared: Arc<Shared>) -> Self {
        Self(shared)
    }

    /// Somebody buys. Reported where the app has an address for that.
    pub fn create(&self, new: NewTransaction) -> Result<Transaction, Refused> {
        let bought = self
            .0
            .change(|state, now, random| state.apple.create(new, now, random))?;
        self.report(&bought, notices::of_purchase(&bought))?;
        Ok(bought)
    }

    /// Something happens to a purchase, named by any of its transactions. Gives the transaction that now tells the
    /// story: the new one after a renewal. Reported, except what this simulator does to it.
    pub fn change(&self, id: &str, change: &Change) -> Result<Transaction, Refused> {
        let (told, report) = self.0.change(|state, now, random| {
            let before = state
                .apple
                .transaction(id)
                .map(|named| {
                    let original = &named.original_transaction_id;
                    let renewal = state.apple.renewal(original);
                    Before {
                        status: state.apple.status(original, now),
                        had_grace: renewal.is_some_and(|one| one.grace_expires.is_some()),
                    }
                })
                .unwrap_or_default();
            let told = state.apple.change(id, change, now, random)?;
            let renewal = state.apple.renewal(&told.original_transaction_id);
            let report = notices::after_change(&told, renewal, before, change);
            Ok((told, report))
        })?;
        if let Some(report) = report {
            self.report(&told, report)?;
        }
        Ok(told)
    }

    fn report(&self, about: &Transaction, (kind, subtype): Report) -> Result<(), Refused> {
        let new = NewNotification {
            transaction_id: Some(about.transaction_id.clone()),
            ..NewNotification::of(kind, subtype)
        };
        notifications::publish(&self.0, &about.bundle_id, &new, None).map(drop)
    }

    /// From now on, what happens to purchases of an app is reported.
    pub fn set_push(&self, bundle_id: &str, to: NotificationUrls) -> Result<(), Refused> {
        let is_url = |url: &String| url.starts_with("http://") || url.starts_with("https://");
        let urls = [&to.production, &to.sandbox];
        if !urls.into_iter().flatten().all(is_url) {
            return Err(Refused::impossible(
                "Where notifications are posted is a URL that begins with http:// or https://.",
            ));
        }
        self.0.change(|state, _, _| {
            state.apple.push.insert(bundle_id.to_owned(), to);
            Ok(())
        })
    }

    /// Reports anything of an app: any type, any subtype, about a purchase or none.
    pub fn notify(&self, bundle_id: &str, new: &NewNotification) -> Result<Notification, Refused> {
        notifications::publish(&self.0, bundle_id, new, None)?.ok_or_else(|| {
            Refused::impossible(format!(
                "{bundle_id} has no address for this notification: see /control/apple/push."
            ))
        })
    }

    /// Every notification, oldest first.
    pub fn notifications(&self) -> Vec<Notification> {
        self.0.inside().notifications.iter().cloned().collect()
    }

    /// Posts a notification once more and waits for the answer.
    pub async fn push(&self, uuid: &str) -> Result<Pushed, Refused> {
        self.push_with(uuid, None).await
    }

    /// Posts a notification in a form that must not be believed, and waits for the answer.
    pub async fn push_badly(&self, uuid: &str, forgery: Forgery) -> Result<Pushed, Refused> {
        self.push_with(uuid, Some(forgery)).await
    }

    async fn push_with(&self, uuid: &str, forgery: Option<Forgery>) -> Result<Pushed, Refused> {
        let pushed = notifications::push(&self.0, uuid, forgery).await;
        pushed.ok_or_else(|| {
            Refused::unknown(
                "There is no such notification, or no address for it: see /control/apple/notifications and /control/apple/push.",
            )
        })
    }

    /// Posts again, without waiting, what no attempt has brought to where it should be. How many notifications that is.
    pub fn redeliver(&self) -> usize {
        let waiting: Vec<String> = {
            let inside = self.0.inside();
            let waiting = inside
                .notifications
                .iter()
                .filter(|one| !one.is_delivered());
            waiting.map(|one| one.notification_uuid.clone()).collect()
        };
        for uuid in &waiting {
            notifications::push_soon(&self.0, uuid);
        }
        waiting.len()
    }

    /// A transaction, if it is known.
    pub fn transaction(&self, id: &str) -> Result<Transaction, Refused> {
        self.0.inside().state.apple.transaction(id).cloned().ok_or_else(|| {
            Refused::unknown(format!(
                "No transaction {id} is known here. GET /control/apple/transactions lists those that are."
            ))
        })
    }

    /// Every transaction, oldest first.
    pub fn transactions(&self) -> Vec<Transaction> {
        let inside = self.0.inside();
        inside
            .state
            .apple
            .transactions()
            .into_iter()
            .cloned()
            .collect()
    }

    /// The App Store's number for how a transaction's subscription stands: 1 active, 2 expired, 3 billing retry,
    /// 4 grace, 5 revoked. `None` for what is no subscription.
    pub fn subscription_status(&self, transaction: &Transaction) -> Option<u8> {
        let now = self.0.now();
        let inside = self.0.inside();
        inside
            .state
            .apple
            .status(&transaction.original_transaction_id, now)
    }

    /// What will become of a transaction's subscription. `None` for what is no subscription.
    pub fn renewal(&self, transaction: &Transaction) -> Option<Renewal> {
        let inside = self.0.inside();
        inside
            .state
            .apple
            .renewal(&transaction.original_transaction_id)
            .cloned()
    }

    /// A transaction's payload as it would be signed now.
    pub fn payload(&self, id: &str) -> Result<Map<String, Value>, Refused> {
        Ok(self.transaction(id)?.payload(self.0.now()))
    }

    /// A transaction signed now, as `StoreKit` 2 gives it to an app.
    pub fn signed(&self, id: &str) -> Result<String, Refused> {
        Ok(self.sign(&self.payload(id)?))
    }

    /// Any payload, signed.
    pub fn sign(&self, payload: &Map<String, Value>) -> String {
        self.0.identity.authority().sign(payload)
    }

    /// A transaction in a form that must not be believed.
    pub fn forged(&self, id: &str, forgery: Forgery) -> Result<String, Refused> {
        let payload = self.payload(id)?;
        Ok(self.0.identity.authority().forge(forgery, &payload))
    }

    /// An app; every bundle id has one.
    pub fn app(&self, bundle_id: &str) -> App {
        self.0.inside().state.apple.app(bundle_id)
    }

    /// Says something else of an app than is usual.
    pub fn set_app(&self, app: App) -> Result<(), Refused> {
        self.0.change(|state, _, _| {
            state.apple.set_app(app);
            Ok(())
        })
    }

    /// The key for the App Store Server API that every simulator has.
    pub fn key(&self) -> AppleKey {
        self.0.identity.apple_key().clone()
    }

    /// One more key of the same team. Its private half is not kept here.
    pub fn new_key(&self) -> Result<AppleKey, Refused> {
        let key = AppleKey::new(&self.key().issuer_id);
        self.0.change(|state, _, _| {
            let kept = Key {
                public_key: Some(key.public_key.clone()),
                revoked: false,
            };
            state.apple.keys.insert(key.key_id.clone(), kept);
            Ok(())
        })?;
        Ok(key)
    }

    /// Revokes a key, or takes that back.
    pub fn set_key_revoked(&self, key_id: &str, revoked: bool) -> Result<(), Refused> {
        let is_own = self.key().key_id == key_id;
        self.0.change(|state, _, _| {
            if is_own {
                let kept = Key {
                    public_key: None,
                    revoked,
                };
                state.apple.keys.insert(key_id.to_owned(), kept);
            } else {
                let key = state.apple.keys.get_mut(key_id).ok_or_else(|| {
                    Refused::unknown(format!("{key_id} is not the id of one of the team's keys."))
                })?;
                key.revoked = revoked;
            }
            Ok(())
        })
    }
}
