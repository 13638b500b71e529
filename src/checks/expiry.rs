//! The age of credentials, and the expiry of certificates.
//!
//! The age of a store credential is counted from the day it was last set here. The stores do not tell when a key was
//! created, so setting the same key again makes it look new.

use std::collections::BTreeMap;
use std::time::Duration;

use super::runner::DatabaseContext;
use super::store;
use crate::base::clock::Timestamp;
use crate::base::id::TenantId;
use crate::config::groups::ExpiryThresholds;
use crate::db::Error;
use crate::replicas::{CertificateValidity, Replica};
use crate::server::tls;

pub(super) const SECONDS_PER_DAY: u64 = 24 * 60 * 60;
/// A new root certificate comes with a new release, which takes longer than replacing a file.
pub(super) const APPLE_ROOT_WARNING_PERIOD: Duration = Duration::from_hours(24 * 180);
/// A callback's certificate is usually renewed automatically a month before it expires.
const CALLBACK_WARNING_PERIOD: Duration = Duration::from_hours(24 * 14);

/// A kind of credential that should be replaced regularly, or revoked if it is not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::VariantArray)]
pub(super) enum CredentialKind {
    /// A tenant's In-App Purchase key.
    AppleInAppPurchase,
    /// The key of a tenant's service account.
    GoogleServiceAccount,
    /// An API key of Attesto that has not been used for a while.
    ApiKey,
}

impl CredentialKind {
    /// The name in logs and metrics.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::AppleInAppPurchase => "apple_key",
            Self::GoogleServiceAccount => "google_key",
            Self::ApiKey => "api_key",
        }
    }

    /// The maximum age. `None`: the credential is never due.
    fn max_age(self, thresholds: &ExpiryThresholds) -> Option<Duration> {
        match self {
            Self::AppleInAppPurchase => thresholds.apple_key_max_age,
            Self::GoogleServiceAccount => thresholds.google_key_max_age,
            Self::ApiKey => thresholds.api_key_max_unused,
        }
    }
}

/// A credential that is due for replacement or revocation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DueCredential {
    pub(super) kind: CredentialKind,
    pub(super) tenant: TenantId,
    /// The name that commands use: Apple's key id, the service account's address, or the API key's id.
    pub(super) name: String,
    /// The fingerprint of a key, or the first characters of an API key.
    pub(super) fingerprint: String,
    /// The time since it was set or last used.
    pub(super) age: Duration,
}

impl DueCredential {
    pub(super) fn age_days(&self) -> u64 {
        self.age.as_secs() / SECONDS_PER_DAY
    }

    /// The steps of the replacement, with the commands.
    pub(super) fn rotation_advice(&self) -> String {
        let Self { tenant, name, .. } = self;
        match self.kind {
            CredentialKind::AppleInAppPurchase => format!(
                "make a new key in App Store Connect, `attesto apple set-credentials {tenant} … --check`, then revoke the old one"
            ),
            CredentialKind::GoogleServiceAccount => format!(
                "make a new key in Google Cloud, `attesto google set-credentials {tenant} … --check`, then delete the old one"
            ),
            CredentialKind::ApiKey => {
                format!(
                    "ask the tenant whether it is still needed; `attesto key revoke {name}` revokes it"
                )
            }
        }
    }
}

/// The due credentials of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DueCredentialGroup {
    pub(super) kind: CredentialKind,
    /// The age from which on credentials of this kind are due. Zero if they never are.
    pub(super) max_age: Duration,
    pub(super) count: i64,
    /// The oldest ones first, at most as many as were requested.
    pub(super) oldest: Vec<DueCredential>,
}

/// The due credentials of active tenants. `None` if the settings cannot be read.
pub(super) async fn find_due(
    context: &DatabaseContext,
    kind: CredentialKind,
    limit: i64,
) -> Result<Option<DueCredentialGroup>, Error> {
    let Some(thresholds) = &context.thresholds else {
        return Ok(None);
    };
    let max_age = kind.max_age(thresholds);
    let (count, oldest) = match max_age {
        Some(max_age) => {
            store::list_due_credentials(&context.database, kind, max_age, limit).await?
        }
        None => (0, Vec::new()),
    };
    Ok(Some(DueCredentialGroup {
        kind,
        max_age: max_age.unwrap_or_default(),
        count,
        oldest,
    }))
}

/// The names under which processes report their certificates.
pub(crate) mod certificate_name {
    /// The trusted root certificate of Apple that expires last.
    pub(crate) const APPLE_ROOT: &str = "apple_root";
    /// Apple's signing certificate, once the process has verified a signature.
    pub(crate) const APPLE_LEAF: &str = "apple_leaf";
    /// The certificate in `TLS_CERT_PATH`.
    pub(crate) const LISTENER: &str = "listener";
}

