//! `/control`: everything that can be made to happen, over HTTP.
//!
//! Bodies and answers are JSON; an empty body is an empty object; no header is needed. What cannot be done is
//! `{"error": "a sentence"}` with 400, or 404 for what is not there.

use std::fmt::Write as _;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::{AppleScenario, GoogleScenario};
use crate::simulator::context::SimulatorContext;
use crate::simulator::pki::JwsForgery;
use crate::simulator::request::{SimulatorRequest, SimulatorResponse};
use crate::simulator::state::apple::{NewTransaction, SimulatedApp, SimulatedTransaction};
use crate::simulator::state::apple_notifications::NewNotification;
use crate::simulator::state::fault::Fault;
use crate::simulator::state::google::{
    NewProduct, NewSubscription, SimulatedProductPurchase, SimulatedSubscription,
    SubscriptionReplacement,
};
use crate::simulator::state::google_notifications as notices;
use crate::simulator::state::{SimulatorError, StoreState};

/// One thing the control API does.
struct ControlOperation {
    method: &'static str,
    /// `{id}`, `{token}`, `{email}` and the like stand for one segment.
    path: &'static str,
    description: &'static str,
    /// An example of a body.
    example_body: &'static str,
}

const fn get(path: &'static str, does: &'static str) -> ControlOperation {
    ControlOperation {
        method: "GET",
        path,
        description: does,
        example_body: "",
    }
}

const fn post(path: &'static str, body: &'static str, does: &'static str) -> ControlOperation {
    ControlOperation {
        method: "POST",
        path,
        description: does,
        example_body: body,
    }
}

const fn delete(path: &'static str, does: &'static str) -> ControlOperation {
    ControlOperation {
        method: "DELETE",
        path,
        description: does,
        example_body: "",
    }
}

