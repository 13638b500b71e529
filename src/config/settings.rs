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
use super::catalogue::setting;
use super::raw::{Given, Raw};
use super::secret_file;
use crate::crypto::keyring::Keyring;
use crate::db::ConnectSettings;
use crate::db::embedded::EmbeddedOptions;
use crate::server::Listen;
use crate::server::tls::Files as TlsFiles;
use crate::telemetry::{Log, LogFormat};
use crate::tenants::RateLimit;
use crate::traces;

/// What kind of place this process runs in. Production refuses what only development may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// On somebody's machine.
    Development,
    /// Real tenants, real money.
    Production,
    /// In a test.
    Test,
}

impl Mode {
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
pub fn listen(raw: &Raw<'_>) -> Result<Listen, Vec<String>> {
    let mut reader = Reader {
        raw,
        problems: Vec::new(),
    };
    let listen = reader.listen();
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
pub struct Webhooks {
    /// Not `WEBHOOK_DISPATCHER_DISABLED`: whether this process delivers.
    pub dispatch: bool,
    /// `ATTESTO_HOLD_DELIVERIES`: nothing is sent before somebody releases it.
    pub hold: bool,
    /// `WEBHOOK_DISPATCH_CONCURRENCY`
    pub concurrency: usize,
    /// `WEBHOOK_DISPATCH_INTERVAL_SECONDS`
    pub interval: Duration,
    /// `WEBHOOK_TIMEOUT_SECONDS`
    pub timeout: Duration,
    /// `WEBHOOK_MAX_RETRIES`
    pub max_retries: u32,
    /// `WEBHOOK_ALLOW_PRIVATE_CALLBACKS`
    pub allow_private: bool,
}

/// How long replaced store credentials can be gone back to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grace(pub Duration);

/// When a credential or a certificate is warned of. `None`: never.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cadences {
    /// `CREDENTIAL_APPLE_MAX_AGE_DAYS`
    pub apple: Option<Duration>,
    /// `CREDENTIAL_GOOGLE_MAX_AGE_DAYS`
    pub google: Option<Duration>,
    /// `CREDENTIAL_API_KEY_UNUSED_DAYS`
    pub unused: Option<Duration>,
    /// `CERTIFICATE_WARNING_DAYS`: how long before its end.
    pub certificate: Duration,
}

/// How long what is kept. `None`: for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
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
    pub enabled: bool,
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
    pub fn of_one_that_delivers(mut self, delivers: bool) -> Self {
        self.probe = self.probe.filter(|_| delivers);
        self
    }
}

/// Base URLs and manners of calls to the stores.
#[derive(Clone, Debug)]
pub struct Stores {
    /// `APPLE_PRODUCTION_URL`
    pub apple_production: Url,
    /// `APPLE_SANDBOX_URL`
    pub apple_sandbox: Url,
    /// `APPLE_ROOT_CERTIFICATES`: replaces the built-in roots.
    pub apple_roots: Option<PathBuf>,
    /// `APPLE_OCSP`: whether responders are asked about Apple's certificates.
    pub apple_ocsp: bool,
    /// `GOOGLE_PLAY_URL`
    pub google_play: Url,
    /// `GOOGLE_TOKEN_URL`
    pub google_token: Url,
    /// `GOOGLE_JWKS_URL`
    pub google_jwks: Url,
    /// `GOOGLE_PUBSUB_URL`
    pub google_pubsub: Url,
    /// `UPSTREAM_TIMEOUT_SECONDS`
    pub timeout: Duration,
}

