//! Keys that are too old or that nobody uses, and certificates that end.
//!
//! A store's key is as old as the day on which it was last set. That is not the day on which it was made, which the stores
//! do not tell; whoever sets a key again without exchanging it makes it look young.

use std::collections::BTreeMap;
use std::time::Duration;

use super::store;
use crate::clock::Timestamp;
use crate::config::settings::Cadences;
use crate::db::{Database, Error};
use crate::id::TenantId;
use crate::replicas::Replica;

const DAY: u64 = 24 * 60 * 60;
/// A root is exchanged with a new release, which takes longer to come than a file.
const ROOT_WARNING: Duration = Duration::from_hours(24 * 180);

/// The certificate of a listener, ours or a callback's, is usually renewed by a program, a month before.
const LISTENER_WARNING: Duration = Duration::from_hours(24 * 14);

/// Something that should be exchanged now and then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A tenant's In-App Purchase key.
    AppleKey,
    /// The key of a tenant's service account.
    GoogleKey,
    /// A key of Attesto's own that nobody has used for a while.
    ApiKey,
}

impl Kind {
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
    pub fn after(self, cadences: &Cadences) -> Option<Duration> {
        match self {
            Self::AppleKey => cadences.apple,
            Self::GoogleKey => cadences.google,
            Self::ApiKey => cadences.unused,
        }
    }
}

/// Something that is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Due {
    /// What it is.
    pub kind: Kind,
    /// Whose.
    pub tenant: TenantId,
    /// What a command calls it: Apple's key id, the service account's address, the API key's id.
    pub name: String,
    /// What it can be recognised by: a fingerprint, or the beginning of an API key.
    pub fingerprint: String,
    /// How long ago it was set, or last used.
    pub age: Duration,
}

impl Due {
    /// Its age in whole days.
    pub fn days(&self) -> u64 {
        self.age.as_secs() / DAY
    }

    /// What to type.
    pub fn advice(&self) -> String {
        let Self { tenant, name, .. } = self;
        match self.kind {
            Kind::AppleKey => format!(
                "make a new key in App Store Connect, `attesto apple set-credentials {tenant} … --check`, then revoke the old one"
            ),
            Kind::GoogleKey => format!(
                "make a new key in Google Cloud, `attesto google set-credentials {tenant} … --check`, then delete the old one"
            ),
            Kind::ApiKey => format!("ask whose it is; `attesto key revoke {name}` ends it"),
        }
    }
}

/// What is due of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Which.
    pub kind: Kind,
    /// How many there are.
    pub count: i64,
    /// The oldest of them.
    pub first: Vec<Due>,
}

/// What is due of active tenants, at most `limit` of each kind, the oldest first. `lead` is how far ahead of the
/// database's clock the caller lives.
pub async fn due(
    database: &Database,
    cadences: &Cadences,
    lead: Duration,
    limit: i64,
) -> Result<Vec<Found>, Error> {
    let mut found = Vec::new();
    for kind in Kind::ALL {
        found.push(match kind.after(cadences) {
            Some(after) => store::due(database, kind, after, lead, limit).await?,
            None => Found {
                kind,
                count: 0,
                first: Vec::new(),
            },
        });
    }
    Ok(found)
}

/// The names under which processes tell when their certificates end.
pub mod certificate {
    /// The last of Apple's roots that is trusted.
    pub const APPLE_ROOT: &str = "apple_root";
    /// The certificate that Apple signs with, as far as anything signed with it has been seen.
    pub const APPLE_LEAF: &str = "apple_leaf";
    /// The listener's own.
    pub const LISTENER: &str = "listener";
}

/// When the certificates end by which these processes live: of their own the one that ends first, of Apple's signing
/// certificate the newest that any of them saw.
pub fn certificates(replicas: &[Replica]) -> BTreeMap<String, Timestamp> {
    let mut ends: BTreeMap<String, Timestamp> = BTreeMap::new();
    for (name, end) in replicas.iter().flat_map(|replica| &replica.certificates) {
        let so_far = ends.entry(name.clone()).or_insert(*end);
        *so_far = if name == certificate::APPLE_LEAF {
            (*so_far).max(*end)
        } else {
            (*so_far).min(*end)
        };
    }
    ends
}

/// Whether that certificate is to be warned of.
pub fn ends_soon(name: &str, end: Timestamp, now: Timestamp, cadences: &Cadences) -> bool {
    match name {
        certificate::APPLE_ROOT => end < now.plus(cadences.certificate.max(ROOT_WARNING)),
        // One that has ended signed something that a device kept: Apple signs with another by now.
        certificate::APPLE_LEAF => end > now && end < now.plus(cadences.certificate),
        _ => end < now.plus(cadences.certificate.min(LISTENER_WARNING)),
    }
}

/// Certificates of callbacks that end before this are warned of.
pub fn callbacks_warned_before(now: Timestamp, cadences: &Cadences) -> Timestamp {
    now.plus(cadences.certificate.min(LISTENER_WARNING))
}

/// What to do about it.
pub fn certificate_advice(name: &str) -> &'static str {
    match name {
        certificate::APPLE_ROOT => {
            "Upgrade to a release that knows Apple's next root, or add it to APPLE_ROOT_CERTIFICATES."
        }
        certificate::APPLE_LEAF => {
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
    use crate::id::ReplicaId;

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
        let ends = certificates(&[
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
        let cadences = Cadences {
            apple: None,
            google: None,
            unused: None,
            certificate: Duration::from_hours(24 * 30),
        };
        let soon = |name, end| ends_soon(name, at(end), at("2026-06-01T00:00:00Z"), &cadences);
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
