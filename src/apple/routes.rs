//! `POST /v1/apple/verify` and `POST /v1/webhooks/apple/{tenantId}`: what is asked and what is posted, in JSON, and what
//! each outcome is in HTTP.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{FromRef, Path, Request, State};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use utoipa_axum::router::{OpenApiRouter, UtoipaMethodRouterExt as _};
use utoipa_axum::routes;

use super::account::{Environment, EnvironmentChoice};
use super::api::{Absent, Failure};
use super::description::{
    self, Answer, Push as PushRequest, PushErrors, VerifyErrors, VerifyRequest,
};
use super::notifications::{Message, NotAccepted, Notifications, Refused};
use super::store::FindError;
use super::trust::Distrust;
use super::verify::{About, Apple, No, NotVerified, Question, Verified};
use crate::audit::{Verdict, Verifications};
use crate::events::{Receipt, Received, Source};
use crate::http::envelope::LogFields;
use crate::http::json::{self, Fields, FromJson, Json};
use crate::http::problem::{Declined, Issue};
use crate::http::{Code, Problem, Refusal, body};
use crate::id::TenantId;
use crate::tenants::{Caller, Callers};

/// The longest signed transaction. Apple's have half of it; with everything beside it, it fits into a body.
const MAX_SIGNED: usize = 16_000;
/// The most a notification may weigh.
const MAX_PUSH_BYTES: usize = 1024 * 1024;

/// With `APPLE_OCSP=on`, when a responder is away. The log says which, and why.
const UNANSWERED: &str = "Apple's responder does not say right now whether the certificates that this is signed with were revoked. Nothing is wrong with it so far: ask again when Retry-After says.";

/// What a tenant's backend asks.
pub fn routes(apple: Apple, callers: Callers, verifications: Verifications) -> OpenApiRouter {
    asked().with_state(Room {
        apple,
        callers,
        verifications,
    })
}

/// What Apple posts.
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
    apple: Apple,
    callers: Callers,
    verifications: Verifications,
}

impl FromRef<Room> for Callers {
    fn from_ref(room: &Room) -> Self {
        room.callers.clone()
    }
}

