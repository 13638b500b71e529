//! The tenant's identity at Google: a service account's key file, and the access tokens bought with it.
//!
//! Promises: a key file is understood completely when it is set, so that nothing about it can fail later but Google's
//! opinion of it; the private key is held as a parsed key and never prints; an assertion goes to the configured token
//! endpoint and nowhere else, whatever the file says; an access token is bought once for all who need it at the same
//! time, and renewed a minute early.
//!
//! - [`ServiceAccount`]: the key file
//! - [`AccessTokens`]: bought, kept, forgotten

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeyPair;
use aws_lc_rs::signature::{KeyPair as _, RSA_PKCS1_SHA256};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustls::pki_types::pem::{PemObject as _, SectionKind};
use serde::Deserialize;
use serde_json::{Value, json};
use url::Url;
use zeroize::Zeroizing;

use crate::base::clock::{Clock, Timestamp};
use crate::base::id::TenantId;
use crate::base::single_flight::SingleFlight;
use crate::credentials::token_cache::{AccessToken, TokenCache, TokenCacheKey};
use crate::crypto::{ExposeSecret as _, SecretString, token};
use crate::outbound::{
    RetryDecision, Upstream, UpstreamError, UpstreamResponse, parse_retry_after,
};

/// Where Google sells access tokens.
pub const TOKEN_URL: &str = "https://oauth2.googleapis.com/token";
/// What an access token for the Play Developer API is asked for.
pub const PUBLISHER_SCOPE: &str = "https://www.googleapis.com/auth/androidpublisher";

/// A key file is 2.4 KB; nobody's is larger than this.
const MAX_FILE_BYTES: usize = 64 * 1024;
/// How long an assertion is good for: Google's own ceiling.
const ASSERTION_TTL: Duration = Duration::from_hours(1);
/// A token this close to its end is not used any more.
const TOKEN_RENEWAL_MARGIN: Duration = Duration::from_mins(1);
/// What is assumed when Google does not say how long a token lasts, and the most that is believed.
const DEFAULT_TOKEN_TTL_SECONDS: u64 = 300;
const MAX_TOKEN_TTL_SECONDS: u64 = 3600;

/// A Google service account that can sign.
pub struct GoogleServiceAccount {
    client_email: String,
    key_id: String,
    key: KeyPair,
    fingerprint: String,
    token_uri: Option<String>,
}

/// Why a file is not a service account's key file. Says what it is instead when that can be seen, and never repeats
/// what is inside.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ServiceAccountError {
    /// No bytes, or only blanks.
    #[error("the file is empty")]
    Empty,
    /// Larger than any key file.
    #[error(
        "the file is larger than {MAX_FILE_BYTES} bytes, so it is not a service account's key file"
    )]
    TooLarge,
    /// Something else that people have at hand.
    #[error("this is {0}. {DOWNLOAD}")]
    WrongKind(&'static str),
    /// Not JSON at all.
    #[error("the file is not JSON (line {line}, column {column}). {DOWNLOAD}")]
    NotJson {
        /// Where reading stopped.
        line: usize,
        /// Where reading stopped.
        column: usize,
    },
    /// JSON of another kind.
    #[error("the file's \"type\" must be \"service_account\". {DOWNLOAD}")]
    WrongType,
    /// A field is missing, empty or no string.
    #[error(
        "the file has no usable \"{0}\". Use the file exactly as Google Cloud gave it, or download a new one"
    )]
    InvalidField(&'static str),
    /// The private key is not a key that can sign here.
    #[error(
        "the file's \"private_key\" {0}. Use the file exactly as Google Cloud gave it, or download a new one"
    )]
    InvalidPrivateKey(&'static str),
}

const DOWNLOAD: &str = "What is needed is a service account's key file: Google Cloud console, IAM & Admin, Service \
    Accounts, Keys, Add key, JSON";

