//! The data of the simulated Play: subscriptions and one-time products by purchase token, and service accounts.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::google_notifications::PushSubscription;
use super::google_refund_reviews::SimulatedRefundReview;
use super::json::{object, override_fields};
use super::{BillingPeriod, SimulatorError, duration_from_days, random_letters};
use crate::base::clock::Timestamp;

/// Play does not answer for a subscription that expired longer ago than this.
const EXPIRED_SUBSCRIPTION_RETENTION: Duration = Duration::from_hours(60 * 24);
/// Play says so long what item a purchase replaced.
const ITEM_REPLACEMENT_SHOWN: Duration = Duration::from_hours(60 * 24);
/// Play waits so long for the acknowledgement of a purchase.
const ACKNOWLEDGEMENT_PERIOD: Duration = Duration::from_hours(3 * 24);
/// The same for the purchase of a licence tester.
const TEST_ACKNOWLEDGEMENT_PERIOD: Duration = Duration::from_mins(5);
/// A prepaid plan that is shorter must be acknowledged within half its length.
const SHORT_PREPAID_PLAN: Duration = Duration::from_hours(7 * 24);
/// Unless `days` is given.
const DEFAULT_GRACE_PERIOD: Duration = Duration::from_hours(7 * 24);
/// Unless `days` is given.
const DEFAULT_PAUSE: Duration = Duration::from_hours(30 * 24);
const PURCHASE_TOKEN_ALPHABET: &[u8] =
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// A subscription to sell. Every field has a default; together they are an active month of one product.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "fields of a request, not a state"
)]
pub struct NewSubscription {
    /// Generated when left out.
    pub purchase_token: Option<String>,
    /// `com.example.app` when left out.
    pub package_name: Option<String>,
    /// `pro_monthly` when left out.
    pub product_id: Option<String>,
    /// `monthly` when left out.
    pub base_plan_id: Option<String>,
    /// The offer of the purchase, if any.
    pub offer_id: Option<String>,
    /// Further products: each becomes a line item.
    pub add_ons: Vec<SubscriptionAddOn>,
    /// A month when left out.
    pub period: Option<BillingPeriod>,
    /// The present time when left out.
    pub start_time: Option<Timestamp>,
    /// One period after the start when left out.
    pub expiry_time: Option<Timestamp>,
    /// In millionths of the currency; 4990000 when left out.
    pub price_amount_micros: Option<i64>,
    /// `USD` when left out.
    pub price_currency_code: Option<String>,
    /// ISO 3166 alpha-2; `US` when left out.
    pub region_code: Option<String>,
    /// The app's own id of the user.
    pub obfuscated_external_account_id: Option<String>,
    /// The app's own id of the user's profile.
    pub obfuscated_external_profile_id: Option<String>,
    /// A purchase of a licence tester.
    pub test_purchase: bool,
    /// The payment is pending.
    pub pending: bool,
    /// A prepaid plan, which does not renew.
    pub prepaid: bool,
    /// Acknowledged from the start.
    pub acknowledged: bool,
    /// The phase of the first period: `freeTrial`, `introductoryPrice` or `prorationPeriod`; `introductoryPrice` with an
    /// offer and `basePrice` without when left out.
    pub offer_phase: Option<String>,
    /// Fields to add to the API's answer or to replace in it; `null` removes one.
    pub fields: Map<String, Value>,
    /// The same for the first line item.
    pub item_fields: Map<String, Value>,
}

/// One more product under the same purchase token.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct SubscriptionAddOn {
    /// The id of the product.
    pub product_id: String,
    /// The subscription's when left out.
    pub period: Option<BillingPeriod>,
    /// A prepaid plan, which does not renew.
    pub prepaid: bool,
    /// One period after the start when left out.
    pub expiry_time: Option<Timestamp>,
}

/// A subscription under one purchase token.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SimulatedSubscription {
    /// The token that names the purchase.
    pub purchase_token: String,
    /// The package name of the app.
    pub package_name: String,
    /// The token of the purchase that this one replaces.
    pub linked_purchase_token: Option<String>,
    /// The start of the first period.
    pub start_time: Timestamp,
    /// Whether the app has acknowledged it.
    pub acknowledged: bool,
    /// The line items; never empty.
    pub items: Vec<SubscriptionItem>,
    #[serde(rename = "standing")]
    phase: SubscriptionPhase,
    canceled: Option<Cancellation>,
    /// The plan that the next renewal changes to.
    #[serde(default)]
    deferred: Option<DeferredPlan>,
    /// What Play says of the item that this purchase replaced.
    #[serde(default)]
    replaced_item: Option<Value>,
    /// What Play says of the purchase that lapsed before this one, until this one is acknowledged.
    #[serde(default)]
    out_of_app_context: Option<Value>,
    /// Whether Play refunded it because it was not acknowledged in time.
    #[serde(default)]
    pub(super) refunded_unacknowledged: bool,
    pub(super) renewals: u32,
    pub(super) order_id: String,
    gone: Option<GoneReason>,
    pub(super) sold: NewSubscription,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct DeferredPlan {
    product_id: String,
    base_plan_id: Option<String>,
    period: BillingPeriod,
    price_amount_micros: Option<i64>,
}

/// A line item of a subscription.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SubscriptionItem {
    /// The id of the product.
    pub product_id: String,
    /// The end of the current period.
    pub expiry_time: Timestamp,
    pub(super) period: BillingPeriod,
    prepaid: bool,
}

/// The state of the payment; cancellation and expiry are apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum SubscriptionPhase {
    Pending,
    PendingCanceled,
    Running,
    InGrace,
    OnHold,
    Paused { resumes: Timestamp },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Cancellation {
    by: CanceledBy,
    at: Timestamp,
}

/// Who cancelled a subscription.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CanceledBy {
    /// Cancelled by the user.
    #[default]
    User,
    /// Cancelled by Play, because of a failed payment.
    System,
    /// Cancelled by the developer of the app.
    Developer,
    /// Replaced by another purchase.
    Replacement,
}

/// The error with which Play refuses an old token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GoneReason {
    /// Status 410 with reason `purchaseTokenNoLongerValid`.
    #[default]
    NoLongerValid,
    /// Status 410 with reason `subscriptionPurchaseNoLongerAvailable`.
    NoLongerAvailable,
    /// Status 400 with reason `failedPrecondition`, as for what expired more than 60 days ago.
    ExpiredTooLong,
}

