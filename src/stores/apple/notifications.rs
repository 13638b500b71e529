//! The use case: Apple reports that something happened.
//!
//! In this order: is the tenant active; has it credentials; is the notification signed by Apple, of the tenant's app and
//! of an environment that the tenant is set up for; are the parts signed by themselves genuine and of the same app and
//! environment; has it an id. What passes is stored, whatever it says: a type or a block that is unknown here is stored
//! as unknown and delivered.
//!
//! What a part of it says is put beside that part's JWS: `signedTransactionInfo` is followed by `transactionInfo`,
//! `signedRenewalInfo` by `renewalInfo`, `signedAppTransactionInfo` by `appTransactionInfo`. All else stays as it was
//! written.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize as _;
use serde_json::Value;
use serde_json::value::RawValue;

use super::account::{AppleCredentials, AppleEnvironment, EnvironmentChoice};
use super::payload::{
    self, Millis, NotificationBlock, NotificationPayload, OrderedObject, SignedPart,
};
use super::translate;
use super::trust::SignatureError;
use super::verify::{AppleVerifier, VerifyJwsError};
use crate::base::id::TenantId;
use crate::db;
use crate::db::change_listener::ChangeListener;
use crate::events::{
    self, AcceptedNotification, EventRecorder, EventSource, EventSubject, NewEvent, RecordError,
    SubjectType,
};
use crate::stores::shared::credentials::LoadCredentialsError;
use crate::stores::shared::notifications::{ActiveTenants, is_representable_time};

/// How many tenants are looked up at once: the route can be called without authentication.
const MAX_CONCURRENT_LOOKUPS: usize = 8;
/// The longest id of a notification, in characters. Apple's are UUIDs.
const MAX_NOTIFICATION_ID_CHARS: usize = 256;

/// Takes Apple's notifications in. Clones share what is remembered.
#[derive(Clone)]
pub struct AppleNotifications {
    apple: AppleVerifier,
    active_tenants: ActiveTenants,
    recorder: EventRecorder,
}

/// A tenant that may be told something.
#[derive(Clone, Debug)]
pub struct ActiveTenant {
    tenant: TenantId,
}

/// Why nothing can be told to a tenant.
#[derive(Debug, thiserror::Error)]
pub enum ActiveTenantError {
    /// There is none of this id, or it is inactive.
    #[error("there is no active tenant of this id")]
    NotFound,
    /// Whether there is cannot be found out.
    #[error("{0}")]
    Database(Arc<db::Error>),
}

/// What Apple posts.
#[derive(Clone, Debug)]
pub struct SignedNotification {
    /// The notification as a JWS.
    pub signed_payload: String,
    /// The whole body as it was sent.
    pub raw: Box<RawValue>,
}

