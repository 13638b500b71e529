//! What the service runs with, read from the texts it was given.

use std::net::{Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use reqwest::header::HeaderMap;
use secrecy::ExposeSecret as _;
use url::{Host, Url};

use super::admin;
use super::definitions::find_setting;
use super::raw::{GivenValue, RawSettings};
use super::secret_file;
use crate::crypto::keyring::Keyring;
use crate::db::ConnectSettings;
use crate::embedded_postgres::EmbeddedOptions;
use crate::server::ListenSettings;
use crate::server::tls::TlsFiles;
use crate::telemetry::{LogFormat, LogSettings, TraceSettings, trace_settings};
use crate::tenants::RateLimit;

/// What kind of place this process runs in. Production refuses what only development may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeploymentMode {
    /// On somebody's machine.
    Development,
    /// Real tenants, real money.
    Production,
    /// In a test.
    Test,
}

impl DeploymentMode {
    /// The word it is chosen by.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Development => "development",
            Self::Production => "production",
            Self::Test => "test",
        }
    }
}

/// Only where the service listens, for who looks for one on this machine rather than to run one.
pub fn read_listen_settings(raw: &RawSettings<'_>) -> Result<ListenSettings, Vec<String>> {
    let mut reader = SettingsReader {
        raw,
        problems: Vec::new(),
    };
    let listen = reader.read_listen();
    if reader.problems.is_empty() {
        Ok(listen)
    } else {
        Err(reader.problems)
    }
}

/// Which database.
#[derive(Clone)]
pub enum DatabaseSource {
    /// One that runs somewhere: `DATABASE_URL`.
    Url(Box<ConnectSettings>),
    /// A private one of our own: `ATTESTO_EMBEDDED_POSTGRES`.
    Embedded(EmbeddedOptions),
}

/// How events are delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WebhookSettings {
    /// Not `WEBHOOK_DISPATCHER_DISABLED`: whether this process delivers.
    pub is_dispatcher_enabled: bool,
    /// `ATTESTO_HOLD_DELIVERIES`: nothing is sent before somebody releases it.
    pub is_hold_requested: bool,
    /// `WEBHOOK_DISPATCH_CONCURRENCY`
    pub max_concurrent_deliveries: usize,
    /// `WEBHOOK_DISPATCH_INTERVAL_SECONDS`
    pub dispatch_interval: Duration,
    /// `WEBHOOK_TIMEOUT_SECONDS`
    pub callback_timeout: Duration,
    /// `WEBHOOK_MAX_RETRIES`
    pub max_retries: u32,
    /// `WEBHOOK_ALLOW_PRIVATE_CALLBACKS`
    pub is_private_callback_allowed: bool,
}

/// How long replaced store credentials can be gone back to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CredentialGracePeriod(pub Duration);

/// When a credential or a certificate is warned of. `None`: never.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpiryThresholds {
    /// `CREDENTIAL_APPLE_MAX_AGE_DAYS`
    pub apple_key_max_age: Option<Duration>,
    /// `CREDENTIAL_GOOGLE_MAX_AGE_DAYS`
    pub google_key_max_age: Option<Duration>,
    /// `CREDENTIAL_API_KEY_UNUSED_DAYS`
    pub api_key_max_unused: Option<Duration>,
    /// `CERTIFICATE_WARNING_DAYS`: how long before its end.
    pub certificate_warning_period: Duration,
}

/// How long what is kept. `None`: for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetentionSettings {
    /// `RETENTION_EVENTS_DAYS`
    pub events: Option<Duration>,
    /// `RETENTION_VALIDATION_AUDIT_DAYS`
    pub validation_audit: Option<Duration>,
    /// `RETENTION_OPERATOR_AUDIT_DAYS`
    pub operator_audit: Option<Duration>,
    /// `RETENTION_ATTEMPT_DETAILS_DAYS`
    pub attempt_details: Option<Duration>,
}