/// Everything `serve` runs with.
#[derive(Clone)]
pub struct Settings {
    /// `ATTESTO_ENV`
    pub mode: Mode,
    /// `PORT` and `BIND_ADDRESS`
    pub listen: Listen,
    /// `DATABASE_URL`, or a private one
    pub database: DatabaseSource,
    /// `ATTESTO_MIGRATE_ON_START`
    pub migrate_on_start: bool,
    /// `ATTESTO_ENCRYPTION_KEY` and `ATTESTO_ENCRYPTION_KEYS_RETIRED`
    pub keyring: Arc<Keyring>,
    /// `LOG_LEVEL` and `LOG_FORMAT`
    pub log: Log,
    /// `RATE_LIMIT_PER_SECOND` and `RATE_LIMIT_BURST`
    pub rate_limit: RateLimit,
    /// `CREDENTIAL_CACHE_TTL_SECONDS`
    pub credential_ttl: Duration,
    /// `CREDENTIAL_GRACE_HOURS`
    pub credential_grace: Grace,
    /// The ages that are warned of
    pub cadences: Cadences,
    /// The `WEBHOOK_…` settings
    pub webhooks: Webhooks,
    /// `ENABLE_VALIDATION_AUDIT_LOG`
    pub validation_audit: bool,
    /// The `RETENTION_…` settings
    pub retention: Retention,
    /// The `JOBS_…` settings
    pub jobs: JobIntervals,
    /// `SHUTDOWN_GRACE_SECONDS`
    pub shutdown_grace: Duration,
    /// `TLS_CERT_PATH` and `TLS_KEY_PATH`
    pub tls: Option<TlsFiles>,
    /// The `OTEL_…` settings, when there is a collector
    pub traces: Option<traces::Settings>,
    /// `METRICS_ADDRESS`
    pub metrics: Option<SocketAddr>,
    /// Where the stores are
    pub stores: Stores,
}

impl Settings {
    /// Reads them all. Every problem is a line that names the flag or variable and says what it must be; none repeats
    /// a value.
    pub fn parse(raw: &Raw<'_>) -> Result<Self, Vec<String>> {
        let mut reader = Reader {
            raw,
            problems: Vec::new(),
        };
        // Everything is read before anything is missed, so that all problems are found.
        let mode = reader.mode();
        let listen = reader.listen();
        let database = reader.database();
        let migrate_on_start = reader.switch("ATTESTO_MIGRATE_ON_START");
        let keyring = reader.keyring();
        let log = reader.log(mode);
        let rate_limit = RateLimit {
            per_second: reader.number("RATE_LIMIT_PER_SECOND", 1..=1_000_000),
            burst: reader.number("RATE_LIMIT_BURST", 1..=1_000_000),
        };
        let credential_ttl = reader.seconds("CREDENTIAL_CACHE_TTL_SECONDS", 1..=86_400);
        let credential_grace = reader.grace();
        let cadences = reader.cadences();
        let webhooks = reader.webhooks(mode);
        let validation_audit = reader.switch("ENABLE_VALIDATION_AUDIT_LOG");
        let retention = reader.retention();
        let jobs = reader.jobs();
        let shutdown_grace = reader.seconds("SHUTDOWN_GRACE_SECONDS", 0..=3600);
        let tls = reader.tls();
        let traces = reader.traces();
        let metrics = reader.metrics();
        let stores = reader.stores(mode);
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
                    credential_ttl,
                    credential_grace,
                    cadences,
                    webhooks,
                    validation_audit,
                    retention,
                    jobs,
                    shutdown_grace,
                    tls,
                    traces,
                    metrics,
                    stores,
                })
            }
            _ => Err(reader.problems),
        }
    }
}

/// Only what is no secret.
impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settings")
            .field("mode", &self.mode)
            .field("listen", &self.listen)
            .finish_non_exhaustive()
    }
}

/// `TLS_CERT_PATH` and `TLS_KEY_PATH` alone, for who asks a service on this machine rather than to run one.
pub fn own_certificate(raw: &Raw<'_>) -> Result<Option<TlsFiles>, Vec<String>> {
    Reader::only(raw, Reader::tls)
}

impl Log {
    /// As far as it can be told from settings that may be wrong elsewhere: for saying so.
    pub fn best_effort(raw: &Raw<'_>) -> Self {
        let mut reader = Reader {
            raw,
            problems: Vec::new(),
        };
        let mode = reader.mode();
        reader.log(mode)
    }
}

