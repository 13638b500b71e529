//! Reads the database's catalogue.

use sqlx::{AssertSqlSafe, Executor as _};

use super::{Database, Error};

impl Database {
    /// The schema that statements use: the one with our tables or, before the first migration, the one that it would create
    /// them in. The search path of the role, the database or the URL decides, so it need not be `public`. `None`: no schema
    /// of the search path exists.
    pub async fn tables_schema(&self) -> Result<Option<String>, Error> {
        sqlx::query_scalar(
            "select coalesce(
                (select schema.nspname from pg_class class join pg_namespace schema on schema.oid = class.relnamespace
                  where class.oid = to_regclass('_sqlx_migrations')),
                current_schema())::text",
        )
        .fetch_one(self.pool())
        .await
    }

    /// Every column of every table and view in a schema, in order.
    pub async fn list_columns(&self, schema: &str) -> Result<Vec<(String, String)>, Error> {
        sqlx::query_as(
            "select table_name::text, column_name::text from information_schema.columns
              where table_schema = $1 order by table_name, ordinal_position",
        )
        .bind(schema)
        .fetch_all(self.pool())
        .await
    }

    /// Runs several statements in one transaction.
    pub async fn run_in_transaction(&self, statements: &[String]) -> Result<(), Error> {
        let mut transaction = self.pool().begin().await?;
        for statement in statements {
            transaction
                .execute(AssertSqlSafe(statement.clone()))
                .await?;
        }
        transaction.commit().await
    }
}
