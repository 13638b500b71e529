//! `POST /v1/apple/verify` and `POST /v1/webhooks/apple/{tenantId}`.

use axum::extract::{FromRef, Path, Request, State};
use serde_json::value::RawValue;
use utoipa_axum::router::{OpenApiRouter, UtoipaMethodRouterExt as _};
use utoipa_axum::routes;

use super::account::Environment;
use super::api::Absent;
use super::description::{
    self, Answer, Push as PushRequest, PushErrors, VerifyErrors, VerifyRequest,
};
use super::notifications::{Message, Notifications};
use super::questions::{MAX_PUSH_BYTES, Push};
use super::trust::Distrust;
use super::verify::{Apple, No, Question, Verified};
use crate::audit::{Verdict, Verifications};
use crate::events::{Receipt, Received, Source};
use crate::http::envelope::LogFields;
use crate::http::json::{self, Json};
use crate::http::problem::{Declined, Issue};
use crate::http::{Problem, body};
use crate::id::TenantId;
use crate::tenants::{Caller, Callers};

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
