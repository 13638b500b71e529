//! Which keys are good, remembered for as long as the process would hear of a change.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use tokio::sync::Semaphore;

use crate::clock::{Clock, Timestamp};
use crate::db::changes::{Change, Changes};
use crate::db::{Database, Error};
use crate::id::{KeyId, TenantId};

use super::api_key::{KeyEnvironment, KeyHash};
use super::store;
use super::tenant::Limits;
use super::usage::{Usage, Used};

/// A change is heard of at once; this only bounds what a trigger switched off by hand could do.
const GOOD_FOR: Duration = Duration::from_mins(5);
/// How long an unknown key is known to be unknown. A new key is heard of.
const UNKNOWN_FOR: Duration = Duration::from_mins(1);
/// Bounds on memory: past them, everything of that kind is forgotten and asked for again.
const MOST_GOOD: usize = 100_000;
const MOST_UNKNOWN: usize = 20_000;
/// How many keys are looked up in the database at once, so that a flood of made-up keys leaves connections for others.
const LOOKUPS_AT_ONCE: usize = 8;
/// How long a request waits for its turn and the answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// What a good key stands for.
#[derive(Debug)]
pub(super) struct Facts {
    pub(super) key: KeyId,
    pub(super) tenant: TenantId,
    pub(super) environment: KeyEnvironment,
    pub(super) limits: Limits,
    pub(super) used: Arc<Used>,
}

pub(super) struct Directory {
    database: Database,
    changes: Changes,
    clock: Clock,
    usage: Arc<Usage>,
    memory: Arc<RwLock<Memory>>,
    lookups: Semaphore,
}

#[derive(Default)]
struct Memory {
    good: HashMap<KeyHash, (Arc<Facts>, Timestamp)>,
    unknown: HashMap<KeyHash, Timestamp>,
    /// Counts the changes heard of: what was read under another number is not remembered.
    epoch: u64,
}

impl Memory {
    fn forget(&mut self, change: &Change) {
        self.epoch += 1;
        // A change of any tenant's may have made an unknown key known.
        self.unknown.clear();
        match change {
            Change::Row { tenant, .. } => self.good.retain(|_, (facts, _)| facts.tenant != *tenant),
            Change::Everything => self.good.clear(),
        }
    }
}

impl Directory {
    pub(super) fn new(
        database: Database,
        changes: Changes,
        clock: Clock,
        usage: Arc<Usage>,
    ) -> Self {
        let memory = Arc::new(RwLock::new(Memory::default()));
        let forgetful = Arc::downgrade(&memory);
        changes.subscribe(move |change| {
            if (change.concerns("tenants") || change.concerns("api_keys"))
                && let Some(memory) = forgetful.upgrade()
            {
                memory
                    .write()
                    .unwrap_or_else(PoisonError::into_inner)
                    .forget(change);
            }
        });
        Self {
            database,
            changes,
            clock,
            usage,
            memory,
            lookups: Semaphore::new(LOOKUPS_AT_ONCE),
        }
    }

    /// The key with this hash, if it is good. An error means that nobody knows.
    pub(super) async fn find(&self, hash: &KeyHash) -> Result<Option<Arc<Facts>>, Error> {
        if let Some(known) = self.recall(hash) {
            return Ok(known);
        }
        let deadline = tokio::time::Instant::now() + PATIENCE;
        let turn = tokio::time::timeout_at(deadline, self.lookups.acquire()).await;
        let Ok(Ok(_turn)) = turn else {
            return Err(Error::PoolTimedOut);
        };
        // Whoever had the turn before may have asked the same.
        if let Some(known) = self.recall(hash) {
            return Ok(known);
        }
        let epoch = self.read().epoch;
        let finding = store::find_good_key(&self.database, hash);
        let Ok(found) = tokio::time::timeout_at(deadline, finding).await else {
            return Err(Error::PoolTimedOut);
        };
        let found = found?;
        let found = found.map(|key| {
            Arc::new(Facts {
                used: self.usage.card(&key.id),
                key: key.id,
                tenant: key.tenant,
                environment: key.environment,
                limits: key.limits,
            })
        });
        self.remember(hash, found.clone(), epoch);
        Ok(found)
    }

    /// What is remembered of the key, if it may be believed.
    #[expect(
        clippy::option_option,
        reason = "outside: is anything known; inside: is the key good"
    )]
    fn recall(&self, hash: &KeyHash) -> Option<Option<Arc<Facts>>> {
        if !self.changes.listening() {
            return None;
        }
        let now = self.clock.now();
        let memory = self.read();
        if let Some((facts, until)) = memory.good.get(hash) {
            return (now < *until).then(|| Some(facts.clone()));
        }
        let until = memory.unknown.get(hash)?;
        (now < *until).then_some(None)
    }

    fn remember(&self, hash: &KeyHash, found: Option<Arc<Facts>>, epoch: u64) {
        let mut memory = self.write();
        if memory.epoch != epoch || !self.changes.listening() {
            return;
        }
        let now = self.clock.now();
        if let Some(facts) = found {
            if memory.good.len() >= MOST_GOOD {
                memory.good.clear();
            }
            memory.unknown.remove(hash);
            memory.good.insert(*hash, (facts, now.plus(GOOD_FOR)));
        } else {
            if memory.unknown.len() >= MOST_UNKNOWN {
                memory.unknown.clear();
            }
            memory.good.remove(hash);
            memory.unknown.insert(*hash, now.plus(UNKNOWN_FOR));
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, Memory> {
        self.memory.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Memory> {
        self.memory.write().unwrap_or_else(PoisonError::into_inner)
    }
}
