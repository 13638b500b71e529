//! How Postgres finds the rows of every statement: in the tables that grow, by a condition on an index, and in those with lanes, by
//! the lane.
//!
//! The plans are those for any parameters, on tables without statistics, where scans of whole tables are made dear: such a scan is
//! left only where no index helps. What functions of the database do inside is not seen.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value;
use sqlx::{AssertSqlSafe, PgConnection, Row as _};

use crate::world::postgres::fresh_database;

/// Tables that do not grow with what users buy: they have a row for each tenant, callback, process or change by an operator, or are
/// emptied as they are worked off.
const BOUNDED: [&str; 33] = [
    "api_keys",
    "apple_credentials",
    "apple_history_reads",
    "apple_previous_credentials",
    "apple_test_notifications",
    "backups",
    "body_dictionaries",
    "callback_probes",
    "delivery_holds",
    "delivery_lanes",
    "encryption_canaries",
    "event_feeds",
    "first_seen_keys",
    "google_credentials",
    "google_previous_credentials",
    "google_voided_reads",
    "job_runs",
    "operator_audit",
    "owed_acknowledgements",
    "process_locks",
    "pruned_events",
    "refund_questions",
    "replicas",
    "schema_promises",
    "tenants",
    "unresolved_states",
    "validation_audit_keys",
    "webhook_allowed_networks",
    "webhook_client_certificates",
    "webhook_configs",
    "webhook_health",
    "webhook_previous_secrets",
    "webhook_redeliveries",
];

/// The statements of the crate's checked queries that have a plan, with the number of their parameters.
fn read_statements() -> Vec<(String, usize)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(".sqlx");
    let files = std::fs::read_dir(folder).expect("the prepared queries");
    let statements = files.map(|file| {
        let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
        let query: Value = serde_json::from_str(&text).unwrap();
        let parameters = query["describe"]["parameters"]["Left"].as_array();
        let statement = query["query"].as_str().unwrap();
        (statement.to_owned(), parameters.map_or(0, Vec::len))
    });
    let has_plan = |statement: &str| {
        let mut lines = statement.lines().map(str::trim);
        let first = lines.find(|line| !line.is_empty() && !line.starts_with("--"));
        let first = first.and_then(|line| line.split_whitespace().next());
        first.is_some_and(|word| ["select", "insert", "update", "delete", "with"].contains(&word))
    };
    let statements: Vec<_> = statements.filter(|(text, _)| has_plan(text)).collect();
    assert!(statements.len() > 150, "{} are too few", statements.len());
    statements
}

async fn explain(connection: &mut PgConnection, statement: &str, parameters: usize) -> Value {
    let nulls = vec!["null"; parameters].join(", ");
    let arguments = if parameters == 0 {
        String::new()
    } else {
        format!("({nulls})")
    };
    for setup in [
        "deallocate all".to_owned(),
        format!("prepare statement as {statement}"),
    ] {
        sqlx::raw_sql(AssertSqlSafe(setup))
            .execute(&mut *connection)
            .await
            .unwrap();
    }
    let explain = format!("explain (format json, costs off) execute statement{arguments}");
    let rows = sqlx::raw_sql(AssertSqlSafe(explain))
        .fetch_all(&mut *connection)
        .await
        .unwrap();
    rows[0].get(0)
}

/// Where the scans of a plan find their rows: in whole tables, and in whole indexes.
#[derive(Default)]
struct WholeScans {
    tables: BTreeSet<String>,
    indexes: BTreeSet<String>,
}

impl WholeScans {
    fn collect(&mut self, node: &Value) {
        let kind = node["Node Type"].as_str().unwrap_or_default();
        if kind == "Seq Scan" {
            let table = node["Relation Name"].as_str().unwrap();
            self.tables.insert(table.to_owned());
        }
        if kind.contains("Index") && node["Index Cond"].is_null() {
            let index = node["Index Name"].as_str().unwrap();
            self.indexes.insert(index.to_owned());
        }
        for plan in node["Plans"].as_array().into_iter().flatten() {
            self.collect(plan);
        }
    }
}

/// The indexes that contain all rows of a table that grows, and the names of such tables.
async fn read_growing(connection: &mut PgConnection) -> (BTreeSet<String>, BTreeSet<String>) {
    let tables = sqlx::query_scalar(
        "select relname::text from pg_class where relkind = 'r' and relnamespace = current_schema()::regnamespace
            and relname <> all ($1) and relname not like '\\_sqlx%'",
    );
    let tables: Vec<String> = tables
        .bind(&BOUNDED[..])
        .fetch_all(&mut *connection)
        .await
        .unwrap();
    let indexes = sqlx::query_scalar(
        // A condition that a column is not null, which it never is, leaves no row out.
        "select indexrelid::regclass::text from pg_index
         where indrelid = any ($1::text[]::regclass[]) and (indpred is null or exists (
            select from pg_attribute
            where attrelid = indrelid and attnotnull
                and pg_get_expr(indpred, indrelid) = format('(%I IS NOT NULL)', attname)
         ))",
    );
    let indexes: Vec<String> = indexes
        .bind(&tables)
        .fetch_all(&mut *connection)
        .await
        .unwrap();
    (tables.into_iter().collect(), indexes.into_iter().collect())
}

