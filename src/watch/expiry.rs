//! Keys that are too old or that nobody uses, and certificates that end.
//!
//! A store's key is as old as the day on which it was last set. That is not the day on which it was made, which the stores
//! do not tell; whoever sets a key again without exchanging it makes it look young.

use std::collections::BTreeMap;
use std::time::Duration;

use super::store;
use crate::base::clock::Timestamp;
use crate::base::id::TenantId;
use crate::config::settings::ExpiryThresholds;
use crate::db::{Database, Error};
use crate::replicas::Replica;

const SECONDS_PER_DAY: u64 = 24 * 60 * 60;
/// A root is exchanged with a new release, which takes longer to come than a file.
const ROOT_EXPIRY_WARNING: Duration = Duration::from_hours(24 * 180);

/// The certificate of a listener, ours or a callback's, is usually renewed by a program, a month before.
const LISTENER_EXPIRY_WARNING: Duration = Duration::from_hours(24 * 14);

/// Something that should be exchanged now and then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CredentialKind {
    /// A tenant's In-App Purchase key.
    AppleKey,
    /// The key of a tenant's service account.
    GoogleKey,
    /// A key of Attesto's own that nobody has used for a while.
    ApiKey,
}

impl CredentialKind {
    /// In the order in which they are looked at and shown.
    pub const ALL: [Self; 3] = [Self::AppleKey, Self::GoogleKey, Self::ApiKey];

    /// The word for it, in logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AppleKey => "apple_key",
            Self::GoogleKey => "google_key",
            Self::ApiKey => "api_key",
        }
    }

    /// From which age it is due. `None`: never.
    pub fn max_age(self, cadences: &ExpiryThresholds) -> Option<Duration> {
        match self {
            Self::AppleKey => cadences.apple_key_max_age,
            Self::GoogleKey => cadences.google_key_max_age,
            Self::ApiKey => cadences.api_key_max_unused,
        }
    }
}

/// Something that is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DueCredential {
    /// What it is.
    pub kind: CredentialKind,
    /// Whose.
    pub tenant: TenantId,
    /// What a command calls it: Apple's key id, the service account's address, the API key's id.
    pub name: String,
    /// What it can be recognised by: a fingerprint, or the beginning of an API key.
    pub fingerprint: String,
    /// How long ago it was set, or last used.
    pub age: Duration,
}

impl DueCredential {
    /// Its age in whole days.
    pub fn age_days(&self) -> u64 {
        self.age.as_secs() / SECONDS_PER_DAY
    }

    /// What to type.
    pub fn rotation_advice(&self) -> String {
        let Self { tenant, name, .. } = self;
        match self.kind {
            CredentialKind::AppleKey => format!(
                "make a new key in App Store Connect, `attesto apple set-credentials {tenant} … --check`, then revoke the old one"
            ),
            CredentialKind::GoogleKey => format!(
                "make a new key in Google Cloud, `attesto google set-credentials {tenant} … --check`, then delete the old one"
            ),
            CredentialKind::ApiKey => {
                format!("ask whose it is; `attesto key revoke {name}` ends it")
            }
        }
    }
}

/// What is due of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DueCredentialGroup {
    /// Which.
    pub kind: CredentialKind,
    /// How many there are.
    pub count: i64,
    /// The oldest of them.
    pub oldest: Vec<DueCredential>,
}

/// What is due of active tenants, at most `limit` of each kind, the oldest first. `lead` is how far ahead of the
/// database's clock the caller lives.
pub async fn find_due_credentials(
    database: &Database,
    cadences: &ExpiryThresholds,
    lead: Duration,
    limit: i64,
) -> Result<Vec<DueCredentialGroup>, Error> {
    let mut found = Vec::new();
    for kind in CredentialKind::ALL {
        found.push(match kind.max_age(cadences) {
            Some(after) => store::due(database, kind, after, lead, limit).await?,
            None => DueCredentialGroup {
                kind,
                count: 0,
                oldest: Vec::new(),
            },
        });
    }
    Ok(found)
}

/// The names under which processes tell when their certificates end.
pub mod certificate_name {
    /// The last of Apple's roots that is trusted.
    pub const APPLE_ROOT: &str = "apple_root";
    /// The certificate that Apple signs with, as far as anything signed with it has been seen.
    pub const APPLE_LEAF: &str = "apple_leaf";
    /// The listener's own.
    pub const LISTENER: &str = "listener";
}

