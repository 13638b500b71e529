//! Says in one sentence why a statement or a connection failed, and what to do.

use std::io;

use super::{DatabaseConnectError, Error, is_lock_timeout, is_missing_table};
use crate::base::tls_error::{describe_tls_error, find_tls_error};

/// One sentence with a full stop, without the statement and without Postgres' own source lines.
pub(crate) fn describe_error(error: &Error) -> String {
    match error {
        Error::Database(refused) => {
            describe_refusal(refused.code().as_deref().unwrap_or_default(), refused.message())
        }
        Error::Io(cause) if cause.kind() == io::ErrorKind::NotFound => {
            "the socket of the database does not exist: is Postgres running, and is the folder in DATABASE_URL right?".to_owned()
        }
        Error::Io(cause) => {
            let problem = DatabaseConnectError::from_error(error);
            describe_connect_error(problem)
                .unwrap_or_else(|| format!("the connection to the database failed: {cause}."))
        }
        Error::Tls(cause) => match find_tls_error(cause.as_ref()) {
            Some(tls) => format!("{}.", describe_tls_error(tls, "the database's server")),
            None => format!(
                "the connection to the database cannot be encrypted: {cause}. The parameter sslmode of DATABASE_URL says what is required."
            ),
        },
        Error::PoolTimedOut | Error::PoolClosed => {
            describe_connect_error(DatabaseConnectError::PoolExhausted).unwrap_or_default()
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
        DatabaseConnectError::NotFound => {
            "the host of DATABASE_URL cannot be resolved: is its name right? In the URL, # / ? and @ of a password must be percent-encoded (%23, %2F, %3F, %40)."
        }
        DatabaseConnectError::PoolExhausted => {
            "no connection to the database became free in time: the parameter max of DATABASE_URL is too small for what runs, or statements take too long."
        }
        DatabaseConnectError::ReadOnly => {
            "the database takes no writes: it is a standby, or a primary that is being replaced. Name the primary in DATABASE_URL."
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
        DatabaseConnectError::AuthenticationFailed
        | DatabaseConnectError::DatabaseMissing
        | DatabaseConnectError::Tls
        | DatabaseConnectError::Other => return None,
    };
    Some(sentence.to_owned())
}

/// For an answer of Postgres: its SQLSTATE and its message, without the line of its source.
fn describe_refusal(code: &str, message: &str) -> String {
    let connect = match code {
        "53300" => Some(DatabaseConnectError::TooManyConnections),
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
        "53100" => format!("the disk of the database is full: {message}."),
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
    fn a_port_that_refuses_is_told_from_a_pool_that_is_empty() {
        let refused = Error::Io(io::ErrorKind::ConnectionRefused.into());
        let unresolved = io::Error::other("failed to lookup address information: x");
        for (error, words) in [
            (refused, "is Postgres running"),
            (Error::Io(io::ErrorKind::TimedOut.into()), "firewall"),
            (Error::Io(io::ErrorKind::NotFound.into()), "socket"),
            (Error::Io(unresolved), "cannot be resolved"),
            (Error::PoolTimedOut, "became free"),
        ] {
            let sentence = describe_error(&error);
            assert!(sentence.contains(words), "{sentence}");
        }
    }
}
