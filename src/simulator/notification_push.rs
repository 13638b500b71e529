//! App Store Server Notifications: signs the notification of a change and posts it to the app's address.
//!
//! A notification is posted once, when the change happens. One that is not accepted is posted again only on request:
//! the real App Store repeats by itself, over days, which a test that counts attempts could not use. Where an app has
//! no address, there is no notification, as with the real one.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::context::SimulatorContext;
use super::pki::JwsForgery;
use super::pubsub::PushResponse;
use super::state::SimulatorError;
use super::state::apple::{SimulatedEnvironment, SimulatedTransaction};
use super::state::apple_notifications::{
    self as notifications, NewNotification, SimulatedNotification, SimulatedSendAttempt,
};
use super::state::json::{object, override_fields};

const PUSH_TIMEOUT: Duration = Duration::from_secs(10);

/// Creates a notification of an app, and posts it unless the app's notifications are manual. `None` where the app has
/// no address for it.
pub(super) fn publish_notification(
    context: &Arc<SimulatorContext>,
    bundle_id: &str,
    new: &NewNotification,
    test_token: Option<String>,
) -> Result<Option<SimulatedNotification>, SimulatorError> {
    let transaction = match &new.transaction_id {
        Some(id) => Some(find_transaction(context, bundle_id, id)?),
        None => None,
    };
    let of = transaction.as_ref().map(|one| one.environment);
    let environment = new.environment.or(of).unwrap_or_default();
    let (app, urls) = {
        let state = context.lock_state();
        let apple = &state.stores.apple;
        (apple.get_app(bundle_id), apple.push.get(bundle_id).cloned())
    };
    let Some(urls) = urls.filter(|urls| urls.url_for(environment).is_some()) else {
        return Ok(None);
    };
    let now = context.now();
    let authority = context.identity.certificate_authority();
    let block_name = new.block_name();
    let mut block = object(notifications::build_block(
        &app,
        environment,
        block_name,
        now,
    ));
    if let Some(transaction) = &transaction {
        block.extend(signed_purchase_fields(context, transaction));
    }
    if block_name == "appData" {
        let app_transaction = notifications::app_transaction_payload(&app, environment, now);
        let signed = authority.sign_jws(&object(app_transaction));
        block.insert("signedAppTransactionInfo".to_owned(), json!(signed));
    }
    override_fields(&mut block, &new.block);
    let uuid = notifications::seeded_uuid(&mut context.lock_state().random);
    let mut payload = object(json!({
        "notificationType": new.notification_type,
        "subtype": new.subtype,
        "notificationUUID": uuid,
        "version": "2.0",
        "signedDate": now.as_millis(),
        block_name: block,
    }));
    override_fields(&mut payload, &new.fields);
    let notification = SimulatedNotification {
        notification_uuid: uuid.clone(),
        bundle_id: bundle_id.to_owned(),
        environment,
        notification_type: new.notification_type.clone(),
        subtype: new.subtype.clone(),
        original_transaction_id: transaction.map(|one| one.original_transaction_id),
        signed_date: now,
        signed_payload: authority.sign_jws(&payload),
        send_attempts: Vec::new(),
        test_token,
        payload,
    };
    context
        .lock_state()
        .notification_log
        .add(notification.clone());
    if !urls.manual {
        spawn_push(context, &uuid);
    }
    Ok(Some(notification))
}

fn find_transaction(
    context: &SimulatorContext,
    bundle_id: &str,
    id: &str,
) -> Result<SimulatedTransaction, SimulatorError> {
    let found = context
        .lock_state()
        .stores
        .apple
        .find_transaction(id)
        .cloned();
    found
        .filter(|one| one.bundle_id == bundle_id)
        .ok_or_else(|| {
            SimulatorError::not_found(format!("No transaction {id} of {bundle_id} is known here."))
        })
}

