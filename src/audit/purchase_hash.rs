//! Hashes transaction ids and purchase tokens. Hashes are equal only for the same purchase of the same tenant.
//!
//! HMAC-SHA-256 with a key for each tenant. That key is derived from a random key, which is created once for each
//! database and stored sealed (`validation_audit_keys`). A rotation of the encryption key seals the random key again
//! and does not change it, so hashes stay comparable as long as the database exists. Without the encryption key, the
//! database's content is not sufficient to test which purchase a hash belongs to.

use zeroize::Zeroizing;

use super::store;
use crate::base::id::TenantId;
use crate::credentials::sealed_columns::VALIDATION_AUDIT_KEY;
use crate::crypto::keyring::{Keyring, UnsealError};
use crate::crypto::token::{self, hmac_sha256};
use crate::crypto::{ExposeSecret as _, SecretSlice};
use crate::db::{Database, Error};

/// There is only one key, with this number.
const HASH_KEY_NUMBER: i32 = 1;
/// Used to derive the tenants' keys, so that they differ from keys that are derived for other purposes.
const HASH_KEY_CONTEXT: &[u8] = b"attesto/validation_audit/v1/";

/// Why the key cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum HashKeyError {
    /// The key could not be read or written.
    #[error("{}", crate::db::describe_cause(.0))]
    Database(#[from] Error),
    /// The key cannot be unsealed with the configured encryption keys.
    #[error("the key of the validation log's hashes cannot be opened: {0}")]
    CannotOpen(UnsealError),
}

/// SHA-256 of a transaction id or purchase token: always 32 bytes, and unlike the identifier itself not usable in a
/// request to the store.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PurchaseDigest([u8; 32]);

impl PurchaseDigest {
    /// `text` is a transaction id or a purchase token.
    pub fn from_identifier(text: &str) -> Self {
        Self(token::sha256(text.as_bytes()))
    }
}

impl std::fmt::Debug for PurchaseDigest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Identifier(…)")
    }
}

/// The random key that tenants' keys are derived from.
pub struct PurchaseHashKey(SecretSlice<u8>);

impl PurchaseHashKey {
    /// Loads the key. Creates it if the database has none.
    pub async fn load(database: &Database, keyring: &Keyring) -> Result<Self, HashKeyError> {
        let row = HASH_KEY_NUMBER.to_string();
        let place = VALIDATION_AUDIT_KEY.context_for(&row);
        let sealed = if let Some(sealed) = store::find_hash_key(database, HASH_KEY_NUMBER).await? {
            sealed
        } else {
            let fresh = keyring.seal(place, token::generate_token().expose_secret().as_bytes());
            // If several processes create a key at once, the first one is stored and returned to all.
            store::insert_hash_key(database, HASH_KEY_NUMBER, &fresh).await?
        };
        let key = keyring
            .open(place, &sealed)
            .map_err(HashKeyError::CannotOpen)?;
        Ok(Self(key))
    }

    /// The hash for `validation_audit.identifier_hash`: 32 bytes.
    pub fn hash_purchase(&self, tenant: &TenantId, identifier: PurchaseDigest) -> Vec<u8> {
        let context = [HASH_KEY_CONTEXT, tenant.as_str().as_bytes()];
        let tenant_key = Zeroizing::new(hmac_sha256(self.0.expose_secret(), &context));
        hmac_sha256(&*tenant_key, &[&identifier.0]).to_vec()
    }
}

impl std::fmt::Debug for PurchaseHashKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HashKey(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock::Timestamp;

    /// A test vector from an HMAC-SHA-256 outside this project: hashes of the same purchase must stay comparable across releases.
    #[test]
    fn a_hash_equals_that_of_another_implementation() {
        let key = PurchaseHashKey(SecretSlice::from(vec![1; 32]));
        let tenant: TenantId = "tenant_01HZX3V5T8N2Q4R6S8W0Y2A4C6".parse().expect("an id");
        let hash = key.hash_purchase(&tenant, PurchaseDigest::from_identifier("token"));
        assert_eq!(
            token::encode_hex(&hash),
            "3e19dfcc418440719b5ea08d2d4f5e408bc5b2179f3bac639029b7ceeabf0618"
        );
    }

    #[test]
    fn equal_purchases_of_one_tenant_are_equal_and_nothing_else_is() {
        let key = |fill: u8| PurchaseHashKey(SecretSlice::from(vec![fill; 32]));
        let tenant = || TenantId::mint(Timestamp::from_millis(0));
        let (one, two) = (tenant(), tenant());
        let hash = key(1).hash_purchase(&one, PurchaseDigest::from_identifier("token"));
        assert_eq!(hash.len(), 32);
        assert_eq!(
            hash,
            key(1).hash_purchase(&one, PurchaseDigest::from_identifier("token"))
        );
        for other in [
            key(1).hash_purchase(&one, PurchaseDigest::from_identifier("tokem")),
            key(1).hash_purchase(&two, PurchaseDigest::from_identifier("token")),
            key(2).hash_purchase(&one, PurchaseDigest::from_identifier("token")),
        ] {
            assert_ne!(hash, other);
        }
    }
}
