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

use super::api::{Absent, Known, NoPurchase};
use super::chain::{Chain, Link};
use super::payload::{DeveloperNotification, Int64, ProductPurchase, SubscriptionPurchase};
use super::store::{self, Credentials, FindError};
use super::translate::{self, Replaced};
use super::trust::{Keys, NoKey, Token, Untrusted};
use super::verify::Google;
use crate::clock::Timestamp;
use crate::credentials::Cached;
use crate::db;
use crate::db::changes::Changes;
use crate::events::{
    Environment, NewEvent, NotStored, Receipt, Record, Source, Subject, SubjectType,
};
use crate::id::TenantId;
use crate::tenants;

/// How long Google is asked about a purchase, all questions together. A push must be answered within ten seconds.
const PATIENCE: Duration = Duration::from_secs(3);
/// How many purchases Google is asked about for one message; the rest of a longer chain is learned with the next.
const MOST_QUESTIONS: usize = 16;
/// How many links of a chain are read at once.
const MOST_LINKS: i32 = 1000;
/// How long it is remembered that a tenant is active; a change is heard of.
const ACTIVE_FOR: Duration = Duration::from_mins(5);
/// Google's number for a new purchase.
const PURCHASED: Int64 = Int64(4);
/// The end of the year 9999, beyond which no time can be written.
const END_OF_TIME: i64 = 253_402_300_799_999;

/// Takes Google's notifications in. Clones share what is remembered.
#[derive(Clone)]
pub struct Notifications {
    google: Google,
    keys: Keys,
    active: Cached<(), db::Error>,
    record: Record,
}

/// Whose push it is, once it is believed.
#[derive(Clone, Debug)]
pub struct Admitted {
    tenant: TenantId,
    credentials: Arc<Credentials>,
}

/// Why a push is not let in.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// It is not believed.
    #[error("{0}")]
    Untrusted(#[from] Untrusted),
    /// Whether it can be believed cannot be told without Google's keys.
    #[error("Google's keys cannot be had right now")]
    NoKeys,
    /// The tenant is inactive.
    #[error("the tenant is inactive")]
    Inactive,
    /// The tenant's credentials cannot be read.
    #[error("{0}")]
    Credentials(Arc<FindError>),
    /// Whether the tenant is active cannot be found out.
    #[error("{0}")]
    Database(Arc<db::Error>),
}

/// What a push brings.
#[derive(Clone, Debug)]
pub struct Message {
    /// Pub/Sub's `messageId`, the same on every repeat.
    pub id: String,
    /// Google's message, in base64.
    pub data: Option<String>,
    /// When Pub/Sub took it.
    pub published: Option<Timestamp>,
    /// The whole push as it was sent.
    pub raw: Box<RawValue>,
}

/// Why a message of a believed push is not stored.
#[derive(Debug, thiserror::Error)]
pub enum NotAccepted {
    /// It is about another app.
    #[error("the message is about another app")]
    OtherApp {
        /// The tenant's app.
        expected: String,
    },
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

/// What Google tells of the purchase behind a message, as far as it could be asked.
#[derive(Default)]
struct Learned {
    subscription: Option<SubscriptionPurchase>,
    product: Option<ProductPurchase>,
    replaced: Replaced,
    /// The first purchase of the subscription.
    root: Option<String>,
}

impl Notifications {
    /// Stores with `record` what passes; asks about purchases through `google`.
    pub fn new(google: &Google, keys: Keys, record: Record, changes: &Changes) -> Self {
        Self {
            active: Cached::new("tenants", ACTIVE_FOR, google.clock.clone(), changes),
            google: google.clone(),
            keys,
            record,
        }
    }

    /// Whether a push to `tenant` with this token is let in. Everything about the token comes before anything about the
    /// tenant: a stranger learns nothing of who is a tenant here.
    pub async fn admit(&self, tenant: &TenantId, token: Option<&str>) -> Result<Admitted, Refused> {
        let token = Token::parse(token.ok_or(Untrusted::Missing)?)?;
        let key = self
            .keys
            .find(token.key_id())
            .await
            .map_err(|no| match no {
                NoKey::Unknown => Refused::Untrusted(Untrusted::UnknownKey),
                NoKey::Unreachable => Refused::NoKeys,
            })?;
        let pusher = token.verify(&key, self.google.clock.now())?;
        let credentials = self
            .google
            .credentials(tenant)
            .await
            .map_err(Refused::Credentials)?
            .ok_or(Untrusted::NoCredentials)?;
        if let Err(why) = pusher.is(tenant, &credentials.push) {
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
        let (database, whose) = (self.google.database.clone(), tenant.clone());
        let find = async move {
            let tenant = tenants::store::find_tenant(&database, &whose).await?;
            Ok(tenant.filter(|tenant| tenant.is_active).map(drop))
        };
        self.active
            .get(tenant, find)
            .await
            .map_err(Refused::Database)?
            .ok_or(Refused::Inactive)?;
        Ok(Admitted {
            tenant: tenant.clone(),
            credentials,
        })
    }

    /// Stores what a believed push brings. When this returns a receipt, it is committed.
    pub async fn accept(
        &self,
        admitted: Admitted,
        message: Message,
    ) -> Result<Receipt, NotAccepted> {
        let (notification, data) = read(message.data.as_deref());
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
            return Err(NotAccepted::OtherApp {
                expected: expected.clone(),
            });
        }
        let event = self.event(&admitted, &message, notification, data).await;
        let stored = self.record.store(&event).await?;
        Ok(Receipt::new(stored, message.id))
    }

