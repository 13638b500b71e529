//! A round over all callbacks.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::result::{RESULTS, word};
use super::store::{self, Callback};
use crate::db::{Database, Error, error_class};
use crate::deliveries::sender::{Probe, Sender};
use crate::deliveries::{guard::AllowList, hold};
use crate::id::TenantId;

/// So many are connected to at once.
const AT_ONCE: usize = 8;
/// Between two beginnings.
const PACE: Duration = Duration::from_millis(50);
/// So many are read at once.
const PAGE: i64 = 100;

/// How many callbacks are how, by the words of [`RESULTS`].
pub type Tally = BTreeMap<&'static str, u64>;

/// How a round ended.
#[derive(Debug)]
pub enum Round {
    /// At its end, or when it was stopped.
    Whole {
        /// What was found.
        tally: Tally,
        /// Of how many callbacks it could not be kept what was found: they are looked at again.
        not_kept: u64,
    },
    /// Deliveries are held, and nobody, or nobody any more, was connected to.
    Held(hold::Hold),
}

/// Looks at every active callback, until `stop` or until deliveries are held. One to which something was delivered within
/// `every` is left alone, if it was looked at within a day, and so is one that was looked at within `known_for`, which counts
/// as what was found then. `lead` is how far ahead of the database's clock the caller lives.
pub async fn go_round(
    database: &Database,
    sender: &Sender,
    every: Duration,
    known_for: Option<Duration>,
    lead: Duration,
    stop: &CancellationToken,
) -> Result<Round, Error> {
    let mut notes = Notes {
        database,
        lead,
        tally: RESULTS.iter().map(|word| (*word, 0)).collect(),
        not_kept: 0,
    };
    let mut after: Option<TenantId> = None;
    loop {
        if let Some(hold) = hold::store::standing(database).await? {
            return Ok(Round::Held(hold));
        }
        let page = store::page(database, after.as_ref(), every, known_for, lead, PAGE).await?;
        let Some(last) = page.last() else {
            return Ok(notes.whole());
        };
        after = Some(last.tenant.clone());
        let mut looking = JoinSet::new();
        for callback in page {
            if let Some(word) = callback.known() {
                notes.count(word);
                continue;
            }
            while looking.len() >= AT_ONCE {
                notes.take(&mut looking).await;
            }
            if stop.run_until_cancelled(sleep(PACE)).await.is_none() {
                return Ok(notes.whole());
            }
            let sender = sender.clone();
            looking.spawn(async move {
                let allowed = AllowList::new(callback.allowed.clone());
                let probe = sender.probe(&callback.url, &allowed).await;
                (callback, probe)
            });
        }
        while !looking.is_empty() {
            notes.take(&mut looking).await;
        }
    }
}

/// What was found so far.
struct Notes<'a> {
    database: &'a Database,
    lead: Duration,
    tally: Tally,
    not_kept: u64,
}

impl Notes<'_> {
    fn count(&mut self, word: &'static str) {
        *self.tally.entry(word).or_default() += 1;
    }

    /// Waits for one look and keeps what it found. Where that fails the others are looked at all the same.
    async fn take(&mut self, looking: &mut JoinSet<(Callback, Probe)>) {
        // One that panicked is nobody's result.
        let Some(Ok((callback, probe))) = looking.join_next().await else {
            return;
        };
        self.count(word(&probe));
        let Err(error) = store::keep(self.database, &callback, &probe, self.lead).await else {
            return;
        };
        if self.not_kept == 0 {
            let class = error_class(&error);
            tracing::warn!(tenantId = %callback.tenant, cause = %error, causeClass = class,
                "could not keep what was found of a callback; the run's `notKept` says of how many");
        }
        self.not_kept += 1;
    }

    fn whole(self) -> Round {
        Round::Whole {
            tally: self.tally,
            not_kept: self.not_kept,
        }
    }
}
