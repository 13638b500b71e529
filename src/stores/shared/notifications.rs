//! What both stores' notifications need before they are read.

use std::sync::Arc;
use std::time::Duration;

use crate::base::clock::{Clock, Timestamp};
use crate::base::id::TenantId;
use crate::base::lookup_lanes::{LookupLanes, LookupLimits, LookupPermit, LookupQueueFullError};
use crate::credentials::TenantCache;
use crate::db::change_listener::ChangeListener;
use crate::db::{self, Database};
use crate::http::api_docs::DocumentedError;
use crate::http::body_budget::RefusalMetrics;
use crate::http::{ErrorCode, Problem};
use crate::tenants::intake::{IntakeAdmission, IntakeBudgetSpentError};
use crate::tenants::{self, IntakeBudgets, IntakeLimitOverrides};

/// How long it is cached that a tenant is active. A change to the tenant's row ends it sooner.
const ACTIVE_TENANT_TTL: Duration = Duration::from_mins(5);
/// The reason of a refusal, in metrics and in the log.
const TENANT_LOOKUPS_BUSY: &str = "tenant_lookups";
/// When a store should come again that was refused because of others.
const BUSY_RETRY_AFTER: Duration = Duration::from_secs(5);
/// The last millisecond of the year 9999: RFC 3339 has no later time.
const MAX_TIMESTAMP_MILLIS: i64 = 253_402_300_799_999;

/// Which tenants are active, cached. Clones share the cache.
#[derive(Clone)]
pub(crate) struct ActiveTenants {
    database: Database,
    cache: TenantCache<IntakeLimitOverrides, TenantLookupError>,
    lookups: TenantLookups,
    intake: IntakeBudgets,
}

/// Why it is not known what there is of a tenant.
#[derive(Debug, thiserror::Error)]
pub enum TenantLookupError {
    #[error(transparent)]
    Busy(#[from] LookupQueueFullError),
    #[error("{}", crate::db::describe_cause(.0))]
    Database(#[from] db::Error),
}

/// Why a notification is not taken in, before it is read.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AdmissionError {
    /// There is no tenant with this id, or it is inactive.
    #[error("there is no active tenant of this id")]
    TenantInactive,
    /// The database did not say whether the tenant is active.
    #[error("{0}")]
    TenantLookup(#[from] Arc<TenantLookupError>),
    /// The tenant's budget for notifications is spent.
    #[error(transparent)]
    BudgetSpent(#[from] IntakeBudgetSpentError),
}

impl From<AdmissionError> for Problem {
    fn from(error: AdmissionError) -> Self {
        match error {
            AdmissionError::TenantInactive => Self::tenant_not_found(),
            AdmissionError::TenantLookup(error) => (&*error).into(),
            AdmissionError::BudgetSpent(spent) => Self::new(
                ErrorCode::RateLimited,
                "This tenant's budget for notifications is spent. Send this one again after Retry-After.",
            )
            .with_retry_after(spent.wait)
            .with_cause(spent)
            .with_cause_class(IntakeBudgetSpentError::CLASS),
        }
    }
}

/// What every notification route documents beside its own errors.
pub(crate) fn describe_admission_errors() -> [DocumentedError; 2] {
    [
        DocumentedError::new(
            "the tenant's budget for notifications is spent",
            AdmissionError::BudgetSpent(IntakeBudgetSpentError {
                wait: Duration::from_secs(7),
            }),
        ),
        DocumentedError::new(
            "too many tenants that are not known yet are being looked up",
            &TenantLookupError::Busy(LookupQueueFullError),
        ),
    ]
}

impl From<&TenantLookupError> for Problem {
    fn from(error: &TenantLookupError) -> Self {
        match error {
            TenantLookupError::Busy(full) => Self::new(
                ErrorCode::Unavailable,
                "Attesto is looking up too many tenants right now. Send this notification again after Retry-After.",
            )
            .with_retry_after(BUSY_RETRY_AFTER)
            .with_cause(full)
            .with_cause_class(TENANT_LOOKUPS_BUSY),
            TenantLookupError::Database(error) => error.into(),
        }
    }
}

/// Bounds the lookups of tenants that senders without an API key can cause, with room for tenants that were found before.
/// Clones share the bounds.
#[derive(Clone)]
pub(crate) struct TenantLookups {
    lanes: Arc<LookupLanes<TenantId>>,
    refusals: RefusalMetrics,
}

impl TenantLookups {
    pub(crate) fn new(database: &Database, clock: &Clock) -> Self {
        let limits = LookupLimits::for_pool(database.max_connections());
        Self {
            lanes: Arc::new(LookupLanes::new(clock, limits)),
            refusals: RefusalMetrics::default(),
        }
    }

    #[must_use]
    pub(crate) fn with_refusal_metrics(self, refusals: &RefusalMetrics) -> Self {
        refusals.declare_reason(TENANT_LOOKUPS_BUSY);
        Self {
            refusals: refusals.clone(),
            ..self
        }
    }

    /// Waits until something of `tenant` may be looked up.
    pub(crate) async fn enter(
        &self,
        tenant: &TenantId,
    ) -> Result<LookupPermit, LookupQueueFullError> {
        let permit = self.lanes.enter(tenant).await;
        if permit.is_err() {
            self.refusals.count_refusal(TENANT_LOOKUPS_BUSY);
        }
        permit
    }

    /// Notes whether it was found.
    pub(crate) fn record_result(&self, tenant: &TenantId, is_found: bool) {
        self.lanes.record_result(tenant, is_found);
    }
}

impl ActiveTenants {
    pub(crate) fn new(
        database: &Database,
        clock: &Clock,
        changes: &ChangeListener,
        lookups: &TenantLookups,
        intake: &IntakeBudgets,
    ) -> Self {
        Self {
            intake: intake.clone(),
            database: database.clone(),
            cache: TenantCache::new("tenants", ACTIVE_TENANT_TTL, clock.clone(), changes),
            lookups: lookups.clone(),
        }
    }

    /// Whether a notification of `tenant` may be taken in, as far as it is known before it is read.
    pub(crate) async fn admit(&self, tenant: &TenantId) -> Result<IntakeAdmission, AdmissionError> {
        let limits = self.find_limits(tenant).await?;
        let limits = limits.ok_or(AdmissionError::TenantInactive)?;
        Ok(self.intake.admit(tenant, *limits)?)
    }

    async fn find_limits(
        &self,
        tenant: &TenantId,
    ) -> Result<Option<Arc<IntakeLimitOverrides>>, Arc<TenantLookupError>> {
        let (database, id, lookups) = (self.database.clone(), tenant.clone(), self.lookups.clone());
        let load = async move {
            let permit = lookups.enter(&id).await?;
            let found = tenants::store::find_tenant(&database, &id).await?;
            drop(permit);
            lookups.record_result(&id, found.is_some());
            let active = found.filter(|tenant| tenant.is_active);
            Ok(active.map(|tenant| tenant.intake))
        };
        self.cache.get_or_load(tenant, load).await
    }
}

/// Whether RFC 3339 has a date for it. What a store sends need not be one.
pub(crate) fn is_representable_time(time: Timestamp) -> bool {
    (1..=MAX_TIMESTAMP_MILLIS).contains(&time.as_millis())
}
