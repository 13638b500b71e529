//! Whether a migration would stop a process that serves.

use std::collections::BTreeSet;

use super::LiveReplicas;
use super::live_replicas::format_name_list;
use crate::db::{Database, MigrationError, PlannedMigration};

/// A migration must wait, because processes of an earlier release serve and would stop working.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "migration {version} ({name}) would stop processes of release {releases} on {hosts}: {why}. Stop those processes first (one that was killed counts for another 45 s); nothing has been changed"
)]
pub struct MigrationBlockedError {
    /// The migration's number.
    pub version: i64,
    /// Its name, in words.
    pub name: String,
    /// From the migration's header.
    pub why: String,
    /// The releases of those processes.
    pub releases: String,
    /// The hosts of those processes.
    pub hosts: String,
}

impl MigrationBlockedError {
    /// Whether the pending migrations can be applied now; the inner error says why they must wait.
    pub async fn check_replicas(database: &Database) -> Result<Result<(), Self>, MigrationError> {
        let planned = database.plan_migrations().await?;
        let stops =
            |it: &&PlannedMigration| it.promise.as_ref().is_some_and(|it| !it.previous_works);
        let Some(stopping) = planned.iter().find(stops) else {
            return Ok(Ok(()));
        };
        // Before the first migration there is no table of processes.
        let live = match LiveReplicas::load(database).await {
            Ok(live) => live,
            Err(error) if crate::db::is_missing_table(&error) => return Ok(Ok(())),
            Err(error) => return Err(error.into()),
        };
        let others: Vec<_> = live
            .replicas
            .iter()
            .filter(|replica| replica.version != crate::VERSION)
            .collect();
        if others.is_empty() {
            return Ok(Ok(()));
        }
        let releases: BTreeSet<&str> = others.iter().map(|it| it.version.as_str()).collect();
        let hosts: BTreeSet<&str> = others.iter().map(|it| it.host.as_str()).collect();
        let why = stopping.promise.as_ref().and_then(|it| it.why.clone());
        Ok(Err(Self {
            version: stopping.step.version,
            name: stopping.step.name.clone(),
            why: why.unwrap_or_else(|| "it changes what they use".to_owned()),
            releases: format_name_list(&releases),
            hosts: format_name_list(&hosts),
        }))
    }
}
