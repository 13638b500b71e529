//! The use case: Google reports that something happened to a purchase.
//!
//! In this order: is the push Google's, for this tenant, from the account it named; is the tenant active; is the message
//! about the tenant's app. What passes is stored, whatever it says and whether or not Google can be asked about the
//! purchase: an authenticated message that cannot be read is stored as unknown, because Google would send it again for
//! a week.
//!
//! A message about another app is refused, not dropped: either the topic or the tenant's package name is set up wrongly,
//! and as long as it is refused, Google keeps it for whoever puts that right.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::time::{Instant, timeout_at};

use super::api::{GoogleNotFound, PurchaseLookupError, PurchaseResponse};
use super::chain::{PurchaseChain, PurchaseLink};
use super::payload::{DeveloperNotification, Int64, ProductPurchase, SubscriptionPurchase};
use super::store::{self, GoogleCredentials};
use super::translate::{self, ReplacedPurchase};
use super::trust::{GoogleKeys, KeyLookupError, PushToken, PushTokenError};
use super::verify::GoogleVerifier;
use crate::base::clock::Timestamp;
use crate::base::id::TenantId;
use crate::db;
use crate::db::change_listener::ChangeListener;
use crate::events::{
    AcceptedNotification, EventEnvironment, EventRecorder, EventSource, EventSubject, NewEvent,
    RecordError, SubjectType,
};
use crate::stores::shared::credentials::LoadCredentialsError;
use crate::stores::shared::notifications::{ActiveTenants, is_representable_time};

/// How long Google is asked about a purchase, all questions together. A push must be answered within ten seconds.
const PURCHASE_LOOKUP_TIMEOUT: Duration = Duration::from_secs(3);
/// How many purchases Google is asked about for one message; the rest of a longer chain is learned with the next.
const MAX_PURCHASE_LOOKUPS: usize = 16;
/// How many links of a chain are read at once.
const MAX_LINKS_PER_QUERY: i32 = 1000;
/// Google's number for a new purchase.
const SUBSCRIPTION_PURCHASED: Int64 = Int64(4);

/// Takes Google's notifications in. Clones share what is remembered.
#[derive(Clone)]
pub struct GoogleNotifications {
    google: GoogleVerifier,
    keys: GoogleKeys,
    active_tenants: ActiveTenants,
    recorder: EventRecorder,
}

/// Whose push it is, once it is believed.
#[derive(Clone, Debug)]
pub struct AuthenticatedPush {
    tenant: TenantId,
    credentials: Arc<GoogleCredentials>,
}