/// Everything the control API does, under headings.
const OPERATIONS: &[(&str, &[ControlOperation])] = &[
    (
        "What to give Attesto",
        &[
            get(
                "/control/settings",
                "the environment variables that point Attesto here",
            ),
            get("/control/apple/root.pem", "the root certificate to trust"),
            get(
                "/control/apple/key",
                "the App Store Server API key: issuerId, keyId and the .p8's text",
            ),
            get("/control/apple/key.p8", "the .p8 alone"),
            get(
                "/control/google/service-account.json",
                "the service account's key file",
            ),
        ],
    ),
    (
        "App Store purchases",
        &[
            post(
                "/control/apple/transactions",
                r#"{"type":"subscription","bundleId":"com.example.app","productId":"com.example.app.pro.monthly","environment":"sandbox","period":"P1M","price":9990,"appAccountToken":"7e3fb204-2b0d-4d70-a0c2-6d8a3f6c1e55"}"#,
                "buy; every field may be left out; type is subscription, non-renewing, non-consumable or consumable",
            ),
            get("/control/apple/transactions", "every transaction"),
            get(
                "/control/apple/transactions/{id}",
                "one transaction, with what is signed about it",
            ),
            get(
                "/control/apple/transactions/{id}/jws",
                "the signed transaction alone, as StoreKit 2 gives it to an app",
            ),
            post(
                "/control/apple/transactions/{id}/renew",
                "",
                "one more period: a new transaction",
            ),
            post(
                "/control/apple/transactions/{id}/cancel",
                "",
                "turn renewal off; the present period goes on",
            ),
            post(
                "/control/apple/transactions/{id}/resume",
                "",
                "turn renewal on again",
            ),
            post(
                "/control/apple/transactions/{id}/expire",
                r#"{"intent":1}"#,
                "end it now",
            ),
            post(
                "/control/apple/transactions/{id}/grace",
                r#"{"days":16}"#,
                "a payment fails; access goes on in a grace period",
            ),
            post(
                "/control/apple/transactions/{id}/billing-retry",
                "",
                "a payment fails; no grace period",
            ),
            post(
                "/control/apple/transactions/{id}/refund",
                r#"{"reason":1}"#,
                "give the money back",
            ),
            post(
                "/control/apple/transactions/{id}/reverse-refund",
                "",
                "take a refund back",
            ),
            post(
                "/control/apple/transactions/{id}/revoke",
                "",
                "end family sharing",
            ),
            post(
                "/control/apple/transactions/{id}/upgrade",
                r#"{"productId":"com.example.app.pro.yearly","period":"P1Y"}"#,
                "replace the product at once: a new transaction",
            ),
            post(
                "/control/apple/transactions/{id}/downgrade",
                r#"{"productId":"com.example.app.lite.monthly"}"#,
                "replace the product at the next renewal",
            ),
            post(
                "/control/apple/transactions/{id}/extend",
                r#"{"days":30}"#,
                "give more time",
            ),
            post(
                "/control/apple/transactions/{id}/forget",
                "",
                "make the store not know it",
            ),
            get(
                "/control/apple/forge?kind=altered-payload&transactionId={id}",
                "a signed transaction that must not be believed; without a kind, the kinds",
            ),
            post(
                "/control/apple/sign",
                r#"{"bundleId":"com.example.app","environment":"Sandbox","signedDate":1775830930000}"#,
                "sign any payload",
            ),
        ],
    ),
    (
        "App Store apps and keys",
        &[
            get(
                "/control/apple/apps/{bundle}",
                "an app's number, and whether it was released",
            ),
            post(
                "/control/apple/apps/{bundle}",
                r#"{"released":false}"#,
                "an app that was never released: production answers 401",
            ),
            post("/control/apple/keys", "", "one more API key"),
            post("/control/apple/keys/{key}/revoke", "", "revoke an API key"),
            post("/control/apple/keys/{key}/restore", "", "take that back"),
        ],
    ),
    (
        "App Store notifications",
        &[
            post(
                "/control/apple/push/{bundle}",
                r#"{"production":"http://127.0.0.1:8080/v1/webhooks/apple/tenant_…","sandbox":"http://127.0.0.1:8080/v1/webhooks/apple/tenant_…"}"#,
                "post what happens to this app's purchases; with \"manual\":true, only when asked to",
            ),
            get("/control/apple/push", "where notifications are posted"),
            get(
                "/control/apple/notifications",
                "every notification, and how each attempt went",
            ),
            post(
                "/control/apple/notifications/{bundle}",
                r#"{"notificationType":"PRICE_INCREASE","subtype":"PENDING","transactionId":"{id}"}"#,
                "report anything; environment, block and fields may be given too",
            ),
            post(
                "/control/apple/redeliver",
                "",
                "post again what was not taken",
            ),
        ],
    ),
    (
        "Play subscriptions",
        &[
            post(
                "/control/google/subscriptions",
                r#"{"packageName":"com.example.app","productId":"pro_monthly","basePlanId":"monthly","period":"P1M","priceAmountMicros":4990000,"obfuscatedExternalAccountId":"7e3fb204-2b0d-4d70-a0c2-6d8a3f6c1e55","addOns":[{"productId":"extra_storage"}]}"#,
                "subscribe; every field may be left out",
            ),
            get("/control/google/subscriptions", "every subscription"),
            get(
                "/control/google/subscriptions/{subscription}",
                "one subscription, with what Play answers",
            ),
            post(
                "/control/google/subscriptions/{subscription}/renew",
                "",
                "one more period",
            ),
            post(
                "/control/google/subscriptions/{subscription}/cancel",
                r#"{"by":"user"}"#,
                "turn renewal off; by user, system or developer",
            ),
            post(
                "/control/google/subscriptions/{subscription}/restore",
                "",
                "turn renewal on again",
            ),
            post(
                "/control/google/subscriptions/{subscription}/expire",
                "",
                "end it now",
            ),
            post(
                "/control/google/subscriptions/{subscription}/grace",
                r#"{"days":7}"#,
                "a payment fails; access goes on",
            ),
            post(
                "/control/google/subscriptions/{subscription}/hold",
                "",
                "a payment fails; access stops",
            ),
            post(
                "/control/google/subscriptions/{subscription}/pause",
                r#"{"days":30}"#,
                "pause it",
            ),
            post(
                "/control/google/subscriptions/{subscription}/resume",
                "",
                "end a hold or a pause",
            ),
            post(
                "/control/google/subscriptions/{subscription}/revoke",
                "",
                "give the money back and end it now",
            ),
            post(
                "/control/google/subscriptions/{subscription}/defer",
                r#"{"days":14}"#,
                "move the next payment",
            ),
            post(
                "/control/google/subscriptions/{subscription}/acknowledge",
                "",
                "acknowledge it",
            ),
            post(
                "/control/google/subscriptions/{subscription}/complete",
                "",
                "pay a pending purchase",
            ),
            post(
                "/control/google/subscriptions/{subscription}/decline",
                "",
                "give a pending purchase up",
            ),
            post(
                "/control/google/subscriptions/{subscription}/replace",
                r#"{"productId":"pro_yearly","period":"P1Y"}"#,
                "change plans: a new token, linked to this one",
            ),
            post(
                "/control/google/subscriptions/{subscription}/gone",
                r#"{"how":"no-longer-valid"}"#,
                "answer 410, or 400; how is no-longer-valid, no-longer-available or expired-too-long",
            ),
            post(
                "/control/google/subscriptions/{subscription}/forget",
                "",
                "make the store not know it",
            ),
        ],
    ),
    (
        "Play one-time products",
        &[
            post(
                "/control/google/products",
                r#"{"packageName":"com.example.app","productId":"coins_100","quantity":2}"#,
                "buy; every field may be left out",
            ),
            get("/control/google/products", "every purchase"),
            get(
                "/control/google/products/{product}",
                "one purchase, with what Play answers",
            ),
            post(
                "/control/google/products/{product}/consume",
                "",
                "use it up",
            ),
            post(
                "/control/google/products/{product}/acknowledge",
                "",
                "acknowledge it",
            ),
            post(
                "/control/google/products/{product}/refund",
                "",
                "give the money back",
            ),
            post(
                "/control/google/products/{product}/complete",
                "",
                "pay a pending purchase",
            ),
            post("/control/google/products/{product}/gone", "", "answer 410"),
            post(
                "/control/google/products/{product}/forget",
                "",
                "make the store not know it",
            ),
        ],
    ),
    (
        "Play notifications",
        &[
            post(
                "/control/google/push/{package}",
                r#"{"endpoint":"http://127.0.0.1:8080/v1/webhooks/google/tenant_…"}"#,
                "push what happens to this app's purchases; audience and account may be given too",
            ),
            get("/control/google/push", "where notifications are pushed"),
            get(
                "/control/google/messages",
                "every message, and what its pushes were answered",
            ),
            post(
                "/control/google/messages/{package}/test",
                "",
                "what the console's button publishes",
            ),
            post(
                "/control/google/messages/{package}",
                r#"{"subscriptionNotification":{"version":"1.0","notificationType":17,"purchaseToken":"…"}}"#,
                "publish any notification; version, packageName and eventTimeMillis are added",
            ),
            post(
                "/control/google/redeliver",
                "",
                "push again what was not acknowledged",
            ),
            post(
                "/control/google/keys/rotate",
                r#"{"dropOld":false}"#,
                "sign with a new key",
            ),
        ],
    ),
    (
        "Google accounts",
        &[
            post(
                "/control/google/service-accounts",
                r#"{"name":"second"}"#,
                "one more service account: its key file",
            ),
            post(
                "/control/google/service-accounts/{email}/disable",
                "",
                "delete it: invalid_grant",
            ),
            post(
                "/control/google/service-accounts/{email}/enable",
                "",
                "take that back",
            ),
            post(
                "/control/google/service-accounts/{email}/deny",
                "",
                "take its permission away: permissionDenied",
            ),
            post(
                "/control/google/service-accounts/{email}/allow",
                "",
                "give it back",
            ),
            post(
                "/control/google/tokens/expire",
                "",
                "end every access token before its time",
            ),
        ],
    ),
    (
        "Answers that go wrong",
        &[
            post(
                "/control/faults",
                r#"{"at":"apple/production","errorCode":4040006,"times":2}"#,
                "Apple's error, for the next two calls; skip lets some pass first, times 0 never ends",
            ),
            post(
                "/control/faults",
                r#"{"at":"apple","errorCode":4290000,"retryAfterSeconds":30}"#,
                "Apple's rate limit, with Retry-After as a moment in milliseconds",
            ),
            post(
                "/control/faults",
                r#"{"at":"google/play","reason":"quotaExceeded"}"#,
                "Google's error of a reason",
            ),
            post(
                "/control/faults",
                r#"{"at":"google/token","reason":"invalid_grant"}"#,
                "a refusal by the token endpoint",
            ),
            post(
                "/control/faults",
                r#"{"at":"apple/sandbox","status":503}"#,
                "a gateway's page",
            ),
            post(
                "/control/faults",
                r#"{"at":"google/play","status":200,"body":"{}"}"#,
                "any body",
            ),
            post(
                "/control/faults",
                r#"{"at":"apple","delayMs":3000}"#,
                "the true answer, late",
            ),
            post(
                "/control/faults",
                r#"{"at":"google","cut":true,"app":"com.example.app"}"#,
                "a connection that breaks; app and id choose the calls",
            ),
            get("/control/faults", "those in force"),
            delete("/control/faults", "end them all"),
        ],
    ),
    (
        "Looking",
        &[
            get(
                "/control/requests",
                "the calls the stores received, and why they were refused",
            ),
            delete("/control/requests", "forget them"),
            post(
                "/control/reset",
                "",
                "forget every purchase, fault, key and account but the first",
            ),
        ],
    ),
];

