//! Probes all callbacks.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::result::{PROBE_RESULTS, probe_result};
use super::store::{self, ProbeTarget};
use crate::base::id::{CallbackNumber, TenantId};
use crate::crypto::keyring::Keyring;
use crate::db::{Database, Error, error_class};
use crate::deliveries::hold;
use crate::deliveries::sender::{ProbeOutcome, Sender};

const MAX_CONCURRENT_PROBES: usize = 8;
/// Between the starts of two probes.
const PROBE_INTERVAL: Duration = Duration::from_millis(50);
const PAGE_SIZE: i64 = 100;

/// The number of callbacks for each of [`PROBE_RESULTS`].
pub(crate) type ProbeCounts = BTreeMap<&'static str, u64>;

/// How a round ended.
#[derive(Debug)]
pub(crate) enum ProbeRound {
    /// All callbacks were probed, or the round was stopped.
    Completed {
        tally: ProbeCounts,
        /// How many results could not be saved. These callbacks are probed again in the next round.
        not_kept: u64,
    },
    /// Deliveries are held, so the round did not start or has ended early.
    Held(hold::DeliveryHold),
}

/// Probes every active callback, until `stop` is cancelled or deliveries are held. These are not probed: a callback to which
/// an event was delivered within `every`, if it was probed within a day, and one that was probed within `known_for`, which
/// counts under its last result. The keys of client certificates are opened with `keyring`.
pub(crate) async fn probe_all_callbacks(
    database: &Database,
    keyring: Option<&Keyring>,
    sender: &Sender,
    every: Duration,
    known_for: Option<Duration>,
    stop: &CancellationToken,
) -> Result<ProbeRound, Error> {
    let mut progress = ProbeProgress {
        database,
        counts: PROBE_RESULTS.iter().map(|word| (*word, 0)).collect(),
        not_kept: 0,
    };
    let mut after: Option<(TenantId, CallbackNumber)> = None;
    loop {
        if let Some(hold) = hold::store::load_active_hold(database).await? {
            return Ok(ProbeRound::Held(hold));
        }
        let page = store::list_probe_targets(
            database,
            keyring,
            after.as_ref(),
            every,
            known_for,
            PAGE_SIZE,
        );
        let page = page.await?;
        let Some(last) = page.last() else {
            return Ok(progress.into_completed());
        };
        after = Some((last.tenant.clone(), last.callback));
        let mut probes = JoinSet::new();
        for callback in page {
            if let Some(word) = callback.known_result() {
                progress.count_result(word);
                continue;
            }
            while probes.len() >= MAX_CONCURRENT_PROBES {
                progress.collect_probe(&mut probes).await;
            }
            if stop
                .run_until_cancelled(sleep(PROBE_INTERVAL))
                .await
                .is_none()
            {
                return Ok(progress.into_completed());
            }
            let sender = sender.clone();
            probes.spawn(async move {
                let shown = callback.client_certificate.as_ref();
                let probe = sender
                    .probe_callback(&callback.url, &callback.allowed, shown)
                    .await;
                (callback, probe)
            });
        }
        while !probes.is_empty() {
            progress.collect_probe(&mut probes).await;
        }
    }
}

struct ProbeProgress<'a> {
    database: &'a Database,
    counts: ProbeCounts,
    not_kept: u64,
}

impl ProbeProgress<'_> {
    fn count_result(&mut self, word: &'static str) {
        *self.counts.entry(word).or_default() += 1;
    }

    /// Waits for one probe and saves its result. The round goes on when that fails.
    async fn collect_probe(&mut self, probes: &mut JoinSet<(ProbeTarget, ProbeOutcome)>) {
        // A probe that panicked has no result.
        let Some(Ok((callback, probe))) = probes.join_next().await else {
            return;
        };
        self.count_result(probe_result(&probe));
        let Err(error) = store::save_probe(self.database, &callback, &probe).await else {
            return;
        };
        if self.not_kept == 0 {
            let class = error_class(&error);
            tracing::warn!(
                tenantId = %callback.tenant,
                callback = callback.callback.column(),
                cause = crate::db::describe_cause(&error),
                causeClass = class,
                hint = "the run's `notKept` says how many results were not saved",
                "probe_result_not_saved"
            );
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
