//! App Store Server Notifications, played: signs what happens to purchases and posts it to the app's address.
//!
//! A notification is posted once when something happens. What is not taken waits until somebody asks for another
//! attempt: the real App Store repeats by itself, in production and over days, which a test that counts would not like.
//! Where an app has no address, there is no notification, as in the real one.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::context::{SimulatorContext, SimulatorState};
use super::pki::JwsForgery;
use super::pubsub::PushResponse;
use super::state::SimulatorError;
use super::state::apple::{SimulatedEnvironment, SimulatedTransaction};
use super::state::apple_notifications::{
    self as notices, NewNotification, SimulatedNotification, SimulatedSendAttempt,
};

/// How long an attempt may take.
const PUSH_TIMEOUT: Duration = Duration::from_secs(10);

/// Makes a notification of an app, and posts it unless that is to wait. `None` where the app has no address for it.
pub(super) fn publish_notification(
    shared: &Arc<SimulatorContext>,
    bundle_id: &str,
    new: &NewNotification,
    test_token: Option<String>,
) -> Result<Option<SimulatedNotification>, SimulatorError> {
    let transaction = match &new.transaction_id {
        Some(id) => Some(find_transaction(shared, bundle_id, id)?),
        None => None,
    };
    let of = transaction.as_ref().map(|one| one.environment);
    let environment = new.environment.or(of).unwrap_or_default();
    let (app, urls) = {
        let inside = shared.lock_state();
        let books = &inside.stores.apple;
        (books.get_app(bundle_id), books.push.get(bundle_id).cloned())
    };
    let Some(urls) = urls.filter(|urls| urls.url_for(environment).is_some()) else {
        return Ok(None);
    };
    let now = shared.now();
    let name = new.block_name();
    let mut block = into_object(notices::build_block(&app, environment, name, now));
    let authority = shared.identity.certificate_authority();
    if let Some(transaction) = &transaction {
        insert_signed_purchase(shared, transaction, &mut block);
    }
    if name == "appData" {
        let signed = authority.sign_jws(&into_object(notices::app_transaction_payload(
            &app,
            environment,
            now,
        )));
        block.insert("signedAppTransactionInfo".to_owned(), json!(signed));
    }
    notices::override_fields(&mut block, &new.block);
    let uuid = {
        let mut inside = shared.lock_state();
        notices::seeded_uuid(&mut inside.random)
    };
    let mut payload = into_object(json!({ "notificationType": new.notification_type }));
    if let Some(subtype) = &new.subtype {
        payload.insert("subtype".to_owned(), json!(subtype));
    }
    payload.extend(into_object(json!({
        "notificationUUID": uuid,
        "version": "2.0",
        "signedDate": now.as_millis(),
    })));
    payload.insert(name.to_owned(), Value::Object(block));
    notices::override_fields(&mut payload, &new.fields);
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
    shared
        .lock_state()
        .notification_log
        .add(notification.clone());
    if !urls.manual {
        spawn_push(shared, &uuid);
    }
    Ok(Some(notification))
}

fn find_transaction(
    shared: &SimulatorContext,
    bundle_id: &str,
    id: &str,
) -> Result<SimulatedTransaction, SimulatorError> {
    let found = shared
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

/// What is signed of a purchase inside of a notification.
fn insert_signed_purchase(
    shared: &SimulatorContext,
    transaction: &SimulatedTransaction,
    block: &mut Map<String, Value>,
) {
    let now = shared.now();
    let original = &transaction.original_transaction_id;
    let (renewal, status) = {
        let inside = shared.lock_state();
        let SimulatorState { stores: state, .. } = &*inside;
        (
            state.apple.renewal_payload(original, now),
            state.apple.subscription_status(original, now),
        )
    };
    let authority = shared.identity.certificate_authority();
    let signed = authority.sign_jws(&transaction.to_payload(now));
    block.insert("signedTransactionInfo".to_owned(), json!(signed));
    if let Some(renewal) = renewal {
        let signed = authority.sign_jws(&renewal);
        block.insert("signedRenewalInfo".to_owned(), json!(signed));
    }
    if let Some(status) = status {
        block.insert("status".to_owned(), json!(status));
    }
}

/// Posts a notification without waiting for the answer.
pub(super) fn spawn_push(shared: &Arc<SimulatorContext>, uuid: &str) {
    // Outside a runtime, which is nobody but a test of the books, it stays where it is.
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        let (shared, uuid) = (shared.clone(), uuid.to_owned());
        runtime.spawn(async move { push_notification(&shared, &uuid, None).await });
    }
}

/// Posts a notification once. `None` when it, or an address for it, does not exist.
pub(super) async fn push_notification(
    shared: &SimulatorContext,
    uuid: &str,
    forgery: Option<JwsForgery>,
) -> Option<PushResponse> {
    let (url, signed_payload) = {
        let inside = shared.lock_state();
        let one = inside.notification_log.find_by_uuid(uuid)?;
        let urls = inside.stores.apple.push.get(&one.bundle_id)?;
        let signed = match forgery {
            None => one.signed_payload.clone(),
            Some(forgery) => shared
                .identity
                .certificate_authority()
                .forge_jws(forgery, &one.payload),
        };
        (urls.url_for(one.environment)?.to_owned(), signed)
    };
    let _turn = shared.push_permits.acquire().await.ok()?;
    let attempt_date = shared.now();
    let sent = shared
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
        shared
            .lock_state()
            .notification_log
            .record_attempt(uuid, attempt);
    }
    Some(pushed)
}

/// Asks for a test notification: the token that its status is asked by. `None` where the app has no address.
pub(super) fn publish_test_notification(
    shared: &Arc<SimulatorContext>,
    bundle_id: &str,
    environment: SimulatedEnvironment,
) -> Option<String> {
    let token = {
        let now = shared.now();
        let mut inside = shared.lock_state();
        format!(
            "{}_{}",
            notices::seeded_uuid(&mut inside.random),
            now.as_millis()
        )
    };
    let new = NewNotification {
        environment: Some(environment),
        ..NewNotification::new("TEST", None)
    };
    let made = publish_notification(shared, bundle_id, &new, Some(token.clone()));
    made.ok().flatten().map(|_| token)
}

fn into_object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(fields) => fields,
        _ => Map::new(),
    }
}
