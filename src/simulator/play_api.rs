//! The Play Developer API, Google's token endpoint and Google's public keys.
//!
//! | call | answer |
//! |---|---|
//! | `POST /google/token` | an access token for an hour; 400 `invalid_grant` for a wrong assertion |
//! | `GET /google/certs` | the public keys of Google as a JWK set |
//! | an unknown or expired access token | 401 `authError` |
//! | an account without permission | 403 `permissionDenied` |
//! | `GET …/purchases/subscriptionsv2/tokens/{token}` | the subscription; 400 `subscriptionInvalidArgument` for a product's token |
//! | `GET …/purchases/products/{productId}/tokens/{token}` | the product; the same for a subscription's token |
//! | `GET …/purchases/productsv2/tokens/{token}` | the product, by its token alone; the same for a subscription's token |
//! | `GET …/orders/{orderId}` | the order of a purchase or a renewal; 404 `orderNotFound` for one that is not known |
//! | `POST …/orders/{orderId}:reviewrefund` | `{}`; 400 `invalidPendingRefundToken` for a token that is not of the order, `badRequest` for a wrong body, `refundReviewClosed` (`FAILED_PRECONDITION`) after the first answer and after 24 hours |
//! | `GET …/purchases/voidedpurchases` | the refunds of 30 days, twenty on a page unless `maxResults` says otherwise; `type=1` with subscriptions; 400 `invalid` for an earlier `startTime` |
//! | `POST …:acknowledge`, `…:consume` | 204; 400 `productNotOwnedByUser` where it is not possible. A subscription that names no user takes one from `externalAccountIds` |
//! | a malformed purchase token | 400 `invalid` |
//! | an unknown one | 404 `purchaseTokenNotFound` |
//! | one of another app or product | 400 `purchaseTokenDoesNotMatchPackageName`, `…ProductId` |
//! | one that is gone | 410 `purchaseTokenNoLongerValid` or `subscriptionPurchaseNoLongerAvailable`; 400 `failedPrecondition` 60 days after the end |

use std::time::Duration;

use aws_lc_rs::signature::{RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};
use axum::http::header;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use url::form_urlencoded;

use super::context::SimulatorContext;
use super::request::{SimulatorRequest, SimulatorResponse};
use super::state::fault::Fault;
use super::state::google::{GoneReason, ProductChange, SubscriptionChange, is_purchase_token};
use super::state::google_orders::VoidedQuery;
use super::state::{SimulatorError, random_letters};

/// The required `scope` of an assertion.
const REQUIRED_SCOPE: &str = "https://www.googleapis.com/auth/androidpublisher";
/// The real token endpoint: a key file may name it while the simulator answers in its place.
const REAL_TOKEN_URL: &str = "https://oauth2.googleapis.com/token";
const JWT_BEARER_GRANT_TYPE: &str = "urn:ietf:params:oauth:grant-type:jwt-bearer";
/// Refunds on a page, where the request does not say.
const VOIDED_PAGE_SIZE: usize = 20;
/// Play lists no refund that is older, and refuses to be asked for one.
const VOIDED_LISTED_FOR: Duration = Duration::from_hours(30 * 24);
/// For assertions and access tokens.
const TOKEN_TTL_SECONDS: i64 = 3600;
const MAX_CLOCK_SKEW_SECONDS: i64 = 60;

#[derive(Deserialize)]
struct GrantAssertionHeader {
    alg: String,
    kid: Option<String>,
}

#[derive(Deserialize)]
struct GrantAssertionClaims {
    iss: String,
    scope: String,
    aud: String,
    iat: i64,
    exp: i64,
}

/// Answers a call below `/google`.
pub(super) fn handle_request(
    context: &SimulatorContext,
    service: &str,
    request: &SimulatorRequest,
) -> SimulatorResponse {
    let place = format!("google/{service}");
    let below = request.segments_below_store();
    let purchase = PurchasePath::parse(&below);
    let (app, id) = match &purchase {
        Some(purchase) => (Some(purchase.package_name), Some(purchase.id)),
        None => (None, None),
    };
    let fault = context.take_fault(&place, app, id, |stores, id| stores.google.sold_at(id));
    let fault_response = fault
        .as_ref()
        .and_then(|fault| fault_response(fault, service, app));
    let mut response = fault_response.unwrap_or_else(|| match service {
        "token" => issue_access_token(context, request),
        "certs" => SimulatorResponse::json(200, &context.google_jwk_set()).with_header(
            header::CACHE_CONTROL,
            "public, max-age=21600, must-revalidate",
        ),
        _ => route_api_request(context, request, purchase),
    });
    if let Some(fault) = &fault {
        response.apply_fault(fault);
    }
    response
}

