//! Reads the bodies of the verify and the notification route; a malformed one is answered with all of its issues.

use utoipa::ToSchema;

use super::account::EnvironmentChoice;
use super::verify::{AppleVerifyRequest, PurchaseRef};
use crate::http::json::{FromJson, JsonFields};
use crate::stores::shared::first_seen::MAX_FOR_USER_CHARS;

/// The longest `signedTransaction`. Apple's are half as long, and with the other fields it fits into a body of 16 KB.
const MAX_SIGNED_TRANSACTION_CHARS: usize = 16_000;
/// The largest body of a notification.
pub(super) const MAX_PUSH_BYTES: usize = 1024 * 1024;

/// A notification as the App Store posts it.
#[derive(ToSchema)]
#[schema(as = apple::Notification, rename_all = "camelCase")]
pub(super) struct ApplePushBody {
    /// The notification, version 2, as a JWS.
    #[schema(
        min_length = 1,
        examples("eyJhbGciOiJFUzI1NiIsIng1YyI6Wy….eyJub3RpZmljYXRpb25UeXBlIj….MEQCIBvx…")
    )]
    pub(super) signed_payload: String,
}

impl FromJson for ApplePushBody {
    const FIELDS: Option<&'static [&'static str]> =
        Some(&["signedPayload", "notification_type", "unified_receipt"]);

    fn from_json(body: &mut JsonFields<'_>) -> Option<Self> {
        let is_version_1 = ["notification_type", "unified_receipt"]
            .iter()
            .any(|name| body.has_field(name));
        if is_version_1 && !body.has_field("signedPayload") {
            body.add_issue(
                "signedPayload",
                "is not there: this is a notification of version 1, which Apple has deprecated; choose version 2 for this URL in App Store Connect",
            );
            return None;
        }
        let signed_payload = body.required_string("signedPayload", 1..=MAX_PUSH_BYTES)?;
        Some(Self { signed_payload })
    }
}

impl EnvironmentChoice {
    /// The field `environment`, which may be left out.
    pub(super) fn from_json_field(body: &mut JsonFields<'_>) -> Option<Self> {
        let word = body.optional_one_of("environment", &["production", "sandbox", "auto"])?;
        Self::parse(word)
    }
}

impl FromJson for AppleVerifyRequest {
    fn from_json(body: &mut JsonFields<'_>) -> Option<Self> {
        let transaction_id = body.optional_string("transactionId", 1..=128);
        let signed = body.optional_string("signedTransaction", 1..=MAX_SIGNED_TRANSACTION_CHARS);
        match (
            body.has_field("transactionId"),
            body.has_field("signedTransaction"),
        ) {
            (true, true) => body.add_issue(
                "",
                "give either transactionId or signedTransaction, not both",
            ),
            (false, false) => body.add_issue("", "give transactionId or signedTransaction"),
            _ => {}
        }
        let environment = EnvironmentChoice::from_json_field(body);
        let expected_app_user_id = body.optional_uuid("expectedAppUserId");
        let for_app_user_id = body.optional_string("forAppUserId", 1..=MAX_FOR_USER_CHARS);
        let refresh = body.optional_boolean("refresh").unwrap_or_default();
        Some(Self {
            purchase: match (transaction_id, signed) {
                (Some(id), None) => PurchaseRef::TransactionId(id),
                (None, Some(jws)) => PurchaseRef::SignedTransaction(jws),
                _ => return None,
            },
            environment,
            expected_app_user_id,
            for_app_user_id,
            refresh,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::http::json::read_json;

    fn issues(body: &Value) -> Value {
        let problem = read_json::<AppleVerifyRequest>(body.to_string().as_bytes())
            .expect_err("it is malformed");
        problem.details["issues"].clone()
    }

    #[test]
    fn a_verify_request_is_read() {
        let read = |body: Value| {
            read_json::<AppleVerifyRequest>(body.to_string().as_bytes()).expect("good")
        };
        let request = read(json!({"transactionId": "1", "more": 1}));
        assert_eq!(
            request,
            AppleVerifyRequest {
                purchase: PurchaseRef::TransactionId("1".into()),
                environment: None,
                expected_app_user_id: None,
                for_app_user_id: None,
                refresh: false,
            }
        );
        let request = read(json!({
            "signedTransaction": "a.b.c", "environment": "auto", "refresh": true,
            "expectedAppUserId": "11111111-2222-3333-4444-555555555555",
        }));
        assert_eq!(
            request.purchase,
            PurchaseRef::SignedTransaction("a.b.c".into())
        );
        assert_eq!(request.environment, Some(EnvironmentChoice::Auto));
        assert!(request.expected_app_user_id.is_some() && request.refresh);
    }

    #[test]
    fn all_issues_of_a_verify_request_are_listed() {
        let neither = issues(&json!({"environment": "xcode", "expectedAppUserId": "me"}));
        assert_eq!(neither.as_array().map(Vec::len), Some(3), "{neither}");
        assert_eq!(
            neither[0]["message"],
            "give transactionId or signedTransaction"
        );
        let both = issues(&json!({"transactionId": "1", "signedTransaction": "x"}));
        assert_eq!(
            both[0]["message"],
            "give either transactionId or signedTransaction, not both"
        );
        for (body, path) in [
            (json!({"transactionId": ""}), "transactionId"),
            (json!({"transactionId": "1".repeat(129)}), "transactionId"),
            (json!({"transactionId": 7}), "transactionId"),
            (
                json!({"signedTransaction": "x".repeat(MAX_SIGNED_TRANSACTION_CHARS + 1)}),
                "signedTransaction",
            ),
        ] {
            assert_eq!(issues(&body)[0]["path"], path, "{body}");
        }
    }
}
