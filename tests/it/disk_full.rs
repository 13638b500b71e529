//! The database has no space left: notifications are not acknowledged, no delivery is sent whose
//! result could not be stored, no process ends, and everything resumes by itself.
//!
//! Here Postgres fails with the same error class, 53, so that the test runs anywhere. `bin/chaos
//! --long` fills a real volume.

use serde_json::json;

use crate::delivery_hold::{events, set_callback};
use crate::world::attesto::{APP, APP_APPLE_ID, World};
use crate::world::receiver::Receiver;
use crate::world::wait::wait_until;

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// Fails every insert and update of events and deliveries. The sequence counts the refused deliveries: it is not rolled back.
const FULL: &str = "
    create sequence refused_deliveries;
    create function full_disk() returns trigger language plpgsql as $$
    begin
        if tg_table_name = 'webhook_deliveries' then
            perform nextval('refused_deliveries');
        end if;
        raise exception 'could not extend file: No space left on device' using errcode = '53100';
    end $$;
    create trigger full_disk before insert or update on webhook_events
        for each row execute function full_disk();
    create trigger full_disk before insert or update on webhook_deliveries
        for each row execute function full_disk();
";

async fn sql(world: &World, statement: &'static str) {
    sqlx::raw_sql(statement)
        .execute(world.database().pool())
        .await
        .unwrap();
}

#[tokio::test]
async fn with_a_full_disk_nothing_is_accepted_and_nothing_is_sent() {
    let world = World::with(&[
        ("WEBHOOK_ALLOW_PRIVATE_CALLBACKS", "1"),
        ("WEBHOOK_DISPATCH_INTERVAL_SECONDS", "1"),
    ])
    .await;
    let tenant = world.tenant().await;
    let receiver = Receiver::answering(OK).await;
    set_callback(&world, &tenant.id, &receiver.url()).await;
    let shell = world.shell();
    shell.rows(&["deliveries", "hold"]);
    events(&world, &tenant.id, &["1", "2", "3"]).await;

    sql(&world, FULL).await;
    // Three are due, and their claim cannot be stored.
    shell.rows(&["deliveries", "release"]);
    let payload = json!({
        "notificationType": "TEST",
        "notificationUUID": "00000000-0000-4000-8000-000000000001",
        "version": "2.0",
        "signedDate": world.clock.now().as_millis(),
        "data": { "appAppleId": APP_APPLE_ID, "bundleId": APP, "environment": "Production" },
    });
    let signed = world
        .simulator
        .apple()
        .sign_payload(payload.as_object().unwrap());
    let body = json!({ "signedPayload": signed });
    let path = format!("/v1/webhooks/apple/{}", tenant.id);
    for _ in 0..20 {
        let answer = world.ask("POST", &path, None, Some(&body)).await;
        assert_eq!(answer.status, 503, "{}", answer.body);
        assert_eq!(answer.body["error"], "UNAVAILABLE");
        assert!(answer.headers.contains_key("retry-after"));
    }
    // Twice at least: after the release, and when the polling interval is over.
    wait_until("claims are refused", async || {
        let refused =
            "select case when is_called then last_value else 0 end from refused_deliveries";
        let refused = sqlx::query_scalar::<_, i64>(refused).fetch_one(world.database().pool());
        refused.await.unwrap() >= 2
    })
    .await;
    assert_eq!(receiver.connections(), 0);
    assert_eq!(world.ask("GET", "/health", None, None).await.status, 200);

    // There is space again: no action is needed.
    sql(&world, "drop function full_disk cascade").await;
    receiver.until(3).await;
    let answer = world.ask("POST", &path, None, Some(&body)).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    receiver.until(4).await;
    world.end().await;
}
