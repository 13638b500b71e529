//! Every route there is. Each feature's are in its own `routes.rs`.

use axum::Router;
use axum::routing::get;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::{IntoResponses as _, OpenApi};
use utoipa_axum::router::OpenApiRouter;

use crate::http::problem::{ErrorBody, Problem};

/// What stands at the top of the description.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Attesto",
        description = "Tells a mobile app's backend whether an in-app purchase is real, and what it is now.\n\n\
            Every answer is JSON and carries `X-Request-Id` and `X-Attesto-Version`; a request may bring its own \
            `X-Request-Id` of 1 to 128 letters, digits, dots, dashes and underscores. Every error has the shape of \
            `ErrorBody`. A store's \"no\" is an answer: status 200 with `valid: false`."
    ),
    components(schemas(ErrorBody<'_>)),
    tags(
        (name = "verify", description = "Is this purchase real, and what is it now?"),
        (name = "webhooks", description = "What the stores report"),
        (name = "operation", description = "For whoever runs this service"),
    ),
    modifiers(&ApiKey)
)]
struct Description;

/// Where a route says `apiKey`, it means this.
struct ApiKey;

impl utoipa::Modify for ApiKey {
    fn modify(&self, description: &mut utoipa::openapi::OpenApi) {
        let mut http = Http::new(HttpAuthScheme::Bearer);
        http.description =
            Some("An API key of the tenant: `attesto_live_…` or `attesto_test_…`".to_owned());
        description
            .components
            .get_or_insert_default()
            .add_security_scheme("apiKey", SecurityScheme::Http(http));
    }
}

/// The features' routes, and `/openapi.json`, which describes them all.
pub fn routes(features: impl IntoIterator<Item = OpenApiRouter>) -> Router {
    let start = OpenApiRouter::with_openapi(Description::openapi());
    let (routes, mut description) = features
        .into_iter()
        .fold(start, OpenApiRouter::merge)
        .split_for_parts();
    crate::VERSION.clone_into(&mut description.info.version);
    complete(&mut description);
    let text = serde_json::to_string(&description).expect("a description is plain JSON");
    let text: axum::body::Bytes = text.into();
    routes.route("/openapi.json", get(async move || text.clone()))
}

/// Adds what can happen to every request and no route needs to say: each error that a route does not describe better.
fn complete(description: &mut utoipa::openapi::OpenApi) {
    let common = Problem::responses();
    for item in description.paths.paths.values_mut() {
        let operations = [
            &mut item.get,
            &mut item.post,
            &mut item.put,
            &mut item.delete,
        ];
        for operation in operations.into_iter().flatten() {
            let needs_key = operation.security.is_some();
            for (status, response) in &common {
                if needs_key || status == "500" {
                    let responses = &mut operation.responses.responses;
                    responses
                        .entry(status.clone())
                        .or_insert_with(|| response.clone());
                }
            }
        }
    }
}
