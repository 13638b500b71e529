//! What is kept: does the chain of what operators changed hold, and is there a backup that can be restored.

use super::check_result::CheckResult;
use super::check_result::query_failed;
use super::store::{LatestBackup, find_latest_backup};
use crate::audit::{operator_audit, store};
use crate::db::Database;

/// A chain that is longer than this is left to `attesto audit verify`.
const MAX_CHAIN_ROWS: i64 = 200_000;
/// Days after which a backup is old.
const MAX_BACKUP_AGE_DAYS: i32 = 7;
/// Days after which it is time to prove one again.
const MAX_VERIFIED_BACKUP_AGE_DAYS: i32 = 30;

/// Looks.
pub async fn check_logs(database: &Database) -> CheckResult {
    const NAME: &str = "logs.operators";
    let check = match store::last_operator_audit_seq(database).await {
        Ok(rows) if rows > MAX_CHAIN_ROWS => CheckResult::skipped(
            NAME,
            format!(
                "The chain of what operators changed is long ({rows} rows): run `attesto audit verify`."
            ),
        ),
        Ok(_) => match operator_audit::verify_chain(database, None).await {
            Ok(checked) => match checked.error {
                None => CheckResult::ok(
                    NAME,
                    format!(
                        "The chain of what operators changed holds: {} rows.",
                        checked.rows
                    ),
                ),
                Some(broken) => CheckResult::fail(
                    NAME,
                    format!("The chain of what operators changed is broken: {broken}."),
                    "Somebody wrote to operator_audit by hand, or a restore went wrong. Compare with a backup, and find out who may write there.",
                ),
            },
            Err(error) => query_failed(NAME, &error),
        },
        Err(error) => query_failed(NAME, &error),
    };
    let backups = match find_latest_backup(database).await {
        Ok(latest) => check_latest_backup(latest.as_ref()),
        Err(error) => query_failed("logs.backups", &error),
    };
    CheckResult::group("logs", "What is kept", vec![check, backups])
}

fn check_latest_backup(latest: Option<&LatestBackup>) -> CheckResult {
    const NAME: &str = "logs.backups";
    let Some(latest) = latest else {
        return CheckResult::skipped(
            NAME,
            "No backup was made with `attesto backup`; others are not known here.",
        );
    };
    let told = format!("The newest backup was made {} days ago", latest.age_days);
    if latest.is_restorable == Some(false) {
        CheckResult::fail(
            NAME,
            format!("{told} and cannot be restored."),
            "Make another one and prove it: `attesto backup create`, `attesto backup verify`.",
        )
    } else if latest.age_days > MAX_BACKUP_AGE_DAYS {
        CheckResult::warn(
            NAME,
            format!("{told}."),
            "`attesto backup create`; once a day is usual.",
        )
    } else if latest
        .verified_days
        .is_none_or(|days| days > MAX_VERIFIED_BACKUP_AGE_DAYS)
    {
        CheckResult::warn(
            NAME,
            format!(
                "{told}; none was proven to be restorable for {MAX_VERIFIED_BACKUP_AGE_DAYS} days."
            ),
            "`attesto backup verify` restores one into a scratch database and compares.",
        )
    } else {
        CheckResult::ok(NAME, format!("{told}."))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::CheckStatus;

    #[test]
    fn backups_are_to_be_fresh_and_proven() {
        let judged = |age_days, proven_days, sound| {
            check_latest_backup(Some(&LatestBackup {
                age_days,
                verified_days: proven_days,
                is_restorable: sound,
            }))
            .status
        };
        assert_eq!(check_latest_backup(None).status, CheckStatus::Skipped);
        assert_eq!(judged(1, Some(3), None), CheckStatus::Ok);
        assert_eq!(judged(9, Some(3), None), CheckStatus::Warn);
        assert_eq!(judged(1, Some(99), None), CheckStatus::Warn);
        assert_eq!(judged(1, None, None), CheckStatus::Warn);
        assert_eq!(judged(1, Some(1), Some(false)), CheckStatus::Fail);
    }
}
