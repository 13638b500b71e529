//! Apple's JSON as Apple signs it, with no meaning added.
//!
//! Promises: every field may be absent, and `null` is the same as absent; words and numbers Apple may add to are kept
//! as they came; a date may have the fraction of a millisecond that a local StoreKit writes; unknown fields are passed
//! over here and survive in the raw payload.
//!
//! Source: the models of Apple's own server libraries, App Store Server API 1.21.

use serde::{Deserialize, Deserializer};
use serde_json::{Number, Value};

use crate::clock::Timestamp;

/// `JWSTransactionDecodedPayload`
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Transaction {
    /// The first transaction of the subscription, or this one.
    pub original_transaction_id: Option<String>,
    /// This transaction.
    pub transaction_id: Option<String>,
    /// The subscription's purchase event across devices.
    pub web_order_line_item_id: Option<String>,
    /// The app.
    pub bundle_id: Option<String>,
    /// The product.
    pub product_id: Option<String>,
    /// When this was paid.
    pub purchase_date: Option<Millis>,
    /// When the first was paid.
    pub original_purchase_date: Option<Millis>,
    /// When it ends or renews; absent for what does not end.
    pub expires_date: Option<Millis>,
    /// How many consumables.
    pub quantity: Option<Number>,
    /// `Auto-Renewable Subscription`, `Non-Consumable`, `Consumable`, `Non-Renewing Subscription`
    pub r#type: Option<String>,
    /// The UUID the app gave StoreKit for its user.
    pub app_account_token: Option<String>,
    /// `PURCHASED` or `FAMILY_SHARED`
    pub in_app_ownership_type: Option<String>,
    /// When it was taken back.
    pub revocation_date: Option<Millis>,
    /// 0 another reason, 1 an issue with the app.
    pub revocation_reason: Option<Number>,
    /// `REFUND_FULL`, `REFUND_PRORATED`, `FAMILY_REVOKE`
    pub revocation_type: Option<String>,
    /// Another product of the group took its place.
    pub is_upgraded: Option<bool>,
    /// 1 introductory, 2 promotional, 3 offer code, 4 win-back.
    pub offer_type: Option<Number>,
    /// Which offer.
    pub offer_identifier: Option<String>,
    /// `Production` or `Sandbox`; `Xcode` and `LocalTesting` are nobody's signature.
    pub environment: Option<String>,
    /// ISO 3166-1 alpha-3.
    pub storefront: Option<String>,
    /// Apple's number for the storefront.
    pub storefront_id: Option<String>,
    /// `PURCHASE` or `RENEWAL`
    pub transaction_reason: Option<String>,
    /// ISO 4217.
    pub currency: Option<String>,
    /// Thousandths of a currency unit.
    pub price: Option<Number>,
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
pub struct TransactionInfo {
    /// The transaction as a JWS.
    pub signed_transaction_info: String,
}

/// Apple's error body.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ErrorBody {
    /// Its first three digits are the HTTP status. Absent when the body is not Apple's.
    pub error_code: Option<i64>,
    /// For a person.
    pub error_message: Option<String>,
}

/// What is looked at before a payload's signature is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Glance {
    /// The day of signing: of a transaction, renewal or notification, or of an app transaction.
    pub(super) signed_on: Option<Timestamp>,
    /// Whether each field is given once. JSON does not say which of two counts, so two readers of one signed text
    /// could disagree.
    pub(super) is_unambiguous: bool,
}

/// More fields than Apple signs, by far. Looking for one given twice takes time that grows with the square of this, and
/// anybody may send a payload.
const MOST_FIELDS: usize = 256;

/// One look over a payload. `None` when it is not one JSON object with at most [`MOST_FIELDS`] fields, or when its date
/// is none.
pub(super) fn glance(json: &[u8]) -> Option<Glance> {
    struct Looking;
    impl<'de> serde::de::Visitor<'de> for Looking {
        type Value = Option<Glance>;

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
            while let Some(Name(name)) = map.next_key()? {
                match &*name {
                    "signedDate" => signed = map.next_value()?,
                    "receiptCreationDate" => created = map.next_value()?,
                    _ => drop(map.next_value::<serde::de::IgnoredAny>()?),
                }
                is_unambiguous &= !seen.contains(&name);
                if seen.len() == MOST_FIELDS {
                    return Ok(None);
                }
                seen.push(name);
            }
            Ok(Some(Glance {
                signed_on: signed.or(created).map(|Millis(date)| date),
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
struct Name<'a>(#[serde(borrow)] std::borrow::Cow<'a, str>);

/// A payload as it was signed, for whoever wants what is not understood here.
pub(super) fn raw(json: Vec<u8>) -> Option<Box<serde_json::value::RawValue>> {
    let text = String::from_utf8(json).ok()?;
    serde_json::value::RawValue::from_string(text).ok()
}

/// A number or word to be passed on as it is.
pub(super) fn as_is(number: Option<Number>) -> Option<Value> {
    number.map(Value::Number)
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
            assert_eq!(read.0.millis(), millis, "{json}");
        }
        for json in ["\"1697679936049\"", "true", "{}"] {
            assert!(serde_json::from_str::<Millis>(json).is_err(), "{json}");
        }
    }

    #[test]
    fn absent_and_null_are_the_same_and_more_is_no_harm() {
        let empty: Transaction = serde_json::from_str("{}").expect("readable");
        let nulls: Transaction =
            serde_json::from_str(r#"{"expiresDate":null,"offerType":null,"new":[{}]}"#)
                .expect("readable");
        assert_eq!(empty, nulls);
        let new: Transaction =
            serde_json::from_str(r#"{"offerType":99,"type":"Lease"}"#).expect("readable");
        assert_eq!(new.offer_type, Some(Number::from(99)));
        assert_eq!(new.r#type.as_deref(), Some("Lease"));
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
            let seen = glance(json.as_bytes()).map(|glance| glance.is_unambiguous);
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
            let glance = glance(json.as_bytes()).expect(json);
            assert_eq!(glance.signed_on.map(Timestamp::millis), day, "{json}");
        }
        assert_eq!(glance(br#"{"signedDate":"1"}"#), None);
    }

    #[test]
    fn no_payload_has_so_many_fields_that_the_look_is_long() {
        let payload = |fields: usize| {
            let fields: Vec<_> = (0..fields).map(|n| format!("\"{n}\":0")).collect();
            format!("{{{}}}", fields.join(","))
        };
        assert!(glance(payload(MOST_FIELDS).as_bytes()).is_some());
        assert_eq!(glance(payload(MOST_FIELDS + 1).as_bytes()), None);
    }
}
