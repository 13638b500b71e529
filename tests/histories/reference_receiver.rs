//! The receiver that docs/integrate.md describes: its statements, taken from the page, on Postgres.

use std::path::Path;

use attesto::db::Database;
use sqlx::{AssertSqlSafe, Executor as _};

/// The SQL blocks of the page, each recognised by what it does.
pub(crate) struct PageStatements {
    /// Creates the table.
    pub(crate) table: String,
    /// Keeps the state of an answer or event: `$1` is the store, `$2` the whole message as JSON.
    pub(crate) upsert: String,
    /// Binds a purchase to a user: `$1` is the store, `$2` the subject's key, `$3` the user.
    pub(crate) bind: String,
    /// What the user `$1` may use now.
    pub(crate) gate: String,
}

impl PageStatements {
    /// Panics unless the page has exactly these four.
    pub(crate) fn read() -> Self {
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/integrate.md");
        let page = std::fs::read_to_string(page).expect("the page is there");
        let blocks: Vec<&str> = page
            .split("```sql\n")
            .skip(1)
            .map(|rest| rest.split_once("\n```").expect("a fence is closed").0)
            .collect();
        assert_eq!(blocks.len(), 4, "{blocks:#?}");
        let find = |start: &str| {
            let found: Vec<_> = blocks.iter().filter(|it| it.starts_with(start)).collect();
            assert_eq!(found.len(), 1, "one statement begins with {start}");
            found[0].trim_end_matches(';').to_owned()
        };
        Self {
            table: find("create table purchases"),
            upsert: find("insert into purchases"),
            bind: find("update purchases"),
            gate: find("select "),
        }
    }

    /// The gate at the time `$2` instead of now.
    pub(crate) fn gate_at_time(&self) -> String {
        assert_eq!(self.gate.matches("now()").count(), 1, "{}", self.gate);
        self.gate.replace("now()", "$2::timestamptz")
    }

    /// Creates the table beside those of Attesto.
    pub(crate) async fn create_table(&self, database: &Database) {
        database
            .pool()
            .execute(AssertSqlSafe(self.table.clone()))
            .await
            .expect("Postgres takes the page's table");
    }
}
