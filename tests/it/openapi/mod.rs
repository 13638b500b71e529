//! `/openapi.json` as a client generator reads it, and as a page for people.

mod page;
pub(crate) mod schema;

use std::collections::BTreeSet;

use attesto::app;
use attesto::http::ErrorCode;
use attesto::simulator::state::apple::NewTransaction;
use attesto::simulator::state::google::{NewProduct, NewSubscription};
use serde_json::{Value, json};

use self::schema::objections;
use crate::world::attesto::{APP, World};

/// The codes of a request about which Apple is asked.
const ASKING_APPLE: [&str; 7] = [
    "APPLE_API_ERROR",
    "CREDENTIALS_MISSING",
    "INTERNAL_ERROR",
    "INVALID_REQUEST",
    "RATE_LIMITED",
    "UNAUTHENTICATED",
    "UNAVAILABLE",
];

/// The codes of a request about which Google is asked.
const ASKING_GOOGLE: [&str; 7] = [
    "CREDENTIALS_MISSING",
    "GOOGLE_API_ERROR",
    "INTERNAL_ERROR",
    "INVALID_REQUEST",
    "RATE_LIMITED",
    "UNAUTHENTICATED",
    "UNAVAILABLE",
];

/// Those of a route on one event.
const READING: [&str; 6] = [
    "INTERNAL_ERROR",
    "INVALID_REQUEST",
    "NOT_FOUND",
    "RATE_LIMITED",
    "UNAUTHENTICATED",
    "UNAVAILABLE",
];

const LISTING: [&str; 5] = [
    "INTERNAL_ERROR",
    "INVALID_REQUEST",
    "RATE_LIMITED",
    "UNAUTHENTICATED",
    "UNAVAILABLE",
];

/// The error codes that each route may answer, by the contract.
const ERRORS: [(&str, &[&str]); 20] = [
    ("/health", &["INTERNAL_ERROR"]),
    ("/ready", &["INTERNAL_ERROR"]),
    ("/openapi.json", &["INTERNAL_ERROR"]),
    ("/v1/apple/verify", &ASKING_APPLE),
    ("/v1/apple/app-transaction", &ASKING_APPLE),
    ("/v1/apple/consumption", &ASKING_APPLE),
    ("/v1/apple/finish", &ASKING_APPLE),
    ("/v1/apple/app-account-token", &ASKING_APPLE),
    (
        "/v1/apple/offers/sign",
        &[
            "CREDENTIALS_MISSING",
            "INTERNAL_ERROR",
            "INVALID_REQUEST",
            "RATE_LIMITED",
            "UNAUTHENTICATED",
            "UNAVAILABLE",
        ],
    ),
    ("/v1/google/verify", &ASKING_GOOGLE),
    ("/v1/google/acknowledge", &ASKING_GOOGLE),
    ("/v1/google/consume", &ASKING_GOOGLE),
    ("/v1/google/refund-review", &ASKING_GOOGLE),
    ("/v1/events", &LISTING),
    ("/v1/refund-questions", &LISTING),
    ("/v1/events/{eventId}", &READING),
    ("/v1/events/{eventId}/redeliver", &READING),
    (
        "/v1/subjects/{source}/{key}",
        &[
            "APPLE_API_ERROR",
            "CREDENTIALS_MISSING",
            "GOOGLE_API_ERROR",
            "INTERNAL_ERROR",
            "INVALID_REQUEST",
            "NOT_FOUND",
            "RATE_LIMITED",
            "UNAUTHENTICATED",
            "UNAVAILABLE",
        ],
    ),
    (
        "/v1/webhooks/apple/{tenantId}",
        &[
            "CREDENTIALS_MISSING",
            "INTERNAL_ERROR",
            "INVALID_REQUEST",
            "RATE_LIMITED",
            "SIGNATURE_INVALID",
            "TENANT_NOT_FOUND",
            "UNAVAILABLE",
        ],
    ),
    (
        "/v1/webhooks/google/{tenantId}",
        &[
            "INTERNAL_ERROR",
            "INVALID_REQUEST",
            "RATE_LIMITED",
            "TENANT_NOT_FOUND",
            "UNAUTHENTICATED",
            "UNAVAILABLE",
        ],
    ),
];

