//! The data of both stores.

use serde::{Deserialize, Serialize};

use super::{apple, google};

/// The part that survives a restart: the content of `purchases.json`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(in crate::simulator) struct StoreState {
    pub apple: apple::AppleState,
    pub google: google::GoogleState,
}