/// The parts of a path of the purchases and orders API.
struct PurchasePath<'a> {
    package_name: &'a str,
    /// The product, where the path has one.
    product_id: Option<&'a str>,
    kind: PurchasePathKind,
    /// The purchase token, or the order id.
    id: &'a str,
    custom_method: Option<&'a str>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum PurchasePathKind {
    SubscriptionV2,
    Subscription,
    Product,
    ProductV2,
    Order,
}

impl<'a> PurchasePath<'a> {
    fn parse(below: &[&'a str]) -> Option<Self> {
        use PurchasePathKind as Kind;
        let ["androidpublisher", "v3", "applications", package, rest @ ..] = below else {
            return None;
        };
        let (kind, product, last) = match rest {
            ["purchases", "subscriptionsv2", "tokens", last] => (Kind::SubscriptionV2, None, *last),
            ["purchases", "subscriptions", product, "tokens", last] => {
                (Kind::Subscription, Some(*product), *last)
            }
            ["purchases", "products", product, "tokens", last] => {
                (Kind::Product, Some(*product), *last)
            }
            ["purchases", "productsv2", "tokens", last] => (Kind::ProductV2, None, *last),
            ["orders", last] => (Kind::Order, None, *last),
            _ => return None,
        };
        // A token has no colon: after one stands a method's name.
        let (token, verb) = match last.split_once(':') {
            Some((token, verb)) => (token, Some(verb)),
            None => (last, None),
        };
        Some(Self {
            package_name: package,
            product_id: product,
            kind,
            id: token,
            custom_method: verb,
        })
    }
}

fn route_api_request(
    context: &SimulatorContext,
    request: &SimulatorRequest,
    purchase: Option<PurchasePath<'_>>,
) -> SimulatorResponse {
    let email = match check_access_token(context, request.bearer_token.as_deref()) {
        Ok(email) => email,
        Err(why) => {
            return error_response(401, "authError", "Request had invalid authentication credentials. Expected OAuth 2 access token, login cookie or other valid authentication credential.")
                .with_remark(why);
        }
    };
    let is_denied = context
        .lock_state()
        .stores
        .google
        .accounts
        .get(&email)
        .is_some_and(|account| account.denied);
    if is_denied {
        return error_for_reason("permissionDenied");
    }
    let Some(purchase) = purchase else {
        return list_voided(context, request).unwrap_or_else(SimulatorResponse::not_simulated);
    };
    if !is_purchase_token(purchase.id) {
        return error_for_reason("invalid");
    }
    let response = match (
        request.method.as_str(),
        purchase.kind,
        purchase.custom_method,
    ) {
        ("GET", PurchasePathKind::SubscriptionV2, None) => get_subscription(context, &purchase),
        ("GET", PurchasePathKind::Product | PurchasePathKind::ProductV2, None) => {
            get_product(context, &purchase)
        }
        ("GET", PurchasePathKind::Order, None) => get_order(context, &purchase),
        ("POST", PurchasePathKind::Order, Some("reviewrefund")) => {
            review_refund(context, &purchase, &request.body)
        }
        ("POST", PurchasePathKind::Subscription, Some("acknowledge")) => {
            acknowledge_subscription(context, &purchase, &request.body)
        }
        ("POST", PurchasePathKind::Product, Some("acknowledge")) => {
            change_product(context, &purchase, &ProductChange::Acknowledge {})
        }
        ("POST", PurchasePathKind::Product, Some("consume")) => {
            change_product(context, &purchase, &ProductChange::Consume {})
        }
        _ => Err(SimulatorResponse::not_simulated()),
    };
    response.unwrap_or_else(|refused| refused)
}

fn get_subscription(
    context: &SimulatorContext,
    purchase: &PurchasePath<'_>,
) -> Result<SimulatorResponse, SimulatorResponse> {
    let now = context.now();
    let state = context.lock_state();
    let google = &state.stores.google;
    let Some(subscription) = google.find_subscription(purchase.id) else {
        return Err(error_for_reason(
            if google.find_product(purchase.id).is_some() {
                "subscriptionInvalidArgument"
            } else {
                "purchaseTokenNotFound"
            },
        ));
    };
    if subscription.package_name != purchase.package_name {
        return Err(error_for_reason("purchaseTokenDoesNotMatchPackageName"));
    }
    match subscription.gone_reason(now) {
        Some(gone) => Err(error_for_reason(gone_error_reason(gone))),
        None => Ok(SimulatorResponse::json(
            200,
            &subscription.to_api_response(now),
        )),
    }
}

fn get_product(
    context: &SimulatorContext,
    purchase: &PurchasePath<'_>,
) -> Result<SimulatorResponse, SimulatorResponse> {
    let state = context.lock_state();
    let google = &state.stores.google;
    let Some(product) = google.find_product(purchase.id) else {
        return Err(error_for_reason(
            if google.find_subscription(purchase.id).is_some() {
                "subscriptionInvalidArgument"
            } else {
                "purchaseTokenNotFound"
            },
        ));
    };
    if product.package_name != purchase.package_name {
        return Err(error_for_reason("purchaseTokenDoesNotMatchPackageName"));
    }
    let asked = purchase.product_id;
    if asked.is_some_and(|asked| asked != product.product_id) {
        return Err(error_for_reason("purchaseTokenDoesNotMatchProductId"));
    }
    if let Some(gone) = product.gone_reason() {
        return Err(error_for_reason(gone_error_reason(gone)));
    }
    let answer = match purchase.kind {
        PurchasePathKind::ProductV2 => product.to_api_response_v2(),
        _ => product.to_api_response(),
    };
    Ok(SimulatorResponse::json(200, &answer))
}

/// `None` for another path.
fn list_voided(
    context: &SimulatorContext,
    request: &SimulatorRequest,
) -> Option<SimulatorResponse> {
    let below = request.segments_below_store();
    let [
        "androidpublisher",
        "v3",
        "applications",
        package,
        "purchases",
        "voidedpurchases",
    ] = below.as_slice()
    else {
        return None;
    };
    let number = |name: &str| request.query_parameter(name)?.parse().ok();
    let query = VoidedQuery {
        start: number("startTime"),
        end: number("endTime"),
        with_subscriptions: request.query_parameter("type") == Some("1"),
        with_partial_refunds: request.query_parameter("includeQuantityBasedPartialRefund")
            == Some("true"),
        max_results: number("maxResults")
            .and_then(|count| usize::try_from(count).ok())
            .unwrap_or(VOIDED_PAGE_SIZE),
        skip: request
            .query_parameter("token")
            .and_then(|token| token.strip_prefix("voided-")?.parse().ok())
            .unwrap_or_default(),
    };
    let oldest = context.now().minus(VOIDED_LISTED_FOR).as_millis();
    if query.start.is_some_and(|start: i64| start < oldest) {
        return Some(error_for_reason("invalid"));
    }
    let list = context
        .lock_state()
        .stores
        .google
        .list_voided(package, query);
    Some(SimulatorResponse::json(200, &list))
}

fn get_order(
    context: &SimulatorContext,
    order: &PurchasePath<'_>,
) -> Result<SimulatorResponse, SimulatorResponse> {
    let now = context.now();
    let state = context.lock_state();
    let found = state
        .stores
        .google
        .find_order(order.package_name, order.id, now);
    match found {
        Some(found) => Ok(SimulatorResponse::json(200, &found)),
        None => Err(error_for_reason("orderNotFound")),
    }
}

fn review_refund(
    context: &SimulatorContext,
    order: &PurchasePath<'_>,
    body: &[u8],
) -> Result<SimulatorResponse, SimulatorResponse> {
    get_order(context, order)?;
    let answer = serde_json::from_slice(body).map_err(|_| error_for_reason("parseError"))?;
    let taken = context.update_and_save(|stores, now, _| {
        let google = &mut stores.google;
        Ok(google.take_refund_review(order.package_name, order.id, answer, now))
    });
    match taken {
        Ok(Ok(())) => Ok(SimulatorResponse::json(200, &json!({}))),
        Ok(Err(reason)) => Err(error_for_reason(reason)),
        Err(error) => Err(error_for_reason("internalError").with_remark(error.to_string())),
    }
}

/// What `purchases.subscriptions.acknowledge` may be sent.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct AcknowledgementBody {
    external_account_ids: BoundAccountIds,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct BoundAccountIds {
    obfuscated_account_id: Option<String>,
    obfuscated_profile_id: Option<String>,
}

fn acknowledge_subscription(
    context: &SimulatorContext,
    purchase: &PurchasePath<'_>,
    body: &[u8],
) -> Result<SimulatorResponse, SimulatorResponse> {
    get_subscription(context, purchase)?;
    let body = match body {
        b"" => AcknowledgementBody::default(),
        body => serde_json::from_slice(body).map_err(|_| error_for_reason("parseError"))?,
    };
    let token = purchase.id;
    change_response(context.update_and_save(|stores, now, _| {
        let google = &mut stores.google;
        let found = google.find_subscription(token);
        let was_acknowledged = found.is_some_and(|it| it.acknowledged);
        let is_over = found.is_some_and(|it| it.state_name(now) == "EXPIRED");
        if is_over && !was_acknowledged {
            return Err(SimulatorError::invalid_request(
                "The subscription has ended without an acknowledgement.",
            ));
        }
        google.change_subscription(token, &SubscriptionChange::Acknowledge {}, now)?;
        if !was_acknowledged {
            let ids = body.external_account_ids;
            google.bind_account(token, ids.obfuscated_account_id, ids.obfuscated_profile_id);
        }
        Ok(())
    }))
}

fn change_product(
    context: &SimulatorContext,
    purchase: &PurchasePath<'_>,
    change: &ProductChange,
) -> Result<SimulatorResponse, SimulatorResponse> {
    get_product(context, purchase)?;
    let token = purchase.id;
    change_response(context.update_and_save(|stores, now, _| {
        stores.google.change_product(token, change, now).map(drop)
    }))
}

fn change_response(
    changed: Result<(), SimulatorError>,
) -> Result<SimulatorResponse, SimulatorResponse> {
    let message = "The product purchase is not owned by the user.";
    changed
        .map(|()| SimulatorResponse::empty(204))
        .map_err(|refused| {
            error_response(400, "productNotOwnedByUser", message).with_remark(refused.to_string())
        })
}

fn gone_error_reason(gone: GoneReason) -> &'static str {
    match gone {
        GoneReason::NoLongerValid => "purchaseTokenNoLongerValid",
        GoneReason::NoLongerAvailable => "subscriptionPurchaseNoLongerAvailable",
        GoneReason::ExpiredTooLong => "failedPrecondition",
    }
}