/// Is this App Store transaction real, and what is it now?
///
/// Ask by `transactionId`, and Apple is asked; or by `signedTransaction`, and the signature is checked here. A 200 is a
/// verdict: `valid: true` with the transaction, or `valid: false` with the reason in `error`. Any other status is none.
#[utoipa::path(
    post,
    path = "/v1/apple/verify",
    operation_id = "verifyApple",
    tag = "verify",
    security(("apiKey" = [])),
    request_body(
        content = VerifyRequest,
        description = "Which transaction, and what must be true of it. At most 16 KB.",
        examples(
            ("byId" = (summary = "By its id", value = json!({
                "transactionId": "2000000123456789",
                "expectedAppUserId": "7e3fb204-2b0d-4d70-a0c2-6d8a3f6c1e55",
            }))),
            ("signed" = (summary = "As StoreKit signed it", value = json!({
                "signedTransaction": "eyJhbGciOiJFUzI1NiIsIng1YyI6Wy….eyJ0cmFuc2FjdGlvbklkIj….MEUCIQDf…",
                "environment": "production",
            }))),
        ),
    ),
    responses(
        (
            status = 200,
            description = "A verdict: the transaction, or `valid: false` and why not",
            body = Answer,
            examples(
                ("active" = (summary = "A subscription that is paid for.", value = json!(description::subscription()))),
                ("refunded" = (summary = "The same, after Apple gave the money back.", value = json!(description::refunded()))),
                ("TRANSACTION_NOT_FOUND" = (summary = "Apple knows no such transaction.", value = json!(description::no(No::NotFound(Absent::Unknown))))),
                ("SIGNATURE_INVALID" = (summary = "Apple did not sign this transaction.", value = json!(description::no(No::Distrusted(Distrust::BadSignature))))),
                ("BUNDLE_ID_MISMATCH" = (summary = "It is of another app.", value = json!(description::no(No::OtherApp { expected: "com.example.app".to_owned() })))),
                ("ENVIRONMENT_MISMATCH" = (summary = "It is of the sandbox, and production was asked about.", value = json!(description::no(No::OtherEnvironment { expected: Some(Environment::Production), found: Some("Sandbox".to_owned()) })))),
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
    let asked = room.verifications.begin(Source::Apple);
    let verified = room.apple.verify(&caller.tenant, &question).await;
    let verified = verified.map_err(Declined::from);
    let verdict = match &verified {
        Ok(_) => Verdict::Yes,
        Err(Declined::No(refusal)) => Verdict::No(refusal.code),
        Err(Declined::Failed(problem)) => Verdict::None(problem.code.as_str()),
    };
    asked.end(&caller.tenant, || question.identifier(), verdict);
    verified.map(axum::Json)
}

/// Take in a notification of the App Store
///
/// For Apple, not for you: enter this address in App Store Connect as the URL of the App Store Server Notifications, version
/// 2, for production and for the sandbox. The notification and everything signed inside of it must be signed by Apple, and
/// be of the tenant's app and of an environment that the tenant is set up for. When the answer is 200, the event is stored,
/// and so is its delivery to the tenant's callback; a repeat is answered alike and stored once. What this release has no
/// word for is stored as `unknown`.
#[utoipa::path(
    post,
    path = "/v1/webhooks/apple/{tenantId}",
    operation_id = "receiveApple",
    tag = "webhooks",
    params(("tenantId" = String, Path, description = "The tenant's id.", pattern = "^tenant_[0-7][0-9A-HJKMNP-TV-Z]{25}$", example = "tenant_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E")),
    request_body(
        content = PushRequest,
        description = "What Apple posts. At most 1 MB; its content type is not looked at.",
        examples(("notification" = (summary = "A notification.", value = json!({
            "signedPayload": "eyJhbGciOiJFUzI1NiIsIng1YyI6Wy….eyJub3RpZmljYXRpb25UeXBlIj….MEQCIBvx…",
        })))),
    ),
    responses(
        (
            status = 200,
            description = "It is stored, now or before",
            body = Receipt,
            examples(
                ("stored" = (summary = "Stored, and on its way to the tenant's callback.", value = json!(Receipt::example("002e14d5-51f5-4503-b5a8-c3a1af68eb20", true)))),
                ("repeat" = (summary = "It had come before.", value = json!(Receipt::example("002e14d5-51f5-4503-b5a8-c3a1af68eb20", false)))),
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
    door.received.note(Source::Apple, counted);
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
    let admitted = notifications.admit(&tenant).await?;
    if let Some(fields) = parts.extensions.get::<LogFields>() {
        fields.tenant(tenant.as_str());
    }
    // The type is not looked at: the signature is good enough, and a notification lost to a header would be a pity.
    let body = body::read(&parts.headers, &parts.extensions, body).await?;
    let Push { signed_payload } = json::read(&body)?;
    let message = Message {
        signed_payload,
        // It was read before, so it is JSON.
        raw: serde_json::from_slice::<Box<RawValue>>(&body).map_err(Problem::internal)?,
    };
    Ok(notifications.accept(admitted, message).await?)
}

impl From<Refused> for Problem {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Unknown => not_active(),
            Refused::Database(error) => (&*error).into(),
        }
    }
}

impl From<NotAccepted> for Problem {
    fn from(outcome: NotAccepted) -> Self {
        match outcome {
            NotAccepted::NoCredentials => no_credentials(),
            NotAccepted::NoAppAppleId => no_app_apple_id(),
            NotAccepted::Credentials(error) => credentials_problem(&error),
            NotAccepted::Untrusted(why) => {
                let mut problem = Self::new(
                    Code::SignatureInvalid,
                    format!("This notification does not convince: {why}."),
                )
                .detail("class", why.class())
                .cause(why);
                if let Some(cause) = &mut problem.cause {
                    // It holds nothing of the notification.
                    cause.class.clone_from(&cause.text);
                }
                problem
            }
            NotAccepted::Unanswered { retry_after } => {
                Self::new(Code::Unavailable, UNANSWERED).retry_after(retry_after)
            }
            NotAccepted::NoId => Self::invalid(&[Issue::at(
                "notificationUUID",
                "must be in the signed payload, with 1 to 256 characters",
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

pub(super) fn unanswered(retry_after: Duration) -> Problem {
    apple(UNANSWERED.to_owned(), Value::Null, None).retry_after(retry_after)
}

pub(super) fn no_credentials() -> Problem {
    Problem::new(
        Code::CredentialsMissing,
        "This tenant has no Apple credentials. An operator sets them with `attesto apple set-credentials`.",
    )
}

pub(super) fn no_app_apple_id() -> Problem {
    Problem::new(
        Code::CredentialsMissing,
        "This tenant has no app Apple id, without which nothing of production can be verified. An operator adds it with `attesto apple set-credentials --app-apple-id`.",
    )
}

fn credentials_problem(error: &Arc<FindError>) -> Problem {
    match &**error {
        FindError::Database(cause) => cause.into(),
        sealed => Problem::internal(sealed),
    }
}

/// What of a body matters.
pub(super) struct Push {
    signed_payload: String,
}

impl FromJson for Push {
    fn from_json(body: &mut Fields<'_>) -> Option<Self> {
        let signed_payload = body.required_string("signedPayload", 1..=MAX_PUSH_BYTES)?;
        Some(Self { signed_payload })
    }
}

impl FromJson for Question {
    fn from_json(body: &mut Fields<'_>) -> Option<Self> {
        let transaction_id = body.string("transactionId", 1..=128);
        let signed = body.string("signedTransaction", 1..=MAX_SIGNED);
        match (body.has("transactionId"), body.has("signedTransaction")) {
            (true, true) => body.issue(
                "",
                "give either transactionId or signedTransaction, not both",
            ),
            (false, false) => body.issue("", "give transactionId or signedTransaction"),
            _ => {}
        }
        let environment = body.one_of("environment", &["production", "sandbox", "auto"]);
        let expected_app_user_id = body.uuid("expectedAppUserId");
        Some(Self {
            about: match (transaction_id, signed) {
                (Some(id), None) => About::Id(id),
                (None, Some(jws)) => About::Signed(jws),
                _ => return None,
            },
            environment: environment.map(|word| match word {
                "production" => EnvironmentChoice::Production,
                "sandbox" => EnvironmentChoice::Sandbox,
                _ => EnvironmentChoice::Auto,
            }),
            expected_app_user_id,
        })
    }
}

impl From<NotVerified> for Declined {
    fn from(outcome: NotVerified) -> Self {
        Self::Failed(Box::new(match outcome {
            NotVerified::No(no) => return Self::No(Box::new(refusal(no))),
            NotVerified::NoCredentials => no_credentials(),
            NotVerified::NoAppAppleId => no_app_apple_id(),
            NotVerified::Credentials(error) => credentials_problem(&error),
            NotVerified::Apple(failure) => problem(failure),
            NotVerified::Unanswered { retry_after } => unanswered(retry_after),
            NotVerified::Unbelievable(what) => apple(
                "Apple's server sent a transaction that cannot be believed. Ask again later."
                    .to_owned(),
                json!(200),
                None,
            )
            .cause(what),
        }))
    }
}

pub(super) fn refusal(no: No) -> Refusal {
    match no {
        No::NotFound(absent) => {
            let (reason, message) = match absent {
                Absent::Unknown => ("unknown", "Apple knows no transaction with this id."),
                Absent::NotAnId => (
                    "malformed",
                    "This is not a transaction id: Apple does not recognise its form.",
                ),
                Absent::AppTransactionId => (
                    "app_transaction_id",
                    "This is the id of an app transaction. Send the id of the purchase's own transaction.",
                ),
            };
            Refusal::new("TRANSACTION_NOT_FOUND", message).detail("reason", reason)
        }
        No::Distrusted(distrust) => distrusted(distrust),
        No::OtherApp { expected } => Refusal::new(
            "BUNDLE_ID_MISMATCH",
            format!("This transaction is not of this tenant's app, {expected}."),
        )
        .detail("expected", expected),
        No::OtherEnvironment { expected, found } => Refusal::new(
            "ENVIRONMENT_MISMATCH",
            "This transaction is of another environment than the one asked about.",
        )
        .detail("expected", json!(expected.map(Environment::as_str)))
        .detail(
            "found",
            json!(found.map(|found| found.to_ascii_lowercase())),
        ),
        No::OtherUser => Refusal::new(
            "APP_USER_MISMATCH",
            "The app did not give this purchase to the expected user: its appAccountToken is another one, or there is none.",
        ),
    }
}

fn distrusted(distrust: Distrust) -> Refusal {
    Refusal::new(
        "SIGNATURE_INVALID",
        format!("This is not a transaction that Apple signed: {distrust}."),
    )
    .detail("class", distrust.class())
}

fn apple(message: String, status: Value, code: Option<i64>) -> Problem {
    Problem::new(Code::AppleApiError, message)
        .detail("status", status)
        .detail("appleErrorCode", json!(code))
}

pub(super) fn problem(failure: Failure) -> Problem {
    let problem = match &failure {
        Failure::Unauthorized { status } => apple(
            "Apple refuses this tenant's key. Check the key id, the issuer id and the bundle id, and that it is a key for In-App Purchase that was not revoked.".to_owned(),
            json!(status),
            None,
        ),
        Failure::RateLimited { retry_after } => Problem::new(
            Code::RateLimited,
            "Apple's limit for this tenant's app is used up. Wait as long as Retry-After says.",
        )
        .detail("status", 429)
        .retry_after(*retry_after),
        Failure::Unexpected { status, code, retry_after, .. } => {
            let said = code.map_or_else(String::new, |code| format!(" and error {code}"));
            let advice = match code {
                Some(4_000_000..=4_039_999 | 4_040_001 | 4_040_003) => {
                    "Asking again will not help: check that this tenant's bundle id and key belong to the same app."
                }
                _ => "Ask again later.",
            };
            let problem = apple(
                format!("Apple answered with status {status}{said}, which says neither yes nor no. {advice}"),
                json!(status),
                *code,
            );
            match retry_after {
                Some(wait) => problem.retry_after(*wait),
                None => problem,
            }
        }
        Failure::Unreadable(_) => apple("Apple's answer cannot be read.".to_owned(), json!(200), None),
        Failure::NoAnswer(_) => apple(
            "Apple could not be reached, or did not answer in time. Ask again later.".to_owned(),
            Value::Null,
            None,
        ),
        Failure::Crowded => Problem::new(
            Code::RateLimited,
            "Too many questions of this tenant are waiting for Apple. Ask again shortly.",
        )
        .retry_after(Duration::from_secs(1)),
    };
    let class = class(&failure);
    let mut problem = problem.cause(failure);
    if let Some(cause) = &mut problem.cause {
        cause.class = class;
    }
    problem
}

/// What the log says in production: the kind and Apple's own numbers for it, nothing of a purchase.
fn class(failure: &Failure) -> String {
    match failure {
        Failure::Unauthorized { status } => format!("apple credentials {status}"),
        Failure::RateLimited { .. } => "apple rate limit".to_owned(),
        Failure::Unexpected { status, code, .. } => {
            format!(
                "apple unexpected {status} {}",
                code.map_or_else(|| "no code".to_owned(), |code| code.to_string())
            )
        }
        Failure::Unreadable(_) => "apple unreadable".to_owned(),
        Failure::NoAnswer(_) => "apple no answer".to_owned(),
        Failure::Crowded => "apple crowded".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::json::read;
    use crate::outbound::SendError;

    fn issues(body: &Value) -> Value {
        let problem =
            read::<Question>(body.to_string().as_bytes()).expect_err("it must be refused");
        problem.details["issues"].clone()
    }

    #[test]
    fn a_question_is_read() {
        let read = |body: Value| read::<Question>(body.to_string().as_bytes()).expect("good");
        let question = read(json!({"transactionId": "1", "more": 1}));
        assert_eq!(
            question,
            Question {
                about: About::Id("1".into()),
                environment: None,
                expected_app_user_id: None
            }
        );
        let question = read(json!({
            "signedTransaction": "a.b.c", "environment": "auto",
            "expectedAppUserId": "11111111-2222-3333-4444-555555555555",
        }));
        assert_eq!(question.about, About::Signed("a.b.c".into()));
        assert_eq!(question.environment, Some(EnvironmentChoice::Auto));
        assert!(question.expected_app_user_id.is_some());
    }

    #[test]
    fn everything_wrong_with_a_question_is_said_at_once() {
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
                json!({"signedTransaction": "x".repeat(MAX_SIGNED + 1)}),
                "signedTransaction",
            ),
        ] {
            assert_eq!(issues(&body)[0]["path"], path, "{body}");
        }
    }

    #[test]
    fn every_failure_is_told_apart() {
        let answer = |failure| {
            let problem = problem(failure);
            (problem.code, json!(problem.details))
        };
        assert_eq!(
            answer(Failure::Unauthorized { status: 401 }),
            (
                Code::AppleApiError,
                json!({"status": 401, "appleErrorCode": null})
            )
        );
        assert_eq!(
            answer(Failure::RateLimited {
                retry_after: Duration::from_millis(1500)
            }),
            (
                Code::RateLimited,
                json!({"status": 429, "retryAfterSeconds": 2})
            )
        );
        assert_eq!(
            answer(Failure::Unexpected {
                status: 404,
                code: Some(4_040_004),
                message: None,
                retry_after: Some(Duration::from_secs(3))
            }),
            (
                Code::AppleApiError,
                json!({"status": 404, "appleErrorCode": 4_040_004, "retryAfterSeconds": 3})
            )
        );
        let advice = |code| {
            let (status, message, retry_after) = (400, None, None);
            problem(Failure::Unexpected {
                status,
                code,
                message,
                retry_after,
            })
            .message
        };
        assert!(advice(Some(4_000_002)).contains("bundle id"));
        assert!(advice(Some(4_040_004)).ends_with("Ask again later."));
        assert!(advice(None).ends_with("Ask again later."));
        assert_eq!(
            answer(Failure::NoAnswer(SendError::Timeout(Duration::from_secs(
                10
            )))),
            (
                Code::AppleApiError,
                json!({"status": null, "appleErrorCode": null})
            )
        );
        assert_eq!(
            answer(Failure::Crowded),
            (Code::RateLimited, json!({"retryAfterSeconds": 1}))
        );
    }
}
