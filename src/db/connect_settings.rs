//! [`ConnectSettings`]: the address of the database and the limits of the pool.

use std::borrow::Cow;
use std::net::IpAddr;
use std::str::FromStr as _;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgSslMode};
use url::Url;

use super::tls_files::{TlsFileError, TlsFiles};

/// The address of the database and the limits of the pool.
#[derive(Clone)]
pub struct ConnectSettings {
    pub(super) servers: ServerList,
    /// The same database, reached without the pooler.
    pub(super) direct_servers: Option<ServerList>,
    pub(super) max_connections: u32,
    pub(super) idle_timeout: Duration,
    pub(super) connect_timeout: Duration,
}

/// The servers of one URL, in its order, of which one is used at a time. All else (user, database, TLS) is the same for all.
#[derive(Clone)]
pub(super) struct ServerList {
    /// In the order of the URL, at least one.
    pub(super) servers: Vec<PgConnectOptions>,
    pub(super) target: TargetSession,
    /// The files of `sslrootcert`, `sslcert` and `sslkey`, where TLS is wanted.
    pub(super) tls_files: TlsFiles,
}

/// Which of several servers is used: `target_session_attrs`, as libpq understands it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TargetSession {
    /// The first that accepts a connection.
    Any,
    /// The first whose sessions may write.
    ReadWrite,
    /// The first that is no standby.
    Primary,
}

impl TargetSession {
    /// As the parameter's value.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Any => "any",
            Self::ReadWrite => "read-write",
            Self::Primary => "primary",
        }
    }

    fn parse(value: &str) -> Result<Self, DatabaseUrlError> {
        // JDBC's word, and an older one for the same.
        let value = if value == "master" { "primary" } else { value };
        [Self::Any, Self::ReadWrite, Self::Primary]
            .into_iter()
            .find(|target| target.as_str() == value)
            .ok_or(DatabaseUrlError::UnknownTarget)
    }
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
    #[error("its parameter {name} must be {}", expected_value(name))]
    InvalidValue {
        /// The parameter's name.
        name: &'static str,
    },
    /// Another kind of server is asked for than there is.
    #[error("its parameter target_session_attrs must be any, read-write or primary")]
    UnknownTarget,
    /// Several hosts and a different number of ports.
    #[error("it must name one port for all of its hosts, or one for each")]
    PortCount,
    /// Quotation marks around the URL.
    #[error(
        "begins with a quotation mark, which belongs to the value for `docker --env-file` and systemd's like: leave the quotation marks out"
    )]
    Quoted,
    /// A character in user or password that ends the host for a parser of URLs.
    #[error(
        "has a user or password with a character that must be percent-encoded in a URL: write # as %23, / as %2F, ? as %3F, @ as %40 and % as %25"
    )]
    UnencodedPassword,
    /// Two parameters contradict each other.
    #[error("its parameters {first} and {second} contradict each other: leave one of them out")]
    Contradiction {
        /// The name of one.
        first: &'static str,
        /// The name of the other.
        second: &'static str,
    },
    /// A parameter asks for protection that this client cannot give.
    #[error("its parameter {name} asks for {value}, which is not supported here: {hint}")]
    Unsupported {
        /// The parameter's name.
        name: &'static str,
        /// The value that is refused.
        value: &'static str,
        /// What to write instead.
        hint: &'static str,
    },
    /// A file for TLS is missing, or holds something else.
    #[error("its parameter {0}")]
    TlsFile(#[from] TlsFileError),
    /// A parameter that would be without effect.
    #[error("its parameter {name} is not known here: leave it out. {hint}")]
    UnknownParameter {
        /// As it stands in the URL.
        name: String,
        /// What to write instead.
        hint: &'static str,
    },
}

