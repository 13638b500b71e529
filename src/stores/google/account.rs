//! A tenant's Google service account, from its JSON key file.
//!
//! Guarantees: a key file is validated completely when it is set, so that later only Google can refuse it. The private
//! key is never printed, and is wiped from memory when the account is dropped. Assertions are only sent to the
//! configured token endpoint, whatever the file names.

use std::fmt;
use std::time::Duration;

use aws_lc_rs::rsa::KeyPair;
use aws_lc_rs::signature::KeyPair as _;
use der::asn1::OctetStringRef;
use der::{Decode as _, Reader as _, SliceReader};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rustls::pki_types::pem::{PemObject as _, SectionKind};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};
use url::Url;
use x509_cert::spki::AlgorithmIdentifierRef;
use zeroize::Zeroizing;

use crate::base::clock::Timestamp;
use crate::crypto::{SecretString, token};

/// Google's token endpoint: the default of `GOOGLE_TOKEN_URL`.
pub const TOKEN_URL: &str = "https://oauth2.googleapis.com/token";

/// The maximum size of a key file in bytes. Google's files have about 2.4 KB.
const MAX_FILE_BYTES: usize = 64 * 1024;
/// How long an assertion is valid: the longest that Google allows.
const ASSERTION_TTL: Duration = Duration::from_hours(1);

/// A Google service account that can sign.
pub struct GoogleServiceAccount {
    client_email: String,
    key_id: String,
    key: EncodingKey,
    fingerprint: String,
    token_uri: Option<String>,
}

/// Why a file is not a service account's key file. The message names the kind of file where it can be detected, and
/// never repeats its content.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ServiceAccountError {
    /// The file is empty or contains only white space.
    #[error("the file is empty")]
    Empty,
    /// The file is larger than [`MAX_FILE_BYTES`].
    #[error(
        "the file is larger than {MAX_FILE_BYTES} bytes, so it is not a service account's key file"
    )]
    TooLarge,
    /// The file is of another kind, which is named.
    #[error("this is {0}. {DOWNLOAD}")]
    WrongKind(&'static str),
    /// The file is not valid JSON.
    #[error("the file is not JSON (line {line}, column {column}). {DOWNLOAD}")]
    NotJson {
        /// The line of the syntax error, counted from 1.
        line: usize,
        /// The column of the syntax error, counted from 1.
        column: usize,
    },
    /// Its `type` is not `service_account`.
    #[error("the file's \"type\" must be \"service_account\". {DOWNLOAD}")]
    WrongType,
    /// A field is missing, empty or not a string.
    #[error(
        "the file has no usable \"{0}\". Use the file exactly as Google Cloud gave it, or download a new one"
    )]
    InvalidField(&'static str),
    /// The private key is not an RSA key in PKCS#8 and PEM, or is damaged.
    #[error(
        "the file's \"private_key\" {0}. Use the file exactly as Google Cloud gave it, or download a new one"
    )]
    InvalidPrivateKey(&'static str),
}

const DOWNLOAD: &str = "What is needed is a service account's key file: Google Cloud console, IAM & Admin, Service \
    Accounts, Keys, Add key, JSON";

/// The fields of a key file that are used, and fields by which other files are recognised.
#[derive(Deserialize)]
struct ServiceAccountFile {
    r#type: Option<Value>,
    client_email: Option<Value>,
    private_key_id: Option<Value>,
    private_key: Option<Value>,
    token_uri: Option<Value>,
    installed: Option<IgnoredAny>,
    web: Option<IgnoredAny>,
    project_info: Option<IgnoredAny>,
}

