//! Every route there is, and `/openapi.json`, which describes them. Each feature's are in its own `routes.rs`.

use std::collections::BTreeSet;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use serde_json::{Value, json};
use utoipa::openapi::schema::ObjectBuilder;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::openapi::{RefOr, Response, schema::Type};
use utoipa::{OpenApi, openapi};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::http::api_docs::{self, DocumentedError};
use crate::http::problem::ErrorBody;

/// What stands at the top of the description.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Attesto",
        description = "Tells a mobile app's backend whether an in-app purchase is real, and what it is now.\n\n\
            **Reading an answer.** Status 200 is a verdict: `valid: true` with the facts and a `status` that says what the \
            purchase is worth now, or `valid: false` with the reason in `error`. Any other status is no verdict: nothing was \
            found out, and the body is an `ErrorBody`. Ask again after 429, 502 and 503, as late as `Retry-After` says; \
            after any other 4xx something has to be mended first.\n\n\
            **Every answer** is JSON, also to a path that does not exist (404, `NOT_FOUND`), to a wrong method (405, \
            `METHOD_NOT_ALLOWED`) and to what is no HTTP (400 or 431, `INVALID_REQUEST`). Absent facts are `null` and never \
            left out; dates are RFC 3339 in UTC with milliseconds. A later release may add fields: ignore those you do not \
            know.\n\n\
            **Requests** may have fields that are not described; they are ignored. `null` is the same as leaving a field out. \
            A request may bring its own `X-Request-Id` of 1 to 128 letters, digits, dots, dashes and underscores; otherwise \
            it is given one.",
        license(name = "MIT", identifier = "MIT"),
    ),
    servers((url = "/", description = "This installation")),
    components(schemas(ErrorBody<'static>)),
    tags(
        (name = "verify", description = "Is this purchase real, and what is it now? With an API key of the tenant."),
        (name = "answers", description = "Tell the store what it waits for. With an API key of the tenant."),
        (name = "events", description = "Read events and the state of purchases back. With an API key of the tenant."),
        (name = "webhooks", description = "What the stores report. For the stores."),
        (name = "operation", description = "For operators and load balancers. Without a key."),
    ),
    modifiers(&ApiSecuritySchemes)
)]
struct ApiDescription;

/// Where a route says `apiKey` or `googlePush`, it means these.
struct ApiSecuritySchemes;

impl utoipa::Modify for ApiSecuritySchemes {
    fn modify(&self, description: &mut openapi::OpenApi) {
        let components = description.components.get_or_insert_default();
        let mut key = Http::new(HttpAuthScheme::Bearer);
        key.description = Some(
            "An API key of the tenant, `attesto_live_…` or `attesto_test_…`, from `attesto key create`."
                .to_owned(),
        );
        components.add_security_scheme("apiKey", SecurityScheme::Http(key));
        let mut push = Http::new(HttpAuthScheme::Bearer);
        push.bearer_format = Some("JWT".to_owned());
        push.description = Some(
            "The token that Pub/Sub sends with a push: signed by Google, for the account and the audience that the tenant is set up with."
                .to_owned(),
        );
        components.add_security_scheme("googlePush", SecurityScheme::Http(push));
    }
}

/// The features' routes, and `/openapi.json`, which describes them all.
pub fn build_router(features: impl IntoIterator<Item = OpenApiRouter>) -> Router {
    let (routes, descriptions) = features
        .into_iter()
        .map(OpenApiRouter::split_for_parts)
        .fold(
            (Router::new(), Vec::new()),
            |(routes, mut all), (more, described)| {
                all.push(described);
                (routes.merge(more), all)
            },
        );
    let text = Bytes::from(build_openapi(descriptions).to_string());
    let (own, _) = openapi_routes().with_state(text).split_for_parts();
    routes.merge(own)
}

/// What `/openapi.json` answers where these features are served.
pub fn build_openapi(features: impl IntoIterator<Item = openapi::OpenApi>) -> Value {
    let mut description = ApiDescription::openapi();
    for feature in features
        .into_iter()
        .chain([openapi_routes().into_openapi()])
    {
        description.merge(feature);
    }
    crate::VERSION.clone_into(&mut description.info.version);
    let items = description.paths.paths.values_mut();
    for item in items {
        let operations = [
            &mut item.get,
            &mut item.post,
            &mut item.put,
            &mut item.delete,
        ];
        for operation in operations.into_iter().flatten() {
            add_common_responses(&mut operation.responses.responses);
        }
    }
    let mut description = json!(description);
    require_nullable_fields(&mut description);
    description
}

