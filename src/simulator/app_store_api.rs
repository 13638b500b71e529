//! The App Store Server API.
//!
//! | call | answer |
//! |---|---|
//! | a wrong client token | 401 without a body, as from Apple; the reason is in the request log |
//! | production, for an app that was never released | the same |
//! | `GET …/inApps/v1/transactions/{id}` | `{signedTransactionInfo}`; 400 `4000006` for a malformed id; 400 `4000048` for an app transaction's id; 404 `4040010` when unknown, of the other environment or of another app |
//! | `GET …/inApps/v1/transactions/appTransactions/{id}` | `{signedAppTransactionInfo}`, by the id of a transaction or of the app transaction; 400 `4000006` and 404 `4040010` as above |
//! | `GET …/inApps/v1/subscriptions/{id}` | `{environment, bundleId, appAppleId, data}`, the latest transaction and renewal information |
//! | `GET …/inApps/v1/lookup/{orderId}` | `{status, signedTransactions}`: 0 and the transaction, or 1 and none, as always in the sandbox; the order id of a transaction is `M` and its id |
//! | `GET …/inApps/v2/refund/lookup/{id}` | `{signedTransactions, revision, hasMore}`, the refunded transactions of the purchase, twenty on a page; 400 `4000006` and 404 `4040010` as above, 400 `4000005` for a malformed `revision` |
//! | `POST …/inApps/v1/transactions/{id}/finish` | 200 without a body; 400 `4000006`, `4000048` and 404 `4040010` as above |
//! | `PUT …/inApps/v1/transactions/{id}/appAccountToken` | the same; 400 `4000183` for a token that is no UUID, `4000185` for a family transaction, `4000187` for a later transaction |
//! | `PUT …/inApps/v2/transactions/consumption/{id}` | 202 without a body; 400 `4000006`, `4000048` and 404 `4040010` as above; 400 `4000035`, `4000036`, `4000041` or `4000000` for a wrong body |
//! | `POST …/inApps/v1/notifications/test` | `{testNotificationToken}`; 404 `4040007` for an app without an address |
//! | `GET …/inApps/v1/notifications/test/{token}` | `{signedPayload, sendAttempts}`; 404 `4040008` before the first attempt; 400 `4000020` for a malformed token |
//! | `POST …/inApps/v1/notifications/history` | `{notificationHistory, hasMore, paginationToken}`, twenty on a page; 400 `4000012` to `4000019` for a wrong query |

use std::sync::Arc;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use axum::http::header;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde::Deserialize;
use serde_json::{Value, json};

use super::context::SimulatorContext;
use super::notification_push;
use super::request::{SimulatorRequest, SimulatorResponse, parse_json_body};
use super::state::SimulatorError;
use super::state::apple::{SimulatedEnvironment, is_transaction_id};
use super::state::apple_notifications::{
    NotificationHistoryQuery, SimulatedNotification, app_transaction_payload,
};
use super::state::fault::Fault;
use super::state::json::object;
use crate::base::clock::Timestamp;

/// The required `aud`.
const TOKEN_AUDIENCE: &str = "appstoreconnect-v1";
const MAX_TOKEN_TTL_SECONDS: i64 = 60 * 60;
const MAX_CLOCK_SKEW_SECONDS: i64 = 60;
/// As Apple documents it.
const REFUND_PAGE_SIZE: usize = 20;

#[derive(Deserialize)]
struct AppStoreTokenHeader {
    alg: String,
    kid: Option<String>,
    typ: Option<String>,
}

#[derive(Deserialize)]
struct AppStoreTokenClaims {
    iss: Option<String>,
    bid: Option<String>,
    aud: Option<Value>,
    iat: Option<i64>,
    exp: Option<i64>,
}

/// Answers a call below `/apple/{environment}`.
pub(super) fn handle_request(
    context: &Arc<SimulatorContext>,
    environment: SimulatedEnvironment,
    request: &SimulatorRequest,
) -> SimulatorResponse {
    let below = request.segments_below_store();
    let id = match below.as_slice() {
        [
            "inApps",
            "v1",
            "transactions" | "subscriptions" | "lookup",
            id,
        ]
        | ["inApps", "v1", "transactions", "appTransactions", id]
        | ["inApps", "v2", "refund", "lookup", id]
        | ["inApps", "v2", "transactions", "consumption", id]
        | [
            "inApps",
            "v1",
            "transactions",
            id,
            "finish" | "appAccountToken",
        ] => Some(*id),
        _ => None,
    };
    let place = format!("apple/{}", environment.path_segment());
    let app = request
        .bearer_token
        .as_deref()
        .and_then(|token| decode_token(token).ok())
        .and_then(|(_, claims)| claims.bid);
    let fault = context.take_fault(&place, app.as_deref(), id, |stores, id| {
        stores.apple.sold_at(id)
    });
    let fault_response = fault
        .as_ref()
        .and_then(|fault| fault_response(fault, context.now()));
    let mut response =
        fault_response.unwrap_or_else(|| route_request(context, environment, request, &below));
    if let Some(fault) = &fault {
        response.apply_fault(fault);
    }
    response
}