/// Parameters of other clients that change nothing about where, as whom and how safely this one connects.
const IGNORED_PARAMETERS: [&str; 21] = [
    "client_encoding",
    "connection_limit",
    "fallback_application_name",
    "keepalives",
    "keepalives_count",
    "keepalives_idle",
    "keepalives_interval",
    "load_balance_hosts",
    "max_pool_size",
    "pgbouncer",
    "pool_max_conns",
    "pool_timeout",
    "preparethreshold",
    "replication",
    "sslcompression",
    "sslsni",
    "statement_cache_size",
    "stringtype",
    "tcp_user_timeout",
    "tcpkeepalive",
    "uselibpqcompat",
];

/// A parameter of libpq that asks for protection.
struct ProtectionParameter {
    name: &'static str,
    /// With these, the server decides, or there is no protection.
    accepted: &'static [&'static str],
    /// What cannot be given, and must not be left out without a word.
    refused: &'static str,
    hint: &'static str,
}

const PROTECTION_PARAMETERS: [ProtectionParameter; 3] = [
    ProtectionParameter {
        name: "channel_binding",
        accepted: &["prefer", "disable"],
        refused: "require",
        hint: "leave it out, and write sslmode=verify-full, which proves by the certificate which server answers",
    },
    ProtectionParameter {
        name: "gssencmode",
        accepted: &["disable", "allow", "prefer"],
        refused: "require",
        hint: "leave it out, and write sslmode=verify-full for a connection that is encrypted with TLS",
    },
    ProtectionParameter {
        name: "sslnegotiation",
        accepted: &["postgres"],
        refused: "direct",
        hint: "leave it out, and write sslmode=require or verify-full: TLS begins after a question to the server, as all servers understand it",
    },
];

