//! Who is there, and who could not open what.

use std::collections::BTreeSet;
use std::time::Duration;

use super::replica::Replica;
use super::store;
use crate::db::{Database, Error};

/// Everybody who serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveReplicas {
    /// In the order in which they began.
    pub replicas: Vec<Replica>,
}

impl LiveReplicas {
    /// Whoever was seen lately. `lead` is how far ahead of the database's clock the caller lives.
    pub async fn load(database: &Database, lead: Duration) -> Result<Self, Error> {
        let replicas = store::list_live_replicas(database, lead).await?;
        Ok(Self { replicas })
    }

    /// The machines of those who could not open what is sealed with this key; none twice.
    pub fn hosts_without_key(&self, key_id: u8) -> BTreeSet<&str> {
        self.hosts_where(|replica| !replica.opening_key_ids.contains(&key_id))
    }

    /// The machines of those who seal with another key.
    pub fn hosts_sealing_with_other_key(&self, key_id: u8) -> BTreeSet<&str> {
        self.hosts_where(|replica| replica.sealing_key_id != key_id)
    }

    fn hosts_where(&self, wanted: impl Fn(&Replica) -> bool) -> BTreeSet<&str> {
        let found = self.replicas.iter().filter(|replica| wanted(replica));
        found.map(|replica| replica.host.as_str()).collect()
    }
}

/// `a, b and 3 more`: at most five names.
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
        None => "nobody".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_machines_are_named_and_many_are_counted() {
        let said = |names: &[&'static str]| format_name_list(&names.iter().copied().collect());
        assert_eq!(said(&[]), "nobody");
        assert_eq!(said(&["a"]), "a");
        assert_eq!(said(&["a", "b", "c"]), "a, b and c");
        assert_eq!(
            said(&["a", "b", "c", "d", "e", "f", "g"]),
            "a, b, c, d, e and 2 more"
        );
    }
}