/// The answer without a fault.
fn route_request(
    context: &Arc<SimulatorContext>,
    environment: SimulatedEnvironment,
    request: &SimulatorRequest,
    below: &[&str],
) -> SimulatorResponse {
    let bundle_id = match verify_client_token(context, request.bearer_token.as_deref()) {
        Ok(bundle_id) => bundle_id,
        Err(why) => return SimulatorResponse::empty(401).with_remark(why),
    };
    let app = context.lock_state().stores.apple.get_app(&bundle_id);
    if environment == SimulatedEnvironment::Production && !app.released {
        return SimulatorResponse::empty(401).with_remark(format!(
            "{bundle_id} was never released, and production answers 401 for such an app"
        ));
    }
    match (request.method.as_str(), below) {
        ("GET", ["inApps", "v1", "transactions", id]) => {
            get_transaction(context, environment, &bundle_id, id)
        }
        ("GET", ["inApps", "v1", "transactions", "appTransactions", id]) => {
            get_app_transaction(context, environment, &bundle_id, id)
        }
        ("GET", ["inApps", "v1", "subscriptions", id]) => {
            get_subscription_statuses(context, environment, &bundle_id, id, request)
        }
        ("GET", ["inApps", "v1", "lookup", order_id]) => {
            look_up_order(context, environment, &bundle_id, order_id)
        }
        ("GET", ["inApps", "v2", "refund", "lookup", id]) => {
            get_refund_history(context, environment, &bundle_id, id, request)
        }
        ("POST", ["inApps", "v1", "transactions", id, "finish"]) => {
            finish_transaction(context, environment, &bundle_id, id)
        }
        ("PUT", ["inApps", "v1", "transactions", id, "appAccountToken"]) => {
            set_app_account_token(context, environment, &bundle_id, id, request)
        }
        ("PUT", ["inApps", "v2", "transactions", "consumption", id]) => {
            take_consumption(context, environment, &bundle_id, id, request)
        }
        ("POST", ["inApps", "v1", "notifications", "test"]) => {
            match notification_push::publish_test_notification(context, &bundle_id, environment) {
                Some(token) => {
                    SimulatorResponse::json(200, &json!({ "testNotificationToken": token }))
                }
                None => error_response(4_040_007, error_message(4_040_007)),
            }
        }
        ("GET", ["inApps", "v1", "notifications", "test", token]) => {
            get_test_notification_status(context, environment, &bundle_id, token)
        }
        ("POST", ["inApps", "v1", "notifications", "history"]) => {
            get_notification_history(context, environment, &bundle_id, request)
        }
        _ => SimulatorResponse::not_simulated(),
    }
}

fn get_transaction(
    context: &SimulatorContext,
    environment: SimulatedEnvironment,
    bundle_id: &str,
    id: &str,
) -> SimulatorResponse {
    if !is_transaction_id(id) {
        return error_response(4_000_006, "Invalid transaction id.");
    }
    let found = {
        let state = context.lock_state();
        let apple = &state.stores.apple;
        if apple.is_app_transaction(id) {
            return error_response(
                4_000_048,
                "Invalid request. App transaction ids are not supported by this endpoint.",
            );
        }
        apple
            .find_transaction(id)
            .filter(|one| one.environment == environment && one.bundle_id == bundle_id)
            .map(|one| one.to_payload(context.now()))
    };
    match found {
        Some(payload) => {
            let signed = context.identity.certificate_authority().sign_jws(&payload);
            SimulatorResponse::json(200, &json!({ "signedTransactionInfo": signed }))
        }
        None => error_response(4_040_010, "Transaction id not found."),
    }
}

