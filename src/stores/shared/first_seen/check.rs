//! Compares the user of a verification with the one for whom the same purchase was first verified.
//!
//! The hashes are made with a random key of the tenant, which is stored sealed: a rotation of the encryption key seals it
//! again and changes no hash. A tenant without a key has not asked for the comparison, and costs no query: the sealed key is
//! loaded with the API key of the request.
//!
//! When the comparison fails, the verdict of the store stands, and the answer says that there was no comparison: a valid
//! purchase must not be refused because of it, and its absence must not be taken for "never seen before".

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde_json::json;
use utoipa::ToSchema;
use utoipa::openapi::schema::Schema;

use super::store;
use crate::base::clock::Timestamp;
use crate::credentials::sealed_columns::FIRST_SEEN_KEY;
use crate::crypto::ExposeSecret as _;
use crate::crypto::keyring::{Keyring, UnsealError};
use crate::crypto::token::hmac_sha256;
use crate::db::{self, Database, error_class};
use crate::events::EventSource;
use crate::http::api_docs;
use crate::http::json::parse_uuid;
use crate::tenants::Caller;

/// How long an answer waits for the comparison.
const CHECK_TIMEOUT: Duration = Duration::from_secs(2);
/// The longest `forAppUserId` of a request.
pub(crate) const MAX_FOR_USER_CHARS: usize = 200;
/// What the hash of a purchase begins with. The store and the subject's key follow.
const PURCHASE_CONTEXT: &[u8] = b"attesto/first_seen/v1/purchase/";
/// What the hash of a user begins with. The hash of the purchase and the user follow.
const USER_CONTEXT: &[u8] = b"attesto/first_seen/v1/user/";

/// When the same purchase was first verified, which was for another user of this tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct FirstSeen {
    /// When that was.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// Whether it was for the user of this verification: false.
    pub same_user: bool,
}

/// Why the user was not compared with the first one.
///
/// - `unavailable`: the database did not answer. Whether the purchase was verified before for another user is not known, and
///   this verification may not be remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FirstSeenError {
    /// The database did not answer, or the key cannot be opened.
    Unavailable,
}

/// Compares users. Clones share the connection pool.
#[derive(Clone)]
pub(crate) struct FirstSeenCheck {
    database: Database,
    keyring: Arc<Keyring>,
}

/// The field `forAppUserId` of both verify routes.
pub(crate) fn for_app_user_id_schema() -> Schema {
    api_docs::optional_string_schema(
        "The user who presents the purchase, as your backend names them. Compared with nothing but the users for whom the same purchase was verified before, for `firstSeen`, if the tenant has asked for it. Left out: the answer's `appUserId`.",
    )
    .min_length(Some(1))
    .max_length(Some(MAX_FOR_USER_CHARS))
    .examples([json!("7e3fb204-2b0d-4d70-a0c2-6d8a3f6c1e55")])
    .build()
    .into()
}

