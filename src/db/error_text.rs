//! Says in one sentence why a statement or a connection failed, and what to do.

use std::error::Error as StdError;

use super::tls_failure::DatabaseTlsError;
use super::{DatabaseConnectError, Error, is_lock_timeout, is_missing_table};
use crate::base::error::to_sentence;
use crate::base::tls_error::{TlsPurpose, TlsServer, describe_tls_error, find_tls_error};

/// One sentence with a full stop, without the statement and without Postgres' own source lines.
pub(crate) fn describe_error(error: &Error) -> String {
    match error {
        Error::Database(refused) => describe_refusal(
            refused.code().as_deref().unwrap_or_default(),
            refused.message(),
        ),
        Error::Tls(cause) if cause.is::<DatabaseTlsError>() => to_sentence(cause),
        Error::Configuration(cause) => to_sentence(format!(
            "the parameters of the database's URL cannot be used: {cause}"
        )),
        Error::Migrate(cause) => to_sentence(format!("the tables cannot be migrated: {cause}")),
        other => describe_failure(other),
    }
}

/// The same without the full stop, for a `cause` in the log and as a part of another sentence.
pub(crate) fn describe_cause(error: &Error) -> String {
    let sentence = describe_error(error);
    sentence.strip_suffix('.').unwrap_or(&sentence).to_owned()
}

