//! Which keys are good, remembered for as long as the process would hear of a change.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use tokio::sync::Semaphore;

use crate::base::clock::{Clock, Timestamp};
use crate::base::id::{KeyId, TenantId};
use crate::db::change_listener::{ChangeListener, DatabaseChange};
use crate::db::{Database, Error};

use super::api_key::{ApiKeyEnvironment, ApiKeyHash};
use super::api_key_usage::{ApiKeyUsage, LastUsed};
use super::store;
use super::tenant::RateLimitOverrides;

/// A change is heard of at once; this only bounds what a trigger switched off by hand could do.
const VALID_KEY_TTL: Duration = Duration::from_mins(5);
/// How long an unknown key is known to be unknown. A new key is heard of.
const UNKNOWN_KEY_TTL: Duration = Duration::from_mins(1);
/// Bounds on memory: past them, everything of that kind is forgotten and asked for again.
const MAX_VALID_KEYS: usize = 100_000;
const MAX_UNKNOWN_KEYS: usize = 20_000;
/// How many keys are looked up in the database at once, so that a flood of made-up keys leaves connections for others.
const MAX_CONCURRENT_LOOKUPS: usize = 8;
/// How long a request waits for its turn and the answer.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(2);

/// What a good key stands for.
#[derive(Debug)]
pub(super) struct ApiKeyRecord {
    pub(super) key: KeyId,
    pub(super) tenant: TenantId,
    pub(super) environment: ApiKeyEnvironment,
    pub(super) limits: RateLimitOverrides,
    pub(super) last_used: Arc<LastUsed>,
}

pub(super) struct ApiKeyCache {
    database: Database,
    changes: ChangeListener,
    clock: Clock,
    usage: Arc<ApiKeyUsage>,
    entries: Arc<RwLock<CacheEntries>>,
    lookup_permits: Semaphore,
}

#[derive(Default)]
struct CacheEntries {
    valid: HashMap<ApiKeyHash, (Arc<ApiKeyRecord>, Timestamp)>,
    unknown: HashMap<ApiKeyHash, Timestamp>,
    /// Counts the changes heard of: what was read under another number is not remembered.
    epoch: u64,
}

impl CacheEntries {
    fn invalidate(&mut self, change: &DatabaseChange) {
        self.epoch += 1;
        // A change of any tenant's may have made an unknown key known.
        self.unknown.clear();
        match change {
            DatabaseChange::Row { tenant, .. } => {
                self.valid.retain(|_, (facts, _)| facts.tenant != *tenant)
            }
            DatabaseChange::Everything => self.valid.clear(),
        }
    }
}

impl ApiKeyCache {
    pub(super) fn new(
        database: Database,
        changes: ChangeListener,
        clock: Clock,
        usage: Arc<ApiKeyUsage>,
    ) -> Self {
        let entries = Arc::new(RwLock::new(CacheEntries::default()));
        let forgetful = Arc::downgrade(&entries);
        changes.subscribe(move |change| {
            if (change.affects_table("tenants") || change.affects_table("api_keys"))
                && let Some(memory) = forgetful.upgrade()
            {
                memory
                    .write()
                    .unwrap_or_else(PoisonError::into_inner)
                    .invalidate(change);
            }
        });
        Self {
            database,
            changes,
            clock,
            usage,
            entries,
            lookup_permits: Semaphore::new(MAX_CONCURRENT_LOOKUPS),
        }
    }

    /// The key with this hash, if it is good. An error means that nobody knows.
    pub(super) async fn find_key(
        &self,
        hash: &ApiKeyHash,
    ) -> Result<Option<Arc<ApiKeyRecord>>, Error> {
        if let Some(known) = self.get_cached(hash) {
            return Ok(known);
        }
        let deadline = tokio::time::Instant::now() + LOOKUP_TIMEOUT;
        let turn = tokio::time::timeout_at(deadline, self.lookup_permits.acquire()).await;
        let Ok(Ok(_turn)) = turn else {
            return Err(Error::PoolTimedOut);
        };
        // Whoever had the turn before may have asked the same.
        if let Some(known) = self.get_cached(hash) {
            return Ok(known);
        }
        let epoch = self.read_entries().epoch;
        let finding = store::find_active_api_key(&self.database, hash);
        let Ok(found) = tokio::time::timeout_at(deadline, finding).await else {
            return Err(Error::PoolTimedOut);
        };
        let found = found?;
        let found = found.map(|key| {
            Arc::new(ApiKeyRecord {
                last_used: self.usage.last_used_of(&key.id),
                key: key.id,
                tenant: key.tenant,
                environment: key.environment,
                limits: key.limits,
            })
        });
        self.insert_result(hash, found.clone(), epoch);
        Ok(found)
    }

    /// What is remembered of the key, if it may be believed.
    #[expect(
        clippy::option_option,
        reason = "outside: is anything known; inside: is the key good"
    )]
    fn get_cached(&self, hash: &ApiKeyHash) -> Option<Option<Arc<ApiKeyRecord>>> {
        if !self.changes.is_listening() {
            return None;
        }
        let now = self.clock.now();
        let memory = self.read_entries();
        if let Some((facts, until)) = memory.valid.get(hash) {
            return (now < *until).then(|| Some(facts.clone()));
        }
        let until = memory.unknown.get(hash)?;
        (now < *until).then_some(None)
    }

    fn insert_result(&self, hash: &ApiKeyHash, found: Option<Arc<ApiKeyRecord>>, epoch: u64) {
        let mut memory = self.write_entries();
        if memory.epoch != epoch || !self.changes.is_listening() {
            return;
        }
        let now = self.clock.now();
        if let Some(facts) = found {
            if memory.valid.len() >= MAX_VALID_KEYS {
                memory.valid.clear();
            }
            memory.unknown.remove(hash);
            memory.valid.insert(*hash, (facts, now.plus(VALID_KEY_TTL)));
        } else {
            if memory.unknown.len() >= MAX_UNKNOWN_KEYS {
                memory.unknown.clear();
            }
            memory.valid.remove(hash);
            memory.unknown.insert(*hash, now.plus(UNKNOWN_KEY_TTL));
        }
    }

    fn read_entries(&self) -> RwLockReadGuard<'_, CacheEntries> {
        self.entries.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_entries(&self) -> RwLockWriteGuard<'_, CacheEntries> {
        self.entries.write().unwrap_or_else(PoisonError::into_inner)
    }
}