#[tokio::test]
async fn no_statement_reads_a_whole_table_that_grows() {
    let fresh = fresh_database().await;
    let mut connection = fresh.database.pool().sqlx_pool().acquire().await.unwrap();
    sqlx::raw_sql("set plan_cache_mode = force_generic_plan; set enable_seqscan = off")
        .execute(&mut *connection)
        .await
        .unwrap();
    let (tables, indexes) = read_growing(&mut connection).await;
    assert!(tables.contains("webhook_events") && indexes.contains("webhook_events_pkey"));
    let mut find_whole_scans = async |statement: &str, parameters| {
        let plan = explain(&mut connection, statement, parameters).await;
        let mut scans = WholeScans::default();
        scans.collect(&plan[0]["Plan"]);
        let tables = scans.tables.intersection(&tables).cloned();
        tables
            .chain(scans.indexes.intersection(&indexes).cloned())
            .collect::<Vec<_>>()
    };
    // Such statements are found.
    for (statement, parameters) in [
        ("select from webhook_events where event_type = $1", 1),
        ("select id from webhook_events", 0),
    ] {
        let scans = find_whole_scans(statement, parameters).await;
        assert_eq!(scans.len(), 1, "{statement}: {scans:?}");
    }
    let mut problems = BTreeMap::new();
    for (statement, parameters) in read_statements() {
        let scans = find_whole_scans(&statement, parameters).await;
        if !scans.is_empty() {
            problems.insert(statement, scans);
        }
    }
    assert!(problems.is_empty(), "{problems:#?}");
}

/// An index, as far as it decides which rows a scan reads.
struct IndexKey {
    table: String,
    columns: Vec<String>,
    /// The columns that its rows must have, if it has no other condition.
    required: Option<BTreeSet<String>>,
}

/// The identifiers in an expression.
fn words(expression: &str) -> BTreeSet<&str> {
    let is_end = |letter: char| !letter.is_ascii_alphanumeric() && letter != '_';
    expression
        .split(is_end)
        .filter(|word| !word.is_empty())
        .collect()
}

async fn read_index_keys(connection: &mut PgConnection) -> BTreeMap<String, IndexKey> {
    let rows: Vec<(String, String, Vec<String>, Option<String>)> = sqlx::query_as(
        "select indexrelid::regclass::text, indrelid::regclass::text,
            array(select pg_get_indexdef(indexrelid, number, false) from generate_series(1, indnkeyatts) number),
            pg_get_expr(indpred, indrelid)
         from pg_index join pg_class on pg_class.oid = indrelid
         where relnamespace = current_schema()::regnamespace",
    )
    .fetch_all(connection)
    .await
    .unwrap();
    let keys = rows.into_iter().map(|(index, table, columns, condition)| {
        let condition = condition.unwrap_or_default();
        let words = words(&condition)
            .into_iter()
            .filter(|word| !["IS", "NOT", "NULL", "AND"].contains(word));
        let required = words.map(ToOwned::to_owned).collect();
        let is_simple =
            !condition.contains(['=', '<', '>', '\'']) && !condition.contains("IS NULL");
        let key = IndexKey {
            table,
            columns,
            required: is_simple.then_some(required),
        };
        (index, key)
    });
    keys.collect()
}

/// The scans of a plan that read more rows than they would by another index, which has more of its first columns compared with a
/// value.
fn collect_lesser_indexes(
    node: &Value,
    keys: &BTreeMap<String, IndexKey>,
    found: &mut BTreeSet<String>,
) {
    let text = |name: &str| node[name].as_str().unwrap_or_default();
    let condition = text("Index Cond");
    if let Some(used) = keys.get(text("Index Name")) {
        let named = words(condition);
        let is_named = |column: &&String| named.contains(column.as_str());
        let by_used = used.columns.iter().take_while(is_named).count();
        let is_compared = |column: &str| {
            [condition, text("Filter")].iter().any(|expression| {
                expression.contains(&format!("({column} = "))
                    || expression.contains(&format!(".{column} = "))
            })
        };
        let others = keys
            .iter()
            .filter(|(name, key)| key.table == used.table && *name != text("Index Name"));
        for (name, other) in others {
            let required = other.required.as_ref();
            if required.is_some_and(|columns| columns.iter().all(|column| is_compared(column)))
                && other
                    .columns
                    .iter()
                    .take_while(|column| is_compared(column))
                    .count()
                    > by_used
            {
                found.insert(format!("{} instead of {name}", text("Index Name")));
            }
        }
    }
    for plan in node["Plans"].as_array().into_iter().flatten() {
        collect_lesser_indexes(plan, keys, found);
    }
}