/// A change of a subscription. As JSON: the `action` and its fields.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(
    tag = "action",
    rename_all = "kebab-case",
    rename_all_fields = "camelCase",
    deny_unknown_fields
)]
pub enum SubscriptionChange {
    /// One more period. Ends grace, hold and pause.
    Renew {},
    /// Renewal is turned off; the current period continues.
    Cancel {
        /// The user when left out.
        #[serde(default)]
        by: CanceledBy,
    },
    /// The user turns renewal on again before the end.
    Restore {},
    /// The subscription ends now.
    Expire {},
    /// A payment failed; access continues in a grace period.
    Grace {
        /// 7 when left out.
        #[serde(default)]
        days: Option<u32>,
    },
    /// A payment failed; access stops until it is paid.
    Hold {},
    /// The user pauses it: the period ends now.
    Pause {
        /// 30 when left out.
        #[serde(default)]
        days: Option<u32>,
    },
    /// Ends a hold or a pause: a new period begins now.
    Resume {},
    /// Play refunds it, and access ends now.
    Revoke {},
    /// The developer moves the next payment.
    Defer {
        /// By how many days.
        days: u32,
    },
    /// The app acknowledges it.
    Acknowledge {},
    /// A pending purchase is paid: it begins now.
    Complete {},
    /// A pending purchase is cancelled.
    Decline {},
    /// Play refuses the token from now on.
    Gone {
        /// The error; 410 `purchaseTokenNoLongerValid` when left out.
        #[serde(default)]
        how: GoneReason,
    },
    /// Changes what Play says of it, without a notification: a price change, installments.
    Set {
        /// Fields of the API's answer; `null` removes one.
        #[serde(default)]
        fields: Map<String, Value>,
        /// Fields of the first line item.
        #[serde(default)]
        item_fields: Map<String, Value>,
    },
    /// Deletes it: Play does not know the token any more.
    Forget {},
}

/// The new subscription of a plan change.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct SubscriptionReplacement {
    /// Generated when left out.
    pub purchase_token: Option<String>,
    /// The old one's when left out.
    pub product_id: Option<String>,
    /// The old one's when left out.
    pub base_plan_id: Option<String>,
    /// The old one's when left out.
    pub period: Option<BillingPeriod>,
    /// The old one's when left out.
    pub price_amount_micros: Option<i64>,
    /// The old one's when left out. The same prepaid plan again, while it runs, is a top-up: the time is added.
    pub prepaid: Option<bool>,
    /// At the next renewal: until then the new token sells the old product.
    pub deferred: bool,
    /// The payment is pending; until it is paid the old purchase goes on.
    pub pending: bool,
    /// Google's `replacementMode`; `WITH_TIME_PRORATION` when left out.
    pub replacement_mode: Option<String>,
}

/// What Play has just refunded for lack of an acknowledgement.
#[derive(Debug, Default)]
pub(crate) struct RefundedPurchases {
    pub(crate) subscriptions: Vec<SimulatedSubscription>,
    pub(crate) products: Vec<SimulatedProductPurchase>,
}

/// How long Play waits for the acknowledgement of a purchase.
fn acknowledgement_period(is_test: bool) -> Duration {
    if is_test {
        TEST_ACKNOWLEDGEMENT_PERIOD
    } else {
        ACKNOWLEDGEMENT_PERIOD
    }
}

/// A subscription that is bought again after its end.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Resubscription {
    /// Generated when left out.
    pub purchase_token: Option<String>,
    /// Bought in the app, which names the user. Else in Play's own: then Play names the lapsed purchase and its user until
    /// the new one is acknowledged.
    pub in_app: bool,
}

/// A one-time product to sell. Every field has a default; together they are one paid `coins_100`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "fields of a request, not a state"
)]
pub struct NewProduct {
    /// Generated when left out.
    pub purchase_token: Option<String>,
    /// `com.example.app` when left out.
    pub package_name: Option<String>,
    /// `coins_100` when left out.
    pub product_id: Option<String>,
    /// The present time when left out.
    pub purchase_time: Option<Timestamp>,
    /// When left out, the answer has none, which means 1.
    pub quantity: Option<u32>,
    /// How many of them can still be refunded; all when left out.
    pub refundable_quantity: Option<u32>,
    /// The purchase option of the product, which `productsv2` names.
    pub purchase_option_id: Option<String>,
    /// The offer of the purchase, which `productsv2` names.
    pub offer_id: Option<String>,
    /// ISO 3166 alpha-2; `US` when left out.
    pub region_code: Option<String>,
    /// The app's own id of the user.
    pub obfuscated_external_account_id: Option<String>,
    /// The app's own id of the user's profile.
    pub obfuscated_external_profile_id: Option<String>,
    /// A purchase of a licence tester.
    pub test_purchase: bool,
    /// The payment is pending.
    pub pending: bool,
    /// Acknowledged from the start.
    pub acknowledged: bool,
    /// Leave product, token and quantity out of the answer, which Play may do.
    pub terse: bool,
    /// Fields to add to the answer of `products.get` or to replace in it; `null` removes one.
    pub fields: Map<String, Value>,
    /// The same for the answer of `productsv2`.
    pub fields_v2: Map<String, Value>,
}

/// A one-time product under one purchase token.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SimulatedProductPurchase {
    /// The token that names the purchase.
    pub purchase_token: String,
    /// The package name of the app.
    pub package_name: String,
    /// The id of the product.
    pub product_id: String,
    /// The time of the purchase, or of the payment of a pending one.
    pub purchase_time: Timestamp,
    /// Google's number: 0 purchased, 1 cancelled, 2 pending.
    pub purchase_state: u8,
    /// Whether the app has consumed it.
    pub consumed: bool,
    /// Whether the app has acknowledged it.
    pub acknowledged: bool,
    /// How many were refunded by quantity.
    #[serde(default)]
    pub refunded_quantity: u32,
    /// Each refund by quantity.
    #[serde(default)]
    pub(super) refunded_parts: Vec<RefundedPart>,
    /// The time of the last refund.
    #[serde(default)]
    pub refunded_at: Option<Timestamp>,
    /// Whether Play refunded it because it was not acknowledged in time.
    #[serde(default)]
    pub(super) refunded_unacknowledged: bool,
    pub(super) order_id: String,
    gone: Option<GoneReason>,
    pub(super) sold: NewProduct,
}

