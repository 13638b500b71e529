//! What the simulated App Store knows: transactions, the subscriptions they belong to, the apps, the keys.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::apple_notifications::NotificationUrls;
use super::{BillingPeriod, SimulatorError, random_letters};
use crate::base::clock::Timestamp;
use crate::crypto::token;

/// How long a grace period lasts when nothing else is asked for.
const DEFAULT_GRACE_PERIOD: Duration = Duration::from_hours(16 * 24);
/// What Xcode's clock shows beyond whole milliseconds.
const XCODE_MILLIS_FRACTION: f64 = 0.7297;

/// One of the App Store's two worlds.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum SimulatedEnvironment {
    /// Where money changes hands.
    Production,
    /// Where testers buy; also TestFlight and App Review.
    #[default]
    Sandbox,
}

impl SimulatedEnvironment {
    /// As payloads spell it.
    pub fn payload_name(self) -> &'static str {
        match self {
            Self::Production => "Production",
            Self::Sandbox => "Sandbox",
        }
    }

    /// As the simulator's paths spell it.
    pub fn path_segment(self) -> &'static str {
        match self {
            Self::Production => "production",
            Self::Sandbox => "sandbox",
        }
    }
}

/// What kind of product was bought.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProductType {
    /// Renews until it is cancelled.
    #[default]
    #[serde(alias = "Auto-Renewable Subscription", alias = "auto-renewable")]
    Subscription,
    /// Bought once, kept forever.
    #[serde(alias = "Non-Consumable")]
    NonConsumable,
    /// Used up.
    #[serde(alias = "Consumable")]
    Consumable,
    /// Runs out and does not renew.
    #[serde(alias = "Non-Renewing Subscription")]
    NonRenewing,
}

impl ProductType {
    /// As payloads spell it.
    pub fn payload_name(self) -> &'static str {
        match self {
            Self::Subscription => "Auto-Renewable Subscription",
            Self::NonConsumable => "Non-Consumable",
            Self::Consumable => "Consumable",
            Self::NonRenewing => "Non-Renewing Subscription",
        }
    }
}

/// A purchase to make. Everything has a default: nothing at all is a month of a subscription, in the sandbox.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct NewTransaction {
    /// Digits; one is made up when left out.
    pub transaction_id: Option<String>,
    /// The app; `com.example.app` when left out.
    pub bundle_id: Option<String>,
    /// `com.example.app.pro.monthly`, or `com.example.app.coins` for what is no subscription.
    pub product_id: Option<String>,
    /// What kind of product.
    #[serde(rename = "type")]
    pub kind: ProductType,
    /// Which world; the sandbox when left out.
    pub environment: SimulatedEnvironment,
    /// Now when left out.
    pub purchase_date: Option<Timestamp>,
    /// One period after the purchase when left out; only subscriptions end.
    pub expires_date: Option<Timestamp>,
    /// A month when left out.
    pub period: Option<BillingPeriod>,
    /// 1 when left out.
    pub quantity: Option<u32>,
    /// The app's own user: a UUID.
    pub app_account_token: Option<String>,
    /// `FAMILY_SHARED` instead of `PURCHASED`.
    pub family_shared: bool,
    /// In milliunits of the currency; 9990 when left out.
    pub price: Option<i64>,
    /// `USD` when left out.
    pub currency: Option<String>,
    /// ISO 3166 alpha-3; `USA` when left out.
    pub storefront: Option<String>,
    /// `143441` when left out.
    pub storefront_id: Option<String>,
    /// 1 introductory, 2 promotional, 3 offer code, 4 win-back.
    pub offer_type: Option<u8>,
    /// The offer's name.
    pub offer_identifier: Option<String>,
    /// `FREE_TRIAL`, `PAY_AS_YOU_GO`, `PAY_UP_FRONT`, `ONE_TIME`.
    pub offer_discount_type: Option<String>,
    /// ISO 8601.
    pub offer_period: Option<BillingPeriod>,
    /// Write dates with fractions of a millisecond, as Xcode does.
    pub fractional_dates: bool,
    /// Fields to put into the payload as they are: new ones, or others than would stand there; `null` leaves one out.
    pub fields: Map<String, Value>,
}