async fn find_lesser_indexes(
    connection: &mut PgConnection,
    keys: &BTreeMap<String, IndexKey>,
    statement: &str,
    parameters: usize,
) -> BTreeSet<String> {
    let plan = explain(connection, statement, parameters).await;
    let mut found = BTreeSet::new();
    collect_lesser_indexes(&plan[0]["Plan"], keys, &mut found);
    found
}

/// Thousands of rows for a few tenants, which Postgres has not analyzed: so is every installation in its first minute.
async fn insert_unanalyzed_rows(connection: &mut PgConnection) {
    let statements = "
        alter table webhook_events set (autovacuum_enabled = off);
        alter table webhook_deliveries set (autovacuum_enabled = off);
        alter table subjects set (autovacuum_enabled = off);
        insert into tenants (id, name) select 'ten_' || number, 'Shop' from generate_series(1, 10) number;
        insert into webhook_events
            (lane, id, tenant_id, source, external_id, event_type, platform_event, decoded_payload, stored_body, subject_key)
        select tenant_lane(tenant), 'evt_' || lpad(number::text, 26, '0'), tenant, 'google', number::text, 'test', 'google.test',
            '{}', convert_to(repeat('x', 800), 'UTF8'), (number / 2)::text
        from generate_series(1, 3000) number, concat('ten_', number % 10 + 1) tenant;
        insert into subjects (lane, tenant_id, source, key_hash, last_sequence, changes_by)
        select lane, tenant_id, source, sha256(convert_to(external_id, 'UTF8')), 1, received_at from webhook_events;
        insert into webhook_deliveries (lane, id, event_id, tenant_id, callback, callback_url)
        select lane, 'del_' || id, id, tenant_id, 1, 'https://shop.example/hook' from webhook_events;";
    sqlx::raw_sql(statements).execute(connection).await.unwrap();
}

#[tokio::test]
async fn no_statement_uses_a_lesser_index_before_a_table_is_analyzed() {
    let fresh = fresh_database().await;
    let mut connection = fresh.database.pool().sqlx_pool().acquire().await.unwrap();
    let run = async |connection: &mut PgConnection, statement| {
        sqlx::raw_sql(statement).execute(connection).await.unwrap();
    };
    // Of two that cost the same, Postgres uses the older one.
    let lesser = "create index lesser on webhook_events (lane, tenant_id, received_at) where tenant_id is not null;
        drop index webhook_events_by_external_id;
        create unique index webhook_events_by_external_id on webhook_events (lane, tenant_id, source, external_id)
            where external_id is not null";
    run(&mut connection, lesser).await;
    insert_unanalyzed_rows(&mut connection).await;
    let settings = "set plan_cache_mode = force_generic_plan; set enable_seqscan = off";
    run(&mut connection, settings).await;
    let growing = read_growing(&mut connection).await.0;
    let mut keys = read_index_keys(&mut connection).await;
    keys.retain(|_, key| growing.contains(&key.table));
    // Where there is such an index, Postgres uses it, and that is found.
    let statement = "select from webhook_events where lane = $1 and tenant_id = $2 and source = $3 and external_id = $4";
    let found = find_lesser_indexes(&mut connection, &keys, statement, 4).await;
    let expected = "lesser instead of webhook_events_by_external_id";
    assert!(found.contains(expected), "{found:?}");
    run(&mut connection, "drop index lesser").await;
    keys.remove("lesser");
    let mut problems = BTreeMap::new();
    for (statement, parameters) in read_statements() {
        let found = find_lesser_indexes(&mut connection, &keys, &statement, parameters).await;
        if !found.is_empty() {
            problems.insert(statement, found);
        }
    }
    assert!(problems.is_empty(), "{problems:#?}");
}

/// Statements that may look for rows without naming their lane, by a part of their text, and why.
const WITHOUT_LANE: [(&str, &str); 1] = [(
    "else coalesce(health.state, 'active')",
    "a gauge counts all callbacks, of which there are few",
)];

/// The scans of a plan whose condition does not name the lane.
fn collect_scans_without_lane(
    node: &Value,
    laned: &BTreeSet<String>,
    indexes: &BTreeMap<String, String>,
    found: &mut BTreeSet<String>,
) {
    let kind = node["Node Type"].as_str().unwrap_or_default();
    let text = |name: &str| node[name].as_str().unwrap_or_default();
    let table = match kind {
        "Bitmap Heap Scan" => None,
        "Bitmap Index Scan" => indexes.get(text("Index Name")).map(String::as_str),
        _ if kind.contains("Scan") => node["Relation Name"].as_str(),
        _ => None,
    };
    let has_lane = text("Index Cond").contains("lane");
    if let Some(table) = table.filter(|table| laned.contains(*table) && !has_lane) {
        found.insert(format!("{table} by {kind} {}", text("Index Name")));
    }
    for plan in node["Plans"].as_array().into_iter().flatten() {
        collect_scans_without_lane(plan, laned, indexes, found);
    }
}