/// The service account of an access token. `Err` is the reason for the request log.
fn check_access_token(context: &SimulatorContext, token: Option<&str>) -> Result<String, String> {
    let token = token.ok_or("there is no bearer token")?;
    let now = context.now();
    match context.lock_state().access_tokens.get(token) {
        Some((email, expires)) if *expires > now => Ok(email.clone()),
        Some(_) => Err("the access token has expired".to_owned()),
        None => Err("the access token was not issued here".to_owned()),
    }
}

fn issue_access_token(context: &SimulatorContext, request: &SimulatorRequest) -> SimulatorResponse {
    if request.method != "POST" {
        return SimulatorResponse::html_error_page(405);
    }
    let form: Vec<(String, String)> = form_urlencoded::parse(&request.body).into_owned().collect();
    let field = |name: &str| {
        form.iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    };
    if field("grant_type") != Some(JWT_BEARER_GRANT_TYPE) {
        return oauth_error(400, "unsupported_grant_type", "Invalid grant_type.");
    }
    let Some(assertion) = field("assertion") else {
        return oauth_error(
            400,
            "invalid_request",
            "Missing required parameter: assertion",
        );
    };
    match verify_assertion(context, request, assertion) {
        Ok(email) => {
            let expires = context.now().plus(Duration::from_hours(1));
            let mut state = context.lock_state();
            let secret = random_letters(
                &mut state.random,
                b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789",
                48,
            );
            let token = format!("ya29.simulated.{secret}");
            state.access_tokens.insert(token.clone(), (email, expires));
            SimulatorResponse::json(
                200,
                &json!({
                    "access_token": token,
                    "expires_in": TOKEN_TTL_SECONDS - 1,
                    "token_type": "Bearer",
                }),
            )
        }
        Err(why) => oauth_error(400, "invalid_grant", &why).with_remark(why),
    }
}

