//! `POST /v1/google/verify` and `POST /v1/webhooks/google/{tenantId}`.

use axum::extract::{FromRef, Path, Request, State};
use serde_json::value::RawValue;
use utoipa_axum::router::{OpenApiRouter, UtoipaMethodRouterExt as _};
use utoipa_axum::routes;

use super::description::{
    self, Answer, Push as PushRequest, PushErrors, VerifyErrors, VerifyRequest,
};
use super::notifications::{Message, Notifications};
use super::questions::{MAX_PUSH_BYTES, Push};
use super::verify::{Google, Missing, No, Question, Verified};
use crate::audit::{Verdict, Verifications};
use crate::events::{Receipt, Received, Source};
use crate::http::envelope::LogFields;
use crate::http::json::{self, Json};
use crate::http::problem::{Declined, Issue};
use crate::http::{Problem, body};
use crate::id::TenantId;
use crate::tenants::caller::bearer;
use crate::tenants::{Caller, Callers};

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
