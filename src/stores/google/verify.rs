//! The use case: a tenant asks whether a purchase is real, and what it is now.
//!
//! In this order: has the tenant credentials; is it the tenant's app; does Google know the purchase; is it of the
//! product asked about; is it the user's. The first "no" is the answer, and what comes after it is not looked at.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde_json::value::RawValue;
use url::Url;
use utoipa::ToSchema;
use utoipa::openapi::Schema;

use super::api::{
    GoogleApiError, GoogleNotFound, PlayClient, PurchaseLookupError, PurchaseResponse,
};
use super::payload::{Int64, LineItem, ProductPurchase, SubscriptionPurchase};
use super::store::{self, GoogleCredentials};
use super::translate::{self, PurchaseStatus};
use crate::base::clock::{Clock, Timestamp};
use crate::base::id::TenantId;
use crate::credentials::TenantCache;
use crate::crypto::keyring::Keyring;
use crate::db::Database;
use crate::db::change_listener::ChangeListener;
use crate::http::api_docs::{always_true, string_enum_schema};
use crate::outbound::Upstream;
use crate::stores::shared::credentials::LoadCredentialsError;

/// Google Play, as one process asks it for all tenants. Clones share what is remembered.
#[derive(Clone)]
pub struct GoogleVerifier {
    pub(super) database: Database,
    keyring: Arc<Keyring>,
    credential_cache: TenantCache<GoogleCredentials, LoadCredentialsError>,
    pub(super) play: PlayClient,
    pub(super) clock: Clock,
}

/// Where Google is, and how long a tenant's credentials are remembered.
#[derive(Clone, Debug)]
pub struct GoogleSettings {
    /// The Play Developer API: the part before `/androidpublisher`.
    pub play_url: Url,
    /// Where access tokens are bought.
    pub token_url: Url,
    /// How long opened credentials are remembered, if nothing changes them.
    pub credential_ttl: Duration,
}

/// What a tenant asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GoogleVerifyRequest {
    /// The app the purchase is said to be of.
    pub package_name: String,
    /// The token Google gave the app.
    pub purchase_token: String,
    /// What it is said to have bought.
    pub product: RequestedProduct,
    /// Whose it must be; compared with what the app gave Google as the obfuscated account id, character by character.
    pub expected_app_user_id: Option<String>,
}

/// What a token is said to have bought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestedProduct {
    /// A subscription; when a product is named, it must be one of the subscription's.
    Subscription {
        /// The product.
        product_id: Option<String>,
    },
    /// A one-time product.
    Product {
        /// The product.
        product_id: String,
    },
}

/// A yes: Google knows this purchase, and it is of this tenant's app. What it is worth now is in `status`.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = google::Verified)]
pub struct VerifiedPurchase {
    /// Always true. Whether it is paid for now is in `status`.
    #[schema(schema_with = always_true)]
    pub valid: bool,
    /// The release of Attesto that answered.
    #[schema(examples("1.0.0"))]
    pub version: &'static str,
    /// What the purchase is now.
    pub status: PurchaseStatus,
    /// Whose it is: what your app gave Google for its user, as in `purchase.obfuscatedExternalAccountId`. Null when it gave
    /// nothing.
    #[schema(examples("7e3fb204-2b0d-4d70-a0c2-6d8a3f6c1e55"))]
    pub app_user_id: Option<String>,
    /// The facts.
    pub purchase: PurchaseDetails,
}

/// The facts of a purchase; `kind` says of which of the two. What Google did not say is null.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(untagged)]
#[schema(as = google::Purchase)]
pub enum PurchaseDetails {
    /// Of a subscription.
    Subscription(SubscriptionDetails),
    /// Of a one-time product.
    Product(ProductDetails),
}

