//! `webhook ping`.

use std::time::Instant;

use serde::Serialize;
use serde_json::json;

use super::super::context::{CommandContext, CommandError};
use super::config::load_endpoint_summary;
use crate::base::clock::Timestamp;
use crate::base::error::to_sentence;
use crate::base::id::{CallbackNumber, DeliveryId, EventId, TenantId};
use crate::config::groups::WebhookSettings;
use crate::deliveries::endpoint::CallbackKind;
use crate::deliveries::endpoint::store::{self, EndpointChangeError};
use crate::deliveries::{DeliveryJob, Sender};

/// The event type of the stores' own test notifications, which receivers ignore already.
const PING_EVENT_TYPE: &str = "test";

/// The output of `ping`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PingResult<'a> {
    tenant_id: &'a TenantId,
    callback: CallbackNumber,
    event_id: &'a EventId,
    callback_url: &'a str,
    /// The same word as in logs and metrics.
    outcome: &'static str,
    status: Option<u16>,
    latency_ms: u128,
    /// The first kilobyte of the callback's answer.
    body: Option<&'a str>,
    /// Why the delivery failed.
    detail: Option<&'a str>,
}

pub(super) async fn ping_callback(
    tenant: &TenantId,
    callback: CallbackNumber,
    context: &CommandContext,
) -> Result<(), CommandError> {
    let webhooks = context.read_settings(WebhookSettings::from_raw)?;
    let database = context.open_database().await?;
    let keyring = context.require_keyring()?;
    let summary = load_endpoint_summary(&database, tenant, callback).await?;
    let mut endpoints =
        store::load_endpoints(&database, &keyring, std::slice::from_ref(tenant)).await?;
    let endpoint = endpoints
        .remove(&(tenant.clone(), callback))
        .ok_or_else(|| EndpointChangeError::EndpointNotFound(tenant.clone()))?
        .map_err(EndpointChangeError::from)?;
    let settings = context.read_sender_settings(&webhooks, &database)?;
    let sender = Sender::new(settings, &context.clock)
        .map_err(|problem| CommandError::failed(to_sentence(format!("cannot send: {problem}"))))?;
    let now = context.clock.now();
    let event = EventId::mint(now);
    let job = DeliveryJob {
        id: DeliveryId::mint(now),
        event_id: event.clone(),
        tenant_id: tenant.clone(),
        callback,
        event_type: PING_EVENT_TYPE.to_owned(),
        attempt_number: 1,
        callback_url: summary.callback_url.clone(),
        body: ping_body(tenant, &event, now, summary.kind).into(),
    };
    let started = Instant::now();
    let outcome = sender.send(&job, &endpoint).await;
    let latency = started.elapsed();
    let detail = outcome.detail();
    let result = PingResult {
        tenant_id: tenant,
        callback,
        event_id: &event,
        callback_url: &summary.callback_url,
        outcome: outcome.class().as_str(),
        status: outcome.status_code(),
        latency_ms: latency.as_millis(),
        body: outcome.body_excerpt(),
        detail,
    };
    context.output.write_object(&result)?;
    match detail {
        None => Ok(()),
        Some(detail) => Err(CommandError::failed(to_sentence(format!(
            "the callback did not accept the test event: {detail}"
        )))),
    }
}

/// An event body with its fields in the documented order and no store data. A callback of kind `raw` is sent `raw` of it.
fn ping_body(tenant: &TenantId, event: &EventId, now: Timestamp, kind: CallbackKind) -> Vec<u8> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Body<'a> {
        event: &'static str,
        reason: &'static str,
        platform_event: &'static str,
        event_id: &'a EventId,
        external_id: &'a str,
        timestamp: Timestamp,
        tenant_id: &'a TenantId,
        source: &'static str,
        environment: Option<&'static str>,
        subject: Option<&'static str>,
        app_user_id: Option<&'static str>,
        app_user_id_source: Option<&'static str>,
        sequence: Option<i64>,
        state: Option<&'static str>,
        state_error: Option<&'static str>,
        data: serde_json::Value,
        raw: serde_json::Value,
    }
    let message = json!({ "message": "Sent by `attesto webhook ping`. Nothing has happened." });
    let body = Body {
        event: PING_EVENT_TYPE,
        reason: "ping",
        platform_event: "attesto.ping",
        event_id: event,
        external_id: event.as_str(),
        timestamp: now,
        tenant_id: tenant,
        source: "attesto",
        environment: None,
        subject: None,
        app_user_id: None,
        app_user_id_source: None,
        sequence: None,
        state: None,
        state_error: None,
        raw: match kind {
            CallbackKind::Events => serde_json::Value::Null,
            CallbackKind::Raw => message.clone(),
        },
        data: message,
    };
    serde_json::to_vec(&body).expect("strings serialize")
}