/// How often jobs run. `None`: only when somebody asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JobIntervals {
    /// Not `JOBS_DISABLED`: whether this process runs them.
    pub is_enabled: bool,
    /// `JOBS_RETENTION_INTERVAL_SECONDS`
    pub retention: Option<Duration>,
    /// `JOBS_RESEAL_INTERVAL_SECONDS`
    pub reseal: Option<Duration>,
    /// `JOBS_EXPIRY_INTERVAL_SECONDS`
    pub expiry: Option<Duration>,
    /// `JOBS_DRIFT_INTERVAL_SECONDS`
    pub drift: Option<Duration>,
    /// `JOBS_PROBE_INTERVAL_SECONDS`
    pub probe: Option<Duration>,
    /// `JOBS_STATISTICS_INTERVAL_SECONDS`
    pub statistics: Option<Duration>,
}

impl JobIntervals {
    /// The same, and callbacks are connected to by itself only by a process that also delivers: another one may not be let out
    /// to where they are, and would tell that of all of them.
    #[must_use]
    pub fn with_probe_only_if_delivering(mut self, delivers: bool) -> Self {
        self.probe = self.probe.filter(|_| delivers);
        self
    }
}

/// Base URLs and manners of calls to the stores.
#[derive(Clone, Debug)]
pub struct StoreSettings {
    /// `APPLE_PRODUCTION_URL`
    pub apple_production_url: Url,
    /// `APPLE_SANDBOX_URL`
    pub apple_sandbox_url: Url,
    /// `APPLE_ROOT_CERTIFICATES`: replaces the built-in roots.
    pub apple_root_certificates: Option<PathBuf>,
    /// `APPLE_OCSP`: whether responders are asked about Apple's certificates.
    pub is_apple_ocsp_enabled: bool,
    /// `GOOGLE_PLAY_URL`
    pub google_play_url: Url,
    /// `GOOGLE_TOKEN_URL`
    pub google_token_url: Url,
    /// `GOOGLE_JWKS_URL`
    pub google_jwks_url: Url,
    /// `GOOGLE_PUBSUB_URL`
    pub google_pubsub_url: Url,
    /// `UPSTREAM_TIMEOUT_SECONDS`
    pub upstream_timeout: Duration,
}

/// Everything `serve` runs with.
#[derive(Clone)]
pub struct AppSettings {
    /// `ATTESTO_ENV`
    pub mode: DeploymentMode,
    /// `PORT` and `BIND_ADDRESS`
    pub listen: ListenSettings,
    /// `DATABASE_URL`, or a private one
    pub database: DatabaseSource,
    /// `ATTESTO_MIGRATE_ON_START`
    pub migrate_on_start: bool,
    /// `ATTESTO_ENCRYPTION_KEY` and `ATTESTO_ENCRYPTION_KEYS_RETIRED`
    pub keyring: Arc<Keyring>,
    /// `LOG_LEVEL` and `LOG_FORMAT`
    pub log: LogSettings,
    /// `RATE_LIMIT_PER_SECOND` and `RATE_LIMIT_BURST`
    pub rate_limit: RateLimit,
    /// `CREDENTIAL_CACHE_TTL_SECONDS`
    pub credential_cache_ttl: Duration,
    /// `CREDENTIAL_GRACE_HOURS`
    pub credential_grace: CredentialGracePeriod,
    /// The ages that are warned of
    pub expiry_thresholds: ExpiryThresholds,
    /// The `WEBHOOK_…` settings
    pub webhooks: WebhookSettings,
    /// `ENABLE_VALIDATION_AUDIT_LOG`
    pub is_validation_audit_enabled: bool,
    /// The `RETENTION_…` settings
    pub retention: RetentionSettings,
    /// The `JOBS_…` settings
    pub job_intervals: JobIntervals,
    /// `SHUTDOWN_GRACE_SECONDS`
    pub shutdown_grace: Duration,
    /// `TLS_CERT_PATH` and `TLS_KEY_PATH`
    pub tls_files: Option<TlsFiles>,
    /// The `OTEL_…` settings, when there is a collector
    pub traces: Option<TraceSettings>,
    /// `METRICS_ADDRESS`
    pub metrics_address: Option<SocketAddr>,
    /// Where the stores are
    pub stores: StoreSettings,
}

