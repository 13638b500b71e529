//! What is sent of an event is stored once, small, and comes back byte for byte: to callbacks, and to an operator who looks.

use attesto::base::id::EventId;
use attesto::simulator::state::apple::{ProductType, SimulatedEnvironment};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::apple_notifications::Shop;
use crate::world::event::event_body;

impl Shop {
    /// Sends a body as it is written here, and returns the event's id.
    async fn post_text(&self, text: &str) -> String {
        let url = self
            .world
            .url(&format!("/v1/webhooks/apple/{}", self.tenant.id));
        let client = attesto::outbound::build_http_client().unwrap();
        let request = client.post(url).body(text.to_owned());
        let answer = request.header("content-type", "application/json").send();
        let answer: Value = answer.await.unwrap().json().await.unwrap();
        answer["eventId"].as_str().unwrap().to_owned()
    }

    /// The body of a genuine renewal, written in an unusual way.
    fn spaced_renewal(&self, count: u32) -> String {
        let data = self.data(ProductType::Subscription, SimulatedEnvironment::Sandbox);
        let notification = self.notification("DID_RENEW", count, "data", &data);
        format!(
            "{{ \"signedPayload\" :\n\t\"{}\",  \"other\": \"\\u00e9\\/\" }}",
            self.sign(&notification)
        )
    }

    async fn stored_bytes(&self, event: &str) -> Vec<u8> {
        sqlx::query_scalar("select stored_body from webhook_events where id = $1")
            .bind(event)
            .fetch_one(self.world.database().pool())
            .await
            .unwrap()
    }

    async fn dictionaries(&self) -> Vec<Vec<u8>> {
        sqlx::query_scalar("select content from body_dictionaries order by id")
            .fetch_all(self.world.database().pool())
            .await
            .unwrap()
    }
}

fn holds(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|it| it == part)
}

#[tokio::test]
async fn a_notification_is_stored_once_and_small_and_comes_back_byte_for_byte() {
    let shop = Shop::open().await;
    let posted = shop.spaced_renewal(1);
    let event = shop.post_text(&posted).await;

    let sent = event_body(shop.world.database(), &event).await;
    assert!(sent.ends_with(&format!(",\"raw\":{posted}}}")), "{sent}");
    assert!(sent.len() > 15_000, "{}", sent.len());
    let stored = shop.stored_bytes(&event).await;
    assert!(stored.len() < 1_300, "{}", stored.len());

    // The certificates stand in the dictionary, and nothing about the purchase.
    let signed: Value = serde_json::from_str(&posted).unwrap();
    let header = signed["signedPayload"].as_str().unwrap().split('.').next();
    let header = base64::engine::general_purpose::URL_SAFE_NO_PAD
        .decode(header.unwrap())
        .unwrap();
    let header: Value = serde_json::from_slice(&header).unwrap();
    let dictionaries = shop.dictionaries().await;
    assert_eq!(dictionaries.len(), 1);
    for certificate in header["x5c"].as_array().unwrap() {
        let der = STANDARD.decode(certificate.as_str().unwrap()).unwrap();
        assert!(holds(&dictionaries[0], &der));
        assert!(!holds(&stored, &der[..64]));
    }
    let facts: Value = serde_json::from_str(&sent).unwrap();
    let purchase = facts["subject"]["key"].as_str().unwrap();
    assert!(!holds(&dictionaries[0], purchase.as_bytes()));

    // Another process uses the same one.
    let replica = shop.world.replica().await;
    let path = format!("/v1/webhooks/apple/{}", shop.tenant.id);
    let url = format!("http://{}{path}", replica.address());
    let again = serde_json::from_str(&shop.spaced_renewal(2)).unwrap();
    let answer = shop.world.ask_at(&url, "POST", None, Some(&again)).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(shop.dictionaries().await, dictionaries);
    replica.stop(std::time::Duration::from_secs(5)).await;
    shop.world.end().await;
}

#[tokio::test]
async fn an_operator_sees_an_event_as_it_is_sent_and_as_the_store_sent_it() {
    let shop = Shop::open().await;
    let posted = shop.spaced_renewal(1);
    let event = shop.post_text(&posted).await;
    let sent = event_body(shop.world.database(), &event).await;
    let shell = shop.world.shell();
    let shown = shell.run(&["webhook", "show", &event]);
    assert_eq!((shown.exit, shown.complained.as_str()), (0, ""));
    assert_eq!(shown.said, format!("{sent}\n"));
    let shown = shell.run(&["webhook", "show", &event, "--raw"]);
    assert_eq!((shown.exit, shown.said), (0, format!("{posted}\n")));
    let json = ["--output", "json"];
    let shown = shell.rows(&[&["webhook", "show", &event][..], &json].concat());
    assert_eq!(shown, [json!({ "eventId": event, "body": sent })]);
    let shown = shell.rows(&[&["webhook", "show", &event, "--raw"][..], &json].concat());
    assert_eq!(shown, [json!({ "eventId": event, "raw": posted })]);

    let none = EventId::mint(shop.world.clock.now());
    let missing = shell.run(&["webhook", "show", none.as_str()]);
    assert_eq!((missing.exit, missing.said.as_str()), (1, ""));
    assert!(
        missing
            .complained
            .contains(&format!("no such event: {none}"))
    );

    // Without a dictionary.
    sqlx::query("update webhook_events set stored_body = '\\x00' || convert_to('{\"raw\": [1,  2] }', 'UTF8')")
        .execute(shop.world.database().pool())
        .await
        .unwrap();
    let shown = shell.run(&["webhook", "show", &event, "--raw"]);
    assert_eq!((shown.exit, shown.said.as_str()), (0, "[1,  2]\n"));
    // What a terminal would obey is not shown to one.
    sqlx::query(
        "update webhook_events set stored_body = '\\x00' || convert_to('{\"raw\": \"a\u{9b}2J\"}', 'UTF8')",
    )
        .execute(shop.world.database().pool())
        .await
        .unwrap();
    let shown = shell.run(&["webhook", "show", &event, "--output", "table"]);
    assert_eq!(shown.said, "{\"raw\": \"a\u{fffd}2J\"}\n");
    // Damaged.
    sqlx::query("update webhook_events set stored_body = '\\x63'")
        .execute(shop.world.database().pool())
        .await
        .unwrap();
    let shown = shell.run(&["webhook", "show", &event]);
    assert_eq!((shown.exit, shown.said.as_str()), (1, ""));
    assert!(
        shown
            .complained
            .contains("a format that this release does not know"),
        "{}",
        shown.complained
    );
    shop.world.end().await;
}

/// There is room for a thousand; what comes after them is stored all the same.
#[tokio::test]
async fn the_number_of_dictionaries_is_bounded() {
    let shop = Shop::open().await;
    let fill = "insert into body_dictionaries (content_hash, content)
        select sha256(int4send(n)), int4send(n) from generate_series(1, 1000) n";
    sqlx::query(fill)
        .execute(shop.world.database().pool())
        .await
        .unwrap();
    let posted = shop.spaced_renewal(1);
    let event = shop.post_text(&posted).await;
    assert_eq!(shop.dictionaries().await.len(), 1000);
    let sent = event_body(shop.world.database(), &event).await;
    assert!(sent.ends_with(&format!(",\"raw\":{posted}}}")), "{sent}");
    assert!(shop.stored_bytes(&event).await.len() < sent.len() / 3);
    shop.world.end().await;
}
