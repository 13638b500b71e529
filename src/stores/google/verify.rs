//! The use case: a tenant asks whether a purchase is real, and what it is now.
//!
//! The checks, in this order: does the tenant have credentials; is it the tenant's app; does Google know the purchase; is it
//! of the requested product; is it of the expected user. The first "no" is the answer, and the later checks are not made.

use std::sync::Arc;
use std::time::Duration;

use url::Url;

use super::api::{PlayClient, PurchaseResponse};
use super::error_response::GoogleVerifyError;
use super::payload::{Int64, ProductPurchase, SubscriptionPurchase};
use super::response_body::{
    ProductDetails, PurchaseDetails, SubscriptionDetails, VerifiedPurchase,
};
use super::store::{self, GoogleCredentials};
use super::translate::{self, PurchaseStatus};
use crate::base::clock::{Clock, Timestamp};
use crate::base::id::TenantId;
use crate::credentials::TenantCache;
use crate::crypto::keyring::Keyring;
use crate::db::Database;
use crate::db::change_listener::ChangeListener;
use crate::outbound::Upstream;
use crate::stores::shared::credentials::LoadCredentialsError;

/// Asks Google Play about purchases, for all tenants of one process. Clones share the caches.
#[derive(Clone)]
pub struct GoogleVerifier {
    pub(super) database: Database,
    keyring: Arc<Keyring>,
    credential_cache: TenantCache<GoogleCredentials, LoadCredentialsError>,
    pub(super) play: PlayClient,
    pub(super) clock: Clock,
}

/// Google's addresses, and how long a tenant's credentials are cached.
#[derive(Clone, Debug)]
pub struct GoogleSettings {
    /// The Play Developer API: the part before `/androidpublisher`.
    pub play_url: Url,
    /// Google's token endpoint.
    pub token_url: Url,
    /// How long opened credentials are cached. A change to them ends it sooner.
    pub credential_ttl: Duration,
}

/// A verify request as it was read. Public for the fuzz target that parses it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GoogleVerifyRequest {
    pub(crate) package_name: String,
    pub(crate) purchase_token: String,
    pub(crate) product: RequestedProduct,
    /// The obfuscated account id that the purchase must have, compared byte by byte.
    pub(crate) expected_app_user_id: Option<String>,
}

/// The type of the purchase, and its product.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RequestedProduct {
    /// With a product id, one of the subscription's line items must have it.
    Subscription { product_id: Option<String> },
    /// A one-time product.
    Product { product_id: String },
}

impl GoogleVerifier {
    /// Asks through `upstream`; drops a tenant's credentials from the cache when `changes` reports a change to them.
    pub fn new(
        database: &Database,
        keyring: &Arc<Keyring>,
        changes: &ChangeListener,
        upstream: Upstream,
        clock: &Clock,
        settings: GoogleSettings,
    ) -> Self {
        Self {
            database: database.clone(),
            keyring: keyring.clone(),
            credential_cache: TenantCache::new(
                "google_credentials",
                settings.credential_ttl,
                clock.clone(),
                changes,
            ),
            play: PlayClient::new(
                upstream,
                settings.play_url,
                settings.token_url,
                clock.clone(),
            ),
            clock: clock.clone(),
        }
    }

    pub(crate) async fn verify_purchase(
        &self,
        tenant: &TenantId,
        request: &GoogleVerifyRequest,
    ) -> Result<VerifiedPurchase, GoogleVerifyError> {
        let credentials = self
            .get_credentials(tenant)
            .await
            .map_err(GoogleVerifyError::Credentials)?
            .ok_or(GoogleVerifyError::NoCredentials)?;
        let (account, package_name) = (&credentials.account, &credentials.package_name);
        if request.package_name != *package_name {
            return Err(GoogleVerifyError::PackageNameMismatch {
                expected: package_name.clone(),
            });
        }
        let lookup_error = |error| GoogleVerifyError::from_lookup(error, package_name);
        let token = &request.purchase_token;
        let verified = match &request.product {
            RequestedProduct::Subscription { product_id } => {
                let response = self
                    .play
                    .get_subscription(tenant, account, package_name, token)
                    .await
                    .map_err(lookup_error)?;
                verify_subscription(request, product_id.as_deref(), response, self.clock.now())?
            }
            RequestedProduct::Product { product_id } => {
                let response = self
                    .play
                    .get_product(tenant, account, package_name, product_id, token)
                    .await
                    .map_err(lookup_error)?;
                verify_product(request, product_id, response)?
            }
        };
        match &request.expected_app_user_id {
            Some(expected) if verified.app_user_id.as_ref() != Some(expected) => {
                Err(GoogleVerifyError::AppUserMismatch)
            }
            _ => Ok(verified),
        }
    }