/// A subscription. It can be of several products, each with its own dates, price and renewal: these are of the requested
/// `productId`, else of the one that lasts longest. `rawResponse` has them all.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = google::Subscription)]
pub struct SubscriptionDetails {
    /// Always `androidpublisher#subscriptionPurchaseV2`.
    #[schema(schema_with = subscription_kind)]
    pub kind: String,
    /// The app's package name.
    #[schema(examples("com.example.app"))]
    pub package_name: String,
    /// The product's id in the Play Console.
    #[schema(examples("pro_monthly"))]
    pub product_id: Option<String>,
    /// The purchase token that was asked about.
    #[schema(examples("mbcdefghijklmnopqrstuvwx.AO-J1Ozn"))]
    pub purchase_token: String,
    /// When the subscription began. Null while it is pending.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub start_time: Option<Timestamp>,
    /// Until when it is paid for. Null while it is pending.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub expiry_time: Option<Timestamp>,
    /// Whether it will renew at `expiryTime`.
    pub auto_renewing: bool,
    /// The currency of `priceAmountMicros`: three letters of ISO 4217. Null for a prepaid plan.
    #[schema(examples("USD"))]
    pub price_currency_code: Option<String>,
    /// What a renewal costs, in millionths of the currency's unit: `9990000` is 9.99. A string, as Google sends it. Null for
    /// a prepaid plan.
    #[schema(value_type = Option<String>, examples("9990000"))]
    pub price_amount_micros: Option<Int64>,
    /// The buyer's country: two letters of ISO 3166-1.
    #[schema(examples("US"))]
    pub country_code: Option<String>,
    /// 0 waiting for the money, 1 received, 2 free trial, 3 another plan takes over at the next renewal. Null when it is
    /// cancelled or over.
    #[schema(examples(1))]
    pub payment_state: Option<u8>,
    /// Whether your app or backend has acknowledged the purchase to Google: 0 not yet, 1 yes.
    #[schema(examples(1))]
    pub acknowledgement_state: u8,
    /// Google takes back what is not acknowledged by then. Null when there is nothing to acknowledge, or not yet.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub acknowledge_by: Option<Timestamp>,
    /// The last payment's order id, as it stands on the buyer's receipt.
    #[schema(examples("GPA.3345-1234-5678-90123"))]
    pub order_id: Option<String>,
    /// What your app gave Google for its user with `setObfuscatedAccountId`. Null when it gave nothing.
    #[schema(examples("7e3fb204-2b0d-4d70-a0c2-6d8a3f6c1e55"))]
    pub obfuscated_external_account_id: Option<String>,
    /// The purchase token that this purchase replaces, after a change of plan: what that one granted has ended. Null when it
    /// replaces none.
    #[schema(examples("abcdefghijklmnopqrstuvwx.AO-J1Oxx"))]
    pub linked_purchase_token: Option<String>,
    /// Whether it was bought by a licence tester: no money moved.
    pub test_purchase: bool,
    /// What Google answered, untouched: what this release does not know is in it too.
    #[schema(value_type = Object)]
    pub raw_response: Box<RawValue>,
}

