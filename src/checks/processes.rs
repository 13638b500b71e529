//! The group `processes`: the processes that serve with this database, and whether the jobs run.

use std::collections::BTreeSet;
use std::time::Duration;

use super::check_result::{CheckResult, pluralize_count};
use super::expiry::{self, certificate_advice, certificate_name, is_expiring_soon};
use super::runner::DatabaseContext;
use crate::base::clock::Timestamp;
use crate::base::error::to_sentence;
use crate::config::groups::ExpiryThresholds;
use crate::db::Error;
use crate::jobs::{LastJobRun, list_last_runs};
use crate::replicas::live_replicas::format_name_list;
use crate::replicas::{LiveReplicas, Replica};

/// A job that was last run more than twice its interval plus this time ago no longer runs.
const MAX_JOB_DELAY: Duration = Duration::from_mins(10);

pub(super) async fn load_job_runs(
    context: &DatabaseContext,
) -> Result<(LiveReplicas, Vec<LastJobRun>), Error> {
    let live = LiveReplicas::load(&context.database).await?;
    Ok((live, list_last_runs(&context.database).await?))
}

pub(super) fn judge_replicas(replicas: &[Replica], context: &DatabaseContext) -> Vec<CheckResult> {
    let mut results = judge_live_replicas(replicas);
    results.extend(judge_delivering(replicas));
    if let Some(thresholds) = &context.thresholds {
        results.extend(judge_certificates(
            replicas,
            context.clock.now(),
            thresholds,
        ));
    }
    results
}

fn judge_live_replicas(replicas: &[Replica]) -> Vec<CheckResult> {
    const NAME: &str = "processes.serving";
    if replicas.is_empty() {
        return vec![CheckResult::warn(
            NAME,
            "No process serves with this database.",
            "Start `attesto serve`; if it should be running, its last log lines say why it is not.",
        )];
    }
    let count = i64::try_from(replicas.len()).unwrap_or(i64::MAX);
    let mut checks = vec![CheckResult::ok(
        NAME,
        format!(
            "{} with this database.",
            pluralize_count(count, "process serves", "processes serve")
        ),
    )];
    let versions: BTreeSet<&str> = replicas
        .iter()
        .map(|replica| replica.version.as_str())
        .collect();
    if versions.len() > 1 {
        checks.push(CheckResult::warn(
            "processes.releases",
            format!(
                "The processes run different releases: {}.",
                format_name_list(&versions)
            ),
            "This is normal while an upgrade is rolled out; otherwise finish it.",
        ));
    }
    let ids: BTreeSet<u8> = replicas
        .iter()
        .map(|replica| replica.sealing_key_id)
        .collect();
    for id in &ids {
        let without: BTreeSet<&str> = replicas
            .iter()
            .filter(|replica| !replica.opening_key_ids.contains(id))
            .map(|replica| replica.host.as_str())
            .collect();
        if !without.is_empty() {
            checks.push(CheckResult::fail(
                "processes.keys",
                format!(
                    "Some processes seal with encryption key {id}, which {} cannot open.",
                    format_name_list(&without)
                ),
                "Add that key to ATTESTO_ENCRYPTION_KEYS_RETIRED there, and restart.",
            ));
        }
    }
    if ids.len() > 1 {
        checks.push(CheckResult::warn(
            "processes.keys",
            "The processes seal with different encryption keys.",
            "This is normal while a rotation is rolled out; otherwise set the same ATTESTO_ENCRYPTION_KEY everywhere.",
        ));
    }
    checks
}

/// Whether the processes deliver what they take in. `None` without a process.
fn judge_delivering(replicas: &[Replica]) -> Option<CheckResult> {
    const NAME: &str = "processes.delivering";
    const ADVICE: &str = "`waiting: too many connections` or `no free connection`: does the role have a connection limit? A process needs as many connections as `max` in its DATABASE_URL says. `not checked yet`: `database_unavailable` or `wrong_encryption_key` in its log says why. `off`: WEBHOOK_DISPATCHER_DISABLED is set there.";
    let notice = |replica: &Replica| {
        let notice = replica.notices.deliveries.as_deref()?;
        Some(format!("{} ({notice})", replica.host))
    };
    let silent: Vec<_> = replicas.iter().filter_map(notice).collect();
    let is_waiting = |replica: &Replica| {
        let notice = replica.notices.deliveries.as_deref();
        notice.is_some_and(|notice| !notice.starts_with("off"))
    };
    let names: BTreeSet<&str> = silent.iter().map(String::as_str).collect();
    let names = format_name_list(&names);
    if replicas.is_empty() {
        None
    } else if silent.len() == replicas.len() {
        Some(CheckResult::fail(
            NAME,
            format!("Notifications are taken in, and no process delivers them: {names}."),
            ADVICE,
        ))
    } else if replicas.iter().any(is_waiting) {
        Some(CheckResult::warn(
            NAME,
            format!("Not every process delivers: {names}."),
            ADVICE,
        ))
    } else {
        Some(CheckResult::ok(NAME, "Deliveries are sent."))
    }
}

/// Judges the certificates that processes report, except Apple's root: `stores.roots` checks that with the settings of
/// this machine.
fn judge_certificates(
    replicas: &[Replica],
    now: Timestamp,
    thresholds: &ExpiryThresholds,
) -> Vec<CheckResult> {
    const NAME: &str = "processes.certificates";
    let mut checks = Vec::new();
    for (name, validity) in expiry::earliest_certificate_expiries(replicas) {
        let end = validity.not_after;
        let what = match name.as_str() {
            certificate_name::APPLE_ROOT => continue,
            certificate_name::APPLE_LEAF => "Apple's signing certificate",
            certificate_name::LISTENER => "The listener's certificate",
            _ => "A certificate that a newer release reports",
        };
        let advice = certificate_advice(&name);
        checks.push(if end <= now && name == certificate_name::LISTENER {
            CheckResult::fail(NAME, format!("{what} ended on {end}."), advice)
        } else if is_expiring_soon(&name, validity, now, thresholds) {
            CheckResult::warn(NAME, format!("{what} ends on {end}."), advice)
        } else {
            CheckResult::ok(NAME, format!("{what} ends on {end}."))
        });
    }
    checks
}