/// Checks an assertion, and returns its service account. `Err` is the error description.
fn verify_assertion(
    context: &SimulatorContext,
    request: &SimulatorRequest,
    assertion: &str,
) -> Result<String, String> {
    let parts: Vec<&str> = assertion.split('.').collect();
    let [header, claims, signature] = parts.as_slice() else {
        return Err("Invalid JWT: it does not have three parts.".to_owned());
    };
    let header: GrantAssertionHeader = decode_jwt_part(header)?;
    let claims: GrantAssertionClaims = decode_jwt_part(claims)?;
    if header.alg != "RS256" {
        return Err(format!("Invalid JWT: alg is {}, not RS256.", header.alg));
    }
    let key = find_account_key(context, &claims.iss, header.kid.as_deref())?;
    if claims.scope.split(' ').all(|scope| scope != REQUIRED_SCOPE) {
        return Err(format!(
            "Invalid JWT: scope does not hold {REQUIRED_SCOPE}."
        ));
    }
    let here = format!("{}/google/token", request.base_url);
    if claims.aud != here && claims.aud != REAL_TOKEN_URL {
        return Err(format!("Invalid JWT: aud is {}, not {here}.", claims.aud));
    }
    let now = context.now().as_secs();
    if claims.exp <= now
        || claims.iat > now + MAX_CLOCK_SKEW_SECONDS
        || claims.exp - claims.iat > TOKEN_TTL_SECONDS
    {
        return Err("Invalid JWT: Token must be a short-lived token (60 minutes) and in a reasonable timeframe. Check your iat and exp values in the JWT claim.".to_owned());
    }
    let signature = URL_SAFE_NO_PAD
        .decode(signature)
        .map_err(|_| "Invalid JWT Signature.")?;
    let (input, _) = assertion.rsplit_once('.').unwrap_or_default();
    UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, key)
        .verify(input.as_bytes(), &signature)
        .map_err(|_| "Invalid JWT Signature.")?;
    Ok(claims.iss)
}

