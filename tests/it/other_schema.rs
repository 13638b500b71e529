//! An installation whose tables are in another schema than `public`.

use attesto::db::{ConnectSettings, Database};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Executor as _};

use crate::world::folder::Folder;
use crate::world::postgres::{Fresh, empty_database, fresh_database};
use crate::world::shell::Shell;

/// No DNS query is needed for this address: it is a literal, and public.
const CALLBACK: &str = "https://93.184.216.34/hook";

/// A tenant with a sealed secret in the schema `shop`. The search path is a setting of the database alone.
struct Shop {
    fresh: Fresh,
    shell: Shell,
    tenant: String,
    folder: Folder,
}

impl Shop {
    async fn open() -> Self {
        let fresh = database_with_search_path("create schema shop").await;
        let shell = Shell::default()
            .set("DATABASE_URL", &fresh.url)
            .set("ATTESTO_ENCRYPTION_KEY", &STANDARD.encode([7; 32]))
            .set("PATH", "/usr/bin:/bin");
        shell.rows(&["migrate"]);
        let tenant = shell.rows(&["tenant", "create", "--name", "Shop"]);
        let tenant = tenant[0]["id"].as_str().unwrap().to_owned();
        let callback = ["webhook", "set-config", &tenant, "--callback-url", CALLBACK];
        shell.rows(&callback);
        Self {
            fresh,
            shell,
            tenant,
            folder: Folder::new(),
        }
    }

    fn file(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }
}

/// An empty database whose search path is `shop`, after this statement.
async fn database_with_search_path(statement: &'static str) -> Fresh {
    let empty = empty_database().await;
    let name = empty.database.database_name();
    execute(&empty.database, statement.to_owned()).await;
    let set = format!("alter database {name} set search_path = shop");
    execute(&empty.database, set).await;
    // For sessions that begin afterwards.
    empty.database.close_connections().await;
    Fresh {
        database: Database::open(&empty.settings),
        ..empty
    }
}

async fn execute(database: &Database, statement: String) {
    database
        .pool()
        .execute(AssertSqlSafe(statement))
        .await
        .unwrap();
}

async fn count(database: &Database, tables: &'static str) -> i64 {
    sqlx::query_scalar(AssertSqlSafe(format!("select count(*) from {tables}")))
        .fetch_one(database.pool())
        .await
        .unwrap()
}

#[tokio::test]
async fn a_backup_of_another_schema_is_verified_with_its_keys_and_restored_where_it_is_found() {
    let shop = Shop::open().await;
    let dump = shop.file("dump");
    let manifest = shop
        .shell
        .rows(&["backup", "create", "--file", &dump])
        .remove(0);
    assert_eq!(manifest["keyIds"], json!([1]));
    assert_eq!(manifest["tables"]["shop.tenants"], 1);
    let verified = shop.shell.rows(&["backup", "verify", &dump]).remove(0);
    assert_eq!(
        (&verified["sound"], &verified["opened"]),
        (&json!(true), &json!(1))
    );
    let keyless = shop.shell.clone().without("ATTESTO_ENCRYPTION_KEY");
    let refused = keyless.run(&["backup", "verify", &dump]);
    assert_eq!((refused.exit, refused.said.as_str()), (2, ""));
    assert!(
        refused
            .complained
            .contains("encryption key 1, which is not configured"),
        "{}",
        refused.complained
    );

    // A manifest that an earlier release wrote names no key.
    let path = shop.file("dump.manifest.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let mut older: Value = serde_json::from_str(&text).unwrap();
    older["keyIds"] = json!([]);
    std::fs::write(&path, older.to_string()).unwrap();
    let unsound = keyless.run(&["backup", "verify", &dump]);
    let report: Value = serde_json::from_str(&unsound.said).unwrap();
    assert_eq!(
        (unsound.exit, &report["sound"], &report["opened"]),
        (1, &json!(false), &json!(0))
    );
    assert!(
        unsound
            .complained
            .contains("encryption key 1, which is not configured"),
        "{}",
        unsound.complained
    );
    std::fs::write(&path, text).unwrap();

    let public = empty_database().await;
    let elsewhere = shop.shell.clone().set("DATABASE_URL", &public.url);
    let refused = elsewhere.run(&["backup", "restore", &dump]);
    assert_eq!((refused.exit, refused.said.as_str()), (2, ""));
    assert!(
        refused.complained.contains("in the schema shop"),
        "{}",
        refused.complained
    );
    let tables = "pg_tables where schemaname in ('public', 'shop')";
    assert_eq!(count(&public.database, tables).await, 0);
    let same = database_with_search_path("select 1").await;
    let same_shell = shop.shell.clone().set("DATABASE_URL", &same.url);
    same_shell.rows(&["backup", "restore", &dump]);
    let status = same_shell.rows(&["deliveries", "status"]).remove(0);
    assert_eq!(status["held"], true);
    assert_eq!(count(&same.database, "shop.tenants").await, 1);
}

#[tokio::test]
async fn a_tenant_moves_between_schemas() {
    let shop = Shop::open().await;
    let (passphrase, file) = (shop.file("passphrase"), shop.file("export"));
    std::fs::write(
        &passphrase,
        STANDARD.encode(fastrand::u128(..).to_be_bytes()),
    )
    .unwrap();
    shop.shell.rows(&["tenant", "deactivate", &shop.tenant]);
    let export = ["tenant", "export", &shop.tenant, "--file", &file];
    let opener = ["--passphrase-file", &passphrase];
    shop.shell.rows(&[&export[..], &opener].concat());

    let public = fresh_database().await;
    let elsewhere = database_with_search_path("create schema shop").await;
    let in_shop = shop.shell.clone().set("DATABASE_URL", &elsewhere.url);
    in_shop.rows(&["migrate"]);
    for (database, shell) in [
        (
            &public.database,
            shop.shell.clone().set("DATABASE_URL", &public.url),
        ),
        (&elsewhere.database, in_shop),
    ] {
        let import = ["tenant", "import", "--file", &file];
        shell.rows(&[&import[..], &opener].concat());
        assert_eq!(count(database, "webhook_configs").await, 1);
        let found = shell.rows(&["webhook", "get", &shop.tenant]).remove(0);
        assert_eq!(found["callbackUrl"], CALLBACK);
    }
}

#[tokio::test]
async fn the_read_only_role_reads_another_schema() {
    let shop = Shop::open().await;
    let name = shop.fresh.database.database_name();
    let role = format!("bi_of_{name}");
    let grant = ["db", "grant-readonly", "--user", &role, "--run"];
    shop.shell.rows(&grant);
    // The role finds the tables by itself.
    let reset = format!("alter database {name} reset search_path");
    execute(&shop.fresh.database, reset).await;
    let url = shop
        .fresh
        .url
        .replace("user=attesto", &format!("user={role}"));
    let reader = Database::open(&ConnectSettings::from_url(&url).unwrap());
    let names: Vec<String> = sqlx::query_scalar("select name from tenants")
        .fetch_all(reader.pool())
        .await
        .unwrap();
    assert_eq!(names, ["Shop"]);
    let hidden = sqlx::query("select secret_enc from webhook_configs")
        .fetch_all(reader.pool())
        .await
        .unwrap_err();
    assert!(hidden.to_string().contains("permission denied"), "{hidden}");
    reader.close_connections().await;
    let drop = format!("drop owned by {role}; drop role {role}");
    execute(&shop.fresh.database, drop).await;
}
