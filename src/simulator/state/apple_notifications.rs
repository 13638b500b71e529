//! What the App Store reports when something happens to a purchase, to whom, and how sending it went. Pure.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::apple::{
    ProductType, SimulatedApp, SimulatedEnvironment, SimulatedRenewal, SimulatedTransaction,
    TransactionChange,
};
use super::random_letters;
use crate::base::clock::Timestamp;

/// How many notifications are remembered.
const MAX_NOTIFICATIONS: usize = 10_000;
/// How many stand on a page of the history.
const HISTORY_PAGE_SIZE: usize = 20;
/// How far the history reaches back.
const HISTORY_RETENTION: Duration = Duration::from_hours(180 * 24);

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
    pub fn for_both_environments(url: &str) -> Self {
        Self {
            production: Some(url.to_owned()),
            sandbox: Some(url.to_owned()),
            manual: false,
        }
    }

    /// The address of one of the two.
    pub fn url_for(&self, environment: SimulatedEnvironment) -> Option<&str> {
        match environment {
            SimulatedEnvironment::Production => self.production.as_deref(),
            SimulatedEnvironment::Sandbox => self.sandbox.as_deref(),
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
    pub environment: Option<SimulatedEnvironment>,
    /// Fields to put into the block as they are: new ones, or others than would stand there; `null` leaves one out.
    #[serde(default)]
    pub block: Map<String, Value>,
    /// The same for the notification as a whole.
    #[serde(default)]
    pub fields: Map<String, Value>,
}

impl NewNotification {
    /// One of a type, about no purchase.
    pub fn new(notification_type: &str, subtype: Option<&str>) -> Self {
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
pub struct SimulatedNotification {
    /// Apple's id, the same on every attempt.
    #[serde(rename = "notificationUUID")]
    pub notification_uuid: String,
    /// The app.
    pub bundle_id: String,
    /// Which world.
    pub environment: SimulatedEnvironment,
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
    pub send_attempts: Vec<SimulatedSendAttempt>,
    /// What the test's status is asked by. `None` for what is not a test that was asked for.
    pub test_token: Option<String>,
    /// The same, not signed yet.
    #[serde(skip)]
    pub payload: Map<String, Value>,
}

/// How an attempt went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SimulatedSendAttempt {
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
    serializer.serialize_i64(moment.as_millis())
}

impl SimulatedNotification {
    /// Whether an attempt brought it to where it should be.
    pub fn is_delivered(&self) -> bool {
        self.send_attempts
            .iter()
            .any(|attempt| attempt.send_attempt_result == "SUCCESS")
    }
}

/// The notifications sent, oldest first.
#[derive(Debug, Default)]
pub(crate) struct NotificationLog {
    notifications: VecDeque<SimulatedNotification>,
}

impl NotificationLog {
    /// Adds one.
    pub(crate) fn add(&mut self, notification: SimulatedNotification) {
        if self.notifications.len() == MAX_NOTIFICATIONS {
            self.notifications.pop_front();
        }
        self.notifications.push_back(notification);
    }

    /// All of them.
    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = &SimulatedNotification> {
        self.notifications.iter()
    }

    /// One of them.
    pub(crate) fn find_by_uuid(&self, uuid: &str) -> Option<&SimulatedNotification> {
        self.notifications
            .iter()
            .rev()
            .find(|one| one.notification_uuid == uuid)
    }

    /// Notes how an attempt went.
    pub(crate) fn record_attempt(&mut self, uuid: &str, attempt: SimulatedSendAttempt) {
        // The one that was sent is mostly among the newest.
        let mut newest_first = self.notifications.iter_mut().rev();
        if let Some(one) = newest_first.find(|one| one.notification_uuid == uuid) {
            one.send_attempts.push(attempt);
        }
    }

    /// Forgets them.
    pub(crate) fn clear(&mut self) {
        self.notifications.clear();
    }
}

/// What the notification history is asked.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct NotificationHistoryQuery {
    start_date: Option<Value>,
    end_date: Option<Value>,
    notification_type: Option<String>,
    notification_subtype: Option<String>,
    transaction_id: Option<String>,
    only_failures: Option<bool>,
}

/// A page of the history.
#[derive(Debug)]
pub(crate) struct NotificationHistoryPage<'a> {
    pub(crate) notifications: Vec<&'a SimulatedNotification>,
    /// Where the next page begins, if there is one.
    pub(crate) next_page_token: Option<String>,
}

