//! `POST /v1/google/verify` and `POST /v1/webhooks/google/{tenantId}`: what is asked and what is pushed, in JSON, and
//! what each outcome is in HTTP.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{FromRef, Path, Request, State};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use utoipa_axum::router::{OpenApiRouter, UtoipaMethodRouterExt as _};
use utoipa_axum::routes;

use super::api::Failure;
use super::description::{
    self, Answer, Push as PushRequest, PushErrors, VerifyErrors, VerifyRequest,
};
use super::notifications::{Message, NotAccepted, Notifications, Refused};
use super::store::FindError;
use super::verify::{Bought, Google, Missing, No, NotVerified, Question, Verified};
use crate::audit::{Verdict, Verifications};
use crate::clock::Timestamp;
use crate::events::{Receipt, Received, Source};
use crate::http::envelope::LogFields;
use crate::http::json::{self, Fields, FromJson, Json};
use crate::http::problem::{Declined, Issue};
use crate::http::{Code, Problem, Refusal, body};
use crate::id::TenantId;
use crate::tenants::caller::bearer;
use crate::tenants::{Caller, Callers};

/// The most a push may weigh.
const MAX_PUSH_BYTES: usize = 1024 * 1024;
/// When a push may come again that could not be judged for want of Google's keys, which are asked for once a minute.
const KEYS_AGAIN: Duration = Duration::from_mins(1);

/// What a tenant's backend asks.
pub fn routes(google: Google, callers: Callers, verifications: Verifications) -> OpenApiRouter {
    asked().with_state(Room {
        google,
        callers,
        verifications,
    })
}

/// What Google pushes.
pub fn push_routes(notifications: Notifications, received: Received) -> OpenApiRouter {
    pushed().with_state(Door {
        notifications,
        received,
    })
}

/// Both, as they are described.
pub fn described() -> utoipa::openapi::OpenApi {
    let mut both = asked().into_openapi();
    both.merge(pushed().into_openapi());
    both
}

fn asked() -> OpenApiRouter<Room> {
    OpenApiRouter::new().routes(routes!(verify))
}

fn pushed() -> OpenApiRouter<Door> {
    OpenApiRouter::new().routes(routes!(receive).layer(json::limit(MAX_PUSH_BYTES)))
}

#[derive(Clone)]
struct Door {
    notifications: Notifications,
    received: Received,
}

#[derive(Clone)]
struct Room {
    google: Google,
    callers: Callers,
    verifications: Verifications,
}

impl FromRef<Room> for Callers {
    fn from_ref(room: &Room) -> Self {
        room.callers.clone()
    }
}

/// Is this Google Play purchase real, and what is it now?
///
/// Google is asked. A 200 is a verdict: `valid: true` with the purchase, or `valid: false` with the reason in `error`. Any
/// other status is none.
#[utoipa::path(
    post,
    path = "/v1/google/verify",
    operation_id = "verifyGoogle",
    tag = "verify",
    security(("apiKey" = [])),
    request_body(
        content = VerifyRequest,
        description = "Which purchase, and what must be true of it. At most 16 KB.",
        examples(
            ("subscription" = (summary = "A subscription", value = json!({
                "packageName": "com.example.app",
                "purchaseToken": "mbcdefghijklmnopqrstuvwx.AO-J1Ozn",
                "type": "subscription",
                "expectedAppUserId": "7e3fb204-2b0d-4d70-a0c2-6d8a3f6c1e55",
            }))),
            ("product" = (summary = "A one-time product", value = json!({
                "packageName": "com.example.app",
                "purchaseToken": "nopqrstuvwxyzabcdefghijk.AO-J1Oyy",
                "type": "product",
                "productId": "coins_100",
            }))),
        ),
    ),
    responses(
        (
            status = 200,
            description = "A verdict: the purchase, or `valid: false` and why not",
            body = Answer,
            examples(
                ("subscription" = (summary = "A subscription that is paid for, and has to be acknowledged.", value = json!(description::subscription()))),
                ("product" = (summary = "A product that was used up.", value = json!(description::product()))),
                ("PURCHASE_NOT_FOUND" = (summary = "Google knows no such purchase.", value = json!(description::no(No::NotFound(Missing::Unknown))))),
                ("PURCHASE_NOT_FOUND_gone" = (summary = "Google knew it once.", value = json!(description::no(No::NotFound(Missing::Gone))))),
                ("PACKAGE_NAME_MISMATCH" = (summary = "It is not of this tenant's app.", value = json!(description::no(No::OtherApp { expected: "com.example.app".to_owned() })))),
                ("PRODUCT_ID_MISMATCH" = (summary = "It is of another product.", value = json!(description::no(No::OtherProduct { found: vec!["pro_yearly".to_owned()] })))),
                ("APP_USER_MISMATCH" = (summary = "It is of another user.", value = json!(description::no(No::OtherUser)))),
            ),
        ),
        VerifyErrors,
    ),
)]
async fn verify(
    State(room): State<Room>,
    caller: Caller,
    Json(question): Json<Question>,
) -> Result<axum::Json<Verified>, Declined> {
    let asked = room.verifications.begin(Source::Google);
    let verified = room.google.verify(&caller.tenant, &question).await;
    let verified = verified.map_err(Declined::from);
    let verdict = match &verified {
        Ok(_) => Verdict::Yes,
        Err(Declined::No(refusal)) => Verdict::No(refusal.code),
        Err(Declined::Failed(problem)) => Verdict::None(problem.code.as_str()),
    };
    let identifier = || question.purchase_token.as_str().into();
    asked.end(&caller.tenant, identifier, verdict);
    verified.map(axum::Json)
}

