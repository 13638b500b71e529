//! Identifiers: a prefix that names the kind, and a ULID.
//!
//! Each kind has a type of its own, so that ids of different kinds cannot be confused. Only ids in the exact form that
//! `mint` writes can be parsed.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use ulid::Ulid;

use crate::base::clock::Timestamp;

/// A text is not an identifier of the expected kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "an id of this kind looks like {prefix}01J9ZQ4T5W6X7Y8Z9A0B1C2D3E: the prefix and a ULID of 26 characters"
)]
pub struct MalformedIdError {
    prefix: &'static str,
}

macro_rules! define_id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, sqlx::Type)]
        #[serde(try_from = "String", into = "String")]
        #[sqlx(transparent)]
        pub struct $name(String);

        impl $name {
            /// The prefix of every id of this kind, with its underscore.
            pub const PREFIX: &'static str = $prefix;

            /// A new id. Ids sort by `now`, in milliseconds.
            pub fn mint(now: Timestamp) -> Self {
                let moment = std::time::SystemTime::UNIX_EPOCH
                    + std::time::Duration::from_millis(u64::try_from(now.as_millis()).unwrap_or(0));
                Self(format!("{}{}", $prefix, Ulid::from_datetime(moment)))
            }

            /// The error for a text that is not an id of this kind.
            pub fn malformed() -> MalformedIdError {
                MalformedIdError { prefix: $prefix }
            }

            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = MalformedIdError;

            fn from_str(text: &str) -> Result<Self, MalformedIdError> {
                let ulid = text.strip_prefix($prefix).ok_or_else(Self::malformed)?;
                // The decoder accepts lower case and look-alike letters. They are refused, so that an id has only one
                // spelling.
                match Ulid::from_string(ulid) {
                    Ok(parsed) if parsed.to_string() == ulid => Ok(Self(text.to_owned())),
                    _ => Err(Self::malformed()),
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = MalformedIdError;

            fn try_from(text: String) -> Result<Self, MalformedIdError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

define_id!(
    /// A tenant: one team whose purchases Attesto verifies.
    TenantId,
    "tenant_"
);
define_id!(
    /// An API key of a tenant. Not the key itself, which is a secret.
    KeyId,
    "key_"
);
define_id!(
    /// A stored event.
    EventId,
    "evt_"
);
define_id!(
    /// A backup of the database.
    BackupId,
    "backup_"
);
define_id!(
    /// One event on its way to one callback.
    DeliveryId,
    "del_"
);
define_id!(
    /// A request to deliver many events again.
    RedeliveryId,
    "red_"
);
define_id!(
    /// One process that serves.
    ReplicaId,
    "rep_"
);
define_id!(
    /// One HTTP request that arrived without a usable `X-Request-Id`.
    RequestId,
    "req_"
);
define_id!(
    /// One row of the validation audit.
    AuditId,
    "aud_"
);

/// The number of a callback within its tenant. The first is 1, and a number is not given twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, sqlx::Type)]
#[serde(transparent)]
#[sqlx(transparent)]
pub struct CallbackNumber(i16);

/// A text is not the number of a callback.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the number of a callback is a whole number from 1 on, as `attesto webhook list` shows it")]
pub struct InvalidCallbackNumber;

impl CallbackNumber {
    /// The callback that every tenant with a callback has. Commands without a number are about it.
    pub const FIRST: Self = Self(1);

    /// The number in a request. `None`: no callback can have it.
    pub fn new(number: i64) -> Option<Self> {
        let number = i16::try_from(number).ok();
        number.filter(|number| *number > 0).map(Self)
    }

    /// The value of the column `callback`.
    pub fn column(self) -> i16 {
        self.0
    }
}

impl Default for CallbackNumber {
    fn default() -> Self {
        Self::FIRST
    }
}

impl FromStr for CallbackNumber {
    type Err = InvalidCallbackNumber;

    fn from_str(text: &str) -> Result<Self, InvalidCallbackNumber> {
        let number = text.parse().ok();
        number.and_then(Self::new).ok_or(InvalidCallbackNumber)
    }
}

impl fmt::Display for CallbackNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minted_id_parses_and_sorts_by_time() {
        let earlier = TenantId::mint(Timestamp::from_millis(1_000));
        let later = TenantId::mint(Timestamp::from_millis(2_000));
        assert!(earlier < later);
        assert_eq!(earlier.as_str().parse(), Ok(earlier.clone()));
        assert_eq!(earlier.as_str().len(), TenantId::PREFIX.len() + 26);
    }

    #[test]
    fn one_thing_has_one_spelling() {
        let id = KeyId::mint(Timestamp::from_millis(1_000)).to_string();
        for wrong in [
            String::new(),
            "key_".to_owned(),
            id.to_lowercase(),
            id.replace("key_", "tenant_"),
            format!("{id}0"),
            format!(" {id}"),
            id[..id.len() - 1].to_owned(),
            "key_80000000000000000000000000".to_owned(),
        ] {
            assert!(wrong.parse::<KeyId>().is_err(), "{wrong} must not parse");
        }
    }

    #[test]
    fn a_number_begins_with_one() {
        for (text, number) in [("1", 1), ("7", 7), ("32767", 32767)] {
            assert_eq!(text.parse(), Ok(CallbackNumber(number)));
        }
        for text in ["0", "-1", "32768", "", "one", "1.0"] {
            assert_eq!(
                text.parse::<CallbackNumber>(),
                Err(InvalidCallbackNumber),
                "{text}"
            );
        }
        assert_eq!(CallbackNumber::FIRST.to_string(), "1");
    }
}
