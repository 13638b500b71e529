//! The age of the stored credentials, counted from when they were last set.

use super::store;
pub use super::store::OldestCredentials;
use crate::db::{Database, Error};

/// The age of each store's oldest credentials, over all tenants.
pub async fn load_oldest_credentials(database: &Database) -> Result<OldestCredentials, Error> {
    store::load_oldest_credentials(database).await
}
