//! A tenant's credentials for Apple's API, and the tokens signed with them.
//!
//! Guarantees: a key file is validated completely when it is set, so that later only Apple can refuse it. The private
//! key is never printed, and is wiped from memory when it is dropped. A token is cached and renewed before it expires.
//! It is only used with the key, key id, issuer and app that it was signed for.
//!
//! - [`AppleCredentials`], with its [`SigningKey`]
//! - [`AppleEnvironment`], and [`EnvironmentChoice`]: the environments that a tenant accepts
//! - [`ClientTokenSource`]: signs and caches tokens

use std::fmt;
use std::time::Duration;

use aws_lc_rs::encoding::{AsDer as _, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _,
};
use base64::Engine as _;
use base64::alphabet;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rustls::pki_types::pem::{PemObject as _, SectionKind};
use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;
use zeroize::Zeroizing;

use crate::base::clock::{Clock, Timestamp};
use crate::base::id::TenantId;
use crate::credentials::token_cache::{AccessToken, TokenCache};
use crate::crypto::{SecretString, token};

/// The claim `aud` of a client token.
const CLIENT_TOKEN_AUDIENCE: &str = "appstoreconnect-v1";
/// The maximum size of a key file in bytes. Apple's files have 257 bytes.
const MAX_FILE_BYTES: usize = 16 * 1024;
/// The length of a line of base64 in PEM (RFC 7468).
const PEM_LINE_CHARS: usize = 64;
/// How long a client token is valid. Apple allows an hour; its own libraries use five minutes. With twenty minutes,
/// tokens of a machine whose clock is some minutes slow are still accepted.
const CLIENT_TOKEN_TTL: Duration = Duration::from_mins(20);
/// How long before now the claim `iat` is set, so that tokens of a machine whose clock is slightly fast are accepted.
const ISSUED_AT_BACKDATE: Duration = Duration::from_mins(1);
/// A cached token that expires within this time is replaced.
const TOKEN_RENEWAL_MARGIN: Duration = Duration::from_mins(2);

/// The object identifiers at the beginning of a PKCS#8 key, in DER without tag and length: `rsaEncryption`,
/// `id-ecPublicKey` and `prime256v1`, which is P-256.
const OID_RSA_ENCRYPTION: [u8; 9] = [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
const OID_EC_PUBLIC_KEY: [u8; 7] = [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
const OID_PRIME256V1: [u8; 8] = [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
const PEM_BEGIN: &[u8] = b"-----BEGIN";
const BASE64_WITH_ANY_PADDING: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);
/// Object identifiers are looked for in this many bytes at the beginning of a PKCS#8 key.
const MAX_PKCS8_HEADER_BYTES: usize = 32;

/// Where a transaction is.
///
/// - `production`: paid for with money.
/// - `sandbox`: bought for a trial, as in TestFlight and by App Review.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = apple::Environment)]
pub enum AppleEnvironment {
    /// The App Store.
    Production,
    /// The sandbox, which is also where `TestFlight` and App Review buy.
    Sandbox,
}

impl AppleEnvironment {
    /// As in requests and answers: `production` or `sandbox`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Production => "production",
            Self::Sandbox => "sandbox",
        }
    }

    /// Apple's name in signed data: `Production` or `Sandbox`.
    pub fn as_apple_str(self) -> &'static str {
        match self {
            Self::Production => "Production",
            Self::Sandbox => "Sandbox",
        }
    }

    /// Parses Apple's name. `None` for `Xcode` and `LocalTesting`, which are never accepted, and for any other name.
    pub fn from_apple_str(word: &str) -> Option<Self> {
        [Self::Production, Self::Sandbox]
            .into_iter()
            .find(|environment| environment.as_apple_str() == word)
    }
}

/// Where the transaction must be. Left out: what the tenant is set up with, which is `auto` unless an operator chose
/// otherwise.
///
/// - `production`: paid for with money.
/// - `sandbox`: bought for a trial, as in TestFlight and by App Review.
/// - `auto`: production, and where it is not found, the sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, clap::ValueEnum, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = apple::EnvironmentChoice)]
pub enum EnvironmentChoice {
    /// Both; production is asked first.
    Auto,
    /// Only Apple's production server.
    Production,
    /// Only the sandbox.
    Sandbox,
}