    async fn event(
        &self,
        admitted: &Admitted,
        message: &Message,
        notification: Option<DeveloperNotification>,
        data: Box<RawValue>,
    ) -> NewEvent {
        let mut event = NewEvent {
            tenant: admitted.tenant.clone(),
            source: Source::Google,
            external_id: message.id.clone(),
            word: crate::events::Word::Unknown,
            reason: None,
            platform_event: String::new(),
            occurred_at: message.published,
            environment: None,
            subject: None,
            app_user_id: None,
            data,
            raw: message.raw.clone(),
        };
        let meaning = if let Some(notification) = notification {
            let learned = self.learn(admitted, &notification).await;
            let happened = notification.event_time_millis.map(|Int64(millis)| millis);
            if let Some(millis) = happened.filter(|millis| (1..=END_OF_TIME).contains(millis)) {
                event.occurred_at = Some(Timestamp::from_millis(millis));
            }
            event.subject = subject(&notification, &learned);
            event.environment = learned.environment();
            event.app_user_id = app_user(&notification, &learned);
            translate::meaning(
                &notification,
                learned.subscription.as_ref(),
                learned.replaced,
            )
        } else {
            translate::unreadable()
        };
        event.word = meaning.word;
        event.reason = meaning.reason.map(Into::into);
        event.platform_event = meaning.platform_event;
        event
    }

