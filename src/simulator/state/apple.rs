//! The data of the simulated App Store: transactions, their subscriptions, apps and keys.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::apple_notifications::NotificationUrls;
use super::json::{object, override_fields};
use super::{BillingPeriod, SimulatorError, duration_from_days, random_letters};
use crate::base::clock::Timestamp;
use crate::crypto::token;
use crate::http::json::parse_uuid;

/// The values of `deliveryStatus`.
const DELIVERY_STATUSES: [&str; 5] = [
    "DELIVERED",
    "UNDELIVERED_QUALITY_ISSUE",
    "UNDELIVERED_WRONG_ITEM",
    "UNDELIVERED_SERVER_OUTAGE",
    "UNDELIVERED_OTHER",
];
/// Unless `days` is given.
const DEFAULT_GRACE_PERIOD: Duration = Duration::from_hours(16 * 24);
/// Xcode writes dates with a fraction of a millisecond, such as this.
const XCODE_MILLIS_FRACTION: f64 = 0.7297;

/// One of the App Store's two environments.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum SimulatedEnvironment {
    /// Purchases with real money.
    Production,
    /// Purchases of testers, `TestFlight` and App Review.
    #[default]
    Sandbox,
}

impl SimulatedEnvironment {
    /// The name in signed payloads.
    pub fn payload_name(self) -> &'static str {
        match self {
            Self::Production => "Production",
            Self::Sandbox => "Sandbox",
        }
    }

    /// The name in the simulator's paths.
    pub(crate) fn path_segment(self) -> &'static str {
        match self {
            Self::Production => "production",
            Self::Sandbox => "sandbox",
        }
    }
}

/// The type of a product.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProductType {
    /// Renews until it is cancelled.
    #[default]
    #[serde(alias = "Auto-Renewable Subscription", alias = "auto-renewable")]
    Subscription,
    /// Bought once; does not expire.
    #[serde(alias = "Non-Consumable")]
    NonConsumable,
    /// Can be bought again after it was consumed.
    #[serde(alias = "Consumable")]
    Consumable,
    /// Expires and does not renew.
    #[serde(alias = "Non-Renewing Subscription")]
    NonRenewing,
}

impl ProductType {
    /// The name in signed payloads.
    pub fn payload_name(self) -> &'static str {
        match self {
            Self::Subscription => "Auto-Renewable Subscription",
            Self::NonConsumable => "Non-Consumable",
            Self::Consumable => "Consumable",
            Self::NonRenewing => "Non-Renewing Subscription",
        }
    }
}

/// A purchase to make. Every field has a default; together they are a month of a subscription in the sandbox.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct NewTransaction {
    /// 1 to 20 digits; generated when left out.
    pub transaction_id: Option<String>,
    /// `com.example.app` when left out.
    pub bundle_id: Option<String>,
    /// The bundle id followed by `.pro.monthly`, `.season`, `.lifetime` or `.coins`, by type, when left out.
    pub product_id: Option<String>,
    /// The product's type.
    #[serde(rename = "type")]
    pub kind: ProductType,
    /// The sandbox when left out.
    pub environment: SimulatedEnvironment,
    /// The present time when left out.
    pub purchase_date: Option<Timestamp>,
    /// One period after the purchase when left out; only subscriptions end.
    pub expires_date: Option<Timestamp>,
    /// A month when left out.
    pub period: Option<BillingPeriod>,
    /// 1 when left out.
    pub quantity: Option<u32>,
    /// The app's own id of the user, a UUID.
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
    /// The offer's id.
    pub offer_identifier: Option<String>,
    /// `FREE_TRIAL`, `PAY_AS_YOU_GO`, `PAY_UP_FRONT`, `ONE_TIME`.
    pub offer_discount_type: Option<String>,
    /// How long the offer lasts.
    pub offer_period: Option<BillingPeriod>,
    /// Write dates with fractions of a millisecond, as Xcode does.
    pub fractional_dates: bool,
    /// Fields to add to the payload or to replace in it; `null` removes one.
    pub fields: Map<String, Value>,
    /// The same for the renewal information.
    pub renewal_fields: Map<String, Value>,
}

