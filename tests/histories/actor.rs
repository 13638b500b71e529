//! Plays the steps of a life on the simulated stores, and says what its customer may use: by the stores' own records.

use std::time::Duration;

use attesto::base::clock::{Clock, Timestamp};
use attesto::simulator::Simulator;
use attesto::simulator::control::{AppleScenario, GoogleScenario};
use attesto::simulator::state::apple::{
    NewTransaction, SimulatedAppleSubscription, SimulatedTransaction, TransactionChange,
};
use attesto::simulator::state::apple_notifications::NewNotification;
use attesto::simulator::state::google::{
    GoneReason, NewProduct, NewSubscription, ProductChange, Resubscription,
    SimulatedProductPurchase, SimulatedSubscription, SubscriptionChange, SubscriptionReplacement,
};
use serde_json::{Map, Value, json};

use super::life::{Action, VerifyBy};

/// The stores renew within the day before the end.
const MAX_EARLY_RENEWAL: Duration = Duration::from_hours(25);

/// The customer, the store and the app of one life.
pub(crate) struct Actor {
    /// Bundle id and package name; no other life has the same.
    app: String,
    apple: AppleScenario,
    play: GoogleScenario,
    clock: Clock,
    /// Oldest first, each with the JWS that the app was given.
    transactions: Vec<(String, String)>,
    pub(crate) tokens: Vec<PlayToken>,
    /// The token that was paid last.
    current: Option<usize>,
    pending: Option<usize>,
    product: Option<String>,
    has_ended: bool,
    is_canceled: bool,
}

/// A purchase token of a subscription.
#[derive(Clone, Debug)]
pub(crate) struct PlayToken {
    pub(crate) token: String,
    follows: Follows,
    /// When Attesto was first told of it and could read it.
    pub(crate) first_read: Option<Timestamp>,
    acknowledged_at: Option<Timestamp>,
    is_gone: bool,
}

/// How Google connects a purchase with an earlier one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Follows {
    Nothing,
    /// The new purchase names the earlier one in `linkedPurchaseToken`.
    Linked(usize),
    /// By `outOfAppPurchaseContext`, until it is acknowledged. The earlier purchase says nothing of it.
    OutOfApp(usize),
}

/// The records of a life's purchases at one time.
#[derive(Clone, Debug)]
pub(crate) enum Records {
    Nothing,
    Apple(SimulatedAppleSubscription),
    AppleProduct(SimulatedTransaction),
    /// By the number of the token.
    Play(Vec<SimulatedSubscription>),
    PlayProduct(SimulatedProductPurchase),
}

/// What a store's record says of a purchase besides access.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Terms {
    pub(crate) will_renew: bool,
    pub(crate) must_be_acknowledged: bool,
    /// The user that the app gave with the purchase.
    pub(crate) user: Option<String>,
}

/// A question of the app's backend.
pub(crate) struct Question {
    pub(crate) store: &'static str,
    pub(crate) body: Value,
}

impl Actor {
    pub(crate) fn new(app: &str, simulator: &Simulator, clock: &Clock) -> Self {
        Self {
            app: app.to_owned(),
            apple: simulator.apple(),
            play: simulator.google(),
            clock: clock.clone(),
            transactions: Vec::new(),
            tokens: Vec::new(),
            current: None,
            pending: None,
            product: None,
            has_ended: false,
            is_canceled: false,
        }
    }

    /// `None` when it is not possible now, or is a question.
    pub(crate) fn perform(&mut self, action: &Action) -> Option<()> {
        match action {
            Action::AppleBuy(new) => self.buy_from_apple(new),
            Action::AppleChange { back, change } => self.change_apple(*back, change),
            Action::AppleNotify {
                back,
                kind,
                subtype,
                is_bare,
            } => self.notify_apple(*back, kind, *subtype, *is_bare),
            Action::PlayBuy(new) => self.subscribe(new),
            Action::PlayChange(change) => self.change_subscription(change),
            Action::PlayReplace(by) => self.replace_subscription(by),
            Action::PlayDecide { is_paid } => self.decide_pending(*is_paid),
            Action::PlayResubscribe { in_app } => self.resubscribe(*in_app),
            Action::PlayNotify(number) => self.notify_google(*number),
            Action::PlayVoidEarlier => self.void_earlier(),
            Action::ProductBuy(new) => self.buy_product(new),
            Action::ProductChange(change) => self.change_product(change),
            Action::PlayAskRefund => self.ask_refund(),
            Action::PlayForgetEnded => self.forget_ended(),
            Action::AppleVerify { .. } | Action::PlayVerify { .. } | Action::Silent(_) => None,
        }
    }