fn find_account_key(
    context: &SimulatorContext,
    email: &str,
    key_id: Option<&str>,
) -> Result<Vec<u8>, String> {
    let own = context.identity.service_account();
    let state = context.lock_state();
    let account = state.stores.google.accounts.get(email);
    if account.is_some_and(|account| account.disabled) {
        return Err("Invalid grant: account not found".to_owned());
    }
    let (key, id) = match account.and_then(|account| account.key.as_ref()) {
        Some((key, id)) => (key, id),
        None if own.client_email == email => (&own.public_key, &own.private_key_id),
        None => return Err("Invalid grant: account not found".to_owned()),
    };
    // Without a `kid`, Google tries all keys of the account.
    if key_id.is_some_and(|key_id| key_id != id) {
        return Err("Invalid JWT Signature.".to_owned());
    }
    STANDARD
        .decode(key)
        .map_err(|_| "the stored key cannot be read".to_owned())
}

fn decode_jwt_part<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    let bytes = URL_SAFE_NO_PAD
        .decode(text)
        .map_err(|_| "Invalid JWT: it is not base64url.")?;
    serde_json::from_slice(&bytes).map_err(|error| format!("Invalid JWT: {error}."))
}

fn oauth_error(status: u16, code: &str, description: &str) -> SimulatorResponse {
    SimulatorResponse::json(
        status,
        &json!({ "error": code, "error_description": description }),
    )
}

