//! Parses the values of settings, and collects all problems.

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
use super::raw::{GivenValue, QUOTED_PROBLEM, RawSettings};
use super::secret_file;
use super::settings::{CredentialGracePeriod, DatabaseSource, DeploymentMode};
use crate::crypto::keyring::Keyring;
use crate::egress::EgressProxy;
use crate::embedded_postgres::EmbeddedOptions;
use crate::http::trusted_proxies::TrustedProxies;
use crate::server::ListenSettings;
use crate::server::tls::TlsFiles;
use crate::telemetry::{LogFormat, LogSettings, TraceSettings, trace_settings};
use crate::tenants::RateLimitScope;

/// Reads settings one by one and collects a line for each problem. After a problem it continues with the default, so
/// that all problems are found; the parsed settings are not used then.
pub(super) struct SettingsReader<'a> {
    raw: &'a RawSettings<'a>,
    mode: Option<DeploymentMode>,
    pub(super) problems: Vec<String>,
}

impl<'a> SettingsReader<'a> {
    pub(super) fn new(raw: &'a RawSettings<'a>) -> Self {
        Self {
            raw,
            mode: None,
            problems: Vec::new(),
        }
    }

    /// The result of `read`, or the problems that it found.
    pub(super) fn read_single<T>(
        raw: &'a RawSettings<'a>,
        read: impl FnOnce(&mut Self) -> T,
    ) -> Result<T, Vec<String>> {
        let mut reader = Self::new(raw);
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

    /// A value in quotes is a problem. It is read without them all the same, so that what else is wrong with it is found too.
    fn find_given(&mut self, name: &str) -> Option<GivenValue> {
        let given = self.raw.find_text(name).unwrap_or_else(|problem| {
            self.problems.push(problem);
            None
        })?;
        if given.is_quoted {
            let problem = format!("{}: {QUOTED_PROBLEM}", given.origin);
            if !self.problems.contains(&problem) {
                self.problems.push(problem);
            }
        }
        (!given.text.is_empty()).then_some(given)
    }

    /// The parsed value, or the default. If `parse` returns `None`, the problem is "must be `expected`".
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

    /// The parsed value, if one was given.
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

    pub(super) fn read_number<T: std::str::FromStr + PartialOrd + std::fmt::Display>(
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

    pub(super) fn read_seconds(&mut self, name: &str, range: RangeInclusive<u64>) -> Duration {
        Duration::from_secs(self.read_number(name, range))
    }

    pub(super) fn read_days_in(&mut self, name: &str, range: RangeInclusive<u64>) -> Duration {
        Duration::from_hours(24 * self.read_number(name, range))
    }

    /// A number of days. 0 is `None`.
    pub(super) fn read_days(&mut self, name: &str) -> Option<Duration> {
        let days = self.read_days_in(name, 0..=36_500);
        (!days.is_zero()).then_some(days)
    }

    /// A number of seconds, up to a year. 0 is `None`.
    pub(super) fn read_interval(&mut self, name: &str) -> Option<Duration> {
        let interval = self.read_seconds(name, 0..=31_536_000);
        (!interval.is_zero()).then_some(interval)
    }

    pub(super) fn read_credential_grace(&mut self) -> CredentialGracePeriod {
        let hours: u64 = self.read_number("CREDENTIAL_GRACE_HOURS", 0..=8760);
        CredentialGracePeriod(Duration::from_hours(hours))
    }

    pub(super) fn read_switch(&mut self, name: &str) -> bool {
        self.read_or_default(name, "true or false (or 1 or 0)", |text| {
            match text.to_ascii_lowercase().as_str() {
                "1" | "true" | "yes" | "on" => Some(true),
                "0" | "false" | "no" | "off" => Some(false),
                _ => None,
            }
        })
    }

    pub(super) fn read_negated_switch(&mut self, name: &str) -> bool {
        !self.read_switch(name)
    }

    /// A switch that may not be on in production.
    pub(super) fn read_development_switch(&mut self, name: &str) -> bool {
        let is_on = self.read_switch(name);
        if is_on {
            self.reject_in_production(name);
        }
        is_on
    }

    /// A path that may not be set in production.
    pub(super) fn read_development_path(&mut self, name: &str) -> Option<PathBuf> {
        let path = self.read_optional(name, "a path", |text| Some(PathBuf::from(text)))?;
        self.reject_in_production(name);
        Some(path)
    }

    pub(super) fn read_off_or_on(&mut self, name: &str) -> bool {
        self.read_or_default(name, "off or on", |text| match text {
            "off" => Some(false),
            "on" => Some(true),
            _ => None,
        })
    }

    pub(super) fn read_rate_limit_scope(&mut self, name: &str) -> RateLimitScope {
        self.read_or_default(name, "process or installation", |text| match text {
            "process" => Some(RateLimitScope::Process),
            "installation" => Some(RateLimitScope::Installation),
            _ => None,
        })
    }

    pub(super) fn read_trusted_proxies(&mut self, name: &str) -> TrustedProxies {
        let Some(given) = self.find_given(name) else {
            return TrustedProxies::default();
        };
        TrustedProxies::parse(&given.text).unwrap_or_else(|problems| {
            for problem in problems {
                self.add_problem(&given.origin, &problem.to_string());
            }
            TrustedProxies::default()
        })
    }

    /// Without an endpoint the other variables are not read, because they may be meant for other programs.
    pub(super) fn read_traces(&mut self) -> Option<TraceSettings> {
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
        // The argument of another sampler may have any form, such as an address.
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

    pub(super) fn read_egress_proxy(&mut self) -> Option<EgressProxy> {
        const NAME: &str = "ATTESTO_EGRESS_PROXY";
        match secret_file::read_secret(&|name| self.raw.find_os_value(name), NAME) {
            Ok(text) => {
                let proxy = EgressProxy::parse(text?.expose_secret());
                proxy
                    .map_err(|problem| self.add_problem(NAME, &problem.to_string()))
                    .ok()
            }
            Err(problem) => {
                self.problems.push(problem.to_string());
                None
            }
        }
    }

    pub(super) fn read_tls_files(&mut self) -> Option<TlsFiles> {
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

    /// The value of `ATTESTO_ENV`. It is read once, so that a problem is reported once.
    pub(super) fn mode(&mut self) -> DeploymentMode {
        if let Some(mode) = self.mode {
            return mode;
        }
        let mode = self.read_mode();
        self.mode = Some(mode);
        mode
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

    pub(super) fn read_listen(&mut self) -> ListenSettings {
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

    pub(super) fn read_database(&mut self) -> Option<DatabaseSource> {
        let embedded = admin::read_embedded_options(&|name| self.raw.find_os_value(name));
        let embedded = embedded.unwrap_or_else(|problems| {
            self.problems.extend(problems);
            EmbeddedOptions::default()
        });
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

    pub(super) fn read_keyring(&mut self) -> Option<Arc<Keyring>> {
        match admin::read_keyring(&|name| self.raw.find_os_value(name)) {
            // An installation that has sealed with zeros must be able to open with them, or it could not rotate.
            Ok(Some(keyring))
                if keyring.is_sealing_key_zero() && self.mode() == DeploymentMode::Production =>
            {
                self.add_problem(
                    "ATTESTO_ENCRYPTION_KEY",
                    "is all zeros, which is refused when ATTESTO_ENV is production: make a key with \
                     `attesto encryption generate-key`; if values are sealed with this one, put it into \
                     ATTESTO_ENCRYPTION_KEYS_RETIRED and give the new one another id",
                );
                None
            }
            Ok(Some(keyring)) => Some(Arc::new(keyring)),
            Ok(None) => {
                self.add_problem(
                    "ATTESTO_ENCRYPTION_KEY",
                    "is missing: set it to the key of this installation, or ATTESTO_ENCRYPTION_KEY_FILE to a file that holds it; \
                     only for a new database, make one with `openssl rand -base64 32` and keep it as safe as a backup",
                );
                None
            }
            Err(problems) => {
                self.problems.extend(problems);
                None
            }
        }
    }

    pub(super) fn read_log(&mut self) -> LogSettings {
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
            is_cause_redacted: self.mode() == DeploymentMode::Production,
        }
    }

    /// The base URL of a store's API.
    pub(super) fn read_url(&mut self, name: &str) -> Url {
        let mode = self.mode();
        let default = || {
            let default = find_setting(name).map_or("", |setting| setting.default);
            Url::parse(default).expect("a setting's default is one of its values")
        };
        let Some(given) = self.find_given(name) else {
            return default();
        };
        match parse_store_url(&given.text, mode) {
            Ok(url) => url,
            Err(problem) => {
                self.add_problem(&given.origin, problem);
                default()
            }
        }
    }

    pub(super) fn read_metrics_address(&mut self) -> Option<SocketAddr> {
        let expected = "an IP address or localhost, and a port, like 127.0.0.1:9090 or [::1]:9090";
        self.read_optional("METRICS_ADDRESS", expected, |text| {
            match text.strip_prefix("localhost:") {
                Some(port) => Some((Ipv4Addr::LOCALHOST, port.parse().ok()?).into()),
                None => text.parse().ok(),
            }
        })
    }

    fn reject_in_production(&mut self, name: &str) {
        if self.mode() == DeploymentMode::Production {
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

fn parse_store_url(text: &str, mode: DeploymentMode) -> Result<Url, &'static str> {
    let url = Url::parse(text).map_err(|_| "must be an http:// or https:// URL")?;
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return Err("must be an http:// or https:// URL");
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("must be a URL without a user name or password");
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err("must be a URL without ? and #");
    }
    // A connection to this machine itself, for example to a local proxy, does not cross a network.
    if mode == DeploymentMode::Production && url.scheme() != "https" && !is_loopback(&url) {
        return Err(
            "must be an https:// URL when ATTESTO_ENV is production, or http:// to this machine itself",
        );
    }
    Ok(url)
}

/// Whether the URL's host is this machine.
pub(crate) fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}
