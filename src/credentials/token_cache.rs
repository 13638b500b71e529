//! Access tokens for the stores. A token is made with a tenant's credential, sent with each call, and valid for up to
//! an hour.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::base::cache::Cache;
use crate::base::clock::{Clock, Timestamp};
use crate::base::id::TenantId;
use crate::crypto::{ExposeSecret as _, SecretString};

/// Far more than the tenants that make calls within an hour.
const MAX_CACHED_TOKENS: usize = 100_000;

/// The tenant, and a digest of the key or account that the token was made with, so that a replaced credential's token
/// is not used.
pub type TokenCacheKey = (TenantId, [u8; 32]);

/// A bearer token for a store's API.
#[derive(Clone)]
pub struct AccessToken {
    secret: Arc<SecretString>,
    expires_at: Timestamp,
}

impl AccessToken {
    /// A token that the store accepts until `expires_at`.
    pub fn new(secret: SecretString, expires_at: Timestamp) -> Self {
        Self {
            secret: Arc::new(secret),
            expires_at,
        }
    }

    /// The token, for the `Authorization` header.
    pub fn secret(&self) -> &str {
        self.secret.expose_secret()
    }

    /// When the store stops accepting it.
    pub fn expires_at(&self) -> Timestamp {
        self.expires_at
    }
}

impl fmt::Debug for AccessToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AccessToken(expires at {})", self.expires_at)
    }
}

/// Caches access tokens until shortly before they expire. Clones share the entries.
#[derive(Clone)]
pub struct TokenCache {
    clock: Clock,
    renew_before_expiry: Duration,
    tokens: Cache<TokenCacheKey, AccessToken>,
}

impl TokenCache {
    /// An empty cache. A token is no longer used once it expires within `renew_before_expiry`.
    pub fn new(clock: Clock, renew_before_expiry: Duration) -> Self {
        Self {
            tokens: Cache::new(clock.clone(), MAX_CACHED_TOKENS),
            clock,
            renew_before_expiry,
        }
    }

    /// The token under `key`, unless it expires within `renew_before_expiry`.
    pub fn get(&self, key: &TokenCacheKey) -> Option<AccessToken> {
        let usable_until = self.clock.now().plus(self.renew_before_expiry);
        let token = self.tokens.get(key);
        // The cache measures elapsed time. This check also covers a machine clock that was set forward.
        token.filter(|token| usable_until < token.expires_at)
    }

    /// Caches a token. Also drops expired tokens, which costs little: a token is cached a few times an hour for each
    /// tenant.
    pub fn insert(&self, key: TokenCacheKey, token: &AccessToken) {
        let lifetime = token.expires_at.duration_since(self.clock.now());
        let ttl = lifetime.saturating_sub(self.renew_before_expiry);
        self.tokens.remove_expired();
        self.tokens.insert(key, token.clone(), ttl);
    }

    /// Drops a token that the store refused, unless a newer one is cached under the same key.
    pub fn remove_refused(&self, key: &TokenCacheKey, refused: &AccessToken) {
        self.tokens
            .invalidate_key_if(key, |cached| Arc::ptr_eq(&cached.secret, &refused.secret));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EARLY: Duration = Duration::from_mins(2);
    const LIFETIME: Duration = Duration::from_mins(20);

    #[test]
    fn a_token_about_to_expire_is_not_used_and_a_newer_one_stays() {
        let clock = Clock::fixed(Timestamp::from_millis(0));
        let tokens = TokenCache::new(clock.clone(), EARLY);
        let key = |number| (TenantId::mint(Timestamp::from_millis(0)), [number; 32]);
        let token =
            |text: &str| AccessToken::new(text.to_owned().into(), clock.now().plus(LIFETIME));
        let (one, other) = (key(1), key(2));
        let first = token("first");
        tokens.insert(one.clone(), &first);
        assert!(tokens.get(&other).is_none());
        clock.advance(LIFETIME.saturating_sub(EARLY + Duration::from_millis(1)));
        assert_eq!(tokens.get(&one).expect("it is valid").secret(), "first");
        clock.advance(Duration::from_millis(1));
        assert!(tokens.get(&one).is_none());

        let second = token("second");
        tokens.insert(one.clone(), &second);
        tokens.remove_refused(&one, &first);
        assert_eq!(tokens.get(&one).expect("it stays").secret(), "second");
        clock.advance(LIFETIME);
        tokens.insert(other.clone(), &token("third"));
        assert!(tokens.get(&one).is_none());
        tokens.remove_refused(&other, &tokens.get(&other).expect("it is valid"));
        assert!(tokens.get(&other).is_none());
        assert!(!format!("{second:?}").contains("second"));
    }
}
