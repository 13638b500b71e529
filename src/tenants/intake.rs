//! How many notifications, and how much of them, a process takes in for one tenant.
//!
//! The rate limit counts what a tenant asks with its API keys. Notifications have no key: a tenant that sends its own messages
//! through its topic, without end, would fill the disk of all. Two budgets, in events and in bytes, are looked at before a notification is read, and
//! charged once it is known to be genuine: what a stranger sends to a tenant's address costs the tenant nothing. So the last
//! notification of a budget may exceed it; what it exceeds is owed by the next.
//!
//! Not `governor`, as [`rate_limiter`](super::rate_limiter): its cells refuse what they cannot hold, and here it is not known how large a
//! notification is before it has been read.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::base::clock::{Clock, Timestamp};
use crate::base::id::TenantId;
use crate::http::body_budget::RefusalMetrics;
use crate::replicas::{LiveReplicaCount, MAX_THROTTLED_TENANTS};

/// What a budget is for, and at most saved up for.
const PERIOD: Duration = Duration::from_mins(1);
const BYTES_PER_MEGABYTE: u64 = 1_000_000;
/// How long a refusal is reported.
const REPORT_PERIOD: Duration = Duration::from_hours(24);
/// From this many tenants on, those without debts are dropped from time to time.
const MIN_CLEANUP_TENANTS: usize = 1024;
/// The reason of a refusal, in metrics and in the log.
const INTAKE_BUDGET_SPENT: &str = "tenant_intake";

/// The budget of a tenant without its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IntakeLimit {
    /// The setting `INTAKE_EVENTS_PER_MINUTE`
    pub events_per_minute: u32,
    /// `INTAKE_MEGABYTES_PER_MINUTE`, each of a million bytes
    pub megabytes_per_minute: u32,
}

/// A tenant's own budget; `None` means the one of the settings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IntakeLimitOverrides {
    /// Notifications a minute, from 1.
    pub events_per_minute: Option<u32>,
    /// Megabytes of notifications a minute, from 1.
    pub megabytes_per_minute: Option<u32>,
}

impl IntakeLimitOverrides {
    fn or_default(self, service: IntakeLimit) -> IntakeLimit {
        IntakeLimit {
            events_per_minute: self.events_per_minute.unwrap_or(service.events_per_minute),
            megabytes_per_minute: self
                .megabytes_per_minute
                .unwrap_or(service.megabytes_per_minute),
        }
    }
}

/// A tenant's budget is spent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the tenant's budget for notifications is spent; the next is taken in {wait:?}")]
pub struct IntakeBudgetSpentError {
    /// The time until a notification is taken in again.
    pub wait: Duration,
}

impl IntakeBudgetSpentError {
    /// The class of the cause, for the log.
    pub const CLASS: &'static str = INTAKE_BUDGET_SPENT;
}

/// The budgets of all tenants. Clones share them.
#[derive(Clone)]
pub struct IntakeBudgets(Arc<BudgetsState>);

struct BudgetsState {
    clock: Clock,
    default_limit: IntakeLimit,
    refusals: RefusalMetrics,
    /// `None` if budgets are for one process.
    replicas_sharing_limits: Option<LiveReplicaCount>,
    tenants: Mutex<TenantBudgets>,
}

struct TenantBudgets {
    by_tenant: HashMap<TenantId, TenantBudget>,
    /// At how many tenants those without debts are dropped next.
    cleanup_at: usize,
}

/// What a tenant has spent, as the times until which it lasts, by the clock's uptime.
#[derive(Clone, Copy, Debug, Default)]
struct TenantBudget {
    events_last_until: Duration,
    bytes_last_until: Duration,
    refused_at: Option<Timestamp>,
}

impl TenantBudget {
    /// The time until both budgets have room for another notification.
    fn wait(&self, now: Duration, event_cost: Duration) -> Duration {
        let full = now + PERIOD;
        let events = (self.events_last_until.max(now) + event_cost).saturating_sub(full);
        let bytes = match self.bytes_last_until.checked_sub(full) {
            Some(exceeded) => exceeded + Duration::from_millis(1),
            None => Duration::ZERO,
        };
        events.max(bytes)
    }

    fn charge(&mut self, now: Duration, event_cost: Duration, byte_cost: Duration) {
        self.events_last_until = self.events_last_until.max(now).saturating_add(event_cost);
        self.bytes_last_until = self.bytes_last_until.max(now).saturating_add(byte_cost);
    }

    /// Whether it is the same as a new one.
    fn is_unspent(&self, now: Duration) -> bool {
        self.events_last_until <= now && self.bytes_last_until <= now && self.refused_at.is_none()
    }
}