/// The values of `sslmode`, from the weakest to the strongest.
const SSL_MODES: [&str; 6] = [
    "disable",
    "allow",
    "prefer",
    "require",
    "verify-ca",
    "verify-full",
];
/// The word of Node.js for TLS without a look at the certificate.
const NO_VERIFY: &str = "no-verify";
/// The value of `sslrootcert` for public authorities.
const PUBLIC_AUTHORITIES: &str = "system";

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
    /// The URL without the password: `postgres://user@host:5432/database`, with every host.
    pub fn redacted_url(&self) -> String {
        let hosts = self.servers.servers.iter().map(|options| {
            let host = match options.get_socket() {
                Some(socket) => socket.display().to_string(),
                None if options.get_host().contains(':') => format!("[{}]", options.get_host()),
                None => options.get_host().to_owned(),
            };
            format!("{host}:{}", options.get_port())
        });
        let hosts: Vec<_> = hosts.collect();
        let first = &self.servers.servers[0];
        let database = first.get_database().unwrap_or(first.get_username());
        format!(
            "postgres://{}@{}/{database}",
            first.get_username(),
            hosts.join(",")
        )
    }

    /// A host of the database or its pooler to which connections may be in plain text, and their `sslmode`. This machine
    /// does not count, nor does a name without a dot whose URL says `sslmode=disable`: such names are those of a container
    /// network, where an operator who writes that means it.
    pub fn remote_host_without_tls(&self) -> Option<(&str, &'static str)> {
        let lists = std::iter::once(&self.servers).chain(&self.direct_servers);
        let mut each = lists.flat_map(|list| &list.servers);
        let exposed = each.find(|options| {
            let is_name_without_dot = !options.get_host().contains(['.', ':']);
            let is_plain = match options.get_ssl_mode() {
                PgSslMode::Disable => !is_name_without_dot,
                PgSslMode::Allow | PgSslMode::Prefer => true,
                PgSslMode::Require | PgSslMode::VerifyCa | PgSslMode::VerifyFull => false,
            };
            is_plain && !is_on_this_machine(options)
        })?;
        Some((exposed.get_host(), ssl_mode_name(exposed.get_ssl_mode())))
    }

    /// With the defaults of [`ConnectSettings::from_url`].
    pub(crate) fn with_options(options: PgConnectOptions) -> Self {
        Self {
            servers: ServerList {
                servers: vec![without_float_digits(options)],
                target: TargetSession::Any,
                tls_files: TlsFiles::default(),
            },
            direct_servers: None,
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
            direct_servers: Some(direct.servers),
            ..self
        }
    }

    /// Reads a `postgres://` URL. `max` (connections, default 20), `idle_timeout` and `connect_timeout` (seconds,
    /// defaults 600 and 3) are ours; the others are Postgres' own. What JDBC, Node.js and Prisma call otherwise is understood too
    /// (`ssl=true`, `sslMode`, `targetServerType`, `currentSchema`); a parameter that is not known is refused, unless it is known to
    /// change nothing here.
    ///
    /// As with libpq, `sslmode=require` with an `sslrootcert` is `verify-ca`, and `sslrootcert=system` is `verify-full`. `ssl=true`
    /// is `verify-full`, as for JDBC and Node.js.
    ///
    /// Several hosts (`postgres://one:5432,two:5433/database`, or in the parameters `host` and `port`) are tried in this
    /// order, as by libpq. `target_session_attrs` is `any`, `read-write` or `primary`; without it, it is `read-write` where
    /// there are several hosts, because a standby is of no use to this service, and `any` for a single host.
    pub fn from_url(text: &str) -> Result<Self, DatabaseUrlError> {
        if text.starts_with(['"', '\'']) {
            return Err(DatabaseUrlError::Quoted);
        }
        let (text, mut addresses) = split_hosts(text)?;
        let mut url = Url::parse(&text).map_err(|_| DatabaseUrlError::NotAUrl)?;
        if !matches!(url.scheme(), "postgres" | "postgresql") {
            return Err(DatabaseUrlError::NotAUrl);
        }
        let (mut max, mut idle, mut connect) = (20, 600, 3);
        let mut target = None;
        let mut schema = None;
        let mut ssl = None;
        let (mut hosts, mut ports) = (Vec::new(), Vec::new());
        let mut others = Vec::new();
        let list = |value: &str| value.split(',').map(str::to_owned).collect::<Vec<_>>();
        for (name, value) in url.query_pairs() {
            match canonical_name(&name).as_str() {
                "max" => max = parse_parameter("max", &value, 2, 1000)?,
                "idle_timeout" => idle = parse_parameter("idle_timeout", &value, 1, 86_400)?,
                "connect_timeout" => connect = parse_parameter("connect_timeout", &value, 1, 300)?,
                "target_session_attrs" => target = Some(TargetSession::parse(&value)?),
                "ssl" => ssl = Some(parse_ssl(&value)?),
                "search_path" => schema = Some(parse_schema(&value)?),
                "host" if value.contains(',') => hosts = list(&value),
                "port" if value.contains(',') => ports = list(&value),
                name => match SQLX_PARAMETERS.into_iter().find(|known| *known == name) {
                    Some("sslmode") => others.push(("sslmode", parse_ssl_mode("sslmode", &value)?)),
                    Some(name) => others.push((name, value.into_owned())),
                    None if is_protection_parameter(name, &value)? => {}
                    None if IGNORED_PARAMETERS.contains(&name) => {
                        tracing::debug!(name, "database_url_parameter_ignored");
                    }
                    None => return Err(unknown_parameter(name)),
                },
            }
        }
        let tls_files = resolve_tls(ssl, &mut others)?;
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
        let options = without_float_digits(without_ipv6_brackets(options));
        let options = match schema {
            Some(schema) => options.options([("search_path", schema)]),
            None => options,
        };
        if !hosts.is_empty() {
            if hosts.iter().any(String::is_empty) {
                return Err(DatabaseUrlError::InvalidValue { name: "host" });
            }
            let alone = hosts
                .iter()
                .map(|host| (without_brackets(host).to_owned(), None));
            addresses = alone.collect();
        }
        if !ports.is_empty() {
            addresses = with_ports(addresses, &ports)?;
        }
        let servers = if addresses.is_empty() {
            vec![options]
        } else {
            let at = |(host, port): &(String, Option<u16>)| at_address(&options, host, *port);
            addresses.iter().map(at).collect()
        };
        let default_target = if servers.len() > 1 {
            TargetSession::ReadWrite
        } else {
            TargetSession::Any
        };
        Ok(Self {
            servers: ServerList {
                servers,
                target: target.unwrap_or(default_target),
                tls_files,
            },
            direct_servers: None,
            max_connections: u32::try_from(max).unwrap_or(u32::MAX),
            idle_timeout: Duration::from_secs(idle),
            connect_timeout: Duration::from_secs(connect),
        })
    }
}