impl Webhooks {
    /// These alone, for a command that sends without serving.
    pub fn read(raw: &Raw<'_>) -> Result<Self, Vec<String>> {
        Reader::only(raw, |reader| {
            let mode = reader.mode();
            reader.webhooks(mode)
        })
    }
}

impl Grace {
    /// This alone, for a command that replaces credentials.
    pub fn read(raw: &Raw<'_>) -> Result<Self, Vec<String>> {
        Reader::only(raw, Reader::grace)
    }
}

impl Cadences {
    /// These alone, for who looks at ages without serving.
    pub fn read(raw: &Raw<'_>) -> Result<Self, Vec<String>> {
        Reader::only(raw, Reader::cadences)
    }
}

impl Retention {
    /// These alone, for a command that prunes without serving.
    pub fn read(raw: &Raw<'_>) -> Result<Self, Vec<String>> {
        Reader::only(raw, Reader::retention)
    }
}

impl JobIntervals {
    /// These alone, for a command that runs a job without serving.
    pub fn read(raw: &Raw<'_>) -> Result<Self, Vec<String>> {
        Reader::only(raw, Reader::jobs)
    }
}

impl Stores {
    /// These alone, for a command that asks a store without serving.
    pub fn read(raw: &Raw<'_>) -> Result<Self, Vec<String>> {
        let mut reader = Reader {
            raw,
            problems: Vec::new(),
        };
        let mode = reader.mode();
        let stores = reader.stores(mode);
        stores
            .filter(|_| reader.problems.is_empty())
            .ok_or(reader.problems)
    }
}

/// Reads settings one by one and keeps what is wrong with them. After a problem it goes on with the default, which is
/// never used.
struct Reader<'a> {
    raw: &'a Raw<'a>,
    problems: Vec<String>,
}

