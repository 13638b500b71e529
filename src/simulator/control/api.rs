//! `/control` over HTTP: the operations that every table adds to, the list of them, and those that concern both stores.
//!
//! Request bodies and answers are JSON; an empty body is an empty object; no header is needed. A refusal is
//! `{"error": "a sentence"}` with status 404 for something that does not exist and 400 for everything else.

use std::fmt::Write as _;
use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{FromRef, FromRequest, FromRequestParts, Request, State};
use axum::handler::Handler;
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, get, on};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::{AppleScenario, GoogleScenario, apple_api, google_api};
use crate::simulator::context::SimulatorContext;
use crate::simulator::request::{base_url, parse_json_body};
use crate::simulator::state::fault::Fault;
use crate::simulator::state::{SimulatorError, StoreState};

type SharedContext = Arc<SimulatorContext>;
pub(super) type Context = State<SharedContext>;
pub(super) type ControlResult<T = PrettyJson> = Result<T, SimulatorError>;

/// The operations of the control API: what routes them is what documents them.
#[derive(Default)]
pub(super) struct OperationTable {
    router: Router<SharedContext>,
    examples: Vec<OperationExample>,
    heading: &'static str,
}

/// One use of an operation, as `GET /control` lists it.
struct OperationExample {
    heading: &'static str,
    method: Method,
    /// Placeholders such as `{id}` are replaced by an id that exists.
    path: String,
    body: &'static str,
    description: &'static str,
}

impl OperationTable {
    /// Starts a group of operations.
    pub(super) fn heading(mut self, heading: &'static str) -> Self {
        self.heading = heading;
        self
    }

    /// Adds a `GET`. The documented path may have a query.
    pub(super) fn get<T: 'static>(
        self,
        path: &'static str,
        handler: impl Handler<T, SharedContext>,
        description: &'static str,
    ) -> Self {
        self.route(Method::GET, path, handler)
            .example(Method::GET, path, "", description)
    }

    pub(super) fn delete<T: 'static>(
        self,
        path: &'static str,
        handler: impl Handler<T, SharedContext>,
        description: &'static str,
    ) -> Self {
        self.route(Method::DELETE, path, handler)
            .example(Method::DELETE, path, "", description)
    }

    /// Adds a `POST`, with an example of a body.
    pub(super) fn post<T: 'static>(
        self,
        path: &'static str,
        handler: impl Handler<T, SharedContext>,
        body: &'static str,
        description: &'static str,
    ) -> Self {
        self.route(Method::POST, path, handler)
            .example(Method::POST, path, body, description)
    }

    /// Adds one more example of a `POST`.
    pub(super) fn more(self, path: &str, body: &'static str, description: &'static str) -> Self {
        self.example(Method::POST, path, body, description)
    }

    /// Adds a `POST` whose path ends in `{action}`, documented once for each `(action, body, description)`.
    pub(super) fn post_actions<T: 'static>(
        self,
        path: &'static str,
        handler: impl Handler<T, SharedContext>,
        actions: &[(&str, &'static str, &'static str)],
    ) -> Self {
        let table = self.route(Method::POST, path, handler);
        actions.iter().fold(table, |table, (action, body, text)| {
            table.example(Method::POST, &path.replace("{action}", action), body, text)
        })
    }

    fn route<T: 'static>(
        mut self,
        method: Method,
        path: &'static str,
        handler: impl Handler<T, SharedContext>,
    ) -> Self {
        let filter = MethodFilter::try_from(method).expect("GET, POST and DELETE have a filter");
        let (path, _) = path.split_once('?').unwrap_or((path, ""));
        self.router = self.router.route(path, on(filter, handler));
        self
    }

    fn example(
        mut self,
        method: Method,
        path: &str,
        body: &'static str,
        description: &'static str,
    ) -> Self {
        self.examples.push(OperationExample {
            heading: self.heading,
            method,
            path: path.to_owned(),
            body,
            description,
        });
        self
    }
}

