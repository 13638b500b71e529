//! How old the stored credentials are, counted from the day they were last set.

use super::store;
pub use super::store::OldestCredentials;
use crate::db::{Database, Error};

/// The age of the credentials of each store that were set longest ago.
pub async fn load_oldest_credentials(database: &Database) -> Result<OldestCredentials, Error> {
    store::load_oldest_credentials(database).await
}