/// Why a push is not let in.
#[derive(Debug, thiserror::Error)]
pub enum PushAuthError {
    /// It is not believed.
    #[error("{0}")]
    InvalidToken(#[from] PushTokenError),
    /// Whether it can be believed cannot be told without Google's keys.
    #[error("Google's keys cannot be had right now")]
    KeysUnavailable,
    /// The tenant is inactive.
    #[error("the tenant is inactive")]
    TenantInactive,
    /// The tenant's credentials cannot be read.
    #[error("{0}")]
    Credentials(Arc<LoadCredentialsError>),
    /// Whether the tenant is active cannot be found out.
    #[error("{0}")]
    Database(Arc<db::Error>),
}

/// What a push brings.
#[derive(Clone, Debug)]
pub struct PubsubMessage {
    /// Pub/Sub's `messageId`, the same on every repeat.
    pub id: String,
    /// Google's message, in base64.
    pub data: Option<String>,
    /// When Pub/Sub took it.
    pub publish_time: Option<Timestamp>,
    /// The whole push as it was sent.
    pub raw: Box<RawValue>,
}

/// Why a message of a believed push is not stored.
#[derive(Debug, thiserror::Error)]
pub enum GoogleNotificationError {
    /// It is about another app.
    #[error("the message is about another app")]
    PackageNameMismatch {
        /// The tenant's app.
        expected: String,
    },
    /// The tenant was deactivated since it was let in.
    #[error("the tenant is not active")]
    TenantInactive,
    /// The database did not take it.
    #[error(transparent)]
    Database(#[from] db::Error),
}

impl From<RecordError> for GoogleNotificationError {
    fn from(outcome: RecordError) -> Self {
        match outcome {
            RecordError::InactiveTenant => Self::TenantInactive,
            RecordError::Database(error) => Self::Database(error),
        }
    }
}

/// What Google tells of the purchase behind a message, as far as it could be asked.
#[derive(Default)]
struct PurchaseContext {
    subscription: Option<SubscriptionPurchase>,
    product: Option<ProductPurchase>,
    replaced_purchase: ReplacedPurchase,
    /// The first purchase of the subscription.
    first_token: Option<String>,
}

impl GoogleNotifications {
    /// Stores with `record` what passes; asks about purchases through `google`.
    pub fn new(
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

    /// Whether a push to `tenant` with this token is let in. Everything about the token comes before anything about the
    /// tenant: a stranger learns nothing of who is a tenant here.
    pub async fn authenticate_push(
        &self,
        tenant: &TenantId,
        token: Option<&str>,
    ) -> Result<AuthenticatedPush, PushAuthError> {
        let token = PushToken::parse(token.ok_or(PushTokenError::Missing)?)?;
        let key = self
            .keys
            .find_key(token.key_id())
            .await
            .map_err(|no| match no {
                KeyLookupError::Unknown => PushAuthError::InvalidToken(PushTokenError::UnknownKey),
                KeyLookupError::Unreachable => PushAuthError::KeysUnavailable,
            })?;
        let pusher = token.verify_token(&key, self.google.clock.now())?;
        let credentials = self
            .google
            .get_credentials(tenant)
            .await
            .map_err(PushAuthError::Credentials)?
            .ok_or(PushTokenError::NoCredentials)?;
        if let Err(why) = pusher.check_push_settings(tenant, &credentials.push_settings) {
            // Google vouches for these words, and the operator needs them to set it right.
            tracing::warn!(
                tenantId = tenant.as_str(),
                error = %why,
                account = pusher.account.as_deref().unwrap_or("none that is verified"),
                audience = pusher.audience,
                "google_push_refused"
            );
            return Err(why.into());
        }
        let is_active = self.active_tenants.is_active(tenant).await;
        if !is_active.map_err(PushAuthError::Database)? {
            return Err(PushAuthError::TenantInactive);
        }
        Ok(AuthenticatedPush {
            tenant: tenant.clone(),
            credentials,
        })
    }

    /// Stores what a believed push brings. When this returns a receipt, it is committed.
    pub async fn accept_notification(
        &self,
        admitted: AuthenticatedPush,
        message: PubsubMessage,
    ) -> Result<AcceptedNotification, GoogleNotificationError> {
        let (notification, data) = parse_notification(message.data.as_deref());
        let expected = &admitted.credentials.package_name;
        let found = notification
            .as_ref()
            .and_then(|notification| notification.package_name.as_ref());
        if let Some(found) = found
            && found != expected
        {
            tracing::warn!(
                tenantId = admitted.tenant.as_str(),
                expected,
                found,
                "google_message_of_another_app: check the tenant's package name, and that the topic is this app's only"
            );
            return Err(GoogleNotificationError::PackageNameMismatch {
                expected: expected.clone(),
            });
        }
        let event = self
            .build_event(&admitted, &message, notification, data)
            .await;
        let stored = self.recorder.record_event(&event).await?;
        Ok(AcceptedNotification::new(stored, message.id))
    }

    async fn build_event(
        &self,
        admitted: &AuthenticatedPush,
        message: &PubsubMessage,
        notification: Option<DeveloperNotification>,
        data: Box<RawValue>,
    ) -> NewEvent {
        let mut event = NewEvent {
            tenant: admitted.tenant.clone(),
            source: EventSource::Google,
            external_id: message.id.clone(),
            event_type: crate::events::EventType::Unknown,
            reason: None,
            platform_event: String::new(),
            occurred_at: message.publish_time,
            environment: None,
            subject: None,
            app_user_id: None,
            data,
            raw: message.raw.clone(),
        };
        let meaning = if let Some(notification) = notification {
            let learned = self.look_up_purchase(admitted, &notification).await;
            let happened = notification
                .event_time_millis
                .map(|Int64(millis)| Timestamp::from_millis(millis))
                .filter(|time| is_representable_time(*time));
            if happened.is_some() {
                event.occurred_at = happened;
            }
            event.subject = event_subject(&notification, &learned);
            event.environment = learned.purchase_environment();
            event.app_user_id = app_user_id(&notification, &learned);
            translate::translate_notification(
                &notification,
                learned.subscription.as_ref(),
                learned.replaced_purchase,
            )
        } else {
            translate::unreadable_message()
        };
        event.event_type = meaning.event_type;
        event.reason = meaning.reason.map(Into::into);
        event.platform_event = meaning.platform_event;
        event
    }

    /// Asks Google about the purchase, and about those behind it that are not known yet. Never fails, and never takes
    /// longer than a few seconds: what could not be learned is left out.
    async fn look_up_purchase(
        &self,
        admitted: &AuthenticatedPush,
        notification: &DeveloperNotification,
    ) -> PurchaseContext {
        let mut learned = PurchaseContext::default();
        let mut asking = PurchaseLookup {
            google: &self.google,
            push: admitted,
            deadline: Instant::now() + PURCHASE_LOOKUP_TIMEOUT,
            lookups_left: MAX_PURCHASE_LOOKUPS,
        };
        if let Some(token) = subscription_token(notification) {
            let about = notification.subscription_notification.as_ref();
            let is_purchase =
                about.is_some_and(|about| about.notification_type == Some(SUBSCRIPTION_PURCHASED));
            asking
                .load_subscription(token, is_purchase, &mut learned)
                .await;
        } else if let Some(about) = &notification.one_time_product_notification
            && let (Some(token), Some(sku)) = (&about.purchase_token, &about.sku)
        {
            learned.product = asking.fetch_product(sku, token).await;
        }
        learned
    }
}

/// The subscription's purchase that a message is about.
fn subscription_token(notification: &DeveloperNotification) -> Option<&str> {
    let voided = || {
        let about = notification.voided_purchase_notification.as_ref()?;
        (about.product_type == Some(Int64(1)))
            .then_some(about.purchase_token.as_deref())
            .flatten()
    };
    match &notification.subscription_notification {
        Some(about) => about.purchase_token.as_deref(),
        None => voided(),
    }
}

/// Questions to Google about one message.
struct PurchaseLookup<'a> {
    google: &'a GoogleVerifier,
    push: &'a AuthenticatedPush,
    deadline: Instant,
    lookups_left: usize,
}

impl PurchaseLookup<'_> {
    /// Learns about a subscription's purchase: what it is now, which was the first, and when it is a new one, what it
    /// replaced.
    async fn load_subscription(
        &mut self,
        token: &str,
        is_new: bool,
        learned: &mut PurchaseContext,
    ) {
        let mut chain = PurchaseChain::starting_at(token);
        let mut new = Vec::new();
        let found = self.fetch_subscription(token).await;
        let asked = found.is_err().then_some(token);
        if let Ok(purchase) = found {
            let replaced = purchase.linked_purchase_token.clone();
            chain.follow_new_link(token, replaced.as_deref(), &mut new);
            learned.replaced_purchase =
                match replaced.as_deref().filter(|replaced| *replaced != token) {
                    None => ReplacedPurchase::Nothing,
                    Some(earlier) if is_new => {
                        self.check_replaced_purchase(earlier, &purchase, &mut chain, &mut new)
                            .await
                    }
                    Some(_) => ReplacedPurchase::Unknown,
                };
            learned.subscription = Some(purchase);
        }
        self.follow_chain(&mut chain, &mut new, asked).await;
        self.store_links(&new).await;
        learned.first_token = Some(chain.first_token().to_owned());
    }