/// Why a notification is not stored.
#[derive(Debug, thiserror::Error)]
pub enum AppleNotificationError {
    /// The tenant has no Apple credentials.
    #[error("the tenant has no Apple credentials")]
    NoCredentials,
    /// It is of production, and without the app's Apple id nothing of production can be judged.
    #[error("the tenant has no app Apple id, which production needs")]
    NoAppAppleId,
    /// The tenant's credentials cannot be read.
    #[error("{0}")]
    Credentials(Arc<LoadCredentialsError>),
    /// It is not believed.
    #[error("{0}")]
    Rejected(#[from] NotificationRejection),
    /// Whether a certificate was revoked cannot be found out right now: Apple has to send it again.
    #[error("Apple's responder does not say whether the certificates were revoked")]
    OcspUnavailable {
        /// When to try again.
        retry_after: Duration,
    },
    /// It has no id, or none that can be one.
    #[error("the notification has no id")]
    NoNotificationUuid,
    /// The tenant was deactivated since it was let in.
    #[error("the tenant is not active")]
    TenantInactive,
    /// The database did not take it.
    #[error(transparent)]
    Database(#[from] db::Error),
}

impl From<RecordError> for AppleNotificationError {
    fn from(outcome: RecordError) -> Self {
        match outcome {
            RecordError::InactiveTenant => Self::TenantInactive,
            RecordError::Database(error) => Self::Database(error),
        }
    }
}

impl AppleNotificationError {
    fn from_jws_error(
        doubt: VerifyJwsError,
        distrusted: impl FnOnce(SignatureError) -> NotificationRejection,
    ) -> Self {
        match doubt {
            VerifyJwsError::InvalidSignature(why) => distrusted(why).into(),
            VerifyJwsError::OcspUnavailable { retry_after } => {
                Self::OcspUnavailable { retry_after }
            }
        }
    }
}

/// Why a notification is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotificationRejection {
    /// Apple did not sign it.
    #[error("{0}")]
    InvalidSignature(SignatureError),
    /// Apple signed it, and it names no app in any block.
    #[error("it is no notification: it says nowhere which app it is about")]
    NotANotification,
    /// It is about another app.
    #[error("it is about another app")]
    BundleIdMismatch,
    /// It gives the app another number.
    #[error("its app has another Apple id, or none")]
    AppAppleIdMismatch,
    /// It is of an environment that the tenant is not set up for, or says of none.
    #[error("it is of another environment than the tenant is set up for")]
    EnvironmentMismatch,
    /// Apple did not sign a part of it.
    #[error("its {0} does not convince: {1}")]
    InvalidPartSignature(NotificationPart, SignatureError),
    /// A part of it is something else than its name says.
    #[error("its {0} is something else of Apple's")]
    WrongPartType(NotificationPart),
    /// A part of it is about another app, or of another environment.
    #[error("its {0} is of another app or another environment than the rest")]
    PartMismatch(NotificationPart),
}

impl NotificationRejection {
    /// A short word for programs and tables.
    pub fn class(self) -> &'static str {
        match self {
            Self::InvalidSignature(why) | Self::InvalidPartSignature(_, why) => why.class(),
            Self::NotANotification => "not_a_notification",
            Self::BundleIdMismatch => "other_app",
            Self::AppAppleIdMismatch => "other_app_apple_id",
            Self::EnvironmentMismatch => "other_environment",
            Self::WrongPartType(_) => "other_part",
            Self::PartMismatch(_) => "misplaced_part",
        }
    }
}

/// A part of a notification that is signed by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotificationPart {
    /// The transaction.
    Transaction,
    /// The renewal info.
    RenewalInfo,
    /// The app transaction.
    AppTransaction,
}

impl NotificationPart {
    /// The field that holds its JWS.
    fn signed_field(self) -> &'static str {
        match self {
            Self::Transaction => "signedTransactionInfo",
            Self::RenewalInfo => "signedRenewalInfo",
            Self::AppTransaction => "signedAppTransactionInfo",
        }
    }

    /// The field that it is put into when it is decoded.
    fn decoded_field(self) -> &'static str {
        match self {
            Self::Transaction => "transactionInfo",
            Self::RenewalInfo => "renewalInfo",
            Self::AppTransaction => "appTransactionInfo",
        }
    }

    fn find_jws(self, block: &NotificationBlock) -> Option<&str> {
        match self {
            Self::Transaction => block.signed_transaction_info.as_deref(),
            Self::RenewalInfo => block.signed_renewal_info.as_deref(),
            Self::AppTransaction => block.signed_app_transaction_info.as_deref(),
        }
    }

    /// The same keys sign all three: whether it is what its name says.
    fn is_type_of(self, what: &SignedPart) -> bool {
        let (one, all) = (
            what.transaction_id.is_some(),
            what.original_transaction_id.is_some(),
        );
        match self {
            Self::Transaction => one,
            Self::RenewalInfo => all && !one,
            Self::AppTransaction => what.receipt_type.is_some(),
        }
    }

    /// Whether it belongs to this app, and to this environment.
    fn is_of_app_and_environment(
        self,
        what: &SignedPart,
        bundle_id: &str,
        environment: AppleEnvironment,
    ) -> bool {
        let (app, place) = match self {
            Self::Transaction => (what.bundle_id.as_deref(), &what.environment),
            // It names no app.
            Self::RenewalInfo => (Some(bundle_id), &what.environment),
            Self::AppTransaction => (what.bundle_id.as_deref(), &what.receipt_type),
        };
        app == Some(bundle_id) && place.as_deref() == Some(environment.as_apple_str())
    }
}

impl fmt::Display for NotificationPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.signed_field())
    }
}

/// A part whose signature was checked.
struct VerifiedPart {
    part: NotificationPart,
    content: SignedPart,
    raw: Box<RawValue>,
}

