//! The Play Developer API and Google's token endpoint, as the simulated Google answers them.
//!
//! | call | answer |
//! |---|---|
//! | `POST /google/token` | an access token for an hour; 400 `invalid_grant` for an assertion that is not right |
//! | `GET /google/certs` | the keys Google signs with, as a JWK set |
//! | a bearer token that is unknown or old | 401 `authError` |
//! | an account without permission | 403 `permissionDenied` |
//! | `GET …/purchases/subscriptionsv2/tokens/{token}` | the subscription; 400 `subscriptionInvalidArgument` for a product's token |
//! | `GET …/purchases/products/{productId}/tokens/{token}` | the product; the same for a subscription's token |
//! | `POST …:acknowledge`, `…:consume` | does so |
//! | no token at all | 400 `invalid` |
//! | never seen | 404 `purchaseTokenNotFound` |
//! | another app's, another product's | 400 `purchaseTokenDoesNotMatchPackageName`, `…ProductId` |
//! | gone | 410 `purchaseTokenNoLongerValid` or `subscriptionPurchaseNoLongerAvailable`; 400 `failedPrecondition` 60 days after the end |

use std::time::Duration;

use aws_lc_rs::signature::{RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use url::form_urlencoded;

use super::exchange::{Call, Reply};
use super::shared::Shared;
use super::state::fault::Fault;
use super::state::google::{Change, Gone, ProductChange, is_purchase_token};
use super::state::{Refused, letters};

/// What the API wants in an assertion's `scope`.
const SCOPE: &str = "https://www.googleapis.com/auth/androidpublisher";
/// Where the real token endpoint is; a key file may name it while the simulator answers in its place.
const REAL_TOKEN_URL: &str = "https://oauth2.googleapis.com/token";
const GRANT: &str = "urn:ietf:params:oauth:grant-type:jwt-bearer";
/// How long an assertion and an access token live, in seconds.
const HOUR: i64 = 3600;
/// How far the two clocks may be apart, in seconds.
const SKEW: i64 = 60;

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
}

#[derive(Deserialize)]
struct Claims {
    iss: String,
    scope: String,
    aud: String,
    iat: i64,
    exp: i64,
}

/// Answers a call below `/google`.
pub(super) fn answer(shared: &Shared, service: &str, call: &Call) -> Reply {
    let place = format!("google/{service}");
    let below: Vec<&str> = call.segments.iter().skip(2).map(String::as_str).collect();
    let purchase = Purchase::read(&below);
    let (app, id) = match &purchase {
        Some(purchase) => (Some(purchase.package), Some(purchase.token)),
        None => (None, None),
    };
    let fault = shared.inside().faults.strike(&place, app, id);
    let told = fault.as_ref().and_then(|fault| wrong(fault, service));
    let mut reply = told.unwrap_or_else(|| match service {
        "token" => grant(shared, call),
        "certs" => Reply::json(200, &shared.google_keys())
            .header("cache-control", "public, max-age=21600, must-revalidate"),
        _ => play(shared, call, purchase),
    });
    if let Some(fault) = &fault {
        reply.spoil(fault);
    }
    reply
}

/// What a path below the API's base names.
struct Purchase<'a> {
    package: &'a str,
    /// Of a product, or of a subscription where the path has one.
    product: Option<&'a str>,
    kind: Kind,
    token: &'a str,
    verb: Option<&'a str>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    SubscriptionV2,
    Subscription,
    Product,
}

