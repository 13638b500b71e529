//! An event, and the JSON that is sent to callbacks.

use std::borrow::Cow;
use std::sync::Arc;

use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::event_type::{EventSource, EventType};
use super::purchase_state::{PurchaseState, StateError};
use crate::base::clock::Timestamp;
use crate::base::id::{EventId, TenantId};
use crate::deliveries::body::SharedContent;

/// An event before it is stored.
#[derive(Clone, Debug)]
pub struct NewEvent {
    /// The tenant that gets the event.
    pub tenant: TenantId,
    /// The store that reported it.
    pub source: EventSource,
    /// The store's id of the notification, the same when it is repeated: `notificationUUID` or `messageId`.
    pub external_id: String,
    /// What happened to the purchase.
    pub event_type: EventType,
    /// A more precise reason, where there is one.
    pub reason: Option<Cow<'static, str>>,
    /// The store's own name, in lower case: `apple.<type>[.<subtype>]`, `google.subscription.<n>` and so on.
    pub platform_event: String,
    /// When it happened, according to the store. `None`: the time of receipt is used instead.
    pub occurred_at: Option<Timestamp>,
    /// `None`: not known.
    pub environment: Option<EventEnvironment>,
    /// The subscription or purchase that it is about.
    pub subject: Option<EventSubject>,
    /// The app's own id of the user, where the app sent one to the store.
    pub app_user_id: Option<String>,
    /// Which purchase names that user. `None` exactly when there is no `app_user_id`.
    pub app_user_id_source: Option<AppUserIdSource>,
    /// What the purchase is worth. `None` where the facts do not decide, and where there is no subject.
    pub state: Option<PurchaseState>,
    /// Why there is no state, although there is a subject.
    pub state_error: Option<StateError>,
    /// The decoded payload.
    pub data: Box<RawValue>,
    /// The decoded payload for queries, without the JWSs that are decoded beside them and are also in `raw`. `None`: the same as
    /// `data`.
    pub facts: Option<Box<RawValue>>,
    /// The notification as the store sent it.
    pub raw: Box<RawValue>,
    /// What the notification has in common with others, if that is known: the body is stored shorter then.
    pub shared_content: Option<Arc<SharedContent>>,
    /// Until when the store takes an answer. `None`: it asks for none.
    pub answer_by: Option<Timestamp>,
    /// Whether Attesto fetched it from the store, which had not delivered it.
    pub is_recovered: bool,
}

/// The environment of a purchase.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, strum::IntoStaticStr, strum::EnumString)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum EventEnvironment {
    /// Purchases with real payments.
    Production,
    /// Purchases of testers, without payments.
    Sandbox,
}

impl EventEnvironment {
    /// The name in the database and in event JSON.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// The subscription or purchase that an event is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Subject)]
pub struct EventSubject {
    /// The same in all events of one subscription or one purchase.
    pub key: String,
    /// The store's id of the product, where it is known.
    pub product_id: Option<String>,
    /// Subscription or one-time product.
    pub r#type: SubjectType,
    /// Whether the purchase in this message is the newest of its subscription.
    pub current: bool,
    /// The newest purchase token of the subscription, where this message is about an older one (Google).
    pub superseded_by: Option<String>,
}

impl EventSubject {
    /// For the API description: a Google Play subscription.
    pub(crate) fn example_json() -> Value {
        json!({
            "key": "mbcdefghijklmnopqrstuvwx.AO-J1Ozn",
            "productId": "pro_monthly",
            "type": "subscription",
            "current": true,
            "supersededBy": null,
        })
    }
}

/// Which purchase names the app's user.
///
/// - `purchase`: the purchase itself.
/// - `earlier_purchase`: an earlier purchase of the same subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum AppUserIdSource {
    /// The purchase itself.
    Purchase,
    /// An earlier purchase of the same subscription.
    EarlierPurchase,
}

/// The kind of a purchase.
///
/// - `subscription`: a subscription, including a non-renewing one.
/// - `product`: a one-time product.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema, strum::IntoStaticStr, strum::EnumString,
)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum SubjectType {
    /// A subscription, including a non-renewing one.
    Subscription,
    /// A one-time product.
    Product,
}

impl SubjectType {
    /// The name in the database and in event JSON.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// The keys before `sequence`, in the order of the public contract.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct BodyHead<'a> {
    event: EventType,
    reason: Option<&'a str>,
    platform_event: &'a str,
    event_id: &'a EventId,
    external_id: &'a str,
    timestamp: Timestamp,
    tenant_id: &'a TenantId,
    source: EventSource,
    environment: Option<EventEnvironment>,
    subject: Option<&'a EventSubject>,
    app_user_id: Option<&'a str>,
    app_user_id_source: Option<AppUserIdSource>,
}

/// The keys after `sequence`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct BodyTail<'a> {
    state: Option<&'a PurchaseState>,
    state_error: Option<StateError>,
    data: &'a RawValue,
    raw: &'a RawValue,
    #[serde(skip_serializing_if = "Option::is_none")]
    answer_by: Option<Timestamp>,
    #[serde(skip_serializing_if = "is_false")]
    recovered: bool,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a reference"
)]
fn is_false(value: &bool) -> bool {
    !value
}

/// The JSON that is sent to callbacks, in two parts: the statement that stores the event gives it its sequence number, a JSON
/// number or `null`, and puts it between them.
#[derive(Clone, Debug)]
pub struct EventBody {
    /// Ends behind `"sequence":`.
    pub before_sequence: String,
    /// Begins with the comma behind the number.
    pub after_sequence: String,
}

