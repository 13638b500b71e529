//! How old the stored credentials are, counted from the day they were last set.

use std::time::Duration;

use super::store;
use crate::db::{Database, Error};

/// The age of the oldest of each store. `None`: there are none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Oldest {
    /// Apple's keys.
    pub apple: Option<Duration>,
    /// Google's service accounts.
    pub google: Option<Duration>,
}

/// Looks.
pub async fn oldest(database: &Database) -> Result<Oldest, Error> {
    store::oldest(database).await
}
