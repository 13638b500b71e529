//! API keys: `attesto_live_` or `attesto_test_` and 43 characters of base64url, which are 32 random bytes.
//!
//! The key itself is shown once, when it is created. Only its SHA-256 is stored, which is enough for a secret of 256
//! random bits: it cannot be guessed, so a slow hash would protect nothing.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use secrecy::{ExposeSecret as _, SecretString};

use crate::base::clock::Timestamp;
use crate::base::id::{KeyId, TenantId};
use crate::crypto::token;

/// Characters after the prefix.
const RANDOM_PART_LENGTH: usize = 43;
/// How many of them are stored in the clear, so that keys can be told apart. 48 of 256 bits.
const VISIBLE_PREFIX_LENGTH: usize = 8;

/// A label that the tenant chose. Keys of both environments use the same stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ApiKeyEnvironment {
    /// For released apps.
    Live,
    /// For everything else.
    Test,
}

impl ApiKeyEnvironment {
    /// As stored and shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Test => "test",
        }
    }

    fn key_prefix(self) -> &'static str {
        match self {
            Self::Live => "attesto_live_",
            Self::Test => "attesto_test_",
        }
    }
}

/// A key as it is stored, and as commands show it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ApiKey {
    /// Its id, `key_` and a ULID.
    pub id: KeyId,
    /// The tenant it belongs to.
    #[serde(rename = "tenantId")]
    pub tenant: TenantId,
    /// The first 8 of its 43 characters.
    #[serde(rename = "keyPrefix")]
    pub prefix: String,
    /// Given by the operator.
    pub name: Option<String>,
    /// Part of the key's prefix.
    pub environment: ApiKeyEnvironment,
    /// Accurate to a minute.
    pub last_used_at: Option<Timestamp>,
    /// When it was created.
    pub created_at: Timestamp,
    /// `None` while it is active.
    pub revoked_at: Option<Timestamp>,
}

/// A whole key, before it is shown to the operator.
#[derive(Debug)]
pub struct RawApiKey {
    text: SecretString,
}

impl RawApiKey {
    /// From the operating system's random numbers.
    pub fn generate(environment: ApiKeyEnvironment) -> Self {
        let random = token::generate_token();
        let text = format!("{}{}", environment.key_prefix(), random.expose_secret());
        Self {
            text: SecretString::from(text),
        }
    }

    /// The key as text, to be shown once.
    pub fn expose(&self) -> &str {
        self.text.expose_secret()
    }

    /// As stored in `api_keys.key_hash`.
    pub fn key_hash(&self) -> ApiKeyHash {
        ApiKeyHash(token::sha256(self.expose().as_bytes()))
    }

    /// As stored in `api_keys.key_prefix`.
    pub fn visible_prefix(&self) -> &str {
        let random = &self.expose()[ApiKeyEnvironment::Live.key_prefix().len()..];
        &random[..VISIBLE_PREFIX_LENGTH]
    }
}

/// The SHA-256 of a whole key.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ApiKeyHash([u8; 32]);

impl ApiKeyHash {
    /// `None` when the text does not have the format of a key: then neither a hash nor a query is needed.
    pub fn from_raw_key(text: &str) -> Option<Self> {
        let random = [ApiKeyEnvironment::Live, ApiKeyEnvironment::Test]
            .iter()
            .find_map(|environment| text.strip_prefix(environment.key_prefix()))?;
        let mut bytes = [0; 32];
        let well_formed = random.len() == RANDOM_PART_LENGTH
            && URL_SAFE_NO_PAD.decode_slice(random, &mut bytes) == Ok(bytes.len());
        well_formed.then(|| Self(token::sha256(text.as_bytes())))
    }

    /// As stored in `api_keys.key_hash`.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for ApiKeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyHash({}…)", token::encode_hex(&self.0[..4]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_key_is_recognised_and_does_not_print() {
        for (environment, prefix) in [
            (ApiKeyEnvironment::Live, "attesto_live_"),
            (ApiKeyEnvironment::Test, "attesto_test_"),
        ] {
            let key = RawApiKey::generate(environment);
            let random = key.expose().strip_prefix(prefix).expect("its prefix");
            assert_eq!(random.len(), 43);
            assert_eq!(key.visible_prefix(), &random[..8]);
            assert_eq!(ApiKeyHash::from_raw_key(key.expose()), Some(key.key_hash()));
            assert_eq!(
                key.key_hash().as_bytes(),
                token::sha256(key.expose().as_bytes())
            );
            assert!(!format!("{key:?}").contains(random));
        }
    }

    #[test]
    fn a_text_without_the_format_of_a_key_is_not_hashed() {
        let key = RawApiKey::generate(ApiKeyEnvironment::Live)
            .expose()
            .to_owned();
        let random = key.strip_prefix("attesto_live_").unwrap();
        for text in [
            String::new(),
            "attesto_live_".to_owned(),
            random.to_owned(),
            format!("attesto_prod_{random}"),
            format!("ATTESTO_LIVE_{random}"),
            format!("{key}A"),
            key[..key.len() - 1].to_owned(),
            format!(" {key}"),
            format!("{}=", &key[..key.len() - 1]),
            format!("{}+", &key[..key.len() - 1]),
            // The last of 43 characters carries four bits: only sixteen of them can end a key.
            format!("{}B", &key[..key.len() - 1]),
            format!("{}é", &key[..key.len() - 2]),
        ] {
            assert_eq!(ApiKeyHash::from_raw_key(&text), None, "{text:?}");
        }
    }
}
