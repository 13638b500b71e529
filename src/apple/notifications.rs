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
use tokio::sync::Semaphore;

use super::account::{Credentials, Environment, EnvironmentChoice};
use super::payload::{self, Block, Millis, Notification, SignedPart, Written};
use super::store::FindError;
use super::translate;
use super::trust::Distrust;
use super::verify::{Apple, Doubt};
use crate::clock::Timestamp;
use crate::credentials::Cached;
use crate::db;
use crate::db::changes::Changes;
use crate::events::{self, NewEvent, NotStored, Receipt, Record, Source, Subject, SubjectType};
use crate::id::TenantId;
use crate::tenants;

/// How long it is remembered that a tenant is active; a change is heard of.
const ACTIVE_FOR: Duration = Duration::from_mins(5);
/// How many tenants are looked up in the database at once: anybody may post here, and others need connections too.
const LOOKUPS_AT_ONCE: usize = 8;
/// How long a notification waits for its turn.
const PATIENCE: Duration = Duration::from_secs(2);
/// The longest id of a notification, in characters. Apple's are UUIDs.
const LONGEST_ID: usize = 256;
/// The end of the year 9999, beyond which no time can be written.
const END_OF_TIME: i64 = 253_402_300_799_999;

/// Takes Apple's notifications in. Clones share what is remembered.
#[derive(Clone)]
pub struct Notifications {
    apple: Apple,
    active: Cached<(), db::Error>,
    lookups: Arc<Semaphore>,
    record: Record,
}

/// A tenant that may be told something.
#[derive(Clone, Debug)]
pub struct Admitted {
    tenant: TenantId,
}

/// Why nothing can be told to a tenant.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// There is none of this id, or it is inactive.
    #[error("there is no active tenant of this id")]
    Unknown,
    /// Whether there is cannot be found out.
    #[error("{0}")]
    Database(Arc<db::Error>),
}

/// What Apple posts.
#[derive(Clone, Debug)]
pub struct Message {
    /// The notification as a JWS.
    pub signed_payload: String,
    /// The whole body as it was sent.
    pub raw: Box<RawValue>,
}

/// Why a notification is not stored.
#[derive(Debug, thiserror::Error)]
pub enum NotAccepted {
    /// The tenant has no Apple credentials.
    #[error("the tenant has no Apple credentials")]
    NoCredentials,
    /// It is of production, and without the app's Apple id nothing of production can be judged.
    #[error("the tenant has no app Apple id, which production needs")]
    NoAppAppleId,
    /// The tenant's credentials cannot be read.
    #[error("{0}")]
    Credentials(Arc<FindError>),
    /// It is not believed.
    #[error("{0}")]
    Untrusted(#[from] Untrusted),
    /// Whether a certificate was revoked cannot be found out right now: Apple has to send it again.
    #[error("Apple's responder does not say whether the certificates were revoked")]
    Unanswered {
        /// When to try again.
        retry_after: Duration,
    },
    /// It has no id, or none that can be one.
    #[error("the notification has no id")]
    NoId,
    /// The tenant was deactivated since it was let in.
    #[error("the tenant is not active")]
    Inactive,
    /// The database did not take it.
    #[error(transparent)]
    Database(#[from] db::Error),
}

impl From<NotStored> for NotAccepted {
    fn from(outcome: NotStored) -> Self {
        match outcome {
            NotStored::Inactive => Self::Inactive,
            NotStored::Database(error) => Self::Database(error),
        }
    }
}

impl NotAccepted {
    fn doubted(doubt: Doubt, distrusted: impl FnOnce(Distrust) -> Untrusted) -> Self {
        match doubt {
            Doubt::Distrusted(why) => distrusted(why).into(),
            Doubt::Unanswered { retry_after } => Self::Unanswered { retry_after },
        }
    }
}

/// Why a notification is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Untrusted {
    /// Apple did not sign it.
    #[error("{0}")]
    Distrusted(Distrust),
    /// Apple signed it, and it names no app in any block.
    #[error("it is no notification: it says nowhere which app it is about")]
    NotANotification,
    /// It is about another app.
    #[error("it is about another app")]
    OtherApp,
    /// It gives the app another number.
    #[error("its app has another Apple id, or none")]
    OtherAppleId,
    /// It is of an environment that the tenant is not set up for, or says of none.
    #[error("it is of another environment than the tenant is set up for")]
    OtherEnvironment,
    /// Apple did not sign a part of it.
    #[error("its {0} does not convince: {1}")]
    DistrustedPart(Part, Distrust),
    /// A part of it is something else than its name says.
    #[error("its {0} is something else of Apple's")]
    OtherPart(Part),
    /// A part of it is about another app, or of another environment.
    #[error("its {0} is of another app or another environment than the rest")]
    MisplacedPart(Part),
}

impl Untrusted {
    /// A short word for programs and tables.
    pub fn class(self) -> &'static str {
        match self {
            Self::Distrusted(why) | Self::DistrustedPart(_, why) => why.class(),
            Self::NotANotification => "not_a_notification",
            Self::OtherApp => "other_app",
            Self::OtherAppleId => "other_app_apple_id",
            Self::OtherEnvironment => "other_environment",
            Self::OtherPart(_) => "other_part",
            Self::MisplacedPart(_) => "misplaced_part",
        }
    }
}