/// One transaction.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SimulatedTransaction {
    /// Its id.
    pub transaction_id: String,
    /// The first transaction's id; the same for all renewals.
    pub original_transaction_id: String,
    /// The app.
    pub bundle_id: String,
    /// The product.
    pub product_id: String,
    /// What kind of product.
    #[serde(rename = "type")]
    pub kind: ProductType,
    /// Which world.
    pub environment: SimulatedEnvironment,
    /// When it was bought or renewed.
    pub purchase_date: Timestamp,
    /// When the first transaction was made.
    pub original_purchase_date: Timestamp,
    /// When it ends; only subscriptions do.
    pub expires_date: Option<Timestamp>,
    /// When and how it was taken back.
    pub revocation: Option<Revocation>,
    /// Whether another product of its group has replaced it.
    pub is_upgraded: bool,
    /// Whether it is a renewal.
    pub is_renewal: bool,
    web_order_line_item_id: Option<String>,
    app_transaction_id: String,
    bought: NewTransaction,
}

/// A transaction taken back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Revocation {
    /// When.
    pub date: Timestamp,
    /// 0 another reason, 1 an issue with the app.
    pub reason: u8,
    /// `REFUND_FULL`, `REFUND_PRORATED`, `FAMILY_REVOKE`.
    #[serde(rename = "type")]
    pub kind: String,
    /// In thousandths of a percent.
    pub percentage: Option<u32>,
}

/// What will become of a subscription.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SimulatedRenewal {
    /// Whether it will renew.
    pub auto_renews: bool,
    /// What it will renew as.
    pub auto_renew_product_id: String,
    /// Whether the store is trying to collect the money.
    pub in_billing_retry: bool,
    /// Until when access goes on meanwhile.
    pub grace_expires: Option<Timestamp>,
    /// 1 cancelled, 2 billing, 3 price, 4 product gone, 5 other.
    pub expiration_intent: Option<u8>,
    /// When the present run of periods began.
    pub recent_start: Timestamp,
}

/// Something that happens to a purchase.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(
    tag = "action",
    rename_all = "kebab-case",
    rename_all_fields = "camelCase",
    deny_unknown_fields
)]
pub enum TransactionChange {
    /// One more period: a new transaction. Ends billing retry and grace.
    Renew {},
    /// The customer turns renewal off; the present period goes on.
    Cancel {},
    /// The customer turns renewal on again.
    Resume {},
    /// It ends now.
    Expire {
        /// Why: 1 cancelled (when left out), 2 billing, 3 price, 4 product gone, 5 other.
        #[serde(default)]
        intent: Option<u8>,
    },
    /// A payment failed; the period ends now, and access goes on in a grace period.
    Grace {
        /// How long; 16 days when left out.
        #[serde(default)]
        days: Option<u32>,
    },
    /// A payment failed; the period ends now, and the store keeps trying without a grace period.
    BillingRetry {},
    /// The money is given back.
    Refund {
        /// 0 another reason (when left out), 1 an issue with the app.
        #[serde(default)]
        reason: u8,
        /// A part only, in thousandths of a percent.
        #[serde(default)]
        percentage: Option<u32>,
    },
    /// A refund is taken back.
    ReverseRefund {},
    /// Family sharing ends.
    Revoke {},
    /// Another product of the group replaces it at once: a new transaction.
    Upgrade {
        /// The product.
        product_id: String,
        /// Its period; the old one's when left out.
        #[serde(default)]
        period: Option<BillingPeriod>,
        /// Its price in milliunits; the old one's when left out.
        #[serde(default)]
        price: Option<i64>,
    },
    /// Another product of the group from the next renewal on.
    Downgrade {
        /// The product.
        product_id: String,
    },
    /// The developer gives more time.
    Extend {
        /// How much, up to 90.
        days: u32,
    },
    /// The App Store no longer knows the transaction, nor the others of its subscription.
    Forget {},
}