    /// What the purchase was that `purchase` replaces.
    async fn check_replaced_purchase(
        &mut self,
        earlier: &str,
        purchase: &SubscriptionPurchase,
        chain: &mut PurchaseChain,
        new: &mut Vec<PurchaseLink>,
    ) -> ReplacedPurchase {
        match self.fetch_subscription(earlier).await {
            Ok(found) => {
                let moment = purchase.start_time.unwrap_or(self.google.clock.now());
                chain.follow_new_link(earlier, found.linked_purchase_token.as_deref(), new);
                if translate::was_running(&found, moment) {
                    ReplacedPurchase::Running
                } else {
                    ReplacedPurchase::Ended
                }
            }
            Err(Some(GoogleNotFound::Gone | GoogleNotFound::Unknown)) => ReplacedPurchase::Ended,
            Err(_) => ReplacedPurchase::Unknown,
        }
    }

    /// Follows a chain to its end: by what is known, and where that ends by asking Google, but not again about the token
    /// that Google was `asked` about in vain.
    async fn follow_chain(
        &mut self,
        chain: &mut PurchaseChain,
        new: &mut Vec<PurchaseLink>,
        asked: Option<&str>,
    ) {
        while let Some(next) = chain.next_token().map(str::to_owned) {
            let tenant = &self.push.tenant;
            let known = match store::list_purchase_links(
                &self.google.database,
                tenant,
                &next,
                MAX_LINKS_PER_QUERY,
            )
            .await
            {
                Ok(known) => known,
                Err(error) => return self.log_links_unavailable(&error),
            };
            if known.is_empty() {
                if asked == Some(&*next) {
                    return;
                }
                match self.fetch_subscription(&next).await {
                    Ok(purchase) => {
                        chain.follow_new_link(
                            &next,
                            purchase.linked_purchase_token.as_deref(),
                            new,
                        );
                    }
                    // Google will never tell what came before it.
                    Err(Some(GoogleNotFound::Gone)) => chain.follow_new_link(&next, None, new),
                    Err(_) => return,
                }
            }
            for link in &known {
                chain.follow_link(link);
            }
        }
    }

