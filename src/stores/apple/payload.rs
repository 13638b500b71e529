//! Apple's JSON as Apple signs it, with no meaning added.
//!
//! Guarantees: every field may be absent, and `null` is the same as absent; words and numbers Apple may add to are kept
//! as they came; a date may have the fraction of a millisecond that a local StoreKit writes; unknown fields are passed
//! over here and survive in the raw payload.
//!
//! Source: the models of Apple's own server libraries, App Store Server API 1.21.

use std::fmt;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;
use serde_json::{Map, Number, Value};

use super::account::AppleEnvironment;
use crate::base::clock::Timestamp;

/// `JWSTransactionDecodedPayload`. What decides, which is what it is, of which app, where, and whether it is over, must be of the
/// kind that is expected. Any other field of another kind counts as absent: what Apple signed is not called a forgery because
/// Apple came to write a price differently. It stands in the raw payload as it came.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TransactionPayload {
    /// The first transaction of the subscription, or this one.
    pub original_transaction_id: Option<String>,
    /// The id of this transaction; each renewal has its own.
    pub transaction_id: Option<String>,
    /// The subscription's purchase event across devices.
    #[serde(deserialize_with = "patient")]
    pub web_order_line_item_id: Option<String>,
    /// The bundle id of the app.
    pub bundle_id: Option<String>,
    /// The id of the product in App Store Connect.
    pub product_id: Option<String>,
    /// When this was paid.
    #[serde(deserialize_with = "patient")]
    pub purchase_date: Option<Millis>,
    /// When the first was paid.
    #[serde(deserialize_with = "patient")]
    pub original_purchase_date: Option<Millis>,
    /// When it ends or renews; absent for what does not end.
    pub expires_date: Option<Millis>,
    /// How many consumables.
    #[serde(deserialize_with = "patient")]
    pub quantity: Option<Number>,
    /// `Auto-Renewable Subscription`, `Non-Consumable`, `Consumable`, `Non-Renewing Subscription`
    #[serde(deserialize_with = "patient")]
    pub r#type: Option<String>,
    /// The UUID the app gave StoreKit for its user.
    #[serde(deserialize_with = "patient")]
    pub app_account_token: Option<String>,
    /// `PURCHASED` or `FAMILY_SHARED`
    #[serde(deserialize_with = "patient")]
    pub in_app_ownership_type: Option<String>,
    /// When it was taken back.
    pub revocation_date: Option<Millis>,
    /// 0 another reason, 1 an issue with the app.
    #[serde(deserialize_with = "patient")]
    pub revocation_reason: Option<Number>,
    /// `REFUND_FULL`, `REFUND_PRORATED`, `FAMILY_REVOKE`
    #[serde(deserialize_with = "patient")]
    pub revocation_type: Option<String>,
    /// Another product of the group took its place.
    pub is_upgraded: Option<bool>,
    /// 1 introductory, 2 promotional, 3 offer code, 4 win-back.
    #[serde(deserialize_with = "patient")]
    pub offer_type: Option<Number>,
    /// The id of the promotional offer, or the offer code's reference name.
    #[serde(deserialize_with = "patient")]
    pub offer_identifier: Option<String>,
    /// `Production` or `Sandbox`; `Xcode` and `LocalTesting` are not signed by Apple.
    pub environment: Option<String>,
    /// ISO 3166-1 alpha-3.
    #[serde(deserialize_with = "patient")]
    pub storefront: Option<String>,
    /// Apple's number for the storefront.
    #[serde(deserialize_with = "patient")]
    pub storefront_id: Option<String>,
    /// `PURCHASE` or `RENEWAL`
    #[serde(deserialize_with = "patient")]
    pub transaction_reason: Option<String>,
    /// The currency of `price`, ISO 4217.
    #[serde(deserialize_with = "patient")]
    pub currency: Option<String>,
    /// Thousandths of a currency unit.
    #[serde(deserialize_with = "patient")]
    pub price: Option<Number>,
    /// When Apple signed this.
    #[serde(deserialize_with = "patient")]
    pub signed_date: Option<Millis>,
    /// `FREE_TRIAL`, `PAY_AS_YOU_GO`, `PAY_UP_FRONT`, `ONE_TIME`
    #[serde(deserialize_with = "patient")]
    pub offer_discount_type: Option<String>,
}