impl EnvironmentChoice {
    /// The stored name: `auto`, `production` or `sandbox`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Production => "production",
            Self::Sandbox => "sandbox",
        }
    }

    /// Parses the stored name.
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Auto, Self::Production, Self::Sandbox]
            .into_iter()
            .find(|choice| choice.as_str() == word)
    }

    /// Whether transactions of `environment` are accepted.
    pub fn allows_environment(self, environment: AppleEnvironment) -> bool {
        match self {
            Self::Auto => true,
            Self::Production => environment == AppleEnvironment::Production,
            Self::Sandbox => environment == AppleEnvironment::Sandbox,
        }
    }
}

/// A tenant's credentials for Apple's API, unsealed.
#[derive(Debug)]
pub struct AppleCredentials {
    /// The bundle id of the tenant's app.
    pub bundle_id: String,
    /// The key's id in App Store Connect: ten capital letters and digits.
    pub key_id: String,
    /// The team's issuer id in App Store Connect: a UUID.
    pub issuer_id: String,
    /// The private key.
    pub key: SigningKey,
    /// The accepted environments, unless a request names one.
    pub environment: EnvironmentChoice,
    /// The app's Apple id, a number in App Store Connect. Without it, no production transaction is verified.
    pub app_apple_id: Option<i64>,
}

impl AppleCredentials {
    /// A digest of all claims of a client token and of its key. Credentials with the same digest get the same answers
    /// from Apple.
    pub fn identity_digest(&self) -> [u8; 32] {
        // No part can contain a line break, so two different lists never give the same text.
        let parts = [
            &*self.issuer_id,
            &self.key_id,
            &self.bundle_id,
            self.key.fingerprint(),
        ];
        token::sha256(parts.join("\n").as_bytes())
    }

    /// Signs a bearer token for Apple's API: a JWT with ES256. Source: "Generating JSON Web Tokens for API requests".
    fn sign_client_token(&self, now: Timestamp) -> SecretString {
        let expiry = json!({ "exp": now.plus(CLIENT_TOKEN_TTL).as_secs() });
        self.sign_jwt(CLIENT_TOKEN_AUDIENCE, expiry, now).into()
    }

    /// Signs `claims`, an object, together with those that every token of Apple's has.
    pub(super) fn sign_jwt(&self, audience: &str, mut claims: Value, now: Timestamp) -> String {
        let mut header = Header::new(Algorithm::ES256);
        header.kid = Some(self.key_id.clone());
        claims["iss"] = json!(self.issuer_id);
        claims["iat"] = json!(now.minus(ISSUED_AT_BACKDATE).as_secs());
        claims["aud"] = json!(audience);
        claims["bid"] = json!(self.bundle_id);
        jsonwebtoken::encode(&header, &claims, &self.key.encoding_key).expect("a parsed key signs")
    }
}

/// A team's In-App Purchase key, on curve P-256. It is wiped from memory when dropped.
pub struct SigningKey {
    encoding_key: EncodingKey,
    fingerprint: String,
}

/// Why a file is not an In-App Purchase key. The message names the kind of file where it can be detected, and never
/// repeats its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SigningKeyError {
    /// The file is empty or contains only white space.
    #[error("the file is empty")]
    Empty,
    /// The file is larger than [`MAX_FILE_BYTES`].
    #[error("the file is larger than {MAX_FILE_BYTES} bytes, so it is not an In-App Purchase key")]
    TooLarge,
    /// The file is of another kind.
    #[error("this is {0}. {DOWNLOAD}")]
    WrongKind(&'static str),
    /// The right key in a format that is not supported, with a command that converts it.
    #[error("this is {what}. Convert it: {how}")]
    Convertible {
        /// The format of the file.
        what: &'static str,
        /// The command that converts it.
        how: &'static str,
    },
    /// A PEM block without its END line.
    #[error(
        "the file begins like a key and has no line -----END PRIVATE KEY-----: it was cut off where it was copied. Copy the whole file again"
    )]
    CutOff,
    /// A PEM block whose first or last line was changed.
    #[error(
        "the file names a PRIVATE KEY, and its first line, BEGIN PRIVATE KEY, or its last one, END PRIVATE KEY, was changed where it was copied: each has five hyphens before and behind its words. Restore both lines; the key is between them"
    )]
    LinesChanged,
    /// The file contains no PEM block.
    #[error("the file is not a PEM block labelled PRIVATE KEY. {DOWNLOAD}")]
    NotPem,
    /// The file has the right format, but the key is not valid.
    #[error("the key is damaged. Use the file exactly as App Store Connect gave it")]
    Damaged,
}

