//! Which API keys are active, cached for as long as this process is notified of changes.
//!
//! A known key stays cached while notifications arrive; it is read again now and then behind the answer. What has to be read
//! before the answer goes through [`LookupLanes`], so that a crowd with made-up keys leaves room for known ones.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::base::cache::Cache;
use crate::base::clock::Clock;
use crate::base::id::{KeyId, TenantId};
use crate::base::lookup_lanes::{LookupLanes, LookupLimits, LookupPermit, LookupQueueFullError};
use crate::db::change_listener::{ChangeListener, DatabaseChange};
use crate::db::{Database, Error, error_class};

use super::api_key::{ApiKeyEnvironment, ApiKeyHash};
use super::api_key_usage::{ApiKeyUsage, LastUsed};
use super::store;
use super::tenant::RateLimitOverrides;

/// The tables that a record is read from.
const CACHED_TABLES: [&str; 3] = ["tenants", "api_keys", "first_seen_keys"];
/// A change is notified at once; reading again only matters when the trigger that does was disabled by hand.
const REFRESH_INTERVAL: Duration = Duration::from_mins(5);
/// How soon a key is read again that could not be.
const REFRESH_RETRY_INTERVAL: Duration = Duration::from_secs(5);
/// How long a key stays cached that is not used.
const VALID_KEY_TTL: Duration = Duration::from_hours(24);
/// How long an unknown key stays unknown. A new key is notified.
const UNKNOWN_KEY_TTL: Duration = Duration::from_mins(1);
const MAX_VALID_KEYS: usize = 100_000;
const MAX_UNKNOWN_KEYS: usize = 20_000;
/// How long a request waits for a lookup that has begun. The lookup itself goes on, and its result is cached.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(2);

/// What a request with an active key may do, and for which tenant.
#[derive(Debug)]
pub(super) struct ApiKeyRecord {
    pub(super) key: KeyId,
    pub(super) tenant: TenantId,
    pub(super) environment: ApiKeyEnvironment,
    pub(super) limits: RateLimitOverrides,
    pub(super) first_seen_key: Option<Arc<[u8]>>,
    pub(super) last_used: Arc<LastUsed>,
}

/// Why a key was not looked up.
#[derive(Debug, thiserror::Error)]
pub(super) enum KeyLookupError {
    #[error(transparent)]
    QueueFull(#[from] LookupQueueFullError),
    #[error("{}", crate::db::describe_cause(.0))]
    Database(#[from] Error),
}

/// Clones share the cache.
#[derive(Clone)]
pub(super) struct ApiKeyCache(Arc<CacheState>);

struct CacheState {
    database: Database,
    changes: ChangeListener,
    clock: Clock,
    usage: Arc<ApiKeyUsage>,
    valid: Cache<ApiKeyHash, CachedKey>,
    /// A cache of its own, so that a flood of made-up keys drops no valid one.
    unknown: Cache<ApiKeyHash, ()>,
    lanes: LookupLanes<ApiKeyHash>,
}

#[derive(Clone)]
struct CachedKey {
    record: Arc<ApiKeyRecord>,
    /// When it is read again, in milliseconds of [`Clock::uptime`].
    refresh_at_ms: Arc<AtomicU64>,
}

impl ApiKeyCache {
    pub(super) fn new(
        database: Database,
        changes: ChangeListener,
        clock: Clock,
        usage: Arc<ApiKeyUsage>,
    ) -> Self {
        let valid: Cache<ApiKeyHash, CachedKey> = Cache::new(clock.clone(), MAX_VALID_KEYS);
        let unknown = Cache::new(clock.clone(), MAX_UNKNOWN_KEYS);
        let caches = (valid.downgrade(), unknown.downgrade());
        changes.subscribe(move |change| {
            if CACHED_TABLES
                .iter()
                .any(|table| change.affects_table(table))
                && let (Some(valid), Some(unknown)) = (caches.0.upgrade(), caches.1.upgrade())
            {
                // A change of any tenant's may have made an unknown key known.
                unknown.clear();
                valid.invalidate(|_, cached| match change {
                    DatabaseChange::Row { tenant, .. } => cached.record.tenant == *tenant,
                    DatabaseChange::Everything => true,
                });
            }
        });
        let lanes = LookupLanes::new(&clock, LookupLimits::for_pool(database.max_connections()));
        Self(Arc::new(CacheState {
            database,
            changes,
            clock,
            usage,
            valid,
            unknown,
            lanes,
        }))
    }

    /// The active key with this hash. An error means that it could not be looked up.
    pub(super) async fn find_key(
        &self,
        hash: &ApiKeyHash,
    ) -> Result<Option<Arc<ApiKeyRecord>>, KeyLookupError> {
        let state = &self.0;
        if let Some(known) = state.get_cached(hash) {
            return Ok(known);
        }
        let permit = state.lanes.enter(hash).await?;
        // The lookup that had this place before may have been for the same key.
        if let Some(known) = state.get_cached(hash) {
            return Ok(known);
        }
        // In a task of its own: a statement that is given up costs its connection, and the next caller as much again.
        let lookup = tokio::spawn(state.clone().look_up(*hash, permit));
        match tokio::time::timeout(LOOKUP_TIMEOUT, lookup).await {
            Ok(Ok(found)) => Ok(found?),
            Ok(Err(_)) => Err(Error::WorkerCrashed.into()),
            Err(_) => Err(Error::PoolTimedOut.into()),
        }
    }
}

impl CacheState {
    /// What is cached of the key, while changes are notified.
    #[expect(
        clippy::option_option,
        reason = "outside: is anything known; inside: is the key active"
    )]
    fn get_cached(self: &Arc<Self>, hash: &ApiKeyHash) -> Option<Option<Arc<ApiKeyRecord>>> {
        if !self.changes.is_listening() {
            return None;
        }
        if let Some(cached) = self.valid.get(hash) {
            if self.claim_refresh(&cached) {
                tokio::spawn(self.clone().refresh(*hash));
            }
            return Some(Some(cached.record));
        }
        self.unknown.get(hash).map(|()| None)
    }

