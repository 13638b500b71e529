//! The answers to stores' questions about refunds that tenants' settings give, where their backends give none in time.

use std::time::Duration;

use attesto::base::clock::Timestamp;
use attesto::simulator::Fault;
use attesto::simulator::state::apple::SimulatedEnvironment;
use attesto::simulator::state::google::NewProduct;
use serde_json::{Value, json};

use crate::apple_answers::{ask_about as apple_asks, buy_coins, tell, used};
use crate::apple_notifications::Shop as AppleShop;
use crate::google_refund_review::{answer_to, ask_about as google_asks, tell as tell_google};
use crate::google_state::Shop as PlayShop;
use crate::world::attesto::{APP, Tenant, World};
use crate::world::log::Warnings;
use crate::world::shell::Ran;

const MINUTE: Duration = Duration::from_mins(1);
const HOUR: Duration = Duration::from_hours(1);

const DEFAULT_CONSUMPTION: [&str; 7] = [
    "--customer-consented",
    "--sample-content-provided",
    "true",
    "--delivery-status",
    "delivered",
    "--refund-preference",
    "decline",
];
const DEFAULT_REVIEW: [&str; 4] = [
    "--sample-content-provided",
    "false",
    "--refund-preference",
    "decline",
];

async fn run(world: &World, words: &[&str]) -> Ran {
    world.shell().run_async(words, "").await
}

async fn set_default(world: &World, store: &str, tenant: &Tenant) {
    let flags: &[&str] = match store {
        "apple" => &DEFAULT_CONSUMPTION,
        _ => &DEFAULT_REVIEW,
    };
    let words = [
        &[store, "set-default-answer", tenant.id.as_str()][..],
        flags,
    ];
    let set = run(world, &words.concat()).await;
    assert_eq!(set.exit, 0, "{set:?}");
}

/// A shop whose tenant has a default answer, and whose purchase Apple asks about.
async fn asked_apple_shop() -> (AppleShop, String) {
    let shop = AppleShop::open().await;
    shop.report_here(true);
    set_default(&shop.world, "apple", &shop.tenant).await;
    let id = buy_coins(&shop.world, SimulatedEnvironment::Sandbox);
    apple_asks(&shop, &id).await;
    (shop, id)
}

/// What became of the tenant's questions.
async fn outcomes(world: &World) -> Vec<(Option<String>, Option<String>)> {
    sqlx::query_as("select outcome, error from refund_questions order by created_at, question_hash")
        .fetch_all(world.database().pool())
        .await
        .unwrap()
}

#[tokio::test]
async fn apple_is_told_the_default_once_and_two_hours_before_the_deadline() {
    let (shop, id) = asked_apple_shop().await;
    let world = &shop.world;
    let (one, other) = (world.refund_answer_watch(), world.refund_answer_watch());
    world.pass(HOUR * 9).await;
    assert_eq!(one.tick().await.unwrap().claimed, 0, "not yet");
    world.pass(HOUR).await;
    let (first, second) = tokio::join!(one.tick(), other.tick());
    assert_eq!(first.unwrap().sent + second.unwrap().sent, 1);
    let told = shop.apple().list_consumption();
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].transaction_id, id);
    assert_eq!(
        told[0].information,
        json!({
            "customerConsented": true, "sampleContentProvided": true, "deliveryStatus": "DELIVERED",
            "refundPreference": "DECLINE",
        })
    );
    assert_eq!(outcomes(world).await, [(Some("default_sent".into()), None)]);
    // Apple posts the question again, and the deadline passes; then Apple asks again.
    let newest = shop.apple().list_notifications().pop().unwrap();
    let apple = shop.apple();
    let again = apple.push_notification(&newest.notification_uuid).await;
    assert_eq!(again.unwrap().body["isNew"], false);
    world.pass(HOUR * 3).await;
    assert_eq!(one.tick().await.unwrap().claimed, 0);
    apple_asks(&shop, &id).await;
    world.pass(HOUR * 11).await;
    assert_eq!(one.tick().await.unwrap().sent, 1);
    assert_eq!(shop.apple().list_consumption().len(), 2);
    // A week after its deadline a question is forgotten.
    world.pass(HOUR * 24 * 8).await;
    one.tick().await.unwrap();
    assert_eq!(outcomes(world).await, []);
}

