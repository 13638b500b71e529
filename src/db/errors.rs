//! Classes of database errors.

pub use sqlx::Error;

/// Whether an error says that the database cannot be reached or is not serving, so that trying again can help.
pub fn is_unavailable(error: &Error) -> bool {
    match error {
        Error::Io(_)
        | Error::PoolTimedOut
        | Error::PoolClosed
        | Error::WorkerCrashed
        | Error::Tls(_) => true,
        // Class 57P: shutting down, crashed, starting. Class 53: out of connections, disk or memory. Class 08: connection.
        // 57014: our own statement timeout.
        Error::Database(error) => error.code().is_some_and(|code| {
            code.starts_with("57P")
                || code.starts_with("53")
                || code.starts_with("08")
                || code == "57014"
        }),
        _ => false,
    }
}

/// Whether an error is our own lock timeout: another session held a lock for too long. Nothing was changed, and trying again
/// can help.
pub fn is_lock_timeout(error: &Error) -> bool {
    matches!(error, Error::Database(cause) if cause.code().as_deref() == Some("55P03"))
}

/// Whether an error says that a table or column is missing: not all migrations have been applied.
pub fn is_missing_table(error: &Error) -> bool {
    matches!(error, Error::Database(cause) if matches!(cause.code().as_deref(), Some("42P01" | "42703")))
}

/// The class of an error without its text, for logs: `database 23505` (the SQLSTATE) for an error of Postgres, `database Io`
/// for one that never reached it.
pub fn error_class(error: &Error) -> String {
    if let Error::Database(refused) = error
        && let Some(code) = refused.code()
    {
        return format!("database {code}");
    }
    // The variant's name is the first word of its debug form.
    let debug = format!("{error:?}");
    let variant: String = debug
        .chars()
        .take_while(char::is_ascii_alphanumeric)
        .collect();
    format!("database {variant}")
}

/// Maps the violation of one named constraint to an error of the caller's; other errors are passed on.
pub fn map_constraint_error<E: From<Error>>(
    error: Error,
    constraint: &str,
    meaning: impl FnOnce() -> E,
) -> E {
    match &error {
        Error::Database(cause) if cause.constraint() == Some(constraint) => meaning(),
        _ => E::from(error),
    }
}
