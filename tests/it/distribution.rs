//! What `attesto db distribute` refuses and prints on a server without Citus, which tables it knows, and what replaces the triggers.
//!
//! With Citus itself, `bin/check-citus` runs the tests of webhooks on distributed databases.

use std::collections::BTreeSet;

use attesto::db::distribution::{DISTRIBUTED_TABLES, Placement};
use sqlx::Executor as _;
use sqlx::postgres::PgListener;

use crate::world::postgres::{empty_database, fresh_database};

#[tokio::test]
async fn a_database_without_citus_is_not_distributed() {
    let fresh = fresh_database().await;
    for words in [
        &["db", "distribute"][..],
        &["db", "distribute", "--dry-run"],
    ] {
        let ran = fresh.shell().run(words);
        assert_eq!((ran.exit, ran.said.as_str()), (1, ""), "{}", ran.complained);
        assert!(
            ran.complained.contains("this database has no Citus"),
            "{}",
            ran.complained
        );
        assert_eq!(ran.complained.lines().count(), 1);
    }
    let triggers = "select count(*) from pg_trigger where not tgisinternal";
    let triggers: i64 = sqlx::query_scalar(triggers)
        .fetch_one(fresh.database.pool())
        .await
        .unwrap();
    assert!(triggers > 10, "nothing was changed");
}

#[tokio::test]
async fn a_database_without_tables_is_not_distributed() {
    let ran = empty_database().await.shell().run(&["db", "distribute"]);
    assert_eq!((ran.exit, ran.said.as_str()), (1, ""));
    assert!(
        ran.complained.contains("run `attesto migrate` first"),
        "{}",
        ran.complained
    );
}

#[tokio::test]
async fn every_table_with_a_lane_is_distributed_and_every_foreign_key_is_known() {
    let fresh = fresh_database().await;
    let pool = fresh.database.pool();
    let with_lane: Vec<String> = sqlx::query_scalar(
        "select table_name::text from information_schema.columns join information_schema.tables using (table_schema, table_name)
         where table_schema = current_schema() and column_name = 'lane' and table_type = 'BASE TABLE'
            and table_name <> 'delivery_lanes'",
    )
    .fetch_all(pool)
    .await
    .unwrap();
    let by_lane = DISTRIBUTED_TABLES
        .iter()
        .filter(|table| table.placement == Placement::ByLane)
        .map(|table| table.name.to_owned());
    assert_eq!(
        by_lane.collect::<BTreeSet<_>>(),
        with_lane.into_iter().collect()
    );
    let stored: Vec<(String, String, String, String)> = sqlx::query_as(
        "select conrelid::regclass::text, conname::text, confrelid::regclass::text, pg_get_constraintdef(oid)
         from pg_constraint where contype = 'f' and connamespace = current_schema()::regnamespace",
    )
    .fetch_all(pool)
    .await
    .unwrap();
    let known = DISTRIBUTED_TABLES.iter().flat_map(|table| {
        table.foreign_keys.iter().map(|key| {
            let [name, target, definition] = [key.name, key.target, key.definition];
            (
                table.name.to_owned(),
                name.to_owned(),
                target.to_owned(),
                definition.to_owned(),
            )
        })
    });
    assert_eq!(
        known.collect::<BTreeSet<_>>(),
        stored.into_iter().collect(),
        "no other table has a foreign key, and none leads to a table that stays on the coordinator"
    );
}

/// A change of each kind, in tables of both kinds.
const CHANGES: &str = "
    insert into tenants (id, name) values ('tenant_a', 'A');
    insert into api_keys (id, tenant_id, key_hash, key_prefix) values ('key_a', 'tenant_a', sha256('a'), 'aaaaaaaa');
    insert into webhook_configs (tenant_id, callback_url, secret_enc) values ('tenant_a', 'https://example.com/h?q', '\\x01');
    insert into webhook_previous_secrets (tenant_id, number, secret_enc, created_at, expires_at)
        values ('tenant_a', 7, '\\x02', now(), now());
    insert into webhook_allowed_networks (tenant_id, network, port) values ('tenant_a', '10.1.0.0/16', 8443);
    update tenants set name = 'B' where id = 'tenant_a';
    update api_keys set revoked_at = now() where id = 'key_a';
    update webhook_configs set secret_enc = '\\x03' where tenant_id = 'tenant_a';
    delete from webhook_allowed_networks where tenant_id = 'tenant_a'";

#[tokio::test]
async fn the_comparison_of_rows_logs_what_the_triggers_log() {
    let fresh = fresh_database().await;
    let mut transaction = fresh.database.pool().begin().await.unwrap();
    let mut compared = 0;
    for change in CHANGES.split(';') {
        let table = change
            .split_whitespace()
            .find(|word| word.contains('_') || *word == "tenants");
        let tables = [table.expect("each statement names its table")];
        let before: serde_json::Value = sqlx::query_scalar(
            "select coalesce(jsonb_agg(to_jsonb(stored)), '[]') from auditable_rows($1, 'tenant_a') stored",
        )
        .bind(&tables[..])
        .fetch_one(&mut *transaction)
        .await
        .unwrap();
        transaction.execute(change).await.unwrap();
        sqlx::query("select note_row_changes($1, $2, 'tenant_a')")
            .bind(before)
            .bind(&tables[..])
            .execute(&mut *transaction)
            .await
            .unwrap();
        let rows: Vec<String> = sqlx::query_scalar(
            "select jsonb_build_array(action, object, target, tenant_id, before, after)::text from operator_audit order by seq",
        )
        .fetch_all(&mut *transaction)
        .await
        .unwrap();
        if rows.len() > compared {
            assert_eq!(rows.len(), compared + 2, "after {change}: {rows:?}");
            assert_eq!(rows[compared], rows[compared + 1]);
        }
        compared = rows.len();
    }
    // All but the secret that was only sealed again.
    assert_eq!(compared, 2 * 8);
}

#[tokio::test]
async fn changes_are_announced_by_hand() {
    let fresh = fresh_database().await;
    let tenant = fresh.create_tenant().await;
    let mut listener = PgListener::connect_with(fresh.database.pool().sqlx_pool())
        .await
        .unwrap();
    listener.listen("attesto_changes").await.unwrap();
    let shell = fresh.shell();
    let ran = shell.rows(&["changes", "announce", "--tenant", tenant.as_str()]);
    assert_eq!(ran[0]["tenant"], tenant.as_str());
    let mut heard = BTreeSet::new();
    for _ in 0..6 {
        heard.insert(listener.recv().await.unwrap().payload().to_owned());
    }
    assert!(heard.contains(&format!("api_keys:{tenant}")), "{heard:?}");
    assert!(heard.contains(&format!("tenants:{tenant}")), "{heard:?}");
    shell.rows(&["changes", "announce"]);
    assert_eq!(listener.recv().await.unwrap().payload(), "everything");
    let unknown = shell.run(&[
        "changes",
        "announce",
        "--tenant",
        "tenant_01J00000000000000000000000",
    ]);
    assert_eq!(unknown.exit, 1, "{}", unknown.complained);
}