#[tokio::test]
async fn google_is_told_the_default_once_and_two_hours_before_the_deadline() {
    let shop = PlayShop::open().await;
    let world = &shop.world;
    set_default(world, "google", &shop.tenant).await;
    let bought = shop.play().buy_product(NewProduct::default()).unwrap();
    google_asks(&shop, &bought.purchase_token).await;
    let watch = world.refund_answer_watch();
    world.pass(HOUR * 21).await;
    assert_eq!(watch.tick().await.unwrap().claimed, 0, "not yet");
    world.pass(HOUR).await;
    assert_eq!(watch.tick().await.unwrap().sent, 1);
    assert_eq!(watch.tick().await.unwrap().claimed, 0);
    let told = shop.play().list_refund_reviews().pop().unwrap();
    assert_eq!(
        told.answer,
        Some(json!({
            "pendingRefundToken": told.pending_refund_token, "sampleContentProvided": false, "refundPreference": "DECLINE",
        }))
    );
    assert_eq!(outcomes(world).await, [(Some("default_sent".into()), None)]);
}

#[tokio::test]
async fn the_default_is_never_sent_when_the_backend_has_answered() {
    let (shop, id) = asked_apple_shop().await;
    let world = &shop.world;
    let watch = world.refund_answer_watch();
    // The store does not take the first answer, so that the question stays open.
    let away = Fault::at_place("apple/production").status(503).times(0);
    world.simulator.add_fault(away).unwrap();
    assert_eq!(tell(world, &shop.tenant, &used(&id)).await.status, 502);
    assert_eq!(outcomes(world).await, [(None, None)]);
    world.simulator.clear_faults();
    assert_eq!(tell(world, &shop.tenant, &used(&id)).await.status, 200);
    // A question about another purchase stays open, also when another tenant answers about it.
    let unanswered = buy_coins(world, SimulatedEnvironment::Production);
    apple_asks(&shop, &unanswered).await;
    let stranger = world.tenant().await;
    assert_eq!(tell(world, &stranger, &used(&unanswered)).await.status, 200);
    for _ in 0..13 {
        world.pass(HOUR).await;
        watch.tick().await.unwrap();
    }
    let told = shop.apple().list_consumption();
    let told: Vec<_> = told.iter().map(|one| one.transaction_id.as_str()).collect();
    assert_eq!(told, [&id, &unanswered, &unanswered]);
    let [(answered, _), (sent, _)] = outcomes(world).await.try_into().unwrap();
    assert_eq!(
        (answered.as_deref(), sent.as_deref()),
        (Some("answered"), Some("default_sent"))
    );

    let shop = PlayShop::open().await;
    set_default(&shop.world, "google", &shop.tenant).await;
    let bought = shop.play().buy_product(NewProduct::default()).unwrap();
    let event = google_asks(&shop, &bought.purchase_token).await;
    let mut body = answer_to(&event);
    body["refundPreference"] = json!("APPROVE");
    assert_eq!(tell_google(&shop, &shop.tenant, &body).await.status, 200);
    shop.world.pass(HOUR * 23).await;
    let watch = shop.world.refund_answer_watch();
    assert_eq!(watch.tick().await.unwrap().claimed, 0);
}

#[tokio::test]
async fn a_backend_that_answers_while_the_default_is_sent_is_asked_to_repeat() {
    let (shop, id) = asked_apple_shop().await;
    let world = &shop.world;
    world.pass(HOUR * 10).await;
    // As a process has it that claims the question and dies.
    sqlx::query(
        "update refund_questions set next_check_at = attesto_now() + interval '1 hour', \
                leased_until = attesto_now() + interval '1 hour'",
    )
    .execute(world.database().pool())
    .await
    .unwrap();
    let busy = tell(world, &shop.tenant, &used(&id)).await;
    assert_eq!(
        (busy.status, &busy.body["error"]),
        (503, &json!("UNAVAILABLE"))
    );
    assert_eq!(busy.headers["retry-after"], "30");
    assert_eq!(shop.apple().list_consumption().len(), 0);
    world.pass(HOUR).await;
    assert_eq!(tell(world, &shop.tenant, &used(&id)).await.status, 200);
    assert_eq!(world.refund_answer_watch().tick().await.unwrap().claimed, 0);
}