/// Take in a notification of Google Play
///
/// For Google, not for you: set up a Pub/Sub push subscription of the app's topic with authentication and without payload
/// unwrapping, its endpoint being this address. The token that Pub/Sub sends must be signed by Google, carry the address
/// that was given as `--pubsub-service-account`, and be meant for `--pubsub-audience`; where that was not set, for this
/// address. When the answer is 200, the event is stored, and so is its delivery to the tenant's callback; a repeat is
/// answered alike and stored once. A message that cannot be read is stored as `unknown`.
#[utoipa::path(
    post,
    path = "/v1/webhooks/google/{tenantId}",
    operation_id = "receiveGoogle",
    tag = "webhooks",
    security(("googlePush" = [])),
    params(("tenantId" = String, Path, description = "The tenant's id.", pattern = "^tenant_[0-7][0-9A-HJKMNP-TV-Z]{25}$", example = "tenant_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E")),
    request_body(
        content = PushRequest,
        description = "What Pub/Sub pushes. At most 1 MB; its content type is not looked at.",
        examples(("push" = (summary = "A push, its message in base64.", value = json!({
            "message": {
                "messageId": "136969346945",
                "publishTime": "2026-04-10T14:22:10.123Z",
                "data": "eyJ2ZXJzaW9uIjoiMS4wIiwicGFja2FnZU5hbWUiOiJjb20uZXhhbXBsZS5hcHAifQ==",
            },
            "subscription": "projects/example/subscriptions/attesto",
        })))),
    ),
    responses(
        (
            status = 200,
            description = "It is stored, now or before",
            body = Receipt,
            examples(
                ("stored" = (summary = "Stored, and on its way to the tenant's callback.", value = json!(Receipt::example("136969346945", true)))),
                ("repeat" = (summary = "It had come before.", value = json!(Receipt::example("136969346945", false)))),
            ),
        ),
        PushErrors,
    ),
)]
async fn receive(
    State(door): State<Door>,
    Path(tenant): Path<String>,
    request: Request,
) -> Result<axum::Json<Receipt>, Problem> {
    let outcome = take(&door.notifications, &tenant, request).await;
    let counted = outcome.as_ref().map_err(Problem::status);
    door.received.note(Source::Google, counted);
    outcome.map(axum::Json)
}

async fn take(
    notifications: &Notifications,
    tenant: &str,
    request: Request,
) -> Result<Receipt, Problem> {
    let tenant: TenantId = tenant.parse().map_err(|problem: crate::id::MalformedId| {
        Problem::invalid(&[Issue::at("tenantId", problem.to_string())])
    })?;
    let (parts, body) = request.into_parts();
    let admitted = notifications.admit(&tenant, bearer(&parts.headers)).await?;
    if let Some(fields) = parts.extensions.get::<LogFields>() {
        fields.tenant(tenant.as_str());
    }
    // The type is not looked at: Google's word is good enough, and a push lost to a header would be a pity.
    let body = body::read(&parts.headers, &parts.extensions, body).await?;
    let Push {
        id,
        data,
        published,
    } = json::read(&body)?;
    let message = Message {
        id,
        data,
        published,
        // It was read before, so it is JSON.
        raw: serde_json::from_slice::<Box<RawValue>>(&body).map_err(Problem::internal)?,
    };
    Ok(notifications.accept(admitted, message).await?)
}