    /// Whether the key is to be read again, and this caller is the first who sees that.
    fn claim_refresh(&self, cached: &CachedKey) -> bool {
        let due = cached.refresh_at_ms.load(Ordering::Relaxed);
        self.uptime_ms() >= due
            && cached
                .refresh_at_ms
                .compare_exchange(
                    due,
                    self.uptime_in_ms(REFRESH_RETRY_INTERVAL),
                    Ordering::Relaxed,
                    Ordering::Relaxed,
                )
                .is_ok()
    }

    fn uptime_ms(&self) -> u64 {
        self.uptime_in_ms(Duration::ZERO)
    }

    fn uptime_in_ms(&self, later: Duration) -> u64 {
        u64::try_from((self.clock.uptime() + later).as_millis()).unwrap_or(u64::MAX)
    }

    /// Reads a cached key again. When it cannot be read, it stays as it is.
    async fn refresh(self: Arc<Self>, hash: ApiKeyHash) {
        let Ok(permit) = self.lanes.enter(&hash).await else {
            return;
        };
        if let Err(error) = self.look_up(hash, permit).await {
            let class = error_class(&error);
            tracing::warn!(
                cause = crate::db::describe_cause(&error),
                causeClass = class,
                hint = "the key is used as it was read last, and read again in some seconds",
                "api_key_not_refreshed"
            );
        }
    }

    async fn look_up(
        self: Arc<Self>,
        hash: ApiKeyHash,
        permit: LookupPermit,
    ) -> Result<Option<Arc<ApiKeyRecord>>, Error> {
        let epochs = (self.valid.epoch(), self.unknown.epoch());
        let found = store::find_active_api_key(&self.database, &hash).await?;
        drop(permit);
        // A server that can no longer write knows nothing of keys that were revoked on the one that took over.
        if let Some(problem) = self.database.write_problem() {
            return Err(problem.into());
        }
        self.lanes.record_result(&hash, found.is_some());
        let Some(key) = found else {
            if self.valid.get(&hash).is_some() {
                self.valid.invalidate_key(&hash);
            }
            self.unknown
                .insert_if_current(epochs.1, hash, (), UNKNOWN_KEY_TTL);
            return Ok(None);
        };
        let record = Arc::new(ApiKeyRecord {
            last_used: self.usage.last_used_of(&key.id),
            key: key.id,
            tenant: key.tenant,
            environment: key.environment,
            limits: key.limits,
            first_seen_key: key.first_seen_key.map(Arc::from),
        });
        let cached = CachedKey {
            record: record.clone(),
            refresh_at_ms: Arc::new(AtomicU64::new(self.uptime_in_ms(REFRESH_INTERVAL))),
        };
        self.valid
            .insert_if_current(epochs.0, hash, cached, VALID_KEY_TTL);
        Ok(Some(record))
    }
}
