//! A round over all callbacks.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::store::{self, Callback};
use crate::db::{Database, Error};
use crate::deliveries::sender::{Probe, Sender};
use crate::deliveries::{Class, guard::AllowList};
use crate::id::TenantId;

/// So many are connected to at once.
const AT_ONCE: usize = 8;
/// Between two beginnings.
const PACE: Duration = Duration::from_millis(50);
/// So many are read at once.
const PAGE: i64 = 100;

/// Every word under which a callback is counted: events were delivered to it lately, it can be reached, why not, or this
/// machine could not find out.
pub const RESULTS: [&str; 8] = [
    "delivered",
    "reachable",
    "dns",
    "connect",
    "tls",
    "blocked",
    "timeout",
    "unknown",
];

/// How many callbacks are how, by the words of [`RESULTS`].
pub type Tally = BTreeMap<&'static str, u64>;

/// Looks at every active callback, until `stop`. One to which something was delivered within `every` is left alone, if it
/// was looked at within a day. `lead` is how far ahead of the database's clock the caller lives.
pub async fn go_round(
    database: &Database,
    sender: &Sender,
    every: Duration,
    lead: Duration,
    stop: &CancellationToken,
) -> Result<Tally, Error> {
    let mut tally: Tally = RESULTS.iter().map(|word| (*word, 0)).collect();
    let mut after: Option<TenantId> = None;
    loop {
        let page = store::page(database, after.as_ref(), every, lead, PAGE).await?;
        let Some(last) = page.last() else {
            return Ok(tally);
        };
        after = Some(last.tenant.clone());
        let mut looking = JoinSet::new();
        for callback in page {
            if callback.is_well {
                *tally.entry("delivered").or_default() += 1;
                continue;
            }
            while looking.len() >= AT_ONCE {
                note(database, &mut looking, &mut tally, lead).await?;
            }
            if stop.run_until_cancelled(sleep(PACE)).await.is_none() {
                return Ok(tally);
            }
            let sender = sender.clone();
            looking.spawn(async move {
                let allowed = AllowList::new(callback.allowed.clone());
                let probe = sender.probe(&callback.url, &allowed).await;
                (callback, probe)
            });
        }
        while !looking.is_empty() {
            note(database, &mut looking, &mut tally, lead).await?;
        }
    }
}

/// Waits for one look and keeps what it found.
async fn note(
    database: &Database,
    looking: &mut JoinSet<(Callback, Probe)>,
    tally: &mut Tally,
    lead: Duration,
) -> Result<(), Error> {
    // One that panicked is nobody's result.
    let Some(Ok((callback, probe))) = looking.join_next().await else {
        return Ok(());
    };
    *tally.entry(word(&probe)).or_default() += 1;
    store::keep(database, &callback, &probe, lead).await
}

/// The word for what a look found.
pub(super) fn word(probe: &Probe) -> &'static str {
    match probe {
        Probe::Reachable { .. } => "reachable",
        Probe::Unreachable { class, .. } => match class {
            Class::Dns => "dns",
            Class::Tls => "tls",
            Class::Blocked => "blocked",
            Class::Timeout => "timeout",
            _ => "connect",
        },
        Probe::Unknown => "unknown",
    }
}