#[tokio::test]
async fn an_outage_is_tried_again_until_the_deadline() {
    let (shop, _) = asked_apple_shop().await;
    let world = &shop.world;
    let log = Warnings::listen();
    let watch = world.refund_answer_watch();
    let away = || Fault::at_place("apple/sandbox").status(503).times(0);
    world.simulator.add_fault(away()).unwrap();
    world.pass(HOUR * 10).await;
    let mut tries = 0;
    for _ in 0..60 {
        tries += watch.tick().await.unwrap().claimed;
        world.pass(MINUTE).await;
    }
    assert!(tries > 25, "{tries}");
    // An hour before the deadline Apple answers again. The last try may put the next one off by 75 seconds.
    world.simulator.clear_faults();
    world.pass(MINUTE * 2).await;
    assert_eq!(watch.tick().await.unwrap().sent, 1);
    assert_eq!(log.of("refund_default_answer_failed").len(), tries);
    assert_eq!(outcomes(world).await[0].0.as_deref(), Some("default_sent"));

    // One that it does not answer in time.
    let id = buy_coins(world, SimulatedEnvironment::Sandbox);
    apple_asks(&shop, &id).await;
    world.simulator.add_fault(away()).unwrap();
    world.pass(HOUR * 11).await;
    assert_eq!(watch.tick().await.unwrap().claimed, 1);
    world.pass(HOUR).await;
    assert_eq!(watch.tick().await.unwrap().claimed, 1);
    world.simulator.clear_faults();
    world.pass(HOUR).await;
    assert_eq!(watch.tick().await.unwrap().claimed, 0);
    let missed = log.of("refund_answer_missed");
    assert_eq!(missed.len(), 1, "{missed:?}");
    assert_eq!(missed[0]["store"], "apple");
    assert_eq!(shop.apple().list_consumption().len(), 1);
    let doctor = doctor(world).await;
    assert_eq!(doctor["status"], "warn", "{doctor}");
    let message = doctor["message"].as_str().unwrap();
    assert!(message.contains(shop.tenant.id.as_str()), "{message}");
}

/// What the doctor says of the questions.
async fn doctor(world: &World) -> Value {
    doctor_of(world, "tenants.refund_answers").await
}

async fn doctor_of(world: &World, name: &str) -> Value {
    let ran = world.shell_with_stores().run_async(&["doctor"], "").await;
    let report: Value = serde_json::from_str(&ran.said).unwrap();
    let groups = report["checks"].as_array().unwrap();
    let mut checks = groups
        .iter()
        .flat_map(|group| group["checks"].as_array().unwrap());
    let found = checks.find(|check| check["name"] == name);
    found.cloned().expect("the check")
}

#[tokio::test]
async fn a_refusal_for_good_is_shown_and_not_tried_again() {
    let (shop, id) = asked_apple_shop().await;
    let world = &shop.world;
    let log = Warnings::listen();
    let watch = world.refund_answer_watch();
    assert_eq!(doctor(world).await["status"], "ok");
    let no = Fault::at_place("apple/sandbox").error_code(4_000_047);
    world.simulator.add_fault(no).unwrap();
    world.pass(HOUR * 11).await;
    let round = watch.tick().await.unwrap();
    assert_eq!((round.claimed, round.sent), (1, 0));
    world.pass(MINUTE * 2).await;
    assert_eq!(watch.tick().await.unwrap().claimed, 0);
    assert_eq!(log.of("refund_default_answer_refused").len(), 1);
    let [(outcome, error)] = outcomes(world).await.try_into().unwrap();
    assert_eq!(outcome.as_deref(), Some("refused"));
    assert!(error.unwrap().contains("4000047"));
    let message = doctor(world).await["message"].to_string();
    assert!(message.contains("4000047"), "{message}");
    // The backend may still answer; if the store is away, the refused answer is not sent again.
    let away = Fault::at_place("apple/sandbox").status(503).times(0);
    world.simulator.add_fault(away).unwrap();
    assert_eq!(tell(world, &shop.tenant, &used(&id)).await.status, 502);
    world.simulator.clear_faults();
    world.pass(MINUTE * 2).await;
    assert_eq!(watch.tick().await.unwrap().claimed, 0);
    assert_eq!(outcomes(world).await[0].0.as_deref(), Some("refused"));
    assert_eq!(tell(world, &shop.tenant, &used(&id)).await.status, 200);
    assert_eq!(doctor(world).await["status"], "ok");
    assert_eq!(outcomes(world).await[0].0.as_deref(), Some("answered"));
}