/// A refund of some of a quantity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RefundedPart {
    pub(super) quantity: u32,
    pub(super) at: Timestamp,
}

/// What Play does by itself. Without these rules only time passes by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct PlayRules {
    /// Refund a purchase that is neither acknowledged nor consumed in time, at the next call to Play after that.
    pub refund_unacknowledged: bool,
    /// Do not sell a user a product again that is not consumed. The user is known by `obfuscatedExternalAccountId`.
    pub refuse_owned_products: bool,
}

/// A change of a one-time product. As JSON: the `action` and its fields.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(
    tag = "action",
    rename_all = "kebab-case",
    rename_all_fields = "camelCase",
    deny_unknown_fields
)]
pub enum ProductChange {
    /// The app consumes it, which also acknowledges it.
    Consume {},
    /// The app acknowledges it.
    Acknowledge {},
    /// Play refunds it, or cancels a pending purchase.
    Refund {},
    /// Changes what Play says of it, without a notification.
    Set {
        /// Fields of the answer of `products.get`; `null` removes one.
        #[serde(default)]
        fields: Map<String, Value>,
        /// Fields of the answer of `productsv2`.
        #[serde(default)]
        fields_v2: Map<String, Value>,
    },
    /// Play refunds some of a quantity; the rest stays with the user.
    RefundQuantity {
        /// How many of them.
        quantity: u32,
    },
    /// A pending purchase is paid.
    Complete {},
    /// Play refuses the token from now on.
    Gone {
        /// The error; 410 `purchaseTokenNoLongerValid` when left out.
        #[serde(default)]
        how: GoneReason,
    },
    /// Deletes it: Play does not know the token any more.
    Forget {},
}

/// A service account that was created later, or the changed rights of the identity's own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ServiceAccountState {
    /// The public key (PKCS#1, base64) and its id. `None` for the identity's own account.
    pub key: Option<(String, String)>,
    /// Deleted: the token endpoint answers `invalid_grant`.
    pub disabled: bool,
    /// Without permission in the Play Console: the API answers `permissionDenied`.
    pub denied: bool,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct GoogleState {
    /// What Play does by itself.
    #[serde(default)]
    pub rules: PlayRules,
    subscriptions: BTreeMap<String, SimulatedSubscription>,
    products: BTreeMap<String, SimulatedProductPurchase>,
    /// By email address.
    pub accounts: BTreeMap<String, ServiceAccountState>,
    /// By package name.
    pub push: BTreeMap<String, PushSubscription>,
    /// Answers of developers to questions about refunds, the oldest first.
    pub(super) refund_reviews: Vec<SimulatedRefundReview>,
}

impl GoogleState {
    pub(crate) fn find_subscription(&self, token: &str) -> Option<&SimulatedSubscription> {
        self.subscriptions.get(token)
    }

    pub(crate) fn find_product(&self, token: &str) -> Option<&SimulatedProductPurchase> {
        self.products.get(token)
    }

    /// The time of the sale under a purchase token.
    pub(crate) fn sold_at(&self, token: &str) -> Option<Timestamp> {
        let subscription = self.subscriptions.get(token).map(|it| it.start_time);
        subscription.or_else(|| self.products.get(token).map(|it| it.purchase_time))
    }

    /// Every subscription, oldest first.
    pub(crate) fn list_subscriptions(&self) -> Vec<&SimulatedSubscription> {
        let mut all: Vec<_> = self.subscriptions.values().collect();
        all.sort_by_key(|one| one.start_time);
        all
    }

    /// Every one-time product, oldest first.
    pub(crate) fn list_products(&self) -> Vec<&SimulatedProductPurchase> {
        let mut all: Vec<_> = self.products.values().collect();
        all.sort_by_key(|one| one.purchase_time);
        all
    }

    pub(crate) fn buy_subscription(
        &mut self,
        new: NewSubscription,
        now: Timestamp,
        random: &mut fastrand::Rng,
    ) -> Result<SimulatedSubscription, SimulatorError> {
        let token = self.choose_purchase_token(new.purchase_token.as_deref(), random)?;
        let start = new.start_time.unwrap_or(now);
        let period = new.period.clone().unwrap_or_else(BillingPeriod::one_month);
        let mut items = vec![SubscriptionItem {
            product_id: new
                .product_id
                .clone()
                .unwrap_or_else(|| "pro_monthly".to_owned()),
            expiry_time: new.expiry_time.unwrap_or_else(|| period.end_from(start)),
            period: period.clone(),
            prepaid: new.prepaid,
        }];
        for extra in &new.add_ons {
            if extra.product_id.is_empty() {
                return Err(SimulatorError::invalid_request(
                    "Each of addOns needs a productId.",
                ));
            }
            let period = extra.period.clone().unwrap_or_else(|| period.clone());
            items.push(SubscriptionItem {
                product_id: extra.product_id.clone(),
                expiry_time: extra.expiry_time.unwrap_or_else(|| period.end_from(start)),
                period,
                prepaid: extra.prepaid,
            });
        }
        let subscription = SimulatedSubscription {
            purchase_token: token.clone(),
            package_name: package_name_or_default(new.package_name.as_deref()),
            linked_purchase_token: None,
            start_time: start,
            acknowledged: new.acknowledged,
            items,
            deferred: None,
            replaced_item: None,
            out_of_app_context: None,
            refunded_unacknowledged: false,
            phase: if new.pending {
                SubscriptionPhase::Pending
            } else {
                SubscriptionPhase::Running
            },
            canceled: None,
            renewals: 0,
            order_id: random_order_id(random),
            gone: None,
            sold: new,
        };
        self.subscriptions.insert(token, subscription.clone());
        Ok(subscription)
    }