/// A part of a notification that is signed by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The transaction.
    Transaction,
    /// The renewal info.
    Renewal,
    /// The app transaction.
    AppTransaction,
}

impl Part {
    /// The field that holds its JWS.
    fn signed(self) -> &'static str {
        match self {
            Self::Transaction => "signedTransactionInfo",
            Self::Renewal => "signedRenewalInfo",
            Self::AppTransaction => "signedAppTransactionInfo",
        }
    }

    /// The field that it is put into when it is decoded.
    fn decoded(self) -> &'static str {
        match self {
            Self::Transaction => "transactionInfo",
            Self::Renewal => "renewalInfo",
            Self::AppTransaction => "appTransactionInfo",
        }
    }

    fn jws(self, block: &Block) -> Option<&str> {
        match self {
            Self::Transaction => block.signed_transaction_info.as_deref(),
            Self::Renewal => block.signed_renewal_info.as_deref(),
            Self::AppTransaction => block.signed_app_transaction_info.as_deref(),
        }
    }

    /// The same keys sign all three: whether it is what its name says.
    fn is(self, what: &SignedPart) -> bool {
        let (one, all) = (
            what.transaction_id.is_some(),
            what.original_transaction_id.is_some(),
        );
        match self {
            Self::Transaction => one,
            Self::Renewal => all && !one,
            Self::AppTransaction => what.receipt_type.is_some(),
        }
    }

    /// Whether it belongs to this app, and to this environment.
    fn belongs(self, what: &SignedPart, bundle_id: &str, environment: Environment) -> bool {
        let (app, place) = match self {
            Self::Transaction => (what.bundle_id.as_deref(), &what.environment),
            // It names no app.
            Self::Renewal => (Some(bundle_id), &what.environment),
            Self::AppTransaction => (what.bundle_id.as_deref(), &what.receipt_type),
        };
        app == Some(bundle_id) && place.as_deref() == Some(environment.as_apple())
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.signed())
    }
}

/// A part whose signature was checked.
struct Opened {
    part: Part,
    what: SignedPart,
    raw: Box<RawValue>,
}

impl Notifications {
    /// Stores with `record` what passes; believes what `apple` believes.
    pub fn new(apple: &Apple, record: Record, changes: &Changes) -> Self {
        Self {
            active: Cached::new("tenants", ACTIVE_FOR, apple.clock.clone(), changes),
            lookups: Arc::new(Semaphore::new(LOOKUPS_AT_ONCE)),
            apple: apple.clone(),
            record,
        }
    }

    /// Whether anything may be told to `tenant`.
    pub async fn admit(&self, tenant: &TenantId) -> Result<Admitted, Refused> {
        let (database, whose) = (self.apple.database.clone(), tenant.clone());
        let lookups = self.lookups.clone();
        let find = async move {
            let turn = tokio::time::timeout(PATIENCE, lookups.acquire()).await;
            let Ok(Ok(_turn)) = turn else {
                return Err(db::Error::PoolTimedOut);
            };
            let tenant = tenants::store::find_tenant(&database, &whose).await?;
            Ok(tenant.filter(|tenant| tenant.is_active).map(drop))
        };
        self.active
            .get(tenant, find)
            .await
            .map_err(Refused::Database)?
            .ok_or(Refused::Unknown)?;
        Ok(Admitted {
            tenant: tenant.clone(),
        })
    }

