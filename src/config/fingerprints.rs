//! Fingerprints of the settings that should be the same in all processes. Processes compare them without sharing the
//! values.
//!
//! Two kinds of settings have no fingerprint. The first may differ: the listening address, whether a process delivers
//! or runs jobs, concurrency, and logging. The second are secrets: the ids of the encryption keys and the canaries show
//! whether keys match. An entry in [`groups`](super::groups) names its fingerprint itself.

use std::collections::BTreeMap;

use super::settings::AppSettings;
use crate::crypto::token;

/// The fingerprint of each group of settings. Another release may compute other fingerprints for the same settings.
pub fn compute_fingerprints(settings: &AppSettings) -> BTreeMap<&'static str, String> {
    let mut groups = BTreeMap::from([
        ("environment", format!("{:?}", settings.mode)),
        ("limits", format!("{:?} ", settings.rate_limit)),
        (
            "credentials",
            format!("{:?} ", settings.credential_cache_ttl),
        ),
        (
            "validation_audit",
            settings.is_validation_audit_enabled.to_string(),
        ),
    ]);
    settings.admission.add_compared_values(&mut groups);
    settings.expiry_thresholds.add_compared_values(&mut groups);
    settings.webhooks.add_compared_values(&mut groups);
    settings.retention.add_compared_values(&mut groups);
    settings.job_intervals.add_compared_values(&mut groups);
    settings.stores.add_compared_values(&mut groups);
    groups
        .into_iter()
        .map(|(group, text)| (group, token::sha256_fingerprint(text.as_bytes())))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;
    use crate::config::RawSettings;

    fn fingerprints_with(set: &[(&str, &str)]) -> BTreeMap<&'static str, String> {
        let lookup = |name: &str| match name {
            "DATABASE_URL" => Some(OsString::from("postgres://a@b/c")),
            "ATTESTO_ENCRYPTION_KEY" => Some("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=".into()),
            _ => None,
        };
        let given = set
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        compute_fingerprints(
            &AppSettings::parse(&RawSettings::new(given, &lookup)).expect("these are good"),
        )
    }

    fn differing_groups(set: &[(&str, &str)]) -> Vec<&'static str> {
        let (usual, other) = (fingerprints_with(&[]), fingerprints_with(set));
        let groups = usual.iter().filter(|(group, held)| other[*group] != **held);
        groups.map(|(group, _)| *group).collect()
    }

    #[test]
    fn a_group_differs_when_a_setting_of_it_does() {
        for (name, value, group) in [
            ("ATTESTO_ENV", "test", "environment"),
            ("RATE_LIMIT_BURST", "7", "limits"),
            ("RATE_LIMIT_SCOPE", "installation", "limits"),
            ("CREDENTIAL_APPLE_MAX_AGE_DAYS", "7", "credentials"),
            ("WEBHOOK_MAX_RETRIES", "7", "deliveries"),
            ("ENABLE_VALIDATION_AUDIT_LOG", "true", "validation_audit"),
            ("RETENTION_EVENTS_DAYS", "7", "retention"),
            ("JOBS_DRIFT_INTERVAL_SECONDS", "7", "jobs"),
            ("GOOGLE_PLAY_URL", "https://other.example", "stores"),
        ] {
            assert_eq!(differing_groups(&[(name, value)]), [group], "{name}");
        }
        let own = [
            ("PORT", "1"),
            ("JOBS_DISABLED", "1"),
            ("WEBHOOK_DISPATCHER_DISABLED", "1"),
            ("WEBHOOK_DISPATCH_CONCURRENCY", "9"),
            ("LOG_LEVEL", "debug"),
        ];
        assert_eq!(differing_groups(&own), Vec::<&str>::new());
    }
}