/// A one-time product.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = google::Product)]
pub struct ProductDetails {
    /// Always `androidpublisher#productPurchase`.
    #[schema(schema_with = product_kind)]
    pub kind: String,
    /// The app's package name.
    #[schema(examples("com.example.app"))]
    pub package_name: String,
    /// The product's id in the Play Console.
    #[schema(examples("coins_100"))]
    pub product_id: String,
    /// The purchase token that was asked about.
    #[schema(examples("mbcdefghijklmnopqrstuvwx.AO-J1Ozn"))]
    pub purchase_token: String,
    /// When it was bought, in milliseconds since 1970. A string, as Google sends it.
    #[schema(value_type = Option<String>, examples("1775830930000"))]
    pub purchase_time_millis: Option<Int64>,
    /// 0 bought, 1 cancelled or refunded, 2 not paid yet.
    #[schema(examples(0))]
    pub purchase_state: Option<i64>,
    /// Whether it was used up: 0 not yet, 1 yes.
    #[schema(examples(0))]
    pub consumption_state: Option<i64>,
    /// Whether your app or backend has acknowledged the purchase to Google: 0 not yet, 1 yes.
    #[schema(examples(1))]
    pub acknowledgement_state: u8,
    /// Google takes back what is neither acknowledged nor consumed by then. Null when there is nothing to acknowledge, or not
    /// yet.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub acknowledge_by: Option<Timestamp>,
    /// The order id, as it stands on the buyer's receipt. Null for what was not paid with money.
    #[schema(examples("GPA.3345-1234-5678-90124"))]
    pub order_id: Option<String>,
    /// How many were bought.
    #[schema(examples(1))]
    pub quantity: i64,
    /// What your app gave Google for its user with `setObfuscatedAccountId`. Null when it gave nothing.
    #[schema(examples("7e3fb204-2b0d-4d70-a0c2-6d8a3f6c1e55"))]
    pub obfuscated_external_account_id: Option<String>,
    /// Whether it was bought by a licence tester: no money moved.
    pub test_purchase: bool,
    /// What Google answered, untouched: what this release does not know is in it too.
    #[schema(value_type = Object)]
    pub raw_response: Box<RawValue>,
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
        &[("androidpublisher#productPurchase", meaning)],
    )
}

/// Why there is no [`Verified`].
#[derive(Clone, Debug, thiserror::Error)]
pub enum GoogleVerifyError {
    /// An answer: no.
    #[error("{0}")]
    Rejected(#[from] GoogleRejection),
    /// The tenant has no Google credentials.
    #[error("the tenant has no Google credentials")]
    NoCredentials,
    /// The tenant's credentials cannot be read.
    #[error("{0}")]
    Credentials(Arc<LoadCredentialsError>),
    /// Google gave no answer that says yes or no.
    #[error("{0}")]
    Api(#[from] GoogleApiError),
}

/// A "no", which is an answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GoogleRejection {
    /// Google knows no such purchase, knows it no more, or knows it as something else.
    #[error("{0}")]
    NotFound(NotFoundReason),
    /// The purchase is not of the tenant's app.
    #[error("the purchase is of another app")]
    PackageNameMismatch {
        /// The tenant's app.
        expected: String,
    },
    /// The purchase is not of the product asked about.
    #[error("the purchase is of another product")]
    ProductIdMismatch {
        /// What it is of, where that is known.
        found: Vec<String>,
    },
    /// The purchase is not the expected user's.
    #[error("the purchase is another user's, or nobody's")]
    AppUserMismatch,
}

/// In which way a purchase is not there, as a sentence for the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotFoundReason {
    /// Google never saw it.
    #[error("Google knows no purchase with this token.")]
    Unknown,
    /// Google knew it once.
    #[error(
        "This purchase is gone: Google knew it, but it was replaced, or it ended so long ago that Google no longer tells."
    )]
    Gone,
    /// Google knows the token, but not as what was asked.
    #[error(
        "Google does not know this token as a purchase of the type asked about; is it of the other type?"
    )]
    OtherType,
}

impl GoogleVerifier {
    /// Asks through `upstream`; forgets a tenant's credentials as soon as `changes` hears of a change.
    pub fn new(
        database: &Database,
        keyring: &Arc<Keyring>,
        changes: &ChangeListener,
        upstream: Upstream,
        clock: &Clock,
        settings: GoogleSettings,
    ) -> Self {
        let GoogleSettings {
            play_url,
            token_url,
            credential_ttl,
        } = settings;
        Self {
            database: database.clone(),
            keyring: keyring.clone(),
            credential_cache: TenantCache::new(
                "google_credentials",
                credential_ttl,
                clock.clone(),
                changes,
            ),
            play: PlayClient::new(upstream, play_url, token_url, clock.clone()),
            clock: clock.clone(),
        }
    }

