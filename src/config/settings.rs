//! The settings that the service runs with. Settings of common types are in [`groups`](super::groups).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::groups::{
    AdmissionSettings, ExpiryThresholds, JobIntervals, RetentionSettings, StoreSettings,
    WebhookSettings,
};
use super::raw::RawSettings;
use super::reader::SettingsReader;
use crate::crypto::keyring::Keyring;
use crate::db::ConnectSettings;
use crate::egress::EgressProxy;
use crate::embedded_postgres::EmbeddedOptions;
use crate::server::ListenSettings;
use crate::server::tls::TlsFiles;
use crate::telemetry::{LogSettings, TraceSettings};
use crate::tenants::RateLimit;

/// The kind of installation, from `ATTESTO_ENV`. Production refuses settings that are only for development.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeploymentMode {
    /// A developer's machine.
    Development,
    /// Real tenants and purchases.
    Production,
    /// A test suite.
    Test,
}

impl DeploymentMode {
    /// The value of `ATTESTO_ENV`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Development => "development",
            Self::Production => "production",
            Self::Test => "test",
        }
    }
}

/// Reads only `ATTESTO_ENV`, even if other settings are invalid. `None` if it is itself.
pub fn read_deployment_mode(raw: &RawSettings<'_>) -> Option<DeploymentMode> {
    SettingsReader::read_single(raw, SettingsReader::mode).ok()
}

/// Reads only the listening address, for a command that calls a service on this machine.
pub fn read_listen_settings(raw: &RawSettings<'_>) -> Result<ListenSettings, Vec<String>> {
    SettingsReader::read_single(raw, SettingsReader::read_listen)
}

/// The database to use.
#[derive(Clone)]
pub enum DatabaseSource {
    /// A server that runs already: `DATABASE_URL`.
    Url(Box<ConnectSettings>),
    /// A private Postgres that runs as a child process: `ATTESTO_EMBEDDED_POSTGRES`.
    Embedded(EmbeddedOptions),
}

/// The value of `CREDENTIAL_GRACE_HOURS`: how long a replacement of store credentials can be rolled back. Zero: not at
/// all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CredentialGracePeriod(pub Duration);

/// All settings of `attesto serve`.
#[derive(Clone)]
pub struct AppSettings {
    /// The value of `ATTESTO_ENV`.
    pub mode: DeploymentMode,
    /// The values of `PORT` and `BIND_ADDRESS`.
    pub listen: ListenSettings,
    /// From `DATABASE_URL` and `DATABASE_DIRECT_URL`, or the options of a private Postgres.
    pub database: DatabaseSource,
    /// The value of `ATTESTO_MIGRATE_ON_START`.
    pub migrate_on_start: bool,
    /// The keys in `ATTESTO_ENCRYPTION_KEY` and `ATTESTO_ENCRYPTION_KEYS_RETIRED`.
    pub keyring: Arc<Keyring>,
    /// The values of `LOG_LEVEL` and `LOG_FORMAT`.
    pub log: LogSettings,
    /// The values of `RATE_LIMIT_PER_SECOND` and `RATE_LIMIT_BURST`.
    pub rate_limit: RateLimit,
    /// How much senders can take.
    pub admission: AdmissionSettings,
    /// The value of `CREDENTIAL_CACHE_TTL_SECONDS`.
    pub credential_cache_ttl: Duration,
    /// The thresholds for warnings about credentials and certificates.
    pub expiry_thresholds: ExpiryThresholds,
    /// The values of the `WEBHOOK_…` settings.
    pub webhooks: WebhookSettings,
    /// The value of `ENABLE_VALIDATION_AUDIT_LOG`.
    pub is_validation_audit_enabled: bool,
    /// The values of the `RETENTION_…` settings.
    pub retention: RetentionSettings,
    /// The values of the `JOBS_…` settings.
    pub job_intervals: JobIntervals,
    /// The value of `SHUTDOWN_GRACE_SECONDS`.
    pub shutdown_grace: Duration,
    /// The paths in `TLS_CERT_PATH` and `TLS_KEY_PATH`.
    pub tls_files: Option<TlsFiles>,
    /// The `OTEL_…` settings. `None` without a collector.
    pub traces: Option<TraceSettings>,
    /// The value of `METRICS_ADDRESS`.
    pub metrics_address: Option<SocketAddr>,
    /// The URLs of the stores' APIs.
    pub stores: StoreSettings,
    /// The value of `ATTESTO_EGRESS_PROXY`.
    pub egress_proxy: Option<EgressProxy>,
}