impl AppSettings {
    /// Reads them all. Every problem is a line that names the flag or variable and says what it must be; none repeats
    /// a value.
    pub fn parse(raw: &RawSettings<'_>) -> Result<Self, Vec<String>> {
        let mut reader = SettingsReader {
            raw,
            problems: Vec::new(),
        };
        // Everything is read before anything is missed, so that all problems are found.
        let mode = reader.read_mode();
        let listen = reader.read_listen();
        let database = reader.read_database();
        let migrate_on_start = reader.read_switch("ATTESTO_MIGRATE_ON_START");
        let keyring = reader.read_keyring();
        let log = reader.read_log(mode);
        let rate_limit = RateLimit {
            per_second: reader.read_number("RATE_LIMIT_PER_SECOND", 1..=1_000_000),
            burst: reader.read_number("RATE_LIMIT_BURST", 1..=1_000_000),
        };
        let credential_ttl = reader.read_seconds("CREDENTIAL_CACHE_TTL_SECONDS", 1..=86_400);
        let credential_grace = reader.read_credential_grace();
        let cadences = reader.read_expiry_thresholds();
        let webhooks = reader.read_webhooks(mode);
        let validation_audit = reader.read_switch("ENABLE_VALIDATION_AUDIT_LOG");
        let retention = reader.read_retention();
        let jobs = reader.read_job_intervals();
        let shutdown_grace = reader.read_seconds("SHUTDOWN_GRACE_SECONDS", 0..=3600);
        let tls = reader.read_tls_files();
        let traces = reader.read_traces();
        let metrics = reader.read_metrics_address();
        let stores = reader.read_stores(mode);
        match (database, keyring, stores) {
            (Some(database), Some(keyring), Some(stores)) if reader.problems.is_empty() => {
                Ok(Self {
                    mode,
                    listen,
                    database,
                    migrate_on_start,
                    keyring,
                    log,
                    rate_limit,
                    credential_cache_ttl: credential_ttl,
                    credential_grace,
                    expiry_thresholds: cadences,
                    webhooks,
                    is_validation_audit_enabled: validation_audit,
                    retention,
                    job_intervals: jobs,
                    shutdown_grace,
                    tls_files: tls,
                    traces,
                    metrics_address: metrics,
                    stores,
                })
            }
            _ => Err(reader.problems),
        }
    }
}

/// Only what is no secret.
impl std::fmt::Debug for AppSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settings")
            .field("mode", &self.mode)
            .field("listen", &self.listen)
            .finish_non_exhaustive()
    }
}

/// `TLS_CERT_PATH` and `TLS_KEY_PATH` alone, for who asks a service on this machine rather than to run one.
pub fn read_tls_files(raw: &RawSettings<'_>) -> Result<Option<TlsFiles>, Vec<String>> {
    SettingsReader::read_single(raw, SettingsReader::read_tls_files)
}

impl LogSettings {
    /// As far as it can be told from settings that may be wrong elsewhere: for saying so.
    pub fn best_effort(raw: &RawSettings<'_>) -> Self {
        let mut reader = SettingsReader {
            raw,
            problems: Vec::new(),
        };
        let mode = reader.read_mode();
        reader.read_log(mode)
    }
}

impl WebhookSettings {
    /// These alone, for a command that sends without serving.
    pub fn from_raw(raw: &RawSettings<'_>) -> Result<Self, Vec<String>> {
        SettingsReader::read_single(raw, |reader| {
            let mode = reader.read_mode();
            reader.read_webhooks(mode)
        })
    }
}

impl CredentialGracePeriod {
    /// This alone, for a command that replaces credentials.
    pub fn from_raw(raw: &RawSettings<'_>) -> Result<Self, Vec<String>> {
        SettingsReader::read_single(raw, SettingsReader::read_credential_grace)
    }
}