impl GoogleServiceAccount {
    /// Reads the JSON key file that Google Cloud gives for a service account.
    pub fn parse(file: &[u8]) -> Result<Self, ServiceAccountError> {
        let file = file
            .strip_prefix(b"\xEF\xBB\xBF")
            .unwrap_or(file)
            .trim_ascii();
        if file.is_empty() {
            return Err(ServiceAccountError::Empty);
        }
        if file.len() > MAX_FILE_BYTES {
            return Err(ServiceAccountError::TooLarge);
        }
        if let Some(what) = detect_wrong_file(file) {
            return Err(ServiceAccountError::WrongKind(what));
        }
        let read: ServiceAccountFile =
            serde_json::from_slice(file).map_err(|error| match error.classify() {
                serde_json::error::Category::Data => ServiceAccountError::WrongType,
                _ => ServiceAccountError::NotJson {
                    line: error.line(),
                    column: error.column(),
                },
            })?;
        if read.installed.is_some() || read.web.is_some() {
            return Err(ServiceAccountError::WrongKind("an OAuth client's file"));
        }
        if read.project_info.is_some() {
            return Err(ServiceAccountError::WrongKind(
                "google-services.json, the app's Firebase settings",
            ));
        }
        match read.r#type.as_ref().and_then(Value::as_str) {
            Some("service_account") => {}
            Some("authorized_user") => {
                return Err(ServiceAccountError::WrongKind("a person's gcloud login"));
            }
            Some("external_account" | "impersonated_service_account") => {
                return Err(ServiceAccountError::WrongKind(
                    "a pointer to a service account without its key",
                ));
            }
            _ => return Err(ServiceAccountError::WrongType),
        }
        let client_email = require_text("client_email", read.client_email)?;
        if !client_email.contains('@') {
            return Err(ServiceAccountError::InvalidField("client_email"));
        }
        let key_id = require_text("private_key_id", read.private_key_id)?;
        let pem = Zeroizing::new(require_text("private_key", read.private_key)?);
        let (key, fingerprint) =
            parse_private_key(&pem).map_err(ServiceAccountError::InvalidPrivateKey)?;
        Ok(Self {
            client_email,
            key_id,
            key,
            fingerprint,
            token_uri: require_text("token_uri", read.token_uri).ok(),
        })
    }

    /// The account's address, such as `attesto@project.iam.gserviceaccount.com`.
    pub fn client_email(&self) -> &str {
        &self.client_email
    }

    /// The key's fingerprint: the first 16 hex digits of the SHA-256 of the public key (PKCS#1, DER).
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// A digest of the claims of an assertion that identify the account, and of the key that signs it. A key may belong
    /// to several accounts. Two files with the same digest get the same answers from Google.
    pub(super) fn identity_digest(&self) -> [u8; 32] {
        // Encoded as JSON, so that two different lists never give the same text.
        let parts = json!([self.client_email, self.key_id, self.fingerprint]);
        token::sha256(parts.to_string().as_bytes())
    }

    /// The token endpoint that the file names. It is only compared for a warning and never called: otherwise the author
    /// of a file could choose where signed assertions are sent.
    pub(crate) fn token_uri(&self) -> Option<&str> {
        self.token_uri.as_deref()
    }

    /// Signs an assertion with which this account requests an access token for `scope` from `audience` (RFC 7523,
    /// RS256).
    pub(super) fn sign_assertion(
        &self,
        scope: &str,
        audience: &Url,
        now: Timestamp,
    ) -> SecretString {
        let header = Header {
            kid: Some(self.key_id.clone()),
            ..Header::new(Algorithm::RS256)
        };
        let claims = json!({
            "iss": self.client_email,
            "scope": scope,
            "aud": audience.as_str(),
            "iat": now.as_secs(),
            "exp": now.plus(ASSERTION_TTL).as_secs(),
        });
        jsonwebtoken::encode(&header, &claims, &self.key)
            .expect("a key that was accepted signs")
            .into()
    }
}

impl fmt::Debug for GoogleServiceAccount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "GoogleServiceAccount({}, key {})",
            self.client_email, self.fingerprint
        )
    }
}

/// Detects the kind of a file that is not JSON by its first bytes.
fn detect_wrong_file(file: &[u8]) -> Option<&'static str> {
    if file.starts_with(b"-----BEGIN") {
        Some("a bare key or certificate")
    } else if file.starts_with(&[0x30, 0x82]) {
        Some("a binary key file, perhaps the old .p12 kind")
    } else if file.starts_with(b"AIza") {
        Some("an API key")
    } else {
        None
    }
}

fn require_text(name: &'static str, value: Option<Value>) -> Result<String, ServiceAccountError> {
    match value {
        Some(Value::String(text)) if !text.trim().is_empty() => Ok(text),
        _ => Err(ServiceAccountError::InvalidField(name)),
    }
}

/// Parses the key and computes its fingerprint.
fn parse_private_key(pem: &str) -> Result<(EncodingKey, String), &'static str> {
    if pem.contains("\\n") {
        return Err("has its line breaks escaped twice");
    }
    if pem.contains("ENCRYPTED") {
        return Err("is encrypted with a password");
    }
    let (kind, der) = <(SectionKind, Vec<u8>)>::from_pem_slice(pem.as_bytes())
        .map_err(|_| "is not a PEM block labelled PRIVATE KEY")?;
    let der = Zeroizing::new(der);
    match kind {
        SectionKind::PrivateKey => {}
        SectionKind::RsaPrivateKey => return Err("is a PKCS#1 key, not PKCS#8"),
        SectionKind::EcPrivateKey => return Err("is an elliptic-curve key, not RSA"),
        SectionKind::PublicKey => return Err("is a public key"),
        SectionKind::Certificate => return Err("is a certificate"),
        _ => return Err("is not a private key"),
    }
    let not_intact = "is not an intact RSA key of 2048 to 8192 bits";
    let pair = KeyPair::from_pkcs8(&der).map_err(|_| not_intact)?;
    let key = EncodingKey::from_rsa_der(unwrap_pkcs8(&der).map_err(|_| not_intact)?);
    Ok((key, token::sha256_fingerprint(pair.public_key().as_ref())))
}

