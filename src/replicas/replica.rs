//! A process that serves.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize};

use crate::base::clock::Timestamp;
use crate::base::id::{ReplicaId, TenantId};

/// A process whose last heartbeat is older counts as stopped.
pub(crate) const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(45);

/// How many tenants a process names.
pub(crate) const MAX_THROTTLED_TENANTS: usize = 10;

/// A process that serves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Replica {
    pub(crate) id: ReplicaId,
    /// The host name of the machine it runs on.
    pub(crate) host: String,
    /// Its process id there.
    pub(crate) pid: i32,
    /// The release of Attesto that it runs.
    pub(crate) version: String,
    pub(crate) started_at: Timestamp,
    /// The time of its last heartbeat.
    pub(crate) seen_at: Timestamp,
    /// The id of the encryption key it seals with.
    pub(crate) sealing_key_id: u8,
    /// The ids of the encryption keys it can unseal with.
    pub(crate) opening_key_ids: Vec<u8>,
    /// The fingerprint of each group of settings that should be the same in all processes.
    #[serde(skip)]
    pub(crate) settings: BTreeMap<String, String>,
    /// The certificates that the process uses, by name.
    #[serde(skip)]
    pub(crate) certificates: BTreeMap<String, CertificateValidity>,
    /// What the process does not do.
    #[serde(skip)]
    pub(crate) notices: ReplicaNotices,
}

/// What a process does not do although it serves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ReplicaNotices {
    /// Why it takes in notifications and delivers none, as in `/ready`: `off: …` or `waiting: …`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) deliveries: Option<String>,
    /// Tenants whose budget for notifications was spent within a day, and when that was last: not more than
    /// [`MAX_THROTTLED_TENANTS`] of them.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) throttled_tenants: BTreeMap<TenantId, Timestamp>,
}

/// When a certificate is valid. In JSON an object, or only the end as a string if the beginning is not known, as
/// releases before 0.2 write it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CertificateValidity {
    pub(crate) not_before: Option<Timestamp>,
    pub(crate) not_after: Timestamp,
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum ValidityJson {
    End(Timestamp),
    #[serde(rename_all = "camelCase")]
    Period {
        not_before: Timestamp,
        not_after: Timestamp,
    },
}

impl Serialize for CertificateValidity {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let not_after = self.not_after;
        match self.not_before {
            Some(not_before) => ValidityJson::Period {
                not_before,
                not_after,
            },
            None => ValidityJson::End(not_after),
        }
        .serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for CertificateValidity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(match ValidityJson::deserialize(deserializer)? {
            ValidityJson::End(not_after) => Self {
                not_before: None,
                not_after,
            },
            ValidityJson::Period {
                not_before,
                not_after,
            } => Self {
                not_before: Some(not_before),
                not_after,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_validity_is_read_as_this_and_earlier_releases_write_it() {
        let at = |text| Timestamp::parse(text).expect("a time");
        let (start, end) = ("2026-01-01T00:00:00.000Z", "2026-04-01T00:00:00.000Z");
        for (not_before, json) in [
            (None, format!("\"{end}\"")),
            (
                Some(at(start)),
                format!("{{\"notBefore\":\"{start}\",\"notAfter\":\"{end}\"}}"),
            ),
        ] {
            let validity = CertificateValidity {
                not_before,
                not_after: at(end),
            };
            assert_eq!(serde_json::to_string(&validity).expect("JSON"), json);
            assert_eq!(
                serde_json::from_str::<CertificateValidity>(&json).expect("valid"),
                validity
            );
        }
    }
}
