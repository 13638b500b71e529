//! App Store Server Notifications, played: signs what happens to purchases and posts it to the app's address.
//!
//! A notification is posted once when something happens. What is not taken waits until somebody asks for another
//! attempt: the real App Store repeats by itself, in production and over days, which a test that counts would not like.
//! Where an app has no address, there is no notification, as in the real one.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::pki::Forgery;
use super::pubsub::Pushed;
use super::shared::{Inside, Shared};
use super::state::Refused;
use super::state::apple::{Environment, Transaction};
use super::state::notifications::{self as notices, NewNotification, Notification, SendAttempt};

/// How long an attempt may take.
const DEADLINE: Duration = Duration::from_secs(10);

/// Makes a notification of an app, and posts it unless that is to wait. `None` where the app has no address for it.
pub(super) fn publish(
    shared: &Arc<Shared>,
    bundle_id: &str,
    new: &NewNotification,
    test_token: Option<String>,
) -> Result<Option<Notification>, Refused> {
    let transaction = match &new.transaction_id {
        Some(id) => Some(find(shared, bundle_id, id)?),
        None => None,
    };
    let of = transaction.as_ref().map(|one| one.environment);
    let environment = new.environment.or(of).unwrap_or_default();
    let (app, urls) = {
        let inside = shared.inside();
        let books = &inside.state.apple;
        (books.app(bundle_id), books.push.get(bundle_id).cloned())
    };
    let Some(urls) = urls.filter(|urls| urls.of(environment).is_some()) else {
        return Ok(None);
    };
    let now = shared.now();
    let name = new.block_name();
    let mut block = object(notices::block(&app, environment, name, now));
    let authority = shared.identity.authority();
    if let Some(transaction) = &transaction {
        sign_parts(shared, transaction, &mut block);
    }
    if name == "appData" {
        let signed = authority.sign(&object(notices::app_transaction(&app, environment, now)));
        block.insert("signedAppTransactionInfo".to_owned(), json!(signed));
    }
    notices::overlay(&mut block, &new.block);
    let uuid = {
        let mut inside = shared.inside();
        notices::uuid(&mut inside.random)
    };
    let mut payload = object(json!({ "notificationType": new.notification_type }));
    if let Some(subtype) = &new.subtype {
        payload.insert("subtype".to_owned(), json!(subtype));
    }
    payload.extend(object(json!({
        "notificationUUID": uuid,
        "version": "2.0",
        "signedDate": now.millis(),
    })));
    payload.insert(name.to_owned(), Value::Object(block));
    notices::overlay(&mut payload, &new.fields);
    let notification = Notification {
        notification_uuid: uuid.clone(),
        bundle_id: bundle_id.to_owned(),
        environment,
        notification_type: new.notification_type.clone(),
        subtype: new.subtype.clone(),
        original_transaction_id: transaction.map(|one| one.original_transaction_id),
        signed_date: now,
        signed_payload: authority.sign(&payload),
        send_attempts: Vec::new(),
        test_token,
        payload,
    };
    shared.inside().notifications.add(notification.clone());
    if !urls.manual {
        push_soon(shared, &uuid);
    }
    Ok(Some(notification))
}

fn find(shared: &Shared, bundle_id: &str, id: &str) -> Result<Transaction, Refused> {
    let found = shared.inside().state.apple.transaction(id).cloned();
    found
        .filter(|one| one.bundle_id == bundle_id)
        .ok_or_else(|| {
            Refused::unknown(format!("No transaction {id} of {bundle_id} is known here."))
        })
}

/// What is signed of a purchase inside of a notification.
fn sign_parts(shared: &Shared, transaction: &Transaction, block: &mut Map<String, Value>) {
    let now = shared.now();
    let original = &transaction.original_transaction_id;
    let (renewal, status) = {
        let inside = shared.inside();
        let Inside { state, .. } = &*inside;
        (
            state.apple.renewal_payload(original, now),
            state.apple.status(original, now),
        )
    };
    let authority = shared.identity.authority();
    let signed = authority.sign(&transaction.payload(now));
    block.insert("signedTransactionInfo".to_owned(), json!(signed));
    if let Some(renewal) = renewal {
        let signed = authority.sign(&renewal);
        block.insert("signedRenewalInfo".to_owned(), json!(signed));
    }
    if let Some(status) = status {
        block.insert("status".to_owned(), json!(status));
    }
}

/// Posts a notification without waiting for the answer.
pub(super) fn push_soon(shared: &Arc<Shared>, uuid: &str) {
    // Outside a runtime, which is nobody but a test of the books, it stays where it is.
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        let (shared, uuid) = (shared.clone(), uuid.to_owned());
        runtime.spawn(async move { push(&shared, &uuid, None).await });
    }
}

/// Posts a notification once. `None` when it, or an address for it, does not exist.
pub(super) async fn push(shared: &Shared, uuid: &str, forgery: Option<Forgery>) -> Option<Pushed> {
    let (url, signed_payload) = {
        let inside = shared.inside();
        let one = inside.notifications.find(uuid)?;
        let urls = inside.state.apple.push.get(&one.bundle_id)?;
        let signed = match forgery {
            None => one.signed_payload.clone(),
            Some(forgery) => shared.identity.authority().forge(forgery, &one.payload),
        };
        (urls.of(one.environment)?.to_owned(), signed)
    };
    let _turn = shared.pushing.acquire().await.ok()?;
    let attempt_date = shared.now();
    let sent = shared
        .client()?
        .post(url)
        .timeout(DEADLINE)
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
            (result, Pushed { status, body })
        }
        Err(error) => {
            let result = if error.is_timeout() {
                "TIMED_OUT"
            } else if error.is_connect() {
                "SOCKET_ISSUE"
            } else {
                "OTHER"
            };
            let nothing = Pushed {
                status: 0,
                body: Value::Null,
            };
            (result, nothing)
        }
    };
    if forgery.is_none() {
        let attempt = SendAttempt {
            attempt_date,
            send_attempt_result,
            status: pushed.status,
        };
        shared.inside().notifications.attempted(uuid, attempt);
    }
    Some(pushed)
}

/// Asks for a test notification: the token that its status is asked by. `None` where the app has no address.
pub(super) fn test(
    shared: &Arc<Shared>,
    bundle_id: &str,
    environment: Environment,
) -> Option<String> {
    let token = {
        let now = shared.now();
        let mut inside = shared.inside();
        format!("{}_{}", notices::uuid(&mut inside.random), now.millis())
    };
    let new = NewNotification {
        environment: Some(environment),
        ..NewNotification::of("TEST", None)
    };
    let made = publish(shared, bundle_id, &new, Some(token.clone()));
    made.ok().flatten().map(|_| token)
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(fields) => fields,
        _ => Map::new(),
    }
}
