//! A tenant's opened credential, remembered.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use crate::clock::{Clock, Timestamp};
use crate::db::changes::{Change, Changes};
use crate::id::TenantId;
use crate::outbound::InFlight;

/// How long "there is none" is remembered. Short, although a change is heard of: a tenant who has just been set up
/// by hand should not have to know about caches.
const ABSENT_TTL: Duration = Duration::from_secs(5);
/// More tenants than this are not remembered at once.
const MOST: usize = 10_000;
/// How often values whose time is over are wiped although nobody asks for them.
const SWEEP_EVERY: Duration = Duration::from_secs(15);

/// One value a tenant, loaded when first asked for.
///
/// Callers who ask at the same time share one load. A value is forgotten when its time is over, when its row changes,
/// and when changes are no longer heard; while they are not, every call loads anew. A load that was overtaken by a
/// change answers whoever waits for it and is not remembered.
///
/// `E` is what can go wrong in loading; an error is never remembered.
pub struct Cached<T, E> {
    inner: Arc<Inner<T, E>>,
}

impl<T, E> Clone for Cached<T, E> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
        }
    }
}

struct Inner<T, E> {
    ttl: Duration,
    clock: Clock,
    changes: Changes,
    memory: Mutex<Memory<T>>,
    loads: InFlight<(TenantId, u64), Loaded<T, E>>,
}

type Loaded<T, E> = Result<Option<Arc<T>>, Arc<E>>;

struct Memory<T> {
    entries: HashMap<TenantId, Entry<T>>,
    /// Counts the changes heard of: a load that began under another number has been overtaken.
    epoch: u64,
}

struct Entry<T> {
    value: Option<Arc<T>>,
    expires: Timestamp,
}

impl<T, E> Inner<T, E> {
    fn memory(&self) -> std::sync::MutexGuard<'_, Memory<T>> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forget(&self, change: &Change) {
        let mut memory = self.memory();
        memory.epoch += 1;
        match change {
            Change::Row { tenant, .. } => drop(memory.entries.remove(tenant)),
            Change::Everything => memory.entries.clear(),
        }
    }

    fn sweep(&self) {
        let now = self.clock.now();
        self.memory().entries.retain(|_, entry| now < entry.expires);
    }
}

impl<T: Send + Sync + 'static, E: Send + Sync + 'static> Cached<T, E> {
    /// Remembers what is loaded from `table` for `ttl`. Call it where a runtime is: it wipes what has expired in the
    /// background for as long as the cache lives.
    pub fn new(table: &'static str, ttl: Duration, clock: Clock, changes: &Changes) -> Self {
        let inner = Arc::new(Inner {
            ttl,
            clock,
            changes: changes.clone(),
            memory: Mutex::new(Memory {
                entries: HashMap::new(),
                epoch: 0,
            }),
            loads: InFlight::default(),
        });
        let forgetful = Arc::downgrade(&inner);
        changes.subscribe(move |change| {
            if change.concerns(table)
                && let Some(inner) = forgetful.upgrade()
            {
                inner.forget(change);
            }
        });
        tokio::spawn(sweep(Arc::downgrade(&inner)));
        Self { inner }
    }

    /// The tenant's value: the remembered one, or what `load` brings. `load` is not polled when it is not needed.
    pub async fn get(
        &self,
        tenant: &TenantId,
        load: impl Future<Output = Result<Option<T>, E>> + Send + 'static,
    ) -> Loaded<T, E> {
        let inner = &self.inner;
        if !inner.changes.listening() {
            // Not shared either: somebody else's load may have begun before a change that this caller knows of.
            return load
                .await
                .map(|value| value.map(Arc::new))
                .map_err(Arc::new);
        }
        let epoch = {
            let memory = inner.memory();
            let now = inner.clock.now();
            match memory.entries.get(tenant) {
                Some(entry) if now < entry.expires => return Ok(entry.value.clone()),
                _ => memory.epoch,
            }
        };
        let loaded = inner
            .loads
            .share((tenant.clone(), epoch), || async move {
                load.await
                    .map(|value| value.map(Arc::new))
                    .map_err(Arc::new)
            })
            .await?;
        let mut memory = inner.memory();
        if memory.epoch == epoch && inner.changes.listening() {
            let now = inner.clock.now();
            // Whoever shared the load and comes second must not prolong it.
            let fresh = memory
                .entries
                .get(tenant)
                .is_some_and(|entry| now < entry.expires);
            if !fresh {
                if memory.entries.len() >= MOST {
                    memory.entries.clear();
                }
                let ttl = match loaded {
                    Some(_) => inner.ttl,
                    None => ABSENT_TTL.min(inner.ttl),
                };
                let entry = Entry {
                    value: loaded.clone(),
                    expires: now.plus(ttl),
                };
                memory.entries.insert(tenant.clone(), entry);
            }
        }
        Ok(loaded)
    }

    /// Wipes what has expired. Happens by itself every few seconds.
    pub fn sweep(&self) {
        self.inner.sweep();
    }

    /// Forgets the tenant's value, for a caller who knows better: a store that refuses the credential, say.
    pub fn invalidate(&self, tenant: &TenantId) {
        self.inner.forget(&Change::Row {
            table: String::new(),
            tenant: tenant.clone(),
        });
    }
}

/// Ends with the cache: it holds no part of it between two rounds.
async fn sweep<T, E>(cache: Weak<Inner<T, E>>) {
    loop {
        tokio::time::sleep(SWEEP_EVERY).await;
        match cache.upgrade() {
            Some(inner) => inner.sweep(),
            None => return,
        }
    }
}
