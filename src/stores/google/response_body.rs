//! The answers: the purchase as `POST /v1/google/verify` sends it, and what `acknowledge` and `consume` send. What these
//! comments say is in `/openapi.json` too.

use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;
use utoipa::openapi::schema::Schema;

use super::payload::Int64;
use super::translate::PurchaseStatus;
use crate::base::clock::Timestamp;
use crate::events::{AppUserIdSource, EventSubject, PurchaseState, StateError};
use crate::http::api_docs::{always_true, string_enum_schema};
use crate::stores::shared::first_seen::{FirstSeen, FirstSeenError};

/// A yes: Google knows this purchase, and it is of this tenant's app. What it is worth now is in `status`.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = google::Verified)]
pub(crate) struct VerifiedPurchase {
    /// Always true. Whether it is paid for now is in `status`.
    #[schema(schema_with = always_true)]
    pub(crate) valid: bool,
    /// The release of Attesto that answered.
    #[schema(examples(json!(crate::VERSION)))]
    pub(crate) version: &'static str,
    /// What the purchase is now.
    pub(crate) status: PurchaseStatus,
    /// Whose it is: what your app gave Google for its user, as in `purchase.obfuscatedExternalAccountId`. Null when it gave
    /// nothing.
    #[schema(examples("7e3fb204-2b0d-4d70-a0c2-6d8a3f6c1e55"))]
    pub(crate) app_user_id: Option<String>,
    /// Which purchase names that user: this one, or an earlier one of the same subscription, where it was bought again outside
    /// the app. Null when `appUserId` is null.
    pub(crate) app_user_id_source: Option<AppUserIdSource>,
    /// What the answer is about, as in events.
    pub(crate) subject: EventSubject,
    /// What the whole subscription or purchase is worth now: this decides about access. Null where that is not known;
    /// `stateError` says why.
    pub(crate) state: Option<PurchaseState>,
    /// Why there is no `state`.
    pub(crate) state_error: Option<StateError>,
    /// What became of the acknowledgement, where Attesto makes it for the tenant. Null where it does not, and where none was owed.
    pub(crate) acknowledgement: Option<AcknowledgementOutcome>,
    /// Present where the same purchase was verified before for another user of this tenant, if the tenant has asked for it: when
    /// that was. See `forAppUserId`.
    #[schema(required = false, nullable = false)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) first_seen: Option<FirstSeen>,
    /// Present where `firstSeen` would say it and is not known.
    #[schema(required = false, nullable = false)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) first_seen_error: Option<FirstSeenError>,
    /// What Google says of the purchase.
    pub(crate) purchase: PurchaseDetails,
}

/// What became of the acknowledgement of a verified purchase.
///
/// - `done`: Google has it; the answer shows the purchase as acknowledged.
/// - `retried`: Google did not take it, and is told again until the deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = google::AcknowledgementOutcome)]
pub(crate) enum AcknowledgementOutcome {
    /// Google has it.
    Done,
    /// Google did not take it, and is told again.
    Retried,
}

impl VerifiedPurchase {
    /// Until when the purchase itself must be acknowledged.
    pub(super) fn acknowledge_by(&self) -> Option<Timestamp> {
        match &self.purchase {
            PurchaseDetails::Subscription(details) => details.acknowledge_by,
            PurchaseDetails::Product(details) => details.acknowledge_by,
        }
    }

    /// Says what Google says after an acknowledgement. `rawResponse` stays what Google answered before it.
    pub(super) fn set_acknowledged(&mut self) {
        let (state, by) = match &mut self.purchase {
            PurchaseDetails::Subscription(details) => (
                &mut details.acknowledgement_state,
                &mut details.acknowledge_by,
            ),
            PurchaseDetails::Product(details) => (
                &mut details.acknowledgement_state,
                &mut details.acknowledge_by,
            ),
        };
        (*state, *by) = (1, None);
        // The state of a replaced purchase is that of the current one.
        if let Some(state) = self.state.as_mut().filter(|_| self.subject.current) {
            state.acknowledge_by = None;
        }
    }
}

/// The facts of a purchase; `kind` says of which of the two. What Google did not say is null.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(untagged)]
#[schema(as = google::Purchase)]
pub(crate) enum PurchaseDetails {
    /// Of a subscription.
    Subscription(SubscriptionDetails),
    /// Of a one-time product.
    Product(ProductDetails),
}