/// The fields of a key file that matter, and those by which other files are told.
#[derive(Deserialize)]
struct ServiceAccountFile {
    r#type: Option<serde_json::Value>,
    client_email: Option<serde_json::Value>,
    private_key_id: Option<serde_json::Value>,
    private_key: Option<serde_json::Value>,
    token_uri: Option<serde_json::Value>,
    installed: Option<serde::de::IgnoredAny>,
    web: Option<serde::de::IgnoredAny>,
    project_info: Option<serde::de::IgnoredAny>,
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
        match read.r#type.as_ref().and_then(serde_json::Value::as_str) {
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
        let key = parse_private_key(&pem).map_err(ServiceAccountError::InvalidPrivateKey)?;
        let fingerprint = token::sha256_fingerprint(key.public_key().as_ref());
        Ok(Self {
            client_email,
            key_id,
            key,
            fingerprint,
            token_uri: require_text("token_uri", read.token_uri).ok(),
        })
    }

    /// The account's name.
    pub fn client_email(&self) -> &str {
        &self.client_email
    }

    /// A short name for the key: the first 16 hex digits of the SHA-256 of the public key (PKCS#1, DER).
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// A digest of all that an assertion says of the account and of the key that signs it. One key may belong to several
    /// accounts; two files with the same identity get the same answers.
    pub fn identity_digest(&self) -> [u8; 32] {
        // JSON, so that no two lists are written alike.
        let parts = json!([self.client_email, self.key_id, self.fingerprint]);
        token::sha256(parts.to_string().as_bytes())
    }

    /// Where the file says tokens are bought. For a warning only: it is never called, because whoever writes the file
    /// would choose where signed assertions go.
    pub fn token_uri(&self) -> Option<&str> {
        self.token_uri.as_deref()
    }

    /// A signed statement that this account asks `audience` for a token with `scope` (RFC 7523, RS256).
    pub fn sign_assertion(&self, scope: &str, audience: &Url, now: Timestamp) -> SecretString {
        let header = json!({ "alg": "RS256", "typ": "JWT", "kid": self.key_id });
        let claims = json!({
            "iss": self.client_email,
            "scope": scope,
            "aud": audience.as_str(),
            "iat": now.as_secs(),
            "exp": now.plus(ASSERTION_TTL).as_secs(),
        });
        let encode = |value: serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", encode(header), encode(claims));
        let mut signature = vec![0; self.key.public_modulus_len()];
        self.key
            .sign(
                &RSA_PKCS1_SHA256,
                &SystemRandom::new(),
                signed.as_bytes(),
                &mut signature,
            )
            .expect("a key that was accepted signs");
        SecretString::from(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }
}

impl fmt::Debug for GoogleServiceAccount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "ServiceAccount({}, key {})",
            self.client_email, self.fingerprint
        )
    }
}

/// What a file that is not JSON looks like.
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

fn require_text(
    name: &'static str,
    value: Option<serde_json::Value>,
) -> Result<String, ServiceAccountError> {
    match value {
        Some(serde_json::Value::String(text)) if !text.trim().is_empty() => Ok(text),
        _ => Err(ServiceAccountError::InvalidField(name)),
    }
}

fn parse_private_key(pem: &str) -> Result<KeyPair, &'static str> {
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
    KeyPair::from_pkcs8(&der).map_err(|_| "is not an intact RSA key of 2048 to 8192 bits")
}

/// Buys access tokens and keeps them as long as they are good.
#[derive(Clone)]
pub struct AccessTokenSource {
    upstream: Upstream,
    token_url: Url,
    clock: Clock,
    token_cache: TokenCache,
    in_flight: SingleFlight<TokenCacheKey, Result<AccessToken, AccessTokenError>>,
}

/// Why there is no access token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AccessTokenError {
    /// Google does not accept the account: deleted, its key rotated or disabled, or this machine's clock is wrong.
    #[error("the token endpoint refused the service account: status {status}, {}: {}", .code.as_deref().unwrap_or("no code"), .description.as_deref().unwrap_or("no description"))]
    Unauthorized {
        /// The HTTP status.
        status: u16,
        /// OAuth's word, such as `invalid_grant`.
        code: Option<String>,
        /// Google's sentence, for the operator.
        description: Option<String>,
    },
    /// It is asked too often.
    #[error("the token endpoint is asked too often: status 429")]
    RateLimited {
        /// When to come back, if it said.
        retry_after: Option<Duration>,
    },
    /// Any other answer that is not a token.
    #[error("the token endpoint answered with status {0} and no usable token")]
    Unexpected(u16),
    /// No answer.
    #[error("the token endpoint gave no answer: {0}")]
    NoResponse(#[from] UpstreamError),
}

#[derive(Deserialize)]
struct TokenResponse {
    access_token: Option<String>,
    /// Seconds. Google's is a whole number; what is none of the kind must not cost a token that is good.
    #[serde(default)]
    expires_in: Value,
}

#[derive(Deserialize)]
struct TokenErrorResponse {
    error: Option<String>,
    error_description: Option<String>,
}

impl AccessTokenSource {
    /// Tokens from `token_url`.
    pub fn new(upstream: Upstream, token_url: Url, clock: Clock) -> Self {
        Self {
            upstream,
            token_url,
            token_cache: TokenCache::new(clock.clone(), TOKEN_RENEWAL_MARGIN),
            clock,
            in_flight: SingleFlight::default(),
        }
    }