/// A host or the folder of a socket, and its port if it has one of its own.
type ServerAddress = (String, Option<u16>);

/// Takes all hosts but the first out of the URL, which is then one that every parser reads. The list is empty where the URL names
/// a single host.
fn split_hosts(whole: &str) -> Result<(Cow<'_, str>, Vec<ServerAddress>), DatabaseUrlError> {
    let Some((scheme, rest)) = whole.split_once("://") else {
        return Err(DatabaseUrlError::NotAUrl);
    };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    // What the writer meant as the end of the password stands behind what ends the host.
    let before_query = path.split('?').next().unwrap_or(path);
    let is_at_later = before_query.contains('@')
        || path.starts_with('?')
            && path
                .split('=')
                .next()
                .is_some_and(|name| name.contains('@'));
    if path.contains('#') || (!authority.contains('@') && is_at_later) {
        return Err(DatabaseUrlError::UnencodedPassword);
    }
    let (user, hosts) = match authority.rsplit_once('@') {
        Some((user, hosts)) => (Some(user), hosts),
        None => (None, authority),
    };
    let user = user.map_or(String::new(), |user| format!("{user}@"));
    if !hosts.contains(',') {
        // `postgres://user@/database?host=/folder`: libpq reads it, and the parser of URLs wants a host.
        let is_empty = hosts.is_empty() && !user.is_empty();
        let text = is_empty.then(|| format!("{scheme}://{user}localhost{path}").into());
        return Ok((text.unwrap_or(whole.into()), Vec::new()));
    }
    let read = |address: &str| {
        let url = Url::parse(&format!("postgres://{address}")).ok()?;
        let host = url.host_str().filter(|host| !host.is_empty())?;
        Some((without_brackets(host).to_owned(), url.port()))
    };
    let addresses: Option<Vec<_>> = hosts.split(',').map(read).collect();
    let addresses = addresses.ok_or(DatabaseUrlError::NotAUrl)?;
    // Without a port, which would be that of all hosts.
    Ok((
        format!("{scheme}://{user}localhost{path}").into(),
        addresses,
    ))
}

fn without_brackets(host: &str) -> &str {
    let inside = host.strip_prefix('[');
    let inside = inside.and_then(|host| host.strip_suffix(']'));
    inside.unwrap_or(host)
}

/// Gives each address its port of the parameter `port`.
fn with_ports(
    addresses: Vec<ServerAddress>,
    ports: &[String],
) -> Result<Vec<ServerAddress>, DatabaseUrlError> {
    if addresses.len() != ports.len() {
        return Err(DatabaseUrlError::PortCount);
    }
    let both = addresses.into_iter().zip(ports);
    both.map(|((host, _), port)| {
        let port = port
            .parse()
            .map_err(|_| DatabaseUrlError::InvalidValue { name: "port" })?;
        Ok((host, Some(port)))
    })
    .collect()
}

fn at_address(options: &PgConnectOptions, host: &str, port: Option<u16>) -> PgConnectOptions {
    let options = match port {
        Some(port) => options.clone().port(port),
        None => options.clone(),
    };
    if host.starts_with('/') {
        options.socket(host)
    } else {
        options.host(host)
    }
}

/// Whether the server is on this machine, as far as can be told from its address.
pub(super) fn is_on_this_machine(options: &PgConnectOptions) -> bool {
    let host = options.get_host();
    let address: Result<IpAddr, _> = host.parse();
    options.get_socket().is_some()
        || host.starts_with('/')
        || host == "localhost"
        || address.is_ok_and(|address| address.is_loopback())
}

