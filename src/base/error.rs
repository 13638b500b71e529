//! Shortens errors of libraries, and ends sentences.

use std::error::Error;
use std::fmt::Display;

/// The message of the innermost cause, such as "connection refused" where the outer error says "error sending request".
pub fn root_cause(error: &dyn Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

/// With a full stop, unless the text ends with a mark of its own: many causes end with a question to the operator.
pub(crate) fn to_sentence(text: impl Display) -> String {
    let mut sentence = text.to_string();
    if !sentence.ends_with(['.', '?', '!', '…']) {
        sentence.push('.');
    }
    sentence
}
