//! The list of settings. The flags of `serve`, their help, and the defaults all come from here.

/// One setting.
#[derive(Clone, Copy, Debug)]
pub struct SettingDefinition {
    /// Its variable in the environment.
    pub name: &'static str,
    /// Its flag, without the dashes. A secret's flag names a file.
    pub flag: &'static str,
    /// What its value looks like; empty for a switch.
    pub value_name: &'static str,
    /// What holds when nobody says anything; empty when that is nothing, or cannot be put in one word.
    pub default: &'static str,
    /// What it means.
    pub help: &'static str,
    /// How it is given.
    pub kind: SettingKind,
}

/// How a setting is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SettingKind {
    /// A text.
    Plain,
    /// `1`, `true`, `0` or `false`; the flag alone means true.
    Switch,
    /// A text that is in nobody's command line: in the variable, or in the file that the variable with `_FILE` names.
    Secret,
}

const fn plain_setting(
    name: &'static str,
    flag: &'static str,
    value: &'static str,
    default: &'static str,
    help: &'static str,
) -> SettingDefinition {
    SettingDefinition {
        name,
        flag,
        value_name: value,
        default,
        help,
        kind: SettingKind::Plain,
    }
}

const fn switch_setting(
    name: &'static str,
    flag: &'static str,
    help: &'static str,
) -> SettingDefinition {
    SettingDefinition {
        name,
        flag,
        value_name: "",
        default: "false",
        help,
        kind: SettingKind::Switch,
    }
}

const fn secret_setting(
    name: &'static str,
    flag: &'static str,
    help: &'static str,
) -> SettingDefinition {
    SettingDefinition {
        name,
        flag,
        value_name: "FILE",
        default: "",
        help,
        kind: SettingKind::Secret,
    }
}

