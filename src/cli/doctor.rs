//! `attesto doctor`: diagnoses this installation.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;

use super::context::{CommandContext, CommandError};
use crate::base::clock::Timestamp;
use crate::checks::{CheckContext, CheckResult, CheckStatus, run_checks};
use crate::config::{self, RawSettings};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  attesto doctor\n  attesto doctor --offline --output json")]
pub(crate) struct DoctorArgs {
    /// Skip the checks that send requests to the stores
    #[arg(long)]
    offline: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DoctorOutput<'a> {
    #[serde(flatten)]
    check: &'a CheckResult,
    version: &'static str,
    checked_at: Timestamp,
}

/// Exit 0 for no problem, 1 for warnings, 2 for failures.
pub(crate) async fn run(args: DoctorArgs, context: &CommandContext) -> Result<(), CommandError> {
    let lookup = |name: &str| context.environment_variable(name);
    let database_flag = context
        .database_url()
        .map(|url| ("DATABASE_URL".to_owned(), url.to_owned()));
    let check_context = CheckContext {
        raw: RawSettings::new(BTreeMap::from_iter(database_flag), &lookup),
        variable_names: config::list_env_vars(),
        database: context
            .open_database()
            .await
            .map_err(|failure| failure.message),
        keyring: context
            .find_configured_keyring()
            .ok()
            .flatten()
            .map(Arc::new),
        clock: context.clock.clone(),
        is_online: !args.offline,
    };
    let found = run_checks(&check_context).await;
    if let Ok(database) = &check_context.database {
        database.close_connections().await;
    }
    let shown = DoctorOutput {
        check: &found,
        version: crate::VERSION,
        checked_at: context.clock.now(),
    };
    context
        .output
        .write_json_or_text(&shown, &found.to_text())?;
    match found.status {
        CheckStatus::Ok | CheckStatus::Skipped => Ok(()),
        // The result names the problems already.
        CheckStatus::Warn => Err(CommandError::failed("")),
        CheckStatus::Fail => Err(CommandError::usage_error("")),
    }
}