    /// Asks Google about the purchase, and about those behind it that are not known yet. Never fails, and never takes
    /// longer than a few seconds: what could not be learned is left out.
    async fn learn(&self, admitted: &Admitted, notification: &DeveloperNotification) -> Learned {
        let mut learned = Learned::default();
        let mut asking = Asking {
            google: &self.google,
            admitted,
            deadline: Instant::now() + PATIENCE,
            questions_left: MOST_QUESTIONS,
        };
        if let Some(token) = subscription_token(notification) {
            let about = notification.subscription_notification.as_ref();
            let is_purchase = about.is_some_and(|about| about.notification_type == Some(PURCHASED));
            asking.subscription(token, is_purchase, &mut learned).await;
        } else if let Some(about) = &notification.one_time_product_notification
            && let (Some(token), Some(sku)) = (&about.purchase_token, &about.sku)
        {
            learned.product = asking.product(sku, token).await;
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
struct Asking<'a> {
    google: &'a Google,
    admitted: &'a Admitted,
    deadline: Instant,
    questions_left: usize,
}

impl Asking<'_> {
    /// Learns about a subscription's purchase: what it is now, which was the first, and when it is a new one, what it
    /// replaced.
    async fn subscription(&mut self, token: &str, is_new: bool, learned: &mut Learned) {
        let mut chain = Chain::back_from(token);
        let mut new = Vec::new();
        let found = self.find(token).await;
        let asked = found.is_err().then_some(token);
        if let Ok(purchase) = found {
            let replaced = purchase.linked_purchase_token.clone();
            chain.follow_and_keep(token, replaced.as_deref(), &mut new);
            learned.replaced = match replaced.as_deref().filter(|replaced| *replaced != token) {
                None => Replaced::Nothing,
                Some(earlier) if is_new => {
                    self.look_at_replaced(earlier, &purchase, &mut chain, &mut new)
                        .await
                }
                Some(_) => Replaced::Unknown,
            };
            learned.subscription = Some(purchase);
        }
        self.follow(&mut chain, &mut new, asked).await;
        self.keep(&new).await;
        learned.root = Some(chain.root().to_owned());
    }

    /// What the purchase was that `purchase` replaces.
    async fn look_at_replaced(
        &mut self,
        earlier: &str,
        purchase: &SubscriptionPurchase,
        chain: &mut Chain,
        new: &mut Vec<Link>,
    ) -> Replaced {
        match self.find(earlier).await {
            Ok(found) => {
                let moment = purchase.start_time.unwrap_or(self.google.clock.now());
                chain.follow_and_keep(earlier, found.linked_purchase_token.as_deref(), new);
                if translate::was_running(&found, moment) {
                    Replaced::Running
                } else {
                    Replaced::Ended
                }
            }
            Err(Some(Absent::Gone | Absent::Unknown)) => Replaced::Ended,
            Err(_) => Replaced::Unknown,
        }
    }

    /// Follows a chain to its end: by what is known, and where that ends by asking Google, but not again about the token
    /// that Google was `asked` about in vain.
    async fn follow(&mut self, chain: &mut Chain, new: &mut Vec<Link>, asked: Option<&str>) {
        while let Some(next) = chain.wanted().map(str::to_owned) {
            let tenant = &self.admitted.tenant;
            let known = match store::links(&self.google.database, tenant, &next, MOST_LINKS).await {
                Ok(known) => known,
                Err(error) => return self.say_that_links_are_missing(&error),
            };
            if known.is_empty() {
                if asked == Some(&*next) {
                    return;
                }
                match self.find(&next).await {
                    Ok(purchase) => {
                        chain.follow_and_keep(
                            &next,
                            purchase.linked_purchase_token.as_deref(),
                            new,
                        );
                    }
                    // Google will never tell what came before it.
                    Err(Some(Absent::Gone)) => chain.follow_and_keep(&next, None, new),
                    Err(_) => return,
                }
            }
            for link in &known {
                chain.follow(link);
            }
        }
    }

    async fn keep(&self, new: &[Link]) {
        if new.is_empty() {
            return;
        }
        let kept = store::keep_links(&self.google.database, &self.admitted.tenant, new).await;
        if let Err(error) = kept {
            self.say_that_links_are_missing(&error);
        }
    }

    fn say_that_links_are_missing(&self, error: &db::Error) {
        tracing::warn!(
            tenantId = self.admitted.tenant.as_str(),
            cause = %error,
            causeClass = "database",
            "google_purchase_links_not_used"
        );
    }

    /// A subscription's purchase. `Err` with Google's "no", or with nothing when Google could not be asked.
    async fn find(&mut self, token: &str) -> Result<SubscriptionPurchase, Option<Absent>> {
        let Admitted {
            tenant,
            credentials,
        } = self.admitted;
        let (account, package) = (&credentials.account, &credentials.package_name);
        let asked = self
            .google
            .play
            .subscription(tenant, account, package, token);
        self.ask(asked).await
    }

    async fn product(&mut self, sku: &str, token: &str) -> Option<ProductPurchase> {
        let Admitted {
            tenant,
            credentials,
        } = self.admitted;
        let (account, package) = (&credentials.account, &credentials.package_name);
        let asked = self
            .google
            .play
            .product(tenant, account, package, sku, token);
        self.ask(asked).await.ok()
    }

    async fn ask<T>(
        &mut self,
        question: impl Future<Output = Result<Known<T>, NoPurchase>>,
    ) -> Result<T, Option<Absent>> {
        let Some(left) = self.questions_left.checked_sub(1) else {
            return Err(None);
        };
        self.questions_left = left;
        let (cause, class) = match timeout_at(self.deadline, question).await {
            Ok(Ok(known)) => return Ok(known.purchase),
            Ok(Err(NoPurchase::Absent(absent))) => return Err(Some(absent)),
            Ok(Err(NoPurchase::Failure(failure))) => (failure.to_string(), failure.class()),
            Err(_) => (
                format!("no answer within {PATIENCE:?}"),
                "google timeout".to_owned(),
            ),
        };
        tracing::warn!(
            tenantId = self.admitted.tenant.as_str(),
            cause,
            causeClass = class,
            "google_purchase_not_read: the event is stored without what only Google could tell"
        );
        Err(None)
    }
}

impl Chain {
    /// Follows a link that was just learned, and notes it down.
    fn follow_and_keep(&mut self, token: &str, replaces: Option<&str>, new: &mut Vec<Link>) {
        let link = Link {
            token: token.to_owned(),
            replaces: replaces.map(str::to_owned),
        };
        self.follow(&link);
        new.push(link);
    }
}

impl Learned {
    fn environment(&self) -> Option<Environment> {
        let by_tester = match (&self.subscription, &self.product) {
            (Some(purchase), _) => purchase.test_purchase.is_some(),
            (None, Some(purchase)) => purchase.purchase_type == Some(Int64(0)),
            (None, None) => return None,
        };
        Some(if by_tester {
            Environment::Sandbox
        } else {
            Environment::Production
        })
    }
}

/// What a message is about.
fn subject(notification: &DeveloperNotification, learned: &Learned) -> Option<Subject> {
    let root = || learned.root.clone();
    if let Some(about) = &notification.subscription_notification {
        let product = learned
            .subscription
            .as_ref()
            .and_then(|purchase| translate::line_item(purchase, None)?.product_id.clone());
        return Some(Subject {
            key: root()?,
            product_id: product.or_else(|| about.subscription_id.clone()),
            r#type: SubjectType::Subscription,
        });
    }
    if let Some(about) = &notification.one_time_product_notification {
        return Some(Subject {
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
    Some(Subject {
        key,
        product_id: None,
        r#type,
    })
}

/// Whose purchase a message is about: as Google tells of the purchase, or of the message itself where it says so.
fn app_user(notification: &DeveloperNotification, learned: &Learned) -> Option<String> {
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
fn read(data: Option<&str>) -> (Option<DeveloperNotification>, Box<RawValue>) {
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