fn get_app_transaction(
    context: &SimulatorContext,
    environment: SimulatedEnvironment,
    bundle_id: &str,
    id: &str,
) -> SimulatorResponse {
    if !is_transaction_id(id) {
        return error_response(4_000_006, error_message(4_000_006));
    }
    let payload = {
        let state = context.lock_state();
        let apple = &state.stores.apple;
        let found = apple
            .find_any_transaction(id)
            .filter(|one| one.environment == environment && one.bundle_id == bundle_id);
        found.map(|one| {
            let app = apple.get_app(bundle_id);
            let mut payload = app_transaction_payload(&app, environment, context.now());
            payload["appTransactionId"] = json!(one.app_transaction_id());
            object(payload)
        })
    };
    match payload {
        Some(payload) => {
            let signed = context.identity.certificate_authority().sign_jws(&payload);
            SimulatorResponse::json(200, &json!({ "signedAppTransactionInfo": signed }))
        }
        None => error_response(4_040_010, error_message(4_040_010)),
    }
}

fn get_subscription_statuses(
    context: &SimulatorContext,
    environment: SimulatedEnvironment,
    bundle_id: &str,
    id: &str,
    request: &SimulatorRequest,
) -> SimulatorResponse {
    if !is_transaction_id(id) {
        return error_response(4_000_006, "Invalid transaction id.");
    }
    let now = context.now();
    let wanted: Vec<&str> = request
        .query
        .iter()
        .filter(|(name, _)| name == "status")
        .map(|(_, value)| value.as_str())
        .collect();
    let state = context.lock_state();
    let apple = &state.stores.apple;
    let Some(named) = apple
        .find_transaction(id)
        .filter(|one| one.environment == environment && one.bundle_id == bundle_id)
    else {
        return error_response(4_040_010, "Transaction id not found.");
    };
    let original = &named.original_transaction_id;
    let status = apple
        .subscription_status(original, now)
        .filter(|status| wanted.is_empty() || wanted.contains(&status.to_string().as_str()));
    let authority = context.identity.certificate_authority();
    let mut data = Vec::new();
    if let (Some(status), Some(latest), Some(renewal)) = (
        status,
        apple.latest_transaction(original),
        apple.renewal_payload(original, now),
    ) {
        data.push(json!({
            "subscriptionGroupIdentifier": "20900001",
            "lastTransactions": [{
                "originalTransactionId": original,
                "status": status,
                "signedTransactionInfo": authority.sign_jws(&latest.to_payload(now)),
                "signedRenewalInfo": authority.sign_jws(&renewal),
            }],
        }));
    }
    let mut body = json!({
        "environment": environment.payload_name(),
        "bundleId": bundle_id,
        "data": data,
    });
    if environment == SimulatedEnvironment::Production {
        body["appAppleId"] = json!(apple.get_app(bundle_id).app_apple_id);
    }
    SimulatorResponse::json(200, &body)
}

fn look_up_order(
    context: &SimulatorContext,
    environment: SimulatedEnvironment,
    bundle_id: &str,
    order_id: &str,
) -> SimulatorResponse {
    let found = {
        let state = context.lock_state();
        let found = state
            .stores
            .apple
            .find_order(order_id)
            .filter(|one| one.bundle_id == bundle_id);
        // Apple has no orders of the sandbox.
        found
            .filter(|one| one.environment == environment)
            .filter(|one| one.environment == SimulatedEnvironment::Production)
            .map(|one| one.to_payload(context.now()))
    };
    let authority = context.identity.certificate_authority();
    let signed: Vec<String> = found.iter().map(|one| authority.sign_jws(one)).collect();
    SimulatorResponse::json(
        200,
        &json!({ "status": u8::from(signed.is_empty()), "signedTransactions": signed }),
    )
}

fn get_refund_history(
    context: &SimulatorContext,
    environment: SimulatedEnvironment,
    bundle_id: &str,
    id: &str,
    request: &SimulatorRequest,
) -> SimulatorResponse {
    if !is_transaction_id(id) {
        return error_response(4_000_006, "Invalid transaction id.");
    }
    let skip = match request.query_parameter("revision") {
        None => 0,
        Some(revision) => match revision.strip_prefix("refunds-").map(str::parse) {
            Some(Ok(skip)) => skip,
            _ => return error_response(4_000_005, "Invalid request revision."),
        },
    };
    let now = context.now();
    let refunded: Vec<_> = {
        let state = context.lock_state();
        let apple = &state.stores.apple;
        let named = apple
            .find_transaction(id)
            .filter(|one| one.environment == environment && one.bundle_id == bundle_id);
        let Some(named) = named else {
            return error_response(4_040_010, "Transaction id not found.");
        };
        apple
            .refunded_transactions(&named.original_transaction_id)
            .map(|one| one.to_payload(now))
            .collect()
    };
    let authority = context.identity.certificate_authority();
    let page = refunded.iter().skip(skip).take(REFUND_PAGE_SIZE);
    let signed: Vec<String> = page.map(|one| authority.sign_jws(one)).collect();
    let end = skip + signed.len();
    SimulatorResponse::json(
        200,
        &json!({
            "signedTransactions": signed,
            "revision": format!("refunds-{end}"),
            "hasMore": end < refunded.len(),
        }),
    )
}