/// Answers a call to `/control`, or to `/`.
pub(in crate::simulator) fn handle_request(
    shared: &Arc<SimulatorContext>,
    call: &SimulatorRequest,
) -> SimulatorResponse {
    let segments: Vec<&str> = call.path_segments.iter().map(String::as_str).collect();
    let below = segments.get(1..).unwrap_or_default();
    let desk = ControlApi {
        context: shared,
        apple: AppleScenario::new(shared.clone()),
        google: GoogleScenario::new(shared.clone()),
        request: call,
    };
    let reply = match below {
        [] if call.method == "GET" => Ok(desk.catalogue_response()),
        ["settings"] if call.method == "GET" => Ok(desk.settings_response()),
        ["apple", rest @ ..] => desk.handle_apple(rest),
        ["google", rest @ ..] => desk.handle_google(rest),
        rest => desk.handle_general(rest),
    };
    reply.unwrap_or_else(|refused| match refused {
        SimulatorError::NotFound(sentence) => SimulatorResponse::control_error(404, sentence),
        SimulatorError::InvalidRequest(sentence) => SimulatorResponse::control_error(400, sentence),
    })
}

/// The settings that point Attesto at a simulator; the root certificate has to be fetched into a file.
pub(in crate::simulator) fn environment_variables(base: &str) -> Vec<(&'static str, String)> {
    vec![
        ("APPLE_PRODUCTION_URL", format!("{base}/apple/production")),
        ("APPLE_SANDBOX_URL", format!("{base}/apple/sandbox")),
        ("APPLE_ROOT_CERTIFICATES", "simulator-root.pem".to_owned()),
        ("GOOGLE_PLAY_URL", format!("{base}/google/play")),
        ("GOOGLE_TOKEN_URL", format!("{base}/google/token")),
        ("GOOGLE_JWKS_URL", format!("{base}/google/certs")),
    ]
}