    /// The question that an action is, if it is one and there is something to ask about.
    pub(crate) fn question(&self, action: &Action) -> Option<Question> {
        let (store, body) = match action {
            Action::AppleVerify { back, by } => {
                let (id, stored) = self.transactions.iter().rev().nth(*back)?;
                let signed = || self.apple.sign_transaction(id).ok();
                let body = match by {
                    VerifyBy::Id => json!({ "transactionId": id }),
                    VerifyBy::Jws => json!({ "signedTransaction": signed()? }),
                    VerifyBy::StoredJws => json!({ "signedTransaction": stored }),
                    VerifyBy::Refresh => json!({ "signedTransaction": stored, "refresh": true }),
                };
                ("apple", body)
            }
            Action::PlayVerify { back } => {
                let token = match &self.product {
                    Some(token) => token,
                    None => &self.tokens.iter().rev().nth(*back)?.token,
                };
                let body = json!({ "packageName": self.app, "purchaseToken": token });
                ("google", body)
            }
            _ => return None,
        };
        Some(Question { store, body })
    }

    /// The end of what is paid for, or of the grace period.
    pub(crate) fn current_end(&self) -> Option<Timestamp> {
        if let Some((original, _)) = self.transactions.first() {
            let found = self.apple.find_subscription(original)?;
            return found.latest.expires_date.max(found.renewal.grace_expires);
        }
        let token = &self.tokens.get(self.current?)?.token;
        Some(self.play.find_subscription(token)?.latest_expiry_time())
    }

    pub(crate) fn records(&self) -> Records {
        if let Some((original, _)) = self.transactions.first() {
            return match self.apple.find_subscription(original) {
                Some(found) => Records::Apple(found),
                None => match self.apple.find_transaction(original) {
                    Ok(product) => Records::AppleProduct(product),
                    Err(_) => Records::Nothing,
                },
            };
        }
        if let Some(token) = &self.product {
            return match self.play.find_product(token) {
                Some(product) => Records::PlayProduct(product),
                None => Records::Nothing,
            };
        }
        let find = |one: &PlayToken| self.play.find_subscription(&one.token);
        Records::Play(self.tokens.iter().filter_map(find).collect())
    }

    /// The subject of a key: purchases that can be known to be one subscription have the same. `None` for a key of no
    /// purchase of this life.
    pub(crate) fn subject_of(&self, key: &str) -> Option<usize> {
        if self.transactions.iter().any(|(id, _)| id == key) || self.product.as_deref() == Some(key)
        {
            return Some(0);
        }
        let number = self.tokens.iter().position(|one| one.token == key)?;
        Some(self.subject_of_token(number))
    }

    /// The number of the first token of its chain, as far as Google ever told.
    fn subject_of_token(&self, number: usize) -> usize {
        match self.tokens[number].follows {
            Follows::Linked(earlier) => self.subject_of_token(earlier),
            Follows::OutOfApp(earlier) if self.was_read_before_acknowledgement(number) => {
                self.subject_of_token(earlier)
            }
            Follows::OutOfApp(_) | Follows::Nothing => number,
        }
    }

    fn was_read_before_acknowledgement(&self, number: usize) -> bool {
        let one = &self.tokens[number];
        match (one.first_read, one.acknowledged_at) {
            (Some(read), Some(acknowledged)) => read <= acknowledged,
            (Some(_), None) => true,
            (None, _) => false,
        }
    }