    /// Asks Google about a purchase for `tenant`.
    pub async fn verify_purchase(
        &self,
        tenant: &TenantId,
        question: &GoogleVerifyRequest,
    ) -> Result<VerifiedPurchase, GoogleVerifyError> {
        let credentials = self
            .get_credentials(tenant)
            .await
            .map_err(GoogleVerifyError::Credentials)?
            .ok_or(GoogleVerifyError::NoCredentials)?;
        if question.package_name != credentials.package_name {
            let expected = credentials.package_name.clone();
            return Err(GoogleRejection::PackageNameMismatch { expected }.into());
        }
        let (account, package) = (&credentials.account, &question.package_name);
        let token = &question.purchase_token;
        let verified = match &question.product {
            RequestedProduct::Subscription { product_id } => {
                let known = self
                    .play
                    .get_subscription(tenant, account, package, token)
                    .await;
                let known = known.map_err(|no| to_verify_error(no, package))?;
                verify_subscription(question, product_id.as_deref(), known, self.clock.now())?
            }
            RequestedProduct::Product { product_id } => {
                let known = self
                    .play
                    .get_product(tenant, account, package, product_id, token)
                    .await;
                let known = known.map_err(|no| to_verify_error(no, package))?;
                verify_product(question, product_id, known)?
            }
        };
        match &question.expected_app_user_id {
            Some(expected) if verified.app_user_id.as_ref() != Some(expected) => {
                Err(GoogleRejection::AppUserMismatch.into())
            }
            _ => Ok(verified),
        }
    }

    /// The tenant's credentials, remembered. `None` when it has none.
    pub(super) async fn get_credentials(
        &self,
        tenant: &TenantId,
    ) -> Result<Option<Arc<GoogleCredentials>>, Arc<LoadCredentialsError>> {
        let (database, keyring, whose) =
            (self.database.clone(), self.keyring.clone(), tenant.clone());
        self.credential_cache
            .get_or_load(tenant, async move {
                store::load_credentials(&database, &keyring, &whose).await
            })
            .await
    }
}

fn to_verify_error(no: PurchaseLookupError, package_name: &str) -> GoogleVerifyError {
    let absent = match no {
        PurchaseLookupError::Api(failure) => return failure.into(),
        PurchaseLookupError::NotFound(absent) => absent,
    };
    match absent {
        GoogleNotFound::Unknown => GoogleRejection::NotFound(NotFoundReason::Unknown),
        GoogleNotFound::Gone => GoogleRejection::NotFound(NotFoundReason::Gone),
        GoogleNotFound::OtherType => GoogleRejection::NotFound(NotFoundReason::OtherType),
        GoogleNotFound::OtherApp => GoogleRejection::PackageNameMismatch {
            expected: package_name.to_owned(),
        },
        GoogleNotFound::OtherProduct => GoogleRejection::ProductIdMismatch { found: Vec::new() },
    }
    .into()
}

