//! What a store is shown with each call, made with a tenant's credential and good for less than an hour.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::base::clock::{Clock, Timestamp};
use crate::base::id::TenantId;
use crate::crypto::{ExposeSecret as _, SecretString};

/// Whose: the tenant, and a digest of what it was made with, so that no pass outlives its key or its account.
pub type TokenCacheKey = (TenantId, [u8; 32]);

/// Lets its holder ask a store for a tenant until it expires.
#[derive(Clone)]
pub struct AccessToken {
    secret: Arc<SecretString>,
    expires_at: Timestamp,
}

impl AccessToken {
    /// One that is good until then.
    pub fn new(secret: SecretString, expires_at: Timestamp) -> Self {
        Self {
            secret: Arc::new(secret),
            expires_at,
        }
    }

    /// For the `Authorization` header.
    pub fn secret(&self) -> &str {
        self.secret.expose_secret()
    }

    /// When it is good for nothing any more.
    pub fn expires_at(&self) -> Timestamp {
        self.expires_at
    }
}

impl fmt::Debug for AccessToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pass(until {})", self.expires_at)
    }
}

/// Keeps them as long as they are good. Clones share them.
#[derive(Clone)]
pub struct TokenCache {
    clock: Clock,
    renew_before_expiry: Duration,
    tokens: Arc<Mutex<HashMap<TokenCacheKey, AccessToken>>>,
}

impl TokenCache {
    /// None so far. One that is so close to its end is not used any more.
    pub fn new(clock: Clock, renew_before_expiry: Duration) -> Self {
        Self {
            clock,
            renew_before_expiry,
            tokens: Arc::default(),
        }
    }

    /// The owner's, if it is good for a while.
    pub fn get(&self, owner: &TokenCacheKey) -> Option<AccessToken> {
        let now = self.clock.now();
        let kept = self.lock_tokens();
        kept.get(owner)
            .filter(|pass| self.is_fresh(pass, now))
            .cloned()
    }

    /// Keeps it. A few times an hour for each owner, so looking at all of them costs nothing, and dead ones leave memory.
    pub fn insert(&self, owner: TokenCacheKey, pass: &AccessToken) {
        let now = self.clock.now();
        let mut kept = self.lock_tokens();
        kept.retain(|_, pass| self.is_fresh(pass, now));
        kept.insert(owner, pass.clone());
    }

    /// Forgets it, because the store refused it. A newer one of the same owner stays.
    pub fn remove_refused(&self, owner: &TokenCacheKey, pass: &AccessToken) {
        let mut kept = self.lock_tokens();
        let held = kept.get(owner);
        if held.is_some_and(|held| Arc::ptr_eq(&held.secret, &pass.secret)) {
            kept.remove(owner);
        }
    }

    fn is_fresh(&self, pass: &AccessToken, now: Timestamp) -> bool {
        now.plus(self.renew_before_expiry) < pass.expires_at
    }

    fn lock_tokens(&self) -> std::sync::MutexGuard<'_, HashMap<TokenCacheKey, AccessToken>> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
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
        let passes = TokenCache::new(clock.clone(), EARLY);
        let owner = |number| (TenantId::mint(Timestamp::from_millis(0)), [number; 32]);
        let pass =
            |text: &str| AccessToken::new(text.to_owned().into(), clock.now().plus(LIFETIME));
        let (one, other) = (owner(1), owner(2));
        let first = pass("first");
        passes.insert(one.clone(), &first);
        assert!(passes.get(&other).is_none());
        clock.advance(LIFETIME.saturating_sub(EARLY + Duration::from_millis(1)));
        assert_eq!(passes.get(&one).expect("it is good").secret(), "first");
        clock.advance(Duration::from_millis(1));
        assert!(passes.get(&one).is_none());

        let second = pass("second");
        passes.insert(one.clone(), &second);
        passes.remove_refused(&one, &first);
        assert_eq!(passes.get(&one).expect("it stays").secret(), "second");
        clock.advance(LIFETIME);
        passes.insert(other.clone(), &pass("third"));
        assert_eq!(passes.lock_tokens().len(), 1);
        passes.remove_refused(&other, &passes.get(&other).expect("it is good"));
        assert!(passes.get(&other).is_none());
        assert!(!format!("{second:?}").contains("second"));
    }
}