/// Every setting of `serve`, in the order in which help shows them.
pub const SETTINGS: &[SettingDefinition] = &[
    plain_setting(
        "PORT",
        "port",
        "PORT",
        "8080",
        "The port to listen on; 0 takes a free one",
    ),
    plain_setting(
        "BIND_ADDRESS",
        "bind-address",
        "ADDRESS",
        "[::]",
        "The address to listen on; [::] is every address, IPv4 too",
    ),
    plain_setting(
        "TLS_CERT_PATH",
        "tls-cert-path",
        "FILE",
        "",
        "The listener's certificate and those between it and the root, in PEM; without one, it speaks plain HTTP",
    ),
    plain_setting(
        "TLS_KEY_PATH",
        "tls-key-path",
        "FILE",
        "",
        "The certificate's private key, in PEM; both files are read again when they change, and at SIGHUP",
    ),
    secret_setting(
        "DATABASE_URL",
        "database-url-file",
        "A file with the database's URL: postgres://user:password@host:5432/name, Postgres 14 or newer; its \
         parameters max, idle_timeout and connect_timeout (seconds) shape the pool",
    ),
    secret_setting(
        "DATABASE_DIRECT_URL",
        "database-direct-url-file",
        "A file with the URL of the same database without a pooler between, where DATABASE_URL leads to one in transaction \
         mode: for listening, migrations and backups",
    ),
    switch_setting(
        "ATTESTO_EMBEDDED_POSTGRES",
        "embedded-postgres",
        "Without a database URL, run a private Postgres as a child process and keep it in the data directory",
    ),
    plain_setting(
        "ATTESTO_DATA_DIR",
        "data-dir",
        "FOLDER",
        "",
        "Where the private Postgres keeps its data [default: /var/lib/attesto for root, else ~/.local/state/attesto]",
    ),
    plain_setting(
        "ATTESTO_PG_BIN",
        "pg-bin",
        "FOLDER",
        "",
        "Where the private Postgres' programs are [default: the newest ones found]",
    ),
    plain_setting(
        "ATTESTO_PG_USER",
        "pg-user",
        "USER",
        "",
        "Who runs the private Postgres when this process is root [default: attesto if there is such a user, else \
         postgres]",
    ),
    plain_setting(
        "ATTESTO_MIGRATE_ON_START",
        "migrate-on-start",
        "BOOL",
        "true",
        "Bring the database's tables to this release when starting; safe when several processes start at once",
    ),
    secret_setting(
        "ATTESTO_ENCRYPTION_KEY",
        "encryption-key-file",
        "A file with the key that seals secrets: base64 of exactly 32 bytes, optionally with <id>: before it (1 to \
         255, default 1)",
    ),
    secret_setting(
        "ATTESTO_ENCRYPTION_KEYS_RETIRED",
        "encryption-keys-retired-file",
        "A file with keys that still open secrets and seal no more: <id>:<base64>, separated by commas",
    ),
    plain_setting(
        "ATTESTO_ENV",
        "env",
        "ENV",
        "development",
        "development, production or test (NODE_ENV is accepted too); production refuses what only development may do",
    ),
    plain_setting(
        "LOG_LEVEL",
        "log-level",
        "LEVEL",
        "info",
        "fatal, error, warn, info, debug or trace",
    ),
    plain_setting(
        "LOG_FORMAT",
        "log-format",
        "FORMAT",
        "auto",
        "json, pretty, or auto: pretty on a terminal and JSON lines anywhere else",
    ),
    plain_setting(
        "RATE_LIMIT_PER_SECOND",
        "rate-limit-per-second",
        "N",
        "100",
        "Requests per second that one tenant may make of this process, over time",
    ),
    plain_setting(
        "RATE_LIMIT_BURST",
        "rate-limit-burst",
        "N",
        "200",
        "Requests that one tenant may make at once after a pause",
    ),
    plain_setting(
        "CREDENTIAL_CACHE_TTL_SECONDS",
        "credential-cache-ttl-seconds",
        "SECONDS",
        "300",
        "How long a tenant's opened store credentials are kept in memory",
    ),
    switch_setting(
        "WEBHOOK_DISPATCHER_DISABLED",
        "webhook-dispatcher-disabled",
        "This process only receives; another one delivers",
    ),
    switch_setting(
        "ATTESTO_HOLD_DELIVERIES",
        "hold-deliveries",
        "Before anything is sent, hold deliveries in all processes until `attesto deliveries release`: for a system that \
         was restored",
    ),
    plain_setting(
        "WEBHOOK_DISPATCH_CONCURRENCY",
        "webhook-dispatch-concurrency",
        "N",
        "64",
        "Deliveries under way at once",
    ),
    plain_setting(
        "WEBHOOK_DISPATCH_INTERVAL_SECONDS",
        "webhook-dispatch-interval-seconds",
        "SECONDS",
        "10",
        "How often to look for deliveries nobody announced; new ones start at once",
    ),
    plain_setting(
        "WEBHOOK_TIMEOUT_SECONDS",
        "webhook-timeout-seconds",
        "SECONDS",
        "10",
        "How long a callback may take to answer",
    ),
    plain_setting(
        "WEBHOOK_MAX_RETRIES",
        "webhook-max-retries",
        "N",
        "5",
        "How often a delivery is tried again",
    ),
    switch_setting(
        "WEBHOOK_ALLOW_PRIVATE_CALLBACKS",
        "webhook-allow-private-callbacks",
        "Callbacks may be at private addresses; refused in production",
    ),
    switch_setting(
        "ENABLE_VALIDATION_AUDIT_LOG",
        "enable-validation-audit-log",
        "Keep a row for each verification",
    ),
    plain_setting(
        "CREDENTIAL_GRACE_HOURS",
        "credential-grace-hours",
        "HOURS",
        "72",
        "How long store credentials that were replaced are kept sealed, to go back to; 0 keeps none. Read by the commands",
    ),
    plain_setting(
        "CREDENTIAL_APPLE_MAX_AGE_DAYS",
        "credential-apple-max-age-days",
        "DAYS",
        "365",
        "After how long an Apple key is to be exchanged, which is then warned of; 0: never",
    ),
    plain_setting(
        "CREDENTIAL_GOOGLE_MAX_AGE_DAYS",
        "credential-google-max-age-days",
        "DAYS",
        "90",
        "After how long a service account's key is to be exchanged, which is then warned of; 0: never",
    ),
    plain_setting(
        "CREDENTIAL_API_KEY_UNUSED_DAYS",
        "credential-api-key-unused-days",
        "DAYS",
        "90",
        "After how long without use an API key is warned of; 0: never",
    ),
    plain_setting(
        "CERTIFICATE_WARNING_DAYS",
        "certificate-warning-days",
        "DAYS",
        "30",
        "How long before its end a certificate is warned of: Apple's and callbacks'",
    ),
    plain_setting(
        "RETENTION_EVENTS_DAYS",
        "retention-events-days",
        "DAYS",
        "90",
        "How long events and their deliveries are kept, once every delivery has ended; 0 keeps them for ever",
    ),
    plain_setting(
        "RETENTION_VALIDATION_AUDIT_DAYS",
        "retention-validation-audit-days",
        "DAYS",
        "30",
        "How long the rows of verifications are kept; 0 keeps them for ever",
    ),
    plain_setting(
        "RETENTION_OPERATOR_AUDIT_DAYS",
        "retention-operator-audit-days",
        "DAYS",
        "400",
        "How long it is kept what operators changed; 0 keeps it for ever",
    ),
    plain_setting(
        "RETENTION_ATTEMPT_DETAILS_DAYS",
        "retention-attempt-details-days",
        "DAYS",
        "30",
        "How long it is kept what callbacks answered; 0 keeps it as long as the events",
    ),
    switch_setting(
        "JOBS_DISABLED",
        "jobs-disabled",
        "This process runs no periodic jobs; another one does",
    ),
    plain_setting(
        "JOBS_RETENTION_INTERVAL_SECONDS",
        "jobs-retention-interval-seconds",
        "SECONDS",
        "3600",
        "How often what is too old is removed; 0: only by `attesto prune`",
    ),
    plain_setting(
        "JOBS_RESEAL_INTERVAL_SECONDS",
        "jobs-reseal-interval-seconds",
        "SECONDS",
        "900",
        "How often it is looked for secrets that are sealed with an older key; 0: only by `attesto encryption rotate`",
    ),
    plain_setting(
        "JOBS_EXPIRY_INTERVAL_SECONDS",
        "jobs-expiry-interval-seconds",
        "SECONDS",
        "86400",
        "How often credentials that are too old and certificates that end soon are warned of; 0: only when asked",
    ),
    plain_setting(
        "JOBS_DRIFT_INTERVAL_SECONDS",
        "jobs-drift-interval-seconds",
        "SECONDS",
        "3600",
        "How often what is set up is compared with what is there; 0: only when asked",
    ),
    plain_setting(
        "JOBS_PROBE_INTERVAL_SECONDS",
        "jobs-probe-interval-seconds",
        "SECONDS",
        "3600",
        "How often callbacks that got nothing since are connected to, sending nothing; 0: only when asked",
    ),
    plain_setting(
        "JOBS_STATISTICS_INTERVAL_SECONDS",
        "jobs-statistics-interval-seconds",
        "SECONDS",
        "300",
        "How often is counted, for metrics, what takes long to count; 0: only when asked",
    ),
    plain_setting(
        "SHUTDOWN_GRACE_SECONDS",
        "shutdown-grace-seconds",
        "SECONDS",
        "25",
        "How long requests in hand may take to finish after a signal to stop",
    ),
    plain_setting(
        "METRICS_ADDRESS",
        "metrics-address",
        "HOST:PORT",
        "",
        "A second address that serves /metrics, in Prometheus' text format; without one, no metrics are served",
    ),
    plain_setting(
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "otlp-endpoint",
        "URL",
        "",
        "Where traces go: a collector that takes OTLP over HTTP in protobuf, such as http://127.0.0.1:4318; without one there \
         are none",
    ),
    secret_setting(
        "OTEL_EXPORTER_OTLP_HEADERS",
        "otlp-headers-file",
        "A file with headers that the collector wants: name=value, separated by commas, values percent-encoded",
    ),
    plain_setting(
        "OTEL_SERVICE_NAME",
        "otlp-service-name",
        "NAME",
        "attesto",
        "What this service is called in traces",
    ),
    plain_setting(
        "OTEL_TRACES_SAMPLER_ARG",
        "otlp-share",
        "SHARE",
        "1",
        "How much is traced, from 0 to 1, whatever a caller's traceparent says",
    ),
    plain_setting(
        "APPLE_PRODUCTION_URL",
        "apple-production-url",
        "URL",
        "https://api.storekit.apple.com",
        "Apple's server API",
    ),
    plain_setting(
        "APPLE_SANDBOX_URL",
        "apple-sandbox-url",
        "URL",
        "https://api.storekit-sandbox.apple.com",
        "Apple's server API for sandbox purchases",
    ),
    plain_setting(
        "APPLE_ROOT_CERTIFICATES",
        "apple-root-certificates",
        "PATH",
        "",
        "A DER or PEM file, or a folder of them, instead of Apple's roots [default: built in]; refused in production",
    ),
    plain_setting(
        "APPLE_OCSP",
        "apple-ocsp",
        "MODE",
        "off",
        "off or on: whether Apple's responders are asked if a certificate was revoked",
    ),
    plain_setting(
        "GOOGLE_PLAY_URL",
        "google-play-url",
        "URL",
        "https://androidpublisher.googleapis.com",
        "Google's Play Developer API",
    ),
    plain_setting(
        "GOOGLE_TOKEN_URL",
        "google-token-url",
        "URL",
        "https://oauth2.googleapis.com/token",
        "Where a service account gets its access tokens",
    ),
    plain_setting(
        "GOOGLE_JWKS_URL",
        "google-jwks-url",
        "URL",
        "https://www.googleapis.com/oauth2/v3/certs",
        "The keys that Google signs push tokens with",
    ),
    plain_setting(
        "GOOGLE_PUBSUB_URL",
        "google-pubsub-url",
        "URL",
        "https://pubsub.googleapis.com",
        "Google's Pub/Sub API",
    ),
    plain_setting(
        "UPSTREAM_TIMEOUT_SECONDS",
        "upstream-timeout-seconds",
        "SECONDS",
        "10",
        "How long one question to a store may take, quick retries included",
    ),
];

/// The setting of that variable.
pub fn find_setting(name: &str) -> Option<&'static SettingDefinition> {
    SETTINGS.iter().find(|setting| setting.name == name)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn each_setting_stands_once_and_is_explained() {
        let names: HashSet<_> = SETTINGS.iter().map(|setting| setting.name).collect();
        let flags: HashSet<_> = SETTINGS.iter().map(|setting| setting.flag).collect();
        assert_eq!((names.len(), flags.len()), (SETTINGS.len(), SETTINGS.len()));
        for SettingDefinition {
            name,
            flag,
            help,
            kind,
            ..
        } in SETTINGS
        {
            assert!(!help.ends_with('.') && help.len() > 10, "{name}");
            assert_eq!(
                flag.ends_with("-file"),
                *kind == SettingKind::Secret,
                "{name}"
            );
        }
    }
}