impl<'a> Purchase<'a> {
    fn read(below: &[&'a str]) -> Option<Self> {
        let (package, rest) = match below {
            [
                "androidpublisher",
                "v3",
                "applications",
                package,
                "purchases",
                rest @ ..,
            ] => (*package, rest),
            _ => return None,
        };
        let (kind, product, last) = match rest {
            ["subscriptionsv2", "tokens", last] => (Kind::SubscriptionV2, None, *last),
            ["subscriptions", product, "tokens", last] => {
                (Kind::Subscription, Some(*product), *last)
            }
            ["products", product, "tokens", last] => (Kind::Product, Some(*product), *last),
            _ => return None,
        };
        // No token holds a colon: what follows one is a method's name.
        let (token, verb) = match last.split_once(':') {
            Some((token, verb)) => (token, Some(verb)),
            None => (last, None),
        };
        Some(Self {
            package,
            product,
            kind,
            token,
            verb,
        })
    }
}

fn play(shared: &Shared, call: &Call, purchase: Option<Purchase<'_>>) -> Reply {
    let email = match bearer(shared, call.bearer.as_deref()) {
        Ok(email) => email,
        Err(why) => {
            return error(401, "authError", "Request had invalid authentication credentials. Expected OAuth 2 access token, login cookie or other valid authentication credential.")
                .because(why);
        }
    };
    let is_denied = shared
        .inside()
        .state
        .google
        .accounts
        .get(&email)
        .is_some_and(|account| account.denied);
    if is_denied {
        return refusal("permissionDenied");
    }
    let Some(purchase) = purchase else {
        return Reply::page(404).because("the simulator does not play this call");
    };
    if !is_purchase_token(purchase.token) {
        return refusal("invalid");
    }
    let reply = match (call.method.as_str(), purchase.kind, purchase.verb) {
        ("GET", Kind::SubscriptionV2, None) => find_subscription(shared, &purchase),
        ("GET", Kind::Product, None) => find_product(shared, &purchase),
        ("POST", Kind::Subscription, Some("acknowledge")) => {
            act(shared, &purchase, |state, now| {
                state
                    .change_subscription(purchase.token, &Change::Acknowledge {}, now)
                    .map(drop)
            })
        }
        ("POST", Kind::Product, Some("acknowledge")) => act(shared, &purchase, |state, now| {
            state
                .change_product(purchase.token, &ProductChange::Acknowledge {}, now)
                .map(drop)
        }),
        ("POST", Kind::Product, Some("consume")) => act(shared, &purchase, |state, now| {
            state
                .change_product(purchase.token, &ProductChange::Consume {}, now)
                .map(drop)
        }),
        _ => Err(Reply::page(404).because("the simulator does not play this call")),
    };
    reply.unwrap_or_else(|refused| refused)
}

fn find_subscription(shared: &Shared, purchase: &Purchase<'_>) -> Result<Reply, Reply> {
    let now = shared.now();
    let inside = shared.inside();
    let books = &inside.state.google;
    let Some(subscription) = books.subscription(purchase.token) else {
        return Err(refusal(if books.product(purchase.token).is_some() {
            "subscriptionInvalidArgument"
        } else {
            "purchaseTokenNotFound"
        }));
    };
    if subscription.package_name != purchase.package {
        return Err(refusal("purchaseTokenDoesNotMatchPackageName"));
    }
    match subscription.gone(now) {
        Some(gone) => Err(refusal(reason(gone))),
        None => Ok(Reply::json(200, &subscription.answer(now))),
    }
}

fn find_product(shared: &Shared, purchase: &Purchase<'_>) -> Result<Reply, Reply> {
    let inside = shared.inside();
    let books = &inside.state.google;
    let Some(product) = books.product(purchase.token) else {
        return Err(refusal(if books.subscription(purchase.token).is_some() {
            "subscriptionInvalidArgument"
        } else {
            "purchaseTokenNotFound"
        }));
    };
    if product.package_name != purchase.package {
        return Err(refusal("purchaseTokenDoesNotMatchPackageName"));
    }
    if purchase.product != Some(product.product_id.as_str()) {
        return Err(refusal("purchaseTokenDoesNotMatchProductId"));
    }
    match product.gone() {
        Some(gone) => Err(refusal(reason(gone))),
        None => Ok(Reply::json(200, &product.answer())),
    }
}

fn act(
    shared: &Shared,
    purchase: &Purchase<'_>,
    change: impl FnOnce(
        &mut super::state::google::Books,
        crate::clock::Timestamp,
    ) -> Result<(), Refused>,
) -> Result<Reply, Reply> {
    if purchase.kind == Kind::Product {
        find_product(shared, purchase)?;
    } else {
        find_subscription(shared, purchase)?;
    }
    match shared.change(|state, now, _| change(&mut state.google, now)) {
        Ok(()) => Ok(Reply::empty(204)),
        Err(refused) => Err(error(
            400,
            "productNotOwnedByUser",
            "The product purchase is not owned by the user.",
        )
        .because(refused.to_string())),
    }
}

fn reason(gone: Gone) -> &'static str {
    match gone {
        Gone::NoLongerValid => "purchaseTokenNoLongerValid",
        Gone::NoLongerAvailable => "subscriptionPurchaseNoLongerAvailable",
        Gone::ExpiredTooLong => "failedPrecondition",
    }
}

/// The account a bearer token was given to.
fn bearer(shared: &Shared, token: Option<&str>) -> Result<String, String> {
    let token = token.ok_or("there is no bearer token")?;
    let now = shared.now();
    match shared.inside().tokens.get(token) {
        Some((email, expires)) if *expires > now => Ok(email.clone()),
        Some(_) => Err("the access token has expired".to_owned()),
        None => Err("the access token was not given out here".to_owned()),
    }
}

/// The token endpoint.
fn grant(shared: &Shared, call: &Call) -> Reply {
    if call.method != "POST" {
        return Reply::page(405);
    }
    let form: Vec<(String, String)> = form_urlencoded::parse(&call.body).into_owned().collect();
    let field = |name: &str| {
        form.iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    };
    if field("grant_type") != Some(GRANT) {
        return oauth(400, "unsupported_grant_type", "Invalid grant_type.");
    }
    let Some(assertion) = field("assertion") else {
        return oauth(
            400,
            "invalid_request",
            "Missing required parameter: assertion",
        );
    };
    match admit(shared, call, assertion) {
        Ok(email) => {
            let expires = shared.now().plus(Duration::from_hours(1));
            let mut inside = shared.inside();
            let secret = letters(
                &mut inside.random,
                b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789",
                48,
            );
            let token = format!("ya29.simulated.{secret}");
            inside.tokens.insert(token.clone(), (email, expires));
            Reply::json(
                200,
                &json!({
                    "access_token": token,
                    "expires_in": HOUR - 1,
                    "token_type": "Bearer",
                }),
            )
        }
        Err(why) => oauth(400, "invalid_grant", &why).because(why),
    }
}

