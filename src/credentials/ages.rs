//! How old the stored credentials are, counted from the day they were last set.

use super::store;
pub use super::store::Oldest;
use crate::db::{Database, Error};

/// Looks.
pub async fn oldest(database: &Database) -> Result<Oldest, Error> {
    store::oldest(database).await
}
