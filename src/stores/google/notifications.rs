//! The use case: Google reports that something happened to a purchase.
//!
//! The checks, in this order: is the push from Google, for this tenant, and from the account that the tenant named; is the
//! tenant active; is the message about the tenant's app. A message that passes is stored, whatever it says and whether or
//! not Google can be asked about the purchase. A message that cannot be read is stored as `unknown`, because Google would
//! send it again for a week.
//!
//! A message about another app is refused and not dropped: either the topic or the tenant's package name is set up wrongly,
//! and as long as the message is refused, Google keeps it until that is corrected.
//!
//! The stages: [`PubsubMessage`] as it was pushed, [`DecodedMessage`] with Google's notification read, [`PurchaseContext`]
//! with what Google says of the purchase, and from all three the [`NewEvent`].

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use serde_json::value::RawValue;

use super::error_response::GoogleNotificationError;
use super::payload::{DeveloperNotification, Int64};
use super::purchase_lookup::{PurchaseContext, PurchaseLookup};
use super::store::GoogleCredentials;
use super::translate::{self, ReplacedPurchase};
use super::trust::{GoogleKeys, PushToken, PushTokenError};
use super::verify::GoogleVerifier;
use crate::base::clock::Timestamp;
use crate::base::id::TenantId;
use crate::db::change_listener::ChangeListener;
use crate::events::{
    AcceptedNotification, AppUserIdSource, EventEnvironment, EventRecorder, EventSource,
    EventSubject, NewEvent, SubjectType,
};
use crate::stores::shared::notifications::{ActiveTenants, is_representable_time};

/// Stores Google's notifications. Clones share the caches.
#[derive(Clone)]
pub(crate) struct GoogleNotifications {
    google: GoogleVerifier,
    keys: GoogleKeys,
    active_tenants: ActiveTenants,
    recorder: EventRecorder,
}

/// A push that may be read: from Google, for this tenant, which is active.
#[derive(Clone, Debug)]
pub(super) struct AuthenticatedPush {
    tenant: TenantId,
    credentials: Arc<GoogleCredentials>,
}

/// The message of a push.
#[derive(Clone, Debug)]
pub(super) struct PubsubMessage {
    /// Pub/Sub's `messageId`, the same on every repeat.
    pub(super) id: String,
    /// Google's notification, in base64.
    pub(super) data: Option<String>,
    /// When Pub/Sub received it from Google Play.
    pub(super) publish_time: Option<Timestamp>,
    /// The whole push as it was sent.
    pub(super) raw: Box<RawValue>,
}

/// The notification in a message's data.
struct DecodedMessage {
    /// An empty one when the data cannot be read: it is then stored as `unknown`.
    notification: DeveloperNotification,
    /// The data as JSON; `null` when it is not JSON.
    json: Box<RawValue>,
}

impl GoogleNotifications {
    /// Stores with `recorder`, and asks about purchases through `google`.
    pub(crate) fn new(
        google: &GoogleVerifier,
        keys: GoogleKeys,
        recorder: EventRecorder,
        changes: &ChangeListener,
    ) -> Self {
        Self {
            active_tenants: ActiveTenants::new(&google.database, &google.clock, changes),
            google: google.clone(),
            keys,
            recorder,
        }
    }

    /// Checks the token of a push to `tenant`. Everything about the token comes before anything about the tenant, so that
    /// a stranger does not learn which tenants there are.
    pub(super) async fn authenticate_push(
        &self,
        tenant: &TenantId,
        token: Option<&str>,
    ) -> Result<AuthenticatedPush, GoogleNotificationError> {
        let token = PushToken::parse(token.ok_or(PushTokenError::Missing)?)?;
        let key = self.keys.find_key(token.key_id()).await?;
        let identity = token.verify_token(&key, self.google.clock.now())?;
        let credentials = self
            .google
            .get_credentials(tenant)
            .await
            .map_err(GoogleNotificationError::Credentials)?
            .ok_or(PushTokenError::NoCredentials)?;
        if let Err(error) = identity.check_push_settings(tenant, &credentials.push_settings) {
            // Google signed these two, so they may be logged, and the operator needs them to correct the settings.
            tracing::warn!(
                tenantId = tenant.as_str(),
                error = %error,
                account = identity.account.as_deref().unwrap_or("none that is verified"),
                audience = identity.audience,
                "google_push_refused"
            );
            return Err(error.into());
        }
        let is_active = self.active_tenants.is_active(tenant).await;
        if !is_active.map_err(GoogleNotificationError::Database)? {
            return Err(GoogleNotificationError::TenantInactive);
        }
        Ok(AuthenticatedPush {
            tenant: tenant.clone(),
            credentials,
        })
    }

