//! Caches a tenant's unsealed credential.

use std::sync::Arc;
use std::time::Duration;

use crate::base::cache::Cache;
use crate::base::clock::Clock;
use crate::base::id::TenantId;
use crate::db::change_listener::{ChangeListener, DatabaseChange};

/// How long the absence of a credential is cached. Short, although a trigger on the table notifies of an insert: it
/// bounds the wait when no notification is sent, for example because triggers are disabled.
const ABSENT_TTL: Duration = Duration::from_secs(5);
const MAX_CACHED_TENANTS: usize = 10_000;
/// Tenants without a value, most of which do not exist when there are many.
const MAX_ABSENT_TENANTS: usize = 10_000;

/// One value for each tenant, loaded when it is first needed.
///
/// A value is dropped when its time to live is over, when its row changes, and when notifications of changes stop
/// arriving. While they do not arrive, every call loads. `E` is the error of a load; errors are never cached.
pub struct TenantCache<T, E> {
    ttl: Duration,
    changes: ChangeListener,
    entries: Cache<TenantId, Arc<T>, NotLoaded<E>>,
    /// A cache of its own, so that made-up tenants drop no value.
    absent: Cache<TenantId, ()>,
}

/// Why a load gave no value.
enum NotLoaded<E> {
    Absent,
    Failed(Arc<E>),
}

impl<E> Clone for NotLoaded<E> {
    fn clone(&self) -> Self {
        match self {
            Self::Absent => Self::Absent,
            Self::Failed(error) => Self::Failed(error.clone()),
        }
    }
}

impl<T, E> Clone for TenantCache<T, E> {
    fn clone(&self) -> Self {
        Self {
            ttl: self.ttl,
            changes: self.changes.clone(),
            entries: self.entries.clone(),
            absent: self.absent.clone(),
        }
    }
}

impl<T: Send + Sync + 'static, E: Send + Sync + 'static> TenantCache<T, E> {
    /// Caches values loaded from `table` for `ttl`. Must be called within a Tokio runtime, because a background task
    /// wipes expired values for as long as the cache exists.
    pub fn new(table: &'static str, ttl: Duration, clock: Clock, changes: &ChangeListener) -> Self {
        let absent = Cache::new(clock.clone(), MAX_ABSENT_TENANTS);
        let entries = Cache::new(clock, MAX_CACHED_TENANTS);
        entries.sweep_in_background();
        let cache = Self {
            ttl,
            changes: changes.clone(),
            entries: entries.clone(),
            absent: absent.clone(),
        };
        let (entries, absent) = (entries.downgrade(), absent.downgrade());
        changes.subscribe(move |change| {
            if !change.affects_table(table) {
                return;
            }
            let (Some(entries), Some(absent)) = (entries.upgrade(), absent.upgrade()) else {
                return;
            };
            match change {
                DatabaseChange::Row { tenant, .. } => {
                    entries.invalidate_key(tenant);
                    absent.invalidate_key(tenant);
                }
                DatabaseChange::Everything => {
                    entries.clear();
                    absent.clear();
                }
            }
        });
        cache
    }

    /// The tenant's value: the cached one, or the result of `load`. `load` is not polled if the cached value is used.
    pub async fn get_or_load(
        &self,
        tenant: &TenantId,
        load: impl Future<Output = Result<Option<T>, E>> + Send + 'static,
    ) -> Result<Option<Arc<T>>, Arc<E>> {
        if !self.changes.is_listening() {
            // The load is not shared with other callers: one that is running may have begun before a change that this
            // caller knows of.
            return Ok(load.await.map_err(Arc::new)?.map(Arc::new));
        }
        let absent_epoch = self.absent.epoch();
        if self.absent.get(tenant).is_some() {
            return Ok(None);
        }
        let load = async move {
            match load.await {
                Ok(Some(value)) => Ok(Arc::new(value)),
                Ok(None) => Err(NotLoaded::Absent),
                Err(error) => Err(NotLoaded::Failed(Arc::new(error))),
            }
        };
        // When notifications stop, the listener clears the cache, so that the result of a load that began before is not
        // cached.
        let loaded = self
            .entries
            .get_or_load(tenant.clone(), |_| self.ttl, load)
            .await;
        match loaded {
            Ok(value) => Ok(Some(value)),
            Err(NotLoaded::Absent) => {
                let ttl = ABSENT_TTL.min(self.ttl);
                self.absent
                    .insert_if_current(absent_epoch, tenant.clone(), (), ttl);
                Ok(None)
            }
            Err(NotLoaded::Failed(error)) => Err(error),
        }
    }

    /// Whether the next call of [`TenantCache::get_or_load`] is likely to need no load.
    pub(crate) fn is_cached(&self, tenant: &TenantId) -> bool {
        self.changes.is_listening()
            && (self.entries.get(tenant).is_some() || self.absent.get(tenant).is_some())
    }

    /// Wipes expired values. A background task does this every few seconds too.
    pub fn remove_expired(&self) {
        self.entries.remove_expired();
    }

    /// Drops the tenant's value, for example because a store refuses the credential.
    pub fn invalidate(&self, tenant: &TenantId) {
        self.entries.invalidate_key(tenant);
        self.absent.invalidate_key(tenant);
    }
}