/// Why there was no comparison.
#[derive(Debug, thiserror::Error)]
enum CheckError {
    #[error("the tenant's key does not open: {0}")]
    CannotOpen(#[from] UnsealError),
    #[error("{}", crate::db::describe_cause(.0))]
    Database(#[from] db::Error),
    #[error("the database did not answer within {CHECK_TIMEOUT:?}")]
    TimedOut,
}

impl CheckError {
    /// The class of the error for the log, without the database's message.
    fn class(&self) -> String {
        match self {
            Self::CannotOpen(_) => "the key does not open".to_owned(),
            Self::Database(error) => error_class(error),
            Self::TimedOut => "no answer".to_owned(),
        }
    }
}

impl FirstSeenCheck {
    pub(crate) fn new(database: &Database, keyring: &Arc<Keyring>) -> Self {
        Self {
            database: database.clone(),
            keyring: keyring.clone(),
        }
    }

    /// Looks up the first verification of a purchase of the caller's tenant, and remembers this one if there is none. Nothing is
    /// found of the same user, and nothing is looked up or stored without a user.
    pub(crate) async fn check(
        &self,
        caller: &Caller,
        store: EventSource,
        subject_key: &str,
        user: Option<&str>,
    ) -> Result<Option<FirstSeen>, FirstSeenError> {
        let (Some(sealed), Some(user)) = (&caller.first_seen_key, user) else {
            return Ok(None);
        };
        let checked = self.compare(caller, sealed, store, subject_key, user).await;
        checked.map_err(|error| {
            tracing::warn!(
                tenantId = %caller.tenant,
                cause = %error,
                causeClass = error.class(),
                hint = "the verdict stands; the answer says in firstSeenError that users were not compared",
                "first_seen_not_checked"
            );
            FirstSeenError::Unavailable
        })
    }

    async fn compare(
        &self,
        caller: &Caller,
        sealed: &[u8],
        store: EventSource,
        subject_key: &str,
        user: &str,
    ) -> Result<Option<FirstSeen>, CheckError> {
        let place = FIRST_SEEN_KEY.context_for(caller.tenant.as_str());
        let key = self.keyring.open(place, sealed)?;
        // The App Store's users are UUIDs, and compared without regard to case.
        let uuid = parse_uuid(user).filter(|_| store == EventSource::Apple);
        let user = uuid.as_deref().unwrap_or(user);
        let hashes = UserHashes::new(key.expose_secret(), store, subject_key, user);
        let (database, tenant) = (self.database.clone(), caller.tenant.clone());
        // In a task of its own: a statement that is given up costs its connection.
        let lookup = tokio::spawn(async move {
            store::find_or_insert_first_user(&database, &tenant, &hashes)
                .await
                .map(|first| first.filter(|first| first.user_hash != hashes.user))
        });
        let first = match tokio::time::timeout(CHECK_TIMEOUT, lookup).await {
            Ok(Ok(first)) => first?,
            Ok(Err(_)) => return Err(db::Error::WorkerCrashed.into()),
            Err(_) => return Err(CheckError::TimedOut),
        };
        Ok(first.map(|first| FirstSeen {
            at: first.first_seen_at,
            same_user: false,
        }))
    }
}

/// The hashes of a purchase and of the user for whom it is verified.
pub(super) struct UserHashes {
    pub(super) purchase: [u8; 32],
    pub(super) user: [u8; 32],
}

impl UserHashes {
    fn new(key: &[u8], store: EventSource, subject_key: &str, user: &str) -> Self {
        let store: &[u8] = match store {
            EventSource::Apple => b"apple/",
            EventSource::Google => b"google/",
        };
        let purchase = hmac_sha256(key, &[PURCHASE_CONTEXT, store, subject_key.as_bytes()]);
        let user = hmac_sha256(key, &[USER_CONTEXT, &purchase, user.as_bytes()]);
        Self { purchase, user }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::token::encode_hex;

    fn hashes(key: u8, store: EventSource, purchase: &str, user: &str) -> UserHashes {
        UserHashes::new(&[key; 32], store, purchase, user)
    }

    /// Test vectors from an HMAC-SHA-256 outside this project: hashes of the same purchase must stay comparable across releases.
    #[test]
    fn a_hash_equals_that_of_another_implementation() {
        let hashes = hashes(1, EventSource::Apple, "2000000100000001", "user-1");
        assert_eq!(
            encode_hex(&hashes.purchase),
            "bb9026cbef6151c669c4a8b9864a2de5a204c74c0a751cc5fe2c97abdc55b13d"
        );
        assert_eq!(
            encode_hex(&hashes.user),
            "4c8041b8aad91bdf3901014d0b3353712393e289a4d055cccf1f3add44dae9b3"
        );
    }

    #[test]
    fn equal_purchases_and_users_of_one_tenant_are_equal_and_nothing_else_is() {
        use EventSource::{Apple, Google};
        let one = hashes(1, Apple, "1", "a");
        let same = hashes(1, Apple, "1", "a");
        assert_eq!((one.purchase, one.user), (same.purchase, same.user));
        let other_user = hashes(1, Apple, "1", "b");
        assert_eq!(one.purchase, other_user.purchase);
        assert_ne!(one.user, other_user.user);
        for other in [
            hashes(2, Apple, "1", "a"),
            hashes(1, Google, "1", "a"),
            hashes(1, Apple, "2", "a"),
        ] {
            assert_ne!(one.purchase, other.purchase);
            assert_ne!(
                one.user, other.user,
                "users of two purchases cannot be compared"
            );
        }
    }
}