/// One call being answered.
struct ControlApi<'a> {
    context: &'a Arc<SimulatorContext>,
    apple: AppleScenario,
    google: GoogleScenario,
    request: &'a SimulatorRequest,
}

type ControlResult = Result<SimulatorResponse, SimulatorError>;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct AppChange {
    released: Option<bool>,
    app_apple_id: Option<u64>,
}

#[derive(Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
#[derive(Default)]
struct KeyRotation {
    drop_old: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewServiceAccount {
    name: String,
}

impl ControlApi<'_> {
    fn parse_body<T: DeserializeOwned>(&self) -> Result<T, SimulatorError> {
        self.request
            .parse_json_body()
            .map_err(SimulatorError::invalid_request)
    }

    /// The body with the action from the path put into it, which is how a change is spelled.
    fn parse_change<T: DeserializeOwned>(&self, action: &str) -> Result<T, SimulatorError> {
        let mut body: Map<String, Value> = self.parse_body()?;
        body.insert("action".to_owned(), json!(action));
        serde_json::from_value(Value::Object(body)).map_err(|error| {
            SimulatorError::invalid_request(format!("{action} cannot be done: {error}."))
        })
    }

    fn handle_apple(&self, below: &[&str]) -> ControlResult {
        let apple = &self.apple;
        match (self.request.method.as_str(), below) {
            ("GET", ["root.pem"]) => Ok(SimulatorResponse::with_content_type(
                200,
                "application/x-pem-file",
                self.context.identity.certificate_authority().root_pem(),
            )),
            ("GET", ["key"]) => Ok(SimulatorResponse::pretty_json(
                200,
                &apple_key_view(&apple.api_key()),
            )),
            ("GET", ["key.p8"]) => Ok(SimulatorResponse::with_content_type(
                200,
                "application/x-pem-file",
                apple.api_key().private_key,
            )),
            ("POST", ["keys"]) => Ok(SimulatorResponse::pretty_json(
                201,
                &apple_key_view(&apple.create_api_key()?),
            )),
            ("POST", ["keys", key, verb @ ("revoke" | "restore")]) => {
                apple.set_key_revoked(key, *verb == "revoke")?;
                Ok(done_response())
            }
            ("GET", ["apps", bundle]) => Ok(SimulatorResponse::pretty_json(
                200,
                &json!(apple.get_app(bundle)),
            )),
            ("POST", ["apps", bundle]) => {
                let change: AppChange = self.parse_body()?;
                let usual = apple.get_app(bundle);
                let app = SimulatedApp {
                    released: change.released.unwrap_or(usual.released),
                    app_apple_id: change.app_apple_id.unwrap_or(usual.app_apple_id),
                    ..usual
                };
                apple.set_app(app.clone())?;
                Ok(SimulatorResponse::pretty_json(200, &json!(app)))
            }
            ("GET", ["transactions"]) => {
                let all: Vec<Value> = apple
                    .list_transactions()
                    .iter()
                    .map(|one| self.transaction_summary(one))
                    .collect();
                Ok(SimulatorResponse::pretty_json(
                    200,
                    &json!({ "transactions": all }),
                ))
            }
            ("POST", ["transactions"]) => {
                let new: NewTransaction = self.parse_body()?;
                Ok(SimulatorResponse::pretty_json(
                    201,
                    &self.transaction_view(&apple.create_transaction(new)?)?,
                ))
            }
            ("GET", ["transactions", id]) => Ok(SimulatorResponse::pretty_json(
                200,
                &self.transaction_view(&apple.find_transaction(id)?)?,
            )),
            ("GET", ["transactions", id, "jws"]) => Ok(SimulatorResponse::with_content_type(
                200,
                "text/plain; charset=utf-8",
                apple.sign_transaction(id)?,
            )),
            ("POST", ["transactions", id, action]) => {
                let changed = apple.change_transaction(id, &self.parse_change(action)?)?;
                if *action == "forget" {
                    return Ok(done_response());
                }
                Ok(SimulatorResponse::pretty_json(
                    200,
                    &self.transaction_view(&changed)?,
                ))
            }
            ("GET", ["push"]) => {
                let all = json!(self.context.lock_state().stores.apple.push);
                Ok(SimulatorResponse::pretty_json(200, &json!({ "push": all })))
            }
            ("POST", ["push", bundle]) => {
                apple.set_notification_urls(bundle, self.parse_body()?)?;
                Ok(done_response())
            }
            ("GET", ["notifications"]) => Ok(SimulatorResponse::pretty_json(
                200,
                &json!({ "notifications": apple.list_notifications() }),
            )),
            ("POST", ["notifications", bundle]) => {
                let new: NewNotification = self.parse_body()?;
                Ok(SimulatorResponse::pretty_json(
                    201,
                    &json!(apple.publish_notification(bundle, &new)?),
                ))
            }
            ("POST", ["redeliver"]) => Ok(SimulatorResponse::pretty_json(
                200,
                &json!({ "notifications": apple.redeliver_undelivered() }),
            )),
            ("GET", ["forge"]) => self.handle_forge(),
            ("POST", ["sign"]) => {
                let payload: Map<String, Value> = self.parse_body()?;
                Ok(SimulatorResponse::with_content_type(
                    200,
                    "text/plain; charset=utf-8",
                    apple.sign_payload(&payload),
                ))
            }
            _ => self.unknown_operation(),
        }
    }

