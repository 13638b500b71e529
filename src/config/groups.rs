//! Settings of common types, in groups. Each setting is one entry.
//!
//! An entry has the variable, the flag, the placeholder of its value in `--help` (empty for a switch), the default and
//! the meaning. If the value should be the same in all processes, the group of its fingerprint follows. Then come its
//! field with the type, and the function of [`SettingsReader`] that reads it. The struct, its reader, the flags of
//! `attesto serve`, `--help`, `config check` and the fingerprints are made from the entry. A test says what to add to
//! `.env.example` and the README.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use url::Url;

use super::definitions::{SettingDefinition, SettingKind};
use super::raw::RawSettings;
use super::reader::SettingsReader;
use crate::http::body_budget::BodyBudgetLimits;
use crate::http::trusted_proxies::TrustedProxies;
use crate::tenants::{IntakeLimit, RateLimitScope};

macro_rules! setting_group {
    ($(#[$attribute:meta])* $group:ident {
        $(
            ($name:literal, $flag:literal, $value_name:literal, $default:literal, $help:literal)
                $(in $fingerprint:literal)? => $field:ident: $type:ty = $read:ident($($argument:expr)?);
        )*
    }) => {
        $(#[$attribute])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct $group {
            $(
                #[doc = concat!("`", $name, "`: ", $help, ".")]
                pub $field: $type,
            )*
        }

        impl $group {
            pub(super) const DEFINITIONS: &'static [SettingDefinition] = &[$(
                SettingDefinition {
                    name: $name,
                    flag: $flag,
                    value_name: $value_name,
                    default: $default,
                    help: $help,
                    kind: if $value_name.is_empty() { SettingKind::Switch } else { SettingKind::Plain },
                },
            )*];

            /// Reads only these settings, for a command that does not serve.
            pub fn from_raw(raw: &RawSettings<'_>) -> Result<Self, Vec<String>> {
                SettingsReader::read_single(raw, Self::read)
            }

            pub(super) fn read(reader: &mut SettingsReader<'_>) -> Self {
                Self { $($field: reader.$read($name $(, $argument)?),)* }
            }

            /// Appends the values that should be the same in all processes to the texts of their fingerprints.
            pub(super) fn add_compared_values(&self, groups: &mut BTreeMap<&'static str, String>) {
                $($(
                    let text = groups.entry($fingerprint).or_default();
                    text.push_str(&format!("{:?} ", self.$field));
                )?)*
            }
        }
    };
}

setting_group! {
    /// Delivery of events to callbacks.
    #[derive(Copy)]
    WebhookSettings {
        ("WEBHOOK_DISPATCHER_DISABLED", "webhook-dispatcher-disabled", "", "false",
            "This process does not deliver events; another one must")
            => is_dispatcher_enabled: bool = read_negated_switch();
        ("ATTESTO_HOLD_DELIVERIES", "hold-deliveries", "", "false",
            "Hold all deliveries in all processes, from the start, until `attesto deliveries release`: for a system that was restored")
            => is_hold_requested: bool = read_switch();
        ("WEBHOOK_DISPATCH_CONCURRENCY", "webhook-dispatch-concurrency", "N", "64",
            "Maximum number of deliveries in flight at once")
            => max_concurrent_deliveries: usize = read_number(1..=1024);
        ("WEBHOOK_DISPATCH_INTERVAL_SECONDS", "webhook-dispatch-interval-seconds", "SECONDS", "10",
            "How often to look for due deliveries that no notification has announced; new ones start at once")
            => dispatch_interval: Duration = read_seconds(1..=3600);
        ("WEBHOOK_TIMEOUT_SECONDS", "webhook-timeout-seconds", "SECONDS", "10",
            "How long a callback may take to answer")
            in "deliveries" => callback_timeout: Duration = read_seconds(1..=120);
        ("WEBHOOK_MAX_RETRIES", "webhook-max-retries", "N", "5",
            "How many times a delivery is retried")
            in "deliveries" => max_retries: u32 = read_number(0..=20);
        ("WEBHOOK_ALLOW_PRIVATE_CALLBACKS", "webhook-allow-private-callbacks", "", "false",
            "Callbacks may be at private addresses; refused in production")
            in "deliveries" => is_private_callback_allowed: bool = read_development_switch();
    }
}