fn verify_subscription(
    question: &GoogleVerifyRequest,
    product_id: Option<&str>,
    known: PurchaseResponse<SubscriptionPurchase>,
    now: Timestamp,
) -> Result<VerifiedPurchase, GoogleRejection> {
    let PurchaseResponse { purchase, raw } = known;
    let item = translate::select_line_item(&purchase, product_id);
    if product_id.is_some() && item.is_none() {
        let found = purchase
            .line_items
            .into_iter()
            .filter_map(|item| item.product_id)
            .collect();
        return Err(GoogleRejection::ProductIdMismatch { found });
    }
    let status = translate::subscription_status(&purchase, item, now);
    let plan = item.and_then(|item| item.auto_renewing_plan.as_ref());
    let price = plan.and_then(|plan| plan.recurring_price.as_ref());
    let order_id = item.and_then(|item| item.latest_successful_order_id.clone());
    let user = purchase
        .external_account_identifiers
        .as_ref()
        .and_then(|ids| ids.obfuscated_external_account_id.clone());
    let facts = SubscriptionDetails {
        kind: kind_or_default(
            purchase.kind.as_ref(),
            "androidpublisher#subscriptionPurchaseV2",
        ),
        package_name: question.package_name.clone(),
        product_id: item.and_then(|item: &LineItem| item.product_id.clone()),
        purchase_token: question.purchase_token.clone(),
        start_time: purchase.start_time,
        expiry_time: item.and_then(|item| item.expiry_time),
        auto_renewing: plan.and_then(|plan| plan.auto_renew_enabled) == Some(true),
        price_currency_code: price.and_then(|price| price.currency_code.clone()),
        price_amount_micros: price.and_then(translate::to_micros),
        country_code: purchase.region_code.clone(),
        payment_state: translate::payment_state(status, item),
        acknowledgement_state: translate::subscription_acknowledgement(&purchase),
        acknowledge_by: translate::subscription_acknowledge_by(&purchase, status),
        order_id: order_id.or_else(|| purchase.latest_order_id.clone()),
        obfuscated_external_account_id: user.clone(),
        linked_purchase_token: purchase.linked_purchase_token.clone(),
        test_purchase: purchase.test_purchase.is_some(),
        raw_response: raw,
    };
    Ok(verified_purchase(
        status,
        user,
        PurchaseDetails::Subscription(facts),
    ))
}

fn verify_product(
    question: &GoogleVerifyRequest,
    product_id: &str,
    known: PurchaseResponse<ProductPurchase>,
) -> Result<VerifiedPurchase, GoogleRejection> {
    let PurchaseResponse { purchase, raw } = known;
    // Google checks this itself for most apps, and does not always say which product it is.
    if purchase
        .product_id
        .as_deref()
        .is_some_and(|found| found != product_id)
    {
        let found = purchase.product_id.into_iter().collect();
        return Err(GoogleRejection::ProductIdMismatch { found });
    }
    let status = translate::product_status(&purchase);
    let user = purchase.obfuscated_external_account_id.clone();
    let number = |number: Option<Int64>| number.map(|Int64(number)| number);
    let facts = ProductDetails {
        kind: kind_or_default(purchase.kind.as_ref(), "androidpublisher#productPurchase"),
        package_name: question.package_name.clone(),
        product_id: product_id.to_owned(),
        purchase_token: question.purchase_token.clone(),
        purchase_time_millis: purchase.purchase_time_millis,
        purchase_state: number(purchase.purchase_state),
        consumption_state: number(purchase.consumption_state),
        acknowledgement_state: translate::product_acknowledgement(&purchase),
        acknowledge_by: translate::product_acknowledge_by(&purchase),
        order_id: purchase.order_id,
        quantity: number(purchase.quantity).unwrap_or(1),
        obfuscated_external_account_id: user.clone(),
        test_purchase: purchase.purchase_type == Some(Int64(0)),
        raw_response: raw,
    };
    Ok(verified_purchase(
        status,
        user,
        PurchaseDetails::Product(facts),
    ))
}

fn kind_or_default(found: Option<&String>, expected: &str) -> String {
    found.map_or(expected, String::as_str).to_owned()
}