/// For each name, the certificate that expires first. For Apple's signing certificate, the newest one that any process
/// has seen.
pub(super) fn earliest_certificate_expiries(
    replicas: &[Replica],
) -> BTreeMap<String, CertificateValidity> {
    let mut found: BTreeMap<String, CertificateValidity> = BTreeMap::new();
    for (name, validity) in replicas.iter().flat_map(|replica| &replica.certificates) {
        let known = found.entry(name.clone()).or_insert(*validity);
        let is_later = validity.not_after > known.not_after;
        if is_later == (name == certificate_name::APPLE_LEAF) {
            *known = *validity;
        }
    }
    found
}

/// Whether the certificate with this name should be replaced now.
pub(super) fn is_expiring_soon(
    name: &str,
    validity: CertificateValidity,
    now: Timestamp,
    thresholds: &ExpiryThresholds,
) -> bool {
    let end = validity.not_after;
    let warning_period = thresholds.certificate_warning_period;
    match name {
        certificate_name::APPLE_ROOT => {
            end < now.plus(warning_period.max(APPLE_ROOT_WARNING_PERIOD))
        }
        // An expired one belongs to an old transaction that a device kept; Apple signs with another one now.
        certificate_name::APPLE_LEAF => end > now && end < now.plus(warning_period),
        _ => tls::is_renewal_due(validity.not_before, end, now),
    }
}

/// Certificates of callbacks that expire before this time are reported.
pub(super) fn callback_expiry_cutoff(now: Timestamp, thresholds: &ExpiryThresholds) -> Timestamp {
    now.plus(
        thresholds
            .certificate_warning_period
            .min(CALLBACK_WARNING_PERIOD),
    )
}

/// What to do when the certificate with this name expires soon.
pub(super) fn certificate_advice(name: &str) -> &'static str {
    match name {
        certificate_name::APPLE_ROOT => {
            "Upgrade to a release that contains Apple's next root, or add that root to APPLE_ROOT_CERTIFICATES."
        }
        certificate_name::APPLE_LEAF => {
            "Apple replaces it; there is nothing to do. If signatures are refused afterwards, upgrade."
        }
        _ => {
            "Renew it: write the new certificate and key to TLS_CERT_PATH and TLS_KEY_PATH; they are used without a restart."
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

    fn ends_at(text: &str) -> CertificateValidity {
        CertificateValidity {
            not_before: None,
            not_after: at(text),
        }
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
            notices: crate::replicas::ReplicaNotices::default(),
            settings: BTreeMap::new(),
            certificates: certificates
                .map(|(name, end)| ((*name).to_owned(), ends_at(end)))
                .collect(),
        }
    }

    #[test]
    fn the_earliest_expiry_of_several_processes_counts_and_the_latest_of_apples_leaf() {
        let (early, late) = ("2027-01-01T00:00:00Z", "2028-01-01T00:00:00Z");
        let ends = earliest_certificate_expiries(&[
            replica(&[("apple_leaf", early), ("listener", late)]),
            replica(&[("apple_leaf", late), ("listener", early)]),
            replica(&[]),
        ]);
        let expected = [("apple_leaf", late), ("listener", early)];
        let expected = expected.map(|(name, end)| (name.to_owned(), ends_at(end)));
        assert_eq!(ends, BTreeMap::from(expected));
    }

    #[test]
    fn each_certificate_has_its_own_warning_period() {
        let thresholds = ExpiryThresholds {
            apple_key_max_age: None,
            google_key_max_age: None,
            api_key_max_unused: None,
            certificate_warning_period: Duration::from_hours(24 * 30),
        };
        let soon = |name, end| {
            is_expiring_soon(name, ends_at(end), at("2026-06-01T00:00:00Z"), &thresholds)
        };
        assert!(!soon("listener", "2026-06-16T00:00:00Z"));
        assert!(soon("listener", "2026-06-14T00:00:00Z"));
        assert!(soon("listener", "2026-05-01T00:00:00Z"));
        let short_lived = |end| {
            let validity = CertificateValidity {
                not_before: Some(at("2026-05-30T00:00:00Z")),
                not_after: at(end),
            };
            is_expiring_soon(
                "listener",
                validity,
                at("2026-06-01T00:00:00Z"),
                &thresholds,
            )
        };
        assert!(
            !short_lived("2026-06-05T00:00:00Z"),
            "a third of its life is left"
        );
        assert!(short_lived("2026-06-01T20:00:00Z"));
        assert!(soon("apple_leaf", "2026-06-30T00:00:00Z"));
        assert!(
            !soon("apple_leaf", "2026-05-01T00:00:00Z"),
            "an old signature"
        );
        assert!(soon("apple_root", "2026-11-01T00:00:00Z"));
        assert!(!soon("apple_root", "2027-01-01T00:00:00Z"));
    }
}