#[tokio::test]
async fn without_a_default_the_log_says_that_an_answer_is_due() {
    let shop = PlayShop::open().await;
    let world = &shop.world;
    let log = Warnings::listen();
    let watch = world.refund_answer_watch();
    let bought = [(); 2].map(|()| shop.play().buy_product(NewProduct::default()).unwrap());
    google_asks(&shop, &bought[0].purchase_token).await;
    world.pass(HOUR * 22).await;
    for _ in 0..3 {
        assert_eq!(watch.tick().await.unwrap().claimed, 1);
        world.pass(MINUTE).await;
    }
    assert_eq!(log.of("refund_answer_due").len(), 1, "once");
    // Set in the meantime, it is sent.
    set_default(world, "google", &shop.tenant).await;
    assert_eq!(watch.tick().await.unwrap().sent, 1);
    // And not after it was removed.
    let removed = ["google", "remove-default-answer", shop.tenant.id.as_str()];
    assert_eq!(run(world, &removed).await.exit, 0);
    google_asks(&shop, &bought[1].purchase_token).await;
    world.pass(HOUR * 25).await;
    watch.tick().await.unwrap();
    assert_eq!(log.of("refund_answer_missed").len(), 1);
    assert_eq!(shop.play().list_refund_reviews()[1].answer, None);
}

#[tokio::test]
async fn a_default_is_set_shown_and_removed_and_survives_new_credentials() {
    let world = World::new().await;
    let (tenant, stranger) = (world.tenant().await, world.stranger().await);
    let id = tenant.id.as_str();
    let shown = async |store: &str, name: &str| {
        let ran = run(&world, &[store, "get-credentials", id]).await;
        ran.json()[name].clone()
    };
    assert_eq!(shown("apple", "defaultConsumption").await, Value::Null);
    assert_eq!(shown("google", "defaultRefundReview").await, Value::Null);
    for store in ["apple", "google"] {
        set_default(&world, store, &tenant).await;
    }
    world.set_google(&tenant).await;
    let consumption = json!({ "sampleContentProvided": true, "deliveryStatus": "DELIVERED", "refundPreference": "DECLINE" });
    assert_eq!(shown("apple", "defaultConsumption").await, consumption);
    let review = json!({ "sampleContentProvided": false, "refundPreference": "DECLINE" });
    assert_eq!(shown("google", "defaultRefundReview").await, review);
    for store in ["apple", "google"] {
        let removed = run(&world, &[store, "remove-default-answer", id]).await;
        assert_eq!(removed.exit, 0, "{removed:?}");
        let none = run(
            &world,
            &[store, "remove-default-answer", stranger.id.as_str()],
        )
        .await;
        assert_eq!(none.exit, 1, "{none:?}");
        assert!(none.complained.contains("set-credentials"), "{none:?}");
    }
    assert_eq!(shown("apple", "defaultConsumption").await, Value::Null);
    // Each change is in the audit log.
    let changes = run(&world, &["audit", "operators", "list", "--tenant", id])
        .await
        .rows();
    let changes: Vec<_> = changes
        .iter()
        .filter(|change| change["command"].to_string().contains("default-answer"))
        .collect();
    assert_eq!(changes.len(), 4, "{changes:?}");
    // Without consent nothing is set.
    let without = [
        &["apple", "set-default-answer", id],
        &DEFAULT_CONSUMPTION[1..],
    ]
    .concat();
    assert_eq!(run(&world, &without).await.exit, 2);
}

/// What `GET /v1/refund-questions` answers.
async fn open_questions(world: &World, tenant: &Tenant, query: &str) -> Value {
    let path = format!("/v1/refund-questions{query}");
    let key = Some(tenant.key.expose());
    let answer = world.ask("GET", &path, key, None).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.body
}