impl ExpiryThresholds {
    /// These alone, for who looks at ages without serving.
    pub fn from_raw(raw: &RawSettings<'_>) -> Result<Self, Vec<String>> {
        SettingsReader::read_single(raw, SettingsReader::read_expiry_thresholds)
    }
}

impl RetentionSettings {
    /// These alone, for a command that prunes without serving.
    pub fn from_raw(raw: &RawSettings<'_>) -> Result<Self, Vec<String>> {
        SettingsReader::read_single(raw, SettingsReader::read_retention)
    }
}

impl JobIntervals {
    /// These alone, for a command that runs a job without serving.
    pub fn from_raw(raw: &RawSettings<'_>) -> Result<Self, Vec<String>> {
        SettingsReader::read_single(raw, SettingsReader::read_job_intervals)
    }
}

impl StoreSettings {
    /// These alone, for a command that asks a store without serving.
    pub fn from_raw(raw: &RawSettings<'_>) -> Result<Self, Vec<String>> {
        let mut reader = SettingsReader {
            raw,
            problems: Vec::new(),
        };
        let mode = reader.read_mode();
        let stores = reader.read_stores(mode);
        stores
            .filter(|_| reader.problems.is_empty())
            .ok_or(reader.problems)
    }
}

/// Reads settings one by one and keeps what is wrong with them. After a problem it goes on with the default, which is
/// never used.
struct SettingsReader<'a> {
    raw: &'a RawSettings<'a>,
    problems: Vec<String>,
}

impl<'a> SettingsReader<'a> {
    /// What `read` reads, or what is wrong with it.
    fn read_single<T>(
        raw: &'a RawSettings<'a>,
        read: impl FnOnce(&mut Self) -> T,
    ) -> Result<T, Vec<String>> {
        let mut reader = Self {
            raw,
            problems: Vec::new(),
        };
        let value = read(&mut reader);
        if reader.problems.is_empty() {
            Ok(value)
        } else {
            Err(reader.problems)
        }
    }
}