pub(super) fn judge_last_run(run: &LastJobRun, is_serving: bool) -> CheckResult {
    const NAME: &str = "processes.jobs";
    let job = &run.job;
    let advice = format!("`attesto jobs list` shows it, `attesto jobs run {job}` runs it now.");
    match run.outcome.as_deref() {
        Some("failed") => {
            let cause = run.error.as_deref().unwrap_or("no cause was recorded");
            let cause = cause.lines().next().unwrap_or_default();
            CheckResult::warn(
                NAME,
                format!(
                    "The job {job} failed when it last ran: {}",
                    to_sentence(cause)
                ),
                advice,
            )
        }
        None if run.is_lapsed => CheckResult::warn(
            NAME,
            format!("The process that ran the job {job} on {} died.", run.host),
            advice,
        ),
        _ => match run.interval {
            Some(every) if is_serving && run.age > every * 2 + MAX_JOB_DELAY => CheckResult::warn(
                NAME,
                format!(
                    "The job {job} should have run again by now; its last run was {} h ago.",
                    run.age.as_secs() / 3600
                ),
                "Is JOBS_DISABLED set in every process? At least one must run the jobs.",
            ),
            _ => CheckResult::ok(NAME, format!("The job {job} runs on schedule.")),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::base::id::ReplicaId;
    use crate::checks::CheckStatus;

    fn replica(host: &str, version: &str, seals: u8, opens: &[u8]) -> Replica {
        let now = Timestamp::from_millis(0);
        Replica {
            id: ReplicaId::mint(now),
            host: host.to_owned(),
            pid: 1,
            version: version.to_owned(),
            started_at: now,
            seen_at: now,
            sealing_key_id: seals,
            opening_key_ids: opens.to_vec(),
            settings: BTreeMap::new(),
            certificates: BTreeMap::new(),
            notices: crate::replicas::ReplicaNotices::default(),
        }
    }

    #[test]
    fn processes_that_only_receive_are_noticed() {
        let with = |notice: Option<&str>| {
            let mut replica = replica("a", "1", 1, &[1]);
            replica.notices.deliveries = notice.map(str::to_owned);
            replica
        };
        let (off, waiting) = (
            Some("off: this process only receives"),
            Some("waiting: too many connections"),
        );
        for (expected, notices) in [
            (None, &[][..]),
            (Some(CheckStatus::Ok), &[None, None][..]),
            (Some(CheckStatus::Ok), &[None, off][..]),
            (Some(CheckStatus::Warn), &[None, waiting][..]),
            (Some(CheckStatus::Fail), &[off, waiting][..]),
            (Some(CheckStatus::Fail), &[off][..]),
        ] {
            let replicas: Vec<_> = notices.iter().map(|notice| with(*notice)).collect();
            let found = judge_delivering(&replicas).map(|check| check.status);
            assert_eq!(found, expected, "{notices:?}");
        }
    }

    #[test]
    fn processes_that_differ_are_noticed() {
        let statuses = |replicas: &[Replica]| {
            let found = judge_live_replicas(replicas);
            found
                .iter()
                .map(|check| (check.name, check.status))
                .collect::<Vec<_>>()
        };
        assert_eq!(statuses(&[]), [("processes.serving", CheckStatus::Warn)]);
        let same = [replica("a", "1", 1, &[1]), replica("b", "1", 1, &[1])];
        assert_eq!(statuses(&same), [("processes.serving", CheckStatus::Ok)]);
        let rolling = [replica("a", "1", 1, &[1, 2]), replica("b", "2", 2, &[1, 2])];
        assert_eq!(
            statuses(&rolling),
            [
                ("processes.serving", CheckStatus::Ok),
                ("processes.releases", CheckStatus::Warn),
                ("processes.keys", CheckStatus::Warn)
            ]
        );
        let apart = [replica("a", "1", 1, &[1]), replica("b", "1", 2, &[1, 2])];
        assert!(statuses(&apart).contains(&("processes.keys", CheckStatus::Fail)));
    }

    #[test]
    fn jobs_that_fail_or_do_not_run_are_noticed() {
        let run = |outcome: Option<&str>, hours: u64, is_lapsed: bool| LastJobRun {
            id: 1,
            job: "retention".to_owned(),
            host: "a".to_owned(),
            interval: Some(Duration::from_hours(1)),
            started_at: Timestamp::from_millis(0),
            finished_at: None,
            outcome: outcome.map(str::to_owned),
            summary: None,
            error: None,
            age: Duration::from_hours(hours),
            is_lapsed,
        };
        for (status, run, is_serving) in [
            (CheckStatus::Ok, run(Some("done"), 1, true), true),
            (CheckStatus::Warn, run(Some("done"), 3, true), true),
            (CheckStatus::Ok, run(Some("done"), 3, true), false),
            (CheckStatus::Warn, run(Some("failed"), 0, true), true),
            (CheckStatus::Warn, run(None, 0, true), true),
            (CheckStatus::Ok, run(None, 0, false), true),
        ] {
            assert_eq!(judge_last_run(&run, is_serving).status, status, "{run:?}");
        }
    }
}
