//! Who serves, and what runs periodically.

use std::collections::BTreeSet;
use std::time::Duration;

use super::finding::unanswered;
use super::finding::{Check, counted};
use crate::clock::{Clock, Timestamp};
use crate::config::settings::Cadences;
use crate::db::Database;
use crate::jobs::{LastRun, last_runs};
use crate::replicas::company::listed;
use crate::replicas::{Company, Replica};
use crate::watch::expiry::{self, certificate, certificate_advice, ends_soon};

/// A job that is this late beside its interval does not run any more.
const LATE: Duration = Duration::from_mins(10);

/// Looks.
pub async fn look(database: &Database, clock: &Clock, cadences: Option<&Cadences>) -> Check {
    let mut checks = Vec::new();
    let mut serving = false;
    match Company::present(database, clock.lead()).await {
        Ok(company) => {
            serving = !company.replicas.is_empty();
            checks.extend(company_checks(&company.replicas));
            if let Some(cadences) = cadences {
                checks.extend(certificates(&company.replicas, clock.now(), cadences));
            }
        }
        Err(error) => checks.push(unanswered("processes.serving", &error)),
    }
    match last_runs(database, clock.lead()).await {
        Ok(runs) => checks.extend(runs.iter().map(|run| job(run, serving))),
        Err(error) => checks.push(unanswered("processes.jobs", &error)),
    }
    Check::group("processes", "Processes and jobs", checks)
}

fn company_checks(replicas: &[Replica]) -> Vec<Check> {
    const NAME: &str = "processes.serving";
    if replicas.is_empty() {
        return vec![Check::warn(
            NAME,
            "No process serves on this database.",
            "Start `attesto serve`; if it should run, its last log lines say why it does not.",
        )];
    }
    let count = i64::try_from(replicas.len()).unwrap_or(i64::MAX);
    let mut checks = vec![Check::ok(
        NAME,
        format!(
            "{} here.",
            counted(count, "process serves", "processes serve")
        ),
    )];
    let versions: BTreeSet<&str> = replicas
        .iter()
        .map(|replica| replica.version.as_str())
        .collect();
    if versions.len() > 1 {
        checks.push(Check::warn(
            "processes.releases",
            format!("They are of different releases: {}.", listed(&versions)),
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
            checks.push(Check::fail(
                "processes.keys",
                format!(
                    "Some seal with encryption key {id}, which {} cannot open.",
                    listed(&without)
                ),
                "Add that key to ATTESTO_ENCRYPTION_KEYS_RETIRED there, and restart.",
            ));
        }
    }
    if ids.len() > 1 {
        checks.push(Check::warn(
            "processes.keys",
            "They seal with different encryption keys.",
            "All right while a rotation is rolled out; otherwise set the same ATTESTO_ENCRYPTION_KEY everywhere.",
        ));
    }
    checks
}

/// Those that the processes tell of. Whether Apple's root ends is looked at here, with the settings of here.
fn certificates(replicas: &[Replica], now: Timestamp, cadences: &Cadences) -> Vec<Check> {
    const NAME: &str = "processes.certificates";
    let mut checks = Vec::new();
    for (name, end) in expiry::certificates(replicas) {
        let what = match name.as_str() {
            certificate::APPLE_ROOT => continue,
            certificate::APPLE_LEAF => "The certificate that Apple signs with",
            certificate::LISTENER => "The listener's own certificate",
            _ => "A certificate of a newer release's",
        };
        let advice = certificate_advice(&name);
        checks.push(if end <= now && name == certificate::LISTENER {
            Check::fail(NAME, format!("{what} ended on {end}."), advice)
        } else if ends_soon(&name, end, now, cadences) {
            Check::warn(NAME, format!("{what} ends on {end}."), advice)
        } else {
            Check::ok(NAME, format!("{what} ends on {end}."))
        });
    }
    checks
}

fn job(run: &LastRun, serving: bool) -> Check {
    const NAME: &str = "processes.jobs";
    let job = &run.job;
    let see = format!("`attesto jobs list` shows it, `attesto jobs run {job}` runs it now.");
    match run.outcome.as_deref() {
        Some("failed") => {
            let why = run.error.as_deref().unwrap_or("it did not say why");
            let why = why.lines().next().unwrap_or_default();
            Check::warn(
                NAME,
                format!("The job {job} failed when it last ran: {why}."),
                see,
            )
        }
        None if run.is_lapsed => Check::warn(
            NAME,
            format!("The process that ran the job {job} on {} died.", run.host),
            see,
        ),
        _ => match run.interval {
            Some(every) if serving && run.age > every * 2 + LATE => Check::warn(
                NAME,
                format!(
                    "The job {job} should have run again by now; it last did {} h ago.",
                    run.age.as_secs() / 3600
                ),
                "Is JOBS_DISABLED set in every process? One has to run them.",
            ),
            _ => Check::ok(NAME, format!("The job {job} ran as it should.")),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::doctor::Status;
    use crate::id::ReplicaId;

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
            let found = company_checks(replicas);
            found
                .iter()
                .map(|check| (check.name, check.status))
                .collect::<Vec<_>>()
        };
        assert_eq!(statuses(&[]), [("processes.serving", Status::Warn)]);
        let same = [replica("a", "1", 1, &[1]), replica("b", "1", 1, &[1])];
        assert_eq!(statuses(&same), [("processes.serving", Status::Ok)]);
        let rolling = [replica("a", "1", 1, &[1, 2]), replica("b", "2", 2, &[1, 2])];
        assert_eq!(
            statuses(&rolling),
            [
                ("processes.serving", Status::Ok),
                ("processes.releases", Status::Warn),
                ("processes.keys", Status::Warn)
            ]
        );
        let apart = [replica("a", "1", 1, &[1]), replica("b", "1", 2, &[1, 2])];
        assert!(statuses(&apart).contains(&("processes.keys", Status::Fail)));
    }

    #[test]
    fn jobs_that_fail_or_do_not_run_are_noticed() {
        let run = |outcome: Option<&str>, hours: u64, is_lapsed: bool| LastRun {
            id: 1,
            job: "retention".to_owned(),
            host: "a".to_owned(),
            interval: Some(Duration::from_hours(1)),
            started_at: Timestamp::from_millis(0),
            finished_at: None,
            outcome: outcome.map(str::to_owned),
            told: None,
            error: None,
            age: Duration::from_hours(hours),
            is_lapsed,
        };
        for (status, run, serving) in [
            (Status::Ok, run(Some("done"), 1, true), true),
            (Status::Warn, run(Some("done"), 3, true), true),
            (Status::Ok, run(Some("done"), 3, true), false),
            (Status::Warn, run(Some("failed"), 0, true), true),
            (Status::Warn, run(None, 0, true), true),
            (Status::Ok, run(None, 0, false), true),
        ] {
            assert_eq!(job(&run, serving).status, status, "{run:?}");
        }
    }
}