const DOWNLOAD: &str = "What is needed is the .p8 file of an In-App Purchase key: App Store Connect, Users and Access, \
    Integrations, In-App Purchase";
const TO_PKCS8_COMMAND: &str = "openssl pkcs8 -topk8 -nocrypt -in FILE -out key.p8";
const DECRYPT_COMMAND: &str = "openssl pkcs8 -in FILE -out key.p8";
const FROM_DER_COMMAND: &str = "openssl pkcs8 -inform DER -nocrypt -in FILE -out key.p8";

impl SigningKey {
    /// Parses the `.p8` file that App Store Connect offers once for a key: PKCS#8 in PEM. Also accepts files that
    /// secret stores and editors have changed, see [`restore_pem`].
    pub fn parse(file: &[u8]) -> Result<Self, SigningKeyError> {
        if file.len() > MAX_FILE_BYTES {
            return Err(SigningKeyError::TooLarge);
        }
        let file = restore_pem(file);
        if file.is_empty() {
            return Err(SigningKeyError::Empty);
        }
        if let Some(problem) = detect_wrong_file(&file) {
            return Err(problem);
        }
        let (kind, der) =
            <(SectionKind, Vec<u8>)>::from_pem_slice(&file).map_err(|_| SigningKeyError::NotPem)?;
        let der = Zeroizing::new(der);
        let what = match kind {
            SectionKind::PrivateKey => return Self::from_pkcs8(&der),
            SectionKind::EcPrivateKey => {
                return Err(SigningKeyError::Convertible {
                    what: "an elliptic-curve key in the SEC1 form, not PKCS#8",
                    how: TO_PKCS8_COMMAND,
                });
            }
            SectionKind::RsaPrivateKey => "an RSA key",
            SectionKind::PublicKey => "a public key",
            SectionKind::Certificate => "a certificate",
            SectionKind::Csr => "a request for a certificate",
            _ => "not a private key",
        };
        Err(SigningKeyError::WrongKind(what))
    }

    fn from_pkcs8(der: &[u8]) -> Result<Self, SigningKeyError> {
        let head = &der[..der.len().min(MAX_PKCS8_HEADER_BYTES)];
        let names = |identifier: &[u8]| head.windows(identifier.len()).any(|at| at == identifier);
        if names(&OID_RSA_ENCRYPTION) {
            return Err(SigningKeyError::WrongKind("an RSA key"));
        }
        if names(&OID_EC_PUBLIC_KEY) && !names(&OID_PRIME256V1) {
            return Err(SigningKeyError::WrongKind(
                "an elliptic-curve key on another curve than P-256",
            ));
        }
        if head.starts_with(&[0x30]) && !names(&OID_EC_PUBLIC_KEY) {
            return Err(SigningKeyError::WrongKind(
                "a key of another kind than elliptic-curve P-256",
            ));
        }
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der)
            .map_err(|_| SigningKeyError::Damaged)?;
        let public: PublicKeyX509Der<'_> = pair
            .public_key()
            .as_der()
            .map_err(|_| SigningKeyError::Damaged)?;
        Ok(Self {
            fingerprint: token::sha256_fingerprint(public.as_ref()),
            encoding_key: EncodingKey::from_ec_der(der),
        })
    }

    /// The ECDSA signature of SHA-256, in DER.
    pub(super) fn sign_der(&self, message: &[u8]) -> Vec<u8> {
        let pkcs8 = self.encoding_key.as_bytes();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8);
        let pair = pair.expect("it was parsed before");
        let signature = pair.sign(&SystemRandom::new(), message);
        signature.expect("a parsed key signs").as_ref().to_vec()
    }

    /// The key's fingerprint: the first 16 hex digits of the SHA-256 of the public key in DER. `openssl pkey -in key.p8
    /// -pubout -outform DER | sha256sum` prints a digest that begins with it.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.fingerprint)
    }
}

