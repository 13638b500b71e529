//! [`ConnectSettings`]: the address of the database and the limits of the pool.

use std::str::FromStr as _;
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use url::Url;

/// The address of the database and the limits of the pool.
#[derive(Clone)]
pub struct ConnectSettings {
    pub(super) options: PgConnectOptions,
    /// The same database, reached without the pooler.
    pub(super) direct_options: Option<PgConnectOptions>,
    pub(super) max_connections: u32,
    pub(super) idle_timeout: Duration,
    pub(super) connect_timeout: Duration,
}

/// Why a database URL is refused. Never repeats the URL, which may hold a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DatabaseUrlError {
    /// Not a `postgres://` URL.
    #[error("must be a URL like postgres://user:password@host:5432/database")]
    NotAUrl,
    /// A parameter of ours is out of range.
    #[error("its parameter {name} must be a whole number from {min} to {max}")]
    OutOfRange {
        /// The parameter's name.
        name: &'static str,
        /// The smallest value.
        min: u64,
        /// The largest value.
        max: u64,
    },
    /// A parameter of Postgres has an invalid value.
    #[error("its parameter {name} has an invalid value")]
    InvalidValue {
        /// The parameter's name.
        name: &'static str,
    },
}

/// The parameters of Postgres that sqlx understands.
const SQLX_PARAMETERS: [&str; 12] = [
    "sslmode",
    "sslrootcert",
    "sslcert",
    "sslkey",
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "password",
    "application_name",
    "options",
];

impl ConnectSettings {
    /// The URL without the password: `postgres://user@host:5432/database`.
    pub fn redacted_url(&self) -> String {
        let options = &self.options;
        let host = match options.get_socket() {
            Some(socket) => socket.display().to_string(),
            None if options.get_host().contains(':') => format!("[{}]", options.get_host()),
            None => options.get_host().to_owned(),
        };
        let database = options.get_database().unwrap_or(options.get_username());
        format!(
            "postgres://{}@{host}:{}/{database}",
            options.get_username(),
            options.get_port()
        )
    }

    /// With the defaults of [`ConnectSettings::from_url`].
    pub(crate) fn with_options(options: PgConnectOptions) -> Self {
        Self {
            options: without_float_digits(options),
            direct_options: None,
            max_connections: 20,
            idle_timeout: Duration::from_mins(10),
            connect_timeout: Duration::from_secs(3),
        }
    }

    /// The same through a pooler in transaction mode, with `direct` for what such a pooler cannot do: `LISTEN`, migrations,
    /// backups, and operators' commands.
    #[must_use]
    pub fn with_direct(self, direct: Self) -> Self {
        Self {
            direct_options: Some(direct.options),
            ..self
        }
    }

    /// Reads a `postgres://` URL. `max` (connections, default 20), `idle_timeout` and `connect_timeout` (seconds,
    /// defaults 600 and 3) are ours; the others are Postgres' own. Those that sqlx does not know are ignored.
    pub fn from_url(text: &str) -> Result<Self, DatabaseUrlError> {
        let mut url = Url::parse(text).map_err(|_| DatabaseUrlError::NotAUrl)?;
        if !matches!(url.scheme(), "postgres" | "postgresql") {
            return Err(DatabaseUrlError::NotAUrl);
        }
        let (mut max, mut idle, mut connect) = (20, 600, 3);
        let mut others = Vec::new();
        for (name, value) in url.query_pairs() {
            match name.as_ref() {
                "max" => max = parse_parameter("max", &value, 2, 1000)?,
                "idle_timeout" => idle = parse_parameter("idle_timeout", &value, 1, 86_400)?,
                "connect_timeout" => connect = parse_parameter("connect_timeout", &value, 1, 300)?,
                // sqlx would log a parameter it does not know, with its value, and that may be a secret.
                _ => {
                    let known = SQLX_PARAMETERS.into_iter().find(|known| *known == name);
                    let Some(name) = known else {
                        tracing::warn!(%name, "ignoring a parameter of the database's URL");
                        continue;
                    };
                    others.push((name, value.into_owned()));
                }
            }
        }
        url.set_query(None);
        if !others.is_empty() {
            url.query_pairs_mut().extend_pairs(&others);
        }
        let options = PgConnectOptions::from_str(url.as_str()).map_err(|_| {
            let culprit = others.iter().find(|(name, value)| {
                let alone = Url::parse_with_params("postgres:///", [(name, value)]);
                alone.is_ok_and(|url| PgConnectOptions::from_str(url.as_str()).is_err())
            });
            culprit.map_or(DatabaseUrlError::NotAUrl, |(name, _)| {
                DatabaseUrlError::InvalidValue { name }
            })
        })?;
        let options = without_ipv6_brackets(options);
        Ok(Self {
            options: without_float_digits(options),
            direct_options: None,
            max_connections: u32::try_from(max).unwrap_or(u32::MAX),
            idle_timeout: Duration::from_secs(idle),
            connect_timeout: Duration::from_secs(connect),
        })
    }
}

