//! Accepts App Store Server Notifications, version 2, and stores them as events.
//!
//! Checked in this order: the tenant is active; it has credentials; Apple signed the notification; it is of the tenant's
//! app and of one of its environments; the parts with their own signature are genuine, and of the same app and
//! environment; it has an id. A notification that passes is stored: a type or block unknown to this release becomes an
//! event of type `unknown`, and is delivered.
//!
//! In the event's `data` each signed part is followed by its decoded content: `signedTransactionInfo` by
//! `transactionInfo`, `signedRenewalInfo` by `renewalInfo`, `signedAppTransactionInfo` by `appTransactionInfo`. The rest
//! stays as Apple wrote it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize as _;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::account::{AppleCredentials, AppleEnvironment, EnvironmentChoice};
use super::consumption::ANSWER_PERIOD;
use super::error::{AppleNotificationError, NotificationRejection};
use super::payload::{
    self, Millis, NotificationBlock, NotificationPart, NotificationPayload, OrderedObject,
    RenewalInfoPayload, SignedPart, TransactionPayload,
};
use super::state::{is_earlier_period, notification_state, purchase_state};
use super::translate;
use super::trust::SignatureError;
use super::verify::AppleVerifier;
use crate::base::clock::Timestamp;
use crate::base::id::TenantId;
use crate::base::json_text::check_storable;
use crate::crypto::redact::truncate_log_field;
use crate::db::change_listener::ChangeListener;
use crate::events::{
    self, AcceptedNotification, AppUserIdSource, EventRecorder, EventSource, EventSubject,
    EventType, NewEvent, PurchaseState, StateError, SubjectType,
};
use crate::http::Problem;
use crate::http::body_budget::RefusalMetrics;
use crate::stores::shared::notifications::{ActiveTenants, TenantLookups, is_representable_time};
use crate::stores::shared::refund_questions::NewRefundQuestion;
use crate::tenants::IntakeBudgets;
use crate::tenants::intake::IntakeAdmission;

/// The longest id of a notification, in characters. Apple's are UUIDs.
const MAX_NOTIFICATION_ID_CHARS: usize = 256;
/// How long a notification waits for Apple's answer about the whole subscription. It is stored without one.
const MAX_STATE_WAIT: Duration = Duration::from_secs(2);

/// Accepts Apple's notifications. Clones share the caches.
#[derive(Clone)]
pub struct AppleNotifications {
    acceptor: NotificationAcceptor,
    active_tenants: ActiveTenants,
}

/// Verifies notifications and stores them as events, however they arrived.
#[derive(Clone)]
pub(super) struct NotificationAcceptor {
    pub(super) apple: AppleVerifier,
    recorder: EventRecorder,
}

/// How a notification arrived.
#[derive(Clone, Copy)]
pub(super) enum NotificationArrival<'a> {
    /// Apple posted it; it is charged to the tenant's budget.
    Pushed(&'a IntakeAdmission),
    /// It was read from Apple's history.
    Recovered,
}

/// A tenant that exists and is active.
#[derive(Clone, Debug)]
pub struct ActiveTenant(IntakeAdmission);

/// A notification as Apple posts it.
#[derive(Clone, Debug)]
pub struct SignedNotification {
    /// `signedPayload`, a JWS.
    pub signed_payload: String,
    /// The whole body, byte for byte.
    pub raw: Box<RawValue>,
}

impl SignedNotification {
    /// For a notification that Apple did not post: `raw` is the body that it would have posted.
    pub(super) fn from_history(signed_payload: String) -> Self {
        let raw = serde_json::value::to_raw_value(&json!({ "signedPayload": signed_payload }));
        Self {
            signed_payload,
            raw: raw.expect("a string is JSON"),
        }
    }
}

/// An event before it is stored.
struct BuiltEvent {
    event: NewEvent,
    /// What Apple asks with it.
    question: Option<NewRefundQuestion>,
}

/// A part whose signature is good.
struct VerifiedPart {
    part: NotificationPart,
    content: SignedPart,
    raw: Box<RawValue>,
}

impl VerifiedPart {
    /// The content with all its fields. `None` when one that decides is of another kind than expected.
    fn decode<T: DeserializeOwned>(&self) -> Option<T> {
        serde_json::from_str(self.raw.get()).ok()
    }
}