    fn handle_forge(&self) -> ControlResult {
        let kinds = || {
            JwsForgery::ALL
                .iter()
                .map(|kind| json!(kind))
                .collect::<Vec<_>>()
        };
        let Some(kind) = self.request.query_parameter("kind") else {
            return Ok(SimulatorResponse::pretty_json(
                200,
                &json!({ "kinds": kinds() }),
            ));
        };
        let kind: JwsForgery = serde_json::from_value(json!(kind)).map_err(|_| {
            SimulatorError::invalid_request(format!(
                "There is no forgery of the kind {kind}. Those there are: {}",
                Value::Array(kinds())
            ))
        })?;
        let jws = match self.request.query_parameter("transactionId") {
            Some(id) => self.apple.forge_transaction(id, kind)?,
            None => {
                return Err(SimulatorError::invalid_request(
                    "Which transaction? Add &transactionId=… to the address.",
                ));
            }
        };
        Ok(SimulatorResponse::with_content_type(
            200,
            "text/plain; charset=utf-8",
            jws,
        ))
    }

    fn handle_google(&self, below: &[&str]) -> ControlResult {
        let google = &self.google;
        let token_url = format!("{}/google/token", self.request.base_url());
        match (self.request.method.as_str(), below) {
            ("GET", ["service-account.json"]) => Ok(SimulatorResponse::pretty_json(
                200,
                &self
                    .context
                    .identity
                    .service_account()
                    .to_key_file(&token_url),
            )),
            ("POST", ["service-accounts"]) => {
                let new: NewServiceAccount = self.parse_body()?;
                let account = google.create_service_account(&new.name)?;
                Ok(SimulatorResponse::pretty_json(
                    201,
                    &account.to_key_file(&token_url),
                ))
            }
            ("POST", ["service-accounts", email, verb @ ("disable" | "enable")]) => {
                google.set_account_disabled(email, *verb == "disable")?;
                Ok(done_response())
            }
            ("POST", ["service-accounts", email, verb @ ("deny" | "allow")]) => {
                google.set_account_denied(email, *verb == "deny")?;
                Ok(done_response())
            }
            ("POST", ["tokens", "expire"]) => {
                google.expire_access_tokens();
                Ok(done_response())
            }
            (method, ["push" | "messages" | "redeliver" | "keys", ..]) => {
                self.handle_pubsub(method, below)
            }
            ("GET", ["subscriptions"]) => {
                let all: Vec<Value> = google
                    .list_subscriptions()
                    .iter()
                    .map(|one| self.subscription_summary(one))
                    .collect();
                Ok(SimulatorResponse::pretty_json(
                    200,
                    &json!({ "subscriptions": all }),
                ))
            }
            ("POST", ["subscriptions"]) => {
                let new: NewSubscription = self.parse_body()?;
                Ok(SimulatorResponse::pretty_json(
                    201,
                    &self.subscription_view(&google.buy_subscription(new)?),
                ))
            }
            ("GET", ["subscriptions", token]) => {
                let found = google
                    .find_subscription(token)
                    .ok_or_else(|| purchase_not_found(token))?;
                Ok(SimulatorResponse::pretty_json(
                    200,
                    &self.subscription_view(&found),
                ))
            }
            ("POST", ["subscriptions", token, "replace"]) => {
                let by: SubscriptionReplacement = self.parse_body()?;
                let new = google.replace_subscription(token, by)?;
                Ok(SimulatorResponse::pretty_json(
                    201,
                    &self.subscription_view(&new),
                ))
            }
            ("POST", ["subscriptions", token, action]) => {
                let changed = google.change_subscription(token, &self.parse_change(action)?)?;
                Ok(SimulatorResponse::pretty_json(
                    200,
                    &self.subscription_view(&changed),
                ))
            }
            ("GET", ["products"]) => {
                let all: Vec<Value> = google.list_products().iter().map(product_summary).collect();
                Ok(SimulatorResponse::pretty_json(
                    200,
                    &json!({ "products": all }),
                ))
            }
            ("POST", ["products"]) => {
                let new: NewProduct = self.parse_body()?;
                Ok(SimulatorResponse::pretty_json(
                    201,
                    &product_view(&google.buy_product(new)?),
                ))
            }
            ("GET", ["products", token]) => {
                let found = google
                    .find_product(token)
                    .ok_or_else(|| purchase_not_found(token))?;
                Ok(SimulatorResponse::pretty_json(200, &product_view(&found)))
            }
            ("POST", ["products", token, action]) => {
                let changed = google.change_product(token, &self.parse_change(action)?)?;
                Ok(SimulatorResponse::pretty_json(200, &product_view(&changed)))
            }
            _ => self.unknown_operation(),
        }
    }

