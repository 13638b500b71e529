//! What is set up, compared with what is there.
//!
//! Apple tells whether it knows an address for an app's notifications only to who asks it to send one. Nobody is asked
//! behind an operator's back: what is looked at is what Apple answered when an operator last asked, and whether anything
//! of Apple's arrived, as far as events are still kept.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::store;
use crate::credentials::reseal;
use crate::credentials::sealed_columns::ENCRYPTION_CANARY;
use crate::crypto::keyring::Keyring;
use crate::db::{Database, Error, SchemaState};
use crate::replicas::live_replicas::format_name_list;
use crate::replicas::{LiveReplicas, Replica};

/// So many of each kind are named.
const MAX_NAMED: i64 = 5;
/// What was set up this lately has not had its time yet.
const SETUP_GRACE_PERIOD: Duration = Duration::from_hours(24 * 7);

/// Something that is not as it was set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DriftKind {
    /// Active tenants without credentials for any store.
    CredentialsMissing,
    /// Callbacks of active tenants that an operator switched off: events are stored and not sent.
    CallbackDisabled,
    /// Callbacks that are closed because of failures.
    CallbackClosed,
    /// Callbacks for which no delivery is kept, and for which nothing else accounts. Retention removes what is old: there
    /// may have been some.
    CallbackUnused,
    /// Apps for which Apple, when it was last asked, knew no address.
    AppleUrlMissing,
    /// Apps whose address Apple, when it was last asked, could not deliver to.
    AppleUrlUnreachable,
    /// Tenants with an Apple key and a callback of whom no event of Apple's is kept. There may have been some:
    /// a quiet app has none within what retention keeps.
    NoAppleEvents,
    /// Tenants with a service account and a callback for whom it was not said as whom Google pushes: without that every
    /// push is refused. The audience may be left out, it has a default that is as safe.
    GooglePushAccountMissing,
    /// Groups of settings that differ between processes of one release.
    SettingsDiffer,
    /// Encryption keys that seal something and that some process, or this one, does not have.
    EncryptionKeysMissing,
    /// The tables are not this release's.
    SchemaMismatch,
}

impl DriftKind {
    /// Each of them, as they are declared.
    pub const ALL: [Self; 11] = [
        Self::CredentialsMissing,
        Self::CallbackDisabled,
        Self::CallbackClosed,
        Self::CallbackUnused,
        Self::AppleUrlMissing,
        Self::AppleUrlUnreachable,
        Self::NoAppleEvents,
        Self::GooglePushAccountMissing,
        Self::SettingsDiffer,
        Self::EncryptionKeysMissing,
        Self::SchemaMismatch,
    ];

    /// The word for it, in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::CredentialsMissing => "tenant_credentials",
            Self::CallbackDisabled => "callback_off",
            Self::CallbackClosed => "callback_closed",
            Self::CallbackUnused => "callback_unused",
            Self::AppleUrlMissing => "apple_address",
            Self::AppleUrlUnreachable => "apple_unreached",
            Self::NoAppleEvents => "apple_silent",
            Self::GooglePushAccountMissing => "google_pusher",
            Self::SettingsDiffer => "settings",
            Self::EncryptionKeysMissing => "keys",
            Self::SchemaMismatch => "migrations",
        }
    }
}

/// How many there are of a kind, and the names of the first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriftFinding {
    /// Of which.
    pub kind: DriftKind,
    /// How many: tenants, groups of settings, keys; of [`Kind::Migrations`] 1.
    pub count: i64,
    /// A few of them.
    pub names: Vec<String>,
}

impl DriftFinding {
    fn from_names(kind: DriftKind, names: Vec<String>) -> Self {
        Self {
            kind,
            count: i64::try_from(names.len()).unwrap_or(i64::MAX),
            names,
        }
    }
}

