//! A process that serves.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use crate::base::clock::Timestamp;
use crate::base::id::ReplicaId;

/// A process that was seen this lately counts as being there.
pub const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(45);

/// A process that serves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Replica {
    /// Its name.
    pub id: ReplicaId,
    /// The machine it runs on.
    pub host: String,
    /// Its number there.
    pub pid: i32,
    /// Its release.
    pub version: String,
    /// Since when it serves.
    pub started_at: Timestamp,
    /// When it last said that it is there.
    pub seen_at: Timestamp,
    /// The encryption key it seals with.
    pub sealing_key_id: u8,
    /// Those it can open with.
    pub opening_key_ids: Vec<u8>,
    /// A fingerprint of each group of settings that should be the same everywhere.
    #[serde(skip)]
    pub settings: BTreeMap<String, String>,
    /// When the certificates end that it lives by.
    #[serde(skip)]
    pub certificates: BTreeMap<String, Timestamp>,
}