setting_group! {
    /// How much of the process' memory and connections senders can take, and how they are told apart.
    AdmissionSettings {
        ("REQUEST_MEMORY_MEGABYTES", "request-memory-megabytes", "N", "32",
            "Megabytes that the bodies of requests in hand may take together; further ones are answered with 503")
            => request_memory_megabytes: usize = read_number(32..=65_536);
        ("PEER_SHARE_PERCENT", "peer-share-percent", "PERCENT", "25",
            "How much of the connections, and of the memory for requests without an API key, one address may take")
            in "limits" => peer_share_percent: usize = read_number(5..=100);
        ("ATTESTO_TRUSTED_PROXIES", "trusted-proxies", "NETWORKS", "",
            "Addresses and networks of the proxies in front, such as 10.0.0.5,fd00::/8: a client's address is what they append to X-Forwarded-For or Forwarded")
            in "limits" => trusted_proxies: TrustedProxies = read_trusted_proxies();
        ("RATE_LIMIT_SCOPE", "rate-limit-scope", "SCOPE", "process",
            "process or installation: whether a tenant's rate and burst are for one process, or divided among all processes that serve with this database")
            in "limits" => rate_limit_scope: RateLimitScope = read_rate_limit_scope();
        ("INTAKE_EVENTS_PER_MINUTE", "intake-events-per-minute", "N", "30000",
            "Notifications that are taken in for one tenant in a minute, as RATE_LIMIT_SCOPE says; further ones are answered with 429")
            in "limits" => intake_events_per_minute: u32 = read_number(1..=100_000_000);
        ("INTAKE_MEGABYTES_PER_MINUTE", "intake-megabytes-per-minute", "N", "300",
            "Megabytes of notifications that are taken in for one tenant in a minute, in the same way")
            in "limits" => intake_megabytes_per_minute: u32 = read_number(1..=1_000_000);
    }
}

setting_group! {
    /// When to warn of credentials and certificates. `None`: never.
    #[derive(Copy)]
    ExpiryThresholds {
        ("CREDENTIAL_APPLE_MAX_AGE_DAYS", "credential-apple-max-age-days", "DAYS", "365",
            "Age of an Apple key from which on there is a warning to replace it; 0: never")
            in "credentials" => apple_key_max_age: Option<Duration> = read_days();
        ("CREDENTIAL_GOOGLE_MAX_AGE_DAYS", "credential-google-max-age-days", "DAYS", "90",
            "Age of a service account's key from which on there is a warning to replace it; 0: never")
            in "credentials" => google_key_max_age: Option<Duration> = read_days();
        ("CREDENTIAL_API_KEY_UNUSED_DAYS", "credential-api-key-unused-days", "DAYS", "90",
            "Time without use after which there is a warning about an API key; 0: never")
            in "credentials" => api_key_max_unused: Option<Duration> = read_days();
        ("CERTIFICATE_WARNING_DAYS", "certificate-warning-days", "DAYS", "30",
            "How long before the expiry of a certificate there is a warning, for Apple's and callbacks' certificates")
            in "credentials" => certificate_warning_period: Duration = read_days_in(0..=3650);
    }
}

setting_group! {
    /// How long data is kept. `None`: for ever.
    #[derive(Copy)]
    RetentionSettings {
        ("RETENTION_EVENTS_DAYS", "retention-events-days", "DAYS", "90",
            "How long events and their deliveries are kept, once every delivery has ended; 0 keeps them for ever")
            in "retention" => events: Option<Duration> = read_days();
        ("RETENTION_VALIDATION_AUDIT_DAYS", "retention-validation-audit-days", "DAYS", "30",
            "How long rows of the validation audit are kept; 0 keeps them for ever")
            in "retention" => validation_audit: Option<Duration> = read_days();
        ("RETENTION_OPERATOR_AUDIT_DAYS", "retention-operator-audit-days", "DAYS", "400",
            "How long rows of the operator audit are kept; 0 keeps them for ever")
            in "retention" => operator_audit: Option<Duration> = read_days();
        ("RETENTION_ATTEMPT_DETAILS_DAYS", "retention-attempt-details-days", "DAYS", "30",
            "How long the bodies of callbacks' answers are kept; 0 keeps them as long as the events")
            in "retention" => attempt_details: Option<Duration> = read_days();
        ("RETENTION_FIRST_SEEN_DAYS", "retention-first-seen-days", "DAYS", "400",
            "How long it is remembered for which user a purchase was first verified, after its last verification; 0 remembers it for ever")
            in "retention" => first_seen: Option<Duration> = read_days();
    }
}

