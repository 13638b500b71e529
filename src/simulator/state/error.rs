//! Why an operation is refused; and small helpers of both stores.

use std::time::Duration;

/// Why the simulator refuses an operation: a sentence for the caller.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SimulatorError {
    /// The purchase, key or account does not exist here.
    #[error("{0}")]
    NotFound(String),
    /// The request is malformed, or does not fit the state of the purchase.
    #[error("{0}")]
    InvalidRequest(String),
}

impl SimulatorError {
    pub(in crate::simulator) fn not_found(sentence: impl Into<String>) -> Self {
        Self::NotFound(sentence.into())
    }

    pub(in crate::simulator) fn invalid_request(sentence: impl Into<String>) -> Self {
        Self::InvalidRequest(sentence.into())
    }
}

/// Random letters or digits; the generator is not secure.
pub(in crate::simulator) fn random_letters(
    random: &mut fastrand::Rng,
    alphabet: &[u8],
    count: usize,
) -> String {
    (0..count)
        .map(|_| char::from(alphabet[random.usize(..alphabet.len())]))
        .collect()
}

pub(in crate::simulator) fn duration_from_days(days: u32) -> Duration {
    Duration::from_hours(u64::from(days) * 24)
}