    /// The tenant's credentials, cached. `None` when it has none.
    pub(super) async fn get_credentials(
        &self,
        tenant: &TenantId,
    ) -> Result<Option<Arc<GoogleCredentials>>, Arc<LoadCredentialsError>> {
        let (database, keyring, id) = (self.database.clone(), self.keyring.clone(), tenant.clone());
        self.credential_cache
            .get_or_load(tenant, async move {
                store::load_credentials(&database, &keyring, &id).await
            })
            .await
    }
}

fn verify_subscription(
    request: &GoogleVerifyRequest,
    product_id: Option<&str>,
    response: PurchaseResponse<SubscriptionPurchase>,
    now: Timestamp,
) -> Result<VerifiedPurchase, GoogleVerifyError> {
    let PurchaseResponse { purchase, raw } = response;
    let item = translate::select_line_item(&purchase, product_id);
    if product_id.is_some() && item.is_none() {
        let found = purchase
            .line_items
            .into_iter()
            .filter_map(|item| item.product_id)
            .collect();
        return Err(GoogleVerifyError::ProductIdMismatch { found });
    }
    let status = translate::subscription_status(&purchase, item, now);
    let plan = item.and_then(|item| item.auto_renewing_plan.as_ref());
    let price = plan.and_then(|plan| plan.recurring_price.as_ref());
    let order_id = item.and_then(|item| item.latest_successful_order_id.clone());
    let app_user_id = purchase
        .external_account_identifiers
        .as_ref()
        .and_then(|ids| ids.obfuscated_external_account_id.clone());
    let details = SubscriptionDetails {
        kind: kind_or_default(
            purchase.kind.as_ref(),
            "androidpublisher#subscriptionPurchaseV2",
        ),
        package_name: request.package_name.clone(),
        product_id: item.and_then(|item| item.product_id.clone()),
        purchase_token: request.purchase_token.clone(),
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
        obfuscated_external_account_id: app_user_id.clone(),
        linked_purchase_token: purchase.linked_purchase_token.clone(),
        test_purchase: purchase.test_purchase.is_some(),
        raw_response: raw,
    };
    Ok(verified_purchase(
        status,
        app_user_id,
        PurchaseDetails::Subscription(details),
    ))
}