fn find_part(parts: &[VerifiedPart], wanted: NotificationPart) -> Option<&VerifiedPart> {
    parts.iter().find(|opened| opened.part == wanted)
}

/// What is known of a notification's purchase.
#[derive(Default)]
struct KnownState {
    state: Option<PurchaseState>,
    state_error: Option<StateError>,
    /// Whether the notification's transaction is the newest of its subscription, as far as is known.
    is_current: bool,
    /// Whether the notification's transaction is an earlier period that was taken back.
    is_earlier_period: bool,
}

impl KnownState {
    fn unavailable() -> Self {
        Self {
            state_error: Some(StateError::StoreUnavailable),
            is_current: true,
            ..Self::default()
        }
    }
}

/// What the purchase is worth by what the notification says. `None` where that does not decide.
fn state_of_notification(
    block: &NotificationBlock,
    parts: &[VerifiedPart],
    now: Timestamp,
) -> Option<KnownState> {
    let transaction: TransactionPayload =
        find_part(parts, NotificationPart::Transaction)?.decode()?;
    let renewal: Option<RenewalInfoPayload> =
        find_part(parts, NotificationPart::RenewalInfo).and_then(VerifiedPart::decode);
    let state = notification_state(&transaction, renewal.as_ref(), block.status, now)?;
    let is_earlier_period = is_earlier_period(&transaction, &state);
    Some(KnownState {
        is_current: !is_earlier_period && transaction.is_upgraded != Some(true),
        is_earlier_period,
        state: Some(state),
        state_error: None,
    })
}

impl AppleNotifications {
    /// Verifies with `apple` and stores with `recorder`. A change heard by `changes` ends what is cached of a tenant.
    pub(crate) fn new(
        apple: &AppleVerifier,
        recorder: EventRecorder,
        changes: &ChangeListener,
        refusals: &RefusalMetrics,
        intake: &IntakeBudgets,
    ) -> Self {
        let lookups =
            TenantLookups::new(&apple.database, &apple.clock).with_refusal_metrics(refusals);
        let (database, clock) = (&apple.database, &apple.clock);
        Self {
            active_tenants: ActiveTenants::new(database, clock, changes, &lookups, intake),
            acceptor: NotificationAcceptor::new(apple, recorder),
        }
    }

    /// Checks that the tenant is active and has a budget left, which comes before the body of a notification is read.
    pub async fn find_active_tenant(
        &self,
        tenant: &TenantId,
    ) -> Result<ActiveTenant, AppleNotificationError> {
        Ok(ActiveTenant(self.active_tenants.admit(tenant).await?))
    }

    /// Verifies and stores a notification. The event is committed when this returns `Ok`.
    pub async fn accept_notification(
        &self,
        admitted: ActiveTenant,
        message: SignedNotification,
    ) -> Result<AcceptedNotification, AppleNotificationError> {
        let ActiveTenant(intake) = admitted;
        let tenant = intake.tenant();
        let credentials = self
            .acceptor
            .apple
            .get_credentials(tenant)
            .await
            .map_err(AppleNotificationError::Credentials)?
            .ok_or(AppleNotificationError::NoCredentials)?;
        self.acceptor
            .accept_notification(
                tenant,
                &credentials,
                message,
                NotificationArrival::Pushed(&intake),
            )
            .await
    }
}

impl NotificationAcceptor {
    pub(super) fn new(apple: &AppleVerifier, recorder: EventRecorder) -> Self {
        Self {
            apple: apple.clone(),
            recorder,
        }
    }

    /// Verifies and stores a notification for a tenant. The event is committed when this returns `Ok`.
    pub(super) async fn accept_notification(
        &self,
        tenant: &TenantId,
        credentials: &Arc<AppleCredentials>,
        message: SignedNotification,
        arrival: NotificationArrival<'_>,
    ) -> Result<AcceptedNotification, AppleNotificationError> {
        let BuiltEvent { event, question } = self
            .build_event(tenant, credentials, message, arrival)
            .await?;
        let external_id = event.external_id.clone();
        // Before the event: where that is stored, this is too.
        if let Some(question) = question {
            question
                .list(&self.apple.database, tenant, self.apple.clock.now())
                .await
                .map_err(|error| AppleNotificationError::Database(Arc::new(error)))?;
        }
        let stored = self.recorder.record_event(&event).await?;
        Ok(AcceptedNotification::new(stored, external_id))
    }