/// `JWSRenewalInfoDecodedPayload`: how a subscription goes on. A field of another kind than expected counts as absent.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RenewalInfoPayload {
    /// The first transaction of the subscription.
    #[serde(deserialize_with = "patient")]
    pub original_transaction_id: Option<String>,
    /// The product of the current period.
    #[serde(deserialize_with = "patient")]
    pub product_id: Option<String>,
    /// The product that the next renewal is for.
    #[serde(deserialize_with = "patient")]
    pub auto_renew_product_id: Option<String>,
    /// 0 off, 1 on.
    #[serde(deserialize_with = "patient")]
    pub auto_renew_status: Option<Number>,
    /// Whether Apple is trying to collect a payment that failed.
    #[serde(deserialize_with = "patient")]
    pub is_in_billing_retry_period: Option<bool>,
    /// Until when access goes on although a payment failed.
    #[serde(deserialize_with = "patient")]
    pub grace_period_expires_date: Option<Millis>,
    /// When the next renewal is due; the end of the current period.
    #[serde(deserialize_with = "patient")]
    pub renewal_date: Option<Millis>,
    /// 1 canceled, 2 billing error, 3 no consent to a price increase, 4 product not available, 5 another reason.
    #[serde(deserialize_with = "patient")]
    pub expiration_intent: Option<Number>,
    /// The UUID the app gave StoreKit for its user.
    #[serde(deserialize_with = "patient")]
    pub app_account_token: Option<String>,
    /// `Production` or `Sandbox`.
    #[serde(deserialize_with = "patient")]
    pub environment: Option<String>,
    /// When Apple signed this.
    #[serde(deserialize_with = "patient")]
    pub signed_date: Option<Millis>,
}

/// A moment as Apple writes it: milliseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Millis(pub Timestamp);

impl<'de> Deserialize<'de> for Millis {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = Number::deserialize(deserializer)?;
        #[expect(
            clippy::cast_possible_truncation,
            reason = "the fraction is cut off, as it should be; a cast saturates"
        )]
        let millis = number
            .as_i64()
            .or_else(|| number.as_f64().map(|millis| millis as i64));
        let millis = millis.ok_or_else(|| serde::de::Error::custom("not milliseconds"))?;
        Ok(Self(Timestamp::from_millis(millis)))
    }
}

/// The one field of Apple's answer to "what is this transaction".
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TransactionInfoResponse {
    /// The transaction as a JWS.
    pub signed_transaction_info: String,
}

/// Apple's answer to Get App Transaction Info.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AppTransactionInfoResponse {
    /// The app transaction as a JWS.
    pub signed_app_transaction_info: String,
}

/// Apple's answer to Look Up Order ID.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct OrderLookupResponse {
    /// 0 valid, 1 invalid.
    pub(super) status: Option<i64>,
    /// The transactions as JWSs.
    #[serde(deserialize_with = "null_is_empty")]
    pub(super) signed_transactions: Vec<String>,
}

/// A page of Apple's answer to Get Refund History.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct RefundHistoryResponse {
    /// Whether there is another page.
    pub(super) has_more: Option<bool>,
    /// What the next page is asked for by.
    pub(super) revision: Option<String>,
    /// At most twenty transactions as JWSs.
    #[serde(deserialize_with = "null_is_empty")]
    pub(super) signed_transactions: Vec<String>,
}

/// Apple's answer to Get All Subscription Statuses, as far as it is read.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct SubscriptionStatusesResponse {
    /// By subscription group.
    #[serde(deserialize_with = "null_is_empty")]
    pub(super) data: Vec<SubscriptionGroupItem>,
}

/// The customer's subscriptions in one group.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct SubscriptionGroupItem {
    /// The newest transaction of each.
    #[serde(deserialize_with = "null_is_empty")]
    pub(super) last_transactions: Vec<LastTransactionsItem>,
}

/// The newest transaction of a subscription, and the subscription's status.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct LastTransactionsItem {
    /// The first transaction of the subscription.
    pub(super) original_transaction_id: Option<String>,
    /// 1 to 5.
    pub(super) status: Option<i64>,
    /// The transaction as a JWS.
    pub(super) signed_transaction_info: Option<String>,
    /// The renewal info as a JWS.
    pub(super) signed_renewal_info: Option<String>,
}

/// The one field of Apple's answer to a request for a test notification.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SendTestNotificationResponse {
    /// What its status is asked by.
    pub test_notification_token: String,
}

/// A page of Apple's answer about the notifications it has sent.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct NotificationHistoryResponse {
    /// At most twenty notifications.
    #[serde(deserialize_with = "null_is_empty")]
    pub(super) notification_history: Vec<NotificationHistoryItem>,
    /// Whether there is another page.
    pub(super) has_more: Option<bool>,
    /// What the next page is asked for by.
    pub(super) pagination_token: Option<String>,
}

