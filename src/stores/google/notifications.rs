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
use super::owed::NewOwedAcknowledgement;
use super::payload::{DeveloperNotification, Int64, PendingRefundReviewNotification};
use super::purchase_lookup::{Fetched, PurchaseContext, PurchaseLookup, PurchaseRole};
use super::refund_review::ANSWER_PERIOD;
use super::refunds::known_refund::{KnownRefund, PushedPart};
use super::refused_tokens::RefusedTokens;
use super::state::{self, ProductFacts};
use super::store::GoogleCredentials;
use super::translate::{self, GoogleTranslation, ReplacedPurchase};
use super::trust::{GoogleKeys, PushToken, PushTokenError};
use super::verify::GoogleVerifier;
use crate::base::clock::Timestamp;
use crate::base::id::TenantId;
use crate::base::json_text::check_storable;
use crate::base::lookup_lanes::LookupQueueFullError;
use crate::crypto::redact::truncate_log_field;
use crate::crypto::token;
use crate::db::change_listener::ChangeListener;
use crate::events::{
    AcceptedNotification, AppUserIdSource, EventEnvironment, EventRecorder, EventSource,
    EventSubject, EventType, NewEvent, PurchaseState, StateError, SubjectType,
};
use crate::http::body_budget::RefusalMetrics;
use crate::stores::shared::notifications::{
    ActiveTenants, AdmissionError, TenantLookups, is_representable_time,
};
use crate::stores::shared::refund_questions::NewRefundQuestion;
use crate::tenants::IntakeBudgets;
use crate::tenants::intake::IntakeAdmission;

/// Stores Google's notifications. Clones share the caches.
#[derive(Clone)]
pub(crate) struct GoogleNotifications {
    google: GoogleVerifier,
    keys: GoogleKeys,
    active_tenants: ActiveTenants,
    lookups: TenantLookups,
    refused_tokens: RefusedTokens,
    acceptor: NotificationAcceptor,
}

/// Stores Google's messages as events, however they arrived.
#[derive(Clone)]
pub(super) struct NotificationAcceptor {
    google: GoogleVerifier,
    recorder: EventRecorder,
}

/// A push that may be read: from Google, for this tenant, which is active.
#[derive(Clone, Debug)]
pub(super) struct AuthenticatedPush {
    intake: IntakeAdmission,
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
        refusals: &RefusalMetrics,
        intake: &IntakeBudgets,
    ) -> Self {
        let lookups =
            TenantLookups::new(&google.database, &google.clock).with_refusal_metrics(refusals);
        let (database, clock) = (&google.database, &google.clock);
        Self {
            active_tenants: ActiveTenants::new(database, clock, changes, &lookups, intake),
            lookups,
            refused_tokens: RefusedTokens::new(&google.clock, changes),
            acceptor: NotificationAcceptor::new(google, recorder),
            google: google.clone(),
            keys,
        }
    }

    /// Checks the token of a push to `tenant`. Everything about the token comes before anything about the tenant, so that
    /// a stranger does not learn which tenants there are.
    pub(super) async fn authenticate_push(
        &self,
        tenant: &TenantId,
        token: Option<&str>,
    ) -> Result<AuthenticatedPush, GoogleNotificationError> {
        let text = token.ok_or(PushTokenError::Missing)?;
        let token = PushToken::parse(text)?;
        let token_hash = token::sha256(text.as_bytes());
        self.refused_tokens.check_token(&token_hash)?;
        let key = self.keys.find_key(token.key_id()).await?;
        let identity = token.verify_token(&key, self.google.clock.now())?;
        // No tenant accepts one without: there is nothing to look up.
        if identity.account.is_none() {
            return Err(PushTokenError::WrongServiceAccount.into());
        }
        let Some(credentials) = self.find_credentials(tenant).await? else {
            self.refused_tokens.record_refusal(token_hash);
            return Err(PushTokenError::NoCredentials.into());
        };
        if let Err(error) = identity.check_push_settings(tenant, &credentials.push_settings) {
            self.refused_tokens.record_refusal(token_hash);
            // Google signed these two, so they may be logged, and the operator needs them to correct the settings.
            tracing::warn!(
                tenantId = tenant.as_str(),
                error = %error,
                account = identity.account.as_deref().map(truncate_log_field),
                audience = truncate_log_field(&identity.audience),
                "google_push_refused"
            );
            return Err(error.into());
        }
        self.refused_tokens.record_acceptance(token_hash);
        Ok(AuthenticatedPush {
            intake: self.active_tenants.admit(tenant).await?,
            credentials,
        })
    }

    /// The tenant's credentials. Everyone can have Google sign a token, and push it to made-up tenants: so what is not cached is
    /// looked up for a few at once only.
    async fn find_credentials(
        &self,
        tenant: &TenantId,
    ) -> Result<Option<Arc<GoogleCredentials>>, GoogleNotificationError> {
        let permit = if self.google.has_cached_credentials(tenant) {
            None
        } else {
            let permit = self.lookups.enter(tenant).await;
            let busy =
                |full: LookupQueueFullError| AdmissionError::TenantLookup(Arc::new(full.into()));
            Some(permit.map_err(busy)?)
        };
        let credentials = self
            .google
            .get_credentials(tenant)
            .await
            .map_err(GoogleNotificationError::Credentials)?;
        if permit.is_some() {
            self.lookups.record_result(tenant, credentials.is_some());
        }
        Ok(credentials)
    }

    /// Stores the message of a push. When this returns, the event is committed.
    pub(super) async fn accept_notification(
        &self,
        push: &AuthenticatedPush,
        message: PubsubMessage,
    ) -> Result<AcceptedNotification, GoogleNotificationError> {
        let tenant = push.intake.tenant();
        push.intake.charge(message.raw.get().len());
        self.acceptor
            .accept_message(tenant, &push.credentials, message, false)
            .await
    }
}