    fn handle_pubsub(&self, method: &str, below: &[&str]) -> ControlResult {
        let google = &self.google;
        match (method, below) {
            ("GET", ["push"]) => {
                let all = json!(self.context.lock_state().stores.google.push);
                Ok(SimulatorResponse::pretty_json(
                    200,
                    &json!({ "push": all, "account": google.push_account() }),
                ))
            }
            ("POST", ["push", package]) => {
                google.set_push_subscription(package, self.parse_body()?)?;
                Ok(SimulatorResponse::pretty_json(
                    200,
                    &json!({ "done": true, "account": google.push_account() }),
                ))
            }
            ("GET", ["messages"]) => Ok(SimulatorResponse::pretty_json(
                200,
                &json!({ "messages": google.published_messages() }),
            )),
            ("POST", ["messages", package, "test"]) => Ok(SimulatorResponse::pretty_json(
                201,
                &json!(google.publish_test_notification(package)),
            )),
            ("POST", ["messages", package]) => {
                let mut notification = notices::common_fields(package, self.context.now());
                let blocks: Map<String, Value> = self.parse_body()?;
                notification.extend(blocks);
                let text = Value::Object(notification).to_string();
                let message = google.publish_message(package, text.as_bytes());
                Ok(SimulatorResponse::pretty_json(201, &json!(message)))
            }
            ("POST", ["redeliver"]) => Ok(SimulatorResponse::pretty_json(
                200,
                &json!({ "messages": google.redeliver_unacknowledged() }),
            )),
            ("POST", ["keys", "rotate"]) => {
                let how: KeyRotation = self.parse_body()?;
                google.rotate_keys(how.drop_old);
                Ok(done_response())
            }
            _ => self.unknown_operation(),
        }
    }

