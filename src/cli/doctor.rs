//! `attesto doctor`: is this installation well, and what is to be done if not.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;

use super::context::{Context, Failure};
use crate::clock::Timestamp;
use crate::config::{self, Raw};
use crate::doctor::{Check, Patient, Status, examine};

/// The arguments of `attesto doctor`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Call nobody outside: not the stores
    #[arg(long)]
    offline: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown<'a> {
    #[serde(flatten)]
    check: &'a Check,
    version: &'static str,
    checked_at: Timestamp,
}

/// Runs the command: exit 0 when all is well, 1 when something should not stay as it is, 2 when something does not work.
pub async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let lookup = |name: &str| context.variable(name);
    let given = context
        .database_url()
        .map(|url| ("DATABASE_URL".to_owned(), url.to_owned()));
    let patient = Patient {
        raw: Raw::new(BTreeMap::from_iter(given), &lookup),
        variables: config::variables(),
        database: context.database().await.map_err(|failure| failure.message),
        keyring: context.configured_keyring().ok().flatten().map(Arc::new),
        clock: context.clock.clone(),
        online: !args.offline,
    };
    let found = examine(&patient).await;
    if let Ok(database) = &patient.database {
        database.close().await;
    }
    let shown = Shown {
        check: &found,
        version: crate::VERSION,
        checked_at: context.clock.now(),
    };
    context.output.sentence(&shown, &found.in_words())?;
    match found.status {
        Status::Ok | Status::Skipped => Ok(()),
        // Everything was said.
        Status::Warn => Err(Failure::refused("")),
        Status::Fail => Err(Failure::usage("")),
    }
}