impl PurchaseDetails {
    /// Whether a license tester made it.
    pub(crate) fn is_test(&self) -> bool {
        match self {
            Self::Subscription(details) => details.test_purchase,
            Self::Product(details) => details.test_purchase,
        }
    }
}

/// A subscription. It can be of several products, each with its own dates, price and renewal: these are of the requested
/// `productId`, else of the one that lasts longest. `rawResponse` has them all.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = google::Subscription)]
pub(crate) struct SubscriptionDetails {
    /// Google's name of the resource: always `androidpublisher#subscriptionPurchaseV2`.
    #[schema(schema_with = subscription_kind)]
    pub(crate) kind: String,
    /// The app's package name.
    #[schema(examples("com.example.app"))]
    pub(crate) package_name: String,
    /// The product's id in the Play Console.
    #[schema(examples("pro_monthly"))]
    pub(crate) product_id: Option<String>,
    /// The purchase token that was asked about.
    #[schema(examples("mbcdefghijklmnopqrstuvwx.AO-J1Ozn"))]
    pub(crate) purchase_token: String,
    /// When the subscription began. Null while it is pending.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub(crate) start_time: Option<Timestamp>,
    /// Until when it is paid for. Null while it is pending.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub(crate) expiry_time: Option<Timestamp>,
    /// Whether it will renew at `expiryTime`.
    pub(crate) auto_renewing: bool,
    /// The currency of `priceAmountMicros`: three letters of ISO 4217. Null for a prepaid plan.
    #[schema(examples("USD"))]
    pub(crate) price_currency_code: Option<String>,
    /// What a renewal costs, in millionths of the currency's unit: `9990000` is 9.99. A string, as Google sends it. Null for
    /// a prepaid plan.
    #[schema(value_type = Option<String>, examples("9990000"))]
    pub(crate) price_amount_micros: Option<Int64>,
    /// The buyer's country: two letters of ISO 3166-1.
    #[schema(examples("US"))]
    pub(crate) country_code: Option<String>,
    /// 0 waiting for the money, 1 received, 2 free trial, 3 another plan takes over at the next renewal. Null when it is
    /// cancelled or over.
    #[schema(examples(1))]
    pub(crate) payment_state: Option<u8>,
    /// Whether your app or backend has acknowledged the purchase to Google: 0 not yet, 1 yes.
    #[schema(examples(1))]
    pub(crate) acknowledgement_state: u8,
    /// Google takes back what is not acknowledged by then. Null when there is nothing to acknowledge, or not yet.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub(crate) acknowledge_by: Option<Timestamp>,
    /// The last payment's order id, as it stands on the buyer's receipt.
    #[schema(examples("GPA.3345-1234-5678-90123"))]
    pub(crate) order_id: Option<String>,
    /// What your app gave Google for its user with `setObfuscatedAccountId`. Null when it gave nothing.
    #[schema(examples("7e3fb204-2b0d-4d70-a0c2-6d8a3f6c1e55"))]
    pub(crate) obfuscated_external_account_id: Option<String>,
    /// The purchase token that this purchase replaces, after a change of plan: what that one granted has ended. Null when it
    /// replaces none.
    #[schema(examples("abcdefghijklmnopqrstuvwx.AO-J1Oxx"))]
    pub(crate) linked_purchase_token: Option<String>,
    /// Whether it was bought by a licence tester: no money moved.
    pub(crate) test_purchase: bool,
    /// What Google answered, untouched: what this release does not know is in it too. `{}` of a purchase that Google no longer
    /// tells of, while `state` is that of the one which took its place; then nothing else is known of it either.
    #[schema(value_type = Object)]
    pub(crate) raw_response: Box<RawValue>,
}