fn take_consumption(
    context: &SimulatorContext,
    environment: SimulatedEnvironment,
    bundle_id: &str,
    id: &str,
    request: &SimulatorRequest,
) -> SimulatorResponse {
    if let Err(refusal) = check_transaction_id(context, environment, bundle_id, id) {
        return refusal;
    }
    let information: Value = match parse_json_body(&request.body) {
        Ok(information) => information,
        Err(why) => return error_response(4_000_000, error_message(4_000_000)).with_remark(why),
    };
    let taken = context
        .update_and_save(|state, now, _| Ok(state.apple.take_consumption(id, information, now)));
    change_response(taken, 202)
}

fn finish_transaction(
    context: &SimulatorContext,
    environment: SimulatedEnvironment,
    bundle_id: &str,
    id: &str,
) -> SimulatorResponse {
    if let Err(refusal) = check_transaction_id(context, environment, bundle_id, id) {
        return refusal;
    }
    change_response(
        context.update_and_save(|state, _, _| {
            state.apple.finish_transaction(id);
            Ok(Ok(()))
        }),
        200,
    )
}

fn set_app_account_token(
    context: &SimulatorContext,
    environment: SimulatedEnvironment,
    bundle_id: &str,
    id: &str,
    request: &SimulatorRequest,
) -> SimulatorResponse {
    if let Err(refusal) = check_transaction_id(context, environment, bundle_id, id) {
        return refusal;
    }
    let body: Value = match parse_json_body(&request.body) {
        Ok(body) => body,
        Err(why) => return error_response(4_000_000, error_message(4_000_000)).with_remark(why),
    };
    let token = body["appAccountToken"].as_str().unwrap_or_default();
    let changed =
        context.update_and_save(|state, _, _| Ok(state.apple.set_app_account_token(id, token)));
    change_response(changed, 200)
}

/// The answer to a change: `status` without a body, or Apple's error code.
fn change_response(
    changed: Result<Result<(), u32>, SimulatorError>,
    status: u16,
) -> SimulatorResponse {
    match changed {
        Ok(Ok(())) => SimulatorResponse::empty(status),
        Ok(Err(code)) => error_response(code, error_message(code)),
        Err(error) => {
            error_response(5_000_000, error_message(5_000_000)).with_remark(error.to_string())
        }
    }
}

/// Refuses an id that is not that of a transaction of this app and environment.
fn check_transaction_id(
    context: &SimulatorContext,
    environment: SimulatedEnvironment,
    bundle_id: &str,
    id: &str,
) -> Result<(), SimulatorResponse> {
    if !is_transaction_id(id) {
        return Err(error_response(4_000_006, error_message(4_000_006)));
    }
    let state = context.lock_state();
    let apple = &state.stores.apple;
    if apple.is_app_transaction(id) {
        return Err(error_response(4_000_048, error_message(4_000_048)));
    }
    apple
        .find_transaction(id)
        .filter(|one| one.environment == environment && one.bundle_id == bundle_id)
        .map(drop)
        .ok_or_else(|| error_response(4_040_010, error_message(4_040_010)))
}

fn get_test_notification_status(
    context: &SimulatorContext,
    environment: SimulatedEnvironment,
    bundle_id: &str,
    token: &str,
) -> SimulatorResponse {
    let looks_right = token
        .split_once('_')
        .is_some_and(|(uuid, digits)| uuid.len() == 36 && digits.parse::<i64>().is_ok());
    if !looks_right {
        return error_response(4_000_020, error_message(4_000_020));
    }
    let state = context.lock_state();
    let found = state.notification_log.iter().find(|one| {
        one.test_token.as_deref() == Some(token)
            && one.bundle_id == bundle_id
            && one.environment == environment
            && !one.send_attempts.is_empty()
    });
    match found {
        Some(found) => SimulatorResponse::json(200, &notification_history_item(found)),
        None => error_response(4_040_008, error_message(4_040_008)),
    }
}