setting_group! {
    /// How often each job runs. `None`: only on command.
    #[derive(Copy)]
    JobIntervals {
        ("JOBS_DISABLED", "jobs-disabled", "", "false",
            "This process runs no periodic jobs; another one must")
            => is_enabled: bool = read_negated_switch();
        ("JOBS_BACKFILL_INTERVAL_SECONDS", "jobs-backfill-interval-seconds", "SECONDS", "300",
            "How often to look for notifications that did not arrive, of tenants for which that is due: once a day, and after a downtime; 0: only on command")
            in "jobs" => backfill: Option<Duration> = read_interval();
        ("JOBS_RETENTION_INTERVAL_SECONDS", "jobs-retention-interval-seconds", "SECONDS", "3600",
            "How often data whose retention period has ended is removed; 0: only by `attesto prune`")
            in "jobs" => retention: Option<Duration> = read_interval();
        ("JOBS_RESEAL_INTERVAL_SECONDS", "jobs-reseal-interval-seconds", "SECONDS", "900",
            "How often secrets that are sealed with an older key are sealed again; 0: only by `attesto encryption rotate`")
            in "jobs" => reseal: Option<Duration> = read_interval();
        ("JOBS_EXPIRY_INTERVAL_SECONDS", "jobs-expiry-interval-seconds", "SECONDS", "86400",
            "How often to warn of old credentials and of certificates that expire soon; 0: only on command")
            in "jobs" => expiry: Option<Duration> = read_interval();
        ("JOBS_DRIFT_INTERVAL_SECONDS", "jobs-drift-interval-seconds", "SECONDS", "3600",
            "How often the configuration is compared with what is in use; 0: only on command")
            in "jobs" => drift: Option<Duration> = read_interval();
        ("JOBS_PROBE_INTERVAL_SECONDS", "jobs-probe-interval-seconds", "SECONDS", "3600",
            "How often to connect to callbacks that got no delivery since, without sending anything; 0: only on command")
            in "jobs" => probe: Option<Duration> = read_interval();
        ("JOBS_STATISTICS_INTERVAL_SECONDS", "jobs-statistics-interval-seconds", "SECONDS", "300",
            "How often to count values for metrics that take long to count; 0: only on command")
            in "jobs" => statistics: Option<Duration> = read_interval();
    }
}

setting_group! {
    /// The URLs of the stores' APIs, and how they are called.
    StoreSettings {
        ("APPLE_PRODUCTION_URL", "apple-production-url", "URL", "https://api.storekit.apple.com",
            "Apple's server API")
            in "stores" => apple_production_url: Url = read_url();
        ("APPLE_SANDBOX_URL", "apple-sandbox-url", "URL", "https://api.storekit-sandbox.apple.com",
            "Apple's server API for sandbox purchases")
            in "stores" => apple_sandbox_url: Url = read_url();
        ("APPLE_ROOT_CERTIFICATES", "apple-root-certificates", "PATH", "",
            "A DER or PEM file, or a folder of them, instead of Apple's roots [default: built in]; refused in production")
            => apple_root_certificates: Option<PathBuf> = read_development_path();
        ("APPLE_OCSP", "apple-ocsp", "MODE", "off",
            "off or on: whether Apple's OCSP responders are asked if a certificate was revoked")
            in "stores" => is_apple_ocsp_enabled: bool = read_off_or_on();
        ("GOOGLE_PLAY_URL", "google-play-url", "URL", "https://androidpublisher.googleapis.com",
            "Google's Play Developer API")
            in "stores" => google_play_url: Url = read_url();
        ("GOOGLE_TOKEN_URL", "google-token-url", "URL", "https://oauth2.googleapis.com/token",
            "Where a service account gets its access tokens")
            in "stores" => google_token_url: Url = read_url();
        ("GOOGLE_JWKS_URL", "google-jwks-url", "URL", "https://www.googleapis.com/oauth2/v3/certs",
            "The keys that Google signs push tokens with")
            in "stores" => google_jwks_url: Url = read_url();
        ("GOOGLE_PUBSUB_URL", "google-pubsub-url", "URL", "https://pubsub.googleapis.com",
            "Google's Pub/Sub API")
            in "stores" => google_pubsub_url: Url = read_url();
        ("UPSTREAM_TIMEOUT_SECONDS", "upstream-timeout-seconds", "SECONDS", "10",
            "How long one request to a store may take, quick retries included")
            in "stores" => upstream_timeout: Duration = read_seconds(1..=60);
    }
}

impl AdmissionSettings {
    /// The memory for the bodies of requests.
    pub fn body_budget_limits(&self) -> BodyBudgetLimits {
        BodyBudgetLimits {
            max_bytes: self.request_memory_megabytes * 1024 * 1024,
            peer_share_percent: self.peer_share_percent,
            ..BodyBudgetLimits::default()
        }
    }

    /// The budget of a tenant for notifications.
    pub fn intake_limit(&self) -> IntakeLimit {
        IntakeLimit {
            events_per_minute: self.intake_events_per_minute,
            megabytes_per_minute: self.intake_megabytes_per_minute,
        }
    }

    /// The connections of one peer, of `max_connections` in all.
    pub fn max_connections_per_peer(&self, max_connections: usize) -> usize {
        (max_connections * self.peer_share_percent / 100).max(1)
    }
}

impl JobIntervals {
    /// Disables the job that connects to callbacks in a process that does not deliver. Such a process may not be
    /// allowed to reach callbacks, and would report all of them as unreachable.
    #[must_use]
    pub fn with_probe_only_if_delivering(mut self, delivers: bool) -> Self {
        self.probe = self.probe.filter(|_| delivers);
        self
    }
}