/// Restores a PEM file that was changed when it was copied: joined to one line with `\\n` or spaces as line ends,
/// quoted, indented, encoded in base64 once or twice, without its first and last line, encoded in UTF-16, or with a byte
/// order mark. Other files are returned unchanged.
fn restore_pem(file: &[u8]) -> Zeroizing<Vec<u8>> {
    let text = Zeroizing::new(decode_utf16(file));
    let text = text.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(&text);
    let is_around = |byte: &u8| byte.is_ascii_whitespace() || matches!(byte, b'"' | b'\'' | b',');
    let start = text.iter().position(|byte| !is_around(byte));
    let end = text.iter().rposition(|byte| !is_around(byte));
    let Some((start, end)) = start.zip(end) else {
        return Zeroizing::default();
    };
    let text = &text[start..=end];
    if let Some(inner) = decode_wrapped_pem(text) {
        return restore_pem(&inner);
    }
    match std::str::from_utf8(text).ok().and_then(rebuild_pem) {
        Some(pem) => Zeroizing::new(pem.into_bytes()),
        None => Zeroizing::new(text.to_vec()),
    }
}

/// Converts UTF-16 of either byte order to UTF-8. Other files are returned unchanged.
fn decode_utf16(file: &[u8]) -> Vec<u8> {
    let from_pair: fn([u8; 2]) -> u16 = match file {
        [0xFF, 0xFE, ..] => u16::from_le_bytes,
        [0xFE, 0xFF, ..] => u16::from_be_bytes,
        [first, 0, ..] if first.is_ascii() && *first != 0 => u16::from_le_bytes,
        [0, first, ..] if first.is_ascii() && *first != 0 => u16::from_be_bytes,
        _ => return file.to_vec(),
    };
    let units = file
        .chunks_exact(2)
        .map(|pair| from_pair([pair[0], pair[1]]));
    let text: String = char::decode_utf16(units)
        .map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER))
        .collect();
    text.trim_start_matches('\u{feff}').as_bytes().to_vec()
}

/// Decodes a file that was encoded in base64: a PEM file, base64 of one, or the key itself, which is the text between the
/// lines of a PEM file.
fn decode_wrapped_pem(text: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let mut packed = Zeroizing::new(text.to_vec());
    packed.retain(|byte| !byte.is_ascii_whitespace());
    let inner = Zeroizing::new(BASE64_WITH_ANY_PADDING.decode(&*packed).ok()?);
    if is_p256_pkcs8(&inner) {
        let body = Zeroizing::new(STANDARD.encode(&*inner));
        let label = "PRIVATE KEY";
        let pem = format!("-----BEGIN {label}-----{}-----END {label}-----", &*body);
        return Some(Zeroizing::new(pem.into_bytes()));
    }
    let decoded = Zeroizing::new(decode_utf16(&inner));
    let is_pem = decoded.windows(PEM_BEGIN.len()).any(|at| at == PEM_BEGIN);
    (is_pem || decode_wrapped_pem(&decoded).is_some()).then_some(inner)
}

fn is_p256_pkcs8(der: &[u8]) -> bool {
    let head = &der[..der.len().min(MAX_PKCS8_HEADER_BYTES)];
    let names = |identifier: &[u8]| head.windows(identifier.len()).any(|at| at == identifier);
    head.starts_with(&[0x30]) && names(&OID_EC_PUBLIC_KEY) && names(&OID_PRIME256V1)
}

/// Rebuilds the line ends of a PEM file with one block. `None` for any other text.
fn rebuild_pem(text: &str) -> Option<String> {
    let (_, rest) = text.split_once("-----BEGIN ")?;
    let (label, rest) = rest.split_once("-----")?;
    let (body, after) = rest.split_once(&format!("-----END {label}-----"))?;
    if after.contains("-----BEGIN ") || body.contains(':') {
        return None;
    }
    let body = Zeroizing::new(body.replace("\\r", "").replace("\\n", ""));
    let mut pem = format!("-----BEGIN {label}-----\n");
    let mut length = 0;
    for letter in body.chars().filter(|letter| !letter.is_whitespace()) {
        pem.push(letter);
        length += 1;
        if length % PEM_LINE_CHARS == 0 {
            pem.push('\n');
        }
    }
    if length % PEM_LINE_CHARS != 0 {
        pem.push('\n');
    }
    pem.push_str("-----END ");
    pem.push_str(label);
    pem.push_str("-----\n");
    Some(pem)
}

