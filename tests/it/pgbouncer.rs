//! Behind a real pooler in transaction mode everything works, and nothing depends on a session.

use attesto::db::{ConnectSettings, Database};
use attesto::simulator::state::google::NewSubscription;
use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::delivery_hold::{events, set_callback};
use crate::world::attesto::{APP, World};
use crate::world::pgbouncer::{Pooler, SESSIONS};
use crate::world::postgres::{empty_database, fresh_database};
use crate::world::receiver::Receiver;
use crate::world::wait::{finished, wait_until};

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// Runs a dozen different statements from as many concurrent tasks, and returns the failures.
async fn questions(database: &Database) -> Vec<String> {
    let ask = async |task: i32| {
        for round in 0..20 {
            // Different texts, so that each is prepared under a number that other connections use
            // for another text.
            let text = format!("select $1::int + {}", (task + round) % 12);
            let asked = sqlx::query_scalar::<_, i32>(sqlx::AssertSqlSafe(text)).bind(task);
            let sum = asked.fetch_one(database.pool()).await;
            let sum = sum.map_err(|problem| problem.to_string())?;
            if sum != task + (task + round) % 12 {
                return Err("the answer to somebody else's question".to_owned());
            }
        }
        Ok(())
    };
    let asked = join_all((0..12).map(ask)).await;
    asked.into_iter().filter_map(Result::err).collect()
}

#[tokio::test]
async fn prepared_statements_work_through_the_pooler() {
    let pooler = Pooler::start();
    let fresh = fresh_database().await;
    let through = pooler.before(&fresh);
    let wrong = questions(&through.database).await;
    assert!(wrong.is_empty(), "{wrong:?}");

    // Proof that this test can fail: the same without the pooler setting.
    let unaware = ConnectSettings::from_url(&pooler.url(&fresh)).unwrap();
    let wrong = questions(&Database::open(&unaware)).await;
    assert!(
        !wrong.is_empty(),
        "this pooler keeps prepared statements apart: db::pool's transactions can go"
    );
}

#[tokio::test]
async fn every_statement_has_its_timeouts() {
    let pooler = Pooler::start();
    let fresh = pooler.before(&fresh_database().await);
    let ask = |setting: &'static str| {
        sqlx::query_scalar::<_, String>("select current_setting($1)")
            .bind(setting)
            .fetch_one(fresh.database.pool())
    };
    // More often than there are sessions, so that each is used.
    for _ in 0..4 * SESSIONS {
        let found = tokio::join!(
            ask("statement_timeout"),
            ask("lock_timeout"),
            ask("idle_in_transaction_session_timeout")
        );
        let found = [found.0.unwrap(), found.1.unwrap(), found.2.unwrap()];
        assert_eq!(found, ["15s", "5s", "10s"]);
    }
    // And they do not stay set in a session for other clients of the pooler.
    let left: Vec<String> = sqlx::raw_sql("show statement_timeout")
        .fetch_all(fresh.database.pool().sqlx_pool())
        .await
        .unwrap()
        .iter()
        .map(|row| sqlx::Row::get(row, 0))
        .collect();
    assert_eq!(left, ["0"]);
}

/// The pooler accepts every client and hands out its sessions one by one: a client without a
/// session waits no longer than for a connection.
#[tokio::test]
async fn waiting_for_a_pooler_session_times_out() {
    let pooler = Pooler::start();
    let fresh = pooler.before(&fresh_database().await);
    let taken = join_all((0..SESSIONS).map(|_| fresh.database.pool().begin())).await;
    let taken: Vec<_> = taken.into_iter().map(Result::unwrap).collect();
    let url = format!("{}&connect_timeout=1", pooler.url(&fresh));
    let settings = ConnectSettings::from_url(&url).unwrap();
    let direct = ConnectSettings::from_url(fresh.direct.as_ref().unwrap()).unwrap();
    let settings = settings.with_direct(direct);
    let patient = Database::open(&settings);
    let asked = sqlx::query("select 1").execute(patient.pool());
    let asked = finished("the wait for a connection ends", asked).await;
    let problem = asked.unwrap_err();
    assert!(matches!(problem, sqlx::Error::PoolTimedOut), "{problem:?}");
    drop(taken);
    sqlx::query("select 1")
        .execute(patient.pool())
        .await
        .unwrap();
}