    /// Whether the customer may use a subject at a time, by records of the time `as_of`. A purchase made outside the app
    /// counts once Attesto was told of it: no other record names it.
    pub(crate) fn has_access(
        &self,
        records: &Records,
        subject: usize,
        as_of: Timestamp,
        at: Timestamp,
    ) -> bool {
        match records {
            Records::Nothing => false,
            Records::Apple(subscription) => subscription.has_access(at),
            Records::AppleProduct(product) => product.has_access(at),
            Records::PlayProduct(product) => product.has_access(),
            Records::Play(all) => all.iter().enumerate().any(|(number, one)| {
                let is_told = match self.tokens[number].follows {
                    Follows::OutOfApp(_) => self.tokens[number]
                        .first_read
                        .is_some_and(|read| read <= as_of),
                    Follows::Linked(_) | Follows::Nothing => true,
                };
                is_told && self.subject_of_token(number) == subject && one.has_access(at)
            }),
        }
    }

    /// Whether the customer may use any of it.
    pub(crate) fn has_any_access(&self, records: &Records, at: Timestamp) -> bool {
        match records {
            Records::Play(all) => all.iter().any(|one| one.has_access(at)),
            other => self.has_access(other, 0, at, at),
        }
    }

    /// The product that the customer may use at a time, where it is only one.
    pub(crate) fn product_in_use(
        &self,
        records: &Records,
        subject: usize,
        at: Timestamp,
    ) -> Option<String> {
        match records {
            // Renewed before its time as another product.
            Records::Apple(one) if one.latest.purchase_date > at => None,
            Records::Apple(one) => Some(one.latest.product_id.clone()),
            Records::AppleProduct(one) => Some(one.product_id.clone()),
            Records::PlayProduct(one) => Some(one.product_id.clone()),
            Records::Play(all) => {
                let mut in_use = all.iter().enumerate().filter(|(number, one)| {
                    self.subject_of_token(*number) == subject && one.has_access(at)
                });
                match (in_use.next(), in_use.next()) {
                    (Some((_, one)), None) if one.items.len() == 1 => {
                        Some(one.items[0].product_id.clone())
                    }
                    _ => None,
                }
            }
            Records::Nothing => None,
        }
    }

    /// What else is known of the purchase that the customer may use at a time, where it is only one.
    pub(crate) fn terms_in_use(
        &self,
        records: &Records,
        subject: usize,
        at: Timestamp,
    ) -> Option<Terms> {
        self.product_in_use(records, subject, at)?;
        match records {
            Records::Nothing => None,
            Records::Apple(one) => Some(Terms {
                will_renew: one.will_renew(at),
                must_be_acknowledged: false,
                user: one.latest.app_account_token().map(str::to_owned),
            }),
            Records::AppleProduct(one) => Some(Terms {
                will_renew: false,
                must_be_acknowledged: false,
                user: one.app_account_token().map(str::to_owned),
            }),
            Records::PlayProduct(one) => Some(Terms {
                will_renew: false,
                must_be_acknowledged: !one.acknowledged,
                user: one.account_id().map(str::to_owned),
            }),
            Records::Play(all) => {
                let mut in_use = all.iter().enumerate().filter(|(number, one)| {
                    self.subject_of_token(*number) == subject && one.has_access(at)
                });
                in_use.next().map(|(_, one)| Terms {
                    will_renew: one.will_renew(at),
                    must_be_acknowledged: !one.acknowledged,
                    user: one.account_id().map(str::to_owned),
                })
            }
        }
    }

    /// Notes that Attesto has read the record of a token, and of those it replaces.
    pub(crate) fn note_read(&mut self, token: &str) {
        let now = self.clock.now();
        let mut next = self.tokens.iter().position(|one| one.token == token);
        while let Some(number) = next {
            let one = &mut self.tokens[number];
            if one.is_gone {
                return;
            }
            one.first_read.get_or_insert(now);
            next = match one.follows {
                Follows::Linked(earlier) => Some(earlier),
                Follows::OutOfApp(_) | Follows::Nothing => None,
            };
        }
    }

    // The App Store.

    fn record_transaction(&mut self, transaction: &SimulatedTransaction) -> Option<()> {
        let id = transaction.transaction_id.clone();
        let jws = self.apple.sign_transaction(&id).ok()?;
        self.transactions.push((id, jws));
        Some(())
    }