    async fn store_links(&self, new: &[PurchaseLink]) {
        if new.is_empty() {
            return;
        }
        let kept =
            store::insert_purchase_links(&self.google.database, &self.push.tenant, new).await;
        if let Err(error) = kept {
            self.log_links_unavailable(&error);
        }
    }

    fn log_links_unavailable(&self, error: &db::Error) {
        tracing::warn!(
            tenantId = self.push.tenant.as_str(),
            cause = %error,
            causeClass = "database",
            "google_purchase_links_not_used"
        );
    }

    /// A subscription's purchase. `Err` with Google's "no", or with nothing when Google could not be asked.
    async fn fetch_subscription(
        &mut self,
        token: &str,
    ) -> Result<SubscriptionPurchase, Option<GoogleNotFound>> {
        let AuthenticatedPush {
            tenant,
            credentials,
        } = self.push;
        let (account, package) = (&credentials.account, &credentials.package_name);
        let asked = self
            .google
            .play
            .get_subscription(tenant, account, package, token);
        self.run_lookup(asked).await
    }

    async fn fetch_product(&mut self, sku: &str, token: &str) -> Option<ProductPurchase> {
        let AuthenticatedPush {
            tenant,
            credentials,
        } = self.push;
        let (account, package) = (&credentials.account, &credentials.package_name);
        let asked = self
            .google
            .play
            .get_product(tenant, account, package, sku, token);
        self.run_lookup(asked).await.ok()
    }

