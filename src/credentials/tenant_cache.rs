//! A tenant's opened credential, cached.

use std::sync::Arc;
use std::time::Duration;

use crate::base::cache::Cache;
use crate::base::clock::Clock;
use crate::base::id::TenantId;
use crate::db::change_listener::{ChangeListener, DatabaseChange};

/// How long a missing credential is cached. Short, although a change is notified: after a credential was added by hand
/// in the database, the tenant waits no longer than this.
const ABSENT_TTL: Duration = Duration::from_secs(5);
const MAX_CACHED_TENANTS: usize = 10_000;

/// One value for each tenant, loaded when it is first asked for.
///
/// A value is dropped when its time is over, when its row changes, and when notifications of changes no longer arrive;
/// until they do again, every call loads anew. `E` is what can go wrong in a load; an error is never cached.
pub struct TenantCache<T, E> {
    ttl: Duration,
    changes: ChangeListener,
    entries: Cache<TenantId, Option<Arc<T>>, Arc<E>>,
}

impl<T, E> Clone for TenantCache<T, E> {
    fn clone(&self) -> Self {
        Self {
            ttl: self.ttl,
            changes: self.changes.clone(),
            entries: self.entries.clone(),
        }
    }
}

impl<T: Send + Sync + 'static, E: Send + Sync + 'static> TenantCache<T, E> {
    /// Caches for `ttl` what is loaded from `table`. Must be called within a Tokio runtime: expired values are wiped in
    /// the background for as long as the cache lives.
    pub fn new(table: &'static str, ttl: Duration, clock: Clock, changes: &ChangeListener) -> Self {
        let entries = Cache::new(clock, MAX_CACHED_TENANTS);
        entries.sweep_in_background();
        let cache = Self {
            ttl,
            changes: changes.clone(),
            entries: entries.clone(),
        };
        let entries = entries.downgrade();
        changes.subscribe(move |change| {
            if !change.affects_table(table) {
                return;
            }
            match (entries.upgrade(), change) {
                (Some(entries), DatabaseChange::Row { tenant, .. }) => {
                    entries.invalidate_key(tenant);
                }
                (Some(entries), DatabaseChange::Everything) => entries.clear(),
                (None, _) => {}
            }
        });
        cache
    }

    /// The tenant's value: the cached one, or what `load` returns. `load` is not polled when it is not needed.
    pub async fn get_or_load(
        &self,
        tenant: &TenantId,
        load: impl Future<Output = Result<Option<T>, E>> + Send + 'static,
    ) -> Result<Option<Arc<T>>, Arc<E>> {
        let load = async move {
            let value = load.await.map_err(Arc::new)?;
            Ok(value.map(Arc::new))
        };
        if !self.changes.is_listening() {
            // Not shared either: a load that runs already may have begun before a change that this caller has seen.
            return load.await;
        }
        let ttl = |value: &Option<Arc<T>>| match value {
            Some(_) => self.ttl,
            None => ABSENT_TTL.min(self.ttl),
        };
        // When notifications stop, the listener clears the cache, so that a load from before is not kept.
        self.entries.get_or_load(tenant.clone(), ttl, load).await
    }

    /// Wipes what has expired. Happens by itself every few seconds.
    pub fn remove_expired(&self) {
        self.entries.remove_expired();
    }

    /// Drops the tenant's value, for example because a store refuses the credential.
    pub fn invalidate(&self, tenant: &TenantId) {
        self.entries.invalidate_key(tenant);
    }
}
