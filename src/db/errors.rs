//! Classes of database errors.

pub use sqlx::Error;

use super::DatabaseConnectError;

/// Whether an error says that the database cannot be reached or is not serving, so that trying again can help.
pub fn is_unavailable(error: &Error) -> bool {
    match error {
        Error::Io(_)
        | Error::PoolTimedOut
        | Error::PoolClosed
        | Error::WorkerCrashed
        | Error::Tls(_) => true,
        Error::Database(error) => error.code().is_some_and(|code| is_unavailable_code(&code)),
        _ => false,
    }
}

/// The same for an SQLSTATE.
fn is_unavailable_code(code: &str) -> bool {
    const CLASSES: [&str; 4] = [
        // The connection.
        "08", // User or password: one of the two was changed, and the other will be.
        "28", // Out of connections, disk or memory.
        "53", // Shutting down, crashed, starting.
        "57P",
    ];
    const CODES: [&str; 6] = [
        // Our own statement timeout.
        "57014",
        // Read-only: a standby, or a primary that another server is to replace.
        "25006", // The server ended an idle transaction.
        "25P03", // No such database: another server, or one that is being restored.
        "3D000", // Still a conflict after several attempts.
        "40001", "40P01",
    ];
    CLASSES.iter().any(|class| code.starts_with(class)) || CODES.contains(&code)
}

/// Whether Postgres ended a transaction to resolve a deadlock or a conflict between transactions: nothing was changed, and the same
/// can succeed at once.
pub(super) fn is_serialization_failure(error: &Error) -> bool {
    matches!(error, Error::Database(cause) if matches!(cause.code().as_deref(), Some("40001" | "40P01")))
}

/// Whether an error is our own lock timeout: another session held a lock for too long. Nothing was changed, and trying again
/// can help.
pub fn is_lock_timeout(error: &Error) -> bool {
    matches!(error, Error::Database(cause) if cause.code().as_deref() == Some("55P03"))
}

/// Whether an error says that a table, a column or a function is missing: not all migrations have been applied.
pub fn is_missing_table(error: &Error) -> bool {
    matches!(error, Error::Database(cause) if matches!(cause.code().as_deref(), Some("42P01" | "42703" | "42883")))
}

/// Whether an error says that the server does not support what a statement asks for: Citus, of some statements on distributed tables.
pub fn is_unsupported(error: &Error) -> bool {
    matches!(error, Error::Database(cause) if cause.code().as_deref() == Some("0A000"))
}

/// The class of an error without its text, for logs: the words of [`DatabaseConnectError`], as in `/ready`, or `database 23505` (the
/// SQLSTATE) for another error of Postgres.
pub fn error_class(error: &Error) -> String {
    let problem = DatabaseConnectError::from_error(error);
    if problem != DatabaseConnectError::Other {
        return problem.to_string();
    }
    let class = match error {
        Error::Database(refused) => {
            return match refused.code() {
                Some(code) => format!("database {code}"),
                None => "database error".to_owned(),
            };
        }
        Error::Io(_) => "database connection",
        Error::Configuration(_) | Error::InvalidArgument(_) | Error::ConfigFile(_) => {
            "database settings"
        }
        Error::RowNotFound => "database row missing",
        Error::ColumnDecode { .. }
        | Error::ColumnNotFound(_)
        | Error::ColumnIndexOutOfBounds { .. }
        | Error::Decode(_)
        | Error::TypeNotFound { .. } => "database value unreadable",
        Error::Migrate(_) => "database migration",
        _ => "database error",
    };
    class.to_owned()
}

/// Maps the violation of one named constraint to an error of the caller's; other errors are passed on.
pub fn map_constraint_error<E: From<Error>>(
    error: Error,
    constraint: &str,
    meaning: impl FnOnce() -> E,
) -> E {
    if violates_constraint(&error, constraint) {
        meaning()
    } else {
        E::from(error)
    }
}

/// Whether this constraint was violated.
pub(crate) fn violates_constraint(error: &Error, constraint: &str) -> bool {
    let Error::Database(cause) = error else {
        return false;
    };
    // Citus passes on a worker's message, and not the field.
    let name = cause.constraint().or_else(|| {
        let (_, rest) = cause.message().split_once("constraint \"")?;
        Some(rest.split_once('"')?.0)
    });
    name.is_some_and(|name| is_constraint_or_of_shard(name, constraint))
}

/// Citus adds the number of the shard to the name of a constraint: `api_keys_tenant_id_fkey_102009`.
fn is_constraint_or_of_shard(name: &str, constraint: &str) -> bool {
    let Some(rest) = name.strip_prefix(constraint) else {
        return false;
    };
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|it| it.is_ascii_digit());
    rest.is_empty() || rest.strip_prefix('_').is_some_and(is_number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_failure_has_one_class() {
        for (error, class) in [
            (Error::PoolTimedOut, "no free connection"),
            (
                DatabaseConnectError::PoolExhausted.into(),
                "no free connection",
            ),
            (Error::Io(std::io::ErrorKind::TimedOut.into()), "timeout"),
            (DatabaseConnectError::Timeout.into(), "timeout"),
            (
                Error::Io(std::io::ErrorKind::BrokenPipe.into()),
                "connection lost",
            ),
            (Error::WorkerCrashed, "connection lost"),
            (
                Error::Io(std::io::Error::other(
                    "failed to lookup address information: x",
                )),
                "host not found",
            ),
            (Error::Io(std::io::Error::other("x")), "database connection"),
            (Error::Protocol("x".to_owned()), "not postgres"),
            (Error::RowNotFound, "database row missing"),
        ] {
            assert_eq!(error_class(&error), class, "{error:?}");
        }
    }

    #[test]
    fn a_constraint_is_known_by_its_name_and_by_that_of_its_shards() {
        for (name, is_it) in [
            ("keys_fkey", true),
            ("keys_fkey_102009", true),
            ("keys_fkey1", false),
            ("keys_fkey_", false),
            ("keys_fkey__1", false),
            ("keys_fkey_1x", false),
            ("keys_fkey_tenant", false),
            ("keys", false),
            ("", false),
        ] {
            assert_eq!(
                is_constraint_or_of_shard(name, "keys_fkey"),
                is_it,
                "{name}"
            );
        }
    }

    #[test]
    fn what_passes_is_told_from_what_stays() {
        for code in [
            "08006", "08P01", "25006", "28000", "28P01", "3D000", "40001", "40P01", "53100",
            "53300", "57014", "57P01", "57P02", "57P03",
        ] {
            assert!(is_unavailable_code(code), "{code}");
        }
        for code in [
            "23505", "25001", "42501", "42P01", "55P03", "57000", "22P02", "XX000",
        ] {
            assert!(!is_unavailable_code(code), "{code}");
        }
    }
}
