//! The use case: a tenant asks whether a purchase is real, and what it is now.
//!
//! The checks, in this order: does the tenant have credentials; is it the tenant's app; does Google know the purchase; is it
//! of the requested product; is it of the expected user. The first "no" is the answer, and the later checks are not made.
//!
//! For some 100 ms after a purchase Google does not know what it has sold. So a token that this process has not seen before is
//! asked about up to three times before the answer is "no".

use std::sync::Arc;
use std::time::Duration;

use serde_json::value::RawValue;
use url::Url;

use super::api::{PlayClient, PurchaseResponse};
use super::api_error::{GoogleApiError, GoogleNotFound, PurchaseLookupError};
use super::chain;
use super::error_response::GoogleVerifyError;
use super::payload::{Int64, ProductPurchase, SubscriptionPurchase};
use super::purchase_lookup::{Fetched, PurchaseLookup, PurchaseRole, SubscriptionStanding};
use super::request_body::GoogleVerifyRequest;
use super::response_body::{
    ProductDetails, PurchaseDetails, SubscriptionDetails, VerifiedPurchase,
};
use super::state::{self, ProductFacts};
use super::store::{self, GoogleCredentials};
use super::translate::{self, PurchaseStatus};
use crate::base::clock::{Clock, Timestamp};
use crate::base::id::TenantId;
use crate::credentials::TenantCache;
use crate::crypto::keyring::Keyring;
use crate::db::Database;
use crate::db::change_listener::ChangeListener;
use crate::events::{AppUserIdSource, EventSource, EventSubject, SubjectType};
use crate::outbound::Upstream;
use crate::stores::shared::credentials::LoadCredentialsError;
use crate::stores::shared::first_seen::FirstSeenCheck;
use crate::stores::shared::fresh_ids::{FreshIds, UnknownId};
use crate::tenants::Caller;

/// Asks Google Play about purchases, for all tenants of one process. Clones share the caches.
#[derive(Clone)]
pub struct GoogleVerifier {
    pub(super) database: Database,
    keyring: Arc<Keyring>,
    credential_cache: TenantCache<GoogleCredentials, LoadCredentialsError>,
    pub(super) play: PlayClient,
    pub(super) clock: Clock,
    fresh_tokens: FreshIds,
    first_seen: FirstSeenCheck,
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

/// One way to ask Google about a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PurchaseQuestion<'a> {
    Subscription,
    /// A one-time product of which the caller knows the id, in version 1 of Google's API.
    Product {
        product_id: &'a str,
    },
    /// A one-time product by its token alone.
    ProductByToken,
}

/// A purchase as Google answered.
enum FoundPurchase {
    Subscription(PurchaseResponse<SubscriptionPurchase>),
    Product(PurchaseResponse<ProductPurchase>),
    /// Google tells no more of it than that it is gone or not known, and another one is known to have taken its place.
    Replaced(SubscriptionStanding),
}