impl From<Refused> for Problem {
    fn from(refused: Refused) -> Self {
        match refused {
            // One text whatever the reason, which is in the log.
            Refused::Untrusted(why) => {
                let mut problem = Self::new(
                    Code::Unauthenticated,
                    "This push's token does not convince. It must be signed by Google for the account and the audience that the tenant is set up with.",
                )
                .cause(why);
                if let Some(cause) = &mut problem.cause {
                    // It holds nothing of the token.
                    cause.class.clone_from(&cause.text);
                }
                problem
            }
            Refused::NoKeys => Self::new(
                Code::Unavailable,
                "Google's signing keys cannot be reached right now. Try again shortly.",
            )
            .retry_after(KEYS_AGAIN)
            .cause(refused),
            Refused::Inactive => not_active(),
            Refused::Credentials(error) => credentials_problem(&error),
            Refused::Database(error) => (&*error).into(),
        }
    }
}

impl From<NotAccepted> for Problem {
    fn from(outcome: NotAccepted) -> Self {
        match outcome {
            NotAccepted::OtherApp { expected } => Self::invalid(&[Issue::at(
                "message.data",
                format!("is about another app; packageName must be {expected}"),
            )]),
            NotAccepted::Inactive => not_active(),
            NotAccepted::Database(error) => error.into(),
        }
    }
}

fn not_active() -> Problem {
    Problem::new(
        Code::TenantNotFound,
        "There is no active tenant of this id.",
    )
}

fn credentials_problem(error: &Arc<FindError>) -> Problem {
    match &**error {
        FindError::Database(cause) => cause.into(),
        sealed => Problem::internal(sealed),
    }
}

/// What of a push matters.
pub(super) struct Push {
    id: String,
    data: Option<String>,
    published: Option<Timestamp>,
}

impl FromJson for Push {
    fn from_json(body: &mut Fields<'_>) -> Option<Self> {
        if !body.has("message") {
            body.issue(
                "message",
                "is missing; the subscription must push whole messages, without payload unwrapping",
            );
        }
        body.object("message", |message| {
            // Both spellings are sent, and say the same.
            let id = if message.has("message_id") && !message.has("messageId") {
                message.required_string("message_id", 1..=256)
            } else {
                message.required_string("messageId", 1..=256)
            };
            // Whatever else is wrong with a message makes it unreadable, and not refused.
            let text = |name| message.value(name).and_then(Value::as_str);
            let data = text("data").map(str::to_owned);
            let published = text("publishTime").or_else(|| text("publish_time"));
            let published = published.and_then(Timestamp::parse);
            Some(Self {
                id: id?,
                data,
                published,
            })
        })
    }
}

impl FromJson for Question {
    fn from_json(body: &mut Fields<'_>) -> Option<Self> {
        let package_name = body.required_string("packageName", 1..=200);
        let purchase_token = body.required_string("purchaseToken", 1..=4096);
        let kind = body.required_one_of("type", &["subscription", "product"]);
        let product_id = body.string("productId", 1..=200);
        if kind == Some("product") && !body.has("productId") {
            body.issue(
                "productId",
                "is missing; a product is asked about by its id",
            );
        }
        let expected_app_user_id = body.string("expectedAppUserId", 1..=200);
        let bought = match kind? {
            "product" => Bought::Product {
                product_id: product_id?,
            },
            _ => Bought::Subscription { product_id },
        };
        Some(Self {
            package_name: package_name?,
            purchase_token: purchase_token?,
            bought,
            expected_app_user_id,
        })
    }
}

impl From<NotVerified> for Declined {
    fn from(outcome: NotVerified) -> Self {
        Self::Failed(Box::new(match outcome {
            NotVerified::No(no) => return Self::No(Box::new(refusal(no))),
            NotVerified::NoCredentials => no_credentials(),
            NotVerified::Credentials(error) => credentials_problem(&error),
            NotVerified::Google(failure) => problem(failure),
        }))
    }
}

pub(super) fn no_credentials() -> Problem {
    Problem::new(
        Code::CredentialsMissing,
        "This tenant has no Google credentials. An operator sets them with `attesto google set-credentials`.",
    )
}