#[tokio::test]
async fn migrations_and_commands_use_the_direct_url() {
    let pooler = Pooler::start();
    let empty = empty_database().await;
    let shell = crate::world::shell::Shell::default()
        .set("DATABASE_URL", &pooler.url(&empty))
        .set("DATABASE_DIRECT_URL", &empty.url);
    assert_eq!(shell.run(&["migrate", "--check"]).exit, 0);
    let migrated = shell.rows(&["migrate"]);
    assert_ne!(migrated[0]["applied"], json!([]));
    let tenant = shell.rows(&["tenant", "create", "--name", "Acme"]);
    assert_eq!(tenant[0]["name"], "Acme");
    // The log names the session's process.
    let noted = shell.rows(&["audit", "operators", "list"]);
    assert_eq!(noted[0]["command"], "tenant create");
}

#[tokio::test]
async fn a_complete_server_works_behind_pgbouncer() {
    let pooler = Pooler::start();
    let world = World::behind(
        &pooler,
        &[
            ("WEBHOOK_ALLOW_PRIVATE_CALLBACKS", "1"),
            ("JOBS_DISABLED", "0"),
            // It is run by a command.
            ("JOBS_RETENTION_INTERVAL_SECONDS", "0"),
        ],
    )
    .await;
    let shell = world.shell();
    let ready = world.ask("GET", "/ready", None, None).await;
    assert_eq!(ready.status, 200, "{}", ready.body);

    // Notifications in, deliveries out, and verifications meanwhile.
    let tenant = world.tenant().await;
    let receiver = Receiver::answering(OK).await;
    set_callback(&world, &tenant.id, &receiver.url()).await;
    let play = world.simulator.google();
    world.set_google_by_command(&tenant);
    let bought = play.buy_subscription(NewSubscription::default()).unwrap();
    let pushed = play
        .push_message(&play.published_messages().pop().unwrap().message_id)
        .await
        .unwrap();
    assert_eq!(pushed.status, 200, "{}", pushed.body);

    let question = json!({
        "packageName": APP, "purchaseToken": bought.purchase_token, "type": "subscription",
    });
    let names: Vec<String> = (0..60).map(|number| number.to_string()).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let (_, answers) = tokio::join!(
        join_all(
            names
                .chunks(10)
                .map(|some| events(&world, &tenant.id, some))
        ),
        join_all((0..60).map(|_| world.verify("google", &tenant, &question)))
    );
    for answer in answers {
        assert_eq!(answer.status, 200, "{}", answer.body);
        assert_eq!(answer.body["valid"], true);
    }
    // The events were written beside the server: its dispatcher is woken as by another process.
    sqlx::query("select pg_notify('attesto_work', '')")
        .execute(world.database().pool())
        .await
        .unwrap();
    receiver.until(61).await;

    // The pooler never had more server sessions than configured.
    let sessions: i64 = sqlx::query_scalar(
        "select count(*) from pg_stat_activity where datname = current_database() and application_name = 'attesto'",
    )
    .fetch_one(world.database().pool())
    .await
    .unwrap();
    assert!(sessions <= i64::try_from(SESSIONS).unwrap(), "{sessions}");

    // A key revoked by another process is refused.
    let keys = shell.rows(&["key", "list", &tenant.id.to_string()]);
    assert_eq!(world.verify("google", &tenant, &question).await.status, 200);
    let revoked = shell.run(&["key", "revoke", keys[0]["id"].as_str().unwrap()]);
    assert_eq!(revoked.exit, 0, "{}", revoked.complained);
    wait_until("the revoked key is refused", async || {
        world.verify("google", &tenant, &question).await.status == 401
    })
    .await;

    // The server runs the others.
    let ran = shell.rows(&["jobs", "run", "retention"]);
    assert_eq!(ran[0]["outcome"], "done", "{ran:?}");
    let listed: Vec<Value> = shell.rows(&["webhook", "list-deliveries", &tenant.id.to_string()]);
    assert!(!listed.is_empty());

    let doctor = shell.run(&["doctor", "--offline", "--output", "json"]);
    for sentence in [
        "The pooler leads to the same database.",
        "Notifications arrive.",
        "Connection settings persist.",
    ] {
        assert!(doctor.said.contains(sentence), "{}", doctor.said);
    }
}
