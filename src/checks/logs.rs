//! The group `logs`: whether the operator audit log is intact, and whether there is a recent backup that was verified.

use super::check_result::CheckResult;
use super::store::LatestBackup;
use crate::audit::operator_audit::ChainReport;
use crate::audit::{operator_audit, store};
use crate::base::error::to_sentence;
use crate::db::{Database, Error};

/// A longer chain is not verified here; `attesto audit verify` does that.
const MAX_CHAIN_ROWS: i64 = 200_000;
/// In days. If the newest backup is older, there is a warning.
const MAX_BACKUP_AGE_DAYS: i32 = 7;
/// In days. If no backup was verified within this time, there is a warning.
const MAX_VERIFIED_BACKUP_AGE_DAYS: i32 = 30;

pub(super) enum AuditChain {
    TooLong(i64),
    Verified(ChainReport),
}

pub(super) async fn verify_chain(database: &Database) -> Result<AuditChain, Error> {
    let rows = store::last_operator_audit_seq(database).await?;
    if rows > MAX_CHAIN_ROWS {
        return Ok(AuditChain::TooLong(rows));
    }
    let report = operator_audit::verify_chain(database, None).await?;
    Ok(AuditChain::Verified(report))
}

pub(super) fn judge_chain(chain: &AuditChain) -> CheckResult {
    const NAME: &str = "logs.operators";
    match chain {
        AuditChain::TooLong(rows) => CheckResult::skipped(
            NAME,
            format!("The operator audit log is long ({rows} rows): run `attesto audit verify`."),
        ),
        AuditChain::Verified(ChainReport {
            error: None, rows, ..
        }) => CheckResult::ok(
            NAME,
            format!("The operator audit log is intact: {rows} rows."),
        ),
        AuditChain::Verified(ChainReport {
            error: Some(error), ..
        }) => CheckResult::fail(
            NAME,
            to_sentence(format!("The operator audit log was tampered with: {error}")),
            "Rows of operator_audit were written by hand, or a restore went wrong. Compare with a backup, and find out who may write to that table.",
        ),
    }
}

pub(super) fn judge_latest_backup(latest: Option<&LatestBackup>) -> CheckResult {
    const NAME: &str = "logs.backups";
    let Some(latest) = latest else {
        return CheckResult::skipped(
            NAME,
            "No backup was made with `attesto backup`; other backups are not known here.",
        );
    };
    let age = format!("The newest backup was made {} days ago", latest.age_days);
    let was_verified = latest
        .verified_days
        .is_some_and(|days| days <= MAX_VERIFIED_BACKUP_AGE_DAYS);
    if latest.is_restorable == Some(false) {
        CheckResult::fail(
            NAME,
            format!("{age} and cannot be restored."),
            "Make another one and verify it: `attesto backup create`, `attesto backup verify`.",
        )
    } else if latest.age_days > MAX_BACKUP_AGE_DAYS {
        CheckResult::warn(
            NAME,
            format!("{age}."),
            "`attesto backup create`; once a day is usual.",
        )
    } else if was_verified {
        CheckResult::ok(NAME, format!("{age}."))
    } else {
        CheckResult::warn(
            NAME,
            format!("{age}; none was verified within {MAX_VERIFIED_BACKUP_AGE_DAYS} days."),
            "`attesto backup verify` restores one into a scratch database and compares.",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::CheckStatus;

    #[test]
    fn an_old_unverified_or_unrestorable_backup_is_reported() {
        let judged = |age_days, verified_days, is_restorable| {
            judge_latest_backup(Some(&LatestBackup {
                age_days,
                verified_days,
                is_restorable,
            }))
            .status
        };
        assert_eq!(judge_latest_backup(None).status, CheckStatus::Skipped);
        assert_eq!(judged(1, Some(3), None), CheckStatus::Ok);
        assert_eq!(judged(9, Some(3), None), CheckStatus::Warn);
        assert_eq!(judged(1, Some(99), None), CheckStatus::Warn);
        assert_eq!(judged(1, None, None), CheckStatus::Warn);
        assert_eq!(judged(1, Some(1), Some(false)), CheckStatus::Fail);
    }
}