impl AppSettings {
    /// Parses all settings. Each problem is a line that names the flag or variable and says what it must be. No problem
    /// repeats a value.
    pub fn parse(raw: &RawSettings<'_>) -> Result<Self, Vec<String>> {
        let mut reader = SettingsReader::new(raw);
        // Every setting is read before a missing one is reported, so that all problems are found at once.
        let mode = reader.mode();
        let listen = reader.read_listen();
        let database = reader.read_database();
        let migrate_on_start = reader.read_switch("ATTESTO_MIGRATE_ON_START");
        let keyring = reader.read_keyring();
        let log = reader.read_log();
        let rate_limit = RateLimit {
            per_second: reader.read_number("RATE_LIMIT_PER_SECOND", 1..=1_000_000),
            burst: reader.read_number("RATE_LIMIT_BURST", 1..=1_000_000),
        };
        let admission = AdmissionSettings::read(&mut reader);
        let credential_ttl = reader.read_seconds("CREDENTIAL_CACHE_TTL_SECONDS", 1..=86_400);
        // Not used by the service: a wrong value is reported all the same.
        reader.read_credential_grace();
        let expiry_thresholds = ExpiryThresholds::read(&mut reader);
        let webhooks = WebhookSettings::read(&mut reader);
        let validation_audit = reader.read_switch("ENABLE_VALIDATION_AUDIT_LOG");
        let retention = RetentionSettings::read(&mut reader);
        let jobs = JobIntervals::read(&mut reader);
        let shutdown_grace = reader.read_seconds("SHUTDOWN_GRACE_SECONDS", 0..=3600);
        let tls = reader.read_tls_files();
        let traces = reader.read_traces();
        let metrics = reader.read_metrics_address();
        let stores = StoreSettings::read(&mut reader);
        let egress_proxy = reader.read_egress_proxy();
        match (database, keyring) {
            (Some(database), Some(keyring)) if reader.problems.is_empty() => Ok(Self {
                mode,
                listen,
                database,
                migrate_on_start,
                keyring,
                log,
                rate_limit,
                admission,
                credential_cache_ttl: credential_ttl,
                expiry_thresholds,
                webhooks,
                is_validation_audit_enabled: validation_audit,
                retention,
                job_intervals: jobs,
                shutdown_grace,
                tls_files: tls,
                traces,
                metrics_address: metrics,
                stores,
                egress_proxy,
            }),
            _ => Err(reader.problems),
        }
    }
}

/// Prints only settings that are not secret.
impl std::fmt::Debug for AppSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AppSettings")
            .field("mode", &self.mode)
            .field("listen", &self.listen)
            .finish_non_exhaustive()
    }
}

/// Reads only `TLS_CERT_PATH` and `TLS_KEY_PATH`, for a command that calls a service on this machine.
pub fn read_tls_files(raw: &RawSettings<'_>) -> Result<Option<TlsFiles>, Vec<String>> {
    SettingsReader::read_single(raw, SettingsReader::read_tls_files)
}

/// Reads only `ATTESTO_EGRESS_PROXY`, for a command that calls a store or a callback.
pub fn read_egress_proxy(raw: &RawSettings<'_>) -> Result<Option<EgressProxy>, Vec<String>> {
    SettingsReader::read_single(raw, SettingsReader::read_egress_proxy)
}

impl LogSettings {
    /// Reads the settings of the log, even if other settings are invalid: needed to log that they are.
    pub fn best_effort(raw: &RawSettings<'_>) -> Self {
        let mut reader = SettingsReader::new(raw);
        reader.read_log()
    }
}