/// Detects common files that are not a plain PEM key.
fn detect_wrong_file(file: &[u8]) -> Option<SigningKeyError> {
    let contains = |text: &[u8]| file.windows(text.len()).any(|at| at == text);
    if file.starts_with(b"{") {
        Some(SigningKeyError::WrongKind(
            "JSON, perhaps a Google service account's key file",
        ))
    } else if file.starts_with(&[0x30]) && !file.is_ascii() {
        Some(SigningKeyError::Convertible {
            what: "a binary file, not PEM",
            how: FROM_DER_COMMAND,
        })
    } else if contains(b"ENCRYPTED") {
        Some(SigningKeyError::Convertible {
            what: "a key that is encrypted with a password",
            how: DECRYPT_COMMAND,
        })
    } else if contains(PEM_BEGIN) && contains(b"-----END") {
        None
    } else if contains(b"END PRIVATE KEY") || contains(b"PRIVATE KEY") && !contains(PEM_BEGIN) {
        Some(SigningKeyError::LinesChanged)
    } else if contains(PEM_BEGIN) {
        Some(SigningKeyError::CutOff)
    } else {
        None
    }
}

/// Signs client tokens, and caches each until shortly before it expires. Clones share the cache.
#[derive(Clone)]
pub struct ClientTokenSource {
    clock: Clock,
    token_cache: TokenCache,
}

impl ClientTokenSource {
    /// `clock` gives the time of signing.
    pub fn new(clock: Clock) -> Self {
        Self {
            token_cache: TokenCache::new(clock.clone(), TOKEN_RENEWAL_MARGIN),
            clock,
        }
    }

    /// A token that is valid for at least two more minutes. Signing takes microseconds, so it does not matter if two
    /// concurrent callers both sign.
    pub fn get_token(&self, tenant: &TenantId, credentials: &AppleCredentials) -> AccessToken {
        let owner = (tenant.clone(), credentials.identity_digest());
        self.token_cache.get(&owner).unwrap_or_else(|| {
            let now = self.clock.now();
            let token = AccessToken::new(
                credentials.sign_client_token(now),
                now.plus(CLIENT_TOKEN_TTL),
            );
            self.token_cache.insert(owner, &token);
            token
        })
    }

