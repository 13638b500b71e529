//! The list of all settings. The flags of `attesto serve`, their help and the defaults come from it.

use std::sync::LazyLock;

use super::groups::{
    AdmissionSettings, ExpiryThresholds, JobIntervals, RetentionSettings, StoreSettings,
    WebhookSettings,
};

/// The definition of a setting.
#[derive(Clone, Copy, Debug)]
pub struct SettingDefinition {
    /// The environment variable.
    pub name: &'static str,
    /// The flag without its dashes. For a secret, the flag's value is the path of a file.
    pub flag: &'static str,
    /// The placeholder of the value in `--help`; empty for a switch.
    pub value_name: &'static str,
    /// The default as text. Empty if there is none, or if it depends on the machine.
    pub default: &'static str,
    /// The meaning, as a sentence without a full stop.
    pub help: &'static str,
    /// The form in which the value is given.
    pub kind: SettingKind,
}

/// The form in which a setting's value is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SettingKind {
    /// A text, in the variable or after the flag.
    Plain,
    /// `1`, `true`, `0` or `false`. The flag without a value means true.
    Switch,
    /// A text that is never given in a command line. It is in the variable, or in a file that the variable with `_FILE`
    /// appended names.
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

const BASIC: &[SettingDefinition] = &[
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
        "The listener's certificate and its intermediate certificates, in PEM; without one, it uses plain HTTP",
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
        "A file with the database's URL: postgres://user:password@host:5432/name, Postgres 14 or newer; its parameters max, idle_timeout and connect_timeout (seconds) configure the pool",
    ),
    secret_setting(
        "DATABASE_DIRECT_URL",
        "database-direct-url-file",
        "A file with a URL of the same database that bypasses the pooler, if DATABASE_URL names a pooler in transaction mode: for notifications, migrations and backups",
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
        "The folder of the private Postgres' data [default: /var/lib/attesto for root, else ~/.local/state/attesto]",
    ),
    plain_setting(
        "ATTESTO_PG_BIN",
        "pg-bin",
        "FOLDER",
        "",
        "The folder of the private Postgres' programs [default: the newest ones found]",
    ),
    plain_setting(
        "ATTESTO_PG_USER",
        "pg-user",
        "USER",
        "",
        "The user that runs the private Postgres if this process runs as root [default: attesto if there is such a user, else postgres]",
    ),
    plain_setting(
        "ATTESTO_MIGRATE_ON_START",
        "migrate-on-start",
        "BOOL",
        "true",
        "Apply missing migrations to the database at the start; safe if several processes start at once",
    ),
    secret_setting(
        "ATTESTO_ENCRYPTION_KEY",
        "encryption-key-file",
        "A file with the key that seals secrets: base64 of exactly 32 bytes, optionally with <id>: before it (1 to 255, default 1)",
    ),
    secret_setting(
        "ATTESTO_ENCRYPTION_KEYS_RETIRED",
        "encryption-keys-retired-file",
        "A file with retired keys, which still unseal secrets and no longer seal: <id>:<base64>, separated by commas",
    ),
    plain_setting(
        "ATTESTO_ENV",
        "env",
        "ENV",
        "development",
        "development, production or test (NODE_ENV is accepted too); production refuses settings that are for development only",
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
        "Requests per second that one tenant may make of this process, or of all with RATE_LIMIT_SCOPE, over time",
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
        "How long a tenant's unsealed store credentials are kept in memory",
    ),
];

const VALIDATION_AUDIT: &[SettingDefinition] = &[
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
        "How long replaced store credentials are kept, sealed, so that they can be restored; 0 keeps none. Read by the commands",
    ),
];

const OPERATION: &[SettingDefinition] = &[
    plain_setting(
        "SHUTDOWN_GRACE_SECONDS",
        "shutdown-grace-seconds",
        "SECONDS",
        "25",
        "How long requests in progress may take to finish after a signal to stop",
    ),
    plain_setting(
        "METRICS_ADDRESS",
        "metrics-address",
        "HOST:PORT",
        "",
        "A second address that serves /metrics, in the OpenMetrics text format; without one, no metrics are served",
    ),
    secret_setting(
        "ATTESTO_EGRESS_PROXY",
        "egress-proxy-file",
        "A file with the HTTP proxy that all calls to the stores and to callbacks go through, by CONNECT: http://host:port or http://user:password@host:port",
    ),
    plain_setting(
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "otlp-endpoint",
        "URL",
        "",
        "Where traces go: a collector that takes OTLP over HTTP in protobuf, such as http://127.0.0.1:4318; without one there are none",
    ),
    secret_setting(
        "OTEL_EXPORTER_OTLP_HEADERS",
        "otlp-headers-file",
        "A file with headers that the collector requires: name=value, separated by commas, values percent-encoded",
    ),
    plain_setting(
        "OTEL_SERVICE_NAME",
        "otlp-service-name",
        "NAME",
        "attesto",
        "The name of this service in traces",
    ),
    plain_setting(
        "OTEL_TRACES_SAMPLER_ARG",
        "otlp-share",
        "SHARE",
        "1",
        "The share of requests that is traced, from 0 to 1, whatever a caller's traceparent says",
    ),
];

/// Every setting of `attesto serve`, in the order of its help.
pub static SETTINGS: LazyLock<Vec<SettingDefinition>> = LazyLock::new(|| {
    [
        BASIC,
        AdmissionSettings::DEFINITIONS,
        WebhookSettings::DEFINITIONS,
        VALIDATION_AUDIT,
        ExpiryThresholds::DEFINITIONS,
        RetentionSettings::DEFINITIONS,
        JobIntervals::DEFINITIONS,
        OPERATION,
        StoreSettings::DEFINITIONS,
    ]
    .concat()
});

/// The definition of the setting with this environment variable.
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
        } in SETTINGS.iter()
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
