//! What cannot be done, and chance.

/// Why something that was asked of the simulator cannot be done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SimulatorError {
    /// There is no such thing here.
    #[error("{0}")]
    NotFound(String),
    /// It cannot be done, or not to this.
    #[error("{0}")]
    InvalidRequest(String),
}

impl SimulatorError {
    /// There is no such thing here.
    pub(in crate::simulator) fn not_found(sentence: impl Into<String>) -> Self {
        Self::NotFound(sentence.into())
    }

    /// It cannot be done, or not to this.
    pub(in crate::simulator) fn invalid_request(sentence: impl Into<String>) -> Self {
        Self::InvalidRequest(sentence.into())
    }
}

/// Letters or digits at random, which nobody has to find unguessable.
pub(in crate::simulator) fn random_letters(
    random: &mut fastrand::Rng,
    alphabet: &[u8],
    count: usize,
) -> String {
    (0..count)
        .map(|_| char::from(alphabet[random.usize(..alphabet.len())]))
        .collect()
}