    /// Removes `token` from the cache because Apple refused it. A newer token is kept.
    pub fn evict_token(
        &self,
        tenant: &TenantId,
        credentials: &AppleCredentials,
        token: &AccessToken,
    ) {
        let owner = (tenant.clone(), credentials.identity_digest());
        self.token_cache.remove_refused(&owner, token);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use aws_lc_rs::encoding::{AsBigEndian as _, EcPrivateKeyBin, Pkcs8V1Der};
    use aws_lc_rs::rsa;
    use aws_lc_rs::signature::ECDSA_P384_SHA384_FIXED_SIGNING;
    use serde_json::Value;

    use super::*;
    use crate::crypto::ExposeSecret as _;

    fn generate() -> EcdsaKeyPair {
        EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("a key")
    }

    /// A key file with a key made for this run.
    pub(crate) fn key_file() -> String {
        let pkcs8 = generate().to_pkcs8v1().expect("encodes");
        pem("PRIVATE KEY", pkcs8.as_ref())
    }

    pub(crate) fn test_credentials() -> AppleCredentials {
        AppleCredentials {
            bundle_id: "com.example.app".to_owned(),
            key_id: "ABCDE12345".to_owned(),
            issuer_id: "57246542-96fe-1a63-e053-0824d011072a".to_owned(),
            key: SigningKey::parse(key_file().as_bytes()).expect("good"),
            environment: EnvironmentChoice::Auto,
            app_apple_id: Some(1_234_567_890),
        }
    }

    fn pem(label: &str, der: &[u8]) -> String {
        let base64 = STANDARD.encode(der);
        let lines: Vec<&str> = base64
            .as_bytes()
            .chunks(64)
            .map(|line| std::str::from_utf8(line).expect("base64 is ASCII"))
            .collect();
        format!(
            "-----BEGIN {label}-----\n{}\n-----END {label}-----\n",
            lines.join("\n")
        )
    }

    fn parse_fingerprint(file: impl AsRef<[u8]>) -> Result<String, SigningKeyError> {
        SigningKey::parse(file.as_ref()).map(|key| key.fingerprint)
    }

    #[test]
    fn a_good_file_is_read_and_prints_no_secret() {
        let file = key_file();
        let key = SigningKey::parse(file.as_bytes()).expect("good");
        assert_eq!(key.fingerprint().len(), 16);
        assert_eq!(
            format!("{key:?}"),
            format!("SigningKey({})", key.fingerprint)
        );
        let marked = [b"\xEF\xBB\xBF".as_slice(), file.as_bytes(), b"\r\n\r\n"].concat();
        let same = Ok(key.fingerprint);
        assert_eq!(parse_fingerprint(marked), same, "Windows' byte order mark");
        assert_eq!(parse_fingerprint(file.replace('\n', "\r\n")), same);
        assert_eq!(parse_fingerprint(file.trim_end()), same);
    }

    /// What places for secrets and editors make of the file, which App Store Connect gives only once.
    #[test]
    fn a_file_that_was_changed_in_copying_is_read() {
        let file = key_file();
        let same = parse_fingerprint(&file);
        assert!(same.is_ok());
        let utf16 = |to_bytes: fn(u16) -> [u8; 2], mark: &str| -> Vec<u8> {
            let text = format!("{mark}{file}");
            text.encode_utf16().flat_map(to_bytes).collect()
        };
        for (name, changed) in [
            ("\\n written out", file.replace('\n', "\\n").into_bytes()),
            (
                "\\r\\n written out",
                file.replace('\n', "\\r\\n").into_bytes(),
            ),
            ("blanks for line ends", file.replace('\n', " ").into_bytes()),
            ("no line ends", file.replace('\n', "").into_bytes()),
            ("in quotes", format!("\"{file}\"\n").into_bytes()),
            (
                "in quotes, one line",
                format!("'{}'", file.replace('\n', "\\n")).into_bytes(),
            ),
            ("indented", file.replace('\n', "\n    ").into_bytes()),
            ("base64", STANDARD.encode(&file).into_bytes()),
            (
                "base64 twice",
                STANDARD.encode(STANDARD.encode(&file)).into_bytes(),
            ),
            (
                "base64 in lines",
                STANDARD.encode(&file).replace("LS0", "\nLS0").into_bytes(),
            ),
            (
                "base64 of UTF-16",
                STANDARD
                    .encode(utf16(u16::to_le_bytes, "\u{feff}"))
                    .into_bytes(),
            ),
            (
                "base64 without its padding",
                STANDARD
                    .encode(&file)
                    .trim_end_matches('=')
                    .to_owned()
                    .into_bytes(),
            ),
            (
                "without the first and the last line",
                file.lines()
                    .filter(|line| !line.starts_with('-'))
                    .collect::<Vec<_>>()
                    .join("\n")
                    .into_bytes(),
            ),
            (
                "in a file of variables",
                format!("APPLE_KEY=\"{}\"\n", file.replace('\n', "\\n")).into_bytes(),
            ),
            (
                "UTF-16, little end first",
                utf16(u16::to_le_bytes, "\u{feff}"),
            ),
            ("UTF-16, big end first", utf16(u16::to_be_bytes, "\u{feff}")),
            ("UTF-16 without a mark", utf16(u16::to_le_bytes, "")),
        ] {
            assert_eq!(parse_fingerprint(changed), same, "{name}");
        }
    }

    /// The three ways to write the same key in PKCS#8: with the curve named twice, as Apple does; once; and without
    /// the public key.
    #[test]
    fn every_pkcs8_encoding_of_a_p256_key_is_read() {
        let pair = generate();
        let secret: EcPrivateKeyBin<'_> = pair.private_key().as_be_bytes().expect("encodes");
        let wrap = |tag: u8, content: &[u8]| {
            let length = u8::try_from(content.len()).expect("short");
            let head = if length < 0x80 {
                vec![tag, length]
            } else {
                vec![tag, 0x81, length]
            };
            [head, content.to_vec()].concat()
        };
        let point = [&[0], pair.public_key().as_ref()].concat();
        let (curve, kind) = (wrap(0x06, &OID_PRIME256V1), wrap(0x06, &OID_EC_PUBLIC_KEY));
        let (named, public) = (wrap(0xa0, &curve), wrap(0xa1, &wrap(0x03, &point)));
        let version = [0x02, 0x01];
        let mut fingerprints = Vec::new();
        for rest in [
            [named.clone(), public.clone()].concat(),
            public,
            named,
            Vec::new(),
        ] {
            let inner = [&version[..], &[1], &wrap(0x04, secret.as_ref()), &rest].concat();
            let outer = [
                &version[..],
                &[0],
                &wrap(0x30, &[&*kind, &curve].concat()),
                &wrap(0x04, &wrap(0x30, &inner)),
            ]
            .concat();
            fingerprints
                .push(parse_fingerprint(pem("PRIVATE KEY", &wrap(0x30, &outer))).expect("good"));
        }
        fingerprints.dedup();
        assert_eq!(fingerprints.len(), 1, "one key has one fingerprint");
    }

    #[test]
    fn each_wrong_file_has_its_message() {
        use SigningKeyError::{
            Convertible, CutOff, Damaged, Empty, LinesChanged, NotPem, TooLarge, WrongKind,
        };
        let good = key_file();
        let huge = format!("{good}{}", "#".repeat(MAX_FILE_BYTES));
        let pkcs8 = generate().to_pkcs8v1().expect("encodes");
        let p384 = EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING).expect("a key");
        let p384 = pem("PRIVATE KEY", p384.to_pkcs8v1().expect("encodes").as_ref());
        let rsa = rsa::KeyPair::generate(rsa::KeySize::Rsa2048).expect("a key");
        let rsa: Pkcs8V1Der<'_> = rsa.as_der().expect("encodes");
        let ed25519 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("a key");
        let mut altered = pkcs8.as_ref().to_vec();
        *altered.last_mut().expect("not empty") ^= 1;
        let sec1 = Convertible {
            what: "an elliptic-curve key in the SEC1 form, not PKCS#8",
            how: TO_PKCS8_COMMAND,
        };
        let encrypted = Convertible {
            what: "a key that is encrypted with a password",
            how: DECRYPT_COMMAND,
        };
        let label = "EC PRIVATE KEY-----";
        let legacy =
            &format!("-----BEGIN {label}\nProc-Type: 4,ENCRYPTED\n\nAAAA\n-----END {label}\n");
        for (file, expected) in [
            (String::new(), Empty),
            (" \r\n\t".to_owned(), Empty),
            (huge, TooLarge),
            (pem("EC PRIVATE KEY", b"x"), sec1),
            (
                // As `openssl ecparam -genkey` writes it.
                pem("EC PARAMETERS", &OID_PRIME256V1) + &pem("EC PRIVATE KEY", b"x"),
                sec1,
            ),
            (pem("ENCRYPTED PRIVATE KEY", b"x"), encrypted),
            (legacy.to_owned(), encrypted),
            (pem("RSA PRIVATE KEY", b"x"), WrongKind("an RSA key")),
            (pem("PRIVATE KEY", rsa.as_ref()), WrongKind("an RSA key")),
            (pem("PUBLIC KEY", b"x"), WrongKind("a public key")),
            (pem("CERTIFICATE", b"x"), WrongKind("a certificate")),
            (
                pem("CERTIFICATE REQUEST", b"x"),
                WrongKind("a request for a certificate"),
            ),
            (pem("X509 CRL", b"x"), WrongKind("not a private key")),
            (
                p384,
                WrongKind("an elliptic-curve key on another curve than P-256"),
            ),
            (
                ed25519.serialize_pem(),
                WrongKind("a key of another kind than elliptic-curve P-256"),
            ),
            (pem("PRIVATE KEY", b"x"), Damaged),
            (pem("PRIVATE KEY", b""), Damaged),
            (pem("PRIVATE KEY", &altered), Damaged),
            (pem("PRIVATE KEY", &pkcs8.as_ref()[..100]), Damaged),
            (
                "{\"type\":\"service_account\"}".to_owned(),
                WrongKind("JSON, perhaps a Google service account's key file"),
            ),
            ("garbage".to_owned(), NotPem),
            (good.replace("-----", "\u{2014}"), LinesChanged),
            (good.replace("-----END", "END"), LinesChanged),
            (good.replace("-----BEGIN", "BEGIN"), LinesChanged),
            (STANDARD.encode(b"no key at all"), NotPem),
            (good[..150].to_owned(), CutOff),
            (pem("SOMETHING", b"x"), NotPem),
        ] {
            assert_eq!(parse_fingerprint(&file), Err(expected), "{expected}");
        }
        assert_eq!(
            parse_fingerprint(pkcs8.as_ref()),
            Err(Convertible {
                what: "a binary file, not PEM",
                how: FROM_DER_COMMAND
            })
        );
    }

