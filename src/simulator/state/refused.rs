//! What cannot be done, and chance.

/// Why something that was asked of the simulator cannot be done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// There is no such thing here.
    #[error("{0}")]
    Unknown(String),
    /// It cannot be done, or not to this.
    #[error("{0}")]
    Impossible(String),
}

impl Refused {
    /// There is no such thing here.
    pub(in crate::simulator) fn unknown(sentence: impl Into<String>) -> Self {
        Self::Unknown(sentence.into())
    }

    /// It cannot be done, or not to this.
    pub(in crate::simulator) fn impossible(sentence: impl Into<String>) -> Self {
        Self::Impossible(sentence.into())
    }
}

/// Letters or digits at random, which nobody has to find unguessable.
pub(in crate::simulator) fn letters(
    random: &mut fastrand::Rng,
    alphabet: &[u8],
    count: usize,
) -> String {
    (0..count)
        .map(|_| char::from(alphabet[random.usize(..alphabet.len())]))
        .collect()
}
