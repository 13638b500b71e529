//! What the simulated stores know. Pure: every change takes the time it happens at.
//!
//! Nothing happens by itself but the passing of time: a subscription that nobody renews runs out, and one that ran
//! out long ago is forgotten. Renewals, failed payments and refunds are asked for.
//!
//! - [`apple`]: transactions and subscriptions of the App Store
//! - [`google`]: purchases of Play
//! - [`notifications`]: what the App Store reports, and to whom
//! - [`pubsub`]: what Play publishes, and to whom
//! - [`fault`]: answers that were asked to go wrong
//! - [`period`]: `P1M` and the like

pub mod apple;
pub mod fault;
pub mod google;
pub mod notifications;
pub mod period;
pub mod pubsub;

use serde::{Deserialize, Serialize};

pub use period::Period;

/// Everything that survives a restart.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct State {
    pub apple: apple::Books,
    pub google: google::Books,
}

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
    pub(super) fn unknown(sentence: impl Into<String>) -> Self {
        Self::Unknown(sentence.into())
    }

    /// It cannot be done, or not to this.
    pub(super) fn impossible(sentence: impl Into<String>) -> Self {
        Self::Impossible(sentence.into())
    }
}

/// Letters or digits at random, which nobody has to find unguessable.
pub(super) fn letters(random: &mut fastrand::Rng, alphabet: &[u8], count: usize) -> String {
    (0..count)
        .map(|_| char::from(alphabet[random.usize(..alphabet.len())]))
        .collect()
}
