//! What the App Store reports when something happens to a purchase, to whom, and how sending it went. Pure.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::apple::{App, Change, Environment, ProductType, Renewal, Transaction};
use super::letters;
use crate::clock::Timestamp;

/// How many notifications are remembered.
const REMEMBERED: usize = 10_000;
/// How many stand on a page of the history.
const PAGE: usize = 20;
/// How far the history reaches back.
const REACH: Duration = Duration::from_hours(180 * 24);

/// Where an app's notifications are posted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NotificationUrls {
    /// What happens for money; nowhere when left out.
    #[serde(default)]
    pub production: Option<String>,
    /// What happens in the sandbox; nowhere when left out.
    #[serde(default)]
    pub sandbox: Option<String>,
    /// Notifications are posted only when somebody asks for it.
    #[serde(default)]
    pub manual: bool,
}

impl NotificationUrls {
    /// Posts both to one address at once.
    pub fn to(url: &str) -> Self {
        Self {
            production: Some(url.to_owned()),
            sandbox: Some(url.to_owned()),
            manual: false,
        }
    }

    /// The address of one of the two.
    pub fn of(&self, environment: Environment) -> Option<&str> {
        match environment {
            Environment::Production => self.production.as_deref(),
            Environment::Sandbox => self.sandbox.as_deref(),
        }
    }
}

/// A notification to send.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NewNotification {
    /// `DID_RENEW` and the like.
    pub notification_type: String,
    /// `GRACE_PERIOD` and the like.
    #[serde(default)]
    pub subtype: Option<String>,
    /// The purchase it is about, by any of its transactions; about none when left out.
    #[serde(default)]
    pub transaction_id: Option<String>,
    /// Which world; the transaction's, else the sandbox, when left out.
    #[serde(default)]
    pub environment: Option<Environment>,
    /// Fields to put into the block as they are: new ones, or others than would stand there; `null` leaves one out.
    #[serde(default)]
    pub block: Map<String, Value>,
    /// The same for the notification as a whole.
    #[serde(default)]
    pub fields: Map<String, Value>,
}

impl NewNotification {
    /// One of a type, about no purchase.
    pub fn of(notification_type: &str, subtype: Option<&str>) -> Self {
        Self {
            notification_type: notification_type.to_owned(),
            subtype: subtype.map(str::to_owned),
            ..Self::default()
        }
    }

    /// In which block it says what it says.
    pub(crate) fn block_name(&self) -> &'static str {
        match (self.notification_type.as_str(), self.subtype.as_deref()) {
            ("RENEWAL_EXTENSION", Some("SUMMARY")) => "summary",
            ("EXTERNAL_PURCHASE_TOKEN", _) => "externalPurchaseToken",
            ("RESCIND_CONSENT", _) => "appData",
            _ => "data",
        }
    }
}

/// A notification on its way.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Notification {
    /// Apple's id, the same on every attempt.
    #[serde(rename = "notificationUUID")]
    pub notification_uuid: String,
    /// The app.
    pub bundle_id: String,
    /// Which world.
    pub environment: Environment,
    /// What happened.
    pub notification_type: String,
    /// The finer intent.
    pub subtype: Option<String>,
    /// The purchase it is about, by its first transaction.
    pub original_transaction_id: Option<String>,
    /// When it was made.
    pub signed_date: Timestamp,
    /// What is posted, as a JWS.
    pub signed_payload: String,
    /// How each attempt went.
    pub send_attempts: Vec<SendAttempt>,
    /// What the test's status is asked by. `None` for what is not a test that was asked for.
    pub test_token: Option<String>,
    /// The same, not signed yet.
    #[serde(skip)]
    pub payload: Map<String, Value>,
}

/// How an attempt went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SendAttempt {
    /// When.
    #[serde(serialize_with = "millis")]
    pub attempt_date: Timestamp,
    /// `SUCCESS`, `TIMED_OUT`, `UNSUCCESSFUL_HTTP_RESPONSE_CODE` and the like.
    pub send_attempt_result: &'static str,
    /// What was answered; 0 where there was no answer. Apple does not tell it.
    #[serde(skip)]
    pub status: u16,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "what serde calls it with"
)]
fn millis<S: serde::Serializer>(moment: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_i64(moment.millis())
}

impl Notification {
    /// Whether an attempt brought it to where it should be.
    pub fn is_delivered(&self) -> bool {
        self.send_attempts
            .iter()
            .any(|attempt| attempt.send_attempt_result == "SUCCESS")
    }
}

/// The notifications sent, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Notifications {
    all: VecDeque<Notification>,
}