fn get_notification_history(
    context: &SimulatorContext,
    environment: SimulatedEnvironment,
    bundle_id: &str,
    request: &SimulatorRequest,
) -> SimulatorResponse {
    let query: NotificationHistoryQuery = match parse_json_body(&request.body) {
        Ok(query) => query,
        Err(why) => return error_response(4_000_000, error_message(4_000_000)).with_remark(why),
    };
    let token = request.query_parameter("paginationToken");
    let state = context.lock_state();
    let page =
        state
            .notification_log
            .query_history(bundle_id, environment, &query, token, context.now());
    match page {
        Ok(page) => {
            let history: Vec<Value> = page
                .notifications
                .into_iter()
                .map(notification_history_item)
                .collect();
            let mut body = json!({
                "hasMore": page.next_page_token.is_some(),
                "notificationHistory": history,
            });
            if let Some(next) = page.next_page_token {
                body["paginationToken"] = json!(next);
            }
            SimulatorResponse::json(200, &body)
        }
        Err(code) => error_response(code, error_message(code)),
    }
}

/// A notification as the history and the status of a test contain it.
fn notification_history_item(notification: &SimulatedNotification) -> Value {
    json!({
        "signedPayload": notification.signed_payload,
        "sendAttempts": notification.send_attempts,
    })
}

/// Apple's error body; the first three digits of the code are the HTTP status.
fn error_response(code: u32, message: &str) -> SimulatorResponse {
    let status = u16::try_from(code / 10_000).unwrap_or(500);
    SimulatorResponse::json(
        status,
        &json!({ "errorCode": code, "errorMessage": message }),
    )
}

/// The answer of a fault. `None` for a fault that only delays or cuts the correct answer.
fn fault_response(fault: &Fault, now: Timestamp) -> Option<SimulatorResponse> {
    let response = match (fault.cut, fault.error_code, fault.status) {
        (true, ..) => return None,
        (_, Some(code), _) => error_response(code, error_message(code)),
        (_, None, Some(401)) if fault.body.is_none() => SimulatorResponse::empty(401),
        (_, None, Some(429)) if fault.body.is_none() => {
            error_response(4_290_000, error_message(4_290_000))
        }
        (_, None, None) if fault.body.is_none() => return None,
        (_, None, status) => SimulatorResponse::from_fault(fault, status),
    };
    let wait = match (&fault.retry_after, fault.retry_after_seconds) {
        (Some(text), _) => Some(text.clone()),
        // Apple gives the point in time, in milliseconds.
        (None, Some(seconds)) => {
            let moment = now.plus(std::time::Duration::from_secs(seconds));
            Some(moment.as_millis().to_string())
        }
        (None, None) => None,
    };
    Some(match wait {
        Some(wait) => response.with_header(header::RETRY_AFTER, wait),
        None => response,
    })
}

fn error_message(code: u32) -> &'static str {
    match code {
        4_000_000 => "Bad request.",
        4_000_002 => "Invalid app identifier.",
        4_000_006 => "Invalid transaction id.",
        4_000_008 => "Invalid original transaction id.",
        4_000_012 => "Invalid request. The start date is earlier than the earliest allowed date.",
        4_000_013 => {
            "Invalid request. The end date precedes the start date or the dates are the same."
        }
        4_000_014 => {
            "Invalid request. The pagination token is empty or doesn't correspond to a page."
        }
        4_000_015 => "Invalid request. The start date is missing or invalid.",
        4_000_016 => "Invalid request. The end date is missing or invalid.",
        4_000_018 => "Invalid request. The notification type or subtype is invalid.",
        4_000_019 => {
            "Invalid request. Supply either a transaction id or a notification type, but not both."
        }
        4_000_020 => "Invalid request. The test notification token is invalid.",
        4_000_035 => "Invalid request. The customer consented field is invalid.",
        4_000_036 => "Invalid request. The delivery status field is invalid.",
        4_000_041 => "Invalid request. The sample content provided field is invalid.",
        4_000_043 => {
            "Invalid request. The transaction id doesn't represent a consumable in-app purchase."
        }
        4_000_047 => {
            "Invalid request. The transaction id doesn't represent a supported in-app purchase type."
        }
        4_000_048 => "Invalid request. App transaction ids are not supported by this endpoint.",
        4_000_183 => "Invalid request. The app account token is not a UUID.",
        4_000_185 => "Invalid request. The transaction is a family transaction.",
        4_000_187 => "Invalid request. The transaction id is not an original transaction id.",
        4_040_001 => "Account not found.",
        4_040_002 => "Account not found. Please try again.",
        4_040_003 => "App not found.",
        4_040_004 => "App not found. Please try again.",
        4_040_005 => "Original transaction id not found.",
        4_040_006 => "Original transaction id not found. Please try again.",
        4_040_007 => {
            "No App Store Server Notification URL found for provided app. Check that a URL is configured in App Store Connect for this environment."
        }
        4_040_008 => {
            "Either the test notification token is expired or the notification and status are not yet available."
        }
        4_040_010 => "Transaction id not found.",
        4_040_019 => "No app transaction exists for the customer.",
        4_290_000 => "Rate limit exceeded.",
        5_000_000 => "An unknown error occurred.",
        5_000_001 => "An unknown error occurred. Please try again.",
        _ => "Simulated error.",
    }
}

