//! Reads the database's catalogue.

use sqlx::{AssertSqlSafe, Executor as _};

use super::{Database, Error};

impl Database {
    /// Every column of every table and view in schema `public`, in order.
    pub async fn list_columns(&self) -> Result<Vec<(String, String)>, Error> {
        sqlx::query_as(
            "select table_name::text, column_name::text from information_schema.columns
              where table_schema = 'public' order by table_name, ordinal_position",
        )
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
