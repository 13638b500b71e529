//! A read-only role for statistics: it runs the queries of docs/bi.md and sees nothing private.

use attesto::credentials::sealed_columns;
use attesto::db::{ConnectSettings, Database};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};

use crate::delivery_hold::{events, set_callback};
use crate::world::attesto::World;
use crate::world::postgres::fresh_database;
use crate::world::receiver::Receiver;
use crate::world::shell::Shell;

const PAGE: &str = include_str!("../../docs/bi.md");

/// Rows for every query, old enough and new enough.
const FILLING: &str = "
    insert into tenants (id, name) values ('tenant_a', 'A');
    insert into api_keys (id, tenant_id, key_hash, key_prefix, created_at)
        values ('key_a', 'tenant_a', sha256('a'), 'aaaaaaaa', now() - interval '91 days');
    insert into validation_audit (lane, id, tenant_id, source, identifier_hash, valid, latency_ms)
        values (tenant_lane('tenant_a'), 'aud_a', 'tenant_a', 'google', sha256('x'), true, 12);
    insert into webhook_events
        (lane, id, tenant_id, source, external_id, event_type, platform_event, decoded_payload, stored_body)
        values (tenant_lane('tenant_a'), 'evt_a', 'tenant_a', 'apple', 'x', 'subscription.renewed', 'apple.did_renew', '{}', '\\x007b7d');
    insert into webhook_deliveries (lane, id, event_id, tenant_id, callback_url)
        values (tenant_lane('tenant_a'), 'del_a', 'evt_a', 'tenant_a', 'https://example.com/hook')";

#[tokio::test]
async fn the_read_only_role_runs_the_documented_queries_and_sees_nothing_private() {
    let fresh = fresh_database().await;
    let owner = fresh.database.pool();
    owner.execute(FILLING).await.unwrap();
    let shell = Shell::default().set("DATABASE_URL", &fresh.url);
    // Roles belong to the server, which other tests share.
    let role = format!("bi_of_{}", fresh.database.database_name());
    let words = ["db", "grant-readonly", "--user", &role];
    let printed = shell.run(&words);
    assert_eq!((printed.exit, printed.complained.as_str()), (0, ""));
    // Used as printed, with `psql`.
    let script = printed.said;
    assert!(!script.contains("_enc\""), "{script}");
    let known = "select count(*) from pg_roles where rolname = $1";
    let known = sqlx::query_scalar::<_, i64>(known).bind(&role);
    assert_eq!(known.fetch_one(owner).await.unwrap(), 0, "only printed");
    // Printed or executed, repeated: the result is the same.
    owner.execute(AssertSqlSafe(script)).await.unwrap();
    let run = [&words[..], &["--run"]].concat();
    shell.rows(&run);
    shell.rows(&run);

    let url = fresh.url.replace("user=attesto", &format!("user={role}"));
    let reader = Database::open(&ConnectSettings::from_url(&url).unwrap());
    let queries: Vec<&str> = PAGE
        .split("```sql\n")
        .skip(1)
        .map(|block| block.split("```").next().unwrap())
        .collect();
    assert!(queries.len() >= 5);
    for query in queries {
        let rows = sqlx::query(AssertSqlSafe(query.to_owned()))
            .fetch_all(reader.pool())
            .await;
        let rows = rows.unwrap_or_else(|error| panic!("{error}: {query}"));
        assert!(!rows.is_empty(), "it finds nothing: {query}");
    }
    let hidden = sealed_columns::ALL_SEALED_COLUMNS
        .iter()
        .map(|it| (it.table, it.column))
        .chain([
            ("api_keys", "key_hash"),
            ("purchase_links", "token"),
            ("owed_acknowledgements", "purchase_token"),
            ("refund_questions", "refund_token"),
            ("webhook_events", "raw_payload"),
            ("webhook_events", "stored_body"),
            ("webhook_deliveries", "last_response_body"),
            ("webhook_configs", "callback_url"),
        ]);
    for (table, column) in hidden {
        let asked = sqlx::query(AssertSqlSafe(format!("select {column} from {table}")))
            .fetch_all(reader.pool())
            .await
            .unwrap_err();
        assert!(asked.to_string().contains("permission denied"), "{asked}");
    }
    for change in [
        "update tenants set name = 'B'",
        "set default_transaction_read_only = off; delete from webhook_deliveries",
        "select note_operation('a', 'b', 'c', null, null, null)",
    ] {
        reader.pool().execute(change).await.unwrap_err();
    }
    let odd = shell.run(&["db", "grant-readonly", "--user", "x\"; drop role y"]);
    assert_eq!(odd.exit, 2);
    reader.close_connections().await;
    // A role cannot be dropped before its rights are revoked.
    owner
        .execute(AssertSqlSafe(format!(
            "drop owned by {role}; drop role {role}"
        )))
        .await
        .unwrap();
}

/// Whatever a role may lock that only reads, the service works on.
#[tokio::test]
async fn a_read_only_role_holds_up_nothing() {
    let world = World::with(&[("WEBHOOK_ALLOW_PRIVATE_CALLBACKS", "1")]).await;
    let receiver = Receiver::answering(b"HTTP/1.1 204 No Content\r\n\r\n").await;
    let tenant = world.stranger().await.id;
    set_callback(&world, &tenant, &receiver.url()).await;
    let shell = world.shell();
    let role = format!("reader_of_{}", world.database().database_name());
    shell.rows(&["db", "grant-readonly", "--user", &role, "--run"]);
    // More than that command grants: every table, whole.
    let owner = world.database().pool();
    let grant = format!("grant select on all tables in schema public to {role}");
    owner.execute(AssertSqlSafe(grant)).await.unwrap();

    let url = world
        .fresh
        .url
        .replace("user=attesto", &format!("user={role}"));
    let mut reader = PgConnection::connect(&url).await.unwrap();
    for table in ["delivery_lanes", "process_locks", "_sqlx_migrations"] {
        for attempt in [
            format!("select * from {table} for update"),
            format!("select * from {table} for key share"),
            format!("lock table {table} in row share mode"),
        ] {
            let allowed = format!("begin read write; {attempt}");
            let refused = reader.execute(AssertSqlSafe(allowed)).await.unwrap_err();
            assert!(
                refused.to_string().contains("permission denied"),
                "{attempt}: {refused}"
            );
            reader.execute("rollback").await.unwrap();
        }
    }
    // Everything that it may do, held until the end of the test: the keys are those that Attesto once locked.
    reader
        .execute(
            "begin;
            lock table delivery_lanes, process_locks, operator_audit, job_runs, _sqlx_migrations in access share mode;
            select pg_advisory_lock(7233186720511), pg_advisory_lock(27431116008027247),
                pg_advisory_lock(hashtextextended('attesto operator_audit', 0)),
                pg_advisory_lock(hashtextextended('attesto job retention', 0))",
        )
        .await
        .unwrap();

    events(&world, &tenant, &["1"]).await;
    receiver.until(1).await;
    let key = shell.rows(&["key", "create", tenant.as_str()]).remove(0);
    shell.rows(&["key", "revoke", key["id"].as_str().unwrap()]);
    shell.rows(&["jobs", "run", "retention"]);
    shell.rows(&["deliveries", "hold"]);
    shell.rows(&["migrate"]);
    reader.execute("rollback").await.unwrap();
    reader.close().await.unwrap();
    owner
        .execute(AssertSqlSafe(format!(
            "drop owned by {role}; drop role {role}"
        )))
        .await
        .unwrap();
}