fn verified_purchase(
    status: PurchaseStatus,
    app_user_id: Option<String>,
    purchase: PurchaseDetails,
) -> VerifiedPurchase {
    VerifiedPurchase {
        valid: true,
        version: crate::VERSION,
        status,
        app_user_id,
        purchase,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn now() -> Timestamp {
        Timestamp::parse("2026-04-20T00:00:00Z").expect("a time")
    }

    fn question(bought: RequestedProduct) -> GoogleVerifyRequest {
        GoogleVerifyRequest {
            package_name: "com.example.app".to_owned(),
            purchase_token: "token".to_owned(),
            product: bought,
            expected_app_user_id: None,
        }
    }

    fn known<T: serde::de::DeserializeOwned>(body: &Value) -> PurchaseResponse<T> {
        let raw = serde_json::value::to_raw_value(body).expect("writes");
        PurchaseResponse {
            purchase: serde_json::from_str(raw.get()).expect("reads"),
            raw,
        }
    }

    fn as_json(verified: &VerifiedPurchase) -> Value {
        serde_json::to_value(verified).expect("writes")
    }

    fn two_items() -> Value {
        json!({
            "kind": "androidpublisher#subscriptionPurchaseV2",
            "startTime": "2026-04-10T14:22:10.123456Z",
            "regionCode": "US",
            "subscriptionState": "SUBSCRIPTION_STATE_ACTIVE",
            "linkedPurchaseToken": "earlier",
            "testPurchase": {},
            "acknowledgementState": "ACKNOWLEDGEMENT_STATE_PENDING",
            "latestOrderId": "GPA.0",
            "externalAccountIdentifiers": { "obfuscatedExternalAccountId": "user-1" },
            "lineItems": [
                {
                    "productId": "premium",
                    "expiryTime": "2026-05-10T14:22:10Z",
                    "latestSuccessfulOrderId": "GPA.1..3",
                    "autoRenewingPlan": {
                        "autoRenewEnabled": true,
                        "recurringPrice": { "currencyCode": "USD", "units": "9", "nanos": 990_000_000 },
                    },
                },
                { "productId": "add-on", "expiryTime": "2026-04-30T00:00:00Z", "prepaidPlan": {} },
            ],
        })
    }

    #[test]
    fn a_subscription_is_told_by_its_longest_item() {
        let bought = RequestedProduct::Subscription { product_id: None };
        let verified = verify_subscription(&question(bought), None, known(&two_items()), now());
        assert_eq!(
            as_json(&verified.expect("yes")),
            json!({
                "valid": true,
                "version": crate::VERSION,
                "status": "active",
                "appUserId": "user-1",
                "purchase": {
                    "kind": "androidpublisher#subscriptionPurchaseV2",
                    "packageName": "com.example.app",
                    "productId": "premium",
                    "purchaseToken": "token",
                    "startTime": "2026-04-10T14:22:10.123Z",
                    "expiryTime": "2026-05-10T14:22:10.000Z",
                    "autoRenewing": true,
                    "priceCurrencyCode": "USD",
                    "priceAmountMicros": "9990000",
                    "countryCode": "US",
                    "paymentState": 1,
                    "acknowledgementState": 0,
                    "acknowledgeBy": "2026-04-13T14:22:10.123Z",
                    "orderId": "GPA.1..3",
                    "obfuscatedExternalAccountId": "user-1",
                    "linkedPurchaseToken": "earlier",
                    "testPurchase": true,
                    "rawResponse": two_items(),
                },
            })
        );
    }

    #[test]
    fn a_subscription_is_told_by_the_product_asked_about() {
        let ask = |product: &str| {
            let product_id = Some(product.to_owned());
            let question = question(RequestedProduct::Subscription { product_id });
            verify_subscription(&question, Some(product), known(&two_items()), now())
        };
        let told = as_json(&ask("add-on").expect("yes"));
        let purchase = &told["purchase"];
        assert_eq!(purchase["productId"], "add-on");
        assert_eq!(purchase["expiryTime"], "2026-04-30T00:00:00.000Z");
        assert_eq!(purchase["autoRenewing"], false);
        assert_eq!(purchase["priceAmountMicros"], Value::Null);
        assert_eq!(purchase["orderId"], "GPA.0");
        let found = vec!["premium".to_owned(), "add-on".to_owned()];
        assert_eq!(
            ask("other").map(|_| ()),
            Err(GoogleRejection::ProductIdMismatch { found })
        );
    }

    #[test]
    fn google_may_leave_out_everything() {
        let bought = RequestedProduct::Subscription { product_id: None };
        let verified = verify_subscription(&question(bought), None, known(&json!({})), now());
        let told = as_json(&verified.expect("yes"));
        assert_eq!(told["status"], "unknown");
        assert_eq!(told["appUserId"], Value::Null);
        assert_eq!(told["purchase"]["autoRenewing"], false);
        assert_eq!(told["purchase"]["testPurchase"], false);
        assert_eq!(told["purchase"]["productId"], Value::Null);
        let product_id = "coins".to_owned();
        let verified = verify_product(
            &question(RequestedProduct::Product { product_id }),
            "coins",
            known(&json!({})),
        );
        let told = as_json(&verified.expect("yes"));
        assert_eq!(told["status"], "unknown");
        assert_eq!(told["purchase"]["purchaseState"], Value::Null);
        assert_eq!(told["purchase"]["quantity"], 1);
    }

    #[test]
    fn a_product_is_told_with_googles_numbers() {
        let body = json!({
            "kind": "androidpublisher#productPurchase",
            "purchaseTimeMillis": "1775830930000",
            "purchaseState": 0,
            "consumptionState": 0,
            "acknowledgementState": 0,
            "purchaseType": 0,
            "orderId": "GPA.2",
            "quantity": 2,
            "obfuscatedExternalAccountId": "user-1",
            "regionCode": "DE",
        });
        let ask = |product_id: &str, body: &Value| {
            let bought = RequestedProduct::Product {
                product_id: product_id.to_owned(),
            };
            verify_product(&question(bought), product_id, known(body))
        };
        assert_eq!(
            as_json(&ask("coins", &body).expect("yes")),
            json!({
                "valid": true,
                "version": crate::VERSION,
                "status": "active",
                "appUserId": "user-1",
                "purchase": {
                    "kind": "androidpublisher#productPurchase",
                    "packageName": "com.example.app",
                    "productId": "coins",
                    "purchaseToken": "token",
                    "purchaseTimeMillis": "1775830930000",
                    "purchaseState": 0,
                    "consumptionState": 0,
                    "acknowledgementState": 0,
                    "acknowledgeBy": "2026-04-13T14:22:10.000Z",
                    "orderId": "GPA.2",
                    "quantity": 2,
                    "obfuscatedExternalAccountId": "user-1",
                    "testPurchase": true,
                    "rawResponse": body,
                },
            })
        );
        let mut named = body;
        named["productId"] = json!("coins");
        assert!(ask("coins", &named).is_ok());
        let found = vec!["coins".to_owned()];
        assert_eq!(
            ask("gems", &named).map(|_| ()),
            Err(GoogleRejection::ProductIdMismatch { found })
        );
    }

    #[test]
    fn every_no_of_googles_is_one_of_ours() {
        let expected = "com.example.app".to_owned();
        for (absent, no) in [
            (
                GoogleNotFound::Unknown,
                GoogleRejection::NotFound(NotFoundReason::Unknown),
            ),
            (
                GoogleNotFound::Gone,
                GoogleRejection::NotFound(NotFoundReason::Gone),
            ),
            (
                GoogleNotFound::OtherType,
                GoogleRejection::NotFound(NotFoundReason::OtherType),
            ),
            (
                GoogleNotFound::OtherApp,
                GoogleRejection::PackageNameMismatch { expected },
            ),
            (
                GoogleNotFound::OtherProduct,
                GoogleRejection::ProductIdMismatch { found: vec![] },
            ),
        ] {
            let GoogleVerifyError::Rejected(found) =
                to_verify_error(absent.into(), "com.example.app")
            else {
                panic!("{absent:?} is an answer");
            };
            assert_eq!(found, no);
        }
        assert!(matches!(
            to_verify_error(GoogleApiError::TooManyInFlight.into(), "com.example.app"),
            GoogleVerifyError::Api(GoogleApiError::TooManyInFlight)
        ));
    }
}
