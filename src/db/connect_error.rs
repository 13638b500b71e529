//! [`DatabaseConnectError`]: why the database cannot be used now, in a few words that may be public.

use std::error::Error as StdError;
use std::fmt;
use std::io;

use rustls::CertificateError;

use super::Error;
use super::tls_failure::DatabaseTlsError;
use crate::base::tls_error::find_tls_error;

/// What sqlx says of a server without TLS.
pub(super) const TLS_NOT_OFFERED: &str = "server does not support TLS";

/// Why the database cannot be used now, without host, user or statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DatabaseConnectError {
    /// The connection was refused.
    ConnectionRefused,
    /// No answer in time.
    Timeout,
    /// The name of the host cannot be resolved.
    HostNotFound,
    /// There is no route to the host.
    HostUnreachable,
    /// The socket does not exist.
    SocketNotFound,
    /// The user or the password is wrong, or may not connect from here.
    AuthenticationFailed,
    /// The server has no such database.
    DatabaseMissing,
    /// The server has no connection left.
    TooManyConnections,
    /// Every connection of our own pool is in use.
    PoolExhausted,
    /// It is starting, recovering or shutting down.
    Starting,
    /// It answers, but its sessions may not write: a standby, or a primary that is to be replaced.
    ReadOnly,
    /// Of several servers, none is what `target_session_attrs` asks for.
    NoSuitableServer,
    /// It answers, but commits do not complete: a synchronous standby is away, or the disk hangs.
    WritesStalled,
    /// The connection ended under way.
    ConnectionLost,
    /// Something else than Postgres answers.
    NotPostgres,
    /// The server offers no TLS, and TLS is required.
    TlsNotOffered,
    /// The server's certificate was issued by an authority that is not trusted.
    CertificateUntrusted,
    /// The server's certificate has expired.
    CertificateExpired,
    /// The server's certificate is for other hosts.
    CertificateMismatch,
    /// A file that the URL names for TLS cannot be used.
    TlsFileUnusable,
    /// TLS fails in another way.
    Tls,
    /// None of the causes above.
    Other,
}

impl fmt::Display for DatabaseConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ConnectionRefused => "connection refused",
            Self::Timeout => "timeout",
            Self::HostNotFound => "host not found",
            Self::HostUnreachable => "host unreachable",
            Self::SocketNotFound => "socket not found",
            Self::AuthenticationFailed => "authentication failed",
            Self::DatabaseMissing => "database missing",
            Self::TooManyConnections => "too many connections",
            Self::PoolExhausted => "no free connection",
            Self::Starting => "starting up or shutting down",
            Self::ReadOnly => "read-only",
            Self::NoSuitableServer => "no suitable server",
            Self::WritesStalled => "writes do not complete",
            Self::ConnectionLost => "connection lost",
            Self::NotPostgres => "not postgres",
            Self::TlsNotOffered => "tls not offered",
            Self::CertificateUntrusted => "certificate not trusted",
            Self::CertificateExpired => "certificate expired",
            Self::CertificateMismatch => "certificate of another host",
            Self::TlsFileUnusable => "tls file unusable",
            Self::Tls => "tls",
            Self::Other => "error",
        })
    }
}

impl StdError for DatabaseConnectError {}

impl From<DatabaseConnectError> for Error {
    fn from(problem: DatabaseConnectError) -> Self {
        Self::Io(io::Error::other(problem))
    }
}

impl DatabaseConnectError {
    /// Classifies an error.
    pub fn from_error(error: &Error) -> Self {
        if let Some(tls) = find_tls_error(error) {
            return Self::from_tls_error(tls);
        }
        match error {
            Error::Io(error) => Self::from_io_error(error),
            Error::Tls(cause) => match cause.downcast_ref::<DatabaseTlsError>() {
                Some(explained) => explained.problem,
                None if cause.to_string() == TLS_NOT_OFFERED => Self::TlsNotOffered,
                None => Self::Tls,
            },
            Error::PoolTimedOut | Error::PoolClosed => Self::PoolExhausted,
            Error::WorkerCrashed => Self::ConnectionLost,
            Error::Protocol(_) => Self::NotPostgres,
            Error::Database(error) => match error.code().as_deref() {
                Some("3D000") => Self::DatabaseMissing,
                Some("53300") => Self::TooManyConnections,
                Some("57014") => Self::Timeout,
                Some("25006") => Self::ReadOnly,
                Some(code) if code.starts_with("28") => Self::AuthenticationFailed,
                Some(code) if code.starts_with("57P") => Self::Starting,
                Some(code) if code.starts_with("08") => Self::ConnectionLost,
                _ => Self::Other,
            },
            _ => Self::Other,
        }
    }

    fn from_io_error(error: &io::Error) -> Self {
        if let Some(inner) = error.get_ref() {
            if let Some(problem) = inner.downcast_ref::<Self>() {
                return *problem;
            }
            // The resolver's errors have no kind of their own.
            if inner.to_string().contains("failed to lookup address") {
                return Self::HostNotFound;
            }
        }
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Self::ConnectionRefused,
            io::ErrorKind::TimedOut => Self::Timeout,
            io::ErrorKind::NotFound => Self::SocketNotFound,
            io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
                Self::HostUnreachable
            }
            io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::UnexpectedEof => Self::ConnectionLost,
            _ => Self::Other,
        }
    }

    /// Classifies a failure of TLS.
    pub(super) fn from_tls_error(error: &rustls::Error) -> Self {
        match error {
            rustls::Error::InvalidCertificate(
                CertificateError::Expired | CertificateError::ExpiredContext { .. },
            ) => Self::CertificateExpired,
            rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            ) => Self::CertificateMismatch,
            rustls::Error::InvalidCertificate(_) => Self::CertificateUntrusted,
            _ => Self::Tls,
        }
    }
}