/// What the simulated App Store knows of an app.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SimulatedApp {
    /// Its bundle id.
    pub bundle_id: String,
    /// Its number.
    pub app_apple_id: u64,
    /// Whether it was ever released: production answers 401 for one that was not.
    pub released: bool,
}

impl SimulatedApp {
    /// An app as it is when nobody said otherwise: released, with a number that follows from its bundle id.
    pub fn for_bundle_id(bundle_id: &str) -> Self {
        let digest = token::sha256(bundle_id.as_bytes());
        let number = digest[..4]
            .iter()
            .fold(0, |number, byte| number * 256 + u64::from(*byte));
        Self {
            bundle_id: bundle_id.to_owned(),
            app_apple_id: 1_000_000_000 + number % 1_000_000_000,
            released: true,
        }
    }
}

/// A key beside the one in the identity.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AppleKeyState {
    /// The public point, base64. `None` for the identity's own.
    pub public_key: Option<String>,
    pub revoked: bool,
}

/// All of it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct AppleState {
    apps: BTreeMap<String, SimulatedApp>,
    transactions: BTreeMap<String, SimulatedTransaction>,
    renewals: BTreeMap<String, SimulatedRenewal>,
    pub keys: BTreeMap<String, AppleKeyState>,
    /// Where each app's notifications are posted.
    pub push: BTreeMap<String, NotificationUrls>,
}

impl AppleState {
    /// An app; every bundle id has one.
    pub(crate) fn get_app(&self, bundle_id: &str) -> SimulatedApp {
        self.apps
            .get(bundle_id)
            .cloned()
            .unwrap_or_else(|| SimulatedApp::for_bundle_id(bundle_id))
    }

    /// Says something else of an app than is usual.
    pub(crate) fn set_app(&mut self, app: SimulatedApp) {
        self.apps.insert(app.bundle_id.clone(), app);
    }

    /// A transaction by its id.
    pub(crate) fn find_transaction(&self, id: &str) -> Option<&SimulatedTransaction> {
        self.transactions.get(id)
    }

    /// Every transaction, oldest first.
    pub(crate) fn list_transactions(&self) -> Vec<&SimulatedTransaction> {
        let mut all: Vec<_> = self.transactions.values().collect();
        all.sort_by_key(|one| one.purchase_date);
        all
    }

    /// Whether this is the id of an app's download by a customer rather than of a purchase.
    pub(crate) fn is_app_transaction(&self, id: &str) -> bool {
        self.transactions
            .values()
            .any(|transaction| transaction.app_transaction_id == id)
    }

    /// The latest transaction of the subscription that a transaction belongs to.
    pub(crate) fn latest_transaction(&self, original: &str) -> Option<&SimulatedTransaction> {
        self.transactions
            .values()
            .filter(|one| one.original_transaction_id == original)
            .max_by_key(|one| (one.purchase_date, !one.is_upgraded, one.is_renewal))
    }

    /// What will become of a subscription, by its original transaction id.
    pub(crate) fn find_renewal(&self, original: &str) -> Option<&SimulatedRenewal> {
        self.renewals.get(original)
    }