impl NotificationLog {
    /// A page of what was sent for an app; `Err` is Apple's number for what is wrong with the question.
    pub(crate) fn query_history(
        &self,
        bundle_id: &str,
        environment: SimulatedEnvironment,
        query: &NotificationHistoryQuery,
        token: Option<&str>,
        now: Timestamp,
    ) -> Result<NotificationHistoryPage<'_>, u32> {
        let date = |value: &Option<Value>, wrong: u32| {
            let millis = value.as_ref().and_then(Value::as_i64);
            millis.filter(|millis| *millis > 0).ok_or(wrong)
        };
        let start = date(&query.start_date, 4_000_015)?;
        let end = date(&query.end_date, 4_000_016)?;
        if start >= end {
            return Err(4_000_013);
        }
        if start < now.minus(HISTORY_RETENTION).as_millis() {
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
            Some(token) => decode_page_token(token).ok_or(4_000_014_u32)?,
        };
        let is_wanted = |one: &&SimulatedNotification| {
            let same = |wanted: &Option<String>, found: Option<&str>| {
                wanted.as_deref().is_none_or(|wanted| found == Some(wanted))
            };
            one.bundle_id == bundle_id
                && one.environment == environment
                && !one.send_attempts.is_empty()
                && (start..=end).contains(&one.signed_date.as_millis())
                && same(&query.notification_type, Some(&one.notification_type))
                && same(&query.notification_subtype, one.subtype.as_deref())
                && same(
                    &query.transaction_id,
                    one.original_transaction_id.as_deref(),
                )
                && !(query.only_failures == Some(true) && one.is_delivered())
        };
        let mut wanted = self.notifications.iter().filter(is_wanted).skip(skip);
        let notifications: Vec<_> = wanted.by_ref().take(HISTORY_PAGE_SIZE).collect();
        let next = wanted
            .next()
            .map(|_| encode_page_token(skip + HISTORY_PAGE_SIZE));
        Ok(NotificationHistoryPage {
            notifications,
            next_page_token: next,
        })
    }
}

fn encode_page_token(offset: usize) -> String {
    format!("page-{offset:08}")
}

fn decode_page_token(token: &str) -> Option<usize> {
    let digits = token.strip_prefix("page-")?;
    (digits.len() == 8).then(|| digits.parse().ok())?
}

/// How a purchase stands before something happens to it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct PriorSubscriptionStatus {
    /// The App Store's number for how its subscription stands.
    pub(crate) status: Option<u8>,
    /// Whether it had a grace period.
    pub(crate) had_grace_period: bool,
}

/// What the App Store reports of a purchase: type and subtype.
pub(crate) type TypeAndSubtype = (&'static str, Option<&'static str>);

/// What the App Store reports of a new purchase.
pub(crate) fn notification_for_purchase(transaction: &SimulatedTransaction) -> TypeAndSubtype {
    match transaction.kind {
        ProductType::Subscription => ("SUBSCRIBED", Some("INITIAL_BUY")),
        _ => ("ONE_TIME_CHARGE", None),
    }
}

