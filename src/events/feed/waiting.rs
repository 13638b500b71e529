//! The requests that wait for a tenant's next event.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::store::FeedProgress;
use crate::base::id::TenantId;

/// How many requests of one tenant may wait in one process.
pub(super) const MAX_WAITING_PER_TENANT: usize = 16;
/// How many requests may wait in one process.
const MAX_WAITING: usize = 512;

/// The waiting requests of one process. Clones share the state.
#[derive(Clone, Debug, Default)]
pub(super) struct WaitingRequests(Arc<Mutex<WaitingState>>);

#[derive(Debug, Default)]
struct WaitingState {
    tenants: HashMap<TenantId, WaitingTenant>,
    count: usize,
}

#[derive(Debug, Default)]
struct WaitingTenant {
    count: usize,
    wake: Arc<Notify>,
    /// The feed's position when it was looked at last.
    seen_position: Option<i64>,
}

/// Why a request may not wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TooManyWaiting {
    OfTenant,
    OfProcess,
}

/// One waiting request, until it is dropped.
#[derive(Debug)]
pub(super) struct WaitingRequest {
    all: WaitingRequests,
    tenant: TenantId,
    pub(super) wake: Arc<Notify>,
}

impl WaitingRequests {
    pub(super) fn add(&self, tenant: &TenantId) -> Result<WaitingRequest, TooManyWaiting> {
        let mut state = self.0.lock();
        if state.count >= MAX_WAITING {
            return Err(TooManyWaiting::OfProcess);
        }
        let of_tenant = state.tenants.entry(tenant.clone()).or_default();
        if of_tenant.count >= MAX_WAITING_PER_TENANT {
            return Err(TooManyWaiting::OfTenant);
        }
        of_tenant.count += 1;
        let wake = of_tenant.wake.clone();
        state.count += 1;
        Ok(WaitingRequest {
            all: self.clone(),
            tenant: tenant.clone(),
            wake,
        })
    }

    /// Wakes the requests of a tenant.
    pub(super) fn wake_tenant(&self, tenant: &TenantId) {
        if let Some(waiting) = self.0.lock().tenants.get(tenant) {
            waiting.wake.notify_waiters();
        }
    }

    /// The tenants that are waited for.
    pub(super) fn tenants(&self) -> Vec<String> {
        let state = self.0.lock();
        state.tenants.keys().map(ToString::to_string).collect()
    }

    /// Wakes the requests of tenants that have new events. A tenant that is looked at for the first time may have got
    /// some before that.
    pub(super) fn wake_changed(&self, progress: Vec<FeedProgress>) {
        let mut state = self.0.lock();
        for FeedProgress {
            tenant,
            last_position,
            has_unnumbered,
        } in progress
        {
            let Some(waiting) = state.tenants.get_mut(&tenant) else {
                continue;
            };
            let seen = waiting.seen_position.replace(last_position);
            if has_unnumbered || seen != Some(last_position) {
                waiting.wake.notify_waiters();
            }
        }
    }
}

impl Drop for WaitingRequest {
    fn drop(&mut self) {
        let mut state = self.all.0.lock();
        state.count -= 1;
        if let Some(waiting) = state.tenants.get_mut(&self.tenant) {
            waiting.count -= 1;
            if waiting.count == 0 {
                state.tenants.remove(&self.tenant);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock::Timestamp;

    #[test]
    fn requests_wait_up_to_the_limits_and_leave_nothing_behind() {
        let all = WaitingRequests::default();
        let tenant = TenantId::mint(Timestamp::from_millis(0));
        let mut waiting: Vec<_> = (0..MAX_WAITING_PER_TENANT)
            .map(|_| all.add(&tenant).expect("there is room"))
            .collect();
        assert_eq!(all.add(&tenant).err(), Some(TooManyWaiting::OfTenant));
        waiting.pop();
        assert!(all.add(&tenant).is_ok(), "a request has ended");
        drop(waiting);
        assert_eq!(all.tenants(), Vec::<String>::new());
        let others: Vec<_> = (0..MAX_WAITING)
            .map(|_| all.add(&TenantId::mint(Timestamp::from_millis(0))))
            .collect();
        assert!(others.iter().all(Result::is_ok));
        assert_eq!(all.add(&tenant).err(), Some(TooManyWaiting::OfProcess));
        drop(others);
        assert!(all.add(&tenant).is_ok());
    }
}