    fn buy_from_apple(&mut self, new: &NewTransaction) -> Option<()> {
        let new = NewTransaction {
            bundle_id: Some(self.app.clone()),
            ..new.clone()
        };
        let bought = self.apple.create_transaction(new).ok()?;
        self.record_transaction(&bought)
    }

    fn change_apple(&mut self, back: usize, change: &TransactionChange) -> Option<()> {
        let id = self.transactions.iter().rev().nth(back)?.0.clone();
        let named = self.apple.find_transaction(&id).ok()?;
        let found = self.apple.find_subscription(&named.original_transaction_id);
        let is_possible = match change {
            TransactionChange::Refund { .. } => named.revocation.is_none(),
            TransactionChange::Revoke {} => {
                found.is_none_or(|found| found.latest.revocation.is_none())
                    && named.revocation.is_none()
            }
            TransactionChange::ReverseRefund {} => true,
            other => self.is_subscription_change_possible(&named, &found?, other),
        };
        if !is_possible {
            return None;
        }
        let changed = self.apple.change_transaction(&id, change).ok()?;
        match change {
            TransactionChange::Renew {} | TransactionChange::Upgrade { .. } => {
                self.has_ended = false;
                self.record_transaction(&changed)?;
            }
            TransactionChange::Expire { .. } => self.has_ended = true,
            _ => {}
        }
        Some(())
    }

    fn is_subscription_change_possible(
        &self,
        named: &SimulatedTransaction,
        found: &SimulatedAppleSubscription,
        change: &TransactionChange,
    ) -> bool {
        let now = self.clock.now();
        let status = self.apple.subscription_status(named);
        let end = found.latest.expires_date.unwrap_or(now);
        let has_begun = found.latest.purchase_date <= now;
        let renews = found.renewal.auto_renews;
        let has_lapsed = status == Some(2) && !self.has_ended;
        match change {
            TransactionChange::Renew {} => match status {
                Some(1) => renews && end.duration_since(now) <= MAX_EARLY_RENEWAL && has_begun,
                _ => true,
            },
            TransactionChange::Cancel {} => renews && matches!(status, Some(1 | 3 | 4)),
            TransactionChange::Resume {} => !renews && status == Some(1),
            TransactionChange::Expire { .. } => has_lapsed || matches!(status, Some(3 | 4)),
            TransactionChange::Grace { .. } => has_lapsed && renews,
            TransactionChange::BillingRetry {} => {
                has_lapsed && renews || matches!(status, Some(3 | 4))
            }
            TransactionChange::Upgrade { .. } => status == Some(1) && has_begun,
            TransactionChange::Downgrade { .. } => status == Some(1) && renews,
            TransactionChange::Extend { .. } => status == Some(1),
            _ => false,
        }
    }

    fn notify_apple(
        &self,
        back: usize,
        kind: &str,
        subtype: Option<&str>,
        is_bare: bool,
    ) -> Option<()> {
        let (id, _) = self.transactions.iter().rev().nth(back)?;
        let mut new = NewNotification {
            transaction_id: Some(id.clone()),
            ..NewNotification::new(kind, subtype)
        };
        if is_bare {
            for name in ["status", "signedRenewalInfo"] {
                new.block.insert(name.to_owned(), Value::Null);
            }
        }
        self.apple
            .publish_notification(&self.app, &new)
            .ok()
            .map(drop)
    }

    // Google Play.

    fn record_token(&mut self, sold: &SimulatedSubscription, follows: Follows, is_pending: bool) {
        self.tokens.push(PlayToken {
            token: sold.purchase_token.clone(),
            follows,
            first_read: None,
            acknowledged_at: None,
            is_gone: false,
        });
        let number = self.tokens.len() - 1;
        if is_pending {
            self.pending = Some(number);
        } else {
            self.current = Some(number);
            self.has_ended = false;
            self.is_canceled = false;
        }
    }

    fn current_token(&self) -> Option<(String, SimulatedSubscription)> {
        let token = self.tokens.get(self.current?)?.token.clone();
        let found = self.play.find_subscription(&token)?;
        Some((token, found))
    }

