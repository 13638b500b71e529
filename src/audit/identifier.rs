//! The hash of what was asked about: equal for equal purchases of one tenant, and nothing else.
//!
//! HMAC-SHA-256 with a key of the tenant's own, which is made from a random key that this database was given once. That
//! key is kept sealed (`validation_audit_keys`). Rotating the encryption key seals it anew and does not change it, so
//! hashes stay comparable for as long as the database lives; whoever has the database and no encryption key cannot try
//! out which purchase a hash is of.

use aws_lc_rs::hmac::{self, HMAC_SHA256};

use super::store;
use crate::credentials::sealed::VALIDATION_AUDIT_KEY;
use crate::crypto::ExposeSecret as _;
use crate::crypto::keyring::{Keyring, OpenError};
use crate::crypto::token;
use crate::db::{Database, Error};
use crate::id::TenantId;

/// Which key. There is one.
const NUMBER: i32 = 1;
/// What a tenant's key is made for.
const PURPOSE: &[u8] = b"attesto/validation_audit/v1/";

/// Why nothing can be hashed.
#[derive(Debug, thiserror::Error)]
pub enum NoHashKey {
    /// The key could not be read or written.
    #[error(transparent)]
    Database(#[from] Error),
    /// It does not open.
    #[error("the key of the validation log's hashes cannot be opened: {0}")]
    Sealed(OpenError),
}

/// What was asked about, as it waits in memory: 32 bytes however long it was, and no purchase token any more.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Identifier([u8; 32]);

impl Identifier {
    /// Of a transaction id or a purchase token.
    pub fn of(text: &str) -> Self {
        Self(token::sha256(text.as_bytes()))
    }
}

impl std::fmt::Debug for Identifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Identifier(…)")
    }
}

/// Hashes identifiers.
pub struct HashKey(hmac::Key);

impl HashKey {
    /// This database's, which is made when it has none yet.
    pub async fn load(database: &Database, keyring: &Keyring) -> Result<Self, NoHashKey> {
        let row = NUMBER.to_string();
        let place = VALIDATION_AUDIT_KEY.of(&row);
        let sealed = if let Some(sealed) = store::hash_key(database, NUMBER).await? {
            sealed
        } else {
            let fresh = keyring.seal(place, token::random().expose_secret().as_bytes());
            // Whoever was first is right.
            store::add_hash_key(database, NUMBER, &fresh).await?
        };
        let key = keyring.open(place, &sealed).map_err(NoHashKey::Sealed)?;
        Ok(Self(hmac::Key::new(HMAC_SHA256, key.expose_secret())))
    }

    /// The hash under which `tenant` finds this.
    pub fn hash(&self, tenant: &TenantId, identifier: Identifier) -> Vec<u8> {
        let mut context = hmac::Context::with_key(&self.0);
        context.update(PURPOSE);
        context.update(tenant.as_str().as_bytes());
        let tenants = hmac::Key::new(HMAC_SHA256, context.sign().as_ref());
        hmac::sign(&tenants, &identifier.0).as_ref().to_vec()
    }
}

impl std::fmt::Debug for HashKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HashKey(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;

    #[test]
    fn equal_purchases_of_one_tenant_are_equal_and_nothing_else_is() {
        let key = |fill: u8| HashKey(hmac::Key::new(HMAC_SHA256, &[fill; 32]));
        let tenant = || TenantId::mint(Timestamp::from_millis(0));
        let (one, two) = (tenant(), tenant());
        let hash = key(1).hash(&one, Identifier::of("token"));
        assert_eq!(hash.len(), 32);
        assert_eq!(hash, key(1).hash(&one, Identifier::of("token")));
        for other in [
            key(1).hash(&one, Identifier::of("tokem")),
            key(1).hash(&two, Identifier::of("token")),
            key(2).hash(&one, Identifier::of("token")),
        ] {
            assert_ne!(hash, other);
        }
    }
}