    pub(crate) fn change_subscription(
        &mut self,
        token: &str,
        change: &SubscriptionChange,
        now: Timestamp,
    ) -> Result<SimulatedSubscription, SimulatorError> {
        let subscription = self
            .subscriptions
            .get_mut(token)
            .ok_or_else(|| purchase_not_found("subscriptions", token))?;
        if *change == (SubscriptionChange::Forget {}) {
            let forgotten = subscription.clone();
            self.subscriptions.remove(token);
            return Ok(forgotten);
        }
        subscription.apply_change(change, now)?;
        let changed = subscription.clone();
        if let (SubscriptionChange::Complete {}, Some(old)) =
            (change, &changed.linked_purchase_token)
        {
            self.end_replaced(old, now);
        }
        Ok(changed)
    }

    /// Sells a subscription again after its end.
    pub(crate) fn resubscribe(
        &mut self,
        token: &str,
        again: Resubscription,
        now: Timestamp,
        random: &mut fastrand::Rng,
    ) -> Result<SimulatedSubscription, SimulatorError> {
        let old = self
            .subscriptions
            .get(token)
            .cloned()
            .ok_or_else(|| purchase_not_found("subscriptions", token))?;
        if old.state_name(now) != "EXPIRED" {
            return Err(SimulatorError::invalid_request(
                "Only a subscription that has ended is bought again: replace one that has not.",
            ));
        }
        let ids = old.external_ids();
        let mut new = old.sold_again(again.purchase_token);
        if !again.in_app {
            new.obfuscated_external_account_id = None;
            new.obfuscated_external_profile_id = None;
        }
        let mut sold = self.buy_subscription(new, now, random)?;
        if !again.in_app {
            sold.out_of_app_context = Some(Value::Object(object(json!({
                "expiredPurchaseToken": token,
                "expiredExternalAccountIdentifiers": (!ids.is_empty()).then_some(ids),
            }))));
        }
        self.subscriptions
            .insert(sold.purchase_token.clone(), sold.clone());
        Ok(sold)
    }

    fn end_replaced(&mut self, token: &str, now: Timestamp) {
        let old = self.subscriptions.get_mut(token);
        // What was refunded has ended, and stays in the list of refunds.
        if let Some(old) = old.filter(|old| old.refunded_at().is_none()) {
            old.canceled = Some(Cancellation {
                by: CanceledBy::Replacement,
                at: now,
            });
            old.phase = SubscriptionPhase::Running;
            old.expire_by(now);
        }
    }

    /// Sells a subscription that replaces another, which ends now, or when the new one is paid.
    pub(crate) fn replace_subscription(
        &mut self,
        token: &str,
        by: SubscriptionReplacement,
        now: Timestamp,
        random: &mut fastrand::Rng,
    ) -> Result<SimulatedSubscription, SimulatorError> {
        let old = self
            .subscriptions
            .get(token)
            .cloned()
            .ok_or_else(|| purchase_not_found("subscriptions", token))?;
        // What has ended has no renewal at which the change could take effect, also if an add-on still runs.
        if by.deferred && old.items[0].expiry_time <= now {
            return Err(SimulatorError::invalid_request(
                "The plan has ended: only a plan that runs can be replaced at its renewal.",
            ));
        }
        let pending = by.pending;
        let deferred = by.deferred.then(|| old.deferred_plan(&by));
        let mode = by.replacement_mode.clone();
        let new = old.replaced_by(by, now);
        let mut sold = self.buy_subscription(new, now, random)?;
        sold.linked_purchase_token = Some(token.to_owned());
        if deferred.is_none() {
            sold.replaced_item = Some(old.item_replacement(mode.as_deref()));
        }
        sold.deferred = deferred;
        self.subscriptions
            .insert(sold.purchase_token.clone(), sold.clone());
        if !pending {
            self.end_replaced(token, now);
        }
        Ok(sold)
    }

    pub(crate) fn buy_product(
        &mut self,
        new: NewProduct,
        now: Timestamp,
        random: &mut fastrand::Rng,
    ) -> Result<SimulatedProductPurchase, SimulatorError> {
        let token = self.choose_purchase_token(new.purchase_token.as_deref(), random)?;
        if self.rules.refuse_owned_products && self.is_owned(&new) {
            return Err(SimulatorError::invalid_request(
                "The user owns this product already, and it is not consumed.",
            ));
        }
        let product = SimulatedProductPurchase {
            purchase_token: token.clone(),
            package_name: package_name_or_default(new.package_name.as_deref()),
            product_id: new
                .product_id
                .clone()
                .unwrap_or_else(|| "coins_100".to_owned()),
            purchase_time: new.purchase_time.unwrap_or(now),
            purchase_state: if new.pending { 2 } else { 0 },
            consumed: false,
            acknowledged: new.acknowledged,
            refunded_quantity: 0,
            refunded_parts: Vec::new(),
            refunded_at: None,
            refunded_unacknowledged: false,
            order_id: random_order_id(random),
            gone: None,
            sold: new,
        };
        self.products.insert(token, product.clone());
        Ok(product)
    }

    pub(crate) fn change_product(
        &mut self,
        token: &str,
        change: &ProductChange,
        now: Timestamp,
    ) -> Result<SimulatedProductPurchase, SimulatorError> {
        let product = self
            .products
            .get_mut(token)
            .ok_or_else(|| purchase_not_found("products", token))?;
        let is_paid = product.purchase_state == 0;
        match change {
            ProductChange::Consume {} if is_paid && !product.consumed => {
                product.consumed = true;
                product.acknowledged = true;
            }
            ProductChange::Acknowledge {} if is_paid => product.acknowledged = true,
            ProductChange::Consume {} | ProductChange::Acknowledge {} => {
                return Err(SimulatorError::invalid_request(
                    "Only a product that is paid for and not consumed can be consumed or acknowledged.",
                ));
            }
            ProductChange::Refund {} => {
                product.purchase_state = 1;
                // What was not paid is canceled.
                product.refunded_at = is_paid.then_some(now).or(product.refunded_at);
            }
            ProductChange::RefundQuantity { quantity } => {
                product.refund_quantity(*quantity, now)?;
            }
            ProductChange::Complete {} if product.purchase_state == 2 => {
                product.purchase_state = 0;
                product.purchase_time = now;
            }
            ProductChange::Complete {} => {
                return Err(SimulatorError::invalid_request(
                    "Only a pending purchase can be paid.",
                ));
            }
            ProductChange::Set { fields, fields_v2 } => {
                product.sold.fields.extend(fields.clone());
                product.sold.fields_v2.extend(fields_v2.clone());
            }
            ProductChange::Gone { how } => product.gone = Some(*how),
            ProductChange::Forget {} => {
                let forgotten = product.clone();
                self.products.remove(token);
                return Ok(forgotten);
            }
        }
        Ok(product.clone())
    }