impl GoogleVerifyRequest {
    /// The ways to ask Google, the likeliest first. Only the first `.1` of them are asked again about a fresh token.
    fn questions(&self) -> (Vec<PurchaseQuestion<'_>>, usize) {
        use PurchaseQuestion::{Product, ProductByToken, Subscription};
        match (self.kind, self.product_id.as_deref()) {
            (Some(SubjectType::Product), Some(product_id)) => (
                vec![Product { product_id }, ProductByToken, Subscription],
                1,
            ),
            (Some(SubjectType::Product), None) => (vec![ProductByToken, Subscription], 1),
            (Some(SubjectType::Subscription), _) => (vec![Subscription, ProductByToken], 1),
            (None, _) => (vec![Subscription, ProductByToken], 2),
        }
    }
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
            fresh_tokens: FreshIds::new(clock),
            first_seen: FirstSeenCheck::new(database, keyring),
            clock: clock.clone(),
        }
    }

    /// As [`Self::verify_and_acknowledge`], and compares the user with the one for whom the purchase was first verified.
    pub(super) async fn verify_for_caller(
        &self,
        caller: &Caller,
        request: &GoogleVerifyRequest,
    ) -> Result<VerifiedPurchase, GoogleVerifyError> {
        let mut verified = self.verify_and_acknowledge(&caller.tenant, request).await?;
        let user = request.for_app_user_id.as_deref();
        let user = user.or(verified.app_user_id.as_deref());
        match self
            .first_seen
            .check(caller, EventSource::Google, &verified.subject.key, user)
            .await
        {
            Ok(found) => verified.first_seen = found,
            Err(error) => verified.first_seen_error = Some(error),
        }
        Ok(verified)
    }

    pub(crate) async fn verify_purchase(
        &self,
        tenant: &TenantId,
        request: &GoogleVerifyRequest,
    ) -> Result<VerifiedPurchase, GoogleVerifyError> {
        let credentials = self.require_credentials(tenant).await?;
        if request.package_name != credentials.package_name {
            return Err(GoogleVerifyError::PackageNameMismatch {
                expected: credentials.package_name.clone(),
            });
        }
        let verified = match self.find_purchase(tenant, &credentials, request).await? {
            FoundPurchase::Subscription(response) => {
                let fetched = Fetched {
                    purchase: Arc::new(response.purchase),
                    fetched_at: self.database.to_database_time(response.fetched_at),
                };
                let now = self.clock.now();
                let verified = verify_subscription(request, &fetched, response.raw, now)?;
                let standing = PurchaseLookup::new(self, tenant, &credentials)
                    .load_standing_of(&request.purchase_token, fetched)
                    .await;
                with_standing(verified, standing)
            }
            FoundPurchase::Product(mut response) => {
                response.fetched_at = self.database.to_database_time(response.fetched_at);
                verify_product(request, response)?
            }
            FoundPurchase::Replaced(standing) => {
                with_standing(describe_gone_subscription(request), standing)
            }
        };
        match (&request.expected_app_user_id, &verified.app_user_id) {
            (Some(expected), found) if found.as_ref() != Some(expected) => {
                Err(GoogleVerifyError::AppUserMismatch {
                    is_anothers: found.is_some(),
                })
            }
            _ => Ok(verified),
        }
    }

    /// Asks Google in every way that the request leaves open, and again about a token that may be too fresh.
    async fn find_purchase(
        &self,
        tenant: &TenantId,
        credentials: &GoogleCredentials,
        request: &GoogleVerifyRequest,
    ) -> Result<FoundPurchase, GoogleVerifyError> {
        let (mut questions, repeated) = request.questions();
        let mut tries = self
            .fresh_tokens
            .start_tries(tenant, &request.purchase_token);
        let mut is_replacement_sought = false;
        loop {
            let asked = self.ask(tenant, credentials, request, &questions).await;
            let reason = match asked? {
                Ok(found) => return Ok(found),
                Err(reason) => reason,
            };
            let is_gone = matches!(reason, GoogleNotFound::Gone | GoogleNotFound::Unknown);
            if is_gone && !std::mem::replace(&mut is_replacement_sought, true) {
                let mut lookup = PurchaseLookup::new(self, tenant, credentials);
                let replacement = lookup.find_replacement(&request.purchase_token).await;
                if let Some(standing) = replacement {
                    return Ok(FoundPurchase::Replaced(standing));
                }
            }
            let may_be_early = match reason {
                GoogleNotFound::Unknown => match tries.wait_for_retry().await {
                    UnknownId::TryAgain => {
                        questions.truncate(repeated);
                        continue;
                    }
                    UnknownId::GiveUp { may_be_early } => may_be_early,
                },
                _ => false,
            };
            return Err(GoogleVerifyError::NotFound {
                reason,
                may_be_early,
            });
        }
    }

    /// Asks Google in each of these ways until one of them finds the purchase. The inner error is what Google says when none
    /// does.
    async fn ask(
        &self,
        tenant: &TenantId,
        credentials: &GoogleCredentials,
        request: &GoogleVerifyRequest,
        questions: &[PurchaseQuestion<'_>],
    ) -> Result<Result<FoundPurchase, GoogleNotFound>, GoogleVerifyError> {
        let mut verdict = None;
        for question in questions {
            let answer = self
                .ask_once(tenant, credentials, &request.purchase_token, *question)
                .await;
            let reason = match answer {
                Ok(found) => return Ok(Ok(found)),
                Err(PurchaseLookupError::NotFound(GoogleNotFound::Gone)) => {
                    return Ok(Err(GoogleNotFound::Gone));
                }
                Err(PurchaseLookupError::NotFound(reason)) => reason,
                Err(error) => {
                    return Err(GoogleVerifyError::from_lookup(
                        error,
                        &credentials.package_name,
                    ));
                }
            };
            // A token that one API does not know may yet become known.
            verdict = match (verdict, reason) {
                (None, reason) | (_, reason @ GoogleNotFound::Unknown) => Some(reason),
                (earlier, _) => earlier,
            };
        }
        Ok(Err(verdict.unwrap_or(GoogleNotFound::Unknown)))
    }

    async fn ask_once(
        &self,
        tenant: &TenantId,
        credentials: &GoogleCredentials,
        token: &str,
        question: PurchaseQuestion<'_>,
    ) -> Result<FoundPurchase, PurchaseLookupError> {
        let GoogleCredentials {
            account,
            package_name: app,
            ..
        } = credentials;
        let play = &self.play;
        match question {
            PurchaseQuestion::Subscription => {
                let response = play.get_subscription(tenant, account, app, token).await?;
                Ok(FoundPurchase::Subscription(response))
            }
            PurchaseQuestion::Product { product_id } => {
                let response = play
                    .get_product(tenant, account, app, product_id, token)
                    .await?;
                Ok(FoundPurchase::Product(response))
            }
            PurchaseQuestion::ProductByToken => {
                let response = play.get_product_v2(tenant, account, app, token).await?;
                Ok(FoundPurchase::Product(response))
            }
        }
    }

    /// Whether asking for the tenant's credentials is likely to need no query.
    pub(super) fn has_cached_credentials(&self, tenant: &TenantId) -> bool {
        self.credential_cache.is_cached(tenant)
    }

    /// What Google says of an order, byte for byte: `orders.get`.
    pub(crate) async fn look_up_order(
        &self,
        tenant: &TenantId,
        order_id: &str,
    ) -> Result<Box<RawValue>, GoogleVerifyError> {
        let credentials = self.require_credentials(tenant).await?;
        let package_name = &credentials.package_name;
        let found = self
            .play
            .get_order(tenant, &credentials.account, package_name, order_id)
            .await
            .map_err(|error| GoogleVerifyError::from_lookup(error, package_name))?;
        Ok(found.raw)
    }

    /// The tenant's credentials, cached; an error when it has none.
    pub(super) async fn require_credentials(
        &self,
        tenant: &TenantId,
    ) -> Result<Arc<GoogleCredentials>, GoogleVerifyError> {
        self.get_credentials(tenant)
            .await
            .map_err(GoogleVerifyError::Credentials)?
            .ok_or(GoogleVerifyError::NoCredentials)
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

/// The purchase by its own record alone.
fn verify_subscription(
    request: &GoogleVerifyRequest,
    fetched: &Fetched<SubscriptionPurchase>,
    raw: Box<RawValue>,
    now: Timestamp,
) -> Result<VerifiedPurchase, GoogleVerifyError> {
    let purchase = &*fetched.purchase;
    let product_id = request.product_id.as_deref();
    let item = translate::select_line_item(purchase, product_id);
    if product_id.is_some() && item.is_none() {
        let found = purchase
            .line_items
            .iter()
            .filter_map(|item| item.product_id.clone())
            .collect();
        return Err(GoogleVerifyError::ProductIdMismatch { found });
    }
    let status = translate::subscription_status(purchase, item, now);
    let state = state::subscription_state(purchase, None, fetched.fetched_at, now);
    let plan = item.and_then(|item| item.auto_renewing_plan.as_ref());
    let price = plan.and_then(|plan| plan.recurring_price.as_ref());
    let order_id = item.and_then(|item| item.latest_successful_order_id.clone());
    let app_user_id = chain::own_user(purchase).map(str::to_owned);
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
        acknowledgement_state: translate::subscription_acknowledgement(purchase),
        acknowledge_by: state.acknowledge_by,
        order_id: order_id.or_else(|| purchase.latest_order_id.clone()),
        obfuscated_external_account_id: app_user_id.clone(),
        linked_purchase_token: purchase.linked_purchase_token.clone(),
        test_purchase: purchase.test_purchase.is_some(),
        raw_response: raw,
    };
    Ok(VerifiedPurchase {
        valid: true,
        version: crate::VERSION,
        status,
        app_user_id_source: app_user_id.as_ref().map(|_| AppUserIdSource::Purchase),
        app_user_id,
        subject: EventSubject {
            key: request.purchase_token.clone(),
            product_id: state.product_id.clone(),
            r#type: SubjectType::Subscription,
            current: true,
            superseded_by: None,
        },
        state: Some(state),
        state_error: None,
        acknowledgement: None,
        first_seen: None,
        first_seen_error: None,
        purchase: PurchaseDetails::Subscription(details),
    })
}

/// What can be said of a subscription's purchase that Google no longer tells of: it is over.
fn describe_gone_subscription(request: &GoogleVerifyRequest) -> VerifiedPurchase {
    VerifiedPurchase {
        valid: true,
        version: crate::VERSION,
        status: PurchaseStatus::Expired,
        app_user_id: None,
        app_user_id_source: None,
        subject: EventSubject {
            key: request.purchase_token.clone(),
            product_id: None,
            r#type: SubjectType::Subscription,
            current: false,
            superseded_by: None,
        },
        state: None,
        state_error: None,
        acknowledgement: None,
        first_seen: None,
        first_seen_error: None,
        purchase: PurchaseDetails::Subscription(SubscriptionDetails {
            kind: "androidpublisher#subscriptionPurchaseV2".to_owned(),
            package_name: request.package_name.clone(),
            product_id: None,
            purchase_token: request.purchase_token.clone(),
            start_time: None,
            expiry_time: None,
            auto_renewing: false,
            price_currency_code: None,
            price_amount_micros: None,
            country_code: None,
            payment_state: None,
            acknowledgement_state: 0,
            acknowledge_by: None,
            order_id: None,
            obfuscated_external_account_id: None,
            linked_purchase_token: None,
            test_purchase: false,
            raw_response: RawValue::from_string("{}".to_owned()).expect("JSON"),
        }),
    }
}

/// The same with what is known of the other purchases of its subscription.
fn with_standing(verified: VerifiedPurchase, standing: SubscriptionStanding) -> VerifiedPurchase {
    let (state, state_error) = match standing.state {
        Ok(state) if matches!(standing.role, PurchaseRole::Replaced { .. }) => {
            (Some(state::replaced_state(state)), None)
        }
        Ok(state) => (Some(state), None),
        Err(error) => (None, Some(error)),
    };
    let mut purchase = verified.purchase;
    if standing.role == PurchaseRole::Current
        && let PurchaseDetails::Subscription(details) = &mut purchase
    {
        details.acknowledge_by = state.as_ref().and_then(|state| state.acknowledge_by);
    }
    let (app_user_id, app_user_id_source) = standing.app_user.unzip();
    VerifiedPurchase {
        app_user_id,
        app_user_id_source,
        subject: EventSubject {
            key: standing.first_token,
            current: standing.role == PurchaseRole::Current,
            superseded_by: standing.role.superseded_by(),
            ..verified.subject
        },
        state,
        state_error,
        purchase,
        ..verified
    }
}

fn verify_product(
    request: &GoogleVerifyRequest,
    response: PurchaseResponse<ProductPurchase>,
) -> Result<VerifiedPurchase, GoogleVerifyError> {
    let PurchaseResponse {
        purchase,
        raw,
        fetched_at,
    } = response;
    // Google checks this itself for most apps, and does not always name the product.
    let product_id = match (&request.product_id, &purchase.product_id) {
        (Some(asked), Some(found)) if asked != found => {
            let found = vec![found.clone()];
            return Err(GoogleVerifyError::ProductIdMismatch { found });
        }
        (Some(known), _) | (None, Some(known)) => known.clone(),
        (None, None) => {
            let missing = "it names no product".to_owned();
            return Err(GoogleApiError::Unreadable(missing).into());
        }
    };
    let facts = ProductFacts {
        product_id: Some(product_id.clone()),
        ..ProductFacts::from(&purchase)
    };
    let state = state::product_state(&facts, fetched_at);
    let status = translate::product_status(&purchase);
    let app_user_id = purchase.obfuscated_external_account_id.clone();
    let number = |number: Option<Int64>| number.map(|Int64(number)| number);
    let details = ProductDetails {
        kind: kind_or_default(purchase.kind.as_ref(), "androidpublisher#productPurchase"),
        package_name: request.package_name.clone(),
        product_id: product_id.clone(),
        purchase_token: request.purchase_token.clone(),
        purchase_time_millis: purchase.purchase_time_millis,
        purchase_state: number(purchase.purchase_state),
        consumption_state: number(purchase.consumption_state),
        acknowledgement_state: translate::product_acknowledgement(&purchase),
        acknowledge_by: state.acknowledge_by,
        order_id: purchase.order_id,
        quantity: facts.quantity,
        obfuscated_external_account_id: app_user_id.clone(),
        test_purchase: facts.is_test,
        raw_response: raw,
    };
    Ok(VerifiedPurchase {
        valid: true,
        version: crate::VERSION,
        status,
        app_user_id_source: app_user_id.as_ref().map(|_| AppUserIdSource::Purchase),
        app_user_id,
        subject: EventSubject {
            key: request.purchase_token.clone(),
            product_id: Some(product_id),
            r#type: SubjectType::Product,
            current: true,
            superseded_by: None,
        },
        state: Some(state),
        state_error: None,
        acknowledgement: None,
        first_seen: None,
        first_seen_error: None,
        purchase: PurchaseDetails::Product(details),
    })
}

fn kind_or_default(found: Option<&String>, expected: &str) -> String {
    found.map_or(expected, String::as_str).to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn now() -> Timestamp {
        Timestamp::parse("2026-04-20T00:00:00Z").expect("a time")
    }

    fn request(product_id: Option<&str>) -> GoogleVerifyRequest {
        GoogleVerifyRequest {
            package_name: "com.example.app".to_owned(),
            purchase_token: "token".to_owned(),
            kind: None,
            product_id: product_id.map(str::to_owned),
            expected_app_user_id: None,
            for_app_user_id: None,
        }
    }

    fn response<T: serde::de::DeserializeOwned>(body: &Value) -> PurchaseResponse<T> {
        let raw = serde_json::value::to_raw_value(body).expect("writes");
        PurchaseResponse {
            purchase: serde_json::from_str(raw.get()).expect("reads"),
            raw,
            fetched_at: now(),
        }
    }

    fn verified_subscription(
        request: &GoogleVerifyRequest,
        body: &Value,
    ) -> Result<VerifiedPurchase, GoogleVerifyError> {
        let PurchaseResponse {
            purchase,
            raw,
            fetched_at,
        } = response(body);
        let fetched = Fetched {
            purchase: Arc::new(purchase),
            fetched_at,
        };
        verify_subscription(request, &fetched, raw, now())
    }

    #[test]
    fn every_request_is_asked_about_in_both_ways() {
        use PurchaseQuestion::{Product, ProductByToken, Subscription};
        let product_id = "coins";
        for (kind, product, expected) in [
            (None, None, (vec![Subscription, ProductByToken], 2)),
            (
                None,
                Some(product_id),
                (vec![Subscription, ProductByToken], 2),
            ),
            (
                Some(SubjectType::Subscription),
                Some(product_id),
                (vec![Subscription, ProductByToken], 1),
            ),
            (
                Some(SubjectType::Product),
                None,
                (vec![ProductByToken, Subscription], 1),
            ),
            (
                Some(SubjectType::Product),
                Some(product_id),
                (
                    vec![Product { product_id }, ProductByToken, Subscription],
                    1,
                ),
            ),
        ] {
            let request = GoogleVerifyRequest {
                kind,
                ..request(product)
            };
            assert_eq!(request.questions(), expected, "{kind:?} {product:?}");
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
        let verified = verified_subscription(&request(None), &two_items());
        assert_eq!(
            as_json(&verified.expect("yes")),
            json!({
                "valid": true,
                "version": crate::VERSION,
                "status": "active",
                "appUserId": "user-1",
                "appUserIdSource": "purchase",
                "subject": {
                    "key": "token", "productId": "premium", "type": "subscription", "current": true, "supersededBy": null,
                },
                "state": {
                    "status": "active", "entitled": true, "entitledUntil": "2026-05-10T14:22:10.000Z",
                    "productId": "premium", "basePlanId": null, "offerId": null, "period": "regular",
                    "willRenew": true, "renewsAs": "premium", "renewsAt": "2026-05-10T14:22:10.000Z",
                    "ownership": "purchased", "quantity": 1, "refundableQuantity": null,
                    "acknowledgeBy": "2026-04-10T14:25:10.123Z", "basis": "store", "asOf": now(),
                },
                "stateError": null,
                "acknowledgement": null,
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
                    "acknowledgeBy": "2026-04-10T14:25:10.123Z",
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
        let verify = |product: &str| verified_subscription(&request(Some(product)), &two_items());
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
        let verified = verified_subscription(&request(None), &json!({}));
        let answer = as_json(&verified.expect("yes"));
        assert_eq!(answer["status"], "unknown");
        assert_eq!(answer["appUserId"], Value::Null);
        assert_eq!(answer["purchase"]["autoRenewing"], false);
        assert_eq!(answer["purchase"]["testPurchase"], false);
        assert_eq!(answer["purchase"]["productId"], Value::Null);
        let verified = verify_product(&request(Some("coins")), response(&json!({})));
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
            verify_product(&request(Some(product_id)), response(body))
        };
        assert_eq!(
            as_json(&verify("coins", &body).expect("yes")),
            json!({
                "valid": true,
                "version": crate::VERSION,
                "status": "active",
                "appUserId": "user-1",
                "appUserIdSource": "purchase",
                "subject": {
                    "key": "token", "productId": "coins", "type": "product", "current": true, "supersededBy": null,
                },
                "state": {
                    "status": "active", "entitled": true, "entitledUntil": null,
                    "productId": "coins", "basePlanId": null, "offerId": null, "period": null,
                    "willRenew": false, "renewsAs": null, "renewsAt": null,
                    "ownership": "purchased", "quantity": 2, "refundableQuantity": null,
                    "acknowledgeBy": "2026-04-10T14:25:10.000Z", "basis": "store", "asOf": now(),
                },
                "stateError": null,
                "acknowledgement": null,
                "purchase": {
                    "kind": "androidpublisher#productPurchase",
                    "packageName": "com.example.app",
                    "productId": "coins",
                    "purchaseToken": "token",
                    "purchaseTimeMillis": "1775830930000",
                    "purchaseState": 0,
                    "consumptionState": 0,
                    "acknowledgementState": 0,
                    "acknowledgeBy": "2026-04-10T14:25:10.000Z",
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
        let by_token = verify_product(&request(None), response(&named)).expect("yes");
        assert_eq!(as_json(&by_token)["purchase"]["productId"], "coins");
        named["productId"] = json!(null);
        let unnamed = verify_product(&request(None), response(&named));
        assert!(matches!(
            unnamed,
            Err(GoogleVerifyError::Api(GoogleApiError::Unreadable(_)))
        ));
        named["productId"] = json!("coins");
        let found = vec!["coins".to_owned()];
        assert_eq!(found_products(verify("gems", &named)), found);
    }
}
