//! How old the stored credentials are, counted from the day they were last set.

use super::store;
pub use super::store::OldestCredentials;
use crate::db::{Database, Error};

/// Looks.
pub async fn load_oldest_credentials(database: &Database) -> Result<OldestCredentials, Error> {
    store::load_oldest_credentials(database).await
}