#[tokio::test]
async fn open_questions_are_listed_by_their_deadlines_until_they_are_answered() {
    let shop = PlayShop::open().await;
    let (world, tenant) = (&shop.world, &shop.tenant);
    let nothing = json!({ "questions": [], "next": null });
    assert_eq!(open_questions(world, tenant, "").await, nothing);
    let bought = shop.play().buy_product(NewProduct::default()).unwrap();
    let event = google_asks(&shop, &bought.purchase_token).await;
    let review = &event["data"]["pendingRefundReviewNotification"];
    // Times are the database's.
    let listed = open_questions(world, tenant, "").await;
    let time = |of: &Value| Timestamp::parse(of.as_str().unwrap()).unwrap();
    let asked = time(&listed["questions"][0]["askedAt"]);
    let question = |is_set: bool| {
        json!({
            "tenantId": tenant.id, "source": "google", "transactionId": null, "orderId": review["orderId"],
            "pendingRefundToken": review["pendingRefundToken"], "environment": null, "askedAt": asked,
            "answerBy": asked.plus(HOUR * 24), "remainingSeconds": null, "hasDefaultAnswer": is_set,
            "defaultAnswerAt": is_set.then(|| asked.plus(HOUR * 22)), "defaultAnswerError": null,
        })
    };
    let without_remaining = |listed: &Value| {
        let mut questions = listed["questions"].clone();
        let remaining = questions[0]["remainingSeconds"].take().as_u64().unwrap();
        (questions, remaining)
    };
    let (questions, remaining) = without_remaining(&listed);
    assert_eq!(questions, json!([question(false)]));
    assert!((82_800..=86_400).contains(&remaining), "{remaining}");
    set_default(world, "google", tenant).await;
    world.pass(HOUR * 20).await;
    let (questions, remaining) = without_remaining(&open_questions(world, tenant, "").await);
    assert_eq!(questions, json!([question(true)]));
    assert!((10_800..=14_400).contains(&remaining), "{remaining}");
    // Asked about later, and with a later deadline; the query limits both.
    let second = shop.play().buy_product(NewProduct::default()).unwrap();
    google_asks(&shop, &second.purchase_token).await;
    for (query, expected) in [
        ("", 2),
        ("?dueWithin=14400", 1),
        ("?dueWithin=10800", 0),
        ("?limit=1", 1),
    ] {
        let listed = open_questions(world, tenant, query).await;
        assert_eq!(
            listed["questions"].as_array().unwrap().len(),
            expected,
            "{query}"
        );
    }
    let first = open_questions(world, tenant, "?limit=1").await;
    let next = first["next"].as_str().expect("there is more");
    let rest = open_questions(world, tenant, &format!("?limit=1&after={next}")).await;
    assert_eq!(rest["next"], Value::Null);
    assert_ne!(rest["questions"][0], first["questions"][0]);
    let later = time(&rest["questions"][0]["answerBy"]);
    assert!(later > asked.plus(HOUR * 43), "{later}");
    // They are no other tenant's.
    assert_eq!(
        open_questions(world, &world.tenant().await, "").await,
        nothing
    );
    // What is answered by the backend, by the default, or is over, is gone.
    assert_eq!(
        tell_google(&shop, tenant, &answer_to(&event)).await.status,
        200
    );
    let left = open_questions(world, tenant, "").await;
    assert_eq!(left["questions"].as_array().unwrap().len(), 1);
    assert_eq!(
        left["questions"][0]["orderId"],
        rest["questions"][0]["orderId"]
    );
    world.pass(HOUR * 22).await;
    assert_eq!(world.refund_answer_watch().tick().await.unwrap().sent, 1);
    assert_eq!(open_questions(world, tenant, "").await, nothing);
    let path = "/v1/refund-questions?limit=0&after=x&dueWithin=-1";
    let bad = world
        .ask("GET", path, Some(tenant.key.expose()), None)
        .await;
    assert_eq!(bad.status, 400);
    assert_eq!(
        bad.body["details"]["issues"].as_array().unwrap().len(),
        3,
        "{}",
        bad.body
    );
}

