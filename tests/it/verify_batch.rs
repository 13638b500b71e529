//! `attesto verify batch`.

use attesto::simulator::app_receipt::{ListedPurchase, build_receipt};
use attesto::simulator::state::apple::SimulatedEnvironment;
use attesto::simulator::state::google::NewSubscription;
use attesto::stores::apple::account::EnvironmentChoice;
use serde_json::{Value, json};

use crate::apple_backfill::buy;
use crate::world::attesto::{APP_APPLE_ID, Tenant, World};
use crate::world::folder::Folder;
use crate::world::shell::Ran;

struct Desk {
    world: World,
    tenant: Tenant,
    folder: Folder,
}

impl Desk {
    async fn open() -> Self {
        let world = World::today().await;
        let tenant = world.tenant().await;
        Self {
            world,
            tenant,
            folder: Folder::new(),
        }
    }

    fn path(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    fn write(&self, name: &str, text: &str) -> String {
        let path = self.path(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    async fn verify(&self, words: &[&str], input: &str) -> Ran {
        let base = ["verify", "batch", self.tenant.id.as_str()];
        let shell = self.world.shell_with_stores();
        let fast = ["--per-second", "1000"];
        shell
            .run_async(&[&base, words, &fast].concat(), input)
            .await
    }

    /// The answers of the file, by line.
    fn answers(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.path("answers")).unwrap();
        let mut answers: Vec<Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        answers.sort_by_key(|answer| answer["line"].as_u64());
        answers
    }

    fn count_store_calls(&self) -> usize {
        self.world.simulator.recorded_requests().len()
    }
}

#[tokio::test]
async fn each_row_gets_the_answer_of_the_verify_route_once() {
    let desk = Desk::open().await;
    let bought = buy(&desk.world, SimulatedEnvironment::Production);
    let google = desk.world.simulator.google();
    let subscription = google.buy_subscription(NewSubscription::default()).unwrap();
    let token = subscription.purchase_token;
    let rows = format!(
        "reference,transactionId,purchaseToken\nu-1,{bought},\nu-2,2000000999999999,\nu-3,,{token}\n"
    );
    let file = desk.write("purchases.csv", &rows);
    let answers = desk.path("answers");
    let words = [&*file, "--answers-path", &answers];
    let ran = desk.verify(&words, "").await;
    assert_eq!(ran.exit, 0, "{ran:?}");
    let report = |already, valid, invalid| {
        json!({
            "rows": 3, "alreadyAnswered": already, "valid": valid, "invalid": invalid, "unanswered": 0
        })
    };
    assert_eq!(ran.json(), report(0, 2, 1));
    let found = desk.answers();
    let column = |name: &str| found.iter().map(|one| one[name].clone()).collect::<Value>();
    assert_eq!(column("line"), json!([2, 3, 4]));
    assert_eq!(column("reference"), json!(["u-1", "u-2", "u-3"]));
    assert_eq!(column("store"), json!(["apple", "apple", "google"]));
    assert_eq!(column("valid"), json!([true, false, true]));
    assert_eq!(found[1]["error"], "TRANSACTION_NOT_FOUND");
    let about = [
        "verify",
        "apple",
        desk.tenant.id.as_str(),
        "--transaction-id",
        &bought,
    ];
    let single = desk.world.shell_with_stores().run_async(&about, "").await;
    // Apple signs it anew each time.
    let signed = [
        "transaction",
        "signedTransactionInfo",
        "rawDecodedPayload",
        "state",
    ];
    for (name, value) in single.json().as_object().unwrap() {
        let is_same = found[0][name] == *value;
        assert!(is_same || signed.contains(&&**name), "{name}: {value}");
        assert!(!found[0][name].is_null() || value.is_null(), "{name}");
    }
    assert_eq!(found[0]["state"]["entitled"], true);

    // Again: nothing is left to ask. Where the last line was cut off, that row is.
    let calls = desk.count_store_calls();
    let ran = desk.verify(&words, "").await;
    assert_eq!((ran.exit, ran.json()), (0, report(3, 0, 0)));
    assert_eq!(desk.count_store_calls(), calls);
    let text = std::fs::read_to_string(&answers).unwrap();
    std::fs::write(&answers, &text[..text.len() - 10]).unwrap();
    let ran = desk.verify(&words, "").await;
    assert_eq!(ran.exit, 0, "{ran:?}");
    assert_eq!(ran.json()["alreadyAnswered"], 2);
    assert_eq!(desk.answers().len(), 3);

    // Another file is left as it is.
    let key = desk.write("key", "one line without an end");
    let ran = desk.verify(&[&file, "--answers-path", &key], "").await;
    assert_eq!(ran.exit, 1, "{ran:?}");
    assert!(ran.complained.contains("not a file of answers"), "{ran:?}");
    assert_eq!(std::fs::read_to_string(&key).unwrap().len(), 23);

    // Answers of other rows are not taken for these.
    let file = desk.write("purchases.csv", &rows.replace("2000000999999999", "1"));
    let ran = desk.verify(&[&file, "--answers-path", &answers], "").await;
    assert_eq!(ran.exit, 2, "{ran:?}");
    assert!(ran.complained.contains("line 3 is another one"), "{ran:?}");
}

#[tokio::test]
async fn a_file_with_malformed_rows_is_refused_before_a_store_is_asked() {
    let desk = Desk::open().await;
    let rows = "{\"transactionId\":\"1\"}\n{\"transaction\":\"2\"}\n{\"receipt\":\"MIIB\"}\n";
    let ran = desk.verify(&["-"], rows).await;
    assert_eq!(ran.exit, 2, "{ran:?}");
    for said in [
        "2 of 3 rows cannot be used, and no store was asked",
        "line 2 has the unknown field `transaction`",
        "line 3 receipt is not an app receipt",
    ] {
        assert!(ran.complained.contains(said), "{said}: {ran:?}");
    }
    assert_eq!(desk.count_store_calls(), 0);
    let ran = desk.verify(&["-"], "\n").await;
    assert_eq!(ran.exit, 2, "{ran:?}");
}

#[tokio::test]
async fn a_legacy_receipt_is_taken_for_its_newest_transaction() {
    let desk = Desk::open().await;
    let newest = buy(&desk.world, SimulatedEnvironment::Production);
    let older = buy(&desk.world, SimulatedEnvironment::Production);
    let listed = |id, purchase_date| ListedPurchase {
        transaction_id: id,
        original_transaction_id: id,
        purchase_date,
    };
    let receipt = build_receipt(&[
        listed(&older, "2026-01-01T00:00:00Z"),
        listed(&newest, "2026-02-01T00:00:00Z"),
    ]);
    let row = json!({ "receipt": receipt }).to_string();
    let ran = desk.verify(&["-"], &row).await;
    assert_eq!(ran.exit, 0, "{ran:?}");
    let answer = ran.json();
    assert_eq!(answer["valid"], true);
    assert_eq!(answer["transaction"]["transactionId"], json!(newest));
    assert_eq!(answer["state"]["basis"], "store");
    assert_eq!(answer["otherTransactionIds"], json!([older]));
    assert!(ran.complained.contains("1 rows: 1 valid"), "{ran:?}");
}

#[tokio::test]
async fn a_row_that_can_get_no_answer_ends_the_run_which_goes_on_later() {
    let desk = Desk::open().await;
    let bought = buy(&desk.world, SimulatedEnvironment::Production);
    let row = json!({ "transactionId": bought }).to_string();
    let file = desk.write("purchases.jsonl", &row);
    let answers = desk.path("answers");
    let words = [&*file, "--answers-path", &answers];
    sqlx::query("delete from apple_credentials")
        .execute(desk.world.database().pool())
        .await
        .unwrap();
    let ran = desk.verify(&words, "").await;
    assert_eq!(ran.exit, 1, "{ran:?}");
    assert_eq!(ran.json()["unanswered"], 1);
    for said in [
        "1 rows have no answer",
        "CREDENTIALS_MISSING",
        "Run the command again",
    ] {
        assert!(ran.complained.contains(said), "{said}: {ran:?}");
    }
    desk.world
        .set_apple(&desk.tenant, EnvironmentChoice::Auto, Some(APP_APPLE_ID))
        .await;
    let ran = desk.verify(&words, "").await;
    assert_eq!((ran.exit, &ran.json()["valid"]), (0, &json!(1)), "{ran:?}");
}

#[tokio::test]
async fn the_file_in_the_documentation_is_read() {
    let desk = Desk::open().await;
    let page = include_str!("../../docs/migrating.md");
    let (_, rest) = page.split_once("```csv\n").unwrap();
    let (rows, _) = rest.split_once("```").unwrap();
    let ran = desk.verify(&["-"], rows).await;
    assert_eq!(ran.exit, 0, "{ran:?}");
    assert_eq!(ran.lines().len(), 3);
}