    fn is_owned(&self, new: &NewProduct) -> bool {
        let package = package_name_or_default(new.package_name.as_deref());
        let product_id = new.product_id.as_deref().unwrap_or("coins_100");
        let user = new.obfuscated_external_account_id.as_deref();
        user.is_some()
            && self.products.values().any(|owned| {
                owned.account_id() == user
                    && owned.package_name == package
                    && owned.product_id == product_id
                    && owned.purchase_state != 1
                    && !owned.consumed
            })
    }

    /// Names the user of a subscription that names none.
    pub(crate) fn bind_account(
        &mut self,
        token: &str,
        account: Option<String>,
        profile: Option<String>,
    ) {
        if let Some(subscription) = self.subscriptions.get_mut(token)
            && subscription.account_id().is_none()
        {
            subscription.sold.obfuscated_external_account_id = account;
            subscription.sold.obfuscated_external_profile_id = profile;
        }
    }

    /// Refunds what is neither acknowledged nor consumed in time, and returns it.
    pub(crate) fn refund_unacknowledged(&mut self, now: Timestamp) -> RefundedPurchases {
        let mut refunded = RefundedPurchases::default();
        let is_over = |bought: Timestamp, period| now > bought.plus(period);
        for it in self.subscriptions.values_mut() {
            let is_unacknowledged =
                !it.acknowledged && !it.is_pending() && it.refunded_at().is_none();
            let is_lasting = it.latest_expiry_time() > now;
            if is_unacknowledged
                && is_lasting
                && is_over(it.start_time, it.acknowledgement_period())
            {
                it.refunded_unacknowledged = true;
                it.canceled = Some(Cancellation {
                    by: CanceledBy::Developer,
                    at: now,
                });
                it.phase = SubscriptionPhase::Running;
                it.expire_by(now);
                refunded.subscriptions.push(it.clone());
            }
        }
        for it in self.products.values_mut() {
            let period = acknowledgement_period(it.sold.test_purchase);
            if it.purchase_state == 0 && !it.acknowledged && is_over(it.purchase_time, period) {
                it.refunded_unacknowledged = true;
                it.purchase_state = 1;
                it.refunded_at = Some(now);
                refunded.products.push(it.clone());
            }
        }
        refunded
    }

    fn choose_purchase_token(
        &self,
        wanted: Option<&str>,
        random: &mut fastrand::Rng,
    ) -> Result<String, SimulatorError> {
        let is_taken = |token: &str| {
            self.subscriptions.contains_key(token) || self.products.contains_key(token)
        };
        match wanted {
            Some(token) if !is_purchase_token(token) => Err(SimulatorError::invalid_request(
                "A purchaseToken has 8 to 1000 of A–Z, a–z, 0–9, '.', '-' and '_'.",
            )),
            Some(token) if is_taken(token) => Err(SimulatorError::invalid_request(
                "There is a purchase with this purchaseToken already.",
            )),
            Some(token) => Ok(token.to_owned()),
            None => loop {
                let head = random_letters(random, b"abcdefghijklmnop", 24);
                let tail = random_letters(random, PURCHASE_TOKEN_ALPHABET, 106);
                let token = format!("{head}.AO-J1O{tail}");
                if !is_taken(&token) {
                    return Ok(token);
                }
            },
        }
    }
}

impl SimulatedSubscription {
    /// The price of a period in millionths, and its currency.
    pub(super) fn price(&self) -> (i64, &str) {
        let micros = self.sold.price_amount_micros.unwrap_or(4_990_000);
        let currency = self.sold.price_currency_code.as_deref();
        (micros, currency.unwrap_or("USD"))
    }

