//! Reads the bodies of Google's routes. Every issue of a body is reported at once.

use serde_json::{Value, json};
use utoipa::ToSchema;
use utoipa::openapi::schema::Schema;

use super::payload::ExternalAccountIds;
use crate::base::clock::Timestamp;
use crate::events::SubjectType;
use crate::http::api_docs;
use crate::http::json::{FromJson, JsonFields};
use crate::stores::shared::first_seen::{MAX_FOR_USER_CHARS, for_app_user_id_schema};

pub(super) const MAX_PUSH_BYTES: usize = 1024 * 1024;
/// Google's limit of an obfuscated id.
const MAX_EXTERNAL_ID_CHARS: usize = 64;

/// A question about a Google Play purchase: a subscription's, or a one-time product's. The token is enough.
#[derive(Clone, Debug, PartialEq, Eq, ToSchema)]
#[schema(as = google::VerifyRequest, rename_all = "camelCase")]
pub struct GoogleVerifyRequest {
    /// The app's package name; it must be the one that this tenant is set up with.
    #[schema(min_length = 1, max_length = 200, examples("com.example.app"))]
    pub(crate) package_name: String,
    /// What Play gave your app: `Purchase.getPurchaseToken()`.
    #[schema(
        min_length = 1,
        max_length = 4096,
        examples("mbcdefghijklmnopqrstuvwx.AO-J1Ozn")
    )]
    pub(crate) purchase_token: String,
    /// Which kind of purchase is asked about first. `None`: a subscription.
    #[schema(rename = "type", schema_with = purchase_type, required = false)]
    pub(crate) kind: Option<SubjectType>,
    /// The product that must be among those of the purchase. Left out: the answer about a subscription is about the one that
    /// lasts longest.
    #[schema(min_length = 1, max_length = 200, examples("pro_monthly"))]
    pub(crate) product_id: Option<String>,
    /// The obfuscated account id that the purchase must have, compared byte by byte.
    #[schema(schema_with = expected_app_user_id, required = false)]
    pub(crate) expected_app_user_id: Option<String>,
    /// The user for whom it is verified.
    #[schema(schema_with = for_app_user_id_schema, required = false)]
    pub(crate) for_app_user_id: Option<String>,
}

/// Which purchase to acknowledge, and what must be true of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AcknowledgeRequest {
    pub(crate) purchase: GoogleVerifyRequest,
    /// The user that a subscription is bound to which was made outside the app.
    pub(crate) external_account_ids: Option<ExternalAccountIds>,
}

/// Which purchase to acknowledge, and what must be true of it. The token is enough.
#[derive(ToSchema)]
#[schema(as = google::AcknowledgeRequest, rename_all = "camelCase")]
#[expect(
    dead_code,
    reason = "describes what `AcknowledgeRequest::from_json` reads"
)]
pub(super) struct AcknowledgeRequestSchema {
    /// The app's package name; it must be the one that this tenant is set up with.
    #[schema(min_length = 1, max_length = 200, examples("com.example.app"))]
    package_name: String,
    /// What Play gave your app: `Purchase.getPurchaseToken()`.
    #[schema(
        min_length = 1,
        max_length = 4096,
        examples("mbcdefghijklmnopqrstuvwx.AO-J1Ozn")
    )]
    purchase_token: String,
    #[schema(rename = "type", schema_with = purchase_type, required = false)]
    kind: Option<SubjectType>,
    /// The product that must be among those of the purchase. Google's own call needs it; left out, Google is asked for it.
    #[schema(min_length = 1, max_length = 200, examples("pro_monthly"))]
    product_id: Option<String>,
    #[schema(schema_with = expected_app_user_id, required = false)]
    expected_app_user_id: Option<String>,
    external_account_ids: Option<ExternalAccountIdsSchema>,
}