/// The PKCS#1 key inside a PKCS#8 key (RFC 5208), which is the form that `jsonwebtoken` needs. The key is borrowed, so
/// that no copy stays in memory.
fn unwrap_pkcs8(der: &[u8]) -> der::Result<&[u8]> {
    SliceReader::new(der)?.sequence(|fields| {
        u8::decode(fields)?;
        AlgorithmIdentifierRef::decode(fields)?;
        let key = <&OctetStringRef>::decode(fields)?;
        // Skips attributes, which some tools add.
        fields.read_slice(fields.remaining_len())?;
        Ok(key.as_bytes())
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use aws_lc_rs::encoding::{AsDer as _, Pkcs8V1Der};
    use aws_lc_rs::rsa::KeySize;
    use aws_lc_rs::signature::{RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};
    use base64::Engine as _;
    use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};

    use crate::crypto::ExposeSecret as _;

    /// A key file with a key made for this run.
    pub(crate) fn key_file() -> Value {
        let key = KeyPair::generate(KeySize::Rsa2048).expect("a key");
        let der: Pkcs8V1Der<'_> = key.as_der().expect("encodes");
        json!({
            "type": "service_account",
            "project_id": "project",
            "private_key_id": "0123456789abcdef",
            "private_key": pem("PRIVATE KEY", der.as_ref()),
            "client_email": "attesto@project.iam.example",
            "client_id": "1",
            "token_uri": "https://oauth2.googleapis.com/token",
        })
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

    fn parse(file: &Value) -> Result<GoogleServiceAccount, ServiceAccountError> {
        GoogleServiceAccount::parse(file.to_string().as_bytes())
    }

    #[test]
    fn a_good_file_is_read_and_prints_no_secret() {
        let file = key_file();
        let account = parse(&file).expect("good");
        assert_eq!(account.client_email(), "attesto@project.iam.example");
        assert_eq!(
            account.token_uri(),
            Some("https://oauth2.googleapis.com/token")
        );
        assert_eq!(account.fingerprint().len(), 16);
        let printed = format!(
            "GoogleServiceAccount(attesto@project.iam.example, key {})",
            account.fingerprint()
        );
        assert_eq!(format!("{account:?}"), printed);
        let with_mark = [
            b"\xEF\xBB\xBF".as_slice(),
            file.to_string().as_bytes(),
            b"\r\n",
        ]
        .concat();
        assert!(
            GoogleServiceAccount::parse(&with_mark).is_ok(),
            "Windows' byte order mark"
        );
    }

    #[test]
    fn another_account_with_the_same_key_is_another_identity() {
        let file = key_file();
        let identity = |file: &Value| parse(file).expect("good").identity_digest();
        assert_eq!(identity(&file), identity(&file));
        for field in ["client_email", "private_key_id"] {
            let mut other = file.clone();
            other[field] = json!(format!("x{}", file[field].as_str().expect("text")));
            assert_ne!(identity(&other), identity(&file), "{field}");
        }
    }

    #[test]
    fn what_is_not_json_is_named() {
        use ServiceAccountError::{Empty, NotJson, TooLarge, WrongKind, WrongType};
        let huge = vec![b'x'; MAX_FILE_BYTES + 1];
        for (file, expected) in [
            (b"".as_slice(), Empty),
            (b" \n\t", Empty),
            (&huge, TooLarge),
            (
                concat!("-----BEGIN ", "PRIVATE KEY-----\n").as_bytes(),
                WrongKind("a bare key or certificate"),
            ),
            (
                b"0\x82\x0a\x41\x02\x01\x03",
                WrongKind("a binary key file, perhaps the old .p12 kind"),
            ),
            (b"AIzaSyExample", WrongKind("an API key")),
            (b"{\"type\": ", NotJson { line: 1, column: 8 }),
            (b"hello", NotJson { line: 1, column: 1 }),
            (b"[]", WrongType),
            (b"\"text\"", WrongType),
            (b"{}", WrongType),
            (b"{\"type\":7}", WrongType),
            (b"{\"type\":\"other\"}", WrongType),
            (
                b"{\"type\":\"authorized_user\"}",
                WrongKind("a person's gcloud login"),
            ),
            (
                b"{\"type\":\"external_account\"}",
                WrongKind("a pointer to a service account without its key"),
            ),
            (b"{\"installed\":{}}", WrongKind("an OAuth client's file")),
            (b"{\"web\":{}}", WrongKind("an OAuth client's file")),
            (
                b"{\"project_info\":{},\"client\":[]}",
                WrongKind("google-services.json, the app's Firebase settings"),
            ),
        ] {
            let found = GoogleServiceAccount::parse(file).map(|account| account.client_email);
            assert_eq!(
                found,
                Err(expected),
                "{}",
                String::from_utf8_lossy(&file[..file.len().min(40)])
            );
        }
    }

    #[test]
    fn a_field_that_is_missing_or_wrong_is_named() {
        let good = key_file();
        for (name, wrong) in [
            (
                "client_email",
                vec![
                    Value::Null,
                    json!(""),
                    json!(" "),
                    json!(7),
                    json!("no-at-sign"),
                ],
            ),
            ("private_key_id", vec![Value::Null, json!(""), json!({})]),
            ("private_key", vec![Value::Null, json!(""), json!(["x"])]),
        ] {
            for value in wrong {
                let mut file = good.clone();
                file[name] = value;
                let found = parse(&file).map(|account| account.client_email);
                assert_eq!(
                    found,
                    Err(ServiceAccountError::InvalidField(name)),
                    "{}",
                    file[name]
                );
            }
        }
        let mut file = good;
        file["token_uri"] = Value::Null;
        assert_eq!(parse(&file).expect("still good").token_uri(), None);
    }

    #[test]
    fn a_key_that_cannot_sign_here_is_explained() {
        let good = key_file();
        let intact = good["private_key"].as_str().expect("text").to_owned();
        let elliptic = rcgen::KeyPair::generate().expect("a key").serialize_pem();
        let mut broken = intact.clone();
        broken.replace_range(200..204, "AAAA");
        let not_pem = "is not a PEM block labelled PRIVATE KEY";
        let not_rsa = "is not an intact RSA key of 2048 to 8192 bits";
        for (key, reason) in [
            (
                intact.replace('\n', "\\n"),
                "has its line breaks escaped twice",
            ),
            (
                pem("ENCRYPTED PRIVATE KEY", b"x"),
                "is encrypted with a password",
            ),
            (pem("RSA PRIVATE KEY", b"x"), "is a PKCS#1 key, not PKCS#8"),
            (
                pem("EC PRIVATE KEY", b"x"),
                "is an elliptic-curve key, not RSA",
            ),
            (pem("PUBLIC KEY", b"x"), "is a public key"),
            (pem("CERTIFICATE", b"x"), "is a certificate"),
            (pem("PRIVATE KEY", b"x"), not_rsa),
            (elliptic, not_rsa),
            (broken, not_rsa),
            ("garbage".to_owned(), not_pem),
            (intact[..300].to_owned(), not_pem),
        ] {
            let mut file = good.clone();
            file["private_key"] = json!(key);
            let found = parse(&file).map(|account| account.client_email);
            assert_eq!(found, Err(ServiceAccountError::InvalidPrivateKey(reason)));
        }
    }

    #[test]
    fn an_assertion_is_what_google_asks_for() {
        let file = key_file();
        let audience = Url::parse("https://oauth2.googleapis.com/token").expect("a URL");
        let now = Timestamp::from_millis(1_775_830_930_999);
        let account = parse(&file).expect("good");
        let assertion = account.sign_assertion("a-scope", &audience, now);
        let (signed, signature) = assertion.expose_secret().rsplit_once('.').expect("a JWT");
        let (header, claims) = signed.split_once('.').expect("a JWT");
        let decode = |text| URL_SAFE_NO_PAD.decode(text).expect("base64url");
        let json = |text| serde_json::from_slice::<Value>(&decode(text)).expect("JSON");
        // Checked by another implementation than the one that signed.
        let pem = file["private_key"].as_str().expect("text");
        let (_, der) = <(SectionKind, Vec<u8>)>::from_pem_slice(pem.as_bytes()).expect("PEM");
        let pair = KeyPair::from_pkcs8(&der).expect("a key");
        UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, pair.public_key())
            .verify(signed.as_bytes(), &decode(signature))
            .expect("verifies");
        assert_eq!(
            json(header),
            json!({ "typ": "JWT", "alg": "RS256", "kid": "0123456789abcdef" })
        );
        assert_eq!(
            json(claims),
            json!({
                "iss": "attesto@project.iam.example",
                "scope": "a-scope",
                "aud": "https://oauth2.googleapis.com/token",
                "iat": 1_775_830_930,
                "exp": 1_775_834_530,
            })
        );
        assert!(!format!("{assertion:?}").contains("ey"));
    }
}
