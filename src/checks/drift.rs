//! The group `drift`: configuration that no longer matches what is in use.
//!
//! Apple only tells whether it knows a notification URL when it is asked to send a test notification. No check does
//! that without an operator. The checks use the last result that an operator asked for, and whether any event from
//! Apple is stored.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::check::CountWithNames;
use super::runner::DatabaseContext;
use crate::credentials::reseal;
use crate::credentials::sealed_columns::ENCRYPTION_CANARY;
use crate::db::{Error, SchemaState};
use crate::replicas::live_replicas::format_name_list;
use crate::replicas::{LiveReplicas, Replica};

/// The name of the check that decides whether the other checks of the job `drift` can run.
pub(super) const MIGRATIONS: &str = "drift.migrations";
/// How long after its setup a callback or a credential may be without events.
pub(super) const SETUP_GRACE_PERIOD: Duration = Duration::from_hours(24 * 7);

/// Whether this release can read and write the tables.
pub(super) async fn is_schema_usable(context: &DatabaseContext) -> Result<bool, Error> {
    let state = context.database.load_schema_state().await?;
    Ok(matches!(
        state,
        SchemaState::UpToDate | SchemaState::AheadAndCompatible
    ))
}

pub(super) async fn find_schema_mismatch(
    context: &DatabaseContext,
) -> Result<CountWithNames, Error> {
    let mismatch = match context.database.load_schema_state().await? {
        SchemaState::UpToDate => None,
        SchemaState::Behind(count) => Some(format!("{count} are missing")),
        SchemaState::Ahead | SchemaState::AheadAndCompatible => {
            Some("a newer release's".to_owned())
        }
        SchemaState::Diverged => Some("not any release's".to_owned()),
    };
    Ok(CountWithNames::from_names(mismatch.into_iter().collect()))
}

pub(super) async fn find_differing_settings(
    context: &DatabaseContext,
) -> Result<CountWithNames, Error> {
    let live = LiveReplicas::load(&context.database).await?;
    Ok(CountWithNames::from_names(compare_settings(&live.replicas)))
}

/// Returns texts such as `retention on b`: each group of settings that differs, and the hosts where it differs from
/// most processes.
fn compare_settings(replicas: &[Replica]) -> Vec<String> {
    // Processes are only compared within a release, because another release may compute other fingerprints. Different
    // releases are reported by `processes.releases`.
    let mut by_group: BTreeMap<(&str, &str), BTreeMap<&str, Vec<&str>>> = BTreeMap::new();
    for replica in replicas {
        for (group, fingerprint) in &replica.settings {
            let hosts = by_group.entry((&replica.version, group)).or_default();
            hosts.entry(fingerprint).or_default().push(&replica.host);
        }
    }
    let mut found = Vec::new();
    for ((_, group), hosts) in by_group {
        if hosts.len() < 2 {
            continue;
        }
        let most = hosts.values().map(Vec::len).max();
        let mut usual = hosts.iter().filter(|(_, hosts)| Some(hosts.len()) == most);
        let usual = usual.next().map(|(fingerprint, _)| *fingerprint);
        let others = hosts.iter().filter(|(held, _)| Some(**held) != usual);
        let others: BTreeSet<&str> = others.flat_map(|(_, hosts)| hosts).copied().collect();
        found.push(format!("{group} on {}", format_name_list(&others)));
    }
    found
}

/// The ids of encryption keys in use that are not configured in this process or in a process that serves.
pub(super) async fn find_missing_keys(context: &DatabaseContext) -> Result<CountWithNames, Error> {
    let live = LiveReplicas::load(&context.database).await?;
    let usage = reseal::list_key_usage(&context.database).await?;
    let sealed = usage.iter().filter(|used| used.column != ENCRYPTION_CANARY);
    let in_use: BTreeSet<u8> = sealed.filter_map(|used| used.key_id).collect();
    let is_missing = |id: u8| {
        let keyring = context.keyring.as_deref();
        let is_missing_here =
            keyring.is_some_and(|keyring| !keyring.key_ids().any(|known| known == id));
        is_missing_here || !live.hosts_without_key(id).is_empty()
    };
    let missing = in_use.into_iter().filter(|id| is_missing(*id));
    Ok(CountWithNames::from_names(
        missing.map(|id| id.to_string()).collect(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock::Timestamp;
    use crate::base::id::ReplicaId;

    fn replica(host: &str, version: &str, retention: &str) -> Replica {
        let now = Timestamp::from_millis(0);
        let settings = [("retention", retention), ("stores", "same")];
        Replica {
            id: ReplicaId::mint(now),
            host: host.to_owned(),
            pid: 1,
            version: version.to_owned(),
            started_at: now,
            seen_at: now,
            sealing_key_id: 1,
            opening_key_ids: vec![1],
            notices: crate::replicas::ReplicaNotices::default(),
            settings: settings
                .map(|(group, held)| (group.to_owned(), held.to_owned()))
                .into(),
            certificates: BTreeMap::new(),
        }
    }

    #[test]
    fn settings_are_compared_within_a_release_and_the_odd_one_is_named() {
        let odd = [
            replica("a", "1", "x"),
            replica("b", "1", "y"),
            replica("c", "1", "x"),
        ];
        assert_eq!(compare_settings(&odd), ["retention on b"]);
        let upgraded = [replica("a", "1", "x"), replica("b", "2", "y")];
        assert_eq!(compare_settings(&upgraded), Vec::<String>::new());
        assert_eq!(compare_settings(&[]), Vec::<String>::new());
    }
}