/// How long a budget of `limit` in a period, divided among `replicas`, takes to provide for `spent`.
fn cost(spent: u64, limit: u64, replicas: u32) -> Duration {
    let share = limit.div_ceil(u64::from(replicas.max(1))).max(1);
    let nanos = PERIOD.as_nanos() * u128::from(spent) / u128::from(share);
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

impl BudgetsState {
    fn replicas(&self) -> u32 {
        let replicas = self.replicas_sharing_limits.as_ref();
        replicas.map_or(1, LiveReplicaCount::get)
    }
}

impl IntakeBudgets {
    /// `limit` is for tenants without a budget of their own.
    pub(crate) fn new(clock: &Clock, limit: IntakeLimit, refusals: &RefusalMetrics) -> Self {
        refusals.declare_reason(INTAKE_BUDGET_SPENT);
        Self::build(clock, limit, refusals.clone(), None)
    }

    fn build(
        clock: &Clock,
        default_limit: IntakeLimit,
        refusals: RefusalMetrics,
        replicas_sharing_limits: Option<LiveReplicaCount>,
    ) -> Self {
        Self(Arc::new(BudgetsState {
            clock: clock.clone(),
            default_limit,
            refusals,
            replicas_sharing_limits,
            tenants: Mutex::new(TenantBudgets {
                by_tenant: HashMap::new(),
                cleanup_at: MIN_CLEANUP_TENANTS,
            }),
        }))
    }

    /// The same, with each tenant's budget divided by the number of processes that serve.
    #[must_use]
    pub(crate) fn divided_among(self, replicas: LiveReplicaCount) -> Self {
        let state = &self.0;
        Self::build(
            &state.clock,
            state.default_limit,
            state.refusals.clone(),
            Some(replicas),
        )
    }

    /// Admits a notification if the tenant's budget is not spent. Nothing is charged yet.
    pub(crate) fn admit(
        &self,
        tenant: &TenantId,
        limit: IntakeLimitOverrides,
    ) -> Result<IntakeAdmission, IntakeBudgetSpentError> {
        let state = &self.0;
        let now = state.clock.uptime();
        let limit = limit.or_default(state.default_limit);
        let event_cost = cost(1, limit.events_per_minute.into(), state.replicas());
        if let Some(budget) = state.tenants.lock().by_tenant.get_mut(tenant) {
            let wait = budget.wait(now, event_cost);
            if !wait.is_zero() {
                let refused_at = state.clock.now();
                let is_logged = budget
                    .refused_at
                    .is_some_and(|last| refused_at.duration_since(last) < PERIOD);
                budget.refused_at = Some(refused_at);
                if !is_logged {
                    tracing::warn!(
                        tenantId = tenant.as_str(),
                        hint = "the store sends them again; `attesto tenant set-limits` raises this tenant's budget",
                        "notification_budget_spent"
                    );
                }
                state.refusals.count_refusal(INTAKE_BUDGET_SPENT);
                return Err(IntakeBudgetSpentError { wait });
            }
        }
        Ok(IntakeAdmission {
            budgets: self.clone(),
            tenant: tenant.clone(),
            limit,
        })
    }

    /// The tenants whose notifications were refused within a day, and when that was last: a few, the latest first refused.
    pub(crate) fn recent_refusals(&self) -> BTreeMap<TenantId, Timestamp> {
        let now = self.0.clock.now();
        let mut tenants = self.0.tenants.lock();
        let mut recent = Vec::new();
        for (tenant, budget) in &mut tenants.by_tenant {
            match budget.refused_at {
                Some(at) if now.duration_since(at) < REPORT_PERIOD => {
                    recent.push((at, tenant.clone()));
                }
                _ => budget.refused_at = None,
            }
        }
        recent.sort_unstable_by(|one, other| other.cmp(one));
        recent.truncate(MAX_THROTTLED_TENANTS);
        recent
            .into_iter()
            .map(|(at, tenant)| (tenant, at))
            .collect()
    }
}

/// A notification that is taken in, if it is genuine.
#[derive(Clone)]
pub(crate) struct IntakeAdmission {
    budgets: IntakeBudgets,
    tenant: TenantId,
    limit: IntakeLimit,
}

impl std::fmt::Debug for IntakeAdmission {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("IntakeAdmission")
            .field(&self.tenant)
            .finish()
    }
}

impl IntakeAdmission {
    pub(crate) fn tenant(&self) -> &TenantId {
        &self.tenant
    }

