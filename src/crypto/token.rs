//! Generates random secrets, and computes the digests they are recognised by.

use std::fmt::Write as _;

use aws_lc_rs::rand;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use secrecy::SecretString;
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

/// Generates 32 random bytes, encoded as 43 characters of base64url.
pub fn generate_token() -> SecretString {
    let mut bytes = Zeroizing::new([0_u8; 32]);
    rand::fill(bytes.as_mut_slice()).expect("the operating system gives random bytes");
    SecretString::from(URL_SAFE_NO_PAD.encode(*bytes))
}

/// Generates a UUID of version 4 (RFC 9562), in lower case.
pub fn generate_uuid() -> String {
    let mut bytes = [0_u8; 16];
    rand::fill(&mut bytes).expect("the operating system gives random bytes");
    bytes[6] = (bytes[6] & 0x0f) | 0x40;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    let groups = [
        &bytes[..4],
        &bytes[4..6],
        &bytes[6..8],
        &bytes[8..10],
        &bytes[10..],
    ];
    groups.map(encode_hex).join("-")
}

/// SHA-256. Suitable for recognising a secret of 256 random bits, and not for passwords.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// HMAC-SHA-256 over the concatenated parts.
pub(crate) fn hmac_sha256(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes a key of any length");
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

/// Encodes bytes as lower-case hexadecimal digits.
pub fn encode_hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            // Writing to a `String` cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
}

/// The fingerprint of a key or certificate, by which two people can compare it: the first 16 hex digits of its SHA-256.
pub fn sha256_fingerprint(bytes: &[u8]) -> String {
    encode_hex(&sha256(bytes)[..8])
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    #[test]
    fn a_uuid_has_its_version_and_variant_and_is_never_the_same() {
        let (one, two) = (generate_uuid(), generate_uuid());
        assert_ne!(one, two);
        for uuid in [&one, &two] {
            let lengths: Vec<usize> = uuid.split('-').map(str::len).collect();
            assert_eq!(lengths, [8, 4, 4, 4, 12], "{uuid}");
            assert_eq!(&uuid[14..15], "4", "{uuid}");
            assert!(matches!(&uuid[19..20], "8" | "9" | "a" | "b"), "{uuid}");
            assert!(
                uuid.bytes()
                    .all(|byte| matches!(byte, b'-' | b'0'..=b'9' | b'a'..=b'f'))
            );
        }
    }

    #[test]
    fn a_token_is_43_characters_and_never_the_same() {
        let (one, two) = (generate_token(), generate_token());
        assert_eq!(one.expose_secret().len(), 43);
        assert_ne!(one.expose_secret(), two.expose_secret());
        assert!(!format!("{one:?}").contains(one.expose_secret()));
    }

    #[test]
    fn a_fingerprint_is_the_beginning_of_the_digest() {
        assert_eq!(sha256_fingerprint(b"abc"), "ba7816bf8f01cfea");
    }
}
