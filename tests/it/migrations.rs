//! The database's tables.

use attesto::db::{Database, MIGRATOR};

use crate::world::postgres::{empty_database, fresh_database};

#[tokio::test]
async fn a_fresh_database_has_every_table_and_an_empty_one_has_none() {
    let tables = "select count(*) from information_schema.tables where table_schema = 'public'";
    let count = async |database: &Database| -> i64 {
        sqlx::query_scalar(tables)
            .fetch_one(database.pool())
            .await
            .unwrap()
    };
    let (fresh, empty) = (fresh_database().await, empty_database().await);
    assert!(count(&fresh.database).await > 5);
    assert_eq!(count(&empty.database).await, 0);

    let again = Database::open(&empty.settings);
    MIGRATOR.run(again.pool()).await.unwrap();
    assert_eq!(count(&again).await, count(&fresh.database).await);
    assert_ne!(fresh.url, empty.url, "every test has its own");
}