impl AppleNotifications {
    /// Stores with `record` what passes; believes what `apple` believes.
    pub fn new(apple: &AppleVerifier, recorder: EventRecorder, changes: &ChangeListener) -> Self {
        Self {
            active_tenants: ActiveTenants::new(&apple.database, &apple.clock, changes)
                .with_max_concurrent_lookups(MAX_CONCURRENT_LOOKUPS),
            apple: apple.clone(),
            recorder,
        }
    }

    /// Whether anything may be told to `tenant`.
    pub async fn find_active_tenant(
        &self,
        tenant: &TenantId,
    ) -> Result<ActiveTenant, ActiveTenantError> {
        let is_active = self.active_tenants.is_active(tenant).await;
        if !is_active.map_err(ActiveTenantError::Database)? {
            return Err(ActiveTenantError::NotFound);
        }
        Ok(ActiveTenant {
            tenant: tenant.clone(),
        })
    }

    /// Stores what Apple says, if Apple says it. When this returns a receipt, it is committed.
    pub async fn accept_notification(
        &self,
        admitted: ActiveTenant,
        message: SignedNotification,
    ) -> Result<AcceptedNotification, AppleNotificationError> {
        let ActiveTenant { tenant } = admitted;
        let credentials = self
            .apple
            .get_credentials(&tenant)
            .await
            .map_err(AppleNotificationError::Credentials)?
            .ok_or(AppleNotificationError::NoCredentials)?;
        let event = self.build_event(tenant, &credentials, message).await?;
        let external_id = event.external_id.clone();
        let stored = self.recorder.record_event(&event).await?;
        Ok(AcceptedNotification::new(stored, external_id))
    }

    async fn build_event(
        &self,
        tenant: TenantId,
        credentials: &AppleCredentials,
        message: SignedNotification,
    ) -> Result<NewEvent, AppleNotificationError> {
        let has_id = credentials.app_apple_id.is_some();
        if credentials.environment == EnvironmentChoice::Production && !has_id {
            return Err(AppleNotificationError::NoAppAppleId);
        }
        let signed = self
            .apple
            .verify_jws_any_length(&message.signed_payload)
            .await;
        let (value, raw) = signed
            .and_then(|payload| Ok(parse_payload(payload)?))
            .map_err(|doubt| {
                AppleNotificationError::from_jws_error(
                    doubt,
                    NotificationRejection::InvalidSignature,
                )
            })?;
        let notification = NotificationPayload::deserialize(&value)
            .map_err(|_| NotificationRejection::InvalidSignature(SignatureError::BadPayload))?;
        let (name, block) = notification
            .find_block()
            .ok_or(NotificationRejection::NotANotification)?;
        let environment = check_app_and_environment(&tenant, credentials, &block)?;
        let parts = self
            .verify_parts(&block, &credentials.bundle_id, environment)
            .await?;
        let external_id = notification
            .notification_uuid
            .clone()
            .filter(|id| (1..=MAX_NOTIFICATION_ID_CHARS).contains(&id.chars().count()))
            .ok_or(AppleNotificationError::NoNotificationUuid)?;

        let part = |wanted: NotificationPart| {
            let found = parts.iter().find(|opened| opened.part == wanted);
            found.map(|opened| &opened.content)
        };
        let (transaction, renewal) = (
            part(NotificationPart::Transaction),
            part(NotificationPart::RenewalInfo),
        );
        let meaning = translate::translate_notification(&notification, transaction);
        let signed_on = notification.signed_date.map(|Millis(moment)| moment);
        Ok(NewEvent {
            tenant,
            source: EventSource::Apple,
            external_id,
            event_type: meaning.event_type,
            reason: meaning.reason,
            platform_event: meaning.platform_event,
            occurred_at: signed_on.filter(|moment| is_representable_time(*moment)),
            environment: Some(match environment {
                AppleEnvironment::Production => events::EventEnvironment::Production,
                AppleEnvironment::Sandbox => events::EventEnvironment::Sandbox,
            }),
            subject: transaction.and_then(event_subject),
            app_user_id: [transaction, renewal]
                .into_iter()
                .flatten()
                .find_map(|part| part.app_account_token.clone()),
            data: insert_decoded_parts(&raw, &name, &parts),
            raw: message.raw,
        })
    }

