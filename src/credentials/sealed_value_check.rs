//! Does what is sealed open? A few values of every sealed column, chosen at random.

use super::reseal::UnopenedValue;
use super::sealed_columns::{self, SealedColumn};
use super::store;
use crate::crypto::keyring::Keyring;
use crate::db::{Database, Error};

/// What was found in one column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedColumnCheck {
    /// The column that was checked.
    pub column: SealedColumn,
    /// Values that opened.
    pub opened: u64,
    /// Those that did not.
    pub failures: Vec<UnopenedValue>,
}

/// Opens up to `most` values of each sealed column, canaries aside.
pub async fn check_sealed_values(
    database: &Database,
    keyring: &Keyring,
    most: i64,
) -> Result<Vec<SealedColumnCheck>, Error> {
    let mut proofs = Vec::new();
    for column in sealed_columns::secret_columns() {
        let mut proof = SealedColumnCheck {
            column,
            opened: 0,
            failures: Vec::new(),
        };
        for row in store::sample_values(database, column, most).await? {
            match keyring.open(column.context_for(&row.row), &row.blob) {
                Ok(_) => proof.opened += 1,
                Err(cause) => proof.failures.push(UnopenedValue {
                    column,
                    row: row.row,
                    class: cause.class(),
                    cause,
                }),
            }
        }
        proofs.push(proof);
    }
    Ok(proofs)
}