/// The value of `sslmode`.
pub(super) fn ssl_mode_name(mode: PgSslMode) -> &'static str {
    match mode {
        PgSslMode::Disable => "disable",
        PgSslMode::Allow => "allow",
        PgSslMode::Prefer => "prefer",
        PgSslMode::Require => "require",
        PgSslMode::VerifyCa => "verify-ca",
        PgSslMode::VerifyFull => "verify-full",
    }
}

/// Removes the brackets of `[::1]`: sqlx keeps them and looks for a host of that name.
fn without_ipv6_brackets(options: PgConnectOptions) -> PgConnectOptions {
    let address = without_brackets(options.get_host()).to_owned();
    options.host(&address)
}

/// Removes `extra_float_digits`, a start-up parameter that sqlx adds and `PgBouncer` refuses unless it is configured to ignore
/// it. It has had no effect since Postgres 12, which writes every float in full.
fn without_float_digits(options: PgConnectOptions) -> PgConnectOptions {
    options.extra_float_digits(None)
}

/// The name by which libpq knows what JDBC, Node.js, Prisma and sqlx also write otherwise.
fn canonical_name(name: &str) -> String {
    let lower = name.to_ascii_lowercase();
    match lower.as_str() {
        "ssl-mode" | "ssl_mode" => "sslmode",
        "ssl-root-cert" | "ssl-ca" | "ssl_root_cert" => "sslrootcert",
        "ssl-cert" | "ssl_cert" => "sslcert",
        "ssl-key" | "ssl_key" => "sslkey",
        "usessl" => "ssl",
        "targetservertype" | "target_server_type" => "target_session_attrs",
        "schema" | "currentschema" => "search_path",
        "applicationname" => "application_name",
        "database" => "dbname",
        "username" => "user",
        "connecttimeout" => "connect_timeout",
        "channelbinding" => "channel_binding",
        other => other,
    }
    .to_owned()
}

/// A mode of libpq, or [`NO_VERIFY`], also in the spelling of others.
fn parse_ssl_mode(name: &'static str, value: &str) -> Result<String, DatabaseUrlError> {
    let mode = value.to_ascii_lowercase().replace('_', "-");
    if mode == NO_VERIFY || SSL_MODES.contains(&mode.as_str()) {
        Ok(mode)
    } else {
        Err(DatabaseUrlError::InvalidValue { name })
    }
}

/// The parameter `ssl` as a mode of libpq. JDBC and Node.js verify the server with `ssl=true`.
fn parse_ssl(value: &str) -> Result<String, DatabaseUrlError> {
    match value.to_ascii_lowercase().as_str() {
        "true" | "1" | "on" | "yes" | "" => Ok("verify-full".to_owned()),
        "false" | "0" | "off" | "no" => Ok("disable".to_owned()),
        // Postgres.js has the modes in this parameter.
        _ => parse_ssl_mode("ssl", value),
    }
}