/// The usual HTTP status and message of an error's reason.
fn status_and_message(reason: &str) -> (u16, &'static str) {
    match reason {
        "invalid" => (400, "Invalid Value"),
        "subscriptionInvalidArgument" => (
            400,
            "The purchase token is not of the kind of product that was asked about.",
        ),
        "failedPrecondition" => (
            400,
            "The subscription purchase has been expired for too long.",
        ),
        "purchaseTokenDoesNotMatchPackageName" => {
            (400, "The purchase token does not match the package name.")
        }
        "purchaseTokenDoesNotMatchProductId" => {
            (400, "The purchase token does not match the product ID.")
        }
        "authError" => (401, "Invalid Credentials"),
        "permissionDenied" => (
            403,
            "The current user has insufficient permissions to perform the requested operation.",
        ),
        "projectNotLinked" => (
            403,
            "The project id used to call the Google Play Developer API has not been linked in the Google Play Developer Console.",
        ),
        "quotaExceeded" => (403, "Quota exceeded."),
        "rateLimitExceeded" => (429, "Rate limit exceeded."),
        "refundReviewClosed" => (400, "The pending refund cannot be reviewed any more."),
        "invalidPendingRefundToken" => (400, "The pending refund token is invalid."),
        "orderNotFound" => (404, "No order was found for the given order ID."),
        "purchaseTokenNotFound" => (404, "The purchase token was not found."),
        "applicationNotFound" => (404, "No application was found for the given package name."),
        "purchaseTokenNoLongerValid" => (410, "The purchase token is no longer valid."),
        "subscriptionPurchaseNoLongerAvailable" => (
            410,
            "The subscription purchase is no longer available for query because it has been expired for too long.",
        ),
        "backendError" => (503, "Backend Error"),
        "internalError" => (500, "Internal Error"),
        _ => (400, "Simulated error."),
    }
}

fn error_for_reason(reason: &str) -> SimulatorResponse {
    let (status, message) = status_and_message(reason);
    error_response(status, reason, message)
}

/// Google's error body.
fn error_response(status: u16, reason: &str, message: &str) -> SimulatorResponse {
    let mut body = json!({ "error": {
        "code": status,
        "message": message,
        "errors": [{ "message": message, "domain": "androidpublisher", "reason": reason }],
    } });
    let word = match (status, reason) {
        (_, "failedPrecondition" | "refundReviewClosed") => Some("FAILED_PRECONDITION"),
        (401, _) => Some("UNAUTHENTICATED"),
        (403, "permissionDenied") => Some("PERMISSION_DENIED"),
        (429, _) | (403, "quotaExceeded") => Some("RESOURCE_EXHAUSTED"),
        _ => None,
    };
    if let Some(word) = word {
        body["error"]["status"] = Value::from(word);
    }
    SimulatorResponse::json(status, &body)
}

/// Google's answer about an app that the developer account does not have.
fn package_not_found(status: u16, package: Option<&str>) -> SimulatorResponse {
    let message = format!("Package not found: {}.", package.unwrap_or_default());
    error_response(status, "notFound", &message)
}

/// The answer of a fault. `None` for a fault that only delays or cuts the correct answer.
fn fault_response(fault: &Fault, service: &str, app: Option<&str>) -> Option<SimulatorResponse> {
    let response = match (fault.cut, fault.reason.as_deref(), fault.status) {
        (true, ..) => return None,
        (_, Some(reason), status) if service == "token" => {
            oauth_error(status.unwrap_or(400), reason, "Simulated refusal.")
        }
        (_, Some("notFound"), status) => package_not_found(status.unwrap_or(404), app),
        (_, Some(reason), status) => {
            let (usual_status, message) = status_and_message(reason);
            error_response(status.unwrap_or(usual_status), reason, message)
        }
        (_, None, None) if fault.body.is_none() => return None,
        (_, None, status) => SimulatorResponse::from_fault(fault, status),
    };
    let wait = fault
        .retry_after
        .clone()
        .or_else(|| fault.retry_after_seconds.map(|seconds| seconds.to_string()));
    Some(match wait {
        Some(wait) => response.with_header(header::RETRY_AFTER, wait),
        None => response,
    })
}