fn openapi_routes() -> OpenApiRouter<Bytes> {
    OpenApiRouter::new().routes(routes!(openapi_json))
}

/// This description
///
/// `OpenAPI` 3.1. `attesto openapi` prints the same.
#[utoipa::path(
    get,
    path = "/openapi.json",
    operation_id = "describe",
    tag = "operation",
    responses((
        status = 200,
        description = "An `OpenAPI` document",
        body = Object,
        examples(("document" = (summary = "Its beginning.", value = json!({
            "openapi": "3.1.0", "info": { "title": "Attesto", "version": crate::VERSION }
        })))),
    )),
)]
async fn openapi_json(State(text): State<Bytes>) -> Bytes {
    text
}

/// Adds what can happen to every request, and the headers of every answer; no route needs to say them.
fn add_common_responses(responses: &mut std::collections::BTreeMap<String, RefOr<Response>>) {
    for (status, response) in api_docs::error_responses([DocumentedError::internal_error()]) {
        responses.entry(status).or_insert(response);
    }
    for response in responses.values_mut() {
        let RefOr::T(response) = response else {
            continue;
        };
        let text = || ObjectBuilder::new().schema_type(Type::String);
        let id = api_docs::response_header(
            text(),
            "The id of this request: the one it brought, or a new one. The log has a line with it.",
            json!("req_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E"),
        );
        let version = api_docs::response_header(
            text(),
            "The release of Attesto that answered.",
            json!(crate::VERSION),
        );
        response
            .headers
            .insert("X-Request-Id".to_owned(), id.into());
        response
            .headers
            .insert("X-Attesto-Version".to_owned(), version.into());
    }
}

/// What an answer has no fact for is `null` in it. So a field of an answer that may be null is always there; one that may
/// be missing says so by not being nullable.
fn require_nullable_fields(description: &mut Value) {
    let mut of_answers = BTreeSet::new();
    let operations = description["paths"].as_object().into_iter().flatten();
    for (_, item) in operations {
        for (_, operation) in item.as_object().into_iter().flatten() {
            collect_schema_refs(&operation["responses"], description, &mut of_answers);
        }
    }
    // Facts for a program are there as far as they apply.
    of_answers.retain(|name| !name.ends_with("Details"));
    for name in of_answers {
        let schema = &mut description["components"]["schemas"][name.as_str()];
        let Some(properties) = schema["properties"].as_object() else {
            continue;
        };
        let names: Vec<_> = properties
            .iter()
            .filter(|(name, property)| is_nullable(property) || is_required(schema, name))
            .map(|(name, _)| name.clone())
            .collect();
        schema["required"] = json!(names);
    }
}

fn is_nullable(property: &Value) -> bool {
    let null = json!("null");
    let has_null = |of: &Value| *of == null || of.as_array().is_some_and(|all| all.contains(&null));
    let choices = property["oneOf"].as_array().into_iter().flatten();
    has_null(&property["type"]) || choices.into_iter().any(|choice| has_null(&choice["type"]))
}

fn is_required(schema: &Value, name: &str) -> bool {
    schema["required"]
        .as_array()
        .is_some_and(|required| required.iter().any(|other| other == name))
}

/// The names of the schemas that `part` of a description refers to, and of those that those refer to.
fn collect_schema_refs(part: &Value, description: &Value, names: &mut BTreeSet<String>) {
    const SCHEMAS: &str = "#/components/schemas/";
    match part {
        Value::Object(fields) => {
            for (field, value) in fields {
                let name = value
                    .as_str()
                    .and_then(|target| target.strip_prefix(SCHEMAS));
                match name {
                    Some(name) if field == "$ref" => {
                        if names.insert(name.to_owned()) {
                            let schema = &description["components"]["schemas"][name];
                            collect_schema_refs(schema, description, names);
                        }
                    }
                    _ => collect_schema_refs(value, description, names),
                }
            }
        }
        Value::Array(items) => items
            .iter()
            .for_each(|item| collect_schema_refs(item, description, names)),
        _ => {}
    }
}