/// A transaction of the simulated App Store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SimulatedTransaction {
    /// The transaction's id.
    pub transaction_id: String,
    /// The first transaction's id; the same for all renewals.
    pub original_transaction_id: String,
    /// The bundle id of the app.
    pub bundle_id: String,
    /// The id of the product.
    pub product_id: String,
    /// The product's type.
    #[serde(rename = "type")]
    pub kind: ProductType,
    /// Production or sandbox.
    pub environment: SimulatedEnvironment,
    /// The time of the purchase or renewal.
    pub purchase_date: Timestamp,
    /// The time of the first transaction.
    pub original_purchase_date: Timestamp,
    /// The end of a subscription's period; `None` for other products.
    pub expires_date: Option<Timestamp>,
    /// The refund or revocation, if any.
    pub revocation: Option<Revocation>,
    /// Whether an upgrade has replaced it.
    pub is_upgraded: bool,
    /// Whether it is a renewal.
    pub is_renewal: bool,
    web_order_line_item_id: Option<String>,
    app_transaction_id: String,
    bought: NewTransaction,
}

/// A refund, or the end of family sharing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Revocation {
    /// The time of the refund.
    pub date: Timestamp,
    /// Apple's reason: 0 other, 1 an issue with the app.
    pub reason: u8,
    /// `REFUND_FULL`, `REFUND_PRORATED`, `FAMILY_REVOKE`.
    #[serde(rename = "type")]
    pub kind: String,
    /// In thousandths of a percent.
    pub percentage: Option<u32>,
}

/// The renewal of a subscription.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SimulatedRenewal {
    /// Whether it will renew.
    pub auto_renews: bool,
    /// The product of the next renewal.
    pub auto_renew_product_id: String,
    /// Whether the store retries a failed payment.
    pub in_billing_retry: bool,
    /// The end of the grace period, if there is one.
    pub grace_expires: Option<Timestamp>,
    /// 1 cancelled, 2 billing, 3 price, 4 product gone, 5 other.
    pub expiration_intent: Option<u8>,
    /// The start of the present sequence of periods without a gap.
    pub recent_start: Timestamp,
}

/// A subscription of the simulated App Store.
#[derive(Clone, Debug, PartialEq)]
pub struct SimulatedAppleSubscription {
    /// The transaction of the newest period.
    pub latest: SimulatedTransaction,
    /// The renewal after that.
    pub renewal: SimulatedRenewal,
}

impl SimulatedAppleSubscription {
    /// Whether the customer may use it at a time, if nothing happens until then.
    pub fn has_access(&self, at: Timestamp) -> bool {
        matches!(status_at(&self.latest, &self.renewal, at), 1 | 4)
    }

    /// Whether the App Store will try to renew it, if nothing happens until then.
    pub fn will_renew(&self, at: Timestamp) -> bool {
        let status = status_at(&self.latest, &self.renewal, at);
        self.renewal.auto_renews && matches!(status, 1 | 3 | 4)
    }
}

fn status_at(latest: &SimulatedTransaction, renewal: &SimulatedRenewal, at: Timestamp) -> u8 {
    if latest.revocation.is_some() {
        5
    } else if latest.expires_date.is_none_or(|end| end > at) {
        1
    } else if renewal.grace_expires.is_some_and(|end| end > at) {
        4
    } else if renewal.in_billing_retry {
        3
    } else {
        2
    }
}

/// A change of a purchase. As JSON: the `action` and its fields.
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
    /// The user turns renewal off; the current period continues.
    Cancel {},
    /// The user turns renewal on again.
    Resume {},
    /// The subscription ends now.
    Expire {
        /// Why: 1 cancelled (when left out), 2 billing, 3 price, 4 product gone, 5 other.
        #[serde(default)]
        intent: Option<u8>,
    },
    /// A payment failed; the period ends now, and access continues in a grace period.
    Grace {
        /// 16 when left out.
        #[serde(default)]
        days: Option<u32>,
    },
    /// A payment failed; the period ends now, and the store keeps trying without a grace period.
    BillingRetry {},
    /// Apple refunds the purchase.
    Refund {
        /// 0 another reason (when left out), 1 an issue with the app.
        #[serde(default)]
        reason: u8,
        /// A part only, in thousandths of a percent.
        #[serde(default)]
        percentage: Option<u32>,
    },
    /// Apple reverses a refund.
    ReverseRefund {},
    /// Family sharing ends.
    Revoke {},
    /// Another product of the group replaces it at once: a new transaction.
    Upgrade {
        /// The id of the new product.
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
        /// The id of the new product.
        product_id: String,
    },
    /// The developer extends the period.
    Extend {
        /// 1 to 90.
        days: u32,
    },
    /// Changes what the App Store says of it, without a notification.
    Set {
        /// Fields of this transaction's payload; `null` removes one.
        #[serde(default)]
        fields: Map<String, Value>,
        /// Fields of the renewal information, for the latest transaction.
        #[serde(default)]
        renewal_fields: Map<String, Value>,
    },
    /// Deletes the transaction and all others of its subscription: the App Store does not know them any more.
    Forget {},
}