impl Notifications {
    /// Adds one.
    pub(crate) fn add(&mut self, notification: Notification) {
        if self.all.len() == REMEMBERED {
            self.all.pop_front();
        }
        self.all.push_back(notification);
    }

    /// All of them.
    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = &Notification> {
        self.all.iter()
    }

    /// One of them.
    pub(crate) fn find(&self, uuid: &str) -> Option<&Notification> {
        self.all
            .iter()
            .rev()
            .find(|one| one.notification_uuid == uuid)
    }

    /// Notes how an attempt went.
    pub(crate) fn attempted(&mut self, uuid: &str, attempt: SendAttempt) {
        // The one that was sent is mostly among the newest.
        let mut newest_first = self.all.iter_mut().rev();
        if let Some(one) = newest_first.find(|one| one.notification_uuid == uuid) {
            one.send_attempts.push(attempt);
        }
    }

    /// Forgets them.
    pub(crate) fn clear(&mut self) {
        self.all.clear();
    }
}

/// What the notification history is asked.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct HistoryQuery {
    start_date: Option<Value>,
    end_date: Option<Value>,
    notification_type: Option<String>,
    notification_subtype: Option<String>,
    transaction_id: Option<String>,
    only_failures: Option<bool>,
}

/// A page of the history.
#[derive(Debug)]
pub(crate) struct Page<'a> {
    pub(crate) notifications: Vec<&'a Notification>,
    /// Where the next page begins, if there is one.
    pub(crate) next: Option<String>,
}

impl Notifications {
    /// A page of what was sent for an app; `Err` is Apple's number for what is wrong with the question.
    pub(crate) fn history(
        &self,
        bundle_id: &str,
        environment: Environment,
        query: &HistoryQuery,
        token: Option<&str>,
        now: Timestamp,
    ) -> Result<Page<'_>, u32> {
        let date = |value: &Option<Value>, wrong: u32| {
            let millis = value.as_ref().and_then(Value::as_i64);
            millis.filter(|millis| *millis > 0).ok_or(wrong)
        };
        let start = date(&query.start_date, 4_000_015)?;
        let end = date(&query.end_date, 4_000_016)?;
        if start >= end {
            return Err(4_000_013);
        }
        if start < now.minus(REACH).millis() {
            return Err(4_000_012);
        }
        if query.notification_subtype.is_some() && query.notification_type.is_none() {
            return Err(4_000_018);
        }
        if query.transaction_id.is_some() && query.notification_type.is_some() {
            return Err(4_000_019);
        }
        let skip = match token {
            None => 0,
            Some(token) => offset(token).ok_or(4_000_014_u32)?,
        };
        let is_wanted = |one: &&Notification| {
            let same = |wanted: &Option<String>, found: Option<&str>| {
                wanted.as_deref().is_none_or(|wanted| found == Some(wanted))
            };
            one.bundle_id == bundle_id
                && one.environment == environment
                && !one.send_attempts.is_empty()
                && (start..=end).contains(&one.signed_date.millis())
                && same(&query.notification_type, Some(&one.notification_type))
                && same(&query.notification_subtype, one.subtype.as_deref())
                && same(
                    &query.transaction_id,
                    one.original_transaction_id.as_deref(),
                )
                && !(query.only_failures == Some(true) && one.is_delivered())
        };
        let mut wanted = self.all.iter().filter(is_wanted).skip(skip);
        let notifications: Vec<_> = wanted.by_ref().take(PAGE).collect();
        let next = wanted.next().map(|_| page_token(skip + PAGE));
        Ok(Page {
            notifications,
            next,
        })
    }
}

fn page_token(offset: usize) -> String {
    format!("page-{offset:08}")
}

fn offset(token: &str) -> Option<usize> {
    let digits = token.strip_prefix("page-")?;
    (digits.len() == 8).then(|| digits.parse().ok())?
}

/// How a purchase stands before something happens to it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Before {
    /// The App Store's number for how its subscription stands.
    pub(crate) status: Option<u8>,
    /// Whether it had a grace period.
    pub(crate) had_grace: bool,
}

/// What the App Store reports of a purchase: type and subtype.
pub(crate) type Report = (&'static str, Option<&'static str>);

/// What the App Store reports of a new purchase.
pub(crate) fn of_purchase(transaction: &Transaction) -> Report {
    match transaction.kind {
        ProductType::Subscription => ("SUBSCRIBED", Some("INITIAL_BUY")),
        _ => ("ONE_TIME_CHARGE", None),
    }
}