/// Checks an assertion and gives the account it speaks for.
fn admit(shared: &Shared, call: &Call, assertion: &str) -> Result<String, String> {
    let parts: Vec<&str> = assertion.split('.').collect();
    let [header, claims, signature] = parts.as_slice() else {
        return Err("Invalid JWT: it does not have three parts.".to_owned());
    };
    let header: Header = part(header)?;
    let claims: Claims = part(claims)?;
    if header.alg != "RS256" {
        return Err(format!("Invalid JWT: alg is {}, not RS256.", header.alg));
    }
    let key = account_key(shared, &claims.iss, header.kid.as_deref())?;
    if claims.scope.split(' ').all(|scope| scope != SCOPE) {
        return Err(format!("Invalid JWT: scope does not hold {SCOPE}."));
    }
    let here = format!("{}/google/token", call.base());
    if claims.aud != here && claims.aud != REAL_TOKEN_URL {
        return Err(format!("Invalid JWT: aud is {}, not {here}.", claims.aud));
    }
    let now = shared.now().seconds();
    if claims.exp <= now || claims.iat > now + SKEW || claims.exp - claims.iat > HOUR {
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

fn account_key(shared: &Shared, email: &str, key_id: Option<&str>) -> Result<Vec<u8>, String> {
    let own = shared.identity.service_account();
    let inside = shared.inside();
    let account = inside.state.google.accounts.get(email);
    if account.is_some_and(|account| account.disabled) {
        return Err("Invalid grant: account not found".to_owned());
    }
    let (key, id) = match account.and_then(|account| account.key.as_ref()) {
        Some((key, id)) => (key, id),
        None if own.client_email == email => (&own.public_key, &own.private_key_id),
        None => return Err("Invalid grant: account not found".to_owned()),
    };
    // Google looks for the key among all of the account's when the kid is left out.
    if key_id.is_some_and(|key_id| key_id != id) {
        return Err("Invalid JWT Signature.".to_owned());
    }
    STANDARD
        .decode(key)
        .map_err(|_| "the kept key cannot be read".to_owned())
}

fn part<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    let bytes = URL_SAFE_NO_PAD
        .decode(text)
        .map_err(|_| "Invalid JWT: it is not base64url.")?;
    serde_json::from_slice(&bytes).map_err(|error| format!("Invalid JWT: {error}."))
}

fn oauth(status: u16, code: &str, description: &str) -> Reply {
    Reply::json(
        status,
        &json!({ "error": code, "error_description": description }),
    )
}

/// The usual status, message and status word of a reason.
fn usual(reason: &str) -> (u16, &'static str) {
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

fn refusal(reason: &str) -> Reply {
    let (status, message) = usual(reason);
    error(status, reason, message)
}

/// Google's error body.
fn error(status: u16, reason: &str, message: &str) -> Reply {
    let mut body = json!({ "error": {
        "code": status,
        "message": message,
        "errors": [{ "message": message, "domain": "androidpublisher", "reason": reason }],
    } });
    let word = match (status, reason) {
        (_, "failedPrecondition") => Some("FAILED_PRECONDITION"),
        (401, _) => Some("UNAUTHENTICATED"),
        (403, "permissionDenied") => Some("PERMISSION_DENIED"),
        (429, _) | (403, "quotaExceeded") => Some("RESOURCE_EXHAUSTED"),
        _ => None,
    };
    if let Some(word) = word {
        body["error"]["status"] = Value::from(word);
    }
    Reply::json(status, &body)
}

/// What a fault answers, unless it only spoils the true answer.
fn wrong(fault: &Fault, service: &str) -> Option<Reply> {
    let reply = match (fault.cut, fault.reason.as_deref(), fault.status) {
        (true, ..) => return None,
        (_, Some(reason), status) if service == "token" => {
            oauth(status.unwrap_or(400), reason, "Simulated refusal.")
        }
        (_, Some(reason), status) => {
            let (usual_status, message) = usual(reason);
            error(status.unwrap_or(usual_status), reason, message)
        }
        (_, None, None) if fault.body.is_none() => return None,
        (_, None, status) => Reply::literal(fault, status),
    };
    let wait = fault
        .retry_after
        .clone()
        .or_else(|| fault.retry_after_seconds.map(|seconds| seconds.to_string()));
    Some(match wait {
        Some(wait) => reply.header("retry-after", wait),
        None => reply,
    })
}