impl CredentialGracePeriod {
    /// Reads only this setting, for a command that replaces credentials.
    pub fn from_raw(raw: &RawSettings<'_>) -> Result<Self, Vec<String>> {
        SettingsReader::read_single(raw, SettingsReader::read_credential_grace)
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;

    use super::*;

    fn parse_settings(
        flags: &[(&str, &str)],
        set: &[(&str, &str)],
    ) -> Result<AppSettings, Vec<String>> {
        let key = STANDARD.encode([7; 32]);
        let lookup = |name: &str| {
            let given = set.iter().find(|(set, _)| *set == name);
            let given = given.map(|(_, value)| OsString::from(value));
            given.or_else(|| match name {
                "DATABASE_URL" if !set.iter().any(|(name, _)| *name == "-") => {
                    Some("postgres://a:b@localhost/c?max=7".into())
                }
                "ATTESTO_ENCRYPTION_KEY" => Some(key.clone().into()),
                _ => None,
            })
        };
        let flags = flags
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        AppSettings::parse(&RawSettings::new(flags, &lookup))
    }

    #[test]
    fn other_otel_variables_are_ignored_without_an_endpoint() {
        let others = [
            ("OTEL_EXPORTER_OTLP_HEADERS", "no header"),
            ("OTEL_EXPORTER_OTLP_HEADERS_FILE", "/nowhere"),
            ("OTEL_SERVICE_NAME", &*"x".repeat(101)),
            ("OTEL_TRACES_SAMPLER_ARG", "endpoint=http://sampling:14250"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", " "),
        ];
        assert!(parse_settings(&[], &others).unwrap().traces.is_none());
        let mut variables = others;
        variables[4].1 = "http://127.0.0.1:4318";
        let problems = parse_settings(&[], &variables).unwrap_err();
        assert_eq!(problems.len(), 3, "{problems:?}");
        // A misspelt endpoint is reported together with the others.
        variables[4].1 = "127.0.0.1:4318";
        let problems = parse_settings(&[], &variables).unwrap_err();
        assert_eq!(problems.len(), 4, "{problems:?}");
    }

    #[test]
    fn another_samplers_argument_is_no_share() {
        let share = |sampler: &str, argument: &str| {
            let set = [
                ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318"),
                ("OTEL_TRACES_SAMPLER", sampler),
                ("OTEL_TRACES_SAMPLER_ARG", argument),
            ];
            let settings = parse_settings(&[], &set);
            settings.map(|settings| settings.traces.unwrap().sample_ratio.to_string())
        };
        let problem = || {
            Err(vec![
                "OTEL_TRACES_SAMPLER_ARG: must be a number from 0 to 1".to_owned(),
            ])
        };
        for (sampler, argument, expected) in [
            (
                "jaeger_remote",
                "endpoint=http://sampling:14250",
                Ok("1".to_owned()),
            ),
            ("xray", "100", Ok("1".to_owned())),
            ("parentbased_always_on", "0.5", Ok("0.5".to_owned())),
            ("traceidratio", "half", problem()),
            ("parentbased_traceidratio", "2", problem()),
            ("parentbased_traceidratio", "0.25", Ok("0.25".to_owned())),
            ("", "half", problem()),
        ] {
            assert_eq!(share(sampler, argument), expected, "{sampler} {argument}");
        }
    }

    #[test]
    fn two_settings_are_enough() {
        let settings = parse_settings(&[], &[]).expect("the defaults are good");
        assert_eq!(settings.mode, DeploymentMode::Development);
        assert_eq!(settings.listen.bind_addr(), "[::]:8080".parse().unwrap());
        assert_eq!(
            settings.rate_limit,
            RateLimit {
                per_second: 100,
                burst: 200
            }
        );
        assert_eq!(settings.credential_cache_ttl, Duration::from_mins(5));
        assert_eq!(settings.shutdown_grace, Duration::from_secs(25));
        assert!(settings.migrate_on_start && settings.webhooks.is_dispatcher_enabled);
        assert_eq!(settings.stores.google_token_url.path(), "/token");
    }

    #[test]
    fn a_flag_wins_over_a_variable_and_a_blank_is_nothing() {
        let settings = parse_settings(
            &[("PORT", "0"), ("BIND_ADDRESS", "127.0.0.1")],
            &[
                ("PORT", "9000"),
                ("RATE_LIMIT_BURST", " 7 "),
                ("LOG_LEVEL", ""),
                ("NODE_ENV", "production"),
                ("WEBHOOK_DISPATCHER_DISABLED", "1"),
            ],
        )
        .expect("these are good");
        assert_eq!(settings.listen.bind_addr(), "127.0.0.1:0".parse().unwrap());
        assert_eq!(settings.rate_limit.burst, 7);
        assert_eq!(settings.mode, DeploymentMode::Production);
        assert!(settings.log.is_cause_redacted && !settings.webhooks.is_dispatcher_enabled);
        let both = parse_settings(&[], &[("NODE_ENV", "production"), ("ATTESTO_ENV", "test")]);
        assert_eq!(both.expect("good").mode, DeploymentMode::Test);
    }

    #[test]
    fn a_service_that_listens_everywhere_is_found_at_loopback() {
        for (given, nearby) in [
            (vec![], "127.0.0.1:8080"),
            (vec![("BIND_ADDRESS", "[::]")], "127.0.0.1:8080"),
            (
                vec![("BIND_ADDRESS", "0.0.0.0"), ("PORT", "9000")],
                "127.0.0.1:9000",
            ),
            (vec![("BIND_ADDRESS", "[::1]")], "[::1]:8080"),
            (vec![("BIND_ADDRESS", "10.1.2.3")], "10.1.2.3:8080"),
        ] {
            let given: Vec<_> = given
                .iter()
                .map(|(name, text)| ((*name).to_owned(), (*text).to_owned()))
                .collect();
            let listen =
                read_listen_settings(&RawSettings::new(given, &|_| None)).expect("these are good");
            assert_eq!(listen.connect_addr(), nearby.parse().unwrap());
        }
        let bad = RawSettings::new([("PORT".to_owned(), "x".to_owned())], &|_| None);
        assert_eq!(read_listen_settings(&bad).unwrap_err().len(), 1);
    }

    #[test]
    fn every_problem_is_said_at_once_and_no_value_is_repeated() {
        let problems = parse_settings(
            &[("PORT", "hunter2")],
            &[
                ("-", ""),
                ("BIND_ADDRESS", "hunter2"),
                ("ATTESTO_ENV", "hunter2"),
                ("ATTESTO_ENCRYPTION_KEY", "hunter2"),
                ("LOG_LEVEL", "hunter2"),
                ("LOG_FORMAT", "hunter2"),
                ("RATE_LIMIT_PER_SECOND", "0"),
                ("RATE_LIMIT_BURST", "+1"),
                ("RATE_LIMIT_SCOPE", "hunter2"),
                ("CREDENTIAL_CACHE_TTL_SECONDS", "1.5"),
                ("WEBHOOK_ALLOW_PRIVATE_CALLBACKS", "hunter2"),
                ("WEBHOOK_MAX_RETRIES", "-1"),
                ("METRICS_ADDRESS", "hunter2"),
                ("APPLE_PRODUCTION_URL", "ftp://hunter2"),
                ("GOOGLE_PLAY_URL", "https://hunter2:x@example.com"),
                ("GOOGLE_TOKEN_URL", "hunter2"),
                ("UPSTREAM_TIMEOUT_SECONDS", "99"),
                ("APPLE_OCSP", "hunter2"),
            ],
        )
        .expect_err("nothing here is good");
        let starts = [
            "ATTESTO_ENV: ",
            "--port: ",
            "BIND_ADDRESS: ",
            "DATABASE_URL: ",
            "ATTESTO_ENCRYPTION_KEY: ",
            "LOG_LEVEL: ",
            "LOG_FORMAT: ",
            "RATE_LIMIT_PER_SECOND: ",
            "RATE_LIMIT_BURST: ",
            "RATE_LIMIT_SCOPE: ",
            "CREDENTIAL_CACHE_TTL_SECONDS: ",
            "WEBHOOK_MAX_RETRIES: ",
            "WEBHOOK_ALLOW_PRIVATE_CALLBACKS: ",
            "METRICS_ADDRESS: ",
            "APPLE_PRODUCTION_URL: ",
            "APPLE_OCSP: ",
            "GOOGLE_PLAY_URL: ",
            "GOOGLE_TOKEN_URL: ",
            "UPSTREAM_TIMEOUT_SECONDS: ",
        ];
        assert_eq!(problems.len(), starts.len(), "{problems:#?}");
        for (problem, start) in problems.iter().zip(starts) {
            assert!(problem.starts_with(start), "{problem} is not {start}");
            assert!(
                !problem.contains("hunter2") && !problem.contains('\n'),
                "{problem}"
            );
        }
    }

    #[test]
    fn production_refuses_what_is_for_development() {
        let set = [
            ("WEBHOOK_ALLOW_PRIVATE_CALLBACKS", "true"),
            ("APPLE_ROOT_CERTIFICATES", "/tmp/roots"),
            ("APPLE_SANDBOX_URL", "http://stores.example"),
        ];
        assert!(parse_settings(&[], &set).is_ok());
        let problems = parse_settings(&[("ATTESTO_ENV", "production")], &set).expect_err("refused");
        assert_eq!(problems.len(), 3, "{problems:#?}");
        assert!(
            problems
                .iter()
                .all(|problem| problem.contains("production"))
        );
    }

    #[test]
    fn production_refuses_to_seal_with_zeros_and_opens_with_them() {
        let (zero, good) = (STANDARD.encode([0; 32]), STANDARD.encode([7; 32]));
        let only_zero = ("ATTESTO_ENCRYPTION_KEY", zero.as_str());
        assert!(parse_settings(&[], &[only_zero]).is_ok());
        let production = ("ATTESTO_ENV", "production");
        let problems = parse_settings(&[], &[production, only_zero]).expect_err("refused");
        assert_eq!(problems.len(), 1, "{problems:#?}");
        assert!(problems[0].starts_with("ATTESTO_ENCRYPTION_KEY: is all zeros"));
        let (new, old) = (format!("2:{good}"), format!("1:{zero}"));
        let rotated = [
            production,
            ("ATTESTO_ENCRYPTION_KEY", new.as_str()),
            ("ATTESTO_ENCRYPTION_KEYS_RETIRED", old.as_str()),
        ];
        assert!(parse_settings(&[], &rotated).is_ok());
    }

    #[test]
    fn what_stays_on_the_machine_need_not_be_encrypted_in_production() {
        for (url, is_good) in [
            ("http://localhost:1", true),
            ("http://127.0.0.2:1/apple", true),
            ("http://[::1]:1", true),
            ("http://localhost.example", false),
            ("http://10.0.0.1", false),
            ("http://[::ffff:10.0.0.1]", false),
        ] {
            let set = [("ATTESTO_ENV", "production"), ("GOOGLE_PLAY_URL", url)];
            assert_eq!(parse_settings(&[], &set).is_ok(), is_good, "{url}");
        }
    }

    #[test]
    fn metrics_may_be_shown_at_localhost_by_its_name() {
        for (text, address) in [
            ("localhost:9090", Some("127.0.0.1:9090")),
            ("[::1]:9090", Some("[::1]:9090")),
            ("localhost", None),
            ("localhost:", None),
            ("elsewhere:9090", None),
        ] {
            let found = parse_settings(&[], &[("METRICS_ADDRESS", text)]).ok();
            let found = found.and_then(|settings| settings.metrics_address);
            assert_eq!(found, address.map(|it| it.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn without_a_database_the_ways_to_one_are_shown() {
        let problems = parse_settings(&[], &[("-", "")]).expect_err("no database");
        assert!(problems[0].contains("attesto dev") && problems[0].contains("--embedded-postgres"));
        let settings = parse_settings(&[("ATTESTO_EMBEDDED_POSTGRES", "true")], &[("-", "")]);
        assert!(matches!(
            settings.expect("embedded").database,
            DatabaseSource::Embedded(_)
        ));
        let both = parse_settings(&[("ATTESTO_EMBEDDED_POSTGRES", "true")], &[]);
        assert!(matches!(
            both.expect("the URL wins").database,
            DatabaseSource::Url(_)
        ));
    }
}