/// Every operation: its name here, its path, and its description.
fn operations(description: &Value) -> Vec<(String, &str, &Value)> {
    let paths = description["paths"].as_object().expect("paths");
    let of_path = |(path, item): (&'_ String, &'_ Value)| {
        let item = item.as_object().expect("operations");
        let path = paths.get_key_value(path).expect("it is there").0.as_str();
        let methods: Vec<_> = item.keys().cloned().collect();
        methods
            .into_iter()
            .map(move |method| (format!("{method} {path}"), path, method))
            .collect::<Vec<_>>()
    };
    paths
        .iter()
        .flat_map(of_path)
        .map(|(what, path, method)| (what, path, &paths[path][method]))
        .collect()
}

fn fields(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

/// Every `$ref` in a document.
fn references(value: &Value, into: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                match value {
                    Value::String(target) if name == "$ref" => into.push(target.clone()),
                    value => references(value, into),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| references(item, into)),
        _ => {}
    }
}

#[tokio::test]
async fn what_is_served_is_what_the_command_prints() {
    let world = World::new().await;
    let served = world.ask("GET", "/openapi.json", None, None).await.body;
    assert_eq!(served, app::openapi_document());
    world.end().await;
}

#[test]
fn the_description_is_whole() {
    let description = app::openapi_document();
    assert_eq!(description["info"]["version"], attesto::VERSION);
    let mut targets = Vec::new();
    references(&description, &mut targets);
    assert!(!targets.is_empty());
    for target in targets {
        let pointer = target.strip_prefix('#').expect("a place in this document");
        assert!(
            description.pointer(pointer).is_some(),
            "{target} is nowhere"
        );
    }
    let described: BTreeSet<_> = operations(&description)
        .iter()
        .map(|(_, path, _)| *path)
        .collect();
    assert_eq!(described, ERRORS.iter().map(|(path, _)| *path).collect());
    let mut ids = BTreeSet::new();
    for (what, path, operation) in operations(&description) {
        assert!(
            ids.insert(operation["operationId"].as_str()),
            "{what}: its id is another's"
        );
        let security = &operation["security"][0];
        let expected = match path {
            "/v1/apple/verify"
            | "/v1/apple/app-transaction"
            | "/v1/apple/consumption"
            | "/v1/apple/finish"
            | "/v1/apple/app-account-token"
            | "/v1/apple/offers/sign"
            | "/v1/google/verify"
            | "/v1/google/acknowledge"
            | "/v1/google/consume"
            | "/v1/google/refund-review"
            | "/v1/events"
            | "/v1/events/{eventId}"
            | "/v1/events/{eventId}/redeliver"
            | "/v1/subjects/{source}/{key}"
            | "/v1/refund-questions" => "apiKey",
            "/v1/webhooks/google/{tenantId}" => "googlePush",
            // Apple has no API key either; it signs what it posts.
            _ => {
                assert_eq!(security, &Value::Null, "{what}");
                continue;
            }
        };
        assert!(security[expected].is_array(), "{what}");
        assert!(description["components"]["securitySchemes"][expected]["description"].is_string());
    }
}

/// Collects elements without a description.
struct Silent(Vec<String>);

impl Silent {
    fn look(&mut self, what: &str, of: &Value, names: &[&str]) {
        for name in names {
            if of[name].as_str().is_none_or(|text| text.trim().is_empty()) {
                self.0.push(format!("{what} has no {name}"));
            }
        }
    }
}

#[test]
fn the_page_to_read_is_up_to_date() {
    let made = page::page(&app::openapi_document());
    let kept = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/api.md");
    if std::fs::read_to_string(kept).unwrap_or_default() != made {
        let new = concat!(env!("CARGO_TARGET_TMPDIR"), "/api.md");
        std::fs::write(new, &made).expect("a file");
        panic!(
            "docs/api.md is not what the API's description says. If that is right: cp {new} {kept}"
        );
    }
}