    /// Charges the tenant for a notification of this size.
    pub(crate) fn charge(&self, bytes: usize) {
        let state = &self.budgets.0;
        let now = state.clock.uptime();
        let replicas = state.replicas();
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        let byte_limit = u64::from(self.limit.megabytes_per_minute) * BYTES_PER_MEGABYTE;
        let event_cost = cost(1, self.limit.events_per_minute.into(), replicas);
        let byte_cost = cost(bytes, byte_limit, replicas);
        let mut tenants = state.tenants.lock();
        if tenants.by_tenant.len() >= tenants.cleanup_at
            && !tenants.by_tenant.contains_key(&self.tenant)
        {
            tenants
                .by_tenant
                .retain(|_, budget| !budget.is_unspent(now));
            tenants.cleanup_at = MIN_CLEANUP_TENANTS.max(tenants.by_tenant.len() * 2);
        }
        let budget = tenants.by_tenant.entry(self.tenant.clone()).or_default();
        budget.charge(now, event_cost, byte_cost);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: IntakeLimit = IntakeLimit {
        events_per_minute: 60,
        megabytes_per_minute: 6,
    };

    fn budgets() -> (IntakeBudgets, Clock) {
        let clock = Clock::fixed(Timestamp::from_millis(1_775_830_930_000));
        let budgets = IntakeBudgets::new(&clock, LIMIT, &RefusalMetrics::default());
        (budgets, clock)
    }

    fn tenant(number: i64) -> TenantId {
        TenantId::mint(Timestamp::from_millis(number))
    }

    /// How many notifications of this size are taken in at once.
    fn flood(
        budgets: &IntakeBudgets,
        tenant: &TenantId,
        own: IntakeLimitOverrides,
        bytes: usize,
    ) -> (usize, Duration) {
        let mut taken = 0;
        loop {
            match budgets.admit(tenant, own) {
                Ok(admission) => admission.charge(bytes),
                Err(spent) => return (taken, spent.wait),
            }
            taken += 1;
        }
    }

    #[test]
    fn a_minutes_worth_is_taken_at_once_and_then_a_steady_flow() {
        let own = |events, megabytes| IntakeLimitOverrides {
            events_per_minute: events,
            megabytes_per_minute: megabytes,
        };
        // The size of each, and how many are taken at once and in a second: the last of them may exceed the budget in bytes.
        for (own, bytes, at_once, in_a_second) in [
            (own(None, None), 100, 60, 1),
            (own(None, None), 1_000_000, 6, 1),
            (own(Some(600), None), 100, 600, 10),
            (own(Some(600), Some(60)), 1_000_000, 60, 1),
            (own(Some(60), None), 5_000_000, 2, 0),
            (own(Some(1), Some(1)), 5_000_000, 1, 0),
        ] {
            let (budgets, clock) = budgets();
            let tenant = tenant(1);
            let (taken, _) = flood(&budgets, &tenant, own, bytes);
            assert_eq!(taken, at_once, "{own:?}, {bytes}");
            clock.advance(Duration::from_secs(1));
            let (taken, wait) = flood(&budgets, &tenant, own, bytes);
            assert_eq!(taken, in_a_second, "{own:?}, {bytes}");
            clock.advance(wait.saturating_sub(Duration::from_millis(2)));
            assert_eq!(flood(&budgets, &tenant, own, bytes).0, 0, "{wait:?}");
            clock.advance(Duration::from_millis(3));
            assert_eq!(flood(&budgets, &tenant, own, bytes).0, 1, "{wait:?}");
            clock.advance(Duration::from_hours(1));
            assert_eq!(flood(&budgets, &tenant, own, bytes).0, at_once);
        }
    }

    #[test]
    fn what_is_not_charged_costs_nothing_and_tenants_do_not_share() {
        let (budgets, _) = budgets();
        let own = IntakeLimitOverrides::default();
        for _ in 0..1000 {
            budgets.admit(&tenant(1), own).unwrap();
        }
        assert!(budgets.0.tenants.lock().by_tenant.is_empty());
        assert_eq!(flood(&budgets, &tenant(1), own, 10).0, 60);
        assert_eq!(flood(&budgets, &tenant(2), own, 10).0, 60);
    }

    #[test]
    fn processes_divide_a_budget() {
        let (budgets, _) = budgets();
        let replicas = LiveReplicaCount::default();
        replicas.set(3);
        let budgets = budgets.divided_among(replicas);
        let own = IntakeLimitOverrides::default();
        assert_eq!(flood(&budgets, &tenant(1), own, 10).0, 20);
    }

    #[test]
    fn refusals_are_reported_for_a_day() {
        let (budgets, clock) = budgets();
        let own = IntakeLimitOverrides::default();
        assert!(budgets.recent_refusals().is_empty());
        let mut last = tenant(0);
        for number in 1..20 {
            last = tenant(number);
            flood(&budgets, &last, own, 10);
            clock.advance(Duration::from_secs(1));
        }
        let reported = budgets.recent_refusals();
        assert_eq!(reported.len(), MAX_THROTTLED_TENANTS);
        assert!(reported.contains_key(&last));
        clock.advance(REPORT_PERIOD);
        assert!(budgets.recent_refusals().is_empty());
    }

    #[test]
    fn tenants_without_debts_are_forgotten() {
        let (budgets, clock) = budgets();
        let own = IntakeLimitOverrides::default();
        for number in 0..5000 {
            budgets.admit(&tenant(number), own).unwrap().charge(10);
            clock.advance(Duration::from_secs(1));
        }
        let kept = budgets.0.tenants.lock().by_tenant.len();
        assert!(kept <= MIN_CLEANUP_TENANTS, "{kept}");
    }
}