/// The tables whose rows belong to lanes, and the table of each index.
async fn read_laned(connection: &mut PgConnection) -> (BTreeSet<String>, BTreeMap<String, String>) {
    let tables: Vec<String> = sqlx::query_scalar(
        "select attrelid::regclass::text from pg_attribute join pg_class on pg_class.oid = attrelid
         where attname = 'lane' and relkind = 'r' and relname <> 'delivery_lanes'
            and relnamespace = current_schema()::regnamespace",
    )
    .fetch_all(&mut *connection)
    .await
    .unwrap();
    let indexes: Vec<(String, String)> = sqlx::query_as(
        "select indexrelid::regclass::text, indrelid::regclass::text from pg_index
         where indrelid = any ($1::text[]::regclass[])",
    )
    .bind(&tables)
    .fetch_all(&mut *connection)
    .await
    .unwrap();
    (tables.into_iter().collect(), indexes.into_iter().collect())
}

#[tokio::test]
async fn every_statement_names_the_lanes_of_its_rows() {
    let fresh = fresh_database().await;
    let mut connection = fresh.database.pool().sqlx_pool().acquire().await.unwrap();
    let setup = "set plan_cache_mode = force_generic_plan; set enable_seqscan = off; set enable_bitmapscan = off";
    sqlx::raw_sql(setup)
        .execute(&mut *connection)
        .await
        .unwrap();
    let (laned, indexes) = read_laned(&mut connection).await;
    let growing = read_growing(&mut connection).await.0;
    let without: Vec<_> = growing.difference(&laned).collect();
    assert!(without.is_empty(), "{without:?} grow and have no lane");
    let mut find_scans = async |statement: &str, parameters| {
        let plan = explain(&mut connection, statement, parameters).await;
        let mut found = BTreeSet::new();
        collect_scans_without_lane(&plan[0]["Plan"], &laned, &indexes, &mut found);
        found
    };
    // Such statements are found.
    let scans = find_scans("select from webhook_events where received_at < $1", 1).await;
    assert_eq!(scans.len(), 1, "{scans:?}");
    let (mut problems, mut unused) = (BTreeMap::new(), BTreeSet::from(WITHOUT_LANE));
    for (statement, parameters) in read_statements() {
        let scans = find_scans(&statement, parameters).await;
        if scans.is_empty() {
            continue;
        }
        let is_allowed = |(part, _): &&(&str, &str)| statement.contains(part);
        match WITHOUT_LANE.iter().find(is_allowed) {
            Some(allowed) => drop(unused.remove(allowed)),
            None => drop(problems.insert(statement, scans)),
        }
    }
    assert!(problems.is_empty(), "{problems:#?}");
    assert!(unused.is_empty(), "these name their lanes: {unused:?}");
}

/// First in every key and index: a statement for one lane reads the rows of that lane only.
#[tokio::test]
async fn the_lane_is_first_in_every_index() {
    let fresh = fresh_database().await;
    let mut connection = fresh.database.pool().sqlx_pool().acquire().await.unwrap();
    let (_, indexes) = read_laned(&mut connection).await;
    let others: Vec<String> = sqlx::query_scalar(
        "select indexrelid::regclass::text from pg_index
         where indexrelid = any ($1::text[]::regclass[])
            and pg_get_indexdef(indexrelid, 1, false) <> 'lane'",
    )
    .bind(indexes.keys().cloned().collect::<Vec<_>>())
    .fetch_all(&mut *connection)
    .await
    .unwrap();
    assert!(others.is_empty() && indexes.len() > 30, "{others:?}");
}

/// A row that were stored in another lane than its tenant's would not be found.
#[tokio::test]
async fn every_table_with_lanes_checks_that_the_lane_is_the_tenants() {
    let fresh = fresh_database().await;
    let mut connection = fresh.database.pool().sqlx_pool().acquire().await.unwrap();
    let (laned, _) = read_laned(&mut connection).await;
    let checked: Vec<String> = sqlx::query_scalar(
        "select conrelid::regclass::text from pg_constraint
         where contype = 'c' and pg_get_constraintdef(oid) = 'CHECK ((lane = tenant_lane(tenant_id)))'",
    )
    .fetch_all(&mut *connection)
    .await
    .unwrap();
    assert_eq!(laned, checked.into_iter().collect());
}
