//! Databases that Citus distributes, for a run with `ATTESTO_TEST_CITUS_URL`: the URL of a database on a coordinator to which workers
//! were added, with a role that may create databases on all of them.

use attesto::config::read_env_var;
use attesto::db::{ConnectSettings, Database, MIGRATOR};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use tokio::sync::OnceCell;
use url::Url;

/// The prefix of the databases' names.
const PREFIX: &str = "attesto_citus_test_";
/// Few, because each database has that many tables of every kind, and the workers create all of them.
const SHARDS: u16 = 4;

/// The coordinator. `None`: the tests run on a Postgres of their own.
pub(crate) fn coordinator() -> Option<Url> {
    let url = read_env_var("ATTESTO_TEST_CITUS_URL").filter(|url| !url.is_empty())?;
    let url = url.to_str().expect("the URL is text");
    Some(Url::parse(url).expect("ATTESTO_TEST_CITUS_URL is a URL"))
}

/// Creates a database on every node, with all tables distributed. Returns its URL.
pub(crate) async fn create_distributed(coordinator: &Url, number: u32) -> String {
    static WORKERS: OnceCell<Vec<(String, u16)>> = OnceCell::const_new();
    let workers = WORKERS
        .get_or_init(|| remove_databases_of_earlier_runs(coordinator))
        .await;
    let name = format!("{PREFIX}{}_{number}", std::process::id());
    for node in nodes(coordinator, workers) {
        let mut connection = connect(&node).await;
        run(&mut connection, &format!("create database {name}")).await;
        let mut connection = connect(&with_database(&node, &name)).await;
        run(&mut connection, "create extension citus").await;
    }
    let mut url = with_database(coordinator, &name);
    let mut connection = connect(&url).await;
    let host = coordinator.host_str().expect("the coordinator has a host");
    let port = coordinator.port().unwrap_or(5432);
    run(
        &mut connection,
        &format!("select citus_set_coordinator_host('{host}', {port})"),
    )
    .await;
    for (host, port) in workers {
        let add = format!("select citus_add_node('{host}', {port})");
        run(&mut connection, &add).await;
    }
    MIGRATOR
        .run(&mut connection)
        .await
        .expect("the migrations apply to an empty database");
    url.query_pairs_mut().append_pair("max", "5");
    let settings = ConnectSettings::from_url(url.as_str()).expect("our own URL is well formed");
    let database = Database::open(&settings);
    let plan = database.plan_distribution(SHARDS).await;
    for step in plan.expect("the tables can be distributed") {
        let done = database.run_distribution_step(&step).await;
        done.unwrap_or_else(|error| panic!("{error}"));
    }
    database.close_connections().await;
    url.into()
}

/// Returns the hosts and ports of the workers.
async fn remove_databases_of_earlier_runs(coordinator: &Url) -> Vec<(String, u16)> {
    let mut connection = connect(coordinator).await;
    let workers: Vec<(String, i32)> = sqlx::query_as(
        "select nodename, nodeport from pg_dist_node where groupid <> 0 and noderole = 'primary' order by nodeid",
    )
    .fetch_all(&mut connection)
    .await
    .expect("the database of ATTESTO_TEST_CITUS_URL has the extension citus");
    assert!(!workers.is_empty(), "the coordinator knows no worker");
    let workers: Vec<_> = workers
        .into_iter()
        .map(|(host, port)| (host, u16::try_from(port).expect("a port")))
        .collect();
    for node in nodes(coordinator, &workers) {
        let mut connection = connect(&node).await;
        let names: Vec<String> = sqlx::query_scalar(
            "select datname::text from pg_database where starts_with(datname, $1)",
        )
        .bind(PREFIX)
        .fetch_all(&mut connection)
        .await
        .expect("the catalogue can be read");
        for name in names {
            run(
                &mut connection,
                &format!("drop database {name} with (force)"),
            )
            .await;
        }
    }
    workers
}

fn nodes(coordinator: &Url, workers: &[(String, u16)]) -> Vec<Url> {
    let of_worker = |(host, port): &(String, u16)| {
        let mut url = coordinator.clone();
        url.set_host(Some(host)).expect("a host");
        url.set_port(Some(*port)).expect("a port");
        url
    };
    std::iter::once(coordinator.clone())
        .chain(workers.iter().map(of_worker))
        .collect()
}

fn with_database(node: &Url, name: &str) -> Url {
    let mut url = node.clone();
    url.set_path(name);
    url
}

async fn connect(url: &Url) -> PgConnection {
    PgConnection::connect(url.as_str())
        .await
        .expect("the node of the Citus cluster answers")
}

async fn run(connection: &mut PgConnection, statement: &str) {
    connection
        .execute(AssertSqlSafe(statement.to_owned()))
        .await
        .unwrap_or_else(|error| panic!("{statement}: {error}"));
}