/// Makes one `sslmode` of `ssl`, `sslmode` and `sslrootcert`. Of the first two the second one counts, as for JDBC.
fn resolve_tls(
    ssl: Option<String>,
    others: &mut Vec<(&'static str, String)>,
) -> Result<TlsFiles, DatabaseUrlError> {
    // As for libpq, an empty one is none.
    others.retain(|(name, value)| {
        !(value.is_empty() && matches!(*name, "sslrootcert" | "sslcert" | "sslkey"))
    });
    let contradiction =
        |first, second| -> DatabaseUrlError { DatabaseUrlError::Contradiction { first, second } };
    let given = others.iter().find(|(name, _)| *name == "sslmode");
    let mode = match (ssl, given.map(|(_, mode)| mode.clone())) {
        (Some(ssl), Some(mode)) if (ssl == "disable") != (mode == "disable") => {
            return Err(contradiction("ssl", "sslmode"));
        }
        (ssl, mode) => mode.or(ssl),
    };
    let root = others.iter().find(|(name, _)| *name == "sslrootcert");
    let mode = match (root.map(|(_, root)| root.as_str()), mode.as_deref()) {
        (Some(PUBLIC_AUTHORITIES), None | Some("verify-full")) => Some("verify-full"),
        (Some(PUBLIC_AUTHORITIES), Some(_)) | (Some(_), Some("allow" | "prefer" | NO_VERIFY)) => {
            return Err(contradiction("sslmode", "sslrootcert"));
        }
        (Some(_), None | Some("require")) => Some("verify-ca"),
        (None, Some(NO_VERIFY)) => Some("require"),
        (_, mode) => mode,
    };
    let mode = mode.map(str::to_owned);
    others.retain(|(name, value)| {
        *name != "sslmode" && !(*name == "sslrootcert" && value == PUBLIC_AUTHORITIES)
    });
    let is_plain = matches!(mode.as_deref(), Some("disable" | "allow"));
    if is_plain {
        others.retain(|(name, _)| !matches!(*name, "sslrootcert" | "sslcert" | "sslkey"));
    }
    others.extend(mode.map(|mode| ("sslmode", mode)));
    let path = |wanted: &str| {
        let given = others.iter().find(|(name, _)| *name == wanted);
        given.map(|(_, path)| path.into())
    };
    let files = TlsFiles {
        root: path("sslrootcert"),
        certificate: path("sslcert"),
        key: path("sslkey"),
    };
    files.check()?;
    Ok(files)
}

/// Whether a parameter is one of [`PROTECTION_PARAMETERS`], with a value that can be left out.
fn is_protection_parameter(name: &str, value: &str) -> Result<bool, DatabaseUrlError> {
    let known = PROTECTION_PARAMETERS
        .iter()
        .find(|parameter| parameter.name == name);
    let Some(parameter) = known else {
        return Ok(false);
    };
    let value = value.to_ascii_lowercase();
    if value == parameter.refused {
        Err(DatabaseUrlError::Unsupported {
            name: parameter.name,
            value: parameter.refused,
            hint: parameter.hint,
        })
    } else if parameter.accepted.contains(&value.as_str()) {
        Ok(true)
    } else {
        Err(DatabaseUrlError::InvalidValue {
            name: parameter.name,
        })
    }
}

/// The values of a parameter, for a sentence.
fn expected_value(name: &str) -> String {
    let known = PROTECTION_PARAMETERS
        .iter()
        .find(|parameter| parameter.name == name);
    match name {
        "sslmode" => format!("one of {}", SSL_MODES.join(", ")),
        "ssl" => format!(
            "true (which is sslmode=verify-full), false, {NO_VERIFY}, or one of {}",
            SSL_MODES.join(", ")
        ),
        "port" => "a whole number from 1 to 65535".to_owned(),
        "host" => "a host, or several with commas between them".to_owned(),
        "search_path" => "names of schemas with commas between them".to_owned(),
        _ => match known {
            Some(parameter) => format!("one of {}", parameter.accepted.join(", ")),
            None => "a value that Postgres' clients accept".to_owned(),
        },
    }
}

/// It is sent to the server in a list of options, whose separators must not be in it.
fn parse_schema(value: &str) -> Result<String, DatabaseUrlError> {
    let is_plain = |letter: char| letter.is_alphanumeric() || matches!(letter, '_' | ',' | '$');
    if value.is_empty() || !value.chars().all(is_plain) {
        return Err(DatabaseUrlError::InvalidValue {
            name: "search_path",
        });
    }
    Ok(value.to_owned())
}

fn unknown_parameter(name: &str) -> DatabaseUrlError {
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || "_-.".contains(letter);
    let is_name = name.len() <= 40 && name.chars().all(is_plain);
    DatabaseUrlError::UnknownParameter {
        // A part of a password may stand where a name is expected.
        name: if is_name { name } else { "(not a name)" }.to_owned(),
        hint: match name {
            "sslaccept" | "sslidentity" => {
                "sslmode and sslrootcert say which certificates are accepted."
            }
            "sslpassword" => "The key of sslkey must not be encrypted.",
            "service" | "passfile" => "Write host, user and password into the URL.",
            "ssl_min_protocol_version" | "ssl_max_protocol_version" => {
                "TLS 1.2 and 1.3 are spoken, and no other version."
            }
            _ => "The parameters are those of libpq, and max, idle_timeout and connect_timeout.",
        },
    }
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
            (
                "postgres://db/?channel_binding=prefer&gssencmode=disable",
                None,
            ),
            ("postgres://db/?sslnegotiation=postgres&sslsni=1", None),
            (
                "postgres://db/?channel_binding=s3cret",
                Some(DatabaseUrlError::InvalidValue {
                    name: "channel_binding",
                }),
            ),
            (
                "postgres://db/x?schema=public&connection_limit=5&pgbouncer=true",
                None,
            ),
            ("postgres://db/x?user=ada@realm&options=-cgeqo%3Doff", None),
            ("postgres://ada@/x?host=/run/pg", None),
            (
                "\"postgres://ada:s3cret@db/x\"",
                Some(DatabaseUrlError::Quoted),
            ),
            ("'postgres://db/x'", Some(DatabaseUrlError::Quoted)),
            ("postgres://db/x?s3cret!=1", Some(unknown_parameter("!"))),
            (
                "postgres://db/x?targetServerType=preferSecondary",
                Some(DatabaseUrlError::UnknownTarget),
            ),
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
                "postgres://db,db2:5433/x?target_session_attrs=read-write",
                None,
            ),
            (
                "postgres://db/?target_session_attrs=prefer-standby",
                Some(DatabaseUrlError::UnknownTarget),
            ),
            (
                "postgres:///x?host=a,b&port=1,2,3",
                Some(DatabaseUrlError::PortCount),
            ),
            (
                "postgres:///x?host=a,b&port=1,x",
                Some(DatabaseUrlError::InvalidValue { name: "port" }),
            ),
            ("postgres://a,:5432/x", Some(DatabaseUrlError::NotAUrl)),
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
    fn what_cannot_be_meant_is_refused() {
        for (url, problem) in [
            (
                "postgres://ada:s3cret#1@db/x",
                Some(DatabaseUrlError::UnencodedPassword),
            ),
            (
                "postgres://ada:12#s3cret@db/x",
                Some(DatabaseUrlError::UnencodedPassword),
            ),
            (
                "postgres://ada:s3cret/1@db/x",
                Some(DatabaseUrlError::UnencodedPassword),
            ),
            (
                "postgres://ada:s3cret?1@db/x?max=7",
                Some(DatabaseUrlError::UnencodedPassword),
            ),
            (
                "postgres://db/x?ssl=maybe",
                Some(DatabaseUrlError::InvalidValue { name: "ssl" }),
            ),
            (
                "postgres://db/x?ssl=true&sslmode=disable",
                Some(DatabaseUrlError::Contradiction {
                    first: "ssl",
                    second: "sslmode",
                }),
            ),
            (
                "postgres://db/x?sslmode=require&sslrootcert=system",
                Some(DatabaseUrlError::Contradiction {
                    first: "sslmode",
                    second: "sslrootcert",
                }),
            ),
            (
                "postgres://db/x?sslmode=prefer&sslrootcert=/s3cret",
                Some(DatabaseUrlError::Contradiction {
                    first: "sslmode",
                    second: "sslrootcert",
                }),
            ),
            (
                "postgres://db/x?currentSchema=a%20b",
                Some(DatabaseUrlError::InvalidValue {
                    name: "search_path",
                }),
            ),
            (
                "postgres://db/x?sslaccept=strict",
                Some(unknown_parameter("sslaccept")),
            ),
        ] {
            let found = ConnectSettings::from_url(url).err();
            assert_eq!(found, problem, "{url}");
            assert!(!found.is_some_and(|found| found.to_string().contains("s3cret")));
        }
    }

    #[test]
    fn what_other_clients_call_otherwise_is_understood() {
        let mode = |query: &str| {
            let url = format!("postgres://ada@db/attesto?{query}");
            let settings = ConnectSettings::from_url(&url).expect(query);
            ssl_mode_name(settings.servers.servers[0].get_ssl_mode())
        };
        for (query, expected) in [
            ("ssl=true", "verify-full"),
            ("ssl=1&sslMode=verify-full", "verify-full"),
            ("ssl=true&sslmode=require", "require"),
            ("ssl=no-verify", "require"),
            ("ssl=require", "require"),
            ("sslrootcert=system", "verify-full"),
            ("sslmode=verify-full&sslrootcert=system", "verify-full"),
            ("ssl=false", "disable"),
            ("sslMode=require", "require"),
            ("sslmode=REQUIRE", "require"),
            ("sslmode=no-verify", "require"),
            ("ssl-mode=verify-ca", "verify-ca"),
            ("max=3", "prefer"),
        ] {
            assert_eq!(mode(query), expected, "{query}");
        }
        for (query, expected) in [
            ("targetServerType=primary", TargetSession::Primary),
            ("targetServerType=master", TargetSession::Primary),
            ("target_session_attrs=read-write", TargetSession::ReadWrite),
        ] {
            let url = format!("postgres://ada@db/attesto?{query}");
            let settings = ConnectSettings::from_url(&url).expect(query);
            assert_eq!(settings.servers.target, expected, "{query}");
        }
        let url = "postgres://ada@db/attesto?currentSchema=shop";
        let settings = ConnectSettings::from_url(url).unwrap();
        let options = settings.servers.servers[0].get_options();
        assert_eq!(options, Some("-c search_path=shop"));
    }

    #[test]
    fn an_ipv6_address_stands_in_brackets_only_in_the_url() {
        for url in [
            "postgres://ada@[::1]:5433/attesto",
            "postgres://ada@ignored:5433/attesto?host=[::1]",
            "postgres://ada@ignored:5433/attesto?hostaddr=::1",
        ] {
            let settings = ConnectSettings::from_url(url).unwrap();
            assert_eq!(settings.servers.servers[0].get_host(), "::1", "{url}");
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
            settings.servers.servers[0].get_socket().unwrap().to_str(),
            Some("/run/pg")
        );
    }

    #[test]
    fn several_hosts_are_read_as_libpq_reads_them() {
        for (url, expected, target) in [
            (
                "postgres://ada:a%2Cb@one:5433,two/x",
                "postgres://ada@one:5433,two:5432/x",
                TargetSession::ReadWrite,
            ),
            (
                "postgres://ada@one,[::1]:6000,10.0.0.3/x?target_session_attrs=primary&max=7",
                "postgres://ada@one:5432,[::1]:6000,10.0.0.3:5432/x",
                TargetSession::Primary,
            ),
            (
                "postgres://ada@/x?host=/run/a,/run/b&port=5433",
                "postgres://ada@/run/a:5433,/run/b:5433/x",
                TargetSession::ReadWrite,
            ),
            (
                "postgres://ada@/x?host=one,two&port=1,2&target_session_attrs=any",
                "postgres://ada@one:1,two:2/x",
                TargetSession::Any,
            ),
            (
                "postgres://ada@one/x",
                "postgres://ada@one:5432/x",
                TargetSession::Any,
            ),
            (
                "postgres://ada@one/x?target_session_attrs=read-write",
                "postgres://ada@one:5432/x",
                TargetSession::ReadWrite,
            ),
        ] {
            let settings = ConnectSettings::from_url(url).unwrap();
            assert_eq!(settings.redacted_url(), expected, "{url}");
            assert_eq!(settings.servers.target, target, "{url}");
        }
    }
}