/// A notification that Apple has sent, or tried to.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct NotificationHistoryItem {
    /// The notification, as it is posted.
    pub(super) signed_payload: Option<String>,
}

/// What became of a test notification.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CheckTestNotificationResponse {
    /// What was sent.
    pub signed_payload: Option<String>,
    /// How each attempt went.
    #[serde(deserialize_with = "null_is_empty")]
    pub send_attempts: Vec<SendAttemptItem>,
}

/// How sending a notification went.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SendAttemptItem {
    /// The time of the attempt.
    pub attempt_date: Option<Millis>,
    /// `SUCCESS`, `TIMED_OUT` and the like.
    pub send_attempt_result: Option<String>,
}

fn null_is_empty<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Apple's error body.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AppleErrorBody {
    /// Its first three digits are the HTTP status. Absent when the body is not Apple's.
    pub error_code: Option<i64>,
    /// For a person.
    pub error_message: Option<String>,
}

/// `responseBodyV2DecodedPayload`: what a notification says. It is read with patience: a field of another kind than
/// expected counts as absent, because a notification that is not understood is passed on and one that is refused is lost.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NotificationPayload {
    /// What happened: see [`translate`](super::translate).
    #[serde(deserialize_with = "patient")]
    pub notification_type: Option<String>,
    /// The finer intent.
    #[serde(deserialize_with = "patient")]
    pub subtype: Option<String>,
    /// Apple's id of the notification, the same on every repeat.
    #[serde(deserialize_with = "patient", rename = "notificationUUID")]
    pub notification_uuid: Option<String>,
    /// When it was signed.
    #[serde(deserialize_with = "patient")]
    pub signed_date: Option<Millis>,
    /// Nearly everything is about one purchase.
    #[serde(deserialize_with = "patient")]
    pub data: Option<NotificationBlock>,
    /// How giving more time to many went.
    #[serde(deserialize_with = "patient")]
    pub summary: Option<NotificationBlock>,
    /// A token for a purchase outside the store.
    #[serde(deserialize_with = "patient")]
    pub external_purchase_token: Option<NotificationBlock>,
    /// About the app, and no purchase of it.
    #[serde(deserialize_with = "patient")]
    pub app_data: Option<NotificationBlock>,
    /// What Apple has added since.
    #[serde(flatten)]
    pub others: Map<String, Value>,
}

/// What a notification is about: which app, where, and what is signed about it. Every block has some of these.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NotificationBlock {
    /// The bundle id of the app.
    #[serde(deserialize_with = "patient")]
    pub bundle_id: Option<String>,
    /// Its number; may be absent in the sandbox.
    #[serde(deserialize_with = "patient")]
    pub app_apple_id: Option<i64>,
    /// `Production` or `Sandbox`; an external purchase's token has none.
    #[serde(deserialize_with = "patient")]
    pub environment: Option<String>,
    /// An external purchase; its beginning says where.
    #[serde(deserialize_with = "patient")]
    pub external_purchase_id: Option<String>,
    /// The transaction as a JWS.
    #[serde(deserialize_with = "patient")]
    pub signed_transaction_info: Option<String>,
    /// The renewal info as a JWS.
    #[serde(deserialize_with = "patient")]
    pub signed_renewal_info: Option<String>,
    /// The app transaction as a JWS.
    #[serde(deserialize_with = "patient")]
    pub signed_app_transaction_info: Option<String>,
    /// Apple's status of an auto-renewable subscription when the notification was signed: 1 to 5.
    #[serde(deserialize_with = "patient")]
    pub status: Option<i64>,
    /// Why a refund is asked for: `UNINTENDED_PURCHASE` and the like.
    #[serde(deserialize_with = "patient")]
    pub consumption_request_reason: Option<String>,
}

impl NotificationPayload {
    /// The block that says whose it is: in the order of Apple's own libraries, and after them any other that names an
    /// app.
    pub fn find_block(&self) -> Option<(String, NotificationBlock)> {
        let known = [
            ("data", &self.data),
            ("summary", &self.summary),
            ("externalPurchaseToken", &self.external_purchase_token),
            ("appData", &self.app_data),
        ];
        let known = known
            .into_iter()
            .find_map(|(name, block)| Some((name.to_owned(), block.clone()?)));
        known.or_else(|| {
            self.others
                .iter()
                .filter(|(_, value)| value.is_object())
                .filter_map(|(name, value)| {
                    Some((name.clone(), NotificationBlock::deserialize(value).ok()?))
                })
                .find(|(_, block)| block.bundle_id.is_some())
        })
    }
}