    /// Makes a purchase.
    pub(crate) fn create_transaction(
        &mut self,
        new: NewTransaction,
        now: Timestamp,
        random: &mut fastrand::Rng,
    ) -> Result<SimulatedTransaction, SimulatorError> {
        let id = match &new.transaction_id {
            Some(id) if !is_transaction_id(id) => {
                return Err(SimulatorError::invalid_request(
                    "A transactionId is made of 1 to 20 digits, not beginning with 0.",
                ));
            }
            Some(id) if self.transactions.contains_key(id) => {
                return Err(SimulatorError::invalid_request(format!(
                    "There is a transaction {id} already."
                )));
            }
            Some(id) => id.clone(),
            None => self.generate_transaction_id(new.environment, random),
        };
        let bundle_id = new
            .bundle_id
            .clone()
            .unwrap_or_else(|| "com.example.app".to_owned());
        let product_id = new.product_id.clone().unwrap_or_else(|| {
            let name = match new.kind {
                ProductType::Subscription => "pro.monthly",
                ProductType::NonRenewing => "season",
                ProductType::NonConsumable => "lifetime",
                ProductType::Consumable => "coins",
            };
            format!("{bundle_id}.{name}")
        });
        let bought_at = new.purchase_date.unwrap_or(now);
        let period = new.period.clone().unwrap_or_else(BillingPeriod::one_month);
        let ends = matches!(
            new.kind,
            ProductType::Subscription | ProductType::NonRenewing
        );
        let transaction = SimulatedTransaction {
            original_transaction_id: id.clone(),
            bundle_id,
            product_id: product_id.clone(),
            kind: new.kind,
            environment: new.environment,
            purchase_date: bought_at,
            original_purchase_date: bought_at,
            expires_date: new
                .expires_date
                .or_else(|| ends.then(|| period.end_from(bought_at))),
            revocation: None,
            is_upgraded: false,
            is_renewal: false,
            web_order_line_item_id: (new.kind == ProductType::Subscription)
                .then(|| random_order_line_item_id(random)),
            app_transaction_id: format!("70{}", random_letters(random, b"0123456789", 16)),
            transaction_id: id.clone(),
            bought: new,
        };
        if transaction.kind == ProductType::Subscription {
            let renewal = SimulatedRenewal {
                auto_renews: true,
                auto_renew_product_id: product_id,
                in_billing_retry: false,
                grace_expires: None,
                expiration_intent: None,
                recent_start: bought_at,
            };
            self.renewals.insert(id.clone(), renewal);
        }
        self.transactions.insert(id, transaction.clone());
        Ok(transaction)
    }

    /// Changes a purchase, named by any of its transactions: what concerns a subscription happens to its latest one,
    /// what concerns money to the very one. Gives the transaction that now tells the story.
    pub(crate) fn change_transaction(
        &mut self,
        id: &str,
        change: &TransactionChange,
        now: Timestamp,
        random: &mut fastrand::Rng,
    ) -> Result<SimulatedTransaction, SimulatorError> {
        let named = self.transactions.get(id).cloned().ok_or_else(|| {
            SimulatorError::not_found(format!(
                "No transaction {id} is known here. GET /control/apple/transactions lists those that are."
            ))
        })?;
        match change {
            TransactionChange::Refund { reason, percentage } => {
                self.update_transaction(id, |transaction| {
                    transaction.revocation = Some(Revocation {
                        date: now,
                        reason: *reason,
                        kind: if percentage.is_some() {
                            "REFUND_PRORATED"
                        } else {
                            "REFUND_FULL"
                        }
                        .to_owned(),
                        percentage: Some(percentage.unwrap_or(100_000)),
                    });
                })
            }
            TransactionChange::ReverseRefund {} if named.revocation.is_none() => Err(
                SimulatorError::invalid_request(format!("Transaction {id} has not been refunded.")),
            ),
            TransactionChange::ReverseRefund {} => {
                self.update_transaction(id, |transaction| transaction.revocation = None)
            }
            TransactionChange::Revoke {} => self.update_transaction(id, |transaction| {
                transaction.revocation = Some(Revocation {
                    date: now,
                    reason: 0,
                    kind: "FAMILY_REVOKE".to_owned(),
                    percentage: None,
                });
            }),
            TransactionChange::Forget {} => {
                let original = &named.original_transaction_id;
                self.transactions
                    .retain(|_, one| &one.original_transaction_id != original);
                self.renewals.remove(original);
                Ok(named)
            }
            TransactionChange::Expire { .. } | TransactionChange::Extend { .. }
                if named.kind == ProductType::NonRenewing =>
            {
                self.update_transaction(id, |transaction| {
                    transaction.expires_date = match (change, transaction.expires_date) {
                        (TransactionChange::Extend { days }, Some(end)) => {
                            Some(end.plus(duration_from_days(*days)))
                        }
                        _ => Some(now),
                    };
                })
            }
            _ => self.change_subscription(&named, change, now, random),
        }
    }

