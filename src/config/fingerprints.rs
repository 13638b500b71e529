//! What should be the same in every process, as fingerprints: processes compare them without telling each other more than
//! that they differ.
//!
//! Left out is what may well differ (where a process listens, whether it delivers or runs jobs, how much at once, how it
//! logs) and every secret: whether the encryption keys fit is told by their ids and the canary.

use std::collections::BTreeMap;

use super::settings::{AppSettings, JobIntervals, StoreSettings, WebhookSettings};
use crate::crypto::token;

/// The fingerprint of each group. Those of two releases need not be alike for the same settings.
pub fn compute_fingerprints(settings: &AppSettings) -> BTreeMap<&'static str, String> {
    let WebhookSettings {
        is_dispatcher_enabled: _,
        is_hold_requested: _,
        max_concurrent_deliveries: _,
        dispatch_interval: _,
        callback_timeout: timeout,
        max_retries,
        is_private_callback_allowed: allow_private,
    } = settings.webhooks;
    let JobIntervals {
        is_enabled: _,
        retention,
        reseal,
        expiry,
        drift,
        probe,
        statistics,
    } = settings.job_intervals;
    let StoreSettings {
        apple_production_url: apple_production,
        apple_sandbox_url: apple_sandbox,
        apple_root_certificates: _,
        is_apple_ocsp_enabled: apple_ocsp,
        google_play_url: google_play,
        google_token_url: google_token,
        google_jwks_url: google_jwks,
        google_pubsub_url: google_pubsub,
        upstream_timeout: upstream,
    } = &settings.stores;
    let stores = [
        apple_production,
        apple_sandbox,
        google_play,
        google_token,
        google_jwks,
        google_pubsub,
    ];
    let jobs = [retention, reseal, expiry, drift, probe, statistics];
    let groups = [
        ("environment", format!("{:?}", settings.mode)),
        ("limits", format!("{:?}", settings.rate_limit)),
        (
            "credentials",
            format!(
                "{:?} {:?}",
                settings.credential_cache_ttl, settings.expiry_thresholds
            ),
        ),
        (
            "deliveries",
            format!("{timeout:?} {max_retries} {allow_private}"),
        ),
        (
            "validation_audit",
            settings.is_validation_audit_enabled.to_string(),
        ),
        ("retention", format!("{:?}", settings.retention)),
        ("jobs", format!("{jobs:?}")),
        (
            "stores",
            format!(
                "{:?} {upstream:?} {apple_ocsp}",
                stores.map(url::Url::as_str)
            ),
        ),
    ];
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
