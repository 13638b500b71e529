//! Which API keys are active, cached for as long as this process is notified of changes.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use crate::base::cache::Cache;
use crate::base::clock::Clock;
use crate::base::id::{KeyId, TenantId};
use crate::db::change_listener::{ChangeListener, DatabaseChange};
use crate::db::{Database, Error};

use super::api_key::{ApiKeyEnvironment, ApiKeyHash};
use super::api_key_usage::{ApiKeyUsage, LastUsed};
use super::store;
use super::tenant::RateLimitOverrides;

/// A change is notified at once; this only matters when the trigger that does was disabled by hand.
const VALID_KEY_TTL: Duration = Duration::from_mins(5);
/// How long an unknown key stays unknown. A new key is notified.
const UNKNOWN_KEY_TTL: Duration = Duration::from_mins(1);
const MAX_VALID_KEYS: usize = 100_000;
const MAX_UNKNOWN_KEYS: usize = 20_000;
/// How many keys are looked up in the database at once, so that a flood of made-up keys leaves connections for others.
const MAX_CONCURRENT_LOOKUPS: usize = 8;
/// How long a request waits for a permit and the lookup together.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(2);

/// What a request with an active key may do, and for which tenant.
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
    usage: Arc<ApiKeyUsage>,
    valid: Cache<ApiKeyHash, Arc<ApiKeyRecord>>,
    /// A cache of its own, so that a flood of made-up keys drops no valid one.
    unknown: Cache<ApiKeyHash, ()>,
    lookup_permits: Semaphore,
}

impl ApiKeyCache {
    pub(super) fn new(
        database: Database,
        changes: ChangeListener,
        clock: Clock,
        usage: Arc<ApiKeyUsage>,
    ) -> Self {
        let valid: Cache<ApiKeyHash, Arc<ApiKeyRecord>> = Cache::new(clock.clone(), MAX_VALID_KEYS);
        let unknown = Cache::new(clock, MAX_UNKNOWN_KEYS);
        let caches = (valid.downgrade(), unknown.downgrade());
        changes.subscribe(move |change| {
            if (change.affects_table("tenants") || change.affects_table("api_keys"))
                && let (Some(valid), Some(unknown)) = (caches.0.upgrade(), caches.1.upgrade())
            {
                // A change of any tenant's may have made an unknown key known.
                unknown.clear();
                valid.invalidate(|_, record| match change {
                    DatabaseChange::Row { tenant, .. } => record.tenant == *tenant,
                    DatabaseChange::Everything => true,
                });
            }
        });
        Self {
            database,
            changes,
            usage,
            valid,
            unknown,
            lookup_permits: Semaphore::new(MAX_CONCURRENT_LOOKUPS),
        }
    }

    /// The active key with this hash. An error means that it could not be looked up.
    pub(super) async fn find_key(
        &self,
        hash: &ApiKeyHash,
    ) -> Result<Option<Arc<ApiKeyRecord>>, Error> {
        if let Some(known) = self.get_cached(hash) {
            return Ok(known);
        }
        let deadline = tokio::time::Instant::now() + LOOKUP_TIMEOUT;
        let permit = tokio::time::timeout_at(deadline, self.lookup_permits.acquire()).await;
        let Ok(Ok(_permit)) = permit else {
            return Err(Error::PoolTimedOut);
        };
        // The lookup that held the permit before may have been for the same key.
        if let Some(known) = self.get_cached(hash) {
            return Ok(known);
        }
        let epochs = (self.valid.epoch(), self.unknown.epoch());
        let lookup = store::find_active_api_key(&self.database, hash);
        let Ok(found) = tokio::time::timeout_at(deadline, lookup).await else {
            return Err(Error::PoolTimedOut);
        };
        let found = found?.map(|key| {
            Arc::new(ApiKeyRecord {
                last_used: self.usage.last_used_of(&key.id),
                key: key.id,
                tenant: key.tenant,
                environment: key.environment,
                limits: key.limits,
            })
        });
        match &found {
            Some(record) => {
                self.valid
                    .insert_if_current(epochs.0, *hash, record.clone(), VALID_KEY_TTL);
            }
            None => self
                .unknown
                .insert_if_current(epochs.1, *hash, (), UNKNOWN_KEY_TTL),
        }
        Ok(found)
    }

    /// What is cached of the key, while changes are notified.
    #[expect(
        clippy::option_option,
        reason = "outside: is anything known; inside: is the key active"
    )]
    fn get_cached(&self, hash: &ApiKeyHash) -> Option<Option<Arc<ApiKeyRecord>>> {
        if !self.changes.is_listening() {
            return None;
        }
        if let Some(record) = self.valid.get(hash) {
            return Some(Some(record));
        }
        self.unknown.get(hash).map(|()| None)
    }
}