    fn change_subscription(
        &mut self,
        named: &SimulatedTransaction,
        change: &TransactionChange,
        now: Timestamp,
        random: &mut fastrand::Rng,
    ) -> Result<SimulatedTransaction, SimulatorError> {
        let original = named.original_transaction_id.clone();
        let (Some(latest), Some(mut renewal)) = (
            self.latest_transaction(&original).cloned(),
            self.renewals.get(&original).cloned(),
        ) else {
            return Err(SimulatorError::invalid_request(format!(
                "Transaction {} is no subscription ({}), so this cannot happen to it.",
                named.transaction_id,
                named.kind.payload_name()
            )));
        };
        let latest_id = latest.transaction_id.clone();
        let told = match change {
            TransactionChange::Renew {} => {
                let next = self.next_transaction(&latest, &mut renewal, now, random);
                self.transactions
                    .insert(next.transaction_id.clone(), next.clone());
                next
            }
            TransactionChange::Cancel {} => {
                renewal.auto_renews = false;
                renewal.expiration_intent = Some(1);
                latest
            }
            TransactionChange::Resume {} => {
                renewal.auto_renews = true;
                renewal.expiration_intent = None;
                latest
            }
            TransactionChange::Expire { intent } => {
                renewal.auto_renews = false;
                renewal.in_billing_retry = false;
                renewal.grace_expires = None;
                renewal.expiration_intent = Some(intent.or(renewal.expiration_intent).unwrap_or(1));
                self.update_transaction(&latest_id, |one| one.expire_by(now))?
            }
            TransactionChange::Grace { days } => {
                renewal.in_billing_retry = true;
                renewal.expiration_intent = Some(2);
                renewal.grace_expires =
                    Some(now.plus(days.map_or(DEFAULT_GRACE_PERIOD, duration_from_days)));
                self.update_transaction(&latest_id, |one| one.expire_by(now))?
            }
            TransactionChange::BillingRetry {} => {
                renewal.in_billing_retry = true;
                renewal.expiration_intent = Some(2);
                renewal.grace_expires = None;
                self.update_transaction(&latest_id, |one| one.expire_by(now))?
            }
            TransactionChange::Upgrade {
                product_id,
                period,
                price,
            } => {
                renewal.auto_renew_product_id.clone_from(product_id);
                let mut from = latest.clone();
                from.expires_date = Some(now);
                from.bought.period = period.clone().or(from.bought.period);
                from.bought.price = price.or(from.bought.price);
                let mut next = self.next_transaction(&from, &mut renewal, now, random);
                next.is_renewal = false;
                self.update_transaction(&latest_id, |one| one.is_upgraded = true)?;
                self.transactions
                    .insert(next.transaction_id.clone(), next.clone());
                next
            }
            TransactionChange::Downgrade { product_id } => {
                renewal.auto_renew_product_id.clone_from(product_id);
                latest
            }
            TransactionChange::Extend { days } if (1..=90).contains(days) => self
                .update_transaction(&latest_id, |one| {
                    one.expires_date = one
                        .expires_date
                        .map(|end| end.plus(duration_from_days(*days)));
                })?,
            TransactionChange::Extend { .. } => {
                return Err(SimulatorError::invalid_request(
                    "The App Store extends by 1 to 90 days.",
                ));
            }
            TransactionChange::Refund { .. }
            | TransactionChange::ReverseRefund {}
            | TransactionChange::Revoke {}
            | TransactionChange::Forget {} => latest,
        };
        self.renewals.insert(original, renewal);
        Ok(told)
    }