/// An app of the simulated App Store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SimulatedApp {
    /// The bundle id, which names it.
    pub bundle_id: String,
    /// The `appAppleId` of payloads and credentials.
    pub app_apple_id: u64,
    /// Whether it was ever released: production answers 401 for one that was not.
    pub released: bool,
}

impl SimulatedApp {
    /// The default properties of an app: released, with an Apple id derived from its bundle id.
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

/// A key that was created later, or the revocation of the identity's own.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AppleKeyState {
    /// The public point, base64. `None` for the identity's own.
    pub public_key: Option<String>,
    pub revoked: bool,
}

/// What a developer sent about how a purchase was used.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SentConsumptionInfo {
    /// The transaction's id.
    pub transaction_id: String,
    /// When it was sent.
    pub sent_at: Timestamp,
    /// The body as the developer sent it.
    pub information: Value,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct AppleState {
    apps: BTreeMap<String, SimulatedApp>,
    transactions: BTreeMap<String, SimulatedTransaction>,
    renewals: BTreeMap<String, SimulatedRenewal>,
    pub keys: BTreeMap<String, AppleKeyState>,
    /// By bundle id.
    pub push: BTreeMap<String, NotificationUrls>,
    /// What developers sent about how purchases were used, oldest first.
    consumption: Vec<SentConsumptionInfo>,
    /// The ids of transactions that a server has finished.
    finished: BTreeSet<String>,
}

impl AppleState {
    /// Every bundle id has an app.
    pub(crate) fn get_app(&self, bundle_id: &str) -> SimulatedApp {
        self.apps
            .get(bundle_id)
            .cloned()
            .unwrap_or_else(|| SimulatedApp::for_bundle_id(bundle_id))
    }

    pub(crate) fn set_app(&mut self, app: SimulatedApp) {
        self.apps.insert(app.bundle_id.clone(), app);
    }

    pub(crate) fn find_transaction(&self, id: &str) -> Option<&SimulatedTransaction> {
        self.transactions.get(id)
    }

    /// Takes what a developer says of how a purchase was used. `Err` is Apple's error code.
    pub(crate) fn take_consumption(
        &mut self,
        transaction_id: &str,
        information: Value,
        now: Timestamp,
    ) -> Result<(), u32> {
        let is_one_of = |name: &str, words: &[&str]| {
            let word = information[name].as_str();
            word.is_some_and(|word| words.contains(&word))
        };
        let percentage = &information["consumptionPercentage"];
        let preferences = ["DECLINE", "GRANT_FULL", "GRANT_PRORATED"];
        if information["customerConsented"] != json!(true) {
            return Err(4_000_035);
        }
        if !is_one_of("deliveryStatus", &DELIVERY_STATUSES) {
            return Err(4_000_036);
        }
        if !information["sampleContentProvided"].is_boolean() {
            return Err(4_000_041);
        }
        // Apple names no codes for the optional ones.
        if !percentage.is_null() && percentage.as_u64().is_none_or(|share| share > 100_000)
            || !information["refundPreference"].is_null()
                && !is_one_of("refundPreference", &preferences)
        {
            return Err(4_000_000);
        }
        self.consumption.push(SentConsumptionInfo {
            transaction_id: transaction_id.to_owned(),
            sent_at: now,
            information,
        });
        Ok(())
    }

    /// Finishes a transaction.
    pub(crate) fn finish_transaction(&mut self, transaction_id: &str) {
        self.finished.insert(transaction_id.to_owned());
    }

    /// Whether a server has finished a transaction.
    pub(crate) fn is_finished(&self, transaction_id: &str) -> bool {
        self.finished.contains(transaction_id)
    }

    /// Names the user of all transactions of a purchase. `Err` is Apple's error code.
    pub(crate) fn set_app_account_token(
        &mut self,
        original_transaction_id: &str,
        app_account_token: &str,
    ) -> Result<(), u32> {
        if parse_uuid(app_account_token).is_none() {
            return Err(4_000_183);
        }
        let first = self.transactions.get(original_transaction_id);
        if first.is_none_or(|first| first.original_transaction_id != original_transaction_id) {
            return Err(4_000_187);
        }
        if first.is_some_and(|first| first.bought.family_shared) {
            return Err(4_000_185);
        }
        for transaction in self.transactions.values_mut() {
            if transaction.original_transaction_id == original_transaction_id {
                transaction.bought.app_account_token = Some(app_account_token.to_owned());
            }
        }
        Ok(())
    }

