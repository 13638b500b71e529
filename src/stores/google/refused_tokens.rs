//! Which push tokens were refused lately: a short memory, so that one token of a stranger costs few look-ups.
//!
//! Everyone can have Google sign a token, and push it to any number of made-up tenants. A token that several tenants refused
//! and none accepted is refused for a minute without looking at the tenant. A change of any tenant's settings clears the
//! memory, and without notifications of changes it is not used.

use std::time::Duration;

use super::trust::PushTokenError;
use crate::base::cache::Cache;
use crate::base::clock::Clock;
use crate::db::change_listener::ChangeListener;

/// One token is good for several tenants when they share an audience, so that one refusal says nothing of the others.
const MAX_REFUSALS: u32 = 8;
/// How long refusals are remembered after the last.
const REFUSAL_TTL: Duration = Duration::from_mins(1);
/// As long as Google's tokens live.
const ACCEPTANCE_TTL: Duration = Duration::from_hours(1);
const MAX_TOKENS: usize = 10_000;

/// SHA-256 of a token.
type TokenHash = [u8; 32];

/// Clones share the memory.
#[derive(Clone)]
pub(super) struct RefusedTokens {
    changes: ChangeListener,
    refusals: Cache<TokenHash, u32>,
    accepted: Cache<TokenHash, ()>,
}

impl RefusedTokens {
    pub(super) fn new(clock: &Clock, changes: &ChangeListener) -> Self {
        let refusals: Cache<TokenHash, u32> = Cache::new(clock.clone(), MAX_TOKENS);
        let cleared = refusals.downgrade();
        changes.subscribe(move |change| {
            if (change.affects_table("google_credentials") || change.affects_table("tenants"))
                && let Some(refusals) = cleared.upgrade()
            {
                refusals.clear();
            }
        });
        Self {
            changes: changes.clone(),
            refusals,
            accepted: Cache::new(clock.clone(), MAX_TOKENS),
        }
    }

    /// Whether the token may be looked at.
    pub(super) fn check_token(&self, token: &TokenHash) -> Result<(), PushTokenError> {
        let refusals = self.refusals.get(token).unwrap_or_default();
        if refusals >= MAX_REFUSALS && self.changes.is_listening() {
            return Err(PushTokenError::RefusedBefore);
        }
        Ok(())
    }

    /// A tenant did not accept it.
    pub(super) fn record_refusal(&self, token: TokenHash) {
        if self.accepted.get(&token).is_none() {
            let refusals = self.refusals.get(&token).unwrap_or_default();
            self.refusals
                .insert(token, refusals.saturating_add(1), REFUSAL_TTL);
        }
    }

    /// A tenant accepted it.
    pub(super) fn record_acceptance(&self, token: TokenHash) {
        if self.accepted.get(&token).is_none() {
            self.accepted.insert(token, (), ACCEPTANCE_TTL);
            self.refusals.invalidate_key(&token);
        }
    }
}