    /// The transaction of the next period: it begins where the last one ends, or now when that is over.
    fn next_transaction(
        &self,
        last: &SimulatedTransaction,
        renewal: &mut SimulatedRenewal,
        now: Timestamp,
        random: &mut fastrand::Rng,
    ) -> SimulatedTransaction {
        let end = last.expires_date.unwrap_or(now);
        let begin = if end > now { end } else { now };
        if begin > end {
            renewal.recent_start = begin;
        }
        renewal.auto_renews = true;
        renewal.in_billing_retry = false;
        renewal.grace_expires = None;
        renewal.expiration_intent = None;
        let period = last
            .bought
            .period
            .clone()
            .unwrap_or_else(BillingPeriod::one_month);
        let mut next = last.clone();
        next.transaction_id = self.generate_transaction_id(last.environment, random);
        next.product_id.clone_from(&renewal.auto_renew_product_id);
        next.purchase_date = begin;
        next.expires_date = Some(period.end_from(begin));
        next.web_order_line_item_id = Some(random_order_line_item_id(random));
        next.revocation = None;
        next.is_upgraded = false;
        next.is_renewal = true;
        // An introductory or promotional price is for the period it was bought with.
        next.bought.offer_type = None;
        next.bought.offer_identifier = None;
        next.bought.offer_discount_type = None;
        next.bought.offer_period = None;
        next
    }

    fn update_transaction(
        &mut self,
        id: &str,
        change: impl FnOnce(&mut SimulatedTransaction),
    ) -> Result<SimulatedTransaction, SimulatorError> {
        let transaction = self.transactions.get_mut(id).ok_or_else(|| {
            SimulatorError::not_found(format!("No transaction {id} is known here."))
        })?;
        change(transaction);
        Ok(transaction.clone())
    }

    fn generate_transaction_id(
        &self,
        environment: SimulatedEnvironment,
        random: &mut fastrand::Rng,
    ) -> String {
        let prefix = match environment {
            SimulatedEnvironment::Production => "30000",
            SimulatedEnvironment::Sandbox => "20000",
        };
        loop {
            let id = format!("{prefix}{}", random_letters(random, b"0123456789", 11));
            if !self.transactions.contains_key(&id) {
                return id;
            }
        }
    }

    /// The App Store's number for how a subscription stands: 1 active, 2 expired, 3 billing retry, 4 grace, 5 revoked.
    pub(crate) fn subscription_status(&self, original: &str, now: Timestamp) -> Option<u8> {
        let latest = self.latest_transaction(original)?;
        let renewal = self.renewals.get(original)?;
        Some(if latest.revocation.is_some() {
            5
        } else if latest.expires_date.is_none_or(|end| end > now) {
            1
        } else if renewal.grace_expires.is_some_and(|end| end > now) {
            4
        } else if renewal.in_billing_retry {
            3
        } else {
            2
        })
    }

    /// A subscription's renewal information as it is signed.
    pub(crate) fn renewal_payload(
        &self,
        original: &str,
        now: Timestamp,
    ) -> Option<Map<String, Value>> {
        let latest = self.latest_transaction(original)?;
        let renewal = self.renewals.get(original)?;
        let bought = &latest.bought;
        let mut payload = into_object(json!({
            "originalTransactionId": original,
            "autoRenewProductId": renewal.auto_renew_product_id,
            "productId": latest.product_id,
            "autoRenewStatus": u8::from(renewal.auto_renews),
            "isInBillingRetryPeriod": renewal.in_billing_retry,
            "signedDate": now.as_millis(),
            "environment": latest.environment.payload_name(),
            "recentSubscriptionStartDate": renewal.recent_start.as_millis(),
            "renewalDate": latest.expires_date.map(Timestamp::as_millis),
            "currency": latest.currency(),
            "renewalPrice": latest.price(),
            "appTransactionId": latest.app_transaction_id,
        }));
        insert_if_some(&mut payload, "expirationIntent", renewal.expiration_intent);
        insert_if_some(
            &mut payload,
            "gracePeriodExpiresDate",
            renewal.grace_expires.map(Timestamp::as_millis),
        );
        insert_if_some(
            &mut payload,
            "appAccountToken",
            bought.app_account_token.clone(),
        );
        Some(payload)
    }
}