/// What stands inside a notification as a JWS of its own: a transaction, a renewal info or an app transaction. Read with
/// the same patience.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SignedPart {
    /// Only a transaction has one.
    #[serde(deserialize_with = "patient")]
    pub transaction_id: Option<String>,
    /// A transaction and a renewal info have one.
    #[serde(deserialize_with = "patient")]
    pub original_transaction_id: Option<String>,
    /// The app; a renewal info has none.
    #[serde(deserialize_with = "patient")]
    pub bundle_id: Option<String>,
    /// The id of the product in App Store Connect.
    #[serde(deserialize_with = "patient")]
    pub product_id: Option<String>,
    /// What kind of product.
    #[serde(deserialize_with = "patient")]
    pub r#type: Option<String>,
    /// The UUID the app gave StoreKit for its user.
    #[serde(deserialize_with = "patient")]
    pub app_account_token: Option<String>,
    /// `Production` or `Sandbox`.
    #[serde(deserialize_with = "patient")]
    pub environment: Option<String>,
    /// The same of an app transaction.
    #[serde(deserialize_with = "patient")]
    pub receipt_type: Option<String>,
    /// Of a subscription that is billed monthly for a commitment of a year: where it stands.
    #[serde(deserialize_with = "patient")]
    pub commitment_info: Option<CommitmentInfo>,
}

/// Which of a commitment's payments a transaction is.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CommitmentInfo {
    /// Counted from 1.
    #[serde(deserialize_with = "patient")]
    pub billing_period_number: Option<i64>,
    /// How many there are.
    #[serde(deserialize_with = "patient")]
    pub total_billing_periods: Option<i64>,
}

/// A value if it is of the kind that is expected.
fn patient<'de, D: Deserializer<'de>, T: DeserializeOwned>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    let value = Value::deserialize(deserializer)?;
    Ok(serde_json::from_value(value).ok())
}

/// A JSON object whose fields stay as they were written, and in their order.
#[derive(Debug)]
pub(super) struct OrderedObject(Vec<(String, Box<RawValue>)>);

impl OrderedObject {
    /// The fields of an object; `None` for what is none.
    pub(super) fn parse_object(json: &RawValue) -> Option<Self> {
        serde_json::from_str(json.get()).ok()
    }

    /// A field that is an object itself.
    pub(super) fn get_object(&self, name: &str) -> Option<Self> {
        let (_, value) = self.0.iter().find(|(known, _)| known == name)?;
        Self::parse_object(value)
    }

    /// Puts a field behind another, instead of whatever has its name.
    pub(super) fn insert_after(&mut self, other: &str, name: &str, value: Box<RawValue>) {
        self.0.retain(|(known, _)| known != name);
        let place = self.0.iter().position(|(known, _)| known == other);
        let place = place.map_or(self.0.len(), |place| place + 1);
        self.0.insert(place, (name.to_owned(), value));
    }

    /// Removes a field.
    pub(super) fn remove_field(&mut self, name: &str) {
        self.0.retain(|(known, _)| known != name);
    }

    /// Puts another value in a field's place.
    pub(super) fn replace_field(&mut self, name: &str, value: &Self) {
        for (_, old) in self.0.iter_mut().filter(|(known, _)| known == name) {
            *old = value.to_json();
        }
    }

    /// The object as JSON.
    pub(super) fn to_json(&self) -> Box<RawValue> {
        serde_json::value::to_raw_value(self).unwrap_or_else(|_| RawValue::NULL.to_owned())
    }
}

impl Serialize for OrderedObject {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, value)| (name, value)))
    }
}

impl<'de> Deserialize<'de> for OrderedObject {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> serde::de::Visitor<'de> for Fields {
            type Value = OrderedObject;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(
                self,
                mut map: A,
            ) -> Result<OrderedObject, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(OrderedObject(fields))
            }
        }
        deserializer.deserialize_map(Fields)
    }
}

/// What is looked at before a payload's signature is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct PayloadPeek {
    /// The day of signing: of a transaction, renewal or notification, or of an app transaction.
    pub(super) signed_date: Option<Timestamp>,
    /// Whether each field is given once. JSON does not say which of two counts, so two readers of one signed text
    /// could disagree.
    pub(super) is_unambiguous: bool,
}