impl SettingsReader<'_> {
    fn add_problem(&mut self, origin: &str, problem: &str) {
        self.problems.push(format!("{origin}: {problem}"));
    }

    fn find_given(&mut self, name: &str) -> Option<GivenValue> {
        self.raw.find_text(name).unwrap_or_else(|problem| {
            self.problems.push(problem);
            None
        })
    }

    /// What was given and reads well, or the default.
    fn read_or_default<T>(
        &mut self,
        name: &str,
        expected: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> T {
        let given = self.find_given(name);
        let value = given.as_ref().and_then(|given| parse(&given.text));
        if value.is_none()
            && let Some(given) = &given
        {
            self.add_problem(&given.origin, &format!("must be {expected}"));
        }
        value.unwrap_or_else(|| {
            let default = find_setting(name).map_or("", |setting| setting.default);
            parse(default).expect("a setting's default is one of its values")
        })
    }

    /// What was given and reads well, if anything was given.
    fn read_optional<T>(
        &mut self,
        name: &str,
        expected: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Option<T> {
        let given = self.find_given(name)?;
        let value = parse(&given.text);
        if value.is_none() {
            self.add_problem(&given.origin, &format!("must be {expected}"));
        }
        value
    }

    fn read_number<T: std::str::FromStr + PartialOrd + std::fmt::Display>(
        &mut self,
        name: &str,
        range: RangeInclusive<T>,
    ) -> T {
        let expected = format!("a whole number from {} to {}", range.start(), range.end());
        self.read_or_default(name, &expected, |text| {
            let digits = text.bytes().all(|byte| byte.is_ascii_digit());
            let number = digits.then(|| text.parse().ok()).flatten();
            number.filter(|number| range.contains(number))
        })
    }

    fn read_seconds(&mut self, name: &str, range: RangeInclusive<u64>) -> Duration {
        Duration::from_secs(self.read_number(name, range))
    }

    /// Zero is none.
    fn read_days(&mut self, name: &str) -> Option<Duration> {
        let days: u64 = self.read_number(name, 0..=36_500);
        (days > 0).then(|| Duration::from_hours(24 * days))
    }

    /// Zero is none.
    fn read_interval(&mut self, name: &str) -> Option<Duration> {
        let interval = self.read_seconds(name, 0..=31_536_000);
        (!interval.is_zero()).then_some(interval)
    }

    fn read_credential_grace(&mut self) -> CredentialGracePeriod {
        let hours: u64 = self.read_number("CREDENTIAL_GRACE_HOURS", 0..=8760);
        CredentialGracePeriod(Duration::from_hours(hours))
    }

    fn read_expiry_thresholds(&mut self) -> ExpiryThresholds {
        let days: u64 = self.read_number("CERTIFICATE_WARNING_DAYS", 0..=3650);
        ExpiryThresholds {
            apple_key_max_age: self.read_days("CREDENTIAL_APPLE_MAX_AGE_DAYS"),
            google_key_max_age: self.read_days("CREDENTIAL_GOOGLE_MAX_AGE_DAYS"),
            api_key_max_unused: self.read_days("CREDENTIAL_API_KEY_UNUSED_DAYS"),
            certificate_warning_period: Duration::from_hours(24 * days),
        }
    }

    fn read_retention(&mut self) -> RetentionSettings {
        RetentionSettings {
            events: self.read_days("RETENTION_EVENTS_DAYS"),
            validation_audit: self.read_days("RETENTION_VALIDATION_AUDIT_DAYS"),
            operator_audit: self.read_days("RETENTION_OPERATOR_AUDIT_DAYS"),
            attempt_details: self.read_days("RETENTION_ATTEMPT_DETAILS_DAYS"),
        }
    }

    fn read_job_intervals(&mut self) -> JobIntervals {
        JobIntervals {
            is_enabled: !self.read_switch("JOBS_DISABLED"),
            retention: self.read_interval("JOBS_RETENTION_INTERVAL_SECONDS"),
            reseal: self.read_interval("JOBS_RESEAL_INTERVAL_SECONDS"),
            expiry: self.read_interval("JOBS_EXPIRY_INTERVAL_SECONDS"),
            drift: self.read_interval("JOBS_DRIFT_INTERVAL_SECONDS"),
            probe: self.read_interval("JOBS_PROBE_INTERVAL_SECONDS"),
            statistics: self.read_interval("JOBS_STATISTICS_INTERVAL_SECONDS"),
        }
    }

    fn read_switch(&mut self, name: &str) -> bool {
        self.read_or_default(name, "true or false (or 1 or 0)", |text| {
            match text.to_ascii_lowercase().as_str() {
                "1" | "true" | "yes" | "on" => Some(true),
                "0" | "false" | "no" | "off" => Some(false),
                _ => None,
            }
        })
    }

    /// Without an endpoint nothing else is looked at: other programs on the machine are told in the same variables.
    fn read_traces(&mut self) -> Option<TraceSettings> {
        const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
        const HEADERS: &str = "OTEL_EXPORTER_OTLP_HEADERS";
        if self.raw.find_text(ENDPOINT) == Ok(None) {
            return None;
        }
        let expected = "an http:// or https:// URL without a user name, a password, ? and #";
        let endpoint = self.read_optional(ENDPOINT, expected, |text| {
            let url = Url::parse(text).ok()?;
            let is_plain = url.has_host()
                && url.username().is_empty()
                && url.password().is_none()
                && url.query().is_none()
                && url.fragment().is_none();
            (matches!(url.scheme(), "http" | "https") && is_plain).then_some(url)
        });
        let headers =
            match secret_file::read_secret(&|name| self.raw.find_os_value(name), HEADERS) {
                Ok(None) => HeaderMap::new(),
                Ok(Some(text)) => trace_settings::parse_headers(text.expose_secret())
                    .unwrap_or_else(|| {
                        self.add_problem(
                            HEADERS,
                            "must be name=value, separated by commas, values percent-encoded",
                        );
                        HeaderMap::new()
                    }),
                Err(problem) => {
                    self.problems.push(problem.to_string());
                    HeaderMap::new()
                }
            };
        let service = self.read_or_default("OTEL_SERVICE_NAME", "1 to 100 characters", |text| {
            (1..=100).contains(&text.len()).then(|| text.to_owned())
        });
        // Of another sampler it is something else, such as an address.
        let sampler = self.raw.find_text("OTEL_TRACES_SAMPLER").ok().flatten();
        let is_ours = sampler.is_none_or(|sampler| {
            matches!(&*sampler.text, "traceidratio" | "parentbased_traceidratio")
        });
        let share =
            self.read_or_default("OTEL_TRACES_SAMPLER_ARG", "a number from 0 to 1", |text| {
                let share = text.parse().ok();
                let share = share.filter(|share| (0.0..=1.0).contains(share));
                share.or((!is_ours).then_some(1.0))
            });
        endpoint.map(|endpoint| TraceSettings {
            url: trace_settings::traces_url(endpoint),
            headers,
            service_name: service,
            sample_ratio: share,
        })
    }

    fn read_tls_files(&mut self) -> Option<TlsFiles> {
        let path = |text: &str| Some(PathBuf::from(text));
        let certificate = self.read_optional("TLS_CERT_PATH", "a path", path);
        let key = self.read_optional("TLS_KEY_PATH", "a path", path);
        match (certificate, key) {
            (Some(certificate), Some(key)) => Some(TlsFiles { certificate, key }),
            (None, None) => None,
            (Some(_), None) => {
                self.add_problem(
                    "TLS_KEY_PATH",
                    "is missing: TLS_CERT_PATH needs its private key",
                );
                None
            }
            (None, Some(_)) => {
                self.add_problem(
                    "TLS_CERT_PATH",
                    "is missing: TLS_KEY_PATH needs its certificate",
                );
                None
            }
        }
    }

    fn read_mode(&mut self) -> DeploymentMode {
        let parse = |text: &str| match text {
            "development" => Some(DeploymentMode::Development),
            "production" => Some(DeploymentMode::Production),
            "test" => Some(DeploymentMode::Test),
            _ => None,
        };
        let expected = "development, production or test";
        match self.find_given("ATTESTO_ENV") {
            Some(_) => self.read_or_default("ATTESTO_ENV", expected, parse),
            None => self
                .read_optional("NODE_ENV", expected, parse)
                .unwrap_or(DeploymentMode::Development),
        }
    }

    fn read_listen(&mut self) -> ListenSettings {
        let port = self.read_number("PORT", 0..=u16::MAX);
        let expected = "an IP address, like [::], 0.0.0.0 or 127.0.0.1";
        let address = self.read_optional("BIND_ADDRESS", expected, |text| match text {
            "localhost" => Some(Ipv4Addr::LOCALHOST.into()),
            text => {
                let bare = text
                    .strip_prefix('[')
                    .and_then(|text| text.strip_suffix(']'));
                bare.unwrap_or(text).parse().ok()
            }
        });
        ListenSettings { address, port }
    }

    fn read_database(&mut self) -> Option<DatabaseSource> {
        let embedded = EmbeddedOptions::from_env(|name| self.raw.find_os_value(name));
        let embed = self.read_switch("ATTESTO_EMBEDDED_POSTGRES");
        match admin::read_database(
            &|name| self.raw.find_os_value(name),
            self.raw.find_flag("DATABASE_URL"),
        ) {
            Ok(Some(settings)) => Some(DatabaseSource::Url(Box::new(settings))),
            Ok(None) if embed => Some(DatabaseSource::Embedded(embedded)),
            Ok(None) => {
                self.add_problem(
                    "DATABASE_URL",
                    "is missing: set it to postgres://user:password@host:5432/name; or add --embedded-postgres for a \
                     private Postgres on this machine; or run `attesto dev` to try everything at once",
                );
                None
            }
            Err(problems) => {
                self.problems.extend(problems);
                None
            }
        }
    }

    fn read_keyring(&mut self) -> Option<Arc<Keyring>> {
        match admin::read_keyring(&|name| self.raw.find_os_value(name)) {
            Ok(Some(keyring)) => Some(Arc::new(keyring)),
            Ok(None) => {
                self.add_problem(
                    "ATTESTO_ENCRYPTION_KEY",
                    "is missing: make one with `openssl rand -base64 32`, keep it as safe as a backup, and set it, or \
                     ATTESTO_ENCRYPTION_KEY_FILE to a file that holds it",
                );
                None
            }
            Err(problems) => {
                self.problems.extend(problems);
                None
            }
        }
    }

    fn read_log(&mut self, mode: DeploymentMode) -> LogSettings {
        use tracing::level_filters::LevelFilter;

        let expected = "fatal, error, warn, info, debug or trace";
        let level = self.read_or_default("LOG_LEVEL", expected, |text| {
            match text.to_ascii_lowercase().as_str() {
                "fatal" | "error" => Some(LevelFilter::ERROR),
                "warn" => Some(LevelFilter::WARN),
                "info" => Some(LevelFilter::INFO),
                "debug" => Some(LevelFilter::DEBUG),
                "trace" => Some(LevelFilter::TRACE),
                _ => None,
            }
        });
        let format =
            self.read_or_default("LOG_FORMAT", "json, pretty or auto", |text| match text {
                "json" => Some(LogFormat::Json),
                "pretty" => Some(LogFormat::Pretty),
                "auto" => Some(LogFormat::Auto),
                _ => None,
            });
        LogSettings {
            level,
            format,
            is_cause_redacted: mode == DeploymentMode::Production,
        }
    }

    fn read_webhooks(&mut self, mode: DeploymentMode) -> WebhookSettings {
        let webhooks = WebhookSettings {
            is_dispatcher_enabled: !self.read_switch("WEBHOOK_DISPATCHER_DISABLED"),
            is_hold_requested: self.read_switch("ATTESTO_HOLD_DELIVERIES"),
            max_concurrent_deliveries: self.read_number("WEBHOOK_DISPATCH_CONCURRENCY", 1..=1024),
            dispatch_interval: self.read_seconds("WEBHOOK_DISPATCH_INTERVAL_SECONDS", 1..=3600),
            callback_timeout: self.read_seconds("WEBHOOK_TIMEOUT_SECONDS", 1..=120),
            max_retries: self.read_number("WEBHOOK_MAX_RETRIES", 0..=20),
            is_private_callback_allowed: self.read_switch("WEBHOOK_ALLOW_PRIVATE_CALLBACKS"),
        };
        if webhooks.is_private_callback_allowed {
            self.reject_in_production(mode, "WEBHOOK_ALLOW_PRIVATE_CALLBACKS");
        }
        webhooks
    }

    fn read_stores(&mut self, mode: DeploymentMode) -> Option<StoreSettings> {
        let mut url = |name| self.read_url(name, mode);
        let (apple_production, apple_sandbox) =
            (url("APPLE_PRODUCTION_URL"), url("APPLE_SANDBOX_URL"));
        let (google_play, google_token) = (url("GOOGLE_PLAY_URL"), url("GOOGLE_TOKEN_URL"));
        let (google_jwks, google_pubsub) = (url("GOOGLE_JWKS_URL"), url("GOOGLE_PUBSUB_URL"));
        let timeout = self.read_seconds("UPSTREAM_TIMEOUT_SECONDS", 1..=60);
        let apple_roots = self.read_path("APPLE_ROOT_CERTIFICATES");
        let apple_ocsp = self.read_apple_ocsp();
        if apple_roots.is_some() {
            self.reject_in_production(mode, "APPLE_ROOT_CERTIFICATES");
        }
        Some(StoreSettings {
            apple_production_url: apple_production?,
            apple_sandbox_url: apple_sandbox?,
            apple_root_certificates: apple_roots,
            is_apple_ocsp_enabled: apple_ocsp,
            google_play_url: google_play?,
            google_token_url: google_token?,
            google_jwks_url: google_jwks?,
            google_pubsub_url: google_pubsub?,
            upstream_timeout: timeout,
        })
    }

    fn read_url(&mut self, name: &str, mode: DeploymentMode) -> Option<Url> {
        let given = self.find_given(name);
        let (text, origin) = match &given {
            Some(given) => (given.text.as_str(), given.origin.as_str()),
            None => (
                find_setting(name).map_or("", |setting| setting.default),
                name,
            ),
        };
        let problem = match Url::parse(text) {
            Ok(url) if !matches!(url.scheme(), "http" | "https") || !url.has_host() => {
                "must be an http:// or https:// URL"
            }
            Ok(url) if !url.username().is_empty() || url.password().is_some() => {
                "must be a URL without a user name or password"
            }
            Ok(url) if url.query().is_some() || url.fragment().is_some() => {
                "must be a URL without ? and #"
            }
            // What does not leave the machine, to a proxy beside this process for one, is read by nobody on the way.
            Ok(url)
                if mode == DeploymentMode::Production
                    && url.scheme() != "https"
                    && !is_loopback(&url) =>
            {
                "must be an https:// URL when ATTESTO_ENV is production, or http:// to this machine itself"
            }
            Ok(url) => return Some(url),
            Err(_) => "must be an http:// or https:// URL",
        };
        let origin = origin.to_owned();
        self.add_problem(&origin, problem);
        None
    }

    fn read_metrics_address(&mut self) -> Option<SocketAddr> {
        let expected = "an IP address or localhost, and a port, like 127.0.0.1:9090 or [::1]:9090";
        self.read_optional("METRICS_ADDRESS", expected, |text| {
            match text.strip_prefix("localhost:") {
                Some(port) => Some((Ipv4Addr::LOCALHOST, port.parse().ok()?).into()),
                None => text.parse().ok(),
            }
        })
    }

    fn read_apple_ocsp(&mut self) -> bool {
        self.read_or_default("APPLE_OCSP", "off or on", |text| match text {
            "off" => Some(false),
            "on" => Some(true),
            _ => None,
        })
    }

    fn read_path(&mut self, name: &str) -> Option<PathBuf> {
        self.find_given(name).map(|given| PathBuf::from(given.text))
    }

    fn reject_in_production(&mut self, mode: DeploymentMode, name: &str) {
        if mode == DeploymentMode::Production {
            let origin = self
                .find_given(name)
                .map_or(name.to_owned(), |given| given.origin);
            self.add_problem(
                &origin,
                "is for development only and refused when ATTESTO_ENV is production",
            );
        }
    }
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
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
    fn what_other_programs_are_told_of_traces_is_not_ours_without_an_endpoint() {
        let others = [
            ("OTEL_EXPORTER_OTLP_HEADERS", "no header"),
            ("OTEL_EXPORTER_OTLP_HEADERS_FILE", "/nowhere"),
            ("OTEL_SERVICE_NAME", &*"x".repeat(101)),
            ("OTEL_TRACES_SAMPLER_ARG", "endpoint=http://sampling:14250"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", " "),
        ];
        assert!(parse_settings(&[], &others).unwrap().traces.is_none());
        let mut told = others;
        told[4].1 = "http://127.0.0.1:4318";
        let problems = parse_settings(&[], &told).unwrap_err();
        assert_eq!(problems.len(), 3, "{problems:?}");
        // Whoever misspelt it is told of the others too.
        told[4].1 = "127.0.0.1:4318";
        let problems = parse_settings(&[], &told).unwrap_err();
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
            "CREDENTIAL_CACHE_TTL_SECONDS: ",
            "WEBHOOK_MAX_RETRIES: ",
            "WEBHOOK_ALLOW_PRIVATE_CALLBACKS: ",
            "METRICS_ADDRESS: ",
            "APPLE_PRODUCTION_URL: ",
            "GOOGLE_PLAY_URL: ",
            "GOOGLE_TOKEN_URL: ",
            "UPSTREAM_TIMEOUT_SECONDS: ",
            "APPLE_OCSP: ",
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