impl SimulatedTransaction {
    /// The transaction as it is signed at `now`.
    pub fn to_payload(&self, now: Timestamp) -> Map<String, Value> {
        let bought = &self.bought;
        let date = |moment: Timestamp| date_json(moment, bought.fractional_dates);
        let mut payload = into_object(json!({
            "transactionId": self.transaction_id,
            "originalTransactionId": self.original_transaction_id,
            "bundleId": self.bundle_id,
            "productId": self.product_id,
            "purchaseDate": date(self.purchase_date),
            "originalPurchaseDate": date(self.original_purchase_date),
            "quantity": bought.quantity.unwrap_or(1),
            "type": self.kind.payload_name(),
            "inAppOwnershipType": if bought.family_shared { "FAMILY_SHARED" } else { "PURCHASED" },
            "signedDate": date(now),
            "environment": self.environment.payload_name(),
            "transactionReason": if self.is_renewal { "RENEWAL" } else { "PURCHASE" },
            "storefront": bought.storefront.as_deref().unwrap_or("USA"),
            "storefrontId": bought.storefront_id.as_deref().unwrap_or("143441"),
            "price": self.price(),
            "currency": self.currency(),
            "appTransactionId": self.app_transaction_id,
        }));
        if self.kind == ProductType::Subscription {
            insert_if_some(
                &mut payload,
                "webOrderLineItemId",
                self.web_order_line_item_id.clone(),
            );
            insert_if_some(
                &mut payload,
                "subscriptionGroupIdentifier",
                Some("20900001"),
            );
        }
        insert_if_some(&mut payload, "expiresDate", self.expires_date.map(date));
        insert_if_some(
            &mut payload,
            "appAccountToken",
            bought.app_account_token.clone(),
        );
        insert_if_some(&mut payload, "offerType", bought.offer_type);
        insert_if_some(
            &mut payload,
            "offerIdentifier",
            bought.offer_identifier.clone(),
        );
        insert_if_some(
            &mut payload,
            "offerDiscountType",
            bought.offer_discount_type.clone(),
        );
        insert_if_some(&mut payload, "offerPeriod", bought.offer_period.clone());
        insert_if_some(&mut payload, "isUpgraded", self.is_upgraded.then_some(true));
        if let Some(revocation) = &self.revocation {
            insert_if_some(&mut payload, "revocationDate", Some(date(revocation.date)));
            insert_if_some(&mut payload, "revocationReason", Some(revocation.reason));
            insert_if_some(
                &mut payload,
                "revocationType",
                Some(revocation.kind.clone()),
            );
            insert_if_some(&mut payload, "revocationPercentage", revocation.percentage);
        }
        for (name, value) in &bought.fields {
            if value.is_null() {
                payload.remove(name);
            } else {
                payload.insert(name.clone(), value.clone());
            }
        }
        payload
    }

    fn price(&self) -> i64 {
        self.bought.price.unwrap_or(9990)
    }

    fn currency(&self) -> &str {
        self.bought.currency.as_deref().unwrap_or("USD")
    }

    /// Ends now what would have ended later.
    fn expire_by(&mut self, now: Timestamp) {
        self.expires_date = self.expires_date.map(|end| end.min(now));
    }
}

/// Whether a text has the shape of a transaction id.
pub(crate) fn is_transaction_id(text: &str) -> bool {
    (1..=20).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_digit())
        && !text.starts_with('0')
}

fn random_order_line_item_id(random: &mut fastrand::Rng) -> String {
    format!("20000{}", random_letters(random, b"0123456789", 11))
}

fn duration_from_days(days: u32) -> Duration {
    Duration::from_hours(u64::from(days) * 24)
}

fn date_json(moment: Timestamp, fractional: bool) -> Value {
    if fractional {
        #[expect(
            clippy::cast_precision_loss,
            reason = "today's milliseconds need 41 of the 53 bits"
        )]
        let whole = moment.as_millis() as f64;
        json!(whole + XCODE_MILLIS_FRACTION)
    } else {
        json!(moment.as_millis())
    }
}

fn into_object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(fields) => fields,
        _ => Map::new(),
    }
}

fn insert_if_some(payload: &mut Map<String, Value>, name: &str, value: Option<impl Serialize>) {
    if let Some(value) = value.and_then(|value| serde_json::to_value(value).ok()) {
        payload.insert(name.to_owned(), value);
    }
}