    async fn build_event(
        &self,
        tenant: &TenantId,
        credentials: &Arc<AppleCredentials>,
        message: SignedNotification,
        arrival: NotificationArrival<'_>,
    ) -> Result<BuiltEvent, AppleNotificationError> {
        let has_id = credentials.app_apple_id.is_some();
        if credentials.environment == EnvironmentChoice::Production && !has_id {
            return Err(AppleNotificationError::NoAppAppleId);
        }
        let verified = self
            .apple
            .verify_jws_any_length(&message.signed_payload)
            .await;
        let verified = verified.map_err(NotificationRejection::InvalidSignature)?;
        let shared_content = verified.chain.shared_content.clone();
        let (value, raw) =
            parse_payload(verified.payload).map_err(NotificationRejection::InvalidSignature)?;
        check_storable(raw.get())?;
        let notification = NotificationPayload::deserialize(&value)
            .map_err(|_| NotificationRejection::InvalidSignature(SignatureError::BadPayload))?;
        let (name, block) = notification
            .find_block()
            .ok_or(NotificationRejection::NotANotification)?;
        let environment = check_app_and_environment(tenant, credentials, &block)?;
        // Apple signed it for this app: what is left to do is done for the tenant.
        if let NotificationArrival::Pushed(intake) = arrival {
            intake.charge(message.raw.get().len());
        }
        let parts = self
            .verify_parts(&block, &credentials.bundle_id, environment)
            .await?;
        let external_id = notification
            .notification_uuid
            .clone()
            .filter(|id| (1..=MAX_NOTIFICATION_ID_CHARS).contains(&id.chars().count()))
            .ok_or(AppleNotificationError::NoNotificationUuid)?;

        let part =
            |wanted: NotificationPart| find_part(&parts, wanted).map(|opened| &opened.content);
        let (transaction, renewal) = (
            part(NotificationPart::Transaction),
            part(NotificationPart::RenewalInfo),
        );
        let translation = translate::translate_notification(&notification, transaction);
        let known = self
            .find_state(tenant, credentials, environment, &block, &parts)
            .await;
        let reason = match translation.event_type {
            EventType::SubscriptionRefunded if known.is_earlier_period => {
                Some("earlier_period".into())
            }
            _ => translation.reason,
        };
        let signed_date = notification.signed_date.map(|Millis(moment)| moment);
        let app_user_id = [transaction, renewal]
            .into_iter()
            .flatten()
            .find_map(|part| translate::app_user(part.app_account_token.as_deref()))
            .map(str::to_owned);
        let (data, facts) = insert_decoded_parts(&raw, &name, &parts);
        let answer_by =
            answer_deadline(translation.event_type, signed_date, self.apple.clock.now());
        let transaction_id = transaction.and_then(|part| part.transaction_id.clone());
        let question = answer_by
            .zip(transaction_id)
            .map(|(answer_by, purchase_id)| NewRefundQuestion {
                source: EventSource::Apple,
                question_id: external_id.clone(),
                purchase_id,
                refund_token: None,
                environment: Some(environment.as_str()),
                answer_by,
            });
        let event = NewEvent {
            tenant: tenant.clone(),
            source: EventSource::Apple,
            external_id,
            event_type: translation.event_type,
            reason,
            platform_event: translation.platform_event,
            occurred_at: signed_date.filter(|date| is_representable_time(*date)),
            environment: Some(match environment {
                AppleEnvironment::Production => events::EventEnvironment::Production,
                AppleEnvironment::Sandbox => events::EventEnvironment::Sandbox,
            }),
            subject: transaction.and_then(|part| event_subject(part, known.is_current)),
            app_user_id_source: app_user_id.as_ref().map(|_| AppUserIdSource::Purchase),
            app_user_id,
            state: known.state,
            state_error: known.state_error,
            data,
            facts: Some(facts),
            raw: message.raw,
            shared_content: Some(shared_content),
            answer_by,
            is_recovered: matches!(arrival, NotificationArrival::Recovered),
        };
        Ok(BuiltEvent { event, question })
    }

