//! Checks that sealed values can be unsealed, with a random sample of every sealed column.

use super::reseal::UnopenedValue;
use super::sealed_columns::{self, SealedColumn};
use super::store;
use crate::crypto::keyring::Keyring;
use crate::db::{Database, Error};

/// The result for one column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedColumnCheck {
    /// The column that was checked.
    pub column: SealedColumn,
    /// How many values were unsealed.
    pub opened: u64,
    /// The values that could not be unsealed.
    pub failures: Vec<UnopenedValue>,
}

/// Unseals up to `limit` values of each sealed column except canaries.
pub async fn check_sealed_values(
    database: &Database,
    keyring: &Keyring,
    limit: i64,
) -> Result<Vec<SealedColumnCheck>, Error> {
    let mut checks = Vec::new();
    for column in sealed_columns::secret_columns() {
        let mut check = SealedColumnCheck {
            column,
            opened: 0,
            failures: Vec::new(),
        };
        for row in store::sample_values(database, column, limit).await? {
            match keyring.open(column.context_for(&row.row), &row.blob) {
                Ok(_) => check.opened += 1,
                Err(cause) => check.failures.push(UnopenedValue {
                    column,
                    row: row.row,
                    class: cause.class(),
                    cause,
                }),
            }
        }
        checks.push(check);
    }
    Ok(checks)
}