/// Whose subscription it becomes, where it was bought again in Play and so names no user. Left out: the user of the purchase
/// before it, where Google names that one. Another user than the purchase's own is refused with `APP_USER_MISMATCH`.
#[derive(ToSchema)]
#[schema(as = google::ExternalAccountIds, rename_all = "camelCase")]
#[expect(
    dead_code,
    reason = "describes what `AcknowledgeRequest::from_json` reads"
)]
struct ExternalAccountIdsSchema {
    /// What your app gives Google with `setObfuscatedAccountId`.
    #[schema(
        min_length = 1,
        max_length = 64,
        examples("7e3fb204-2b0d-4d70-a0c2-6d8a3f6c1e55")
    )]
    obfuscated_account_id: Option<String>,
    /// What your app gives Google with `setObfuscatedProfileId`.
    #[schema(min_length = 1, max_length = 64, examples("profile-2"))]
    obfuscated_profile_id: Option<String>,
}

fn purchase_type() -> Schema {
    api_docs::optional_string_schema(
        "What was bought: it saves a call to Google. Google is asked about the other kind too before the answer is no.\n\n- `subscription`: a subscription.\n- `product`: a one-time product.",
    )
    .enum_values(Some([json!("subscription"), json!("product"), Value::Null]))
    .build()
    .into()
}

fn expected_app_user_id() -> Schema {
    api_docs::optional_string_schema(
        "Whose purchase it must be: what your app gave Google with `setObfuscatedAccountId`. Another user's is refused with `APP_USER_MISMATCH`, and so is one without; `details.reason` says which.",
    )
    .min_length(Some(1))
    .max_length(Some(200))
    .examples([json!("7e3fb204-2b0d-4d70-a0c2-6d8a3f6c1e55")])
    .build()
    .into()
}

/// The parts of a push that are used.
pub(super) struct GooglePushBody {
    pub(super) id: String,
    pub(super) data: Option<String>,
    pub(super) publish_time: Option<Timestamp>,
}

impl FromJson for GooglePushBody {
    const FIELDS: Option<&'static [&'static str]> = Some(&[
        "message.messageId",
        "message.message_id",
        "message.data",
        "message.publishTime",
        "message.publish_time",
    ]);

    fn from_json(body: &mut JsonFields<'_>) -> Option<Self> {
        if !body.has_field("message") {
            body.add_issue(
                "message",
                "is missing; the subscription must push whole messages, without payload unwrapping",
            );
        }
        body.optional_object("message", |message| {
            // Pub/Sub sends both spellings with the same value.
            let id = if message.has_field("message_id") && !message.has_field("messageId") {
                message.required_string("message_id", 1..=256)
            } else {
                message.required_string("messageId", 1..=256)
            };
            // With any other fault the message is stored as unreadable, and not refused.
            let text = |name| message.get_value(name).and_then(Value::as_str);
            let data = text("data").map(str::to_owned);
            let publish_time = text("publishTime").or_else(|| text("publish_time"));
            Some(Self {
                id: id?,
                data,
                publish_time: publish_time.and_then(Timestamp::parse),
            })
        })
    }
}

impl FromJson for GoogleVerifyRequest {
    fn from_json(body: &mut JsonFields<'_>) -> Option<Self> {
        let package_name = body.required_string("packageName", 1..=200);
        let purchase_token = body.required_string("purchaseToken", 1..=4096);
        let kind = body.optional_one_of("type", &["subscription", "product"]);
        let product_id = body.optional_string("productId", 1..=200);
        let expected_app_user_id = body.optional_string("expectedAppUserId", 1..=200);
        let for_app_user_id = body.optional_string("forAppUserId", 1..=MAX_FOR_USER_CHARS);
        let kind = kind.map(|kind| match kind {
            "product" => SubjectType::Product,
            _ => SubjectType::Subscription,
        });
        Some(Self {
            package_name: package_name?,
            purchase_token: purchase_token?,
            kind,
            product_id,
            expected_app_user_id,
            for_app_user_id,
        })
    }
}

