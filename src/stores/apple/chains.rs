//! A cache of verified certificate chains, found by the text they were sent as.

use std::sync::{Arc, PoisonError, RwLock};

/// Apple signs with one chain for years, so searching a list is faster than hashing. Only verified chains get in, so a
/// caller cannot fill it.
const MAX_CACHED_CHAINS: usize = 32;

/// Clones share the entries.
pub(super) struct ChainCache<T> {
    entries: Arc<RwLock<Vec<CachedChain<T>>>>,
}

struct CachedChain<T> {
    leaf: Box<str>,
    intermediate: Box<str>,
    value: Arc<T>,
}

impl<T> ChainCache<T> {
    pub(super) fn get(&self, leaf: &str, intermediate: &str) -> Option<Arc<T>> {
        let judged = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        let found = judged
            .iter()
            .find(|known| *known.leaf == *leaf && *known.intermediate == *intermediate);
        found.map(|known| known.value.clone())
    }

    pub(super) fn values(&self) -> Vec<Arc<T>> {
        let judged = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        judged.iter().map(|known| known.value.clone()).collect()
    }

    /// Adds a chain, in place of the oldest one when the cache is full.
    pub(super) fn insert(&self, leaf: &str, intermediate: &str, facts: T) -> Arc<T> {
        let facts = Arc::new(facts);
        let mut judged = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        if judged.len() >= MAX_CACHED_CHAINS {
            judged.remove(0);
        }
        judged.push(CachedChain {
            leaf: leaf.into(),
            intermediate: intermediate.into(),
            value: facts.clone(),
        });
        facts
    }
}

impl<T> Clone for ChainCache<T> {
    fn clone(&self) -> Self {
        Self {
            entries: self.entries.clone(),
        }
    }
}

impl<T> Default for ChainCache<T> {
    fn default() -> Self {
        Self {
            entries: Arc::default(),
        }
    }
}
