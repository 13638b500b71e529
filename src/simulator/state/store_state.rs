//! Everything at once.

use serde::{Deserialize, Serialize};

use super::{apple, google};

/// Everything that survives a restart.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(in crate::simulator) struct StoreState {
    pub apple: apple::AppleState,
    pub google: google::GoogleState,
}