    /// A token for `account` of `tenant` that is good for at least another minute, or as good as Google sells them.
    pub async fn get_token(
        &self,
        tenant: &TenantId,
        account: &Arc<GoogleServiceAccount>,
    ) -> Result<AccessToken, AccessTokenError> {
        let owner = (tenant.clone(), account.identity_digest());
        if let Some(token) = self.token_cache.get(&owner) {
            return Ok(token);
        }
        let (tokens, account) = (self.clone(), account.clone());
        self.in_flight
            .share_call(owner.clone(), move || async move {
                // Somebody's purchase may have ended between our look and our turn.
                if let Some(token) = tokens.token_cache.get(&owner) {
                    return Ok(token);
                }
                let token = tokens.request_token(&account).await?;
                tokens.token_cache.insert(owner, &token);
                Ok(token)
            })
            .await
    }

    /// Forgets `token`, because the store refused it. A newer token of the same owner stays.
    pub fn evict_token(
        &self,
        tenant: &TenantId,
        account: &GoogleServiceAccount,
        token: &AccessToken,
    ) {
        let owner = (tenant.clone(), account.identity_digest());
        self.token_cache.remove_refused(&owner, token);
    }

    async fn request_token(
        &self,
        account: &GoogleServiceAccount,
    ) -> Result<AccessToken, AccessTokenError> {
        let assertion = account.sign_assertion(PUBLISHER_SCOPE, &self.token_url, self.clock.now());
        let form = [
            ("grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer"),
            ("assertion", assertion.expose_secret()),
        ];
        let answer = self
            .upstream
            .send_with_retries(
                |client| client.post(self.token_url.clone()).form(&form),
                classify_response,
            )
            .await?;
        parse_token_response(&answer, self.clock.now())
    }
}

fn classify_response(answer: &UpstreamResponse) -> RetryDecision {
    if answer.status.is_server_error() {
        RetryDecision::Transient
    } else {
        RetryDecision::Final
    }
}

fn parse_token_response(
    answer: &UpstreamResponse,
    now: Timestamp,
) -> Result<AccessToken, AccessTokenError> {
    let status = answer.status.as_u16();
    match status {
        200 => {
            let read: TokenResponse = serde_json::from_slice(&answer.body)
                .map_err(|_| AccessTokenError::Unexpected(status))?;
            // Anything else could not be written into a header.
            let usable = |token: &String| {
                !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic())
            };
            let secret = read
                .access_token
                .filter(usable)
                .ok_or(AccessTokenError::Unexpected(status))?;
            let lasts = parse_seconds(&read.expires_in)
                .unwrap_or(DEFAULT_TOKEN_TTL_SECONDS)
                .min(MAX_TOKEN_TTL_SECONDS);
            let expires = now.plus(Duration::from_secs(lasts));
            Ok(AccessToken::new(secret.into(), expires))
        }
        400 | 401 | 403 => {
            let read: TokenErrorResponse = serde_json::from_slice(&answer.body)
                .map_err(|_| AccessTokenError::Unexpected(status))?;
            Err(AccessTokenError::Unauthorized {
                status,
                code: read.error.filter(|code| is_error_code(code)),
                description: read.error_description,
            })
        }
        429 => Err(AccessTokenError::RateLimited {
            retry_after: parse_retry_after(&answer.headers, now),
        }),
        _ => Err(AccessTokenError::Unexpected(status)),
    }
}

/// A number of seconds, however it is written.
fn parse_seconds(value: &Value) -> Option<u64> {
    let text = match value {
        Value::Number(number) => number.to_string(),
        Value::String(text) => text.clone(),
        _ => return None,
    };
    text.split('.').next()?.parse().ok()
}

