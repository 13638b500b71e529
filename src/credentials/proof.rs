//! Does what is sealed open? A few values of every sealed column, chosen at random.

use super::reseal::Unopened;
use super::sealed::{self, SealedColumn};
use super::store;
use crate::crypto::keyring::Keyring;
use crate::db::{Database, Error};

/// What was found in one column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proof {
    /// Which.
    pub column: SealedColumn,
    /// Values that opened.
    pub opened: u64,
    /// Those that did not.
    pub failures: Vec<Unopened>,
}

/// Opens up to `most` values of each sealed column, canaries aside.
pub async fn sample(
    database: &Database,
    keyring: &Keyring,
    most: i64,
) -> Result<Vec<Proof>, Error> {
    let mut proofs = Vec::new();
    for column in sealed::secrets() {
        let mut proof = Proof {
            column,
            opened: 0,
            failures: Vec::new(),
        };
        for row in store::at_random(database, column, most).await? {
            match keyring.open(column.of(&row.row), &row.blob) {
                Ok(_) => proof.opened += 1,
                Err(cause) => proof.failures.push(Unopened {
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