    /// Opens what is signed inside of a notification, by the same rules as the notification itself.
    async fn verify_parts(
        &self,
        block: &NotificationBlock,
        bundle_id: &str,
        environment: AppleEnvironment,
    ) -> Result<Vec<VerifiedPart>, AppleNotificationError> {
        let mut opened = Vec::new();
        for part in [
            NotificationPart::Transaction,
            NotificationPart::RenewalInfo,
            NotificationPart::AppTransaction,
        ] {
            let Some(jws) = part.find_jws(block) else {
                continue;
            };
            let signed = self.apple.verify_jws(jws).await;
            let distrusted = |why| NotificationRejection::InvalidPartSignature(part, why);
            let (value, raw) = signed
                .and_then(|payload| Ok(parse_payload(payload)?))
                .map_err(|doubt| AppleNotificationError::from_jws_error(doubt, distrusted))?;
            let what = SignedPart::deserialize(&value)
                .map_err(|_| distrusted(SignatureError::BadPayload))?;
            if !part.is_type_of(&what) {
                return Err(NotificationRejection::WrongPartType(part).into());
            }
            if !part.is_of_app_and_environment(&what, bundle_id, environment) {
                return Err(NotificationRejection::PartMismatch(part).into());
            }
            opened.push(VerifiedPart {
                part,
                content: what,
                raw,
            });
        }
        Ok(opened)
    }
}

/// Whose app, and which environment: in the order in which Apple's own libraries look.
fn check_app_and_environment(
    tenant: &TenantId,
    credentials: &AppleCredentials,
    block: &NotificationBlock,
) -> Result<AppleEnvironment, AppleNotificationError> {
    let environment = block_environment(block);
    let refuse =
        |why: NotificationRejection, expected: &dyn fmt::Display, found: Option<String>| {
            // Apple vouches for these words, and the operator needs them to set it right.
            tracing::warn!(
                tenantId = tenant.as_str(),
                error = %why,
                %expected,
                found = found.as_deref().unwrap_or("none"),
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
            "apple_notification_refused: it is of production, which needs the app's Apple id; add it with `attesto apple set-credentials --app-apple-id`"
        );
        return Err(AppleNotificationError::NoAppAppleId);
    }
    Ok(environment)
}

/// Where it happened. A token for an external purchase says so only in the beginning of its id.
fn block_environment(block: &NotificationBlock) -> Option<AppleEnvironment> {
    match (&block.environment, &block.external_purchase_id) {
        (Some(word), _) => AppleEnvironment::from_apple_str(word),
        (None, Some(id)) if id.starts_with("SANDBOX") => Some(AppleEnvironment::Sandbox),
        (None, Some(_)) => Some(AppleEnvironment::Production),
        (None, None) => None,
    }
}

/// A payload, understood as JSON and as it was written.
fn parse_payload(payload: Vec<u8>) -> Result<(Value, Box<RawValue>), SignatureError> {
    // Read as a value first: that refuses what a database would not take, such as half a surrogate pair.
    let value = serde_json::from_slice(&payload).map_err(|_| SignatureError::BadPayload)?;
    let raw = payload::to_raw_json(payload).ok_or(SignatureError::BadPayload)?;
    Ok((value, raw))
}

/// The payload, in whose block each signed part is decoded beside its JWS.
fn insert_decoded_parts(payload: &RawValue, block: &str, parts: &[VerifiedPart]) -> Box<RawValue> {
    let whole = OrderedObject::parse_object(payload);
    let Some((mut whole, mut inner)) = whole.and_then(|whole| {
        let inner = whole.get_object(block)?;
        Some((whole, inner))
    }) else {
        return payload.to_owned();
    };
    for VerifiedPart { part, raw, .. } in parts {
        inner.insert_after(part.signed_field(), part.decoded_field(), raw.clone());
    }
    whole.replace_field(block, &inner);
    whole.to_json()
}

/// What a transaction is about.
fn event_subject(transaction: &SignedPart) -> Option<EventSubject> {
    let first = transaction.original_transaction_id.clone();
    Some(EventSubject {
        key: first.or_else(|| transaction.transaction_id.clone())?,
        product_id: transaction.product_id.clone(),
        r#type: if translate::is_subscription(transaction) {
            SubjectType::Subscription
        } else {
            SubjectType::Product
        },
    })
}