    /// Google's `subscriptionState` without its prefix: `ACTIVE`, `ON_HOLD`, …
    pub fn state_name(&self, now: Timestamp) -> &'static str {
        match self.phase {
            SubscriptionPhase::Pending => "PENDING",
            SubscriptionPhase::PendingCanceled => "PENDING_PURCHASE_CANCELED",
            SubscriptionPhase::OnHold => "ON_HOLD",
            SubscriptionPhase::Paused { .. } => "PAUSED",
            _ if self.latest_expiry_time() <= now => "EXPIRED",
            SubscriptionPhase::InGrace => "IN_GRACE_PERIOD",
            SubscriptionPhase::Running if self.canceled.is_some() => "CANCELED",
            SubscriptionPhase::Running => "ACTIVE",
        }
    }

    /// Whether the customer may use it at a time, if nothing happens until then.
    pub fn has_access(&self, at: Timestamp) -> bool {
        matches!(
            self.state_name(at),
            "ACTIVE" | "CANCELED" | "IN_GRACE_PERIOD"
        )
    }

    /// Whether Play will try to renew it, if nothing happens until then.
    pub fn will_renew(&self, at: Timestamp) -> bool {
        let is_renewable = matches!(
            self.state_name(at),
            "ACTIVE" | "IN_GRACE_PERIOD" | "ON_HOLD" | "PAUSED"
        );
        is_renewable && !self.is_prepaid()
    }

    /// The `obfuscatedExternalAccountId` that the app gave with the purchase.
    pub fn account_id(&self) -> Option<&str> {
        self.sold.obfuscated_external_account_id.as_deref()
    }

    /// Whether its first item is prepaid, and does not renew.
    pub fn is_prepaid(&self) -> bool {
        self.items[0].prepaid
    }

    /// The end of the line item that lasts longest.
    pub fn latest_expiry_time(&self) -> Timestamp {
        self.items
            .iter()
            .map(|item| item.expiry_time)
            .max()
            .unwrap_or(self.start_time)
    }

    /// The time at which Play refunded the last period and ended access.
    pub(super) fn refunded_at(&self) -> Option<Timestamp> {
        let canceled = self.canceled?;
        let is_refund =
            canceled.by == CanceledBy::Developer && self.latest_expiry_time() <= canceled.at;
        is_refund.then_some(canceled.at)
    }

    fn acknowledgement_period(&self) -> Duration {
        let period = acknowledgement_period(self.sold.test_purchase);
        let length = self.latest_expiry_time().duration_since(self.start_time);
        if self.is_prepaid() && length < SHORT_PREPAID_PLAN {
            period.min(length / 2)
        } else {
            period
        }
    }

    /// The error with which Play refuses the token, if it does.
    pub(crate) fn gone_reason(&self, now: Timestamp) -> Option<GoneReason> {
        let is_forgotten = self.state_name(now) == "EXPIRED"
            && now.duration_since(self.latest_expiry_time()) > EXPIRED_SUBSCRIPTION_RETENTION;
        self.gone
            .or_else(|| is_forgotten.then_some(GoneReason::ExpiredTooLong))
    }

    /// The first order's id; after renewals with the suffix `..0`, `..1` and so on.
    pub fn latest_order_id(&self) -> String {
        match self.renewals {
            0 => self.order_id.clone(),
            more => format!("{}..{}", self.order_id, more - 1),
        }
    }

    /// The same purchase once more, from now on.
    fn sold_again(&self, purchase_token: Option<String>) -> NewSubscription {
        NewSubscription {
            purchase_token,
            offer_id: None,
            offer_phase: None,
            add_ons: Vec::new(),
            start_time: None,
            expiry_time: None,
            pending: false,
            acknowledged: false,
            ..self.sold.clone()
        }
    }

    fn deferred_plan(&self, by: &SubscriptionReplacement) -> DeferredPlan {
        let item = &self.items[0];
        DeferredPlan {
            product_id: by.product_id.clone().unwrap_or(item.product_id.clone()),
            base_plan_id: by.base_plan_id.clone().or(self.sold.base_plan_id.clone()),
            period: by.period.clone().unwrap_or(item.period.clone()),
            price_amount_micros: by.price_amount_micros.or(self.sold.price_amount_micros),
        }
    }

    /// The purchase that takes this one's place.
    fn replaced_by(&self, by: SubscriptionReplacement, now: Timestamp) -> NewSubscription {
        let item = &self.items[0];
        let mut new = self.sold_again(by.purchase_token);
        new.pending = by.pending;
        new.product_id = Some(item.product_id.clone());
        new.period = Some(item.period.clone());
        if by.deferred {
            new.expiry_time = Some(item.expiry_time);
            return new;
        }
        let is_other_product = by
            .product_id
            .as_ref()
            .is_some_and(|it| *it != item.product_id);
        new.prepaid = by.prepaid.unwrap_or(item.prepaid);
        new.product_id = by.product_id.or(new.product_id);
        new.base_plan_id = by.base_plan_id.or(new.base_plan_id);
        new.period = by.period.or(new.period);
        new.price_amount_micros = by.price_amount_micros.or(new.price_amount_micros);
        let is_top_up = item.prepaid && new.prepaid && !is_other_product;
        if is_top_up && item.expiry_time > now {
            new.expiry_time = new
                .period
                .as_ref()
                .map(|period| period.end_from(item.expiry_time));
        }
        new
    }

    /// What Play says for 60 days of the item that was replaced.
    fn item_replacement(&self, mode: Option<&str>) -> Value {
        Value::Object(object(json!({
            "productId": self.items[0].product_id,
            "basePlanId": self.sold.base_plan_id.as_deref().unwrap_or("monthly"),
            "offerId": self.sold.offer_id,
            "replacementMode": mode.unwrap_or("WITH_TIME_PRORATION"),
        })))
    }

    fn external_ids(&self) -> Map<String, Value> {
        object(json!({
            "obfuscatedExternalAccountId": self.sold.obfuscated_external_account_id,
            "obfuscatedExternalProfileId": self.sold.obfuscated_external_profile_id,
        }))
    }

    /// A deferred change of plan takes effect with a renewal.
    fn begin_deferred_plan(&mut self) {
        let Some(plan) = self.deferred.take() else {
            return;
        };
        self.replaced_item = Some(self.item_replacement(Some("DEFERRED")));
        let item = &mut self.items[0];
        item.product_id = plan.product_id;
        item.period = plan.period;
        self.sold.base_plan_id = plan.base_plan_id;
        self.sold.price_amount_micros = plan.price_amount_micros;
    }

    #[expect(clippy::too_many_lines, reason = "one arm for each change")]
    fn apply_change(
        &mut self,
        change: &SubscriptionChange,
        now: Timestamp,
    ) -> Result<(), SimulatorError> {
        let needs_paid = !matches!(
            change,
            SubscriptionChange::Complete {}
                | SubscriptionChange::Decline {}
                | SubscriptionChange::Gone { .. }
                | SubscriptionChange::Forget {}
        );
        if self.is_pending() && needs_paid {
            return Err(SimulatorError::invalid_request(
                "The purchase is pending: complete or decline it first.",
            ));
        }
        match change {
            SubscriptionChange::Renew {} | SubscriptionChange::Resume {} => {
                self.begin_deferred_plan();
                for item in &mut self.items {
                    let paid_ahead =
                        self.phase == SubscriptionPhase::Running && item.expiry_time > now;
                    let begin = if paid_ahead { item.expiry_time } else { now };
                    item.expiry_time = item.period.end_from(begin);
                }
                self.phase = SubscriptionPhase::Running;
                self.canceled = None;
                self.renewals += 1;
            }
            SubscriptionChange::Cancel { by } => {
                self.canceled = Some(Cancellation { by: *by, at: now });
            }
            SubscriptionChange::Restore {}
                if self.canceled.is_none() || self.latest_expiry_time() <= now =>
            {
                return Err(SimulatorError::invalid_request(
                    "Only a cancelled subscription that has not ended can be restored.",
                ));
            }
            SubscriptionChange::Restore {} => self.canceled = None,
            SubscriptionChange::Expire {} => {
                // A subscription in grace or on hold ends because it was not paid, any other because the user cancelled.
                let by = match self.phase {
                    SubscriptionPhase::InGrace | SubscriptionPhase::OnHold => CanceledBy::System,
                    _ => CanceledBy::User,
                };
                self.canceled.get_or_insert(Cancellation { by, at: now });
                self.phase = SubscriptionPhase::Running;
                self.expire_by(now);
            }
            SubscriptionChange::Grace { days } => {
                self.phase = SubscriptionPhase::InGrace;
                // Play moves the expiry to the end of the grace period.
                let end = now.plus(days.map_or(DEFAULT_GRACE_PERIOD, duration_from_days));
                for item in &mut self.items {
                    item.expiry_time = end;
                }
            }
            SubscriptionChange::Hold {} => {
                self.phase = SubscriptionPhase::OnHold;
                self.expire_by(now);
            }
            SubscriptionChange::Pause { days } => {
                self.phase = SubscriptionPhase::Paused {
                    resumes: now.plus(days.map_or(DEFAULT_PAUSE, duration_from_days)),
                };
                self.expire_by(now);
            }
            SubscriptionChange::Revoke {} => {
                self.canceled = Some(Cancellation {
                    by: CanceledBy::Developer,
                    at: now,
                });
                self.phase = SubscriptionPhase::Running;
                self.expire_by(now);
            }
            SubscriptionChange::Defer { days } => {
                for item in &mut self.items {
                    item.expiry_time = item.expiry_time.plus(duration_from_days(*days));
                }
            }
            SubscriptionChange::Acknowledge {} => self.acknowledged = true,
            SubscriptionChange::Complete {} if self.phase == SubscriptionPhase::Pending => {
                self.phase = SubscriptionPhase::Running;
                self.start_time = now;
                for item in &mut self.items {
                    item.expiry_time = item.period.end_from(now);
                }
            }
            SubscriptionChange::Decline {} if self.phase == SubscriptionPhase::Pending => {
                self.phase = SubscriptionPhase::PendingCanceled;
            }
            SubscriptionChange::Complete {} | SubscriptionChange::Decline {} => {
                return Err(SimulatorError::invalid_request(
                    "The purchase is not pending.",
                ));
            }
            SubscriptionChange::Gone { how } => self.gone = Some(*how),
            SubscriptionChange::Set {
                fields,
                item_fields,
            } => {
                self.sold.fields.extend(fields.clone());
                self.sold.item_fields.extend(item_fields.clone());
            }
            SubscriptionChange::Forget {} => {}
        }
        Ok(())
    }

    fn expire_by(&mut self, now: Timestamp) {
        for item in &mut self.items {
            item.expiry_time = item.expiry_time.min(now);
        }
    }

    /// The answer of Play's `purchases.subscriptionsv2.get`.
    pub fn to_api_response(&self, now: Timestamp) -> Value {
        let state = self.state_name(now);
        let is_pending = self.is_pending();
        let ids = self.external_ids();
        let declined = || json!({ "renewalDeclined": { "pendingOrderId": format!("{}..{}", self.order_id, self.renewals) } });
        let resumes = match self.phase {
            SubscriptionPhase::Paused { resumes } => Some(resumes),
            _ => None,
        };
        let canceled = self
            .canceled
            .filter(|_| matches!(state, "CANCELED" | "EXPIRED"));
        let mut response = object(json!({
            "kind": "androidpublisher#subscriptionPurchaseV2",
            "regionCode": self.sold.region_code.as_deref().unwrap_or("US"),
            "subscriptionState": format!("SUBSCRIPTION_STATE_{state}"),
            "latestOrderId": self.latest_order_id(),
            "acknowledgementState": if self.acknowledged {
                "ACKNOWLEDGEMENT_STATE_ACKNOWLEDGED"
            } else {
                "ACKNOWLEDGEMENT_STATE_PENDING"
            },
            "etag": format!("\"{}\"", self.renewals + 1),
            "lineItems": self.line_items_json(now),
            "startTime": (!is_pending).then(|| rfc3339_json(self.start_time)),
            "linkedPurchaseToken": self.linked_purchase_token,
            "testPurchase": self.sold.test_purchase.then(|| json!({})),
            "outOfAppPurchaseContext": self.out_of_app_context.as_ref().filter(|_| !self.acknowledged),
            "externalAccountIdentifiers": (!ids.is_empty()).then_some(ids),
            "pausedStateContext": resumes.map(|time| json!({ "autoResumeTime": rfc3339_json(time) })),
            "inGracePeriodStateContext": (state == "IN_GRACE_PERIOD").then(declined),
            "onHoldStateContext": (state == "ON_HOLD").then(declined),
            "canceledStateContext": canceled.map(|canceled| match canceled.by {
                CanceledBy::User => json!({ "userInitiatedCancellation": {
                    "cancelTime": rfc3339_json(canceled.at),
                } }),
                CanceledBy::System => json!({ "systemInitiatedCancellation": {} }),
                CanceledBy::Developer => json!({ "developerInitiatedCancellation": {} }),
                CanceledBy::Replacement => json!({ "replacementCancellation": {} }),
            }),
        }));
        override_fields(&mut response, &self.sold.fields);
        Value::Object(response)
    }

    fn is_pending(&self) -> bool {
        matches!(
            self.phase,
            SubscriptionPhase::Pending | SubscriptionPhase::PendingCanceled
        )
    }

    fn line_items_json(&self, now: Timestamp) -> Vec<Value> {
        let is_pending = self.is_pending();
        let mut lines: Vec<Value> = self
            .items
            .iter()
            .map(|item| self.line_item_json(item, is_pending))
            .collect();
        let age = now.duration_since(self.start_time);
        if let Some(replaced) = &self.replaced_item
            && age < ITEM_REPLACEMENT_SHOWN
        {
            lines[0]["itemReplacement"] = replaced.clone();
        }
        if let Some(plan) = &self.deferred {
            lines[0]["deferredItemReplacement"] = json!({ "productId": plan.product_id });
            if let Some(running) = lines[0]["autoRenewingPlan"].as_object_mut() {
                running.remove("autoRenewEnabled");
            }
            let (micros, currency) = self.price();
            let micros = plan.price_amount_micros.unwrap_or(micros);
            let mut next = json!({
                "productId": plan.product_id,
                "autoRenewingPlan": { "recurringPrice": money_json(micros, currency) },
                "offerDetails": { "basePlanId": plan.base_plan_id.as_deref().unwrap_or("monthly") },
            });
            if self.canceled.is_none() {
                next["autoRenewingPlan"]["autoRenewEnabled"] = json!(true);
            }
            lines.push(next);
        }
        if let Some(first) = lines[0].as_object_mut() {
            override_fields(first, &self.sold.item_fields);
        }
        lines
    }

    fn line_item_json(&self, item: &SubscriptionItem, is_pending: bool) -> Value {
        let (micros, currency) = self.price();
        let mut line = json!({
            "productId": item.product_id,
            "latestSuccessfulOrderId": self.latest_order_id(),
            "offerDetails": { "basePlanId": self.sold.base_plan_id.as_deref().unwrap_or("monthly") },
            "offerPhase": { "basePrice": {} },
        });
        if let Some(offer) = &self.sold.offer_id {
            line["offerDetails"]["offerId"] = json!(offer);
        }
        let default_phase = self.sold.offer_id.as_ref().map(|_| "introductoryPrice");
        let phase = self.sold.offer_phase.as_deref().or(default_phase);
        if let Some(phase) = phase.filter(|_| self.renewals == 0) {
            line["offerPhase"] = json!({ phase: {} });
        }
        if !is_pending {
            line["expiryTime"] = rfc3339_json(item.expiry_time);
        }
        if item.prepaid {
            line["prepaidPlan"] = json!({ "allowExtendAfterTime": rfc3339_json(self.start_time) });
        } else {
            line["autoRenewingPlan"] = json!({ "recurringPrice": money_json(micros, currency) });
            // Left out when false, as Google does.
            if self.canceled.is_none() && self.phase != SubscriptionPhase::PendingCanceled {
                line["autoRenewingPlan"]["autoRenewEnabled"] = json!(true);
            }
        }
        line
    }
}