impl<'a> Reader<'a> {
    /// What `read` reads, or what is wrong with it.
    fn only<T>(raw: &'a Raw<'a>, read: impl FnOnce(&mut Self) -> T) -> Result<T, Vec<String>> {
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

impl Reader<'_> {
    fn problem(&mut self, origin: &str, problem: &str) {
        self.problems.push(format!("{origin}: {problem}"));
    }

    fn given(&mut self, name: &str) -> Option<Given> {
        self.raw.text(name).unwrap_or_else(|problem| {
            self.problems.push(problem);
            None
        })
    }

    /// What was given and reads well, or the default.
    fn read<T>(&mut self, name: &str, expected: &str, parse: impl Fn(&str) -> Option<T>) -> T {
        let given = self.given(name);
        let value = given.as_ref().and_then(|given| parse(&given.text));
        if value.is_none()
            && let Some(given) = &given
        {
            self.problem(&given.origin, &format!("must be {expected}"));
        }
        value.unwrap_or_else(|| {
            let default = setting(name).map_or("", |setting| setting.default);
            parse(default).expect("a setting's default is one of its values")
        })
    }

    /// What was given and reads well, if anything was given.
    fn optional<T>(
        &mut self,
        name: &str,
        expected: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Option<T> {
        let given = self.given(name)?;
        let value = parse(&given.text);
        if value.is_none() {
            self.problem(&given.origin, &format!("must be {expected}"));
        }
        value
    }

    fn number<T: std::str::FromStr + PartialOrd + std::fmt::Display>(
        &mut self,
        name: &str,
        range: RangeInclusive<T>,
    ) -> T {
        let expected = format!("a whole number from {} to {}", range.start(), range.end());
        self.read(name, &expected, |text| {
            let digits = text.bytes().all(|byte| byte.is_ascii_digit());
            let number = digits.then(|| text.parse().ok()).flatten();
            number.filter(|number| range.contains(number))
        })
    }

    fn seconds(&mut self, name: &str, range: RangeInclusive<u64>) -> Duration {
        Duration::from_secs(self.number(name, range))
    }

    /// Zero is none.
    fn days(&mut self, name: &str) -> Option<Duration> {
        let days: u64 = self.number(name, 0..=36_500);
        (days > 0).then(|| Duration::from_hours(24 * days))
    }

    /// Zero is none.
    fn interval(&mut self, name: &str) -> Option<Duration> {
        let interval = self.seconds(name, 0..=31_536_000);
        (!interval.is_zero()).then_some(interval)
    }

    fn grace(&mut self) -> Grace {
        let hours: u64 = self.number("CREDENTIAL_GRACE_HOURS", 0..=8760);
        Grace(Duration::from_hours(hours))
    }

    fn cadences(&mut self) -> Cadences {
        let days: u64 = self.number("CERTIFICATE_WARNING_DAYS", 0..=3650);
        Cadences {
            apple: self.days("CREDENTIAL_APPLE_MAX_AGE_DAYS"),
            google: self.days("CREDENTIAL_GOOGLE_MAX_AGE_DAYS"),
            unused: self.days("CREDENTIAL_API_KEY_UNUSED_DAYS"),
            certificate: Duration::from_hours(24 * days),
        }
    }

    fn retention(&mut self) -> Retention {
        Retention {
            events: self.days("RETENTION_EVENTS_DAYS"),
            validation_audit: self.days("RETENTION_VALIDATION_AUDIT_DAYS"),
            operator_audit: self.days("RETENTION_OPERATOR_AUDIT_DAYS"),
            attempt_details: self.days("RETENTION_ATTEMPT_DETAILS_DAYS"),
        }
    }

    fn jobs(&mut self) -> JobIntervals {
        JobIntervals {
            enabled: !self.switch("JOBS_DISABLED"),
            retention: self.interval("JOBS_RETENTION_INTERVAL_SECONDS"),
            reseal: self.interval("JOBS_RESEAL_INTERVAL_SECONDS"),
            expiry: self.interval("JOBS_EXPIRY_INTERVAL_SECONDS"),
            drift: self.interval("JOBS_DRIFT_INTERVAL_SECONDS"),
            probe: self.interval("JOBS_PROBE_INTERVAL_SECONDS"),
            statistics: self.interval("JOBS_STATISTICS_INTERVAL_SECONDS"),
        }
    }

    fn switch(&mut self, name: &str) -> bool {
        self.read(name, "true or false (or 1 or 0)", |text| {
            match text.to_ascii_lowercase().as_str() {
                "1" | "true" | "yes" | "on" => Some(true),
                "0" | "false" | "no" | "off" => Some(false),
                _ => None,
            }
        })
    }

    /// Without an endpoint nothing else is looked at: other programs on the machine are told in the same variables.
    fn traces(&mut self) -> Option<traces::Settings> {
        const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
        const HEADERS: &str = "OTEL_EXPORTER_OTLP_HEADERS";
        if self.raw.text(ENDPOINT) == Ok(None) {
            return None;
        }
        let expected = "an http:// or https:// URL without a user name, a password, ? and #";
        let endpoint = self.optional(ENDPOINT, expected, |text| {
            let url = Url::parse(text).ok()?;
            let is_plain = url.has_host()
                && url.username().is_empty()
                && url.password().is_none()
                && url.query().is_none()
                && url.fragment().is_none();
            (matches!(url.scheme(), "http" | "https") && is_plain).then_some(url)
        });
        let headers = match secret_file::read(&|name| self.raw.lookup(name), HEADERS) {
            Ok(None) => HeaderMap::new(),
            Ok(Some(text)) => {
                traces::settings::headers(text.expose_secret()).unwrap_or_else(|| {
                    self.problem(
                        HEADERS,
                        "must be name=value, separated by commas, values percent-encoded",
                    );
                    HeaderMap::new()
                })
            }
            Err(problem) => {
                self.problems.push(problem.to_string());
                HeaderMap::new()
            }
        };
        let service = self.read("OTEL_SERVICE_NAME", "1 to 100 characters", |text| {
            (1..=100).contains(&text.len()).then(|| text.to_owned())
        });
        // Of another sampler it is something else, such as an address.
        let sampler = self.raw.text("OTEL_TRACES_SAMPLER").ok().flatten();
        let is_ours = sampler.is_none_or(|sampler| {
            matches!(&*sampler.text, "traceidratio" | "parentbased_traceidratio")
        });
        let share = self.read("OTEL_TRACES_SAMPLER_ARG", "a number from 0 to 1", |text| {
            let share = text.parse().ok();
            let share = share.filter(|share| (0.0..=1.0).contains(share));
            share.or((!is_ours).then_some(1.0))
        });
        endpoint.map(|endpoint| traces::Settings {
            url: traces::settings::traces_url(endpoint),
            headers,
            service,
            share,
        })
    }

    fn tls(&mut self) -> Option<TlsFiles> {
        let path = |text: &str| Some(PathBuf::from(text));
        let certificate = self.optional("TLS_CERT_PATH", "a path", path);
        let key = self.optional("TLS_KEY_PATH", "a path", path);
        match (certificate, key) {
            (Some(certificate), Some(key)) => Some(TlsFiles { certificate, key }),
            (None, None) => None,
            (Some(_), None) => {
                self.problem(
                    "TLS_KEY_PATH",
                    "is missing: TLS_CERT_PATH needs its private key",
                );
                None
            }
            (None, Some(_)) => {
                self.problem(
                    "TLS_CERT_PATH",
                    "is missing: TLS_KEY_PATH needs its certificate",
                );
                None
            }
        }
    }

    fn mode(&mut self) -> Mode {
        let parse = |text: &str| match text {
            "development" => Some(Mode::Development),
            "production" => Some(Mode::Production),
            "test" => Some(Mode::Test),
            _ => None,
        };
        let expected = "development, production or test";
        match self.given("ATTESTO_ENV") {
            Some(_) => self.read("ATTESTO_ENV", expected, parse),
            None => self
                .optional("NODE_ENV", expected, parse)
                .unwrap_or(Mode::Development),
        }
    }

    fn listen(&mut self) -> Listen {
        let port = self.number("PORT", 0..=u16::MAX);
        let expected = "an IP address, like [::], 0.0.0.0 or 127.0.0.1";
        let address = self.optional("BIND_ADDRESS", expected, |text| match text {
            "localhost" => Some(Ipv4Addr::LOCALHOST.into()),
            text => {
                let bare = text
                    .strip_prefix('[')
                    .and_then(|text| text.strip_suffix(']'));
                bare.unwrap_or(text).parse().ok()
            }
        });
        Listen { address, port }
    }

    fn database(&mut self) -> Option<DatabaseSource> {
        let embedded = EmbeddedOptions::from_environment(|name| self.raw.lookup(name));
        let embed = self.switch("ATTESTO_EMBEDDED_POSTGRES");
        match admin::database(&|name| self.raw.lookup(name), self.raw.flag("DATABASE_URL")) {
            Ok(Some(settings)) => Some(DatabaseSource::Url(Box::new(settings))),
            Ok(None) if embed => Some(DatabaseSource::Embedded(embedded)),
            Ok(None) => {
                self.problem(
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

    fn keyring(&mut self) -> Option<Arc<Keyring>> {
        match admin::keyring(&|name| self.raw.lookup(name)) {
            Ok(Some(keyring)) => Some(Arc::new(keyring)),
            Ok(None) => {
                self.problem(
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

    fn log(&mut self, mode: Mode) -> Log {
        use tracing::level_filters::LevelFilter;

        let expected = "fatal, error, warn, info, debug or trace";
        let level = self.read("LOG_LEVEL", expected, |text| {
            match text.to_ascii_lowercase().as_str() {
                "fatal" | "error" => Some(LevelFilter::ERROR),
                "warn" => Some(LevelFilter::WARN),
                "info" => Some(LevelFilter::INFO),
                "debug" => Some(LevelFilter::DEBUG),
                "trace" => Some(LevelFilter::TRACE),
                _ => None,
            }
        });
        let format = self.read("LOG_FORMAT", "json, pretty or auto", |text| match text {
            "json" => Some(LogFormat::Json),
            "pretty" => Some(LogFormat::Pretty),
            "auto" => Some(LogFormat::Auto),
            _ => None,
        });
        Log {
            level,
            format,
            classes_only: mode == Mode::Production,
        }
    }

    fn webhooks(&mut self, mode: Mode) -> Webhooks {
        let webhooks = Webhooks {
            dispatch: !self.switch("WEBHOOK_DISPATCHER_DISABLED"),
            hold: self.switch("ATTESTO_HOLD_DELIVERIES"),
            concurrency: self.number("WEBHOOK_DISPATCH_CONCURRENCY", 1..=1024),
            interval: self.seconds("WEBHOOK_DISPATCH_INTERVAL_SECONDS", 1..=3600),
            timeout: self.seconds("WEBHOOK_TIMEOUT_SECONDS", 1..=120),
            max_retries: self.number("WEBHOOK_MAX_RETRIES", 0..=20),
            allow_private: self.switch("WEBHOOK_ALLOW_PRIVATE_CALLBACKS"),
        };
        if webhooks.allow_private {
            self.refuse_in_production(mode, "WEBHOOK_ALLOW_PRIVATE_CALLBACKS");
        }
        webhooks
    }

    fn stores(&mut self, mode: Mode) -> Option<Stores> {
        let mut url = |name| self.url(name, mode);
        let (apple_production, apple_sandbox) =
            (url("APPLE_PRODUCTION_URL"), url("APPLE_SANDBOX_URL"));
        let (google_play, google_token) = (url("GOOGLE_PLAY_URL"), url("GOOGLE_TOKEN_URL"));
        let (google_jwks, google_pubsub) = (url("GOOGLE_JWKS_URL"), url("GOOGLE_PUBSUB_URL"));
        let timeout = self.seconds("UPSTREAM_TIMEOUT_SECONDS", 1..=60);
        let apple_roots = self.path("APPLE_ROOT_CERTIFICATES");
        let apple_ocsp = self.ocsp();
        if apple_roots.is_some() {
            self.refuse_in_production(mode, "APPLE_ROOT_CERTIFICATES");
        }
        Some(Stores {
            apple_production: apple_production?,
            apple_sandbox: apple_sandbox?,
            apple_roots,
            apple_ocsp,
            google_play: google_play?,
            google_token: google_token?,
            google_jwks: google_jwks?,
            google_pubsub: google_pubsub?,
            timeout,
        })
    }

    fn url(&mut self, name: &str, mode: Mode) -> Option<Url> {
        let given = self.given(name);
        let (text, origin) = match &given {
            Some(given) => (given.text.as_str(), given.origin.as_str()),
            None => (setting(name).map_or("", |setting| setting.default), name),
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
                if mode == Mode::Production && url.scheme() != "https" && !is_loopback(&url) =>
            {
                "must be an https:// URL when ATTESTO_ENV is production, or http:// to this machine itself"
            }
            Ok(url) => return Some(url),
            Err(_) => "must be an http:// or https:// URL",
        };
        let origin = origin.to_owned();
        self.problem(&origin, problem);
        None
    }

    fn metrics(&mut self) -> Option<SocketAddr> {
        let expected = "an IP address or localhost, and a port, like 127.0.0.1:9090 or [::1]:9090";
        self.optional("METRICS_ADDRESS", expected, |text| {
            match text.strip_prefix("localhost:") {
                Some(port) => Some((Ipv4Addr::LOCALHOST, port.parse().ok()?).into()),
                None => text.parse().ok(),
            }
        })
    }

    fn ocsp(&mut self) -> bool {
        self.read("APPLE_OCSP", "off or on", |text| match text {
            "off" => Some(false),
            "on" => Some(true),
            _ => None,
        })
    }

    fn path(&mut self, name: &str) -> Option<PathBuf> {
        self.given(name).map(|given| PathBuf::from(given.text))
    }

    fn refuse_in_production(&mut self, mode: Mode, name: &str) {
        if mode == Mode::Production {
            let origin = self
                .given(name)
                .map_or(name.to_owned(), |given| given.origin);
            self.problem(
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

    fn parse(flags: &[(&str, &str)], set: &[(&str, &str)]) -> Result<Settings, Vec<String>> {
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
        Settings::parse(&Raw::new(flags, &lookup))
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
        assert!(parse(&[], &others).unwrap().traces.is_none());
        let mut told = others;
        told[4].1 = "http://127.0.0.1:4318";
        let problems = parse(&[], &told).unwrap_err();
        assert_eq!(problems.len(), 3, "{problems:?}");
        // Whoever misspelt it is told of the others too.
        told[4].1 = "127.0.0.1:4318";
        let problems = parse(&[], &told).unwrap_err();
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
            let settings = parse(&[], &set);
            settings.map(|settings| settings.traces.unwrap().share.to_string())
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
        let settings = parse(&[], &[]).expect("the defaults are good");
        assert_eq!(settings.mode, Mode::Development);
        assert_eq!(settings.listen.socket(), "[::]:8080".parse().unwrap());
        assert_eq!(
            settings.rate_limit,
            RateLimit {
                per_second: 100,
                burst: 200
            }
        );
        assert_eq!(settings.credential_ttl, Duration::from_mins(5));
        assert_eq!(settings.shutdown_grace, Duration::from_secs(25));
        assert!(settings.migrate_on_start && settings.webhooks.dispatch);
        assert_eq!(settings.stores.google_token.path(), "/token");
    }

    #[test]
    fn a_flag_wins_over_a_variable_and_a_blank_is_nothing() {
        let settings = parse(
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
        assert_eq!(settings.listen.socket(), "127.0.0.1:0".parse().unwrap());
        assert_eq!(settings.rate_limit.burst, 7);
        assert_eq!(settings.mode, Mode::Production);
        assert!(settings.log.classes_only && !settings.webhooks.dispatch);
        let both = parse(&[], &[("NODE_ENV", "production"), ("ATTESTO_ENV", "test")]);
        assert_eq!(both.expect("good").mode, Mode::Test);
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
            let listen = listen(&Raw::new(given, &|_| None)).expect("these are good");
            assert_eq!(listen.nearby(), nearby.parse().unwrap());
        }
        let bad = Raw::new([("PORT".to_owned(), "x".to_owned())], &|_| None);
        assert_eq!(listen(&bad).unwrap_err().len(), 1);
    }

    #[test]
    fn every_problem_is_said_at_once_and_no_value_is_repeated() {
        let problems = parse(
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
        assert!(parse(&[], &set).is_ok());
        let problems = parse(&[("ATTESTO_ENV", "production")], &set).expect_err("refused");
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
            assert_eq!(parse(&[], &set).is_ok(), is_good, "{url}");
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
            let found = parse(&[], &[("METRICS_ADDRESS", text)]).ok();
            let found = found.and_then(|settings| settings.metrics);
            assert_eq!(found, address.map(|it| it.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn without_a_database_the_ways_to_one_are_shown() {
        let problems = parse(&[], &[("-", "")]).expect_err("no database");
        assert!(problems[0].contains("attesto dev") && problems[0].contains("--embedded-postgres"));
        let settings = parse(&[("ATTESTO_EMBEDDED_POSTGRES", "true")], &[("-", "")]);
        assert!(matches!(
            settings.expect("embedded").database,
            DatabaseSource::Embedded(_)
        ));
        let both = parse(&[("ATTESTO_EMBEDDED_POSTGRES", "true")], &[]);
        assert!(matches!(
            both.expect("the URL wins").database,
            DatabaseSource::Url(_)
        ));
    }
}
