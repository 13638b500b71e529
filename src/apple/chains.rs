//! Certificate chains that were judged good, remembered by the text they were sent as.

use std::sync::{Arc, PoisonError, RwLock};

/// Apple signs with one chain for years, so a list is searched faster than anything is hashed. Only good chains get
/// in: nobody can fill it with bad ones.
const MOST: usize = 32;

/// Remembers at most a few dozen. Clones share them.
pub(super) struct Chains<T> {
    judged: Arc<RwLock<Vec<Judged<T>>>>,
}

struct Judged<T> {
    leaf: Box<str>,
    intermediate: Box<str>,
    facts: Arc<T>,
}

impl<T> Chains<T> {
    /// What is known of a chain, if it was judged before.
    pub(super) fn get(&self, leaf: &str, intermediate: &str) -> Option<Arc<T>> {
        let judged = self.judged.read().unwrap_or_else(PoisonError::into_inner);
        let found = judged
            .iter()
            .find(|known| *known.leaf == *leaf && *known.intermediate == *intermediate);
        found.map(|known| known.facts.clone())
    }

    /// Everything that is remembered.
    pub(super) fn all(&self) -> Vec<Arc<T>> {
        let judged = self.judged.read().unwrap_or_else(PoisonError::into_inner);
        judged.iter().map(|known| known.facts.clone()).collect()
    }

    /// Remembers a chain; the one remembered longest makes room.
    pub(super) fn remember(&self, leaf: &str, intermediate: &str, facts: T) -> Arc<T> {
        let facts = Arc::new(facts);
        let mut judged = self.judged.write().unwrap_or_else(PoisonError::into_inner);
        if judged.len() >= MOST {
            judged.remove(0);
        }
        judged.push(Judged {
            leaf: leaf.into(),
            intermediate: intermediate.into(),
            facts: facts.clone(),
        });
        facts
    }
}

impl<T> Clone for Chains<T> {
    fn clone(&self) -> Self {
        Self {
            judged: self.judged.clone(),
        }
    }
}

impl<T> Default for Chains<T> {
    fn default() -> Self {
        Self {
            judged: Arc::default(),
        }
    }
}
