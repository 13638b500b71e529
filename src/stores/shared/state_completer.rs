//! The loop that tells the states which were not known when their events were stored. Any number of processes can run one on
//! the same database.
//!
//! A round takes due events off the list of [`unresolved`](crate::events::unresolved), asks their stores, and stores an event
//! `purchase.state` for each state that is known now. A process that dies leaves leases behind, which others take over when they
//! have expired.
//!
//! While a store gives no answer for an account, the other events of that account are not asked about either: after each
//! failure the account rests, at most half a minute, or as long as the store says.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, join_all};
use tokio::time::timeout;

use super::worker::ListWorker;
use crate::base::backoff::{Backoff, spread};
use crate::base::clock::Clock;
use crate::base::id::TenantId;
use crate::db::{Database, Error};
use crate::events::unresolved::store::{self, ClaimLimits};
use crate::events::unresolved::{
    LatePurchase, MAX_UNRESOLVED_TIME, StateAnswer, UnresolvedEvent, retry_delay,
};
use crate::events::{EventRecorder, EventSource, RecordError, StateError};

/// What one round asks about at once. A store's own limit for a tenant is far higher.
const CLAIM_LIMITS: ClaimLimits = ClaimLimits {
    events: 16,
    events_per_account: 4,
};
/// For the answer about one event. Much shorter than the lease.
const STATE_TIMEOUT: Duration = Duration::from_secs(8);
/// How long an account rests after its first failure. It doubles up to the maximum.
const FIRST_REST: Duration = Duration::from_secs(2);
const MAX_REST: Duration = Duration::from_secs(30);
/// The longest rest that a store may ask for.
const MAX_REQUESTED_REST: Duration = Duration::from_hours(1);
/// An account that was not asked about for so long begins with [`FIRST_REST`] again.
const FORGET_REST_AFTER: Duration = Duration::from_mins(10);
/// A store may not know yet what it has just sold: a "no" is believed about an event that is older than this.
const MAX_EARLY_TIME: Duration = Duration::from_mins(1);

/// Asks one store about the purchases of its events.
pub(crate) trait StateSource: Send + Sync {
    /// What the purchase of `event` is worth now.
    fn fetch_state<'a>(&'a self, event: &'a UnresolvedEvent) -> BoxFuture<'a, StateAnswer>;
}

/// The stores, each asked about its own events.
#[derive(Clone)]
pub(crate) struct StateSources {
    pub(crate) apple: Arc<dyn StateSource>,
    pub(crate) google: Arc<dyn StateSource>,
}

/// Tells the states that were not known.
pub struct StateCompleter {
    database: Database,
    clock: Clock,
    recorder: EventRecorder,
    sources: StateSources,
    resting: HashMap<(TenantId, EventSource), AccountRest>,
}

/// An account whose store gave no answer when it was asked last.
struct AccountRest {
    backoff: Backoff,
    /// By the uptime of this process.
    ends_at: Duration,
}

/// What one round did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CompletionRound {
    /// Events that were due and are asked about by no other process.
    pub claimed: usize,
    /// Of these, the ones whose state was told.
    pub completed: usize,
}

/// What became of one claimed event.
enum Completion {
    Completed,
    /// It needs no event.
    Ended,
    PutOff(StateError),
    /// The store gave no answer.
    Failed {
        class: String,
        cause: String,
        retry_after: Option<Duration>,
    },
}

impl ListWorker for StateCompleter {
    const POLL_INTERVAL: Duration = Duration::from_secs(5);
    const FAILURE_EVENT: &str = "purchase_states_not_completed";

    async fn work(&mut self) -> Result<bool, Arc<Error>> {
        Ok(self.tick().await?.claimed > 0)
    }
}

impl StateCompleter {
    pub(crate) fn new(
        database: &Database,
        clock: &Clock,
        recorder: EventRecorder,
        sources: StateSources,
    ) -> Self {
        Self {
            database: database.clone(),
            clock: clock.clone(),
            recorder,
            sources,
            resting: HashMap::new(),
        }
    }

    /// Does one round, of which nothing runs on when this returns.
    pub async fn tick(&mut self) -> Result<CompletionRound, Arc<Error>> {
        self.remove_old_events().await?;
        let now = self.clock.uptime();
        self.resting
            .retain(|_, rest| rest.ends_at + FORGET_REST_AFTER > now);
        let resting: Vec<_> = self
            .resting
            .iter()
            .filter(|(_, rest)| rest.ends_at > now)
            .map(|(account, _)| account.clone())
            .collect();
        let claimed = store::claim_due_events(&self.database, CLAIM_LIMITS, &resting).await?;
        let mut round = CompletionRound {
            claimed: claimed.len(),
            completed: 0,
        };
        let completions = join_all(claimed.iter().map(|event| self.complete_event(event))).await;
        for (event, completion) in claimed.iter().zip(completions) {
            let account = (event.tenant.clone(), event.source);
            match completion? {
                Completion::Completed => {
                    round.completed += 1;
                    self.resting.remove(&account);
                    store::remove_event(&self.database, &event.tenant, &event.id).await?;
                }
                Completion::Ended => {
                    store::remove_event(&self.database, &event.tenant, &event.id).await?;
                }
                Completion::PutOff(missing) => {
                    self.resting.remove(&account);
                    self.put_off_event(event, missing).await?;
                }
                Completion::Failed {
                    class,
                    cause,
                    retry_after,
                } => {
                    self.rest_account(account, (&class, &cause), retry_after);
                    self.put_off_event(event, StateError::StoreUnavailable)
                        .await?;
                }
            }
        }
        Ok(round)
    }