/// What the App Store reports after a change; `told` is the transaction that now tells the story, `renewal` what will
/// become of its subscription.
pub(crate) fn notification_after_change(
    told: &SimulatedTransaction,
    renewal: Option<&SimulatedRenewal>,
    before: PriorSubscriptionStatus,
    change: &TransactionChange,
) -> Option<TypeAndSubtype> {
    Some(match change {
        TransactionChange::Renew {} => match before.status {
            Some(3 | 4) => ("DID_RENEW", Some("BILLING_RECOVERY")),
            Some(2) => ("SUBSCRIBED", Some("RESUBSCRIBE")),
            _ => ("DID_RENEW", None),
        },
        TransactionChange::Cancel {} => ("DID_CHANGE_RENEWAL_STATUS", Some("AUTO_RENEW_DISABLED")),
        TransactionChange::Resume {} => ("DID_CHANGE_RENEWAL_STATUS", Some("AUTO_RENEW_ENABLED")),
        TransactionChange::Expire { .. } => {
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
        TransactionChange::Grace { .. } => ("DID_FAIL_TO_RENEW", Some("GRACE_PERIOD")),
        TransactionChange::BillingRetry {} if before.had_grace_period => {
            ("GRACE_PERIOD_EXPIRED", None)
        }
        TransactionChange::BillingRetry {} => ("DID_FAIL_TO_RENEW", None),
        TransactionChange::Refund { .. } => ("REFUND", None),
        TransactionChange::ReverseRefund {} => ("REFUND_REVERSED", None),
        TransactionChange::Revoke {} => ("REVOKE", None),
        TransactionChange::Upgrade { .. } => ("DID_CHANGE_RENEWAL_PREF", Some("UPGRADE")),
        TransactionChange::Downgrade { product_id } if *product_id == told.product_id => {
            ("DID_CHANGE_RENEWAL_PREF", None)
        }
        TransactionChange::Downgrade { .. } => ("DID_CHANGE_RENEWAL_PREF", Some("DOWNGRADE")),
        TransactionChange::Extend { .. } => ("RENEWAL_EXTENDED", None),
        TransactionChange::Forget {} => return None,
    })
}

/// What stands in every block: the app, and in most of them where.
pub(crate) fn build_block(
    app: &SimulatedApp,
    environment: SimulatedEnvironment,
    name: &str,
    now: Timestamp,
) -> Value {
    let mut block = json!({
        "appAppleId": app.app_apple_id,
        "bundleId": app.bundle_id,
    });
    match name {
        "externalPurchaseToken" => {
            let prefix = match environment {
                SimulatedEnvironment::Production => "",
                SimulatedEnvironment::Sandbox => "SANDBOX_",
            };
            block["externalPurchaseId"] =
                json!(format!("{prefix}b2158121-7af9-49d4-9561-1f588205523e"));
            block["tokenCreationDate"] = json!(now.as_millis());
        }
        "summary" => {
            block["environment"] = json!(environment.payload_name());
            block["requestIdentifier"] = json!("758883e8-151b-47b7-abd0-60c4d804c2f5");
            block["productId"] = json!(format!("{}.pro.monthly", app.bundle_id));
            block["storefrontCountryCodes"] = json!(["USA"]);
            block["succeededCount"] = json!(5);
            block["failedCount"] = json!(2);
        }
        "appData" => block["environment"] = json!(environment.payload_name()),
        _ => {
            block["environment"] = json!(environment.payload_name());
            block["bundleVersion"] = json!("1");
        }
    }
    block
}

/// An app transaction: that somebody has the app.
pub(crate) fn app_transaction_payload(
    app: &SimulatedApp,
    environment: SimulatedEnvironment,
    now: Timestamp,
) -> Value {
    json!({
        "receiptType": environment.payload_name(),
        "appAppleId": app.app_apple_id,
        "bundleId": app.bundle_id,
        "applicationVersion": "1",
        "originalApplicationVersion": "1",
        "receiptCreationDate": now.as_millis(),
        "originalPurchaseDate": now.as_millis(),
        "appTransactionId": "701234567890123456",
        "originalPlatform": "iOS",
    })
}

/// Puts fields in place of those there are; `null` removes one.
pub(crate) fn override_fields(onto: &mut Map<String, Value>, fields: &Map<String, Value>) {
    for (name, value) in fields {
        if value.is_null() {
            onto.remove(name);
        } else {
            onto.insert(name.clone(), value.clone());
        }
    }
}

/// A UUID that nobody has to find unguessable.
pub(crate) fn seeded_uuid(random: &mut fastrand::Rng) -> String {
    let mut part = |count| random_letters(random, b"0123456789abcdef", count);
    let (first, second, third) = (part(8), part(4), part(3));
    format!("{first}-{second}-4{third}-a{}-{}", part(3), part(12))
}