/// An error with its causes, joined by colons. One of the database's is described, and its own causes are left out.
pub(crate) fn describe_chain(error: &(dyn StdError + 'static)) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut next = Some(error);
    while let Some(found) = next {
        let database = found.downcast_ref::<Error>();
        let text = database.map_or_else(|| found.to_string(), describe_cause);
        // An error that is nothing but a wrapper says the same.
        if parts.last().is_none_or(|last| !last.ends_with(&text)) {
            parts.push(text);
        }
        next = if database.is_some() {
            None
        } else {
            found.source()
        };
    }
    parts.join(": ")
}

/// What Postgres said, without the line of its source.
pub(super) fn server_message(error: &Error) -> String {
    match error {
        Error::Database(refused) => refused.message().to_owned(),
        other => describe_cause(other),
    }
}

/// For what Postgres did not say.
fn describe_failure(error: &Error) -> String {
    if let Some(tls) = find_tls_error(error) {
        let server = TlsServer::new("the database's server", TlsPurpose::Database);
        return format!("{}.", describe_tls_error(tls, &server));
    }
    if let Some(sentence) = describe_connect_error(DatabaseConnectError::from_error(error)) {
        return sentence;
    }
    match error {
        Error::Io(cause) => to_sentence(format!("the connection to the database failed: {cause}")),
        Error::Tls(cause) => format!(
            "the connection to the database cannot be encrypted: {} The parameter sslmode of DATABASE_URL says what is required.",
            to_sentence(cause)
        ),
        Error::RowNotFound => "a row of the database that must be there is missing.".to_owned(),
        Error::ColumnDecode { .. }
        | Error::ColumnNotFound(_)
        | Error::ColumnIndexOutOfBounds { .. }
        | Error::Decode(_)
        | Error::TypeNotFound { .. } => {
            "the database holds a value that this release cannot read: are its tables those of this release? `attesto migrate --dry-run` says so.".to_owned()
        }
        other => format!("the database failed: {other}."),
    }
}

/// One sentence with a full stop for what can be said without the error itself.
pub(crate) fn describe_connect_error(problem: DatabaseConnectError) -> Option<String> {
    let sentence = match problem {
        DatabaseConnectError::ConnectionRefused => {
            "connections are refused at the host and port of DATABASE_URL: is Postgres running there, and is the port right?"
        }
        DatabaseConnectError::Timeout => {
            "the database does not answer: is the host of DATABASE_URL right, and does a firewall drop the connection?"
        }
        DatabaseConnectError::HostNotFound => {
            "the host of DATABASE_URL cannot be resolved: is its name right? In the URL, # / ? and @ of a password must be percent-encoded (%23, %2F, %3F, %40)."
        }
        DatabaseConnectError::HostUnreachable => {
            "the host of DATABASE_URL cannot be reached from this machine: there is no route to it. Is its address right?"
        }
        DatabaseConnectError::SocketNotFound => {
            "the socket of the database does not exist: is Postgres running, and is the folder in DATABASE_URL right?"
        }
        DatabaseConnectError::PoolExhausted => {
            "no connection to the database became free in time: the parameter max of DATABASE_URL is too small for what runs, or statements take too long."
        }
        DatabaseConnectError::ReadOnly => {
            "the database takes no writes: it is a standby, or a primary that is being replaced. Name the primary in DATABASE_URL."
        }
        DatabaseConnectError::NoSuitableServer => {
            "no server of DATABASE_URL is what its target_session_attrs asks for (read-write where several are named): is the primary among them, and is it up?"
        }
        DatabaseConnectError::WritesStalled => {
            "the database answers and completes no write: is its disk full, or a synchronous standby away?"
        }
        DatabaseConnectError::Starting => {
            "the database is starting up or shutting down: try again in a moment."
        }
        DatabaseConnectError::TooManyConnections => {
            "the database has no connection left for this role: raise max_connections or the role's limit, or lower max in the DATABASE_URL of the service."
        }
        DatabaseConnectError::ConnectionLost => {
            "the connection to the database ended before it answered: was Postgres restarted, and is the port of DATABASE_URL that of Postgres?"
        }
        DatabaseConnectError::NotPostgres => {
            "what answers at the host and port of DATABASE_URL does not speak Postgres' protocol: are both right?"
        }
        DatabaseConnectError::TlsNotOffered => {
            "the database's server offers no TLS, which sslmode of DATABASE_URL requires: set ssl = on in its postgresql.conf."
        }
        DatabaseConnectError::AuthenticationFailed
        | DatabaseConnectError::DatabaseMissing
        | DatabaseConnectError::CertificateUntrusted
        | DatabaseConnectError::CertificateExpired
        | DatabaseConnectError::CertificateMismatch
        | DatabaseConnectError::TlsFileUnusable
        | DatabaseConnectError::Tls
        | DatabaseConnectError::Other => return None,
    };
    Some(sentence.to_owned())
}

/// For an answer of Postgres: its SQLSTATE and its message, without the line of its source.
fn describe_refusal(code: &str, message: &str) -> String {
    let connect = match code {
        "25006" => Some(DatabaseConnectError::ReadOnly),
        code if code.starts_with("57P") => Some(DatabaseConnectError::Starting),
        _ => None,
    };
    if let Some(sentence) = connect.and_then(describe_connect_error) {
        return sentence;
    }
    match code {
        "42501" => format!(
            "the database refuses: {message}. Grant the right to the role of DATABASE_URL, or use the role that owns the tables."
        ),
        code if code.starts_with("28") => format!(
            "the database refuses the login: {message}. Are user and password of DATABASE_URL right, with # / ? and @ percent-encoded (%23, %2F, %3F, %40), and does pg_hba.conf allow this host?"
        ),
        "3D000" => {
            format!("{message}: correct the name in DATABASE_URL, or create it with createdb.")
        }
        "53300" => format!(
            "the database has no connection left: {message}. Raise max_connections or the role's limit, or lower max in the DATABASE_URL of the service."
        ),
        "53100" => to_sentence(format!("the disk of the database is full: {message}")),
        _ => format!("the database refused: {message} (SQLSTATE {code})."),
    }
}

/// The sentence for an operator's command.
pub(crate) fn describe_command_error(error: &Error) -> String {
    if is_lock_timeout(error) {
        "the data is locked by another command, a migration or an import: nothing was changed. Try again in a moment.".to_owned()
    } else if is_missing_table(error) {
        "the database has no tables of this release: run `attesto migrate` first.".to_owned()
    } else {
        describe_error(error)
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn what_postgres_says_becomes_a_sentence_with_advice() {
        for (code, message, words) in [
            (
                "42501",
                "permission denied for table tenants",
                "permission denied for table tenants. Grant",
            ),
            (
                "28P01",
                "password authentication failed for user \"ada\"",
                "%23",
            ),
            ("3D000", "database \"x\" does not exist", "createdb"),
            (
                "53300",
                "too many connections for role \"ada\"",
                "max_connections",
            ),
            ("57P03", "the database system is starting up", "try again"),
            (
                "25006",
                "cannot execute INSERT in a read-only transaction",
                "standby",
            ),
            (
                "22P02",
                "invalid input syntax",
                "invalid input syntax (SQLSTATE 22P02)",
            ),
        ] {
            let sentence = describe_refusal(code, message);
            assert!(sentence.contains(words), "{sentence}");
            assert!(sentence.ends_with(['.', '?']), "{sentence}");
        }
    }

    #[test]
    fn a_chain_says_each_cause_once_and_nothing_of_the_driver() {
        #[derive(Debug, thiserror::Error)]
        #[error("{}", describe_cause(.0))]
        struct Wrapper(#[from] Error);
        let error = || Error::ColumnDecode {
            index: "0".to_owned(),
            source: "Rust type `alloc::string::String`".into(),
        };
        let wrapped = anyhow::Error::from(Wrapper(error())).context("the round failed");
        let plain = anyhow::Error::from(error()).context("the round failed");
        for found in [wrapped, plain] {
            let text = describe_chain(found.as_ref());
            assert!(
                text.starts_with("the round failed: the database holds a value"),
                "{text}"
            );
            assert!(
                !text.contains("alloc") && text.matches("holds").count() == 1,
                "{text}"
            );
        }
    }

    #[test]
    fn a_port_that_refuses_is_told_from_a_pool_that_is_empty() {
        let refused = Error::Io(io::ErrorKind::ConnectionRefused.into());
        let unresolved = io::Error::other("failed to lookup address information: x");
        for (error, words) in [
            (refused, "is Postgres running"),
            (Error::Io(io::ErrorKind::TimedOut.into()), "firewall"),
            (Error::Io(io::ErrorKind::NotFound.into()), "socket"),
            (Error::Io(unresolved), "cannot be resolved"),
            (Error::PoolTimedOut, "became free"),
            (
                Error::Protocol("unexpected response (sqlx_postgres::connection::tls:95)".into()),
                "does not speak Postgres' protocol",
            ),
            (DatabaseConnectError::WritesStalled.into(), "disk full"),
        ] {
            let sentence = describe_error(&error);
            assert!(sentence.contains(words), "{sentence}");
            assert!(!sentence.contains("::"), "{sentence}");
        }
    }
}