fn verify_product(
    request: &GoogleVerifyRequest,
    product_id: &str,
    response: PurchaseResponse<ProductPurchase>,
) -> Result<VerifiedPurchase, GoogleVerifyError> {
    let PurchaseResponse { purchase, raw } = response;
    // Google checks this itself for most apps, and does not always name the product.
    if purchase
        .product_id
        .as_deref()
        .is_some_and(|found| found != product_id)
    {
        let found = purchase.product_id.into_iter().collect();
        return Err(GoogleVerifyError::ProductIdMismatch { found });
    }
    let status = translate::product_status(&purchase);
    let app_user_id = purchase.obfuscated_external_account_id.clone();
    let number = |number: Option<Int64>| number.map(|Int64(number)| number);
    let details = ProductDetails {
        kind: kind_or_default(purchase.kind.as_ref(), "androidpublisher#productPurchase"),
        package_name: request.package_name.clone(),
        product_id: product_id.to_owned(),
        purchase_token: request.purchase_token.clone(),
        purchase_time_millis: purchase.purchase_time_millis,
        purchase_state: number(purchase.purchase_state),
        consumption_state: number(purchase.consumption_state),
        acknowledgement_state: translate::product_acknowledgement(&purchase),
        acknowledge_by: translate::product_acknowledge_by(&purchase),
        order_id: purchase.order_id,
        quantity: number(purchase.quantity).unwrap_or(1),
        obfuscated_external_account_id: app_user_id.clone(),
        test_purchase: purchase.purchase_type == Some(Int64(0)),
        raw_response: raw,
    };
    Ok(verified_purchase(
        status,
        app_user_id,
        PurchaseDetails::Product(details),
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

    fn request(product: RequestedProduct) -> GoogleVerifyRequest {
        GoogleVerifyRequest {
            package_name: "com.example.app".to_owned(),
            purchase_token: "token".to_owned(),
            product,
            expected_app_user_id: None,
        }
    }

    fn response<T: serde::de::DeserializeOwned>(body: &Value) -> PurchaseResponse<T> {
        let raw = serde_json::value::to_raw_value(body).expect("writes");
        PurchaseResponse {
            purchase: serde_json::from_str(raw.get()).expect("reads"),
            raw,
        }
    }

    fn found_products(result: Result<VerifiedPurchase, GoogleVerifyError>) -> Vec<String> {
        match result {
            Err(GoogleVerifyError::ProductIdMismatch { found }) => found,
            other => panic!("{other:?}"),
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
    fn without_a_product_id_the_answer_is_about_the_item_that_lasts_longest() {
        let product = RequestedProduct::Subscription { product_id: None };
        let verified = verify_subscription(&request(product), None, response(&two_items()), now());
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
    fn with_a_product_id_the_answer_is_about_its_item() {
        let verify = |product: &str| {
            let product_id = Some(product.to_owned());
            let request = request(RequestedProduct::Subscription { product_id });
            verify_subscription(&request, Some(product), response(&two_items()), now())
        };
        let answer = as_json(&verify("add-on").expect("yes"));
        let purchase = &answer["purchase"];
        assert_eq!(purchase["productId"], "add-on");
        assert_eq!(purchase["expiryTime"], "2026-04-30T00:00:00.000Z");
        assert_eq!(purchase["autoRenewing"], false);
        assert_eq!(purchase["priceAmountMicros"], Value::Null);
        assert_eq!(purchase["orderId"], "GPA.0");
        let found = vec!["premium".to_owned(), "add-on".to_owned()];
        assert_eq!(found_products(verify("other")), found);
    }

    #[test]
    fn google_may_leave_out_everything() {
        let product = RequestedProduct::Subscription { product_id: None };
        let verified = verify_subscription(&request(product), None, response(&json!({})), now());
        let answer = as_json(&verified.expect("yes"));
        assert_eq!(answer["status"], "unknown");
        assert_eq!(answer["appUserId"], Value::Null);
        assert_eq!(answer["purchase"]["autoRenewing"], false);
        assert_eq!(answer["purchase"]["testPurchase"], false);
        assert_eq!(answer["purchase"]["productId"], Value::Null);
        let product_id = "coins".to_owned();
        let verified = verify_product(
            &request(RequestedProduct::Product { product_id }),
            "coins",
            response(&json!({})),
        );
        let answer = as_json(&verified.expect("yes"));
        assert_eq!(answer["status"], "unknown");
        assert_eq!(answer["purchase"]["purchaseState"], Value::Null);
        assert_eq!(answer["purchase"]["quantity"], 1);
    }

    #[test]
    fn a_product_has_googles_numbers() {
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
        let verify = |product_id: &str, body: &Value| {
            let product = RequestedProduct::Product {
                product_id: product_id.to_owned(),
            };
            verify_product(&request(product), product_id, response(body))
        };
        assert_eq!(
            as_json(&verify("coins", &body).expect("yes")),
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
        assert!(verify("coins", &named).is_ok());
        let found = vec!["coins".to_owned()];
        assert_eq!(found_products(verify("gems", &named)), found);
    }
}
