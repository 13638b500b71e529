//! What a store is shown with each call, made with a tenant's credential and good for less than an hour.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::clock::{Clock, Timestamp};
use crate::crypto::{ExposeSecret as _, SecretString};
use crate::id::TenantId;

/// Whose: the tenant, and a digest of what it was made with, so that no pass outlives its key or its account.
pub type Owner = (TenantId, [u8; 32]);

/// Lets its holder ask a store for a tenant until it expires.
#[derive(Clone)]
pub struct Pass {
    secret: Arc<SecretString>,
    expires: Timestamp,
}

impl Pass {
    /// One that is good until then.
    pub fn new(secret: SecretString, expires: Timestamp) -> Self {
        Self {
            secret: Arc::new(secret),
            expires,
        }
    }

    /// For the `Authorization` header.
    pub fn secret(&self) -> &str {
        self.secret.expose_secret()
    }

    /// When it is good for nothing any more.
    pub fn expires(&self) -> Timestamp {
        self.expires
    }
}

impl fmt::Debug for Pass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pass(until {})", self.expires)
    }
}

/// Keeps them as long as they are good. Clones share them.
#[derive(Clone)]
pub struct Passes {
    clock: Clock,
    renew_early: Duration,
    kept: Arc<Mutex<HashMap<Owner, Pass>>>,
}

impl Passes {
    /// None so far. One that is so close to its end is not used any more.
    pub fn new(clock: Clock, renew_early: Duration) -> Self {
        Self {
            clock,
            renew_early,
            kept: Arc::default(),
        }
    }

    /// The owner's, if it is good for a while.
    pub fn get(&self, owner: &Owner) -> Option<Pass> {
        let now = self.clock.now();
        let kept = self.kept();
        kept.get(owner)
            .filter(|pass| self.is_fresh(pass, now))
            .cloned()
    }

    /// Keeps it. A few times an hour for each owner, so looking at all of them costs nothing, and dead ones leave memory.
    pub fn keep(&self, owner: Owner, pass: &Pass) {
        let now = self.clock.now();
        let mut kept = self.kept();
        kept.retain(|_, pass| self.is_fresh(pass, now));
        kept.insert(owner, pass.clone());
    }

    /// Forgets it, because the store refused it. A newer one of the same owner stays.
    pub fn forget(&self, owner: &Owner, pass: &Pass) {
        let mut kept = self.kept();
        let held = kept.get(owner);
        if held.is_some_and(|held| Arc::ptr_eq(&held.secret, &pass.secret)) {
            kept.remove(owner);
        }
    }

    fn is_fresh(&self, pass: &Pass, now: Timestamp) -> bool {
        now.plus(self.renew_early) < pass.expires
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, HashMap<Owner, Pass>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EARLY: Duration = Duration::from_mins(2);
    const LIFETIME: Duration = Duration::from_mins(20);

    #[test]
    fn what_is_nearly_over_is_not_used_and_leaves_memory_and_a_newer_one_stays() {
        let clock = Clock::fixed(Timestamp::from_millis(0));
        let passes = Passes::new(clock.clone(), EARLY);
        let owner = |number| (TenantId::mint(Timestamp::from_millis(0)), [number; 32]);
        let pass = |text: &str| Pass::new(text.to_owned().into(), clock.now().plus(LIFETIME));
        let (one, other) = (owner(1), owner(2));
        let first = pass("first");
        passes.keep(one.clone(), &first);
        assert!(passes.get(&other).is_none());
        clock.advance(LIFETIME.saturating_sub(EARLY + Duration::from_millis(1)));
        assert_eq!(passes.get(&one).expect("it is good").secret(), "first");
        clock.advance(Duration::from_millis(1));
        assert!(passes.get(&one).is_none());

        let second = pass("second");
        passes.keep(one.clone(), &second);
        passes.forget(&one, &first);
        assert_eq!(passes.get(&one).expect("it stays").secret(), "second");
        clock.advance(LIFETIME);
        passes.keep(other.clone(), &pass("third"));
        assert_eq!(passes.kept().len(), 1);
        passes.forget(&other, &passes.get(&other).expect("it is good"));
        assert!(passes.get(&other).is_none());
        assert!(!format!("{second:?}").contains("second"));
    }
}