    /// What the purchase is worth: by what the notification says, and where that does not decide, by Apple's answer.
    async fn find_state(
        &self,
        tenant: &TenantId,
        credentials: &Arc<AppleCredentials>,
        environment: AppleEnvironment,
        block: &NotificationBlock,
        parts: &[VerifiedPart],
    ) -> KnownState {
        let Some(part) = find_part(parts, NotificationPart::Transaction) else {
            return KnownState::default();
        };
        if let Some(known) = state_of_notification(block, parts, self.apple.clock.now()) {
            return known;
        }
        self.ask_for_state(tenant, credentials, environment, part)
            .await
            .unwrap_or_else(|error| {
                tracing::warn!(
                    tenantId = tenant.as_str(),
                    error,
                    hint = "the event is stored with state null; a receiver keeps the state that it has",
                    "apple_state_not_known"
                );
                KnownState::unavailable()
            })
    }

    async fn ask_for_state(
        &self,
        tenant: &TenantId,
        credentials: &Arc<AppleCredentials>,
        environment: AppleEnvironment,
        part: &VerifiedPart,
    ) -> Result<KnownState, String> {
        let content = &part.content;
        let id = content.original_transaction_id.as_deref();
        let id = id.or(content.transaction_id.as_deref());
        let question = self.apple.fetch_subscription(
            tenant,
            credentials,
            environment,
            id.ok_or("the transaction has no id")?,
        );
        let whole = tokio::time::timeout(MAX_STATE_WAIT, question)
            .await
            .map_err(|_| "Apple did not answer in time".to_owned())?
            .map_err(|error| Problem::from(error).message)?;
        let now = self.apple.clock.now();
        let state = purchase_state(&whole.facts(now), now);
        let state = state.ok_or("Apple's answer does not decide")?;
        let own: Option<TransactionPayload> = part.decode();
        Ok(KnownState {
            is_earlier_period: own.is_some_and(|own| is_earlier_period(&own, &state)),
            is_current: whole.transaction.transaction_id == content.transaction_id,
            state: Some(state),
            state_error: None,
        })
    }

    /// Verifies the parts of a notification that have a signature of their own, by the same rules as the notification.
    async fn verify_parts(
        &self,
        block: &NotificationBlock,
        bundle_id: &str,
        environment: AppleEnvironment,
    ) -> Result<Vec<VerifiedPart>, AppleNotificationError> {
        let mut verified = Vec::new();
        for part in [
            NotificationPart::Transaction,
            NotificationPart::RenewalInfo,
            NotificationPart::AppTransaction,
        ] {
            let Some(jws) = part.find_jws(block) else {
                continue;
            };
            let payload = self.apple.verify_jws(jws).await;
            let (content, raw) = payload
                .and_then(parse_payload)
                .and_then(|(value, raw)| {
                    let content = SignedPart::deserialize(&value);
                    Ok((content.map_err(|_| SignatureError::BadPayload)?, raw))
                })
                .map_err(|error| NotificationRejection::InvalidPartSignature(part, error))?;
            check_storable(raw.get())?;
            if !part.is_type_of(&content) {
                return Err(NotificationRejection::WrongPartType(part).into());
            }
            if !part.is_of_app_and_environment(&content, bundle_id, environment) {
                return Err(NotificationRejection::PartMismatch(part).into());
            }
            verified.push(VerifiedPart { part, content, raw });
        }
        Ok(verified)
    }
}

/// Until when Apple takes an answer to the notification. `None`: it asks for none.
fn answer_deadline(
    event_type: EventType,
    signed_date: Option<Timestamp>,
    received: Timestamp,
) -> Option<Timestamp> {
    let is_question = matches!(
        event_type,
        EventType::SubscriptionConsumptionRequest | EventType::ProductConsumptionRequest
    );
    let asked_at = signed_date.filter(|date| is_representable_time(*date));
    is_question.then(|| asked_at.unwrap_or(received).plus(ANSWER_PERIOD))
}

