//! What a callback is sent, and of which events.

use serde::Serialize;

/// How many callbacks a tenant may have.
pub const MAX_CALLBACKS: i64 = 10;

/// What a callback is sent.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Serialize,
    clap::ValueEnum,
    strum::EnumString,
    strum::IntoStaticStr,
)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum CallbackKind {
    /// What Attesto makes of the stores' messages
    #[default]
    Events,
    /// The stores' own messages, byte for byte
    Raw,
}

impl CallbackKind {
    /// The value of the column `kind`.
    pub fn as_str(self) -> &'static str {
        self.into()
    }

    /// The column's check constraint allows no other value.
    pub(super) fn from_column(word: &str) -> Self {
        word.parse().unwrap_or_default()
    }
}

/// Which events a callback is sent. An empty list: all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CallbackFilter {
    /// Event types, such as `subscription.renewed`, or `subscription.*` for all that begin so.
    pub events: Vec<String>,
    /// The stores: `apple`, `google`.
    pub sources: Vec<String>,
    /// `production`, `sandbox`. An event whose environment is not known is sent all the same.
    pub environments: Vec<String>,
}

/// A change of a filter. `None` keeps a list, and an empty list lets all events pass.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CallbackFilterChange {
    /// The new list of [`CallbackFilter::events`].
    pub events: Option<Vec<String>>,
    /// The new list of [`CallbackFilter::sources`].
    pub sources: Option<Vec<String>>,
    /// The new list of [`CallbackFilter::environments`].
    pub environments: Option<Vec<String>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_is_stored_by_its_name() {
        for kind in [CallbackKind::Events, CallbackKind::Raw] {
            assert_eq!(CallbackKind::from_column(kind.as_str()), kind);
        }
    }
}
