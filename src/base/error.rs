//! Shortens errors of libraries.

use std::error::Error;

/// The message of the innermost cause, such as "connection refused" where the outer error says "error sending request".
pub fn root_cause(error: &dyn Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}