/// The fields of a notification's block that concern a purchase.
fn signed_purchase_fields(
    context: &SimulatorContext,
    transaction: &SimulatedTransaction,
) -> Map<String, Value> {
    let now = context.now();
    let original = &transaction.original_transaction_id;
    let (renewal, status) = {
        let state = context.lock_state();
        let apple = &state.stores.apple;
        (
            apple.renewal_payload(original, now),
            apple.subscription_status(original, now),
        )
    };
    let authority = context.identity.certificate_authority();
    object(json!({
        "signedTransactionInfo": authority.sign_jws(&transaction.to_payload(now)),
        "signedRenewalInfo": renewal.map(|renewal| authority.sign_jws(&renewal)),
        "status": status,
    }))
}

/// Posts a notification without waiting for the answer.
pub(super) fn spawn_push(context: &Arc<SimulatorContext>, uuid: &str) {
    // Without a runtime, as in a test of the state alone, it waits for a redelivery.
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        let (context, uuid) = (context.clone(), uuid.to_owned());
        runtime.spawn(async move { push_notification(&context, &uuid, None).await });
    }
}

/// Posts a notification once; a forgery is not recorded as an attempt. `None` when the notification or an address for
/// it does not exist.
pub(super) async fn push_notification(
    context: &SimulatorContext,
    uuid: &str,
    forgery: Option<JwsForgery>,
) -> Option<PushResponse> {
    let (url, signed_payload) = {
        let state = context.lock_state();
        let log = &state.notification_log;
        let one = log.find(|one| one.notification_uuid == uuid)?;
        let urls = state.stores.apple.push.get(&one.bundle_id)?;
        let signed = match forgery {
            None => one.signed_payload.clone(),
            Some(forgery) => context
                .identity
                .certificate_authority()
                .forge_jws(forgery, &one.payload),
        };
        (urls.url_for(one.environment)?.to_owned(), signed)
    };
    let _permit = context.push_permits.acquire().await.ok()?;
    let attempt_date = context.now();
    let sent = context
        .push_client()?
        .post(url)
        .timeout(PUSH_TIMEOUT)
        .header("content-type", "application/json; charset=utf-8")
        .header("user-agent", "App Store Server Notifications")
        .body(json!({ "signedPayload": signed_payload }).to_string())
        .send()
        .await;
    let (send_attempt_result, pushed) = match sent {
        Ok(answer) => {
            let status = answer.status().as_u16();
            let result = match status {
                200..=206 => "SUCCESS",
                _ => "UNSUCCESSFUL_HTTP_RESPONSE_CODE",
            };
            let body = answer.json().await.unwrap_or_default();
            (result, PushResponse { status, body })
        }
        Err(error) => {
            let result = if error.is_timeout() {
                "TIMED_OUT"
            } else if error.is_connect() {
                "SOCKET_ISSUE"
            } else {
                "OTHER"
            };
            let nothing = PushResponse {
                status: 0,
                body: Value::Null,
            };
            (result, nothing)
        }
    };
    if forgery.is_none() {
        let attempt = SimulatedSendAttempt {
            attempt_date,
            send_attempt_result,
            status: pushed.status,
        };
        let log = &mut context.lock_state().notification_log;
        if let Some(one) = log.find_mut(|one| one.notification_uuid == uuid) {
            one.send_attempts.push(attempt);
        }
    }
    Some(pushed)
}

/// Creates a test notification, and returns the token of its status. `None` where the app has no address.
pub(super) fn publish_test_notification(
    context: &Arc<SimulatorContext>,
    bundle_id: &str,
    environment: SimulatedEnvironment,
) -> Option<String> {
    let uuid = notifications::seeded_uuid(&mut context.lock_state().random);
    let token = format!("{uuid}_{}", context.now().as_millis());
    let new = NewNotification {
        environment: Some(environment),
        ..NewNotification::new("TEST", None)
    };
    let made = publish_notification(context, bundle_id, &new, Some(token.clone()));
    made.ok().flatten().map(|_| token)
}