/// Checks a client's token as Apple does, and returns its app's bundle id. `Err` is the reason, which Apple does not
/// give, for the request log.
fn verify_client_token(context: &SimulatorContext, token: Option<&str>) -> Result<String, String> {
    let token = token.ok_or("there is no bearer token")?;
    let (header, claims) = decode_token(token)?;
    if header.alg != "ES256" {
        return Err(format!("the token's alg is {}, not ES256", header.alg));
    }
    if header.typ.is_some_and(|typ| typ != "JWT") {
        return Err("the token's typ is not JWT".to_owned());
    }
    let key_id = header.kid.ok_or("the token has no kid")?;
    let key = find_public_key(context, &key_id)?;
    let issuer = &context.identity.apple_key().issuer_id;
    if claims.iss.as_ref() != Some(issuer) {
        return Err(format!("the token's iss is not the team's, {issuer}"));
    }
    if claims.aud != Some(json!(TOKEN_AUDIENCE)) {
        return Err(format!("the token's aud is not {TOKEN_AUDIENCE}"));
    }
    let now = context.now().as_secs();
    let expires = claims.exp.ok_or("the token has no exp")?;
    if expires <= now {
        return Err("the token has expired".to_owned());
    }
    if claims
        .iat
        .is_some_and(|issued| issued > now + MAX_CLOCK_SKEW_SECONDS)
    {
        return Err("the token's iat lies in the future".to_owned());
    }
    if expires - claims.iat.unwrap_or(now) > MAX_TOKEN_TTL_SECONDS + MAX_CLOCK_SKEW_SECONDS {
        return Err("the token lives longer than 60 minutes".to_owned());
    }
    let (input, signature) = token.rsplit_once('.').unwrap_or_default();
    let signature = URL_SAFE_NO_PAD
        .decode(signature)
        .map_err(|_| "the token's signature is not base64url")?;
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, key)
        .verify(input.as_bytes(), &signature)
        .map_err(|_| "the token's signature is not by the key of its kid")?;
    claims
        .bid
        .filter(|bundle_id| !bundle_id.is_empty())
        .ok_or_else(|| "the token has no bid".to_owned())
}

fn find_public_key(context: &SimulatorContext, key_id: &str) -> Result<Vec<u8>, String> {
    let own = context.identity.apple_key();
    let state = context.lock_state();
    let other = state.stores.apple.keys.get(key_id);
    if other.is_some_and(|key| key.revoked) {
        return Err(format!("the key {key_id} was revoked"));
    }
    let text = match other.and_then(|key| key.public_key.as_ref()) {
        Some(text) => text,
        None if own.key_id == key_id => &own.public_key,
        None => return Err(format!("{key_id} is not the id of one of the team's keys")),
    };
    STANDARD
        .decode(text)
        .map_err(|_| "the stored key cannot be read".to_owned())
}

/// A token's header and claims; nothing is checked.
fn decode_token(token: &str) -> Result<(AppStoreTokenHeader, AppStoreTokenClaims), String> {
    let parts: Vec<&str> = token.split('.').collect();
    let [header, claims, _] = parts.as_slice() else {
        return Err("the token does not have three parts".to_owned());
    };
    Ok((
        decode_token_part(header, "header")?,
        decode_token_part(claims, "payload")?,
    ))
}

fn decode_token_part<T: serde::de::DeserializeOwned>(text: &str, name: &str) -> Result<T, String> {
    URL_SAFE_NO_PAD
        .decode(text)
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok())
        .ok_or_else(|| format!("the token's {name} cannot be read"))
}