/// A one-time product.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = google::Product)]
pub(crate) struct ProductDetails {
    /// `androidpublisher#productPurchase`; `androidpublisher#productPurchaseV2` when it was asked about without its product.
    #[schema(schema_with = product_kind)]
    pub(crate) kind: String,
    /// The app's package name.
    #[schema(examples("com.example.app"))]
    pub(crate) package_name: String,
    /// The product's id in the Play Console.
    #[schema(examples("coins_100"))]
    pub(crate) product_id: String,
    /// The purchase token that was asked about.
    #[schema(examples("mbcdefghijklmnopqrstuvwx.AO-J1Ozn"))]
    pub(crate) purchase_token: String,
    /// When it was bought, in milliseconds since 1970. A string, as Google sends it.
    #[schema(value_type = Option<String>, examples("1775830930000"))]
    pub(crate) purchase_time_millis: Option<Int64>,
    /// 0 bought, 1 cancelled or refunded, 2 not paid yet.
    #[schema(examples(0))]
    pub(crate) purchase_state: Option<i64>,
    /// Whether it was used up: 0 not yet, 1 yes.
    #[schema(examples(0))]
    pub(crate) consumption_state: Option<i64>,
    /// Whether your app or backend has acknowledged the purchase to Google: 0 not yet, 1 yes.
    #[schema(examples(1))]
    pub(crate) acknowledgement_state: u8,
    /// Google takes back what is neither acknowledged nor consumed by then. Null when there is nothing to acknowledge, or not
    /// yet.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub(crate) acknowledge_by: Option<Timestamp>,
    /// The order id, as it stands on the buyer's receipt. Null for what was not paid with money.
    #[schema(examples("GPA.3345-1234-5678-90124"))]
    pub(crate) order_id: Option<String>,
    /// How many were bought.
    #[schema(examples(1))]
    pub(crate) quantity: i64,
    /// What your app gave Google for its user with `setObfuscatedAccountId`. Null when it gave nothing.
    #[schema(examples("7e3fb204-2b0d-4d70-a0c2-6d8a3f6c1e55"))]
    pub(crate) obfuscated_external_account_id: Option<String>,
    /// Whether it was bought by a licence tester: no money moved.
    pub(crate) test_purchase: bool,
    /// What Google answered, untouched: what this release does not know is in it too.
    #[schema(value_type = Object)]
    pub(crate) raw_response: Box<RawValue>,
}

/// A yes: Google has the acknowledgement, from now or from before.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = google::Acknowledged)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "fields of an answer, not a state"
)]
pub(crate) struct AcknowledgedPurchase {
    /// Always true in this answer.
    #[schema(schema_with = always_true)]
    pub(crate) valid: bool,
    /// The release of Attesto that answered.
    #[schema(examples(json!(crate::VERSION)))]
    pub(crate) version: &'static str,
    /// Always true: Google does not take the purchase back for lack of it.
    #[schema(schema_with = always_true)]
    pub(crate) acknowledged: bool,
    /// Whether it was acknowledged before, by your app, by another request or by an earlier try of this one.
    pub(crate) already_done: bool,
    /// Whose it is now: what the purchase names, or what this request bound it to. Null when it is no user's.
    #[schema(examples("7e3fb204-2b0d-4d70-a0c2-6d8a3f6c1e55"))]
    pub(crate) app_user_id: Option<String>,
    /// Whether this request bound the purchase to that user, which is possible once, with its acknowledgement.
    pub(crate) app_user_bound: bool,
    /// What was acknowledged, as in events.
    pub(crate) subject: EventSubject,
}

/// A yes: Google has consumed the product, now or before, and its user can buy it again.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = google::Consumed)]
pub(crate) struct ConsumedPurchase {
    /// Always true in this answer.
    #[schema(schema_with = always_true)]
    pub(crate) valid: bool,
    /// The release of Attesto that answered.
    #[schema(examples(json!(crate::VERSION)))]
    pub(crate) version: &'static str,
    /// Always true. It is acknowledged too.
    #[schema(schema_with = always_true)]
    pub(crate) consumed: bool,
    /// Whether it was consumed before, by your app, by another request or by an earlier try of this one. What was granted for
    /// it is in your own records: do not grant by this field.
    pub(crate) already_done: bool,
    /// Whose it is: what your app gave Google for its user. Null when it gave nothing.
    #[schema(examples("7e3fb204-2b0d-4d70-a0c2-6d8a3f6c1e55"))]
    pub(crate) app_user_id: Option<String>,
    /// What was consumed, as in events.
    pub(crate) subject: EventSubject,
}

fn subscription_kind() -> Schema {
    let meaning = "a subscription.";
    string_enum_schema(
        "What Google calls it.",
        &[("androidpublisher#subscriptionPurchaseV2", meaning)],
    )
}

fn product_kind() -> Schema {
    let meaning = "a one-time product.";
    string_enum_schema(
        "What Google calls it.",
        &[
            ("androidpublisher#productPurchase", meaning),
            (
                "androidpublisher#productPurchaseV2",
                "the same, from version 2 of Google's API.",
            ),
        ],
    )
}
