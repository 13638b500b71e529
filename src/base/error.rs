//! Errors of others, in few words.

use std::error::Error;

/// The message of the innermost cause: it says "connection refused" where the outer ones say "error sending request".
pub fn root_cause(error: &dyn Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}