    fn handle_general(&self, below: &[&str]) -> ControlResult {
        match (self.request.method.as_str(), below) {
            ("GET", ["faults"]) => {
                let faults = json!(self.context.lock_state().faults.as_slice());
                Ok(SimulatorResponse::pretty_json(
                    200,
                    &json!({ "faults": faults }),
                ))
            }
            ("POST", ["faults"]) => {
                let fault: Fault = self.parse_body()?;
                self.context.lock_state().faults.add(fault.clone())?;
                Ok(SimulatorResponse::pretty_json(201, &json!(fault)))
            }
            ("DELETE", ["faults"]) => {
                self.context.lock_state().faults.clear();
                Ok(done_response())
            }
            ("GET", ["requests"]) => Ok(SimulatorResponse::pretty_json(
                200,
                &json!({ "requests": self.context.recorded_requests() }),
            )),
            ("DELETE", ["requests"]) => {
                self.context.clear_requests();
                Ok(done_response())
            }
            ("POST", ["reset"]) => {
                self.context.update_and_save(|state, _, _| {
                    *state = StoreState::default();
                    Ok(())
                })?;
                let mut inside = self.context.lock_state();
                inside.faults.clear();
                inside.published_messages.clear();
                inside.notification_log.clear();
                inside.google_signing_keys.clear();
                Ok(done_response())
            }
            _ => self.unknown_operation(),
        }
    }

    fn unknown_operation(&self) -> ControlResult {
        Err(SimulatorError::not_found(format!(
            "The control API has no {} {}. GET /control lists what it has.",
            self.request.method, self.request.path
        )))
    }

    fn transaction_summary(&self, transaction: &SimulatedTransaction) -> Value {
        let mut view = json!({
            "transactionId": transaction.transaction_id,
            "originalTransactionId": transaction.original_transaction_id,
            "bundleId": transaction.bundle_id,
            "productId": transaction.product_id,
            "type": transaction.kind.payload_name(),
            "environment": transaction.environment,
            "purchaseDate": transaction.purchase_date,
            "expiresDate": transaction.expires_date,
            "revoked": transaction.revocation.is_some(),
            "upgraded": transaction.is_upgraded,
        });
        if let Some(status) = self.apple.subscription_status(transaction) {
            let word = match status {
                1 => "active",
                2 => "expired",
                3 => "billing retry",
                4 => "grace period",
                _ => "revoked",
            };
            view["subscription"] = json!(word);
        }
        if let Some(renewal) = self.apple.find_renewal(transaction) {
            view["renewal"] = json!(renewal);
        }
        view
    }

    fn transaction_view(
        &self,
        transaction: &SimulatedTransaction,
    ) -> Result<Value, SimulatorError> {
        let payload = self
            .apple
            .transaction_payload(&transaction.transaction_id)?;
        let mut view = self.transaction_summary(transaction);
        view["payload"] = Value::Object(payload);
        Ok(view)
    }

    fn subscription_summary(&self, subscription: &SimulatedSubscription) -> Value {
        let products: Vec<&str> = subscription
            .items
            .iter()
            .map(|item| item.product_id.as_str())
            .collect();
        json!({
            "purchaseToken": subscription.purchase_token,
            "packageName": subscription.package_name,
            "productIds": products,
            "state": subscription.state_name(self.context.now()),
            "startTime": subscription.start_time,
            "expiryTime": subscription.latest_expiry_time(),
            "acknowledged": subscription.acknowledged,
            "linkedPurchaseToken": subscription.linked_purchase_token,
            "orderId": subscription.latest_order_id(),
        })
    }

    fn subscription_view(&self, subscription: &SimulatedSubscription) -> Value {
        let mut view = self.subscription_summary(subscription);
        view["answer"] = subscription.to_api_response(self.context.now());
        view
    }