impl SimulatedProductPurchase {
    /// The error with which Play refuses the token, if it does.
    pub(crate) fn gone_reason(&self) -> Option<GoneReason> {
        self.gone
    }

    /// Whether the customer has it: paid for, neither refunded nor consumed.
    pub fn has_access(&self) -> bool {
        self.purchase_state == 0 && !self.consumed
    }

    /// Google's order id.
    pub fn order_id(&self) -> &str {
        &self.order_id
    }

    /// The `obfuscatedExternalAccountId` that the app gave with the purchase.
    pub fn account_id(&self) -> Option<&str> {
        self.sold.obfuscated_external_account_id.as_deref()
    }

    /// How many were bought.
    pub fn quantity(&self) -> u32 {
        self.sold.quantity.unwrap_or(1)
    }

    /// How many of them can still be refunded.
    pub fn refundable_quantity(&self) -> u32 {
        let sold = self.sold.refundable_quantity.unwrap_or(self.quantity());
        if self.purchase_state == 0 {
            sold.saturating_sub(self.refunded_quantity)
        } else {
            0
        }
    }

    /// The last of them is refunded like the whole purchase.
    fn refund_quantity(&mut self, quantity: u32, now: Timestamp) -> Result<(), SimulatorError> {
        let left = self.refundable_quantity();
        if quantity == 0 || quantity > left {
            return Err(SimulatorError::invalid_request(format!(
                "Of this purchase, 1 to {left} can be refunded."
            )));
        }
        self.refunded_quantity += quantity;
        self.refunded_parts.push(RefundedPart { quantity, at: now });
        self.refunded_at = Some(now);
        Ok(())
    }

