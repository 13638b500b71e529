//! The processes that serve now.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::replica::Replica;
use super::store;
use crate::db::{Database, Error};

/// How many processes serve, as this process last heard from the database: 1 until its first heartbeat. Clones share it.
#[derive(Clone, Debug)]
pub struct LiveReplicaCount(Arc<AtomicU32>);

impl Default for LiveReplicaCount {
    fn default() -> Self {
        Self(Arc::new(AtomicU32::new(1)))
    }
}

impl LiveReplicaCount {
    /// At least 1: this process.
    pub fn get(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn set(&self, count: i64) {
        let count = u32::try_from(count.max(1)).unwrap_or(u32::MAX);
        self.0.store(count, Ordering::Relaxed);
    }
}

/// The processes whose heartbeat is recent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveReplicas {
    /// In the order in which they started.
    pub(crate) replicas: Vec<Replica>,
}

impl LiveReplicas {
    /// The replicas that were seen lately, by the database's clock.
    pub async fn load(database: &Database) -> Result<Self, Error> {
        let replicas = store::list_live_replicas(database).await?;
        Ok(Self { replicas })
    }

    /// The hosts of processes that do not have this encryption key.
    pub fn hosts_without_key(&self, key_id: u8) -> BTreeSet<&str> {
        self.hosts_where(|replica| !replica.opening_key_ids.contains(&key_id))
    }

    /// The hosts of processes that seal with another key.
    pub fn hosts_sealing_with_other_key(&self, key_id: u8) -> BTreeSet<&str> {
        self.hosts_where(|replica| replica.sealing_key_id != key_id)
    }

    fn hosts_where(&self, wanted: impl Fn(&Replica) -> bool) -> BTreeSet<&str> {
        let found = self.replicas.iter().filter(|replica| wanted(replica));
        found.map(|replica| replica.host.as_str()).collect()
    }
}

/// `a, b and 3 more`: at most five names, and `none` without any.
pub fn format_name_list(hosts: &BTreeSet<&str>) -> String {
    const MOST: usize = 5;
    let mut text: Vec<&str> = hosts.iter().copied().take(MOST).collect();
    let more = format!("{} more", hosts.len().saturating_sub(MOST));
    if hosts.len() > MOST {
        text.push(&more);
    }
    match text.split_last() {
        Some((last, [])) => (*last).to_owned(),
        Some((last, rest)) => format!("{} and {last}", rest.join(", ")),
        None => "none".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_most_five_hosts_are_named() {
        let said = |names: &[&'static str]| format_name_list(&names.iter().copied().collect());
        assert_eq!(said(&[]), "none");
        assert_eq!(said(&["a"]), "a");
        assert_eq!(said(&["a", "b", "c"]), "a, b and c");
        assert_eq!(
            said(&["a", "b", "c", "d", "e", "f", "g"]),
            "a, b, c, d, e and 2 more"
        );
    }
}