pub(super) fn refusal(no: No) -> Refusal {
    match no {
        No::NotFound(missing) => {
            let reason = match missing {
                Missing::Unknown => "unknown",
                Missing::Gone => "gone",
                Missing::OtherType => "other_type",
            };
            Refusal::new("PURCHASE_NOT_FOUND", missing.to_string()).detail("reason", reason)
        }
        No::OtherApp { expected } => Refusal::new(
            "PACKAGE_NAME_MISMATCH",
            format!("This purchase is not of this tenant's app, {expected}."),
        )
        .detail("expected", expected),
        No::OtherProduct { found } => Refusal::new(
            "PRODUCT_ID_MISMATCH",
            "This purchase is of another product than the one asked about.",
        )
        .detail("found", found),
        No::OtherUser => Refusal::new(
            "APP_USER_MISMATCH",
            "The app did not give this purchase to the expected user: its obfuscated account id is another one, or there is none.",
        ),
    }
}

pub(super) fn problem(failure: Failure) -> Problem {
    let google = |message: String, status: Value, reason: Option<&str>| {
        Problem::new(Code::GoogleApiError, message)
            .detail("status", status)
            .detail("googleErrorCode", json!(reason))
    };
    let problem = match &failure {
        Failure::Credentials { status, reason, .. } => google(
            format!(
                "Google refuses this tenant's service account ({}). Its key may have been deleted; or it lacks the Play Console permissions to view financial data and to manage orders and subscriptions, which take up to a day to work.",
                reason.as_deref().unwrap_or("no reason given")
            ),
            json!(status),
            reason.as_deref(),
        ),
        Failure::Application { reason } => google(
            "Google Play knows no app of this tenant's package name. Check the name, and that the Play Console gives the service account access to the app.".to_owned(),
            json!(404),
            Some(reason),
        ),
        Failure::Quota {
            status,
            retry_after,
        } => Problem::new(
            Code::RateLimited,
            "Google's quota for this tenant's project is used up. Wait as long as Retry-After says.",
        )
        .detail("status", *status)
        .retry_after(*retry_after),
        Failure::Unexpected {
            status,
            reason,
            retry_after,
            ..
        } => {
            let problem = google(
                format!(
                    "Google answered with status {status}, which says neither yes nor no. Ask again later."
                ),
                json!(status),
                reason.as_deref(),
            );
            match retry_after {
                Some(wait) => problem.retry_after(*wait),
                None => problem,
            }
        }
        Failure::Unreadable(_) => google(
            "Google's answer cannot be read.".to_owned(),
            json!(200),
            None,
        ),
        Failure::NoAnswer(_) => google(
            "Google could not be reached, or did not answer in time. Ask again later.".to_owned(),
            Value::Null,
            None,
        ),
        Failure::Crowded => Problem::new(
            Code::RateLimited,
            "Too many questions of this tenant are waiting for Google. Ask again shortly.",
        )
        .retry_after(std::time::Duration::from_secs(1)),
    };
    let class = failure.class();
    let mut problem = problem.cause(failure);
    if let Some(cause) = &mut problem.cause {
        cause.class = class;
    }
    problem
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::http::json::read;
    use crate::outbound::SendError;

    fn issues(body: &Value) -> Vec<String> {
        let problem =
            read::<Question>(body.to_string().as_bytes()).expect_err("it must be refused");
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
    fn a_question_is_read() {
        let read = |body: Value| read::<Question>(body.to_string().as_bytes()).expect("good");
        let question = read(json!({
            "packageName": "com.example.app", "purchaseToken": "t", "type": "subscription", "more": 1,
        }));
        assert_eq!(question.bought, Bought::Subscription { product_id: None });
        assert_eq!(question.expected_app_user_id, None);
        let question = read(json!({
            "packageName": "com.example.app", "purchaseToken": "é".repeat(4096), "type": "product",
            "productId": "coins", "expectedAppUserId": "user-1",
        }));
        let product_id = "coins".to_owned();
        assert_eq!(question.bought, Bought::Product { product_id });
        assert_eq!(question.expected_app_user_id.as_deref(), Some("user-1"));
    }

    #[test]
    fn everything_wrong_with_a_question_is_said_at_once() {
        assert_eq!(
            issues(&json!({})),
            [
                "packageName: is missing",
                "purchaseToken: is missing",
                "type: is missing"
            ]
        );
        assert_eq!(
            issues(&json!({
                "packageName": "", "purchaseToken": "x".repeat(4097), "type": "product", "expectedAppUserId": 7,
            })),
            [
                "packageName: must have 1 to 200 characters",
                "purchaseToken: must have 1 to 4096 characters",
                "productId: is missing; a product is asked about by its id",
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

    #[test]
    fn every_no_has_its_word() {
        for (no, code, details, part) in [
            (
                No::NotFound(Missing::Unknown),
                "PURCHASE_NOT_FOUND",
                json!({ "reason": "unknown" }),
                "Google knows no purchase with this token.",
            ),
            (
                No::NotFound(Missing::Gone),
                "PURCHASE_NOT_FOUND",
                json!({ "reason": "gone" }),
                "This purchase is gone:",
            ),
            (
                No::NotFound(Missing::OtherType),
                "PURCHASE_NOT_FOUND",
                json!({ "reason": "other_type" }),
                "is it of the other type?",
            ),
            (
                No::OtherApp {
                    expected: "com.example.app".to_owned(),
                },
                "PACKAGE_NAME_MISMATCH",
                json!({ "expected": "com.example.app" }),
                "com.example.app",
            ),
            (
                No::OtherProduct {
                    found: vec!["a".to_owned()],
                },
                "PRODUCT_ID_MISMATCH",
                json!({ "found": ["a"] }),
                "another product",
            ),
            (
                No::OtherUser,
                "APP_USER_MISMATCH",
                json!({}),
                "expected user",
            ),
        ] {
            let Declined::No(refusal) = Declined::from(NotVerified::No(no)) else {
                panic!("{code} is an answer");
            };
            assert_eq!(refusal.code, code);
            assert_eq!(Value::Object(refusal.details), details);
            assert!(refusal.message.contains(part), "{}", refusal.message);
        }
    }

    #[test]
    fn every_failure_has_its_status_and_no_secret() {
        let secret = "hunter2".to_owned();
        let text = |text: &str| Some(text.to_owned());
        let wait = Duration::from_millis(6500);
        let sealed = FindError::Database(crate::db::Error::Protocol(secret.clone()));
        let away = FindError::Database(crate::db::Error::PoolTimedOut);
        let google =
            |status: Value, code: Value| json!({ "status": status, "googleErrorCode": code });
        for (outcome, code, details) in [
            (
                NotVerified::NoCredentials,
                Code::CredentialsMissing,
                json!({}),
            ),
            (
                NotVerified::Credentials(Arc::new(sealed)),
                Code::InternalError,
                json!({}),
            ),
            (
                NotVerified::Credentials(Arc::new(away)),
                Code::Unavailable,
                json!({ "retryAfterSeconds": 2 }),
            ),
            (
                Failure::Credentials {
                    status: 400,
                    reason: text("invalid_grant"),
                    message: Some(secret.clone()),
                }
                .into(),
                Code::GoogleApiError,
                google(json!(400), json!("invalid_grant")),
            ),
            (
                Failure::Credentials {
                    status: 401,
                    reason: None,
                    message: None,
                }
                .into(),
                Code::GoogleApiError,
                google(json!(401), Value::Null),
            ),
            (
                Failure::Application {
                    reason: "applicationNotFound".to_owned(),
                }
                .into(),
                Code::GoogleApiError,
                google(json!(404), json!("applicationNotFound")),
            ),
            (
                Failure::Quota {
                    status: 429,
                    retry_after: wait,
                }
                .into(),
                Code::RateLimited,
                json!({ "status": 429, "retryAfterSeconds": 7 }),
            ),
            (
                Failure::Unexpected {
                    status: 503,
                    reason: text("backendError"),
                    message: Some(secret.clone()),
                    retry_after: Some(wait),
                }
                .into(),
                Code::GoogleApiError,
                json!({ "status": 503, "googleErrorCode": "backendError", "retryAfterSeconds": 7 }),
            ),
            (
                Failure::Unreadable(secret.clone()).into(),
                Code::GoogleApiError,
                google(json!(200), Value::Null),
            ),
            (
                Failure::NoAnswer(SendError::Connection(secret.clone())).into(),
                Code::GoogleApiError,
                google(Value::Null, Value::Null),
            ),
            (
                Failure::Crowded.into(),
                Code::RateLimited,
                json!({ "retryAfterSeconds": 1 }),
            ),
        ] {
            let Declined::Failed(problem) = Declined::from(outcome) else {
                panic!("{code:?} is no answer");
            };
            assert_eq!(problem.code, code);
            assert_eq!(Value::Object(problem.details), details);
            assert!(!problem.message.contains(&secret), "{}", problem.message);
        }
    }
}