/// Whether this is a code such as Google has, `invalidValue` or `RESOURCE_EXHAUSTED`, which may be repeated in an answer
/// and in any log. Anything else may be the purchase token.
pub(super) fn is_error_code(word: &str) -> bool {
    const LONGEST: usize = 64;
    (1..=LONGEST).contains(&word.len())
        && word
            .bytes()
            .all(|letter| letter.is_ascii_alphabetic() || letter == b'_')
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use aws_lc_rs::encoding::{AsDer as _, Pkcs8V1Der};
    use aws_lc_rs::rsa::KeySize;
    use base64::engine::general_purpose::STANDARD;
    use reqwest::StatusCode;
    use reqwest::header::HeaderMap;

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
        assert_eq!(
            format!("{account:?}"),
            format!(
                "ServiceAccount(attesto@project.iam.example, key {})",
                account.fingerprint()
            )
        );
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
        let account = parse(&key_file()).expect("good");
        let audience = Url::parse("https://oauth2.googleapis.com/token").expect("a URL");
        let now = Timestamp::from_millis(1_775_830_930_999);
        let assertion = account.sign_assertion(PUBLISHER_SCOPE, &audience, now);
        // Checked by another implementation than the one that signed.
        let key = jsonwebtoken::DecodingKey::from_rsa_der(account.key.public_key().as_ref());
        let mut rules = jsonwebtoken::Validation::new(jsonwebtoken::Algorithm::RS256);
        rules.set_audience(&[audience.as_str()]);
        rules.validate_exp = false;
        let read = jsonwebtoken::decode::<Value>(assertion.expose_secret(), &key, &rules)
            .expect("verifies");
        assert_eq!(read.header.kid.as_deref(), Some("0123456789abcdef"));
        assert_eq!(
            read.claims,
            json!({
                "iss": "attesto@project.iam.example",
                "scope": PUBLISHER_SCOPE,
                "aud": "https://oauth2.googleapis.com/token",
                "iat": 1_775_830_930,
                "exp": 1_775_834_530,
            })
        );
        assert!(!format!("{assertion:?}").contains("ey"));
    }

    fn answer(status: u16, body: &str) -> UpstreamResponse {
        UpstreamResponse {
            status: StatusCode::from_u16(status).expect("a status"),
            headers: HeaderMap::new(),
            body: body.as_bytes().to_vec(),
        }
    }

    #[test]
    fn a_token_lasts_as_long_as_google_says_within_reason() {
        let now = Timestamp::from_millis(0);
        for (body, seconds) in [
            (
                r#"{"access_token":"ya29.x","expires_in":3599,"token_type":"Bearer"}"#,
                3599,
            ),
            (r#"{"access_token":"ya29.x"}"#, 300),
            (r#"{"access_token":"ya29.x","expires_in":null}"#, 300),
            (r#"{"access_token":"ya29.x","expires_in":"soon"}"#, 300),
            (r#"{"access_token":"ya29.x","expires_in":-1}"#, 300),
            (r#"{"access_token":"ya29.x","expires_in":"3599"}"#, 3599),
            (r#"{"access_token":"ya29.x","expires_in":3599.9}"#, 3599),
            (r#"{"access_token":"ya29.x","expires_in":99999999}"#, 3600),
        ] {
            let token = parse_token_response(&answer(200, body), now).expect("a token");
            assert_eq!(token.expires_at(), now.plus(Duration::from_secs(seconds)));
            assert_eq!(token.secret(), "ya29.x");
            assert!(!format!("{token:?}").contains("ya29"));
            let clock = Clock::fixed(now);
            let kept = TokenCache::new(clock.clone(), TOKEN_RENEWAL_MARGIN);
            let owner = (TenantId::mint(now), [1; 32]);
            kept.insert(owner.clone(), &token);
            clock.advance(Duration::from_secs(seconds - 61));
            assert!(kept.get(&owner).is_some());
            clock.advance(Duration::from_secs(1));
            assert!(kept.get(&owner).is_none());
        }
    }

    #[test]
    fn what_is_not_a_token_is_classed() {
        let refused = |status, code: Option<&str>, description: Option<&str>| {
            AccessTokenError::Unauthorized {
                status,
                code: code.map(str::to_owned),
                description: description.map(str::to_owned),
            }
        };
        for (status, body, expected) in [
            (
                400,
                r#"{"error":"invalid_grant","error_description":"Invalid JWT Signature."}"#,
                refused(400, Some("invalid_grant"), Some("Invalid JWT Signature.")),
            ),
            (
                401,
                r#"{"error":"invalid_client"}"#,
                refused(401, Some("invalid_client"), None),
            ),
            (403, "{}", refused(403, None, None)),
            (403, "<html>", AccessTokenError::Unexpected(403)),
            (200, "{}", AccessTokenError::Unexpected(200)),
            (200, "<html>", AccessTokenError::Unexpected(200)),
            (
                200,
                r#"{"access_token":""}"#,
                AccessTokenError::Unexpected(200),
            ),
            (
                200,
                "{\"access_token\":\"a\\nb\"}",
                AccessTokenError::Unexpected(200),
            ),
            (302, "", AccessTokenError::Unexpected(302)),
            (
                429,
                "{}",
                AccessTokenError::RateLimited { retry_after: None },
            ),
            (503, "{}", AccessTokenError::Unexpected(503)),
        ] {
            let found = parse_token_response(&answer(status, body), Timestamp::from_millis(0));
            assert_eq!(found.map(|_| ()), Err(expected), "{status} {body}");
        }
    }
}
