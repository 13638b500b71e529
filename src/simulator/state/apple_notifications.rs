//! App Store Server Notifications: their content, where they are posted, the log of those sent. Pure.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::apple::{
    ProductType, SimulatedApp, SimulatedEnvironment, SimulatedRenewal, SimulatedTransaction,
    TransactionChange,
};
use super::bounded_log::BoundedLog;
use super::random_letters;
use crate::base::clock::Timestamp;

/// The log keeps the newest notifications only.
const MAX_NOTIFICATIONS: usize = 10_000;
/// As Apple documents it.
const HISTORY_PAGE_SIZE: usize = 20;
/// As Apple documents it.
const PRODUCTION_HISTORY_RETENTION: Duration = Duration::from_hours(180 * 24);
/// As Apple documents it.
const SANDBOX_HISTORY_RETENTION: Duration = Duration::from_hours(30 * 24);

/// The addresses to which an app's notifications are posted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NotificationUrls {
    /// For production; without one there are no notifications of it.
    #[serde(default)]
    pub production: Option<String>,
    /// For the sandbox; without one there are no notifications of it.
    #[serde(default)]
    pub sandbox: Option<String>,
    /// Post notifications on request only.
    #[serde(default)]
    pub manual: bool,
}

impl NotificationUrls {
    /// Posts those of both environments to one address, at once.
    pub fn for_both_environments(url: &str) -> Self {
        Self {
            production: Some(url.to_owned()),
            sandbox: Some(url.to_owned()),
            manual: false,
        }
    }

    /// The address for an environment.
    pub(crate) fn url_for(&self, environment: SimulatedEnvironment) -> Option<&str> {
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
    /// Apple's type, such as `DID_RENEW`.
    pub notification_type: String,
    /// Apple's subtype, such as `GRACE_PERIOD`.
    #[serde(default)]
    pub subtype: Option<String>,
    /// Any transaction of the purchase; a notification about no purchase when left out.
    #[serde(default)]
    pub transaction_id: Option<String>,
    /// The transaction's, else the sandbox, when left out.
    #[serde(default)]
    pub environment: Option<SimulatedEnvironment>,
    /// Fields to add to the block or to replace in it; `null` removes one.
    #[serde(default)]
    pub block: Map<String, Value>,
    /// The same for the whole notification.
    #[serde(default)]
    pub fields: Map<String, Value>,
}

impl NewNotification {
    /// A notification about no purchase.
    pub fn new(notification_type: &str, subtype: Option<&str>) -> Self {
        Self {
            notification_type: notification_type.to_owned(),
            subtype: subtype.map(str::to_owned),
            ..Self::default()
        }
    }

    /// The field that holds the content, which depends on the type.
    pub(crate) fn block_name(&self) -> &'static str {
        match (self.notification_type.as_str(), self.subtype.as_deref()) {
            ("RENEWAL_EXTENSION", Some("SUMMARY")) => "summary",
            ("EXTERNAL_PURCHASE_TOKEN", _) => "externalPurchaseToken",
            ("RESCIND_CONSENT", _) => "appData",
            _ => "data",
        }
    }
}

/// A notification that was created, and its attempts.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SimulatedNotification {
    /// The `notificationUUID`, the same on every attempt.
    #[serde(rename = "notificationUUID")]
    pub notification_uuid: String,
    /// The bundle id of the app.
    pub bundle_id: String,
    /// Production or sandbox.
    pub environment: SimulatedEnvironment,
    /// Apple's type, such as `DID_RENEW`.
    pub notification_type: String,
    /// Apple's subtype, such as `GRACE_PERIOD`.
    pub subtype: Option<String>,
    /// The first transaction of its purchase, if it is about one.
    pub original_transaction_id: Option<String>,
    /// The time of its creation.
    pub signed_date: Timestamp,
    /// The JWS that is posted.
    pub signed_payload: String,
    /// The attempts so far, oldest first.
    pub send_attempts: Vec<SimulatedSendAttempt>,
    /// The token of a test notification's status; `None` for any other notification.
    pub test_token: Option<String>,
    /// The payload before it was signed.
    #[serde(skip)]
    pub payload: Map<String, Value>,
}