    /// The answer of Play's `purchases.products.get`.
    pub fn to_api_response(&self) -> Value {
        let named = (!self.sold.terse).then_some(());
        let mut response = object(json!({
            "kind": "androidpublisher#productPurchase",
            "purchaseTimeMillis": self.purchase_time.as_millis().to_string(),
            "purchaseState": self.purchase_state,
            "consumptionState": u8::from(self.consumed),
            "developerPayload": "",
            "orderId": self.order_id,
            "acknowledgementState": u8::from(self.acknowledged),
            "regionCode": self.sold.region_code.as_deref().unwrap_or("US"),
            "purchaseType": self.sold.test_purchase.then_some(0),
            "obfuscatedExternalAccountId": self.sold.obfuscated_external_account_id,
            "obfuscatedExternalProfileId": self.sold.obfuscated_external_profile_id,
            "productId": named.map(|()| &self.product_id),
            "purchaseToken": named.map(|()| &self.purchase_token),
            "quantity": named.and(self.sold.quantity),
            "refundableQuantity": named.and(self.sold.quantity).map(|_| self.refundable_quantity()),
        }));
        override_fields(&mut response, &self.sold.fields);
        Value::Object(response)
    }
}

/// Whether a text has the shape of a purchase token.
pub(crate) fn is_purchase_token(text: &str) -> bool {
    (8..=1000).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte))
}

/// `list` is the collection's name in the control API's paths.
pub(in crate::simulator) fn purchase_not_found(list: &str, token: &str) -> SimulatorError {
    let head: String = token.chars().take(40).collect();
    SimulatorError::not_found(format!(
        "No purchase with the token {head}… is known here. GET /control/google/{list} lists those that are."
    ))
}

fn package_name_or_default(name: Option<&str>) -> String {
    name.unwrap_or("com.example.app").to_owned()
}

fn random_order_id(random: &mut fastrand::Rng) -> String {
    let mut digits = |count| random_letters(random, b"0123456789", count);
    format!(
        "GPA.33{}-{}-{}-{}",
        digits(2),
        digits(4),
        digits(4),
        digits(5)
    )
}

/// As Google writes a time: the decimals only when there are any.
pub(super) fn rfc3339_json(moment: Timestamp) -> Value {
    json!(moment.to_string().replace(".000Z", "Z"))
}

/// As Google writes money: whole units as a string, the rest in billionths, each left out when zero.
pub(super) fn money_json(micros: i64, currency: &str) -> Value {
    let mut money = json!({ "currencyCode": currency });
    let (units, rest) = (micros / 1_000_000, micros % 1_000_000);
    if units != 0 {
        money["units"] = json!(units.to_string());
    }
    if rest != 0 {
        money["nanos"] = json!(rest * 1000);
    }
    money
}
