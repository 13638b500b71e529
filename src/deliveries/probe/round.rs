//! A round over all callbacks.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::result::{PROBE_RESULTS, probe_result};
use super::store::{self, ProbeTarget};
use crate::base::id::TenantId;
use crate::db::{Database, Error, error_class};
use crate::deliveries::hold;
use crate::deliveries::sender::{ProbeOutcome, Sender};
use crate::egress::AllowList;

/// So many are connected to at once.
const MAX_CONCURRENT_PROBES: usize = 8;
/// Between two beginnings.
const PROBE_INTERVAL: Duration = Duration::from_millis(50);
/// So many are read at once.
const PAGE_SIZE: i64 = 100;

/// How many callbacks are how, by the words of [`RESULTS`].
pub type ProbeCounts = BTreeMap<&'static str, u64>;

/// How a round ended.
#[derive(Debug)]
pub enum ProbeRound {
    /// At its end, or when it was stopped.
    Completed {
        /// What was found.
        tally: ProbeCounts,
        /// Of how many callbacks it could not be kept what was found: they are looked at again.
        not_kept: u64,
    },
    /// Deliveries are held, and nobody, or nobody any more, was connected to.
    Held(hold::DeliveryHold),
}

/// Looks at every active callback, until `stop` or until deliveries are held. One to which something was delivered within
/// `every` is left alone, if it was looked at within a day, and so is one that was looked at within `known_for`, which counts
/// as what was found then. `lead` is how far ahead of the database's clock the caller lives.
pub async fn probe_all_callbacks(
    database: &Database,
    sender: &Sender,
    every: Duration,
    known_for: Option<Duration>,
    lead: Duration,
    stop: &CancellationToken,
) -> Result<ProbeRound, Error> {
    let mut notes = ProbeProgress {
        database,
        lead,
        counts: PROBE_RESULTS.iter().map(|word| (*word, 0)).collect(),
        not_kept: 0,
    };
    let mut after: Option<TenantId> = None;
    loop {
        if let Some(hold) = hold::store::load_active_hold(database).await? {
            return Ok(ProbeRound::Held(hold));
        }
        let page =
            store::list_probe_targets(database, after.as_ref(), every, known_for, lead, PAGE_SIZE)
                .await?;
        let Some(last) = page.last() else {
            return Ok(notes.into_completed());
        };
        after = Some(last.tenant.clone());
        let mut looking = JoinSet::new();
        for callback in page {
            if let Some(word) = callback.known_result() {
                notes.count_result(word);
                continue;
            }
            while looking.len() >= MAX_CONCURRENT_PROBES {
                notes.collect_probe(&mut looking).await;
            }
            if stop
                .run_until_cancelled(sleep(PROBE_INTERVAL))
                .await
                .is_none()
            {
                return Ok(notes.into_completed());
            }
            let sender = sender.clone();
            looking.spawn(async move {
                let allowed = AllowList::new(callback.allowed_networks.clone());
                let probe = sender.probe_callback(&callback.url, &allowed).await;
                (callback, probe)
            });
        }
        while !looking.is_empty() {
            notes.collect_probe(&mut looking).await;
        }
    }
}

/// What was found so far.
struct ProbeProgress<'a> {
    database: &'a Database,
    lead: Duration,
    counts: ProbeCounts,
    not_kept: u64,
}

impl ProbeProgress<'_> {
    fn count_result(&mut self, word: &'static str) {
        *self.counts.entry(word).or_default() += 1;
    }

    /// Waits for one look and keeps what it found. Where that fails the others are looked at all the same.
    async fn collect_probe(&mut self, looking: &mut JoinSet<(ProbeTarget, ProbeOutcome)>) {
        // One that panicked is nobody's result.
        let Some(Ok((callback, probe))) = looking.join_next().await else {
            return;
        };
        self.count_result(probe_result(&probe));
        let Err(error) = store::save_probe(self.database, &callback, &probe, self.lead).await
        else {
            return;
        };
        if self.not_kept == 0 {
            let class = error_class(&error);
            tracing::warn!(tenantId = %callback.tenant, cause = %error, causeClass = class,
                "could not keep what was found of a callback; the run's `notKept` says of how many");
        }
        self.not_kept += 1;
    }

    fn into_completed(self) -> ProbeRound {
        ProbeRound::Completed {
            tally: self.counts,
            not_kept: self.not_kept,
        }
    }
}