    /// What developers sent about how purchases were used, oldest first.
    pub(crate) fn list_consumption(&self) -> &[SentConsumptionInfo] {
        &self.consumption
    }

    /// The time of the sale of a transaction.
    pub(crate) fn sold_at(&self, id: &str) -> Option<Timestamp> {
        self.transactions.get(id).map(|it| it.purchase_date)
    }

    /// Every transaction, oldest first.
    pub(crate) fn list_transactions(&self) -> Vec<&SimulatedTransaction> {
        let mut all: Vec<_> = self.transactions.values().collect();
        all.sort_by_key(|one| one.purchase_date);
        all
    }

    /// A transaction by its own id, or any by the `appTransactionId` of its customer.
    pub(crate) fn find_any_transaction(&self, id: &str) -> Option<&SimulatedTransaction> {
        let named = self.transactions.get(id);
        named.or_else(|| {
            let mut all = self.transactions.values();
            all.find(|transaction| transaction.app_transaction_id == id)
        })
    }

    /// Whether this is an `appTransactionId`: the id of an app's download, not of a purchase.
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

    /// By the original transaction id.
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
        let id = self.choose_transaction_id(&new, random)?;
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

    fn choose_transaction_id(
        &self,
        new: &NewTransaction,
        random: &mut fastrand::Rng,
    ) -> Result<String, SimulatorError> {
        match &new.transaction_id {
            Some(id) if !is_transaction_id(id) => Err(SimulatorError::invalid_request(
                "A transactionId has 1 to 20 digits and does not begin with 0.",
            )),
            Some(id) if self.transactions.contains_key(id) => Err(SimulatorError::invalid_request(
                format!("There is already a transaction {id}."),
            )),
            Some(id) => Ok(id.clone()),
            None => Ok(self.generate_transaction_id(new.environment, random)),
        }
    }

    /// The transaction that an order paid for: each has an order of its own, whose id is `M` and the transaction's id.
    pub(crate) fn find_order(&self, order_id: &str) -> Option<&SimulatedTransaction> {
        self.find_transaction(order_id.strip_prefix('M')?)
    }

    /// The transactions of a purchase that were refunded.
    pub(crate) fn refunded_transactions(
        &self,
        original: &str,
    ) -> impl Iterator<Item = &SimulatedTransaction> {
        let is_refund = |one: &&SimulatedTransaction| {
            let revocation = one.revocation.as_ref();
            revocation.is_some_and(|revocation| revocation.kind != "FAMILY_REVOKE")
        };
        self.transactions
            .values()
            .filter(move |one| one.original_transaction_id == original)
            .filter(is_refund)
    }

