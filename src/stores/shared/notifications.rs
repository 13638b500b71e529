//! What both stores' notifications need before they are read.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use crate::base::clock::{Clock, Timestamp};
use crate::base::id::TenantId;
use crate::credentials::TenantCache;
use crate::db::change_listener::ChangeListener;
use crate::db::{self, Database};
use crate::tenants;

/// How long it is cached that a tenant is active. A change to the tenant's row ends it sooner.
const ACTIVE_TENANT_TTL: Duration = Duration::from_mins(5);
/// How long a lookup waits while too many others run.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(2);
/// The last millisecond of the year 9999: RFC 3339 has no later time.
const MAX_TIMESTAMP_MILLIS: i64 = 253_402_300_799_999;

/// Which tenants are active, cached. Clones share the cache.
#[derive(Clone)]
pub(crate) struct ActiveTenants {
    database: Database,
    cache: TenantCache<(), db::Error>,
    lookups: Option<Arc<Semaphore>>,
}

impl ActiveTenants {
    pub(crate) fn new(database: &Database, clock: &Clock, changes: &ChangeListener) -> Self {
        Self {
            database: database.clone(),
            cache: TenantCache::new("tenants", ACTIVE_TENANT_TTL, clock.clone(), changes),
            lookups: None,
        }
    }

    /// Looks up at most `max` tenants at once in the database: for a route that can be called without authentication,
    /// so that such calls do not take every connection.
    #[must_use]
    pub(crate) fn with_max_concurrent_lookups(mut self, max: usize) -> Self {
        self.lookups = Some(Arc::new(Semaphore::new(max)));
        self
    }

    pub(crate) async fn is_active(&self, tenant: &TenantId) -> Result<bool, Arc<db::Error>> {
        let (database, id, lookups) = (self.database.clone(), tenant.clone(), self.lookups.clone());
        let load = async move {
            let _permit = match &lookups {
                Some(lookups) => {
                    let permit = tokio::time::timeout(LOOKUP_TIMEOUT, lookups.acquire()).await;
                    let Ok(Ok(permit)) = permit else {
                        return Err(db::Error::PoolTimedOut);
                    };
                    Some(permit)
                }
                None => None,
            };
            let found = tenants::store::find_tenant(&database, &id).await?;
            Ok(found.filter(|tenant| tenant.is_active).map(drop))
        };
        let found = self.cache.get_or_load(tenant, load).await?;
        Ok(found.is_some())
    }
}

/// Whether RFC 3339 has a date for it. What a store sends need not be one.
pub(crate) fn is_representable_time(time: Timestamp) -> bool {
    (1..=MAX_TIMESTAMP_MILLIS).contains(&time.as_millis())
}