/// More fields than Apple signs, by far. Looking for one given twice takes time that grows with the square of this, and
/// a payload can come from any client.
const MAX_PAYLOAD_FIELDS: usize = 256;

/// One look over a payload. `None` when it is not one JSON object with at most [`MAX_PAYLOAD_FIELDS`] fields, or when its date
/// is none.
pub(super) fn peek_signed_date(json: &[u8]) -> Option<PayloadPeek> {
    struct Looking;
    impl<'de> serde::de::Visitor<'de> for Looking {
        type Value = Option<PayloadPeek>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: serde::de::MapAccess<'de>>(
            self,
            mut map: A,
        ) -> Result<Self::Value, A::Error> {
            // A payload has some forty fields: a list is searched faster than anything is hashed.
            let mut seen: Vec<std::borrow::Cow<'de, str>> = Vec::with_capacity(48);
            let (mut signed, mut created) = (None::<Millis>, None::<Millis>);
            let mut is_unambiguous = true;
            while let Some(FieldName(name)) = map.next_key()? {
                match &*name {
                    "signedDate" => signed = map.next_value()?,
                    "receiptCreationDate" => created = map.next_value()?,
                    _ => drop(map.next_value::<serde::de::IgnoredAny>()?),
                }
                is_unambiguous &= !seen.contains(&name);
                if seen.len() == MAX_PAYLOAD_FIELDS {
                    return Ok(None);
                }
                seen.push(name);
            }
            Ok(Some(PayloadPeek {
                signed_date: signed.or(created).map(|Millis(date)| date),
                is_unambiguous,
            }))
        }
    }
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let glance = deserializer.deserialize_map(Looking).ok()??;
    deserializer.end().ok()?;
    Some(glance)
}

/// A field's name, borrowed unless it is written with escapes.
#[derive(Deserialize)]
struct FieldName<'a>(#[serde(borrow)] std::borrow::Cow<'a, str>);

/// A payload as it was signed, for callers who want the fields that are not read here.
pub(super) fn to_raw_json(json: Vec<u8>) -> Option<Box<RawValue>> {
    let text = String::from_utf8(json).ok()?;
    RawValue::from_string(text).ok()
}

/// A number or word to be passed on as it is.
pub(super) fn number_to_value(number: Option<Number>) -> Option<Value> {
    number.map(Value::Number)
}

/// A part of a notification with a signature of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotificationPart {
    /// A `signedTransactionInfo`, of one purchase or renewal.
    Transaction,
    /// A `signedRenewalInfo`, of a subscription's next renewal.
    RenewalInfo,
    /// A `signedAppTransactionInfo`, of the app's own purchase.
    AppTransaction,
}

impl NotificationPart {
    /// The field that holds its JWS.
    pub(super) fn signed_field(self) -> &'static str {
        match self {
            Self::Transaction => "signedTransactionInfo",
            Self::RenewalInfo => "signedRenewalInfo",
            Self::AppTransaction => "signedAppTransactionInfo",
        }
    }

    /// The field of an event that holds it decoded.
    pub(super) fn decoded_field(self) -> &'static str {
        match self {
            Self::Transaction => "transactionInfo",
            Self::RenewalInfo => "renewalInfo",
            Self::AppTransaction => "appTransactionInfo",
        }
    }

    pub(super) fn find_jws(self, block: &NotificationBlock) -> Option<&str> {
        match self {
            Self::Transaction => block.signed_transaction_info.as_deref(),
            Self::RenewalInfo => block.signed_renewal_info.as_deref(),
            Self::AppTransaction => block.signed_app_transaction_info.as_deref(),
        }
    }

    /// Whether `content` is of the type that the field's name says. The same keys sign all three.
    pub(super) fn is_type_of(self, content: &SignedPart) -> bool {
        let has_transaction_id = content.transaction_id.is_some();
        match self {
            Self::Transaction => has_transaction_id,
            Self::RenewalInfo => content.original_transaction_id.is_some() && !has_transaction_id,
            Self::AppTransaction => content.receipt_type.is_some(),
        }
    }

    /// Whether `content` is of the app and the environment of the notification around it. Apple leaves both out of some old
    /// purchases; then the notification's own word counts, which is signed as well and holds this part.
    pub(super) fn is_of_app_and_environment(
        self,
        content: &SignedPart,
        bundle_id: &str,
        environment: AppleEnvironment,
    ) -> bool {
        let (app, found) = match self {
            Self::Transaction => (content.bundle_id.as_deref(), &content.environment),
            // A renewal info contains no bundle id.
            Self::RenewalInfo => (Some(bundle_id), &content.environment),
            Self::AppTransaction => (content.bundle_id.as_deref(), &content.receipt_type),
        };
        app.is_none_or(|app| app == bundle_id)
            && found
                .as_deref()
                .is_none_or(|found| found == environment.as_apple_str())
    }
}