/// When the certificates end by which these processes live: of their own the one that ends first, of Apple's signing
/// certificate the newest that any of them saw.
pub fn earliest_certificate_expiries(replicas: &[Replica]) -> BTreeMap<String, Timestamp> {
    let mut ends: BTreeMap<String, Timestamp> = BTreeMap::new();
    for (name, end) in replicas.iter().flat_map(|replica| &replica.certificates) {
        let so_far = ends.entry(name.clone()).or_insert(*end);
        *so_far = if name == certificate_name::APPLE_LEAF {
            (*so_far).max(*end)
        } else {
            (*so_far).min(*end)
        };
    }
    ends
}

/// Whether that certificate is to be warned of.
pub fn is_expiring_soon(
    name: &str,
    end: Timestamp,
    now: Timestamp,
    cadences: &ExpiryThresholds,
) -> bool {
    match name {
        certificate_name::APPLE_ROOT => {
            end < now.plus(cadences.certificate_warning_period.max(ROOT_EXPIRY_WARNING))
        }
        // One that has ended signed something that a device kept: Apple signs with another by now.
        certificate_name::APPLE_LEAF => {
            end > now && end < now.plus(cadences.certificate_warning_period)
        }
        _ => {
            end < now.plus(
                cadences
                    .certificate_warning_period
                    .min(LISTENER_EXPIRY_WARNING),
            )
        }
    }
}

/// Certificates of callbacks that end before this are warned of.
pub fn callback_expiry_cutoff(now: Timestamp, cadences: &ExpiryThresholds) -> Timestamp {
    now.plus(
        cadences
            .certificate_warning_period
            .min(LISTENER_EXPIRY_WARNING),
    )
}

/// What to do about it.
pub fn certificate_advice(name: &str) -> &'static str {
    match name {
        certificate_name::APPLE_ROOT => {
            "Upgrade to a release that knows Apple's next root, or add it to APPLE_ROOT_CERTIFICATES."
        }
        certificate_name::APPLE_LEAF => {
            "Apple exchanges it without anybody's doing. Should signatures be refused from then on, upgrade."
        }
        _ => {
            "Renew it: put the new pair where TLS_CERT_PATH and TLS_KEY_PATH say; it is taken up without a restart."
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::id::ReplicaId;

    fn at(text: &str) -> Timestamp {
        Timestamp::parse(text).expect("a time")
    }

    fn replica(certificates: &[(&str, &str)]) -> Replica {
        let now = Timestamp::from_millis(0);
        let certificates = certificates.iter();
        Replica {
            id: ReplicaId::mint(now),
            host: "a".to_owned(),
            pid: 1,
            version: "1".to_owned(),
            started_at: now,
            seen_at: now,
            sealing_key_id: 1,
            opening_key_ids: vec![1],
            settings: BTreeMap::new(),
            certificates: certificates
                .map(|(name, end)| ((*name).to_owned(), at(end)))
                .collect(),
        }
    }

    #[test]
    fn of_several_processes_the_one_that_ends_first_counts_and_the_newest_of_apples() {
        let (early, late) = ("2027-01-01T00:00:00Z", "2028-01-01T00:00:00Z");
        let ends = earliest_certificate_expiries(&[
            replica(&[("apple_leaf", early), ("listener", late)]),
            replica(&[("apple_leaf", late), ("listener", early)]),
            replica(&[]),
        ]);
        let expected = [("apple_leaf", late), ("listener", early)];
        let expected = expected.map(|(name, end)| (name.to_owned(), at(end)));
        assert_eq!(ends, BTreeMap::from(expected));
    }

    #[test]
    fn a_root_is_warned_of_half_a_year_before() {
        let cadences = ExpiryThresholds {
            apple_key_max_age: None,
            google_key_max_age: None,
            api_key_max_unused: None,
            certificate_warning_period: Duration::from_hours(24 * 30),
        };
        let soon =
            |name, end| is_expiring_soon(name, at(end), at("2026-06-01T00:00:00Z"), &cadences);
        assert!(!soon("listener", "2026-06-16T00:00:00Z"));
        assert!(soon("listener", "2026-06-14T00:00:00Z"));
        assert!(soon("listener", "2026-05-01T00:00:00Z"));
        assert!(soon("apple_leaf", "2026-06-30T00:00:00Z"));
        assert!(
            !soon("apple_leaf", "2026-05-01T00:00:00Z"),
            "an old signature"
        );
        assert!(soon("apple_root", "2026-11-01T00:00:00Z"));
        assert!(!soon("apple_root", "2027-01-01T00:00:00Z"));
    }
}
