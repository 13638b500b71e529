//! Compression dictionaries: what many bodies have in common.

use std::borrow::Cow;
use std::sync::{LazyLock, OnceLock};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use zstd::dict::{DecoderDictionary, EncoderDictionary};

use super::segments;
use crate::crypto::token::sha256;

/// The keys and frequent values of Apple's and Google's messages and of events: the dictionary for bodies without certificates,
/// and the beginning of every other dictionary. Never changed, because stored bodies are decompressed with it.
const BUILT_IN_CONTENT: &[u8] = include_bytes!("dictionary_1.txt");
/// For an Apple event of 31 KB: level 3 gives 793 bytes in 50 µs, level 6 gives 704 bytes in 130 µs.
const COMPRESSION_LEVEL: i32 = 3;

/// The built-in dictionary's id, which no row of `body_dictionaries` has.
pub(super) const BUILT_IN_ID: i32 = 0;

/// A dictionary, prepared for compressing and decompressing when it is first used so.
pub struct BodyDictionary {
    pub(super) id: i32,
    content: Cow<'static, [u8]>,
    encoder: OnceLock<EncoderDictionary<'static>>,
    decoder: OnceLock<DecoderDictionary<'static>>,
}

impl BodyDictionary {
    /// The dictionary for bodies without certificates.
    pub fn built_in() -> &'static Self {
        static BUILT_IN: LazyLock<BodyDictionary> =
            LazyLock::new(|| BodyDictionary::new(BUILT_IN_ID, BUILT_IN_CONTENT));
        &BUILT_IN
    }

    /// The dictionary of a row of `body_dictionaries`.
    pub fn new(id: i32, content: impl Into<Cow<'static, [u8]>>) -> Self {
        Self {
            id,
            content: content.into(),
            encoder: OnceLock::new(),
            decoder: OnceLock::new(),
        }
    }

    pub(super) fn encoder(&self) -> &EncoderDictionary<'static> {
        self.encoder
            .get_or_init(|| EncoderDictionary::copy(&self.content, COMPRESSION_LEVEL))
    }

    pub(super) fn decoder(&self) -> &DecoderDictionary<'static> {
        self.decoder
            .get_or_init(|| DecoderDictionary::copy(&self.content))
    }
}

impl std::fmt::Debug for BodyDictionary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BodyDictionary({})", self.id)
    }
}

/// What a message has in common with other messages, as the content of a dictionary. It is stored in clear text and never
/// deleted, so it must contain nothing about a purchase.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedContent {
    pub(super) content: Vec<u8>,
    /// The SHA-256 of `content`, by which equal contents are stored once.
    pub(super) hash: [u8; 32],
}

impl SharedContent {
    /// The content for messages with this certificate chain, in DER, the leaf first. Only for a chain that was verified:
    /// otherwise any client could fill the database with dictionaries.
    pub fn of_certificate_chain(certificates: &[&[u8]]) -> Self {
        let x5c: Vec<String> = certificates
            .iter()
            .map(|certificate| STANDARD.encode(certificate))
            .collect();
        let header = json!({ "alg": "ES256", "x5c": x5c });
        let mut content = BUILT_IN_CONTENT.to_vec();
        segments::push_text(&mut content, header.to_string().as_bytes());
        Self {
            hash: sha256(&content),
            content,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::token::encode_hex;

    #[test]
    fn the_built_in_dictionary_never_changes() {
        assert_eq!(
            encode_hex(&sha256(BUILT_IN_CONTENT)),
            "d1ec7c72d6be7359f10506593220ac763b7ca3a5a547c0c9244a9ffe0c9310dc",
            "stored bodies are decompressed with it: add a new dictionary under a new format instead"
        );
    }
}