    /// Changes a purchase, named by any of its transactions: a refund or revocation changes this transaction, any other
    /// change the latest one of its subscription. Returns the changed transaction, or the new one.
    pub(crate) fn change_transaction(
        &mut self,
        id: &str,
        change: &TransactionChange,
        now: Timestamp,
        random: &mut fastrand::Rng,
    ) -> Result<SimulatedTransaction, SimulatorError> {
        let named = self
            .transactions
            .get(id)
            .cloned()
            .ok_or_else(|| transaction_not_found(id))?;
        let mut revoke = |reason, kind: &str, percentage| {
            self.update_transaction(id, |transaction| {
                transaction.revocation = Some(Revocation {
                    date: now,
                    reason,
                    kind: kind.to_owned(),
                    percentage,
                });
            })
        };
        match change {
            TransactionChange::Refund { reason, percentage } => {
                let kind = percentage.map_or("REFUND_FULL", |_| "REFUND_PRORATED");
                let percentage = Some(percentage.unwrap_or(100_000));
                revoke(*reason, kind, percentage)
            }
            TransactionChange::ReverseRefund {} if named.revocation.is_none() => Err(
                SimulatorError::invalid_request(format!("Transaction {id} has not been refunded.")),
            ),
            TransactionChange::ReverseRefund {} => {
                self.update_transaction(id, |transaction| transaction.revocation = None)
            }
            TransactionChange::Set {
                fields,
                renewal_fields,
            } => self.update_transaction(id, |transaction| {
                transaction.bought.fields.extend(fields.clone());
                let renewal = &mut transaction.bought.renewal_fields;
                renewal.extend(renewal_fields.clone());
            }),
            TransactionChange::Revoke {} => revoke(0, "FAMILY_REVOKE", None),
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
                "Transaction {} is no subscription ({}), so this change is not possible.",
                named.transaction_id,
                named.kind.payload_name()
            )));
        };
        let latest_id = latest.transaction_id.clone();
        let changed = match change {
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
            | TransactionChange::Set { .. }
            | TransactionChange::Forget {} => latest,
        };
        self.renewals.insert(original, renewal);
        Ok(changed)
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
        let transaction = self
            .transactions
            .get_mut(id)
            .ok_or_else(|| transaction_not_found(id))?;
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

    /// Apple's status: 1 active, 2 expired, 3 billing retry, 4 grace period, 5 revoked.
    pub(crate) fn subscription_status(&self, original: &str, now: Timestamp) -> Option<u8> {
        let latest = self.latest_transaction(original)?;
        let renewal = self.renewals.get(original)?;
        Some(status_at(latest, renewal, now))
    }

    /// A subscription by its original transaction id.
    pub(crate) fn find_subscription(&self, original: &str) -> Option<SimulatedAppleSubscription> {
        Some(SimulatedAppleSubscription {
            latest: self.latest_transaction(original)?.clone(),
            renewal: self.renewals.get(original)?.clone(),
        })
    }

    /// The renewal information that is signed.
    pub(crate) fn renewal_payload(
        &self,
        original: &str,
        now: Timestamp,
    ) -> Option<Map<String, Value>> {
        let latest = self.latest_transaction(original)?;
        let renewal = self.renewals.get(original)?;
        let mut payload = object(json!({
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
            "expirationIntent": renewal.expiration_intent,
            "gracePeriodExpiresDate": renewal.grace_expires.map(Timestamp::as_millis),
            "appAccountToken": latest.bought.app_account_token,
        }));
        override_fields(&mut payload, &latest.bought.renewal_fields);
        Some(payload)
    }
}

impl SimulatedTransaction {
    /// Whether the customer may use this product or non-renewing subscription at a time, if nothing happens until then.
    pub fn has_access(&self, at: Timestamp) -> bool {
        self.revocation.is_none() && self.expires_date.is_none_or(|end| end > at)
    }

    /// The `appAccountToken` that the app gave with the purchase.
    pub fn app_account_token(&self) -> Option<&str> {
        self.bought.app_account_token.as_deref()
    }

    /// The payload that is signed at `now`.
    pub fn to_payload(&self, now: Timestamp) -> Map<String, Value> {
        let bought = &self.bought;
        let date = |moment: Timestamp| date_json(moment, bought.fractional_dates);
        let renews = self.kind == ProductType::Subscription;
        let revocation = self.revocation.as_ref();
        let mut payload = object(json!({
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
            "webOrderLineItemId": renews.then_some(&self.web_order_line_item_id),
            "subscriptionGroupIdentifier": renews.then_some("20900001"),
            "expiresDate": self.expires_date.map(date),
            "appAccountToken": bought.app_account_token,
            "offerType": bought.offer_type,
            "offerIdentifier": bought.offer_identifier,
            "offerDiscountType": bought.offer_discount_type,
            "offerPeriod": bought.offer_period,
            "isUpgraded": self.is_upgraded.then_some(true),
            "revocationDate": revocation.map(|revocation| date(revocation.date)),
            "revocationReason": revocation.map(|revocation| revocation.reason),
            "revocationType": revocation.map(|revocation| &revocation.kind),
            "revocationPercentage": revocation.and_then(|revocation| revocation.percentage),
        }));
        override_fields(&mut payload, &bought.fields);
        payload
    }

    /// The id of the app transaction of its customer.
    pub fn app_transaction_id(&self) -> &str {
        &self.app_transaction_id
    }

    fn price(&self) -> i64 {
        self.bought.price.unwrap_or(9990)
    }

    fn currency(&self) -> &str {
        self.bought.currency.as_deref().unwrap_or("USD")
    }

    /// Ends the period now, unless it ended earlier.
    fn expire_by(&mut self, now: Timestamp) {
        self.expires_date = self.expires_date.map(|end| end.min(now));
    }
}

pub(in crate::simulator) fn transaction_not_found(id: &str) -> SimulatorError {
    SimulatorError::not_found(format!(
        "No transaction {id} is known here. GET /control/apple/transactions lists those that are."
    ))
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