impl NotificationAcceptor {
    pub(super) fn new(google: &GoogleVerifier, recorder: EventRecorder) -> Self {
        Self {
            google: google.clone(),
            recorder,
        }
    }

    /// Stores a message of Google's for a tenant. When this returns, the event is committed.
    pub(super) async fn accept_message(
        &self,
        tenant: &TenantId,
        credentials: &Arc<GoogleCredentials>,
        mut message: PubsubMessage,
        is_recovered: bool,
    ) -> Result<AcceptedNotification, GoogleNotificationError> {
        let decoded = decode_message(message.data.as_deref());
        let expected = &credentials.package_name;
        if let Some(found) = &decoded.notification.package_name
            && found != expected
        {
            tracing::warn!(
                tenantId = tenant.as_str(),
                expected,
                found = truncate_log_field(found),
                hint = "Check the tenant's package name, and that the topic is of this app only.",
                "google_message_of_another_app"
            );
            return Err(GoogleNotificationError::PackageNameMismatch {
                expected: expected.clone(),
            });
        }
        let purchase = PurchaseLookup::new(&self.google, tenant, credentials)
            .load_context(&decoded.notification)
            .await;
        let database = &self.google.database;
        let failed = |error| GoogleNotificationError::Database(Arc::new(error));
        // A refund that Google's list has told before becomes no second event.
        if let Some(refund) = KnownRefund::of_notification(&decoded.notification) {
            let noted = refund.note(database, tenant, &message.id).await;
            message.id = noted.map_err(failed)?;
        }
        let occurred_at = event_time(&decoded.notification).or(message.publish_time);
        let part = PushedPart::of_notification(&decoded.notification, occurred_at);
        if let Some(part) = part.filter(|_| !is_recovered) {
            let found = part.find_event_id(database, tenant, &message.id).await;
            message.id = found.map_err(failed)?;
        }
        let external_id = message.id.clone();
        let owed = owed_acknowledgement(&decoded.notification, &purchase);
        // Before the event: where that is stored, this is too.
        if let Some(owed) = owed {
            owed.list(database, tenant, self.google.clock.now())
                .await
                .map_err(failed)?;
        }
        let asked = decoded
            .notification
            .pending_refund_review_notification
            .clone();
        let received = self.google.clock.now();
        let mut event = build_event(tenant.clone(), message, decoded, &purchase, received);
        event.is_recovered = is_recovered;
        if let Some(question) = asked.and_then(|asked| refund_question(asked, event.answer_by)) {
            question
                .list(database, tenant, received)
                .await
                .map_err(failed)?;
        }
        let recorded = self.recorder.record_event(&event).await?;
        Ok(AcceptedNotification::new(recorded, external_id))
    }
}