    fn subscribe(&mut self, new: &NewSubscription) -> Option<()> {
        let is_pending = new.pending;
        let new = NewSubscription {
            package_name: Some(self.app.clone()),
            ..new.clone()
        };
        let sold = self.play.buy_subscription(new).ok()?;
        self.record_token(&sold, Follows::Nothing, is_pending);
        Some(())
    }

    fn change_subscription(&mut self, change: &SubscriptionChange) -> Option<()> {
        let (token, found) = self.current_token()?;
        let now = self.clock.now();
        let state = found.state_name(now);
        let is_near_end = found.latest_expiry_time().duration_since(now) <= MAX_EARLY_RENEWAL;
        let has_lapsed = state == "EXPIRED" && !self.has_ended;
        let renews = !found.is_prepaid();
        let is_possible = match change {
            SubscriptionChange::Renew {} => {
                renews
                    && (matches!(state, "IN_GRACE_PERIOD" | "ON_HOLD" | "PAUSED")
                        || (state == "ACTIVE" && is_near_end)
                        || (has_lapsed && !self.is_canceled))
            }
            SubscriptionChange::Cancel { .. } => {
                renews && matches!(state, "ACTIVE" | "IN_GRACE_PERIOD")
            }
            SubscriptionChange::Restore {} => state == "CANCELED",
            SubscriptionChange::Expire {} => has_lapsed || matches!(state, "ON_HOLD" | "PAUSED"),
            SubscriptionChange::Grace { .. } | SubscriptionChange::Pause { .. } => {
                renews && state == "ACTIVE"
            }
            SubscriptionChange::Hold {} => renews && matches!(state, "ACTIVE" | "IN_GRACE_PERIOD"),
            SubscriptionChange::Resume {} => state == "PAUSED",
            SubscriptionChange::Revoke {} => found.has_access(now),
            SubscriptionChange::Defer { .. } => state == "ACTIVE",
            SubscriptionChange::Acknowledge {} => !found.acknowledged,
            _ => true,
        };
        if !is_possible {
            return None;
        }
        self.play.change_subscription(&token, change).ok()?;
        match change {
            SubscriptionChange::Renew {} | SubscriptionChange::Restore {} => {
                self.is_canceled = false;
            }
            SubscriptionChange::Cancel { .. } => self.is_canceled = true,
            SubscriptionChange::Expire {} | SubscriptionChange::Revoke {} => self.has_ended = true,
            SubscriptionChange::Acknowledge {} => {
                let one = &mut self.tokens[self.current?];
                one.acknowledged_at.get_or_insert(now);
            }
            _ => {}
        }
        Some(())
    }

    fn replace_subscription(&mut self, by: &SubscriptionReplacement) -> Option<()> {
        let (token, found) = self.current_token()?;
        let state = found.state_name(self.clock.now());
        let is_possible = match state {
            "ACTIVE" => true,
            "CANCELED" | "IN_GRACE_PERIOD" | "ON_HOLD" => !by.deferred,
            _ => false,
        };
        if self.pending.is_some() || !is_possible {
            return None;
        }
        let sold = self.play.replace_subscription(&token, by.clone()).ok()?;
        self.record_token(&sold, Follows::Linked(self.current?), by.pending);
        if !by.pending {
            self.play.publish_end_of_replaced(&token).ok()?;
        }
        Some(())
    }

    fn decide_pending(&mut self, is_paid: bool) -> Option<()> {
        let number = self.pending.take()?;
        let token = self.tokens[number].token.clone();
        let change = if is_paid {
            SubscriptionChange::Complete {}
        } else {
            SubscriptionChange::Decline {}
        };
        let changed = self.play.change_subscription(&token, &change).ok()?;
        if is_paid {
            self.current = Some(number);
            self.has_ended = false;
            self.is_canceled = false;
            if let Some(old) = &changed.linked_purchase_token {
                self.play.publish_end_of_replaced(old).ok()?;
            }
        }
        Some(())
    }

