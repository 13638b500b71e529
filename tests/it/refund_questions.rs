//! The answers to stores' questions about refunds that tenants' settings give, where their backends give none in time.

use std::time::Duration;

use attesto::simulator::Fault;
use attesto::simulator::state::apple::SimulatedEnvironment;
use attesto::simulator::state::google::NewProduct;
use serde_json::{Value, json};

use crate::apple_answers::{ask_about as apple_asks, buy_coins, tell, used};
use crate::apple_notifications::Shop as AppleShop;
use crate::google_refund_review::{answer_to, ask_about as google_asks, tell as tell_google};
use crate::google_state::Shop as PlayShop;
use crate::world::attesto::{Tenant, World};
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
    let ran = world.shell_with_stores().run_async(&["doctor"], "").await;
    let report: Value = serde_json::from_str(&ran.said).unwrap();
    let groups = report["checks"].as_array().unwrap();
    let mut checks = groups
        .iter()
        .flat_map(|group| group["checks"].as_array().unwrap());
    let found = checks.find(|check| check["name"] == "tenants.refund_answers");
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