    fn settings_response(&self) -> SimulatorResponse {
        let mut text = String::new();
        // Writing to a `String` cannot fail.
        for (name, value) in environment_variables(&self.request.base_url()) {
            let _ = writeln!(text, "{name}={value}");
        }
        SimulatorResponse::with_content_type(200, "text/plain; charset=utf-8", text)
    }

    /// Everything there is, as lines to paste into a shell; with ids that exist, where there are any.
    fn catalogue_response(&self) -> SimulatorResponse {
        let base = self.request.base_url();
        let ids = self.example_ids();
        if self.request.wants_json {
            let all: Vec<Value> = OPERATIONS
                .iter()
                .flat_map(|(heading, operations)| {
                    let (base, ids) = (&base, &ids);
                    operations.iter().map(move |operation| {
                        json!({
                            "about": heading,
                            "method": operation.method,
                            "path": operation.path,
                            "does": operation.description,
                            "curl": operation.curl_command(base, ids),
                        })
                    })
                })
                .collect();
            return SimulatorResponse::pretty_json(200, &json!({ "operations": all }));
        }
        let mut text = String::from(
            "The simulated stores: an App Store and a Play that sign for real and know only what you tell them.\n",
        );
        // Writing to a `String` cannot fail.
        for (heading, operations) in OPERATIONS {
            let _ = write!(text, "\n{heading}\n");
            for operation in *operations {
                let _ = write!(
                    text,
                    "\n  # {}\n  {}\n",
                    operation.description,
                    operation.curl_command(&base, &ids)
                );
            }
        }
        SimulatorResponse::with_content_type(200, "text/plain; charset=utf-8", text)
    }

    fn example_ids(&self) -> [(&'static str, String); 7] {
        let or = |found: Option<String>, else_: &str| found.unwrap_or_else(|| else_.to_owned());
        let transaction = self.apple.list_transactions().pop();
        let subscription = self.google.list_subscriptions().pop();
        let product = self.google.list_products().pop();
        [
            (
                "{id}",
                or(transaction.map(|one| one.transaction_id), "<transactionId>"),
            ),
            (
                "{subscription}",
                or(
                    subscription.map(|one| one.purchase_token),
                    "<purchaseToken>",
                ),
            ),
            (
                "{product}",
                or(product.map(|one| one.purchase_token), "<purchaseToken>"),
            ),
            ("{bundle}", "com.example.app".to_owned()),
            ("{package}", "com.example.app".to_owned()),
            ("{key}", self.apple.api_key().key_id),
            (
                "{email}",
                self.context.identity.service_account().client_email.clone(),
            ),
        ]
    }
}

impl ControlOperation {
    fn curl_command(&self, base: &str, ids: &[(&str, String)]) -> String {
        let (mut path, mut body) = (self.path.to_owned(), self.example_body.to_owned());
        for (name, id) in ids {
            path = path.replace(name, id);
            body = body.replace(name, id);
        }
        let method = match (self.method, body) {
            ("GET", _) => String::new(),
            ("POST", body) if !body.is_empty() => format!(" -d '{body}'"),
            (method, _) => format!(" -X {method}"),
        };
        format!("curl -s{method} '{base}{path}'")
    }
}

fn apple_key_view(key: &crate::simulator::identity::SimulatedAppleKey) -> Value {
    json!({
        "issuerId": key.issuer_id,
        "keyId": key.key_id,
        "privateKey": key.private_key,
    })
}

fn product_summary(product: &SimulatedProductPurchase) -> Value {
    json!({
        "purchaseToken": product.purchase_token,
        "packageName": product.package_name,
        "productId": product.product_id,
        "state": match product.purchase_state {
            0 => "purchased",
            1 => "cancelled",
            _ => "pending",
        },
        "consumed": product.consumed,
        "acknowledged": product.acknowledged,
        "purchaseTime": product.purchase_time,
        "orderId": product.order_id(),
    })
}

fn product_view(product: &SimulatedProductPurchase) -> Value {
    let mut view = product_summary(product);
    view["answer"] = product.to_api_response();
    view
}

fn purchase_not_found(token: &str) -> SimulatorError {
    let head: String = token.chars().take(40).collect();
    SimulatorError::not_found(format!(
        "No purchase with the token {head}… is known here; GET the list without it."
    ))
}

fn done_response() -> SimulatorResponse {
    SimulatorResponse::pretty_json(200, &json!({ "done": true }))
}