#[tokio::test]
async fn operators_list_the_questions_of_all_tenants_and_the_doctor_warns_of_those_without_a_default()
 {
    let (shop, id) = asked_apple_shop().await;
    let world = &shop.world;
    let tenant = shop.tenant.id.as_str();
    let lines = async |more: &[&str]| {
        let words = [&["refund-question", "list"][..], more];
        let ran = run(world, &words.concat()).await;
        assert_eq!(ran.exit, 0, "{ran:?}");
        ran.lines()
    };
    let listed = lines(&[]).await;
    let [question] = listed.as_slice() else {
        panic!("{listed:?}")
    };
    assert_eq!(
        (
            &question["tenantId"],
            &question["source"],
            &question["transactionId"]
        ),
        (&json!(tenant), &json!("apple"), &json!(id))
    );
    assert_eq!(question["environment"], "sandbox");
    let time = |name: &str| Timestamp::parse(question[name].as_str().unwrap()).unwrap();
    assert_eq!(time("defaultAnswerAt"), time("answerBy").minus(HOUR * 2));
    assert_eq!(lines(&["--tenant", tenant]).await.len(), 1);
    assert_eq!(lines(&["--due-within", "11h"]).await.len(), 0);
    let stranger = world.stranger().await;
    assert_eq!(lines(&["--tenant", stranger.id.as_str()]).await.len(), 0);
    let unknown_tenant = "tenant_01HZX3V5T8N2Q4R6S8W0Y2A4C6";
    let words = ["refund-question", "list", "--tenant", unknown_tenant];
    assert_eq!(run(world, &words).await.exit, 1);

    let check = async || doctor_of(world, "tenants.refund_questions").await;
    world.pass(HOUR * 10).await;
    assert_eq!(check().await["status"], "ok", "the default answer is sent");
    let removed = ["apple", "remove-default-answer", tenant];
    assert_eq!(run(world, &removed).await.exit, 0);
    let warned = check().await;
    assert_eq!(warned["status"], "warn");
    let message = warned["message"].as_str().unwrap();
    assert!(message.contains(tenant), "{message}");
    let question = lines(&["--due-within", "2h"]).await.remove(0);
    assert_eq!(
        (&question["hasDefaultAnswer"], &question["defaultAnswerAt"]),
        (&json!(false), &Value::Null)
    );
    assert!(
        question["remaining"].as_str().unwrap().starts_with("1h"),
        "{question}"
    );
    // A default answer that Apple has refused is none: only the backend can answer.
    set_default(world, "apple", &shop.tenant).await;
    assert_eq!(check().await["status"], "ok");
    let no = Fault::at_place("apple/sandbox").error_code(4_000_047);
    world.simulator.add_fault(no).unwrap();
    assert_eq!(world.refund_answer_watch().tick().await.unwrap().claimed, 1);
    assert_eq!(check().await["status"], "warn");
    let question = lines(&[]).await.remove(0);
    assert_eq!(question["defaultAnswerAt"], Value::Null);
    let error = question["defaultAnswerError"].as_str().unwrap();
    assert!(error.contains("4000047"), "{error}");
    assert_eq!(tell(world, &shop.tenant, &used(&id)).await.status, 200);
    assert_eq!(check().await["status"], "ok");
    assert_eq!(lines(&[]).await.len(), 0);
}

