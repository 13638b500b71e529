//! Counts what was lost, duplicated or unexpected after a run.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::time::{Duration, Instant};

use attesto::credentials::sealed_value_check;
use attesto::db::Database;

use super::pusher::Accepted;
use super::stage::Stage;

/// Everything must have arrived within this time: two leases, a sweep, and the first retry delay.
const PATIENCE: Duration = Duration::from_mins(3);

/// The result of a run.
pub(crate) struct Verdict {
    faults: usize,
    accepted: usize,
    delivered: usize,
    lost: Vec<String>,
    unexpected: Vec<String>,
    duplicated: usize,
    unexplained: Vec<String>,
    recovered: usize,
    unsigned: usize,
    interrupted: usize,
    complaints: Vec<String>,
    /// Sealed values that open with the newest key alone, and those that do not.
    opened: u64,
    unopened: Vec<String>,
    /// From the 200 to the store until the callback's 200: median, 99th percentile and maximum.
    lag: [Duration; 3],
    /// The same for events whose delivery was interrupted by a killed process.
    interrupted_lag: [Duration; 3],
}

impl Verdict {
    pub(crate) fn is_clean(&self) -> bool {
        self.lost.is_empty()
            && self.unexpected.is_empty()
            && self.unexplained.is_empty()
            && self.complaints.is_empty()
            && self.unopened.is_empty()
            && self.opened > 0
            && self.unsigned == 0
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = BTreeMap::from([
            ("1 lost", self.lost.len()),
            ("2 unexpected", self.unexpected.len()),
            ("3 duplicated", self.duplicated),
            ("4 recovered", self.recovered),
        ]);
        writeln!(
            f,
            "{} faults, {} accepted, {} delivered",
            self.faults, self.accepted, self.delivered
        )?;
        for (name, count) in counts {
            writeln!(f, "{:<12}{count}", &name[2..])?;
        }
        let [median, most, longest] = self.lag.map(|lag| lag.as_secs_f64());
        writeln!(
            f,
            "from accepted to delivered: median {median:.3} s, 99 % {most:.3} s, longest {longest:.1} s"
        )?;
        let [median, _, longest] = self.interrupted_lag.map(|lag| lag.as_secs_f64());
        writeln!(
            f,
            "{} deliveries were interrupted: median {median:.1} s, longest {longest:.1} s",
            self.interrupted
        )?;
        for (what, which) in [
            ("lost", &self.lost),
            ("unexpected", &self.unexpected),
            (
                "delivered twice, and nothing explains it",
                &self.unexplained,
            ),
            ("a process said", &self.complaints),
            ("does not open with the new key", &self.unopened),
        ] {
            for one in which.iter().take(10) {
                writeln!(f, "{what}: {one}")?;
            }
        }
        writeln!(
            f,
            "{} sealed values open with the newest key alone",
            self.opened
        )?;
        if self.unsigned > 0 {
            writeln!(f, "{} signatures do not verify", self.unsigned)?;
        }
        write!(
            f,
            "{}",
            if self.is_clean() {
                "clean"
            } else {
                "NOT CLEAN"
            }
        )
    }
}

/// Delivered events that no notification was accepted for. A state that was not known when its event was stored is told by an event
/// of its own, which is expected.
async fn find_unexpected<A>(
    stage: &Stage,
    taken: &HashMap<String, Vec<Instant>>,
    accepted: &HashMap<String, A>,
) -> Vec<String> {
    let others: Vec<&String> = taken
        .keys()
        .filter(|event| !accepted.contains_key(*event))
        .collect();
    sqlx::query_scalar(
        "select one.id || coalesce(' (' || stored.platform_event || ')', ' (not stored)')
            from unnest($1::text[]) one (id) left join webhook_events stored on stored.id = one.id
            where stored.external_id is null or not exists (
                select from unnest($2::text[]) accepted (id) where stored.external_id = 'state:' || accepted.id
            )",
    )
    .bind(others)
    .bind(accepted.keys().collect::<Vec<_>>())
    .fetch_all(stage.database.pool())
    .await
    .expect("the database is there again")
}

/// Events that may be delivered twice: a delivery was begun and its end not recorded, because the process ended or the database was
/// away meanwhile.
pub(crate) async fn interrupted_events(database: &Database) -> HashSet<String> {
    let events: Vec<String> = sqlx::query_scalar(
        "select event_id from webhook_deliveries where lease_no > attempt_count",
    )
    .fetch_all(database.pool())
    .await
    .expect("the database is there again");
    events.into_iter().collect()
}

/// Waits until every accepted event has arrived or the time is over, then counts. With `hurry`,
/// refused deliveries are retried at once.
pub(crate) async fn judge(
    stage: &Stage,
    accepted: &Accepted,
    faults: usize,
    hurry: bool,
) -> Verdict {
    let accepted = accepted.all();
    let begun = Instant::now();
    let missing = |stage: &Stage| {
        stage.receivers.seen(|seen| {
            let missing = accepted
                .keys()
                .filter(|event| !seen.taken.contains_key(*event));
            missing.cloned().collect::<Vec<_>>()
        })
    };
    while !missing(stage).is_empty() && begun.elapsed() < PATIENCE {
        if hurry {
            stage.end_pauses().await;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // A duplicate arrives soon, or after the last lease has expired.
    let open = "select count(*) from webhook_deliveries where status = 'pending'";
    while begun.elapsed() < PATIENCE {
        let left = sqlx::query_scalar(open)
            .fetch_one(stage.database.pool())
            .await;
        if left.is_ok_and(|left: i64| left == 0) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let cut_off = interrupted_events(&stage.database).await;
    let taken: HashMap<String, Vec<Instant>> = stage.receivers.seen(|seen| seen.taken.clone());
    let lag = |events: &mut dyn Iterator<Item = &String>| {
        let mut lags: Vec<Duration> = events
            .filter_map(|event| Some(*taken.get(event)?.first()? - accepted.get(event)?.at))
            .collect();
        lags.sort();
        let last = lags.len().saturating_sub(1);
        [50, 99, 100].map(|share| lags.get(last * share / 100).copied().unwrap_or_default())
    };
    let twice: Vec<&String> = taken
        .iter()
        .filter(|(_, answers)| answers.len() > 1)
        .map(|(event, _)| event)
        .collect();
    let unexpected = find_unexpected(stage, &taken, &accepted).await;
    let proofs =
        sealed_value_check::check_sealed_values(&stage.database, &stage.keyring(), i64::MAX)
            .await
            .expect("the database is there again");
    Verdict {
        opened: proofs.iter().map(|proof| proof.opened).sum(),
        unopened: proofs
            .iter()
            .flat_map(|proof| &proof.failures)
            .map(|it| format!("{}.{} of {}", it.column.table, it.column.column, it.row))
            .collect(),
        faults,
        accepted: accepted.len(),
        delivered: taken.len(),
        lost: missing(stage),
        unexpected,
        duplicated: twice.len(),
        unexplained: twice
            .into_iter()
            .filter(|event| !cut_off.contains(event.as_str()))
            .cloned()
            .collect(),
        recovered: accepted.values().filter(|one| one.failures > 0).count(),
        unsigned: stage.receivers.seen(|seen| seen.unsigned),
        interrupted: cut_off.len(),
        complaints: stage
            .replicas
            .iter()
            .flat_map(super::replica::Replica::complaints)
            .collect(),
        lag: lag(&mut accepted.keys()),
        interrupted_lag: lag(&mut accepted
            .keys()
            .filter(|event| cut_off.contains(event.as_str()))),
    }
}