impl OperationExample {
    fn curl_command(&self, base_url: &str, ids: &[(&str, String)]) -> String {
        let (mut path, mut body) = (self.path.clone(), self.body.to_owned());
        for (placeholder, id) in ids {
            path = path.replace(placeholder, id);
            body = body.replace(placeholder, id);
        }
        let method = match self.method.as_str() {
            "GET" => String::new(),
            "POST" if !body.is_empty() => format!(" -d '{body}'"),
            method => format!(" -X {method}"),
        };
        format!("curl -s{method} '{base_url}{path}'")
    }
}

/// Everything below `/control`, and the list of it there and at `/`.
pub(in crate::simulator) fn router() -> Router<SharedContext> {
    let table = add_general_operations(google_api::add_operations(apple_api::add_operations(
        add_credentials(OperationTable::default()),
    )));
    let examples: Arc<[OperationExample]> = table.examples.into();
    let list = get(
        async move |base_url: BaseUrl, headers: HeaderMap, context: Context| {
            list_operations(&examples, &base_url.0, &headers, &context)
        },
    );
    table
        .router
        .route("/", list.clone())
        .route("/control", list.clone())
        .route("/control/", list)
}

#[rustfmt::skip]
fn add_credentials(table: OperationTable) -> OperationTable {
    table
        .heading("What to give Attesto")
        .get("/control/settings", get_settings, "the environment variables that point Attesto here")
        .get("/control/apple/root.pem", apple_api::get_root_certificate, "the root certificate to trust")
        .get("/control/apple/key", apple_api::get_key,
            "the App Store Server API key: issuerId, keyId and the text of the .p8 file")
        .get("/control/apple/key.p8", apple_api::get_key_file, "the .p8 file alone")
        .get("/control/google/service-account.json", google_api::get_service_account,
            "the service account's key file")
}

