//! The secrets that sign a tenant's deliveries.

use std::fmt;

use aws_lc_rs::rand;
use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use secrecy::{ExposeSecret as _, SecretString};
use zeroize::Zeroizing;

/// The allowed length of a signing secret, in characters.
const SECRET_LENGTH: std::ops::RangeInclusive<usize> = 32..=512;
/// How many secrets of one tenant may be valid at once.
pub(super) const MAX_ACTIVE_SECRETS: usize = 3;
/// The prefix of secrets of Standard Webhooks.
const WHSEC_PREFIX: &str = "whsec_";
const GENERATED_SECRET_BYTES: usize = 32;
/// The standard alphabet, with or without padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A secret text. Its `Debug` does not show it.
#[derive(Clone)]
pub struct SigningSecret(SecretString);

/// Why a text cannot be a signing secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SigningSecretError {
    /// It is too short or too long. The number is its length in characters.
    #[error("a webhook secret has {least} to {most} characters, this one has {0}", least = SECRET_LENGTH.start(), most = SECRET_LENGTH.end())]
    Length(usize),
    /// It contains control characters, which programs do not all read in the same way.
    #[error("a webhook secret has no control characters and no line ends")]
    ControlCharacter,
}

impl SigningSecret {
    /// Accepts any text of 32 to 512 characters without control characters.
    pub fn parse(text: &str) -> Result<Self, SigningSecretError> {
        let characters = text.chars().count();
        if !SECRET_LENGTH.contains(&characters) {
            return Err(SigningSecretError::Length(characters));
        }
        if text.contains(char::is_control) {
            return Err(SigningSecretError::ControlCharacter);
        }
        Ok(Self(SecretString::from(text)))
    }

    /// A random secret in the form of Standard Webhooks: `whsec_` and 32 bytes in base64.
    pub fn generate() -> Self {
        let mut bytes = Zeroizing::new([0_u8; GENERATED_SECRET_BYTES]);
        rand::fill(bytes.as_mut_slice()).expect("the operating system gives random bytes");
        let mut text = WHSEC_PREFIX.to_owned();
        BASE64.encode_string(*bytes, &mut text);
        Self(SecretString::from(text))
    }

    /// The text: to seal it, to sign with it, or to print a generated secret once.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }

    /// The key of `X-Attesto-Signature`: the bytes of the text.
    pub(crate) fn attesto_key(&self) -> &[u8] {
        self.expose().as_bytes()
    }

    /// The key of `webhook-signature`: the decoded bytes after `whsec_`, as libraries of Standard Webhooks use it. For any
    /// other text it is the bytes of the text.
    pub(crate) fn standard_key(&self) -> Zeroizing<Vec<u8>> {
        let decoded = self.decode_whsec();
        decoded.unwrap_or_else(|| Zeroizing::new(self.attesto_key().to_vec()))
    }

    /// Whether the text begins like a secret of Standard Webhooks but is not valid base64: their libraries reject it.
    pub fn is_malformed_whsec(&self) -> bool {
        self.expose().starts_with(WHSEC_PREFIX) && self.decode_whsec().is_none()
    }

    fn decode_whsec(&self) -> Option<Zeroizing<Vec<u8>>> {
        let encoded = self.expose().strip_prefix(WHSEC_PREFIX)?;
        BASE64.decode(encoded).ok().map(Zeroizing::new)
    }
}

impl PartialEq for SigningSecret {
    fn eq(&self, other: &Self) -> bool {
        self.expose() == other.expose()
    }
}

impl fmt::Debug for SigningSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningSecret(***)")
    }
}

/// The secrets that are valid at one moment: at least one.
#[derive(Clone, Debug, PartialEq)]
pub struct SigningSecrets {
    /// The secret that was set last.
    pub newest: SigningSecret,
    /// Earlier secrets whose overlap is not over, newer ones first.
    pub previous: Vec<SigningSecret>,
}

impl SigningSecrets {
    /// All secrets, in the order of their signatures in the headers.
    pub fn iter(&self) -> impl Iterator<Item = &SigningSecret> {
        std::iter::once(&self.newest).chain(&self.previous)
    }
}

impl From<SigningSecret> for SigningSecrets {
    fn from(newest: SigningSecret) -> Self {
        Self {
            newest,
            previous: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_has_32_to_512_characters() {
        for (text, length) in [("", 0), (&*"a".repeat(31), 31), (&*"a".repeat(513), 513)] {
            assert_eq!(
                SigningSecret::parse(text),
                Err(SigningSecretError::Length(length))
            );
        }
        for text in ["a".repeat(32), "ü".repeat(512)] {
            assert!(SigningSecret::parse(&text).is_ok());
        }
        let text = format!("{}\n", "a".repeat(32));
        assert_eq!(
            SigningSecret::parse(&text),
            Err(SigningSecretError::ControlCharacter)
        );
    }

    #[test]
    fn a_secret_made_here_is_one_of_standard_webhooks() {
        let (one, two) = (SigningSecret::generate(), SigningSecret::generate());
        assert_ne!(one, two);
        assert_eq!(
            one.decode_whsec().expect("base64").len(),
            GENERATED_SECRET_BYTES
        );
        assert!(SigningSecret::parse(one.expose()).is_ok());
        assert!(!one.is_malformed_whsec());
        assert_eq!(format!("{one:?}"), "SigningSecret(***)");
        let odd = SigningSecret::parse("whsec_this_is_not_base64_at_all_but_long").unwrap();
        assert!(odd.is_malformed_whsec());
    }
}