impl EventBody {
    /// The whole JSON.
    pub fn with_sequence(&self, sequence: Option<i64>) -> String {
        let sequence = sequence.map_or_else(|| "null".to_owned(), |number| number.to_string());
        [&self.before_sequence, &sequence, &self.after_sequence]
            .map(String::as_str)
            .concat()
    }
}

impl NewEvent {
    /// The JSON that is sent to callbacks. `received` is used as the timestamp when the store did not say when it happened.
    pub fn to_json_body(&self, id: &EventId, received: Timestamp) -> EventBody {
        const WRITES: &str = "strings and JSON that was parsed before";
        let head = BodyHead {
            event: self.event_type,
            reason: self.reason.as_deref(),
            platform_event: &self.platform_event,
            event_id: id,
            external_id: &self.external_id,
            timestamp: self.occurred_at.unwrap_or(received),
            tenant_id: &self.tenant,
            source: self.source,
            environment: self.environment,
            subject: self.subject.as_ref(),
            app_user_id: self.app_user_id.as_deref(),
            app_user_id_source: self.app_user_id_source,
        };
        let tail = BodyTail {
            state: self.state.as_ref(),
            state_error: self.state_error,
            data: &self.data,
            raw: &self.raw,
            answer_by: self.answer_by,
            recovered: self.is_recovered,
        };
        let mut before_sequence = serde_json::to_string(&head).expect(WRITES);
        before_sequence.pop();
        before_sequence.push_str(",\"sequence\":");
        let mut after_sequence = serde_json::to_string(&tail).expect(WRITES);
        after_sequence.replace_range(..1, ",");
        EventBody {
            before_sequence,
            after_sequence,
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;

    use super::*;

    pub(in crate::events) fn event() -> NewEvent {
        let raw = |text: &str| RawValue::from_string(text.to_owned()).expect("JSON");
        NewEvent {
            tenant: "tenant_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E".parse().expect("an id"),
            source: EventSource::Google,
            external_id: "42".to_owned(),
            event_type: EventType::SubscriptionRenewed,
            reason: None,
            platform_event: "google.subscription.2".to_owned(),
            occurred_at: Timestamp::parse("2026-04-10T14:22:10.007Z"),
            environment: Some(EventEnvironment::Production),
            subject: Some(EventSubject {
                key: "token".to_owned(),
                product_id: None,
                r#type: SubjectType::Subscription,
                current: true,
                superseded_by: None,
            }),
            app_user_id: Some("user".to_owned()),
            app_user_id_source: Some(AppUserIdSource::Purchase),
            state: None,
            state_error: Some(StateError::StoreUnavailable),
            data: raw("{\"z\":1.0,\"a\":123456789012345678901234567890}"),
            facts: None,
            raw: raw("{ \"message\" :\"\\u00e9\" }"),
            shared_content: None,
            answer_by: None,
            is_recovered: false,
        }
    }

    #[test]
    fn the_body_has_its_keys_in_order_and_the_stores_text_untouched() {
        let id: EventId = "evt_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E".parse().expect("an id");
        let received = Timestamp::from_millis(0);
        assert_eq!(
            event().to_json_body(&id, received).with_sequence(Some(7)),
            concat!(
                r#"{"event":"subscription.renewed","reason":null,"platformEvent":"google.subscription.2","#,
                r#""eventId":"evt_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E","externalId":"42","timestamp":"2026-04-10T14:22:10.007Z","#,
                r#""tenantId":"tenant_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E","source":"google","environment":"production","#,
                r#""subject":{"key":"token","productId":null,"type":"subscription","current":true,"supersededBy":null},"#,
                r#""appUserId":"user","appUserIdSource":"purchase","sequence":7,"state":null,"stateError":"store_unavailable","#,
                r#""data":{"z":1.0,"a":123456789012345678901234567890},"raw":{ "message" :"\u00e9" }}"#,
            )
        );
        let recovered = NewEvent {
            is_recovered: true,
            ..event()
        };
        let body = recovered.to_json_body(&id, received).with_sequence(Some(7));
        let same = event().to_json_body(&id, received).with_sequence(Some(7));
        assert_eq!(
            body.strip_suffix(",\"recovered\":true}"),
            same.strip_suffix('}'),
            "one more key, behind all others"
        );
        let asking = NewEvent {
            answer_by: Timestamp::parse("2026-04-11T02:22:10.007Z"),
            ..recovered
        };
        let body = asking.to_json_body(&id, received).with_sequence(Some(7));
        assert_eq!(
            body.strip_suffix(r#","answerBy":"2026-04-11T02:22:10.007Z","recovered":true}"#),
            same.strip_suffix('}'),
        );
        let bare = NewEvent {
            occurred_at: None,
            environment: None,
            subject: None,
            app_user_id: None,
            app_user_id_source: None,
            reason: Some("initial".into()),
            ..event()
        };
        let read: serde_json::Value =
            serde_json::from_str(&bare.to_json_body(&id, received).with_sequence(None))
                .expect("JSON");
        assert_eq!(read["timestamp"], "1970-01-01T00:00:00.000Z");
        assert_eq!(read["reason"], "initial");
        for name in ["environment", "subject", "appUserId", "sequence"] {
            assert_eq!(read[name], json!(null), "{name}");
            assert!(read.as_object().expect("an object").contains_key(name));
        }
    }
}