#[tokio::test]
async fn a_default_answer_whose_process_died_is_harmless_when_it_is_sent_again() {
    // As a process has it that sends the answers and dies: they are with the stores, and here is only the lease.
    let forgotten = "update refund_questions set outcome = null, next_check_at = attesto_now() - interval '1 second', \
                leased_until = attesto_now() - interval '1 second'";
    let (shop, _) = asked_apple_shop().await;
    let world = &shop.world;
    world.pass(HOUR * 10).await;
    let watch = world.refund_answer_watch();
    assert_eq!(watch.tick().await.unwrap().sent, 1);
    sqlx::query(forgotten)
        .execute(world.database().pool())
        .await
        .unwrap();
    assert_eq!(watch.tick().await.unwrap().sent, 1);
    let told = shop.apple().list_consumption();
    assert_eq!(told.len(), 2, "Apple takes the newest answer");
    assert_eq!(told[0].information, told[1].information);

    let shop = PlayShop::open().await;
    let world = &shop.world;
    set_default(world, "google", &shop.tenant).await;
    let bought = shop.play().buy_product(NewProduct::default()).unwrap();
    google_asks(&shop, &bought.purchase_token).await;
    world.pass(HOUR * 22).await;
    let watch = world.refund_answer_watch();
    assert_eq!(watch.tick().await.unwrap().sent, 1);
    sqlx::query(forgotten)
        .execute(world.database().pool())
        .await
        .unwrap();
    assert_eq!(watch.tick().await.unwrap().sent, 1, "Google has the answer");
    assert_eq!(outcomes(world).await, [(Some("default_sent".into()), None)]);
}

/// Google, which is asked with a default answer set, two hours before its deadline.
async fn due_play_shop() -> PlayShop {
    let shop = PlayShop::open().await;
    set_default(&shop.world, "google", &shop.tenant).await;
    let bought = shop.play().buy_product(NewProduct::default()).unwrap();
    google_asks(&shop, &bought.purchase_token).await;
    shop.world.pass(HOUR * 22).await;
    shop
}

/// Google says that the question was answered before.
fn close_question(world: &World) {
    let closed = Fault::at_place("google/play").reason("purchaseTokenNoLongerValid");
    world.simulator.add_fault(closed.times(0)).unwrap();
}

#[tokio::test]
async fn an_answer_of_others_is_not_taken_for_the_default_answer() {
    // The first try was refused, so that Google cannot have taken it.
    let shop = due_play_shop().await;
    let world = &shop.world;
    let watch = world.refund_answer_watch();
    let refused = Fault::at_place("google/play").reason("permissionDenied");
    world.simulator.add_fault(refused).unwrap();
    assert_eq!(watch.tick().await.unwrap().claimed, 1);
    assert_eq!(outcomes(world).await[0].0, None);
    world.pass(MINUTE * 2).await;
    close_question(world);
    assert_eq!(watch.tick().await.unwrap().sent, 0);
    assert_eq!(outcomes(world).await[0].0.as_deref(), Some("refused"));

    // The backend's answer was being sent when its process ended.
    let shop = due_play_shop().await;
    let world = &shop.world;
    sqlx::query(
        "update refund_questions \
            set leased_until = attesto_now() - interval '1 second', next_check_at = attesto_now()",
    )
    .execute(world.database().pool())
    .await
    .unwrap();
    close_question(world);
    assert_eq!(world.refund_answer_watch().tick().await.unwrap().sent, 0);
    assert_eq!(outcomes(world).await[0].0.as_deref(), Some("refused"));
}

#[tokio::test]
async fn a_default_answer_without_an_outcome_is_remembered_until_google_says_that_it_has_one() {
    let shop = due_play_shop().await;
    let world = &shop.world;
    let watch = world.refund_answer_watch();
    let away = Fault::at_place("google/play").status(503).times(0);
    world.simulator.add_fault(away).unwrap();
    assert_eq!(watch.tick().await.unwrap().claimed, 1);
    world.simulator.clear_faults();
    // Neither a try that is refused nor one of the backend's changes that.
    world.pass(MINUTE * 2).await;
    let refused = Fault::at_place("google/play").reason("permissionDenied");
    world.simulator.add_fault(refused).unwrap();
    assert_eq!(watch.tick().await.unwrap().claimed, 1);
    close_question(world);
    let reviews = shop.play().list_refund_reviews();
    let body = json!({
        "packageName": APP, "orderId": reviews[0].order_id,
        "pendingRefundToken": reviews[0].pending_refund_token, "sampleContentProvided": true,
        "refundPreference": "APPROVE",
    });
    let answer = tell_google(&shop, &shop.tenant, &body).await;
    assert_eq!(answer.body["error"], "NOT_ACCEPTED", "{}", answer.body);
    world.pass(MINUTE * 2).await;
    assert_eq!(watch.tick().await.unwrap().sent, 1);
    assert_eq!(outcomes(world).await[0].0.as_deref(), Some("default_sent"));
}