/// Removes the brackets of `[::1]`: sqlx keeps them and looks for a host of that name.
fn without_ipv6_brackets(options: PgConnectOptions) -> PgConnectOptions {
    let host = options.get_host();
    let inside = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    match inside.map(str::to_owned) {
        Some(address) => options.host(&address),
        None => options,
    }
}

/// Removes `extra_float_digits`, a start-up parameter that sqlx adds and `PgBouncer` refuses unless it is configured to ignore
/// it. It has had no effect since Postgres 12, which writes every float in full.
fn without_float_digits(options: PgConnectOptions) -> PgConnectOptions {
    options.extra_float_digits(None)
}

fn parse_parameter(
    name: &'static str,
    value: &str,
    min: u64,
    max: u64,
) -> Result<u64, DatabaseUrlError> {
    let refused = DatabaseUrlError::OutOfRange { name, min, max };
    value
        .parse()
        .ok()
        .filter(|value| (min..=max).contains(value))
        .ok_or(refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_read_or_refused_without_repeating_it() {
        for (url, problem) in [
            ("postgres://ada:s3cret@db/attesto", None),
            ("postgresql://db", None),
            (
                "postgres:///attesto?host=/run/pg&user=ada&sslmode=disable&max=7",
                None,
            ),
            ("postgres://db/?channel_binding=require", None),
            ("mysql://db/x", Some(DatabaseUrlError::NotAUrl)),
            ("db/attesto", Some(DatabaseUrlError::NotAUrl)),
            (
                "postgres://db/?sslmode=s3cret",
                Some(DatabaseUrlError::InvalidValue { name: "sslmode" }),
            ),
            (
                "postgres://db/?port=x",
                Some(DatabaseUrlError::InvalidValue { name: "port" }),
            ),
            (
                "postgres://db/?max=1",
                Some(DatabaseUrlError::OutOfRange {
                    name: "max",
                    min: 2,
                    max: 1000,
                }),
            ),
            (
                "postgres://db/?idle_timeout=-1",
                Some(DatabaseUrlError::OutOfRange {
                    name: "idle_timeout",
                    min: 1,
                    max: 86_400,
                }),
            ),
        ] {
            let found = ConnectSettings::from_url(url).err();
            assert_eq!(found, problem, "{url}");
            assert!(!found.is_some_and(|found| found.to_string().contains("s3cret")));
        }
    }

    #[test]
    fn an_ipv6_address_stands_in_brackets_only_in_the_url() {
        for url in [
            "postgres://ada@[::1]:5433/attesto",
            "postgres://ada@ignored:5433/attesto?host=[::1]",
            "postgres://ada@ignored:5433/attesto?hostaddr=::1",
        ] {
            let settings = ConnectSettings::from_url(url).unwrap();
            assert_eq!(settings.options.get_host(), "::1", "{url}");
            assert_eq!(settings.redacted_url(), "postgres://ada@[::1]:5433/attesto");
        }
    }

    #[test]
    fn our_own_parameters_are_kept_from_postgres() {
        let url = "postgres:///x?host=/run/pg&max=7&idle_timeout=60&connect_timeout=3";
        let settings = ConnectSettings::from_url(url).unwrap();
        assert_eq!(settings.max_connections, 7);
        assert_eq!(settings.idle_timeout, Duration::from_mins(1));
        assert_eq!(settings.connect_timeout, Duration::from_secs(3));
        assert_eq!(
            settings.options.get_socket().unwrap().to_str(),
            Some("/run/pg")
        );
    }
}