#[rustfmt::skip]
const FAULT_EXAMPLES: &[(&str, &str)] = &[
    (r#"{"at":"apple/production","errorCode":4040006,"times":2}"#,
        "Apple's error, for the next two calls; skip lets some calls pass first, times 0 never ends"),
    (r#"{"at":"apple","errorCode":4290000,"retryAfterSeconds":30}"#,
        "Apple's rate limit, with Retry-After as a point in time in milliseconds"),
    (r#"{"at":"google/play","reason":"quotaExceeded"}"#, "Google's error with this reason"),
    (r#"{"at":"google/play","reason":"notFound","times":0}"#,
        "Package not found: the developer account does not have the app"),
    (r#"{"at":"google/play","reason":"permissionDenied","status":401,"times":0}"#,
        "an account without permission, as Google often answers it"),
    (r#"{"at":"google/play","reason":"purchaseTokenNotFound","untilMsAfterSale":300,"times":0}"#,
        "a token that Play does not know yet: 404 until so long after the sale, by the simulator's clock"),
    (r#"{"at":"apple","errorCode":4040010,"untilMsAfterSale":300,"times":0}"#,
        "a transaction that the App Store does not know yet; times alone, such as 2, counts calls instead"),
    (r#"{"at":"google/token","reason":"invalid_grant"}"#, "a refusal by the token endpoint"),
    (r#"{"at":"apple/sandbox","status":503}"#, "a gateway's error page"),
    (r#"{"at":"google/play","status":200,"body":"{}"}"#, "any body"),
    (r#"{"at":"apple","delayMs":3000}"#, "the correct answer, late"),
    (r#"{"at":"google","cut":true,"app":"com.example.app"}"#,
        "a connection that breaks; app and id choose the calls"),
];

#[rustfmt::skip]
fn add_general_operations(table: OperationTable) -> OperationTable {
    let path = "/control/faults";
    let table = table.heading("Faults: answers that go wrong").route(Method::POST, path, add_fault);
    FAULT_EXAMPLES
        .iter()
        .fold(table, |table, (body, text)| table.example(Method::POST, path, body, text))
        .get(path, list_faults, "the active faults")
        .delete(path, clear_faults, "remove all faults")
        .heading("Requests and reset")
        .get("/control/requests", list_requests, "the calls that the stores received, and why they were refused")
        .delete("/control/requests", clear_requests, "forget these calls")
        .post("/control/reset", reset, "", "delete every purchase, fault, key and account but the first")
}

async fn get_settings(base_url: BaseUrl) -> String {
    let mut text = String::new();
    for (name, value) in environment_variables(&base_url.0) {
        // Writing to a `String` cannot fail.
        let _ = writeln!(text, "{name}={value}");
    }
    text
}

async fn add_fault(context: Context, Body(fault): Body<Fault>) -> ControlResult {
    context.lock_state().faults.add(fault.clone())?;
    created(fault)
}

async fn list_faults(context: Context) -> ControlResult {
    ok(json!({ "faults": context.lock_state().faults.as_slice() }))
}

async fn clear_faults(context: Context) -> ControlResult {
    context.lock_state().faults.clear();
    done()
}

async fn list_requests(context: Context) -> ControlResult {
    ok(json!({ "requests": context.recorded_requests() }))
}

async fn clear_requests(context: Context) -> ControlResult {
    context.clear_requests();
    done()
}

async fn reset(context: Context) -> ControlResult {
    context.update_and_save(|stores, _, _| {
        *stores = StoreState::default();
        Ok(())
    })?;
    let mut state = context.lock_state();
    state.faults.clear();
    state.published_messages.clear();
    state.notification_log.clear();
    state.google_signing_keys.clear();
    done()
}

/// The settings that point Attesto at a simulator. `APPLE_ROOT_CERTIFICATES` names a file that has to be written first.
pub(in crate::simulator) fn environment_variables(base_url: &str) -> Vec<(&'static str, String)> {
    vec![
        (
            "APPLE_PRODUCTION_URL",
            format!("{base_url}/apple/production"),
        ),
        ("APPLE_SANDBOX_URL", format!("{base_url}/apple/sandbox")),
        ("APPLE_ROOT_CERTIFICATES", "simulator-root.pem".to_owned()),
        ("GOOGLE_PLAY_URL", format!("{base_url}/google/play")),
        ("GOOGLE_TOKEN_URL", format!("{base_url}/google/token")),
        ("GOOGLE_JWKS_URL", format!("{base_url}/google/certs")),
    ]
}

/// Every operation as a line to paste into a shell, with ids that exist where there are any; as JSON when asked for.
fn list_operations(
    examples: &[OperationExample],
    base_url: &str,
    headers: &HeaderMap,
    context: &SharedContext,
) -> Response {
    let ids = example_ids(context);
    let accept = headers.get(header::ACCEPT);
    if accept.is_some_and(|value| value.as_bytes().windows(4).any(|part| part == b"json")) {
        let operations: Vec<Value> = examples
            .iter()
            .map(|example| {
                json!({
                    "about": example.heading,
                    "method": example.method.as_str(),
                    "path": example.path,
                    "does": example.description,
                    "curl": example.curl_command(base_url, &ids),
                })
            })
            .collect();
        return PrettyJson(StatusCode::OK, json!({ "operations": operations })).into_response();
    }
    let mut text = String::from(
        "The simulated stores: an App Store and a Google Play that make real signatures and know only the purchases made here.\n",
    );
    let mut heading = "";
    for example in examples {
        // Writing to a `String` cannot fail.
        if heading != example.heading {
            heading = example.heading;
            let _ = write!(text, "\n{heading}\n");
        }
        let curl = example.curl_command(base_url, &ids);
        let _ = write!(text, "\n  # {}\n  {curl}\n", example.description);
    }
    text.into_response()
}

/// What the placeholders in the documented paths and bodies stand for.
fn example_ids(context: &SharedContext) -> [(&'static str, String); 7] {
    let state = context.lock_state();
    let (apple, google) = (&state.stores.apple, &state.stores.google);
    let transaction = apple.list_transactions().pop();
    let subscription = google.list_subscriptions().pop();
    let product = google.list_products().pop();
    let or = |id: Option<&String>, otherwise: &str| id.map_or(otherwise.to_owned(), Clone::clone);
    let identity = &context.identity;
    [
        (
            "{id}",
            or(transaction.map(|it| &it.transaction_id), "<transactionId>"),
        ),
        (
            "{subscription}",
            or(subscription.map(|it| &it.purchase_token), "<purchaseToken>"),
        ),
        (
            "{product}",
            or(product.map(|it| &it.purchase_token), "<purchaseToken>"),
        ),
        ("{bundle}", "com.example.app".to_owned()),
        ("{package}", "com.example.app".to_owned()),
        ("{key}", identity.apple_key().key_id.clone()),
        ("{email}", identity.service_account().client_email.clone()),
    ]
}

/// An answer as indented JSON.
pub(super) struct PrettyJson(StatusCode, Value);

impl IntoResponse for PrettyJson {
    fn into_response(self) -> Response {
        let content_type = [(header::CONTENT_TYPE, "application/json")];
        (self.0, content_type, format!("{:#}\n", self.1)).into_response()
    }
}

#[expect(
    clippy::unnecessary_wraps,
    reason = "the last expression of handlers that can fail"
)]
pub(super) fn ok(body: impl Serialize) -> ControlResult {
    Ok(PrettyJson(StatusCode::OK, json!(body)))
}

#[expect(
    clippy::unnecessary_wraps,
    reason = "the last expression of handlers that can fail"
)]
pub(super) fn created(body: impl Serialize) -> ControlResult {
    Ok(PrettyJson(StatusCode::CREATED, json!(body)))
}

pub(super) fn done() -> ControlResult {
    ok(json!({ "done": true }))
}

pub(super) fn pem_response(pem: String) -> Response {
    ([(header::CONTENT_TYPE, "application/x-pem-file")], pem).into_response()
}

impl IntoResponse for SimulatorError {
    fn into_response(self) -> Response {
        let status = match self {
            Self::NotFound(_) => StatusCode::NOT_FOUND,
            Self::InvalidRequest(_) => StatusCode::BAD_REQUEST,
        };
        PrettyJson(status, json!({ "error": self.to_string() })).into_response()
    }
}

/// A request's body as JSON.
pub(super) struct Body<T>(pub T);

impl<T: DeserializeOwned> FromRequest<SharedContext> for Body<T> {
    type Rejection = SimulatorError;

    async fn from_request(
        request: Request,
        context: &SharedContext,
    ) -> Result<Self, Self::Rejection> {
        let body = Bytes::from_request(request, context)
            .await
            .map_err(|refused| SimulatorError::invalid_request(refused.body_text()))?;
        parse_json_body(&body)
            .map(Self)
            .map_err(SimulatorError::invalid_request)
    }
}

/// The body together with the action from the path, which is the JSON of a change.
pub(super) fn parse_change<T: DeserializeOwned>(
    action: &str,
    mut fields: Map<String, Value>,
) -> Result<T, SimulatorError> {
    fields.insert("action".to_owned(), json!(action));
    serde_json::from_value(Value::Object(fields)).map_err(|error| {
        SimulatorError::invalid_request(format!("{action} cannot be done: {error}."))
    })
}

/// The URL at which the caller reaches the simulator, without a slash at the end.
pub(super) struct BaseUrl(pub String);

impl<S: Sync> FromRequestParts<S> for BaseUrl {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        Ok(Self(base_url(&parts.headers, &parts.uri)))
    }
}

impl FromRef<SharedContext> for AppleScenario {
    fn from_ref(context: &SharedContext) -> Self {
        Self::new(context.clone())
    }
}

impl FromRef<SharedContext> for GoogleScenario {
    fn from_ref(context: &SharedContext) -> Self {
        Self::new(context.clone())
    }
}