    /// Stores the message of a push. When this returns, the event is committed.
    pub(super) async fn accept_notification(
        &self,
        push: &AuthenticatedPush,
        message: PubsubMessage,
    ) -> Result<AcceptedNotification, GoogleNotificationError> {
        let decoded = decode_message(message.data.as_deref());
        let expected = &push.credentials.package_name;
        if let Some(found) = &decoded.notification.package_name
            && found != expected
        {
            tracing::warn!(
                tenantId = push.tenant.as_str(),
                expected,
                found,
                hint = "Check the tenant's package name, and that the topic is of this app only.",
                "google_message_of_another_app"
            );
            return Err(GoogleNotificationError::PackageNameMismatch {
                expected: expected.clone(),
            });
        }
        let purchase = PurchaseLookup::new(&self.google, &push.tenant, &push.credentials)
            .load_context(&decoded.notification)
            .await;
        let external_id = message.id.clone();
        let event = build_event(push.tenant.clone(), message, decoded, &purchase);
        let recorded = self.recorder.record_event(&event).await?;
        Ok(AcceptedNotification::new(recorded, external_id))
    }
}

fn build_event(
    tenant: TenantId,
    message: PubsubMessage,
    decoded: DecodedMessage,
    purchase: &PurchaseContext,
) -> NewEvent {
    let DecodedMessage { notification, json } = decoded;
    let replaced = match purchase {
        PurchaseContext::Subscription { replaced, .. } => *replaced,
        PurchaseContext::Unknown | PurchaseContext::Product(_) => ReplacedPurchase::Unknown,
    };
    let translation =
        translate::translate_notification(&notification, purchase.subscription(), replaced);
    let event_time = notification
        .event_time_millis
        .map(|Int64(millis)| Timestamp::from_millis(millis))
        .filter(|time| is_representable_time(*time));
    let app_user_id = app_user_id(&notification, purchase);
    NewEvent {
        tenant,
        source: EventSource::Google,
        external_id: message.id,
        event_type: translation.event_type,
        reason: translation.reason.map(Into::into),
        platform_event: translation.platform_event,
        occurred_at: event_time.or(message.publish_time),
        environment: event_environment(purchase),
        subject: event_subject(&notification, purchase),
        app_user_id_source: app_user_id.as_ref().map(|_| AppUserIdSource::Purchase),
        app_user_id,
        state: None,
        state_error: None,
        data: json,
        raw: message.raw,
    }
}

/// `None` when Google did not say.
fn event_environment(purchase: &PurchaseContext) -> Option<EventEnvironment> {
    let is_test_purchase = match purchase {
        PurchaseContext::Subscription { purchase, .. } => {
            purchase.as_ref()?.test_purchase.is_some()
        }
        PurchaseContext::Product(purchase) => purchase.purchase_type == Some(Int64(0)),
        PurchaseContext::Unknown => return None,
    };
    Some(if is_test_purchase {
        EventEnvironment::Sandbox
    } else {
        EventEnvironment::Production
    })
}

/// What a notification is about: the first purchase of a subscription, or the one purchase of a product.
fn event_subject(
    notification: &DeveloperNotification,
    purchase: &PurchaseContext,
) -> Option<EventSubject> {
    let first_token = || match purchase {
        PurchaseContext::Subscription { first_token, .. } => Some(first_token.clone()),
        PurchaseContext::Unknown | PurchaseContext::Product(_) => None,
    };
    if let Some(details) = &notification.subscription_notification {
        let product_id = purchase.subscription().and_then(|purchase| {
            translate::select_line_item(purchase, None)?
                .product_id
                .clone()
        });
        return Some(EventSubject {
            key: first_token()?,
            product_id: product_id.or_else(|| details.subscription_id.clone()),
            r#type: SubjectType::Subscription,
            current: true,
            superseded_by: None,
        });
    }
    if let Some(details) = &notification.one_time_product_notification {
        return Some(EventSubject {
            key: details.purchase_token.clone()?,
            product_id: details.sku.clone(),
            r#type: SubjectType::Product,
            current: true,
            superseded_by: None,
        });
    }
    let details = notification.voided_purchase_notification.as_ref()?;
    let (key, r#type) = match details.product_type? {
        Int64(1) => (first_token()?, SubjectType::Subscription),
        Int64(2) => (details.purchase_token.clone()?, SubjectType::Product),
        _ => return None,
    };
    Some(EventSubject {
        key,
        product_id: None,
        r#type,
        current: true,
        superseded_by: None,
    })
}

/// The obfuscated account id, from the notification where it has one, else from the purchase.
fn app_user_id(notification: &DeveloperNotification, purchase: &PurchaseContext) -> Option<String> {
    if let Some(details) = &notification.pending_refund_review_notification {
        return details.obfuscated_account_id.clone();
    }
    match purchase {
        PurchaseContext::Subscription { purchase, .. } => purchase
            .as_ref()?
            .external_account_identifiers
            .as_ref()?
            .obfuscated_external_account_id
            .clone(),
        PurchaseContext::Product(purchase) => purchase.obfuscated_external_account_id.clone(),
        PurchaseContext::Unknown => None,
    }
}

fn decode_message(data: Option<&str>) -> DecodedMessage {
    let text = data
        .and_then(|data| STANDARD.decode(data).ok())
        .and_then(|bytes| String::from_utf8(bytes).ok())
        // Parsed as a `Value` first: that refuses what a database would not store, such as half a surrogate pair.
        .filter(|text| serde_json::from_str::<Value>(text).is_ok())
        .unwrap_or_else(|| "null".to_owned());
    DecodedMessage {
        notification: serde_json::from_str(&text).unwrap_or_default(),
        json: RawValue::from_string(text).unwrap_or_else(|_| RawValue::NULL.to_owned()),
    }
}