    #[test]
    fn environments_have_two_spellings_and_xcode_is_none() {
        for environment in [AppleEnvironment::Production, AppleEnvironment::Sandbox] {
            assert_eq!(
                AppleEnvironment::from_apple_str(environment.as_apple_str()),
                Some(environment)
            );
            assert_eq!(
                serde_json::to_value(environment).expect("writes"),
                environment.as_str()
            );
        }
        for word in ["production", "Xcode", "LocalTesting", ""] {
            assert_eq!(AppleEnvironment::from_apple_str(word), None, "{word}");
        }
        for choice in [
            EnvironmentChoice::Auto,
            EnvironmentChoice::Production,
            EnvironmentChoice::Sandbox,
        ] {
            assert_eq!(EnvironmentChoice::parse(choice.as_str()), Some(choice));
        }
        assert_eq!(EnvironmentChoice::parse("Production"), None);
        assert!(EnvironmentChoice::Auto.allows_environment(AppleEnvironment::Sandbox));
        assert!(!EnvironmentChoice::Production.allows_environment(AppleEnvironment::Sandbox));
    }

    #[test]
    fn a_client_token_is_what_apple_asks_for() {
        let credentials = test_credentials();
        let now = Timestamp::from_millis(1_775_830_930_999);
        let token = credentials.sign_client_token(now);
        let pkcs8 = credentials.key.encoding_key.as_bytes();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8).expect("good");
        let key = jsonwebtoken::DecodingKey::from_ec_der(pair.public_key().as_ref());
        let mut rules = jsonwebtoken::Validation::new(jsonwebtoken::Algorithm::ES256);
        rules.set_audience(&["appstoreconnect-v1"]);
        rules.validate_exp = false;
        let read =
            jsonwebtoken::decode::<Value>(token.expose_secret(), &key, &rules).expect("verifies");
        assert_eq!(read.header.kid.as_deref(), Some("ABCDE12345"));
        assert_eq!(read.header.typ.as_deref(), Some("JWT"));
        assert_eq!(
            read.claims,
            json!({
                "iss": "57246542-96fe-1a63-e053-0824d011072a",
                "iat": 1_775_830_870,
                "exp": 1_775_832_130,
                "aud": "appstoreconnect-v1",
                "bid": "com.example.app",
            })
        );
        assert!(!format!("{token:?}").contains("ey"));
    }

    #[test]
    fn a_client_token_is_signed_once_and_renewed_early() {
        let clock = Clock::fixed(Timestamp::from_millis(0));
        let tokens = ClientTokenSource::new(clock.clone());
        let (tenant, credentials) = (TenantId::mint(clock.now()), test_credentials());
        let first = tokens.get_token(&tenant, &credentials);
        assert_eq!(
            tokens.get_token(&tenant, &credentials).secret(),
            first.secret()
        );
        assert!(!format!("{first:?}").contains("ey"));
        clock.advance(
            CLIENT_TOKEN_TTL.saturating_sub(TOKEN_RENEWAL_MARGIN + Duration::from_millis(1)),
        );
        assert_eq!(
            tokens.get_token(&tenant, &credentials).secret(),
            first.secret()
        );
        clock.advance(Duration::from_millis(1));
        let second = tokens.get_token(&tenant, &credentials);
        assert_ne!(second.secret(), first.secret());

        tokens.evict_token(&tenant, &credentials, &first);
        let kept = tokens.get_token(&tenant, &credentials);
        assert_eq!(kept.secret(), second.secret(), "the newer one stays");
        tokens.evict_token(&tenant, &credentials, &second);
        assert_ne!(
            tokens.get_token(&tenant, &credentials).secret(),
            second.secret()
        );
    }

    #[test]
    fn other_credentials_have_another_token() {
        let now = Timestamp::from_millis(0);
        let tokens = ClientTokenSource::new(Clock::fixed(now));
        let (tenant, neighbour) = (TenantId::mint(now), TenantId::mint(now));
        let mut credentials = test_credentials();
        let mut seen = vec![tokens.get_token(&tenant, &credentials)];
        seen.push(tokens.get_token(&neighbour, &credentials));
        credentials.bundle_id.push_str(".other");
        seen.push(tokens.get_token(&tenant, &credentials));
        credentials.key_id.replace_range(..1, "Z");
        seen.push(tokens.get_token(&tenant, &credentials));
        credentials.issuer_id.replace_range(..1, "6");
        seen.push(tokens.get_token(&tenant, &credentials));
        credentials.key = SigningKey::parse(key_file().as_bytes()).expect("good");
        seen.push(tokens.get_token(&tenant, &credentials));
        let mut secrets: Vec<&str> = seen.iter().map(AccessToken::secret).collect();
        secrets.sort_unstable();
        secrets.dedup();
        assert_eq!(secrets.len(), 6);
        credentials.environment = EnvironmentChoice::Sandbox;
        credentials.app_apple_id = None;
        let same = tokens.get_token(&tenant, &credentials);
        assert_eq!(Some(same.secret()), seen.last().map(AccessToken::secret));
    }
}
