//! What is kept: does the chain of what operators changed hold, and is there a backup that can be restored.

use super::finding::Check;
use super::finding::unanswered;
use super::store::{Backup, backups};
use crate::audit::{operators, store};
use crate::db::Database;

/// A chain that is longer than this is left to `attesto audit verify`.
const LONGEST: i64 = 200_000;
/// Days after which a backup is old.
const OLD_BACKUP: i32 = 7;
/// Days after which it is time to prove one again.
const OLD_PROOF: i32 = 30;

/// Looks.
pub async fn look(database: &Database) -> Check {
    const NAME: &str = "logs.operators";
    let check = match store::last_seq(database).await {
        Ok(rows) if rows > LONGEST => Check::skipped(
            NAME,
            format!(
                "The chain of what operators changed is long ({rows} rows): run `attesto audit verify`."
            ),
        ),
        Ok(_) => match operators::verify(database, None).await {
            Ok(checked) => match checked.broken {
                None => Check::ok(
                    NAME,
                    format!(
                        "The chain of what operators changed holds: {} rows.",
                        checked.rows
                    ),
                ),
                Some(broken) => Check::fail(
                    NAME,
                    format!("The chain of what operators changed is broken: {broken}."),
                    "Somebody wrote to operator_audit by hand, or a restore went wrong. Compare with a backup, and find out who may write there.",
                ),
            },
            Err(error) => unanswered(NAME, &error),
        },
        Err(error) => unanswered(NAME, &error),
    };
    let backups = match backups(database).await {
        Ok(latest) => backup(latest.as_ref()),
        Err(error) => unanswered("logs.backups", &error),
    };
    Check::group("logs", "What is kept", vec![check, backups])
}

fn backup(latest: Option<&Backup>) -> Check {
    const NAME: &str = "logs.backups";
    let Some(latest) = latest else {
        return Check::skipped(
            NAME,
            "No backup was made with `attesto backup`; others are not known here.",
        );
    };
    let told = format!("The newest backup was made {} days ago", latest.age_days);
    if latest.sound == Some(false) {
        Check::fail(
            NAME,
            format!("{told} and cannot be restored."),
            "Make another one and prove it: `attesto backup create`, `attesto backup verify`.",
        )
    } else if latest.age_days > OLD_BACKUP {
        Check::warn(
            NAME,
            format!("{told}."),
            "`attesto backup create`; once a day is usual.",
        )
    } else if latest.proven_days.is_none_or(|days| days > OLD_PROOF) {
        Check::warn(
            NAME,
            format!("{told}; none was proven to be restorable for {OLD_PROOF} days."),
            "`attesto backup verify` restores one into a scratch database and compares.",
        )
    } else {
        Check::ok(NAME, format!("{told}."))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Status;

    #[test]
    fn backups_are_to_be_fresh_and_proven() {
        let judged = |age_days, proven_days, sound| {
            backup(Some(&Backup {
                age_days,
                proven_days,
                sound,
            }))
            .status
        };
        assert_eq!(backup(None).status, Status::Skipped);
        assert_eq!(judged(1, Some(3), None), Status::Ok);
        assert_eq!(judged(9, Some(3), None), Status::Warn);
        assert_eq!(judged(1, Some(99), None), Status::Warn);
        assert_eq!(judged(1, None, None), Status::Warn);
        assert_eq!(judged(1, Some(1), Some(false)), Status::Fail);
    }
}