/// One attempt to post a notification.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SimulatedSendAttempt {
    /// The time of the attempt.
    #[serde(serialize_with = "millis")]
    pub attempt_date: Timestamp,
    /// Apple's word: `SUCCESS`, `TIMED_OUT`, `UNSUCCESSFUL_HTTP_RESPONSE_CODE`, `SOCKET_ISSUE` or `OTHER`.
    pub send_attempt_result: &'static str,
    /// The HTTP status; 0 without an answer. Not part of Apple's answers.
    #[serde(skip)]
    pub status: u16,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a reference"
)]
fn millis<S: serde::Serializer>(moment: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_i64(moment.as_millis())
}

impl SimulatedNotification {
    /// Whether an attempt was successful.
    pub fn is_delivered(&self) -> bool {
        self.send_attempts
            .iter()
            .any(|attempt| attempt.send_attempt_result == "SUCCESS")
    }
}

/// The notifications sent.
pub(crate) type NotificationLog = BoundedLog<SimulatedNotification, MAX_NOTIFICATIONS>;

/// The body of a request to the notification history.
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

#[derive(Debug)]
pub(crate) struct NotificationHistoryPage<'a> {
    pub(crate) notifications: Vec<&'a SimulatedNotification>,
    /// `None` on the last page.
    pub(crate) next_page_token: Option<String>,
}

impl NotificationLog {
    /// One page of the notifications sent for an app. `Err` is Apple's error code for a wrong query.
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
        let kept = match environment {
            SimulatedEnvironment::Production => PRODUCTION_HISTORY_RETENTION,
            SimulatedEnvironment::Sandbox => SANDBOX_HISTORY_RETENTION,
        };
        if start < now.minus(kept).as_millis() {
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
        let mut wanted = self.iter().filter(is_wanted).skip(skip);
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

/// A subscription before a change.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct PriorSubscriptionStatus {
    /// Apple's status; `None` for a purchase that is no subscription.
    pub(crate) status: Option<u8>,
    pub(crate) had_grace_period: bool,
}

/// Type and subtype of a notification.
pub(crate) type TypeAndSubtype = (&'static str, Option<&'static str>);

pub(crate) fn notification_for_purchase(transaction: &SimulatedTransaction) -> TypeAndSubtype {
    match transaction.kind {
        ProductType::Subscription => ("SUBSCRIBED", Some("INITIAL_BUY")),
        _ => ("ONE_TIME_CHARGE", None),
    }
}

/// The notification of a change; `changed` and `renewal` are the transaction and its renewal after the change. `None`
/// where Apple sends none.
pub(crate) fn notification_after_change(
    changed: &SimulatedTransaction,
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
            // A purchase that is no subscription expires without a notification.
            let subtype = match renewal?.expiration_intent {
                Some(1) => Some("VOLUNTARY"),
                Some(2) => Some("BILLING_RETRY"),
                Some(3) => Some("PRICE_INCREASE"),
                Some(4) => Some("PRODUCT_NOT_FOR_SALE"),
                _ => None,
            };
            ("EXPIRED", subtype)
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
        TransactionChange::Downgrade { product_id } if *product_id == changed.product_id => {
            ("DID_CHANGE_RENEWAL_PREF", None)
        }
        TransactionChange::Downgrade { .. } => ("DID_CHANGE_RENEWAL_PREF", Some("DOWNGRADE")),
        TransactionChange::Extend { .. } => ("RENEWAL_EXTENDED", None),
        TransactionChange::Set { .. } | TransactionChange::Forget {} => return None,
    })
}

/// A block without a purchase: the app, and what the kind of block has beside it.
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

/// The payload of an app transaction, which proves the download of an app.
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

/// A UUID of version 4 from a generator that is not secure.
pub(crate) fn seeded_uuid(random: &mut fastrand::Rng) -> String {
    let mut part = |count| random_letters(random, b"0123456789abcdef", count);
    let (first, second, third) = (part(8), part(4), part(3));
    format!("{first}-{second}-4{third}-a{}-{}", part(3), part(12))
}