    /// Stores what Apple says, if Apple says it. When this returns a receipt, it is committed.
    pub async fn accept(
        &self,
        admitted: Admitted,
        message: Message,
    ) -> Result<Receipt, NotAccepted> {
        let Admitted { tenant } = admitted;
        let credentials = self
            .apple
            .credentials(&tenant)
            .await
            .map_err(NotAccepted::Credentials)?
            .ok_or(NotAccepted::NoCredentials)?;
        let event = self.event(tenant, &credentials, message).await?;
        let external_id = event.external_id.clone();
        let stored = self.record.store(&event).await?;
        Ok(Receipt::new(stored, external_id))
    }

    async fn event(
        &self,
        tenant: TenantId,
        credentials: &Credentials,
        message: Message,
    ) -> Result<NewEvent, NotAccepted> {
        let has_id = credentials.app_apple_id.is_some();
        if credentials.environment == EnvironmentChoice::Production && !has_id {
            return Err(NotAccepted::NoAppAppleId);
        }
        let signed = self.apple.believe_any_length(&message.signed_payload).await;
        let (value, raw) = signed
            .and_then(|payload| Ok(read(payload)?))
            .map_err(|doubt| NotAccepted::doubted(doubt, Untrusted::Distrusted))?;
        let notification = Notification::deserialize(&value)
            .map_err(|_| Untrusted::Distrusted(Distrust::BadPayload))?;
        let (name, block) = notification.block().ok_or(Untrusted::NotANotification)?;
        let environment = judge(&tenant, credentials, &block)?;
        let parts = self
            .open(&block, &credentials.bundle_id, environment)
            .await?;
        let external_id = notification
            .notification_uuid
            .clone()
            .filter(|id| (1..=LONGEST_ID).contains(&id.chars().count()))
            .ok_or(NotAccepted::NoId)?;

        let part = |wanted: Part| {
            let found = parts.iter().find(|opened| opened.part == wanted);
            found.map(|opened| &opened.what)
        };
        let (transaction, renewal) = (part(Part::Transaction), part(Part::Renewal));
        let meaning = translate::meaning(&notification, transaction);
        let signed_on = notification.signed_date.map(|Millis(moment)| moment);
        Ok(NewEvent {
            tenant,
            source: Source::Apple,
            external_id,
            word: meaning.word,
            reason: meaning.reason,
            platform_event: meaning.platform_event,
            occurred_at: signed_on.filter(|moment| can_be_written(*moment)),
            environment: Some(match environment {
                Environment::Production => events::Environment::Production,
                Environment::Sandbox => events::Environment::Sandbox,
            }),
            subject: transaction.and_then(subject),
            app_user_id: [transaction, renewal]
                .into_iter()
                .flatten()
                .find_map(|part| part.app_account_token.clone()),
            data: complete(&raw, &name, &parts),
            raw: message.raw,
        })
    }

    /// Opens what is signed inside of a notification, by the same rules as the notification itself.
    async fn open(
        &self,
        block: &Block,
        bundle_id: &str,
        environment: Environment,
    ) -> Result<Vec<Opened>, NotAccepted> {
        let mut opened = Vec::new();
        for part in [Part::Transaction, Part::Renewal, Part::AppTransaction] {
            let Some(jws) = part.jws(block) else { continue };
            let signed = self.apple.believe(jws).await;
            let distrusted = |why| Untrusted::DistrustedPart(part, why);
            let (value, raw) = signed
                .and_then(|payload| Ok(read(payload)?))
                .map_err(|doubt| NotAccepted::doubted(doubt, distrusted))?;
            let what =
                SignedPart::deserialize(&value).map_err(|_| distrusted(Distrust::BadPayload))?;
            if !part.is(&what) {
                return Err(Untrusted::OtherPart(part).into());
            }
            if !part.belongs(&what, bundle_id, environment) {
                return Err(Untrusted::MisplacedPart(part).into());
            }
            opened.push(Opened { part, what, raw });
        }
        Ok(opened)
    }
}