/// Checks the bundle id, the app Apple id and the environment, in the order of Apple's own server libraries.
fn check_app_and_environment(
    tenant: &TenantId,
    credentials: &AppleCredentials,
    block: &NotificationBlock,
) -> Result<AppleEnvironment, AppleNotificationError> {
    let environment = block_environment(block);
    let refuse =
        |why: NotificationRejection, expected: &dyn fmt::Display, found: Option<String>| {
            // Apple signed these values, and the operator needs them to correct the settings.
            tracing::warn!(
                tenantId = tenant.as_str(),
                error = %why,
                %expected,
                found = truncate_log_field(found.as_deref().unwrap_or("none")),
                "apple_notification_refused"
            );
            AppleNotificationError::from(why)
        };
    if block.bundle_id.as_deref() != Some(&*credentials.bundle_id) {
        let found = block.bundle_id.clone();
        return Err(refuse(
            NotificationRejection::BundleIdMismatch,
            &credentials.bundle_id,
            found,
        ));
    }
    let differs = match (credentials.app_apple_id, block.app_apple_id) {
        (Some(expected), Some(found)) => expected != found,
        // The sandbox may leave it out.
        (Some(_), None) => environment == Some(AppleEnvironment::Production),
        (None, _) => false,
    };
    if let Some(expected) = credentials.app_apple_id.filter(|_| differs) {
        let found = block.app_apple_id.map(|found| found.to_string());
        return Err(refuse(
            NotificationRejection::AppAppleIdMismatch,
            &expected,
            found,
        ));
    }
    let Some(environment) =
        environment.filter(|found| credentials.environment.allows_environment(*found))
    else {
        let found = environment.map(|found| found.as_apple_str().to_owned());
        let found = found.or_else(|| block.environment.clone());
        let expected = credentials.environment.as_str();
        return Err(refuse(
            NotificationRejection::EnvironmentMismatch,
            &expected,
            found,
        ));
    };
    if environment == AppleEnvironment::Production && credentials.app_apple_id.is_none() {
        tracing::warn!(
            tenantId = tenant.as_str(),
            hint = "a production notification needs the app's Apple id; add it with `attesto apple set-credentials --app-apple-id`",
            "apple_notification_refused"
        );
        return Err(AppleNotificationError::NoAppAppleId);
    }
    Ok(environment)
}

/// The environment of a notification. An external purchase token has it only at the beginning of its id.
fn block_environment(block: &NotificationBlock) -> Option<AppleEnvironment> {
    match (&block.environment, &block.external_purchase_id) {
        (Some(word), _) => AppleEnvironment::from_apple_str(word),
        (None, Some(id)) if id.starts_with("SANDBOX") => Some(AppleEnvironment::Sandbox),
        (None, Some(_)) => Some(AppleEnvironment::Production),
        (None, None) => None,
    }
}

/// A payload as a value and as the text that Apple signed.
fn parse_payload(payload: Vec<u8>) -> Result<(Value, Box<RawValue>), SignatureError> {
    // A value is parsed first: that rejects what Postgres does not store, such as half a surrogate pair.
    let value = serde_json::from_slice(&payload).map_err(|_| SignatureError::BadPayload)?;
    let raw = payload::to_raw_json(payload).ok_or(SignatureError::BadPayload)?;
    Ok((value, raw))
}

/// The payload with the decoded content of each signed part after its JWS, and the same without those JWSs.
fn insert_decoded_parts(
    payload: &RawValue,
    block: &str,
    parts: &[VerifiedPart],
) -> (Box<RawValue>, Box<RawValue>) {
    let whole = OrderedObject::parse_object(payload);
    let Some((mut whole, mut inner)) = whole.and_then(|whole| {
        let inner = whole.get_object(block)?;
        Some((whole, inner))
    }) else {
        return (payload.to_owned(), payload.to_owned());
    };
    for VerifiedPart { part, raw, .. } in parts {
        inner.insert_after(part.signed_field(), part.decoded_field(), raw.clone());
    }
    whole.replace_field(block, &inner);
    let data = whole.to_json();
    for VerifiedPart { part, .. } in parts {
        inner.remove_field(part.signed_field());
    }
    whole.replace_field(block, &inner);
    (data, whole.to_json())
}

/// The subscription or purchase that a transaction belongs to.
fn event_subject(transaction: &SignedPart, current: bool) -> Option<EventSubject> {
    let first = transaction.original_transaction_id.clone();
    Some(EventSubject {
        key: first.or_else(|| transaction.transaction_id.clone())?,
        product_id: transaction.product_id.clone(),
        r#type: if translate::is_subscription(transaction.r#type.as_deref()) {
            SubjectType::Subscription
        } else {
            SubjectType::Product
        },
        current,
        superseded_by: None,
    })
}