impl fmt::Display for NotificationPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.signed_field())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_may_have_a_fraction() {
        for (json, millis) in [
            ("1697679936049", 1_697_679_936_049),
            ("1697679936049.7297", 1_697_679_936_049),
            ("0", 0),
        ] {
            let read: Millis = serde_json::from_str(json).expect(json);
            assert_eq!(read.0.as_millis(), millis, "{json}");
        }
        for json in ["\"1697679936049\"", "true", "{}"] {
            assert!(serde_json::from_str::<Millis>(json).is_err(), "{json}");
        }
    }

    #[test]
    fn absent_and_null_are_the_same_and_more_is_no_harm() {
        let empty: TransactionPayload = serde_json::from_str("{}").expect("readable");
        let nulls: TransactionPayload =
            serde_json::from_str(r#"{"expiresDate":null,"offerType":null,"new":[{}]}"#)
                .expect("readable");
        assert_eq!(empty, nulls);
        let new: TransactionPayload =
            serde_json::from_str(r#"{"offerType":99,"type":"Lease"}"#).expect("readable");
        assert_eq!(new.offer_type, Some(Number::from(99)));
        assert_eq!(new.r#type.as_deref(), Some("Lease"));
    }

    #[test]
    fn what_does_not_decide_may_be_of_another_kind() {
        let odd: TransactionPayload = serde_json::from_str(
            r#"{"transactionId":"1","price":"9.99","offerType":"WIN_BACK","revocationReason":{},"storefrontId":143441,
                "quantity":"1","purchaseDate":"soon","appAccountToken":7,"type":[],"currency":1}"#,
        )
        .expect("readable");
        let bare: TransactionPayload =
            serde_json::from_str(r#"{"transactionId":"1"}"#).expect("readable");
        assert_eq!(odd, bare);
        for name in [
            "transactionId",
            "originalTransactionId",
            "bundleId",
            "productId",
            "environment",
            "expiresDate",
            "revocationDate",
            "isUpgraded",
        ] {
            let json = format!(r#"{{"{name}":[]}}"#);
            assert!(
                serde_json::from_str::<TransactionPayload>(&json).is_err(),
                "{name}"
            );
        }
    }

    #[test]
    fn a_field_given_twice_is_noticed_however_it_is_written() {
        for (json, unambiguous) in [
            ("{}", Some(true)),
            (r#"{"a":1,"b":{"a":2}}"#, Some(true)),
            (r#"{"a":1,"b":2,"a":3}"#, Some(false)),
            (r#"{"a":1,"\u0061":3}"#, Some(false)),
            (r#"{"signedDate":1,"signedDate":2}"#, Some(false)),
            ("[1]", None),
            (r#"{"a":1} {"#, None),
            (r#"{"a":"#, None),
            ("", None),
        ] {
            let seen = peek_signed_date(json.as_bytes()).map(|glance| glance.is_unambiguous);
            assert_eq!(seen, unambiguous, "{json}");
        }
    }

    #[test]
    fn the_day_of_signing_is_found_wherever_it_stands() {
        for (json, day) in [
            (r#"{"a":{"signedDate":1},"b":2}"#, None),
            (r#"{"a":1,"signedDate":12.9}"#, Some(12)),
            (r#"{"receiptCreationDate":7,"signedDate":null}"#, Some(7)),
            (r#"{"receiptCreationDate":7,"signedDate":8}"#, Some(8)),
        ] {
            let glance = peek_signed_date(json.as_bytes()).expect(json);
            assert_eq!(glance.signed_date.map(Timestamp::as_millis), day, "{json}");
        }
        assert_eq!(peek_signed_date(br#"{"signedDate":"1"}"#), None);
    }

    #[test]
    fn no_payload_has_so_many_fields_that_the_look_is_long() {
        let payload = |fields: usize| {
            let fields: Vec<_> = (0..fields).map(|n| format!("\"{n}\":0")).collect();
            format!("{{{}}}", fields.join(","))
        };
        assert!(peek_signed_date(payload(MAX_PAYLOAD_FIELDS).as_bytes()).is_some());
        assert_eq!(
            peek_signed_date(payload(MAX_PAYLOAD_FIELDS + 1).as_bytes()),
            None
        );
    }
}
