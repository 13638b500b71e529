//! What a purchase is worth: one object for both stores, in every answer and every event.
//!
//! Each store has one pure function that makes it of the store's facts: `stores/apple/state.rs`, `stores/google/state.rs`.
//! A receiver keeps the newest by `asOf` and lets its customer in while `entitled` and before `entitledUntil`.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;

use crate::base::clock::Timestamp;

/// What a purchase is worth at `asOf`. What is not known is null.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PurchaseState {
    /// Explains why `entitled` is what it is.
    pub status: StateStatus,
    /// Whether the customer may use it, judged when this was answered or stored.
    pub entitled: bool,
    /// When that ends if nothing else happens, a grace period included. Null: it does not end, or `entitled` is false. The
    /// end of a non-renewing subscription is the app's to compute.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub entitled_until: Option<Timestamp>,
    /// The product that is in force now.
    #[schema(examples("pro.monthly"))]
    pub product_id: Option<String>,
    /// Google's base plan.
    pub base_plan_id: Option<String>,
    /// The offer it was bought with.
    pub offer_id: Option<String>,
    /// Which price applies to the current period. Null for what has no periods.
    pub period: Option<PricePeriod>,
    /// Whether a renewal is to come. False where none is; null only where one signed transaction does not say it.
    pub will_renew: Option<bool>,
    /// The product that the next renewal is for. Null where it is not known, or none is to come.
    #[schema(examples("pro.yearly"))]
    pub renews_as: Option<String>,
    /// When the next renewal is due. Null where it is not known, or none is to come.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub renews_at: Option<Timestamp>,
    /// Bought by this customer, or shared by a family member.
    pub ownership: Option<Ownership>,
    /// How many were bought, less those that were refunded.
    #[schema(examples(1))]
    pub quantity: Option<i64>,
    /// How many of them can still be refunded (Google, one-time products).
    pub refundable_quantity: Option<i64>,
    /// Until when the purchase must be acknowledged with Google, which else refunds it. Null when nothing is owed.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub acknowledge_by: Option<Timestamp>,
    /// What the state was made of.
    pub basis: StateBasis,
    /// The store's own time of these facts: Apple's newest `signedDate`, the time of the fetch from Google by the database's clock.
    #[schema(value_type = String, format = DateTime)]
    pub as_of: Timestamp,
}

impl PurchaseState {
    /// For the API description: of a running Google Play subscription.
    pub(crate) fn example_json() -> Value {
        json!({
            "status": "active",
            "entitled": true,
            "entitledUntil": "2026-05-10T14:22:10.000Z",
            "productId": "pro_monthly",
            "basePlanId": "monthly",
            "offerId": null,
            "period": "regular",
            "willRenew": true,
            "renewsAs": "pro_monthly",
            "renewsAt": "2026-05-10T14:22:10.000Z",
            "ownership": "purchased",
            "quantity": 1,
            "refundableQuantity": null,
            "acknowledgeBy": null,
            "basis": "store",
            "asOf": "2026-04-10T14:22:10.020Z",
        })
    }

    /// For one line of text: `active, entitled until 2026-12-29T20:25:35.493Z`.
    pub(crate) fn to_summary(&self) -> String {
        let status = self.status.as_str();
        match (self.entitled, self.entitled_until) {
            (false, _) => format!("{status}, not entitled"),
            (true, Some(end)) => format!("{status}, entitled until {end}"),
            (true, None) => format!("{status}, entitled without an end"),
        }
    }
}

/// What a purchase is now. Entitled are `active` and `in_grace_period`, and `canceled` until its end.
///
/// - `active`: paid for.
/// - `canceled`: paid for until its end, and will not renew. Of a one-time product: canceled or refunded, without access.
/// - `in_grace_period`: a renewal failed; access goes on while the store tries again.
/// - `in_billing_retry`: a renewal failed, and the store tries again without access (Apple).
/// - `on_hold`: a renewal failed, and the store tries again without access (Google).
/// - `paused`: paused by the subscriber; no access.
/// - `pending`: not paid yet; no access.
/// - `scheduled`: bought, and has not begun; no access yet.
/// - `expired`: over, or never began.
/// - `refunded`: the money was given back.
/// - `revoked`: taken back without a refund, or no longer shared by the family.
/// - `upgraded`: another product took its place at once. Only where one signed transaction is all there is.
/// - `replaced`: another purchase took its place; the rest of the state is that purchase's.
/// - `consumed`: a one-time product that was used up.
/// - `unknown`: the store uses a word that this release does not know; no access.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema, strum::IntoStaticStr,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum StateStatus {
    /// Paid for, and not ended.
    Active,
    /// Paid for until its end, and will not renew. Of a one-time product: canceled or refunded, without access.
    Canceled,
    /// A renewal failed; access goes on while the store tries again.
    InGracePeriod,
    /// A renewal failed, and the store tries again without access (Apple).
    InBillingRetry,
    /// A renewal failed, and the store tries again without access (Google).
    OnHold,
    /// Paused by the subscriber; no access.
    Paused,
    /// Not paid yet; no access.
    Pending,
    /// Bought, and has not begun; no access yet.
    Scheduled,
    /// Over, or never began.
    Expired,
    /// The money was given back.
    Refunded,
    /// Taken back without a refund, or no longer shared by the family.
    Revoked,
    /// Another product took its place at once. Only where one signed transaction is all there is.
    Upgraded,
    /// Another purchase took its place; the rest of the state is that purchase's.
    Replaced,
    /// A one-time product that was used up.
    Consumed,
    /// The store uses a word that this release does not know; no access.
    Unknown,
}

impl StateStatus {
    /// The name in JSON.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// Which price applies to a period.
///
/// - `trial`: free at the beginning.
/// - `introductory`: a lower price at the beginning.
/// - `promotional`: an offer for present or former subscribers, an offer code, a win-back offer.
/// - `regular`: the full price.
/// - `prepaid`: paid in advance, without renewal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PricePeriod {
    /// Free at the beginning.
    Trial,
    /// A lower price at the beginning.
    Introductory,
    /// An offer for present or former subscribers, an offer code, a win-back offer.
    Promotional,
    /// The full price.
    Regular,
    /// Paid in advance, without renewal.
    Prepaid,
}

/// Whose purchase it is.
///
/// - `purchased`: bought by this customer.
/// - `family_shared`: shared by a family member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Ownership {
    /// Bought by this customer.
    Purchased,
    /// Shared by a family member.
    FamilyShared,
}

/// What a state was made of.
///
/// - `store`: the store was asked about, or reported, the whole purchase.
/// - `transaction`: one signed transaction alone, which says nothing of later periods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum StateBasis {
    /// The store was asked about, or reported, the whole purchase.
    Store,
    /// One signed transaction alone, which says nothing of later periods.
    Transaction,
}

/// Why there is no state.
///
/// An event without a state is followed by an event `purchase.state` as soon as the reason has ended.
///
/// - `store_unavailable`: the store did not answer in time.
/// - `replaced_by_unknown`: the purchase was replaced by another that has not been seen yet.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Serialize,
    Deserialize,
    ToSchema,
    strum::IntoStaticStr,
    strum::EnumString,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum StateError {
    /// The store did not answer in time.
    StoreUnavailable,
    /// The purchase was replaced by another that has not been seen yet.
    ReplacedByUnknown,
}

impl StateError {
    /// The name in the database and in JSON.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}