    /// Asks about one event, and stores the event that tells its state.
    async fn complete_event(&self, event: &UnresolvedEvent) -> Result<Completion, Arc<Error>> {
        // The event about a replaced purchase also lacks the purchase that took its place.
        if event.is_superseded && event.state_error == StateError::StoreUnavailable {
            return Ok(Completion::Ended);
        }
        let source = match event.source {
            EventSource::Apple => &self.sources.apple,
            EventSource::Google => &self.sources.google,
        };
        let answer = timeout(STATE_TIMEOUT, source.fetch_state(event)).await;
        Ok(match answer {
            Ok(StateAnswer::Known(purchase)) => self.record_state(event, *purchase).await?,
            Ok(StateAnswer::Incomplete(missing)) => Completion::PutOff(missing),
            Ok(StateAnswer::NotFound { may_be_early, .. })
                if may_be_early && event.age < MAX_EARLY_TIME =>
            {
                Completion::PutOff(StateError::StoreUnavailable)
            }
            Ok(StateAnswer::NotFound { reason, .. }) => {
                tracing::warn!(
                    tenantId = %event.tenant,
                    eventId = %event.id,
                    store = event.source.as_str(),
                    reason,
                    hint = "the store says that there is no such purchase: no event with its state follows",
                    "purchase_state_not_found"
                );
                Completion::Ended
            }
            Ok(StateAnswer::Unavailable {
                class,
                cause,
                retry_after,
            }) => Completion::Failed {
                class,
                cause,
                retry_after,
            },
            Err(_) => Completion::Failed {
                class: format!("{} timeout", event.source.as_str()),
                cause: format!("no answer within {STATE_TIMEOUT:?}"),
                retry_after: None,
            },
        })
    }

    async fn record_state(
        &self,
        event: &UnresolvedEvent,
        purchase: LatePurchase,
    ) -> Result<Completion, Arc<Error>> {
        let stored = match self
            .recorder
            .record_event(&event.complete_with(purchase))
            .await
        {
            Ok(stored) => stored,
            // Its events wait until it is active again.
            Err(RecordError::InactiveTenant) => {
                return Ok(Completion::PutOff(StateError::StoreUnavailable));
            }
            Err(RecordError::Database(error)) => return Err(error),
        };
        if !stored.is_new {
            return Ok(Completion::Ended);
        }
        tracing::info!(
            tenantId = %event.tenant,
            eventId = %stored.event_id,
            completes = %event.id,
            store = event.source.as_str(),
            attempt = event.attempt,
            waitedSeconds = event.age.as_secs(),
            "purchase_state_completed"
        );
        Ok(Completion::Completed)
    }

    async fn put_off_event(
        &self,
        event: &UnresolvedEvent,
        missing: StateError,
    ) -> Result<(), Error> {
        let delay = spread(retry_delay(event.attempt, missing), fastrand::f64());
        store::put_off_event(&self.database, event, missing, delay).await
    }

    /// Keeps the account from being asked about for a while. `failure`: its class and its cause. Logged once for each outage.
    fn rest_account(
        &mut self,
        account: (TenantId, EventSource),
        (class, cause): (&str, &str),
        retry_after: Option<Duration>,
    ) {
        let now = self.clock.uptime();
        if !self.resting.contains_key(&account) {
            tracing::warn!(
                tenantId = %account.0,
                store = account.1.as_str(),
                cause,
                causeClass = class,
                hint = "the store is asked again after half a minute at most, for three days",
                "purchase_state_not_read"
            );
        }
        let rest = self.resting.entry(account).or_insert_with(|| AccountRest {
            backoff: Backoff::new(FIRST_REST, MAX_REST),
            ends_at: Duration::ZERO,
        });
        // Another event of the same round may have failed with it.
        if rest.ends_at > now {
            return;
        }
        let delay = rest.backoff.next_delay(fastrand::f64());
        let requested = retry_after.unwrap_or_default().min(MAX_REQUESTED_REST);
        rest.ends_at = now + delay.max(requested);
    }

    async fn remove_old_events(&self) -> Result<(), Error> {
        for removed in store::remove_old_events(&self.database).await? {
            tracing::warn!(
                tenantId = %removed.tenant,
                store = removed.source,
                count = removed.count,
                eventIds = removed.first.join(","),
                hours = MAX_UNRESOLVED_TIME.as_secs() / 3600,
                hint = "no event with their states follows; a verification of the purchase tells it",
                "purchase_states_given_up"
            );
        }
        Ok(())
    }
}