/// Whose app, and which environment: in the order in which Apple's own libraries look.
fn judge(
    tenant: &TenantId,
    credentials: &Credentials,
    block: &Block,
) -> Result<Environment, NotAccepted> {
    let environment = environment(block);
    let refuse = |why: Untrusted, expected: &dyn fmt::Display, found: Option<String>| {
        // Apple vouches for these words, and the operator needs them to set it right.
        tracing::warn!(
            tenantId = tenant.as_str(),
            error = %why,
            %expected,
            found = found.as_deref().unwrap_or("none"),
            "apple_notification_refused"
        );
        NotAccepted::from(why)
    };
    if block.bundle_id.as_deref() != Some(&*credentials.bundle_id) {
        let found = block.bundle_id.clone();
        return Err(refuse(Untrusted::OtherApp, &credentials.bundle_id, found));
    }
    let differs = match (credentials.app_apple_id, block.app_apple_id) {
        (Some(expected), Some(found)) => expected != found,
        // The sandbox may leave it out.
        (Some(_), None) => environment == Some(Environment::Production),
        (None, _) => false,
    };
    if let Some(expected) = credentials.app_apple_id.filter(|_| differs) {
        let found = block.app_apple_id.map(|found| found.to_string());
        return Err(refuse(Untrusted::OtherAppleId, &expected, found));
    }
    let Some(environment) = environment.filter(|found| credentials.environment.allows(*found))
    else {
        let found = environment.map(|found| found.as_apple().to_owned());
        let found = found.or_else(|| block.environment.clone());
        let expected = credentials.environment.as_str();
        return Err(refuse(Untrusted::OtherEnvironment, &expected, found));
    };
    if environment == Environment::Production && credentials.app_apple_id.is_none() {
        tracing::warn!(
            tenantId = tenant.as_str(),
            "apple_notification_refused: it is of production, which needs the app's Apple id; add it with `attesto apple set-credentials --app-apple-id`"
        );
        return Err(NotAccepted::NoAppAppleId);
    }
    Ok(environment)
}

/// Where it happened. A token for an external purchase says so only in the beginning of its id.
fn environment(block: &Block) -> Option<Environment> {
    match (&block.environment, &block.external_purchase_id) {
        (Some(word), _) => Environment::from_apple(word),
        (None, Some(id)) if id.starts_with("SANDBOX") => Some(Environment::Sandbox),
        (None, Some(_)) => Some(Environment::Production),
        (None, None) => None,
    }
}

/// A payload, understood as JSON and as it was written.
fn read(payload: Vec<u8>) -> Result<(Value, Box<RawValue>), Distrust> {
    // Read as a value first: that refuses what a database would not take, such as half a surrogate pair.
    let value = serde_json::from_slice(&payload).map_err(|_| Distrust::BadPayload)?;
    let raw = payload::raw(payload).ok_or(Distrust::BadPayload)?;
    Ok((value, raw))
}

/// The payload, in whose block each signed part is decoded beside its JWS.
fn complete(payload: &RawValue, block: &str, parts: &[Opened]) -> Box<RawValue> {
    let whole = Written::read(payload);
    let Some((mut whole, mut inner)) = whole.and_then(|whole| {
        let inner = whole.object(block)?;
        Some((whole, inner))
    }) else {
        return payload.to_owned();
    };
    for Opened { part, raw, .. } in parts {
        inner.put_behind(part.signed(), part.decoded(), raw.clone());
    }
    whole.replace(block, &inner);
    whole.write()
}

/// What a transaction is about.
fn subject(transaction: &SignedPart) -> Option<Subject> {
    let first = transaction.original_transaction_id.clone();
    Some(Subject {
        key: first.or_else(|| transaction.transaction_id.clone())?,
        product_id: transaction.product_id.clone(),
        r#type: if translate::is_subscription(transaction) {
            SubjectType::Subscription
        } else {
            SubjectType::Product
        },
    })
}

fn can_be_written(moment: Timestamp) -> bool {
    (1..=END_OF_TIME).contains(&moment.millis())
}