    fn resubscribe(&mut self, in_app: bool) -> Option<()> {
        let (token, _) = self.current_token()?;
        if self.pending.is_some() {
            return None;
        }
        let again = Resubscription {
            in_app,
            ..Resubscription::default()
        };
        let sold = self.play.resubscribe(&token, again).ok()?;
        let follows = if in_app {
            Follows::Nothing
        } else {
            Follows::OutOfApp(self.current?)
        };
        self.record_token(&sold, follows, false);
        Some(())
    }

    fn notify_google(&self, number: u8) -> Option<()> {
        let (token, _) = self.current_token()?;
        let fields =
            json!({ "version": "1.0", "notificationType": number, "purchaseToken": token });
        self.play
            .publish_notification(&self.app, "subscriptionNotification", fields);
        Some(())
    }

    fn void_earlier(&self) -> Option<()> {
        let (token, found) = self.current_token()?;
        let order = found.latest_order_id();
        let fields = json!({
            "purchaseToken": token, "orderId": order, "productType": 1, "refundType": 1,
        });
        self.play
            .publish_notification(&self.app, "voidedPurchaseNotification", fields);
        Some(())
    }

    fn ask_refund(&self) -> Option<()> {
        let current = self.current.and_then(|number| self.tokens.get(number));
        let token = self
            .product
            .as_deref()
            .or(current.map(|one| one.token.as_str()))?;
        self.play.ask_refund_review(token).ok().map(drop)
    }

    /// The App Store's transactions so far.
    pub(crate) fn apple_transactions(&self) -> impl Iterator<Item = &str> {
        self.transactions.iter().map(|(id, _)| id.as_str())
    }

    /// The Google purchases so far: tokens of subscriptions, or the one of a product.
    pub(crate) fn play_purchases(&self) -> impl Iterator<Item = &str> {
        let tokens = self.tokens.iter().map(|one| one.token.as_str());
        tokens.chain(self.product.as_deref())
    }

    fn forget_ended(&mut self) -> Option<()> {
        let (kept, now) = ([self.current, self.pending], self.clock.now());
        let gone = SubscriptionChange::Gone {
            how: GoneReason::NoLongerValid,
        };
        let mut is_any = None;
        for (number, one) in self.tokens.iter_mut().enumerate() {
            let found = self.play.find_subscription(&one.token)?;
            if kept.contains(&Some(number)) || one.is_gone || found.state_name(now) != "EXPIRED" {
                continue;
            }
            self.play.change_subscription(&one.token, &gone).ok()?;
            one.is_gone = true;
            is_any = Some(());
        }
        is_any
    }

    fn buy_product(&mut self, new: &NewProduct) -> Option<()> {
        let new = NewProduct {
            package_name: Some(self.app.clone()),
            ..new.clone()
        };
        let sold = self.play.buy_product(new).ok()?;
        self.product = Some(sold.purchase_token);
        Some(())
    }

    fn change_product(&mut self, change: &ProductChange) -> Option<()> {
        let token = self.product.clone()?;
        let found = self.play.find_product(&token)?;
        let is_possible = match change {
            ProductChange::Refund {} => found.purchase_state != 1,
            // The last one is refunded as a whole.
            ProductChange::RefundQuantity { .. } => {
                found.has_access() && found.refundable_quantity() > 1
            }
            _ => true,
        };
        if !is_possible {
            return None;
        }
        self.play.change_product(&token, change).ok().map(drop)
    }
}

impl Records {
    /// The times at which access may end.
    pub(crate) fn ends(&self) -> Vec<Timestamp> {
        match self {
            Self::Nothing | Self::PlayProduct(_) => Vec::new(),
            Self::Apple(one) => [one.latest.expires_date, one.renewal.grace_expires]
                .into_iter()
                .flatten()
                .collect(),
            Self::AppleProduct(one) => one.expires_date.into_iter().collect(),
            Self::Play(all) => all
                .iter()
                .flat_map(|one| one.items.iter().map(|item| item.expiry_time))
                .collect(),
        }
    }
}

/// The payload of a Google notification.
pub(crate) fn decode_message(data: &str) -> Map<String, Value> {
    use base64::Engine as _;
    let decoded = base64::engine::general_purpose::STANDARD.decode(data);
    decoded
        .ok()
        .and_then(|json| serde_json::from_slice(&json).ok())
        .unwrap_or_default()
}