#[test]
fn everything_is_described() {
    let description = app::openapi_document();
    let mut silent = Silent(Vec::new());
    for (what, _, operation) in operations(&description) {
        silent.look(&what, operation, &["summary", "description", "operationId"]);
        for parameter in operation["parameters"].as_array().into_iter().flatten() {
            silent.look(&format!("{what}: a parameter"), parameter, &["description"]);
        }
        if let Some(body) = operation.get("requestBody") {
            silent.look(&format!("{what}: its body"), body, &["description"]);
        }
        for (status, answer) in fields(&operation["responses"]) {
            silent.look(&format!("{what}: {status}"), answer, &["description"]);
            for needed in ["X-Request-Id", "X-Attesto-Version"] {
                assert!(answer["headers"][needed].is_object(), "{what}: {status}");
            }
            for (name, header) in fields(&answer["headers"]) {
                silent.look(
                    &format!("{what}: {status}: {name}"),
                    header,
                    &["description"],
                );
            }
        }
    }
    for (name, schema) in fields(&description["components"]["schemas"]) {
        silent.look(name, schema, &["description"]);
        for (field, property) in fields(&schema["properties"]) {
            let choices = property["oneOf"].as_array().into_iter().flatten();
            let mut targets = choices
                .chain([property])
                .filter_map(|it| it["$ref"].as_str());
            // References are described where they are used.
            if targets.next().is_none() {
                silent.look(&format!("{name}.{field}"), property, &["description"]);
            }
        }
        for words in std::iter::once(schema).chain(fields(&schema["properties"]).map(|it| it.1)) {
            let text = words["description"].as_str().unwrap_or_default();
            let all = words["enum"].as_array().into_iter().flatten();
            for word in all.filter_map(Value::as_str) {
                if !text.contains(&format!("- `{word}`: ")) {
                    silent.0.push(format!("{name}: {word} is not explained"));
                }
            }
        }
    }
    assert!(silent.0.is_empty(), "{:#?}", silent.0);
}

#[test]
fn every_error_of_the_contract_is_described_where_it_may_happen() {
    let description = app::openapi_document();
    let anywhere = description["info"]["description"].as_str().expect("text");
    let mut somewhere = BTreeSet::new();
    for (what, path, operation) in operations(&description) {
        let expected = ERRORS.iter().find(|(known, _)| *known == path);
        let mut found = BTreeSet::new();
        for (status, answer) in fields(&operation["responses"]) {
            let content = &answer["content"]["application/json"];
            if content["schema"]["$ref"] != "#/components/schemas/ErrorBody" {
                continue;
            }
            for (_, example) in fields(&content["examples"]) {
                let code = example["value"]["error"].as_str().expect("a code");
                let known = ErrorCode::ALL
                    .into_iter()
                    .find(|known| known.as_str() == code);
                let known = known.expect("a code of ours").status();
                assert_eq!(known.as_str(), status, "{what}: {code}");
                let text = answer["description"].as_str().unwrap_or_default();
                assert!(text.contains(&format!("`{code}`: ")), "{what}: {code}");
                found.insert(code);
            }
            let waits = matches!(status.as_str(), "429" | "502" | "503");
            let says = answer["headers"]["Retry-After"].is_object();
            assert_eq!(says, waits, "{what}: {status}");
        }
        let expected = expected.expect("it is in the table").1;
        assert_eq!(found, expected.iter().copied().collect(), "{what}");
        somewhere.extend(found);
    }
    for code in ErrorCode::ALL.map(ErrorCode::as_str) {
        assert!(
            somewhere.contains(code) || anywhere.contains(&format!("`{code}`")),
            "{code} is described nowhere"
        );
    }
}