/// Compares everything. There is a finding of each kind, of most with a count of zero. Where the tables are none that
/// this release works on, nothing else is looked at. `lead` is how far ahead of the database's clock the caller lives.
pub async fn find_drift(
    database: &Database,
    keyring: Option<&Keyring>,
    lead: Duration,
) -> Result<Vec<DriftFinding>, Error> {
    let state = database.load_schema_state().await?;
    let schema = match state {
        SchemaState::UpToDate => None,
        SchemaState::Behind(count) => Some(format!("{count} are missing")),
        SchemaState::Ahead | SchemaState::AheadAndCompatible => {
            Some("a newer release's".to_owned())
        }
        SchemaState::Diverged => Some("not any release's".to_owned()),
    };
    let is_usable = matches!(
        state,
        SchemaState::UpToDate | SchemaState::AheadAndCompatible
    );
    let mut found = Vec::new();
    for kind in DriftKind::ALL {
        found.push(match kind {
            DriftKind::SchemaMismatch => {
                DriftFinding::from_names(kind, schema.iter().cloned().collect())
            }
            _ if !is_usable => DriftFinding::from_names(kind, Vec::new()),
            DriftKind::SettingsDiffer => {
                DriftFinding::from_names(kind, find_differing_settings(database, lead).await?)
            }
            DriftKind::EncryptionKeysMissing => {
                DriftFinding::from_names(kind, find_missing_keys(database, keyring, lead).await?)
            }
            kind => find_tenant_drift(database, kind, lead).await?,
        });
    }
    Ok(found)
}

/// What is found of one kind that concerns tenants; nothing of another.
pub async fn find_tenant_drift(
    database: &Database,
    kind: DriftKind,
    lead: Duration,
) -> Result<DriftFinding, Error> {
    let (count, names) =
        store::list_drifted_tenants(database, kind, SETUP_GRACE_PERIOD, lead, MAX_NAMED).await?;
    Ok(DriftFinding { kind, count, names })
}

async fn find_differing_settings(
    database: &Database,
    lead: Duration,
) -> Result<Vec<String>, Error> {
    let company = LiveReplicas::load(database, lead).await?;
    Ok(compare_settings(&company.replicas))
}

/// `retention on b`: each group of settings of which not all processes have the same, and where it is not what most have.
fn compare_settings(replicas: &[Replica]) -> Vec<String> {
    // Another release may take them differently. That there are two is a finding of its own.
    let mut by_group: BTreeMap<(&str, &str), BTreeMap<&str, Vec<&str>>> = BTreeMap::new();
    for replica in replicas {
        for (group, fingerprint) in &replica.settings {
            let held = by_group.entry((&replica.version, group)).or_default();
            held.entry(fingerprint).or_default().push(&replica.host);
        }
    }
    let mut found = Vec::new();
    for ((_, group), held) in by_group {
        if held.len() < 2 {
            continue;
        }
        let most = held.values().map(Vec::len).max();
        let mut usual = held.iter().filter(|(_, hosts)| Some(hosts.len()) == most);
        let usual = usual.next().map(|(fingerprint, _)| *fingerprint);
        let others = held.iter().filter(|(held, _)| Some(**held) != usual);
        let others: BTreeSet<&str> = others.flat_map(|(_, hosts)| hosts).copied().collect();
        found.push(format!("{group} on {}", format_name_list(&others)));
    }
    found
}

async fn find_missing_keys(
    database: &Database,
    keyring: Option<&Keyring>,
    lead: Duration,
) -> Result<Vec<String>, Error> {
    let company = LiveReplicas::load(database, lead).await?;
    let holdings = reseal::list_key_usage(database).await?;
    let sealing = holdings
        .iter()
        .filter(|held| held.column != ENCRYPTION_CANARY);
    let in_use: BTreeSet<u8> = sealing.filter_map(|held| held.key_id).collect();
    let has_not = |id: u8| {
        let here = keyring.is_some_and(|keyring| !keyring.key_ids().any(|known| known == id));
        here || !company.hosts_without_key(id).is_empty()
    };
    let missing = in_use.into_iter().filter(|id| has_not(*id));
    Ok(missing.map(|id| id.to_string()).collect())
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
