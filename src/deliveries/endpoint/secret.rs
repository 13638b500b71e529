//! What signs a tenant's deliveries.

use std::fmt;

use aws_lc_rs::hmac::{self, HMAC_SHA256};
use aws_lc_rs::rand;
use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use secrecy::{ExposeSecret as _, SecretString};
use zeroize::Zeroizing;

/// The shortest and the longest secret, in characters.
pub const LENGTH: std::ops::RangeInclusive<usize> = 32..=512;
/// How many secrets of one tenant may sign at once.
pub const MOST_LIVE: usize = 3;
/// What a secret of Standard Webhooks begins with.
const PREFIX: &str = "whsec_";
/// Random bytes of a secret that is made here.
const RANDOM_BYTES: usize = 32;
/// Standard base64, with or without the `=` at its end.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A text that signs. Never printed.
#[derive(Clone)]
pub struct SigningSecret(SecretString);

/// Why a text is not a signing secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadSecret {
    /// Too short or too long.
    #[error("a webhook secret has {least} to {most} characters, this one has {0}", least = LENGTH.start(), most = LENGTH.end())]
    Length(usize),
    /// What no two programs read alike.
    #[error("a webhook secret has no control characters and no line ends")]
    Control,
}

impl SigningSecret {
    /// Checks what somebody chose.
    pub fn parse(text: &str) -> Result<Self, BadSecret> {
        let characters = text.chars().count();
        if !LENGTH.contains(&characters) {
            return Err(BadSecret::Length(characters));
        }
        if text.contains(char::is_control) {
            return Err(BadSecret::Control);
        }
        Ok(Self(SecretString::from(text)))
    }

    /// A new one, in the form of Standard Webhooks: `whsec_` and the base64 of 32 random bytes.
    pub fn generate() -> Self {
        let mut bytes = Zeroizing::new([0_u8; RANDOM_BYTES]);
        rand::fill(bytes.as_mut_slice()).expect("the operating system gives random bytes");
        let mut text = PREFIX.to_owned();
        BASE64.encode_string(*bytes, &mut text);
        Self(SecretString::from(text))
    }

    /// The text itself, to seal it, to sign with it, or to print one that was just made.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }

    /// The key of `X-Attesto-Signature`: the bytes of the text as it is.
    pub fn attesto_key(&self) -> hmac::Key {
        hmac::Key::new(HMAC_SHA256, self.expose().as_bytes())
    }

    /// The key of `webhook-signature`: the decoded bytes after `whsec_`, which is what libraries of Standard Webhooks
    /// take. Any other text has no such form, so there the key is its bytes.
    pub fn standard_key(&self) -> hmac::Key {
        match self.decoded() {
            Some(bytes) => hmac::Key::new(HMAC_SHA256, &bytes),
            None => self.attesto_key(),
        }
    }

    /// Whether the text promises the form of Standard Webhooks and does not keep it, so that their libraries refuse it.
    pub fn is_misleading(&self) -> bool {
        self.expose().starts_with(PREFIX) && self.decoded().is_none()
    }

    fn decoded(&self) -> Option<Zeroizing<Vec<u8>>> {
        let encoded = self.expose().strip_prefix(PREFIX)?;
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

/// The secrets that sign at one moment, newest first: there is always one.
#[derive(Clone, Debug, PartialEq)]
pub struct Secrets {
    /// What was set last.
    pub newest: SigningSecret,
    /// Those before it whose overlap is not over, newer ones first.
    pub previous: Vec<SigningSecret>,
}

impl Secrets {
    /// All of them, in the order in which their signatures stand.
    pub fn iter(&self) -> impl Iterator<Item = &SigningSecret> {
        std::iter::once(&self.newest).chain(&self.previous)
    }
}

impl From<SigningSecret> for Secrets {
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
            assert_eq!(SigningSecret::parse(text), Err(BadSecret::Length(length)));
        }
        for text in ["a".repeat(32), "ü".repeat(512)] {
            assert!(SigningSecret::parse(&text).is_ok());
        }
        let text = format!("{}\n", "a".repeat(32));
        assert_eq!(SigningSecret::parse(&text), Err(BadSecret::Control));
    }

    #[test]
    fn a_secret_made_here_is_one_of_standard_webhooks() {
        let (one, two) = (SigningSecret::generate(), SigningSecret::generate());
        assert_ne!(one, two);
        assert_eq!(one.decoded().expect("base64").len(), RANDOM_BYTES);
        assert!(SigningSecret::parse(one.expose()).is_ok());
        assert!(!one.is_misleading());
        assert_eq!(format!("{one:?}"), "SigningSecret(***)");
        let odd = SigningSecret::parse("whsec_this_is_not_base64_at_all_but_long").unwrap();
        assert!(odd.is_misleading());
    }
}