#[test]
fn every_answer_has_an_example_and_every_example_is_true() {
    let description = app::openapi_document();
    let mut wrong = Vec::new();
    let mut judge = |what: &str, schema: &Value, value: &Value| {
        let objections = objections(schema, value, &description);
        wrong.extend(objections.iter().map(|why| format!("{what}{why}")));
    };
    for (what, _, operation) in operations(&description) {
        let answers = fields(&operation["responses"]);
        let bodies = operation.get("requestBody").map(|body| ("body", body));
        let answers = answers.map(|(status, answer)| (status.as_str(), answer));
        for (part, described) in answers.chain(bodies) {
            for (_, content) in fields(&described["content"]) {
                let examples = &content["examples"];
                assert!(
                    fields(examples).count() > 0,
                    "{what}: {part} has no example"
                );
                for (name, example) in fields(examples) {
                    let at = format!("{what}: {part}: {name}");
                    assert!(example["summary"].is_string(), "{at}");
                    judge(&at, &content["schema"], &example["value"]);
                }
            }
        }
        for parameter in operation["parameters"].as_array().into_iter().flatten() {
            let example = parameter.get("example").expect("an example");
            judge(&what, &parameter["schema"], example);
        }
    }
    for (name, schema) in fields(&description["components"]["schemas"]) {
        for (field, property) in fields(&schema["properties"]) {
            for example in property["examples"].as_array().into_iter().flatten() {
                judge(&format!("{name}.{field}"), property, example);
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// A request, and the status that a tenant with credentials gets.
type Question = (u16, &'static str, Value);

/// Questions about the transaction of this id and JWS.
fn apple_verify_questions(id: &str, jws: &str) -> Vec<Question> {
    vec![
        (200, "/v1/apple/verify", json!({ "transactionId": id })),
        (200, "/v1/apple/verify", json!({ "signedTransaction": jws })),
        (
            200,
            "/v1/apple/verify",
            json!({ "signedTransaction": "a.b.c" }),
        ),
        (200, "/v1/apple/verify", json!({ "transactionId": "1" })),
        (
            200,
            "/v1/apple/verify",
            json!({ "signedTransaction": jws, "environment": "production" }),
        ),
        (400, "/v1/apple/verify", json!({})),
        (
            200,
            "/v1/apple/app-transaction",
            json!({ "transactionId": id }),
        ),
        (
            200,
            "/v1/apple/app-transaction",
            json!({ "signedAppTransaction": jws }),
        ),
        (400, "/v1/apple/app-transaction", json!({})),
    ]
}

/// What Apple is told about the transaction of this id, and signed for.
fn apple_answers(id: &str) -> Vec<Question> {
    vec![
        (
            200,
            "/v1/apple/consumption",
            json!({
                "transactionId": id, "customerConsented": true, "sampleContentProvided": false,
                "deliveryStatus": "DELIVERED", "consumptionPercentage": 50_000, "refundPreference": "GRANT_PRORATED",
            }),
        ),
        (
            200,
            "/v1/apple/consumption",
            json!({
                "transactionId": "9", "customerConsented": true, "sampleContentProvided": true, "deliveryStatus": "DELIVERED",
            }),
        ),
        (
            400,
            "/v1/apple/consumption",
            json!({ "customerConsented": false }),
        ),
        (200, "/v1/apple/finish", json!({ "transactionId": id })),
        (200, "/v1/apple/finish", json!({ "transactionId": "9" })),
        (400, "/v1/apple/finish", json!({})),
        (
            200,
            "/v1/apple/app-account-token",
            json!({
                "originalTransactionId": id,
                "appAccountToken": "7e3fb204-2b0d-4d70-a0c2-6d8a3f6c1e55",
            }),
        ),
        (
            200,
            "/v1/apple/app-account-token",
            json!({ "originalTransactionId": "9", "appAccountToken": "7e3fb204-2b0d-4d70-a0c2-6d8a3f6c1e55" }),
        ),
        (400, "/v1/apple/app-account-token", json!({})),
        (
            200,
            "/v1/apple/offers/sign",
            json!({ "type": "promotional", "productId": "pro", "offerId": "spring" }),
        ),
        (
            200,
            "/v1/apple/offers/sign",
            json!({ "type": "introductory", "productId": "pro", "transactionId": "7", "allowIntroductoryOffer": true }),
        ),
        (400, "/v1/apple/offers/sign", json!({})),
    ]
}

fn google_questions(world: &World) -> Vec<Question> {
    let google = world.simulator.google();
    let subscription = google
        .buy_subscription(NewSubscription::default())
        .expect("one");
    let product = google.buy_product(NewProduct::default()).expect("one");
    let bought =
        |token: &str, kind| json!({ "packageName": APP, "purchaseToken": token, "type": kind });
    let mut a_product = bought(&product.purchase_token, "product");
    a_product["productId"] = json!(product.product_id);
    let to_consume = a_product.clone();
    let asked = google
        .ask_refund_review(&product.purchase_token)
        .expect("a question");
    let to_review = json!({
        "packageName": APP, "orderId": asked.order_id, "pendingRefundToken": asked.pending_refund_token,
        "sampleContentProvided": false, "refundPreference": "DECLINE", "consumptionUsageEvents": [{ "ipAddress": "192.0.2.7" }],
    });
    let mut to_acknowledge = bought(&subscription.purchase_token, "subscription");
    to_acknowledge["externalAccountIds"] = json!({ "obfuscatedAccountId": "user-1" });
    vec![
        (
            200,
            "/v1/google/verify",
            bought(&subscription.purchase_token, "subscription"),
        ),
        (200, "/v1/google/verify", a_product),
        (200, "/v1/google/verify", bought("unknown", "subscription")),
        (400, "/v1/google/verify", json!({})),
        (200, "/v1/google/acknowledge", to_acknowledge.clone()),
        (200, "/v1/google/acknowledge", to_acknowledge),
        (200, "/v1/google/acknowledge", bought("unknown", "product")),
        (400, "/v1/google/acknowledge", json!({})),
        (200, "/v1/google/consume", to_consume),
        (
            200,
            "/v1/google/consume",
            bought(&subscription.purchase_token, "subscription"),
        ),
        (400, "/v1/google/consume", json!({})),
        (200, "/v1/google/refund-review", to_review.clone()),
        (200, "/v1/google/refund-review", to_review),
        (400, "/v1/google/refund-review", json!({})),
    ]
}

/// Every answer is described field by field, and every described field is answered.
#[tokio::test]
async fn what_is_answered_is_as_described() {
    let world = World::new().await;
    let (tenant, stranger) = (world.tenant().await, world.stranger().await);
    let apple = world.simulator.apple();
    let transaction = apple
        .create_transaction(NewTransaction::default())
        .expect("a purchase");
    let jws = apple
        .sign_transaction(&transaction.transaction_id)
        .expect("its JWS");
    let id = &transaction.transaction_id;
    let questions = [
        apple_verify_questions(id, &jws),
        apple_answers(id),
        google_questions(&world),
    ];
    let description = app::openapi_document();
    let operations = operations(&description);
    for (status, path, question) in questions.into_iter().flatten() {
        let keys = [None, Some(&stranger), Some(&tenant)];
        for key in keys {
            let answer = world
                .ask("POST", path, key.map(|it| it.key.expose()), Some(&question))
                .await;
            let expected = key.map_or(401, |it| if it.id == tenant.id { status } else { 400 });
            assert_eq!(
                answer.status, expected,
                "{path} {question}: {}",
                answer.body
            );
            let operation = operations.iter().find(|(_, known, _)| *known == path);
            let (_, _, operation) = operation.expect("it is described");
            let described = &operation["responses"][answer.status.to_string()];
            let schema = &described["content"]["application/json"]["schema"];
            let objections = objections(schema, &answer.body, &description);
            assert!(objections.is_empty(), "{path} {question}: {objections:#?}");
        }
    }
    world.end().await;
}