    async fn run_lookup<T>(
        &mut self,
        question: impl Future<Output = Result<PurchaseResponse<T>, PurchaseLookupError>>,
    ) -> Result<T, Option<GoogleNotFound>> {
        let Some(left) = self.lookups_left.checked_sub(1) else {
            return Err(None);
        };
        self.lookups_left = left;
        let (cause, class) = match timeout_at(self.deadline, question).await {
            Ok(Ok(known)) => return Ok(known.purchase),
            Ok(Err(PurchaseLookupError::NotFound(absent))) => return Err(Some(absent)),
            Ok(Err(PurchaseLookupError::Api(failure))) => {
                (failure.to_string(), failure.api_error_class())
            }
            Err(_) => (
                format!("no answer within {PURCHASE_LOOKUP_TIMEOUT:?}"),
                "google timeout".to_owned(),
            ),
        };
        tracing::warn!(
            tenantId = self.push.tenant.as_str(),
            cause,
            causeClass = class,
            "google_purchase_not_read: the event is stored without what only Google could tell"
        );
        Err(None)
    }
}

impl PurchaseChain {
    /// Follows a link that was just learned, and notes it down.
    fn follow_new_link(
        &mut self,
        token: &str,
        replaces: Option<&str>,
        new: &mut Vec<PurchaseLink>,
    ) {
        let link = PurchaseLink {
            token: token.to_owned(),
            replaces: replaces.map(str::to_owned),
        };
        self.follow_link(&link);
        new.push(link);
    }
}

impl PurchaseContext {
    fn purchase_environment(&self) -> Option<EventEnvironment> {
        let by_tester = match (&self.subscription, &self.product) {
            (Some(purchase), _) => purchase.test_purchase.is_some(),
            (None, Some(purchase)) => purchase.purchase_type == Some(Int64(0)),
            (None, None) => return None,
        };
        Some(if by_tester {
            EventEnvironment::Sandbox
        } else {
            EventEnvironment::Production
        })
    }
}

/// What a message is about.
fn event_subject(
    notification: &DeveloperNotification,
    learned: &PurchaseContext,
) -> Option<EventSubject> {
    let root = || learned.first_token.clone();
    if let Some(about) = &notification.subscription_notification {
        let product = learned.subscription.as_ref().and_then(|purchase| {
            translate::select_line_item(purchase, None)?
                .product_id
                .clone()
        });
        return Some(EventSubject {
            key: root()?,
            product_id: product.or_else(|| about.subscription_id.clone()),
            r#type: SubjectType::Subscription,
        });
    }
    if let Some(about) = &notification.one_time_product_notification {
        return Some(EventSubject {
            key: about.purchase_token.clone()?,
            product_id: about.sku.clone(),
            r#type: SubjectType::Product,
        });
    }
    let about = notification.voided_purchase_notification.as_ref()?;
    let (key, r#type) = match about.product_type? {
        Int64(1) => (root()?, SubjectType::Subscription),
        Int64(2) => (about.purchase_token.clone()?, SubjectType::Product),
        _ => return None,
    };
    Some(EventSubject {
        key,
        product_id: None,
        r#type,
    })
}

/// Whose purchase a message is about: as Google tells of the purchase, or of the message itself where it says so.
fn app_user_id(notification: &DeveloperNotification, learned: &PurchaseContext) -> Option<String> {
    if let Some(about) = &notification.pending_refund_review_notification {
        return about.obfuscated_account_id.clone();
    }
    match (&learned.subscription, &learned.product) {
        (Some(purchase), _) => {
            let ids = purchase.external_account_identifiers.as_ref()?;
            ids.obfuscated_external_account_id.clone()
        }
        (None, Some(purchase)) => purchase.obfuscated_external_account_id.clone(),
        (None, None) => None,
    }
}

/// Google's message inside a push: understood as far as possible, and as JSON; `null` where it is no JSON.
fn parse_notification(data: Option<&str>) -> (Option<DeveloperNotification>, Box<RawValue>) {
    let text = data
        .and_then(|data| STANDARD.decode(data).ok())
        .and_then(|bytes| String::from_utf8(bytes).ok())
        // Read as a value first: that refuses what a database would not take, such as half a surrogate pair.
        .filter(|text| serde_json::from_str::<Value>(text).is_ok());
    let Some(text) = text else {
        return (None, RawValue::NULL.to_owned());
    };
    let notification = serde_json::from_str(&text).ok();
    let raw = RawValue::from_string(text).unwrap_or_else(|_| RawValue::NULL.to_owned());
    (notification, raw)
}