impl FromJson for AcknowledgeRequest {
    fn from_json(body: &mut JsonFields<'_>) -> Option<Self> {
        let purchase = GoogleVerifyRequest::from_json(body);
        let external_account_ids = body.optional_object("externalAccountIds", |ids| {
            let id_length = 1..=MAX_EXTERNAL_ID_CHARS;
            Some(ExternalAccountIds {
                obfuscated_account_id: ids
                    .optional_string("obfuscatedAccountId", id_length.clone()),
                obfuscated_profile_id: ids.optional_string("obfuscatedProfileId", id_length),
            })
        });
        Some(Self {
            purchase: purchase?,
            // Google is not sent an object with nothing in it.
            external_account_ids: external_account_ids
                .filter(|ids| *ids != ExternalAccountIds::default()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::json::read_json;

    fn issues(body: &Value) -> Vec<String> {
        let problem = read_json::<GoogleVerifyRequest>(body.to_string().as_bytes())
            .expect_err("it must be refused");
        let issues = problem.details["issues"]
            .as_array()
            .expect("a list")
            .clone();
        let line = |issue: &Value| {
            let text = |name: &str| issue[name].as_str().expect("text").to_owned();
            format!("{}: {}", text("path"), text("message"))
        };
        issues.iter().map(line).collect()
    }

    #[test]
    fn a_request_is_read() {
        let read = |body: Value| {
            read_json::<GoogleVerifyRequest>(body.to_string().as_bytes()).expect("good")
        };
        let request = read(json!({
            "packageName": "com.example.app", "purchaseToken": "t", "type": "subscription", "more": 1,
        }));
        assert_eq!(request.kind, Some(SubjectType::Subscription));
        assert_eq!(request.product_id, None);
        assert_eq!(request.expected_app_user_id, None);
        let request = read(json!({
            "packageName": "com.example.app", "purchaseToken": "é".repeat(4096), "type": "product",
            "productId": "coins", "expectedAppUserId": "user-1", "forAppUserId": "user-2",
        }));
        assert_eq!(request.kind, Some(SubjectType::Product));
        assert_eq!(request.product_id.as_deref(), Some("coins"));
        assert_eq!(request.expected_app_user_id.as_deref(), Some("user-1"));
        assert_eq!(request.for_app_user_id.as_deref(), Some("user-2"));
        let request = read(json!({ "packageName": "com.example.app", "purchaseToken": "t" }));
        assert_eq!((request.kind, request.product_id), (None, None));
    }

    #[test]
    fn a_request_to_acknowledge_may_name_the_user() {
        let read = |ids: Value| {
            let body =
                json!({ "packageName": "p", "purchaseToken": "t", "externalAccountIds": ids });
            read_json::<AcknowledgeRequest>(body.to_string().as_bytes())
        };
        let ids = |ids: Value| read(ids).expect("good").external_account_ids;
        assert_eq!(ids(Value::Null), None);
        assert_eq!(ids(json!({})), None);
        let named = ids(json!({ "obfuscatedAccountId": "u".repeat(64) })).expect("given");
        assert_eq!(named.obfuscated_account_id, Some("u".repeat(64)));
        assert_eq!(named.obfuscated_profile_id, None);
        let problem =
            read(json!({ "obfuscatedAccountId": "u".repeat(65), "obfuscatedProfileId": 1 }));
        assert_eq!(
            problem.expect_err("it must be refused").details["issues"],
            json!([
                { "path": "externalAccountIds.obfuscatedAccountId", "message": "must have 1 to 64 characters" },
                { "path": "externalAccountIds.obfuscatedProfileId", "message": "must be a string" },
            ])
        );
    }

    #[test]
    fn all_issues_of_a_request_are_reported_at_once() {
        assert_eq!(
            issues(&json!({})),
            ["packageName: is missing", "purchaseToken: is missing"]
        );
        assert_eq!(
            issues(&json!({
                "packageName": "", "purchaseToken": "x".repeat(4097), "type": "product", "expectedAppUserId": 7,
            })),
            [
                "packageName: must have 1 to 200 characters",
                "purchaseToken: must have 1 to 4096 characters",
                "expectedAppUserId: must be a string",
            ]
        );
        assert_eq!(
            issues(
                &json!({ "packageName": "p", "purchaseToken": "t", "type": "gift", "productId": "" })
            ),
            [
                "type: must be \"subscription\" or \"product\"",
                "productId: must have 1 to 200 characters",
            ]
        );
    }
}
