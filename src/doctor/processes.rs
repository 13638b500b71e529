//! Who serves, and what runs periodically.

use std::collections::BTreeSet;
use std::time::Duration;

use super::check_result::query_failed;
use super::check_result::{CheckResult, pluralize_count};
use crate::base::clock::{Clock, Timestamp};
use crate::config::settings::ExpiryThresholds;
use crate::db::Database;
use crate::jobs::{LastJobRun, list_last_runs};
use crate::replicas::live_replicas::format_name_list;
use crate::replicas::{LiveReplicas, Replica};
use crate::watch::expiry::{self, certificate_advice, certificate_name, is_expiring_soon};

/// A job that is this late beside its interval does not run any more.
const MAX_JOB_DELAY: Duration = Duration::from_mins(10);

/// Looks.
pub async fn check_processes(
    database: &Database,
    clock: &Clock,
    cadences: Option<&ExpiryThresholds>,
) -> CheckResult {
    let mut checks = Vec::new();
    let mut serving = false;
    match LiveReplicas::load(database, clock.lead()).await {
        Ok(company) => {
            serving = !company.replicas.is_empty();
            checks.extend(check_live_replicas(&company.replicas));
            if let Some(cadences) = cadences {
                checks.extend(check_replica_certificates(
                    &company.replicas,
                    clock.now(),
                    cadences,
                ));
            }
        }
        Err(error) => checks.push(query_failed("processes.serving", &error)),
    }
    match list_last_runs(database, clock.lead()).await {
        Ok(runs) => checks.extend(runs.iter().map(|run| check_last_job_run(run, serving))),
        Err(error) => checks.push(query_failed("processes.jobs", &error)),
    }
    CheckResult::group("processes", "Processes and jobs", checks)
}

fn check_live_replicas(replicas: &[Replica]) -> Vec<CheckResult> {
    const NAME: &str = "processes.serving";
    if replicas.is_empty() {
        return vec![CheckResult::warn(
            NAME,
            "No process serves on this database.",
            "Start `attesto serve`; if it should run, its last log lines say why it does not.",
        )];
    }
    let count = i64::try_from(replicas.len()).unwrap_or(i64::MAX);
    let mut checks = vec![CheckResult::ok(
        NAME,
        format!(
            "{} here.",
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
                "They are of different releases: {}.",
                format_name_list(&versions)
            ),
            "All right while an upgrade is rolled out; otherwise finish it.",
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
                    "Some seal with encryption key {id}, which {} cannot open.",
                    format_name_list(&without)
                ),
                "Add that key to ATTESTO_ENCRYPTION_KEYS_RETIRED there, and restart.",
            ));
        }
    }
    if ids.len() > 1 {
        checks.push(CheckResult::warn(
            "processes.keys",
            "They seal with different encryption keys.",
            "All right while a rotation is rolled out; otherwise set the same ATTESTO_ENCRYPTION_KEY everywhere.",
        ));
    }
    checks
}

/// Those that the processes tell of. Whether Apple's root ends is looked at here, with the settings of here.
fn check_replica_certificates(
    replicas: &[Replica],
    now: Timestamp,
    cadences: &ExpiryThresholds,
) -> Vec<CheckResult> {
    const NAME: &str = "processes.certificates";
    let mut checks = Vec::new();
    for (name, end) in expiry::earliest_certificate_expiries(replicas) {
        let what = match name.as_str() {
            certificate_name::APPLE_ROOT => continue,
            certificate_name::APPLE_LEAF => "The certificate that Apple signs with",
            certificate_name::LISTENER => "The listener's own certificate",
            _ => "A certificate of a newer release's",
        };
        let advice = certificate_advice(&name);
        checks.push(if end <= now && name == certificate_name::LISTENER {
            CheckResult::fail(NAME, format!("{what} ended on {end}."), advice)
        } else if is_expiring_soon(&name, end, now, cadences) {
            CheckResult::warn(NAME, format!("{what} ends on {end}."), advice)
        } else {
            CheckResult::ok(NAME, format!("{what} ends on {end}."))
        });
    }
    checks
}

fn check_last_job_run(run: &LastJobRun, serving: bool) -> CheckResult {
    const NAME: &str = "processes.jobs";
    let job = &run.job;
    let see = format!("`attesto jobs list` shows it, `attesto jobs run {job}` runs it now.");
    match run.outcome.as_deref() {
        Some("failed") => {
            let why = run.error.as_deref().unwrap_or("it did not say why");
            let why = why.lines().next().unwrap_or_default();
            CheckResult::warn(
                NAME,
                format!("The job {job} failed when it last ran: {why}."),
                see,
            )
        }
        None if run.is_lapsed => CheckResult::warn(
            NAME,
            format!("The process that ran the job {job} on {} died.", run.host),
            see,
        ),
        _ => match run.interval {
            Some(every) if serving && run.age > every * 2 + MAX_JOB_DELAY => CheckResult::warn(
                NAME,
                format!(
                    "The job {job} should have run again by now; it last did {} h ago.",
                    run.age.as_secs() / 3600
                ),
                "Is JOBS_DISABLED set in every process? One has to run them.",
            ),
            _ => CheckResult::ok(NAME, format!("The job {job} ran as it should.")),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::base::id::ReplicaId;
    use crate::doctor::CheckStatus;

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
        }
    }

    #[test]
    fn processes_that_differ_are_noticed() {
        let statuses = |replicas: &[Replica]| {
            let found = check_live_replicas(replicas);
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
        for (status, run, serving) in [
            (CheckStatus::Ok, run(Some("done"), 1, true), true),
            (CheckStatus::Warn, run(Some("done"), 3, true), true),
            (CheckStatus::Ok, run(Some("done"), 3, true), false),
            (CheckStatus::Warn, run(Some("failed"), 0, true), true),
            (CheckStatus::Warn, run(None, 0, true), true),
            (CheckStatus::Ok, run(None, 0, false), true),
        ] {
            assert_eq!(check_last_job_run(&run, serving).status, status, "{run:?}");
        }
    }
}
