//! A tenant's opened credential, remembered.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use crate::base::clock::{Clock, Timestamp};
use crate::base::id::TenantId;
use crate::db::change_listener::{ChangeListener, DatabaseChange};
use crate::outbound::SingleFlight;

/// How long "there is none" is remembered. Short, although a change is heard of: a tenant who has just been set up
/// by hand should not have to know about caches.
const ABSENT_TTL: Duration = Duration::from_secs(5);
/// More tenants than this are not remembered at once.
const MAX_CACHED_TENANTS: usize = 10_000;
/// How often values whose time is over are wiped although nobody asks for them.
const SWEEP_INTERVAL: Duration = Duration::from_secs(15);

/// One value a tenant, loaded when first asked for.
///
/// Callers who ask at the same time share one load. A value is forgotten when its time is over, when its row changes,
/// and when changes are no longer heard; while they are not, every call loads anew. A load that was overtaken by a
/// change answers whoever waits for it and is not remembered.
///
/// `E` is what can go wrong in loading; an error is never remembered.
pub struct TenantCache<T, E> {
    inner: Arc<TenantCacheInner<T, E>>,
}

impl<T, E> Clone for TenantCache<T, E> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
        }
    }
}

struct TenantCacheInner<T, E> {
    ttl: Duration,
    clock: Clock,
    change_listener: ChangeListener,
    entries: Mutex<TenantCacheEntries<T>>,
    loads: SingleFlight<(TenantId, u64), LoadedValue<T, E>>,
}

type LoadedValue<T, E> = Result<Option<Arc<T>>, Arc<E>>;

struct TenantCacheEntries<T> {
    entries: HashMap<TenantId, TenantCacheEntry<T>>,
    /// Counts the changes heard of: a load that began under another number has been overtaken.
    epoch: u64,
}

struct TenantCacheEntry<T> {
    value: Option<Arc<T>>,
    expires_at: Timestamp,
}

impl<T, E> TenantCacheInner<T, E> {
    fn lock_entries(&self) -> std::sync::MutexGuard<'_, TenantCacheEntries<T>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn apply_change(&self, change: &DatabaseChange) {
        let mut memory = self.lock_entries();
        memory.epoch += 1;
        match change {
            DatabaseChange::Row { tenant, .. } => drop(memory.entries.remove(tenant)),
            DatabaseChange::Everything => memory.entries.clear(),
        }
    }

    fn remove_expired(&self) {
        let now = self.clock.now();
        self.lock_entries()
            .entries
            .retain(|_, entry| now < entry.expires_at);
    }
}

impl<T: Send + Sync + 'static, E: Send + Sync + 'static> TenantCache<T, E> {
    /// Remembers what is loaded from `table` for `ttl`. Call it where a runtime is: it wipes what has expired in the
    /// background for as long as the cache lives.
    pub fn new(table: &'static str, ttl: Duration, clock: Clock, changes: &ChangeListener) -> Self {
        let inner = Arc::new(TenantCacheInner {
            ttl,
            clock,
            change_listener: changes.clone(),
            entries: Mutex::new(TenantCacheEntries {
                entries: HashMap::new(),
                epoch: 0,
            }),
            loads: SingleFlight::default(),
        });
        let forgetful = Arc::downgrade(&inner);
        changes.subscribe(move |change| {
            if change.affects_table(table)
                && let Some(inner) = forgetful.upgrade()
            {
                inner.apply_change(change);
            }
        });
        tokio::spawn(sweep_periodically(Arc::downgrade(&inner)));
        Self { inner }
    }

    /// The tenant's value: the remembered one, or what `load` brings. `load` is not polled when it is not needed.
    pub async fn get_or_load(
        &self,
        tenant: &TenantId,
        load: impl Future<Output = Result<Option<T>, E>> + Send + 'static,
    ) -> LoadedValue<T, E> {
        let inner = &self.inner;
        if !inner.change_listener.is_listening() {
            // Not shared either: somebody else's load may have begun before a change that this caller knows of.
            return load
                .await
                .map(|value| value.map(Arc::new))
                .map_err(Arc::new);
        }
        let epoch = {
            let memory = inner.lock_entries();
            let now = inner.clock.now();
            match memory.entries.get(tenant) {
                Some(entry) if now < entry.expires_at => return Ok(entry.value.clone()),
                _ => memory.epoch,
            }
        };
        let loaded = inner
            .loads
            .share_call((tenant.clone(), epoch), || async move {
                load.await
                    .map(|value| value.map(Arc::new))
                    .map_err(Arc::new)
            })
            .await?;
        let mut memory = inner.lock_entries();
        if memory.epoch == epoch && inner.change_listener.is_listening() {
            let now = inner.clock.now();
            // Whoever shared the load and comes second must not prolong it.
            let fresh = memory
                .entries
                .get(tenant)
                .is_some_and(|entry| now < entry.expires_at);
            if !fresh {
                if memory.entries.len() >= MAX_CACHED_TENANTS {
                    memory.entries.clear();
                }
                let ttl = match loaded {
                    Some(_) => inner.ttl,
                    None => ABSENT_TTL.min(inner.ttl),
                };
                let entry = TenantCacheEntry {
                    value: loaded.clone(),
                    expires_at: now.plus(ttl),
                };
                memory.entries.insert(tenant.clone(), entry);
            }
        }
        Ok(loaded)
    }

    /// Wipes what has expired. Happens by itself every few seconds.
    pub fn remove_expired(&self) {
        self.inner.remove_expired();
    }

    /// Forgets the tenant's value, for a caller who knows better: a store that refuses the credential, say.
    pub fn invalidate(&self, tenant: &TenantId) {
        self.inner.apply_change(&DatabaseChange::Row {
            table: String::new(),
            tenant: tenant.clone(),
        });
    }
}

/// Ends with the cache: it holds no part of it between two rounds.
async fn sweep_periodically<T, E>(cache: Weak<TenantCacheInner<T, E>>) {
    loop {
        tokio::time::sleep(SWEEP_INTERVAL).await;
        match cache.upgrade() {
            Some(inner) => inner.remove_expired(),
            None => return,
        }
    }
}