/// What the App Store reports after a change; `told` is the transaction that now tells the story, `renewal` what will
/// become of its subscription.
pub(crate) fn after_change(
    told: &Transaction,
    renewal: Option<&Renewal>,
    before: Before,
    change: &Change,
) -> Option<Report> {
    Some(match change {
        Change::Renew {} => match before.status {
            Some(3 | 4) => ("DID_RENEW", Some("BILLING_RECOVERY")),
            Some(2) => ("SUBSCRIBED", Some("RESUBSCRIBE")),
            _ => ("DID_RENEW", None),
        },
        Change::Cancel {} => ("DID_CHANGE_RENEWAL_STATUS", Some("AUTO_RENEW_DISABLED")),
        Change::Resume {} => ("DID_CHANGE_RENEWAL_STATUS", Some("AUTO_RENEW_ENABLED")),
        Change::Expire { .. } => {
            // What is no subscription runs out in silence.
            let why = match renewal?.expiration_intent {
                Some(1) => Some("VOLUNTARY"),
                Some(2) => Some("BILLING_RETRY"),
                Some(3) => Some("PRICE_INCREASE"),
                Some(4) => Some("PRODUCT_NOT_FOR_SALE"),
                _ => None,
            };
            ("EXPIRED", why)
        }
        Change::Grace { .. } => ("DID_FAIL_TO_RENEW", Some("GRACE_PERIOD")),
        Change::BillingRetry {} if before.had_grace => ("GRACE_PERIOD_EXPIRED", None),
        Change::BillingRetry {} => ("DID_FAIL_TO_RENEW", None),
        Change::Refund { .. } => ("REFUND", None),
        Change::ReverseRefund {} => ("REFUND_REVERSED", None),
        Change::Revoke {} => ("REVOKE", None),
        Change::Upgrade { .. } => ("DID_CHANGE_RENEWAL_PREF", Some("UPGRADE")),
        Change::Downgrade { product_id } if *product_id == told.product_id => {
            ("DID_CHANGE_RENEWAL_PREF", None)
        }
        Change::Downgrade { .. } => ("DID_CHANGE_RENEWAL_PREF", Some("DOWNGRADE")),
        Change::Extend { .. } => ("RENEWAL_EXTENDED", None),
        Change::Forget {} => return None,
    })
}

/// What stands in every block: the app, and in most of them where.
pub(crate) fn block(app: &App, environment: Environment, name: &str, now: Timestamp) -> Value {
    let mut block = json!({
        "appAppleId": app.app_apple_id,
        "bundleId": app.bundle_id,
    });
    match name {
        "externalPurchaseToken" => {
            let prefix = match environment {
                Environment::Production => "",
                Environment::Sandbox => "SANDBOX_",
            };
            block["externalPurchaseId"] =
                json!(format!("{prefix}b2158121-7af9-49d4-9561-1f588205523e"));
            block["tokenCreationDate"] = json!(now.millis());
        }
        "summary" => {
            block["environment"] = json!(environment.name());
            block["requestIdentifier"] = json!("758883e8-151b-47b7-abd0-60c4d804c2f5");
            block["productId"] = json!(format!("{}.pro.monthly", app.bundle_id));
            block["storefrontCountryCodes"] = json!(["USA"]);
            block["succeededCount"] = json!(5);
            block["failedCount"] = json!(2);
        }
        "appData" => block["environment"] = json!(environment.name()),
        _ => {
            block["environment"] = json!(environment.name());
            block["bundleVersion"] = json!("1");
        }
    }
    block
}

/// An app transaction: that somebody has the app.
pub(crate) fn app_transaction(app: &App, environment: Environment, now: Timestamp) -> Value {
    json!({
        "receiptType": environment.name(),
        "appAppleId": app.app_apple_id,
        "bundleId": app.bundle_id,
        "applicationVersion": "1",
        "originalApplicationVersion": "1",
        "receiptCreationDate": now.millis(),
        "originalPurchaseDate": now.millis(),
        "appTransactionId": "701234567890123456",
        "originalPlatform": "iOS",
    })
}

/// Puts fields in place of those there are; `null` removes one.
pub(crate) fn overlay(onto: &mut Map<String, Value>, fields: &Map<String, Value>) {
    for (name, value) in fields {
        if value.is_null() {
            onto.remove(name);
        } else {
            onto.insert(name.clone(), value.clone());
        }
    }
}

/// A UUID that nobody has to find unguessable.
pub(crate) fn uuid(random: &mut fastrand::Rng) -> String {
    let mut part = |count| letters(random, b"0123456789abcdef", count);
    let (first, second, third) = (part(8), part(4), part(3));
    format!("{first}-{second}-4{third}-a{}-{}", part(3), part(12))
}