/// What Google asks about a refund. `None` where the notification lacks what an answer needs.
fn refund_question(
    asked: PendingRefundReviewNotification,
    answer_by: Option<Timestamp>,
) -> Option<NewRefundQuestion> {
    let refund_token = asked.pending_refund_token?;
    Some(NewRefundQuestion {
        source: EventSource::Google,
        question_id: refund_token.clone(),
        purchase_id: asked.order_id?,
        refund_token: Some(refund_token),
        environment: None,
        answer_by: answer_by?,
    })
}

fn build_event(
    tenant: TenantId,
    message: PubsubMessage,
    decoded: DecodedMessage,
    purchase: &PurchaseContext,
    received: Timestamp,
) -> NewEvent {
    let DecodedMessage { notification, json } = decoded;
    let translation = translate_event(&notification, purchase);
    let subject = event_subject(&notification, purchase);
    let (state, state_error) = match event_state(&notification, purchase) {
        Some(Ok(state)) if subject.is_some() => (Some(state), None),
        Some(Err(error)) if subject.is_some() => (None, Some(error)),
        _ => (None, None),
    };
    let event_time = event_time(&notification);
    let (app_user_id, app_user_id_source) = app_user(&notification, purchase).unzip();
    let occurred_at = event_time.or(message.publish_time);
    let is_question = translation.event_type == EventType::ProductRefundReview;
    let answer_by = is_question.then(|| occurred_at.unwrap_or(received).plus(ANSWER_PERIOD));
    NewEvent {
        tenant,
        source: EventSource::Google,
        external_id: message.id,
        event_type: translation.event_type,
        reason: translation.reason.map(Into::into),
        platform_event: translation.platform_event,
        occurred_at,
        environment: event_environment(purchase),
        subject,
        app_user_id,
        app_user_id_source,
        state,
        state_error,
        data: json,
        facts: None,
        raw: message.raw,
        shared_content: None,
        answer_by,
        is_recovered: false,
    }
}

/// When it happened, as the notification says.
fn event_time(notification: &DeveloperNotification) -> Option<Timestamp> {
    notification
        .event_time_millis
        .map(|Int64(millis)| Timestamp::from_millis(millis))
        .filter(|time| is_representable_time(*time))
}

/// The event's type. News about a purchase that another one replaced says so, whatever it is: it says nothing about access.
fn translate_event(
    notification: &DeveloperNotification,
    purchase: &PurchaseContext,
) -> GoogleTranslation {
    let (replaced, is_outdated) = match purchase {
        PurchaseContext::Subscription {
            replaced, standing, ..
        } => (
            *replaced,
            matches!(standing.role, PurchaseRole::Replaced { .. }),
        ),
        PurchaseContext::None | PurchaseContext::Product { .. } => {
            (ReplacedPurchase::Unknown, false)
        }
    };
    let translation =
        translate::translate_notification(notification, purchase.subscription(), replaced);
    let is_about_access = !matches!(
        translation.event_type,
        EventType::ProductRefundReview | EventType::SubscriptionPendingPurchaseCanceled
    ) && translation.platform_event != "google.subscription.4";
    if is_outdated && is_about_access {
        GoogleTranslation {
            event_type: EventType::SubscriptionReplaced,
            reason: None,
            ..translation
        }
    } else {
        translation
    }
}

/// What the subscription or product is worth, or why that is not known.
pub(super) fn event_state(
    notification: &DeveloperNotification,
    purchase: &PurchaseContext,
) -> Option<Result<PurchaseState, StateError>> {
    match purchase {
        PurchaseContext::Subscription { standing, .. } => Some(standing.state.clone()),
        PurchaseContext::Product { fetched, .. } => {
            let Some(Fetched {
                purchase,
                fetched_at,
            }) = fetched
            else {
                return Some(Err(StateError::StoreUnavailable));
            };
            let mut facts = ProductFacts::from(&**purchase);
            if facts.product_id.is_none() {
                let details = notification.one_time_product_notification.as_ref();
                facts.product_id = details.and_then(|details| details.sku.clone());
            }
            let state = state::product_state(&facts, *fetched_at);
            // Google's record may not show it yet.
            let is_voided = notification
                .voided_purchase_notification
                .as_ref()
                .is_some_and(|details| details.refund_type == Some(Int64(1)));
            Some(Ok(if is_voided {
                state::refunded_state(state)
            } else {
                state
            }))
        }
        PurchaseContext::None => None,
    }
}

/// The purchase of the notification, if it is the current one of its subscription and must be acknowledged.
pub(super) fn owed_acknowledgement(
    notification: &DeveloperNotification,
    purchase: &PurchaseContext,
) -> Option<NewOwedAcknowledgement> {
    let (token, kind) = match purchase {
        PurchaseContext::Subscription { standing, .. } => {
            let details = notification.subscription_notification.as_ref()?;
            let is_current = standing.role == PurchaseRole::Current;
            let token = details.purchase_token.clone().filter(|_| is_current)?;
            (token, SubjectType::Subscription)
        }
        PurchaseContext::Product { purchase_token, .. } => {
            (purchase_token.clone(), SubjectType::Product)
        }
        PurchaseContext::None => return None,
    };
    let state = event_state(notification, purchase)?.ok()?;
    Some(NewOwedAcknowledgement {
        purchase_token: token,
        kind,
        acknowledge_by: state.acknowledge_by?,
    })
}

/// `None` when Google did not say.
pub(super) fn event_environment(purchase: &PurchaseContext) -> Option<EventEnvironment> {
    let is_test_purchase = match purchase {
        PurchaseContext::Subscription { fetched, .. } => {
            fetched.as_ref()?.purchase.test_purchase.is_some()
        }
        PurchaseContext::Product { fetched, .. } => {
            fetched.as_ref()?.purchase.purchase_type == Some(Int64(0))
        }
        PurchaseContext::None => return None,
    };
    Some(if is_test_purchase {
        EventEnvironment::Sandbox
    } else {
        EventEnvironment::Production
    })
}

/// What a notification is about: the first purchase of a subscription, or the one purchase of a product.
pub(super) fn event_subject(
    notification: &DeveloperNotification,
    purchase: &PurchaseContext,
) -> Option<EventSubject> {
    match purchase {
        PurchaseContext::Subscription { standing, .. } => {
            let product_id = purchase.subscription().and_then(|purchase| {
                translate::select_line_item(purchase, None)?
                    .product_id
                    .clone()
            });
            let details = notification.subscription_notification.as_ref();
            Some(EventSubject {
                key: standing.first_token.clone(),
                product_id: product_id
                    .or_else(|| details.and_then(|details| details.subscription_id.clone())),
                r#type: SubjectType::Subscription,
                current: standing.role == PurchaseRole::Current,
                superseded_by: standing.role.superseded_by(),
            })
        }
        PurchaseContext::Product {
            purchase_token,
            fetched,
        } => {
            let details = notification.one_time_product_notification.as_ref();
            let product_id = fetched
                .as_ref()
                .and_then(|fetched| fetched.purchase.product_id.clone());
            Some(EventSubject {
                key: purchase_token.clone(),
                product_id: product_id.or_else(|| details.and_then(|details| details.sku.clone())),
                r#type: SubjectType::Product,
                current: true,
                superseded_by: None,
            })
        }
        PurchaseContext::None => None,
    }
}

/// The obfuscated account id, from the notification where it has one, else from the purchase; and which purchase has it.
pub(super) fn app_user(
    notification: &DeveloperNotification,
    purchase: &PurchaseContext,
) -> Option<(String, AppUserIdSource)> {
    let details = notification.pending_refund_review_notification.as_ref();
    if let Some(user) = details.and_then(|details| details.obfuscated_account_id.clone()) {
        return Some((user, AppUserIdSource::Purchase));
    }
    match purchase {
        PurchaseContext::Subscription { standing, .. } => standing.app_user.clone(),
        PurchaseContext::Product { fetched, .. } => {
            let user = &fetched.as_ref()?.purchase.obfuscated_external_account_id;
            Some((user.clone()?, AppUserIdSource::Purchase))
        }
        PurchaseContext::None => None,
    }
}

fn decode_message(data: Option<&str>) -> DecodedMessage {
    let text = data
        .and_then(|data| STANDARD.decode(data).ok())
        .and_then(|bytes| String::from_utf8(bytes).ok())
        // Parsed as a `Value` first: that refuses what a database would not store, such as half a surrogate pair.
        .filter(|text| check_storable(text).is_ok() && serde_json::from_str::<Value>(text).is_ok())
        .unwrap_or_else(|| "null".to_owned());
    DecodedMessage {
        notification: serde_json::from_str(&text).unwrap_or_default(),
        json: RawValue::from_string(text).unwrap_or_else(|_| RawValue::NULL.to_owned()),
    }
}
