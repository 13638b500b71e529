//! Verifies that a push message comes from Google, and from the service account that the tenant has named.
//!
//! Guarantees: a token is only used if a key of Google signed it, with RS256. That alone is not enough, because every
//! owner of a Google Cloud project can have Google sign a token for any audience: the token must also have this
//! tenant's audience and the one verified address that the tenant has named. Invalid tokens cannot cause calls to
//! Google beyond one fetch of the keys a minute. During an outage of Google's key endpoint the cached keys are used,
//! and no token is refused as invalid because its key could not be fetched.
//!
//! - [`PushToken`]: a token with a parsed header; [`PushToken::verify_token`] returns its [`PushIdentity`]
//! - [`PushIdentity`]: the sender and the audience; [`PushIdentity::check_push_settings`] compares them with the
//!   tenant's settings
//! - [`GoogleKeys`]: Google's public keys, cached

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::jwk::{AlgorithmParameters, Jwk, KeyAlgorithm, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use parking_lot::Mutex;
use reqwest::header::HeaderMap;
use reqwest::header::{AGE, CACHE_CONTROL};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;
use url::Url;

use crate::base::clock::{Clock, Timestamp};
use crate::base::id::TenantId;
use crate::outbound::{RetryDecision, Upstream};

/// The maximum length of a token. Real tokens have about 900 bytes.
const MAX_TOKEN_BYTES: usize = 8 * 1024;
/// How far Google's clock and ours may differ, in seconds.
const MAX_CLOCK_SKEW_SECONDS: i64 = 60;
/// The maximum lifetime of a token in seconds. Google's tokens are valid for an hour.
const MAX_TOKEN_TTL_SECONDS: i64 = 86_400;
/// The longest audience: an address of ours is far shorter.
const MAX_AUDIENCE_BYTES: usize = 2048;
/// The longest address of an account (RFC 5321, 4.5.3.1).
const MAX_ACCOUNT_BYTES: usize = 320;
/// The issuer of Google's tokens, in both forms that Google uses.
const ISSUERS: [&str; 2] = ["https://accounts.google.com", "accounts.google.com"];

/// The minimum time between two fetches of Google's keys, whatever the tokens say.
const FETCH_INTERVAL: Duration = Duration::from_mins(1);
/// Short, because a push must be answered within ten seconds and the purchase has to be looked up too.
const FETCH_TIMEOUT: Duration = Duration::from_secs(3);
/// How long keys are fresh if Google's response does not say.
const DEFAULT_KEY_TTL: Duration = Duration::from_hours(1);
const MIN_KEY_TTL: Duration = Duration::from_mins(1);
const MAX_KEY_TTL: Duration = Duration::from_hours(24);
/// How long keys that are no longer fresh are used while Google's endpoint does not respond.
const STALE_KEY_TTL: Duration = Duration::from_hours(24);

/// Why a push was not authenticated. The message is logged and contains nothing of the token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PushTokenError {
    /// There is no token, or more than one.
    #[error("no bearer token")]
    Missing,
    /// Not a JWT, or a claim is missing or of the wrong type.
    #[error("not a token")]
    Malformed,
    /// The header names another algorithm than RS256.
    #[error("not signed with RS256")]
    WrongAlgorithm,
    /// The key that the header names is not one of Google's.
    #[error("signed with a key that is not Google's")]
    UnknownKey,
    /// Google's key endpoint does not respond, and the key is not cached.
    #[error("Google's keys cannot be fetched now")]
    KeysUnavailable,
    /// The signature was not made by the key that the header names.
    #[error("the signature is wrong")]
    BadSignature,
    /// The claim `iss` is not Google's.
    #[error("not issued by accounts.google.com")]
    WrongIssuer,
    /// Expired, not yet valid, or valid for longer than a day.
    #[error("expired, or not yet valid: check this machine's clock")]
    OutsideValidity,
    /// The tenant does not exist or has no Google credentials.
    #[error("the tenant has no Google credentials")]
    NoCredentials,
    /// The tenant has not named the service account that may push.
    #[error(
        "the tenant has named no account that pushes: set it with `attesto google set-credentials --pubsub-service-account`"
    )]
    NoServiceAccount,
    /// The claim `aud` is not the tenant's.
    #[error("the audience is another one")]
    WrongAudience,
    /// This token was refused for several tenants a moment ago.
    #[error("the token was refused for several tenants a moment ago")]
    RefusedBefore,
    /// The claim `email` is not the tenant's account, or Google has not verified it.
    #[error("the account is another one, or not verified")]
    WrongServiceAccount,
}

/// A token whose signature is not verified yet.
#[derive(Debug)]
pub struct PushToken<'a> {
    text: &'a str,
    key_id: String,
}

#[derive(Deserialize)]
struct PushTokenHeader {
    alg: String,
    kid: Option<String>,
    #[serde(default)]
    crit: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct PushTokenClaims {
    iss: String,
    aud: String,
    exp: i64,
    iat: i64,
    nbf: Option<i64>,
    email: Option<String>,
    email_verified: Option<bool>,
}

impl<'a> PushToken<'a> {
    /// Parses the header. Does not verify anything.
    pub fn parse(text: &'a str) -> Result<Self, PushTokenError> {
        if text.len() > MAX_TOKEN_BYTES {
            return Err(PushTokenError::Malformed);
        }
        let (header, _) = text.split_once('.').ok_or(PushTokenError::Malformed)?;
        let header = URL_SAFE_NO_PAD
            .decode(header)
            .map_err(|_| PushTokenError::Malformed)?;
        let header: PushTokenHeader =
            serde_json::from_slice(&header).map_err(|_| PushTokenError::Malformed)?;
        if header.alg != "RS256" {
            return Err(PushTokenError::WrongAlgorithm);
        }
        // The header has critical extensions, and none is supported (RFC 7515, 4.1.11).
        if header.crit.is_some() {
            return Err(PushTokenError::Malformed);
        }
        let key_id = header.kid.ok_or(PushTokenError::UnknownKey)?;
        Ok(Self { text, key_id })
    }

    /// The id of the key that the header names.
    pub fn key_id(&self) -> &str {
        &self.key_id
    }

    /// Verifies the signature with `key`, the issuer, and the validity at `now`, and returns the identity in the
    /// claims.
    pub(super) fn verify_token(
        &self,
        key: &DecodingKey,
        now: Timestamp,
    ) -> Result<PushIdentity, PushTokenError> {
        // The claims are checked below, with this process's clock and the tenant's settings.
        let mut signature_only = Validation::new(Algorithm::RS256);
        signature_only.validate_exp = false;
        signature_only.validate_aud = false;
        signature_only.required_spec_claims.clear();
        let claims = jsonwebtoken::decode::<PushTokenClaims>(self.text, key, &signature_only)
            .map_err(|error| match error.kind() {
                ErrorKind::InvalidSignature => PushTokenError::BadSignature,
                _ => PushTokenError::Malformed,
            })?
            .claims;
        if !ISSUERS.contains(&claims.iss.as_str()) {
            return Err(PushTokenError::WrongIssuer);
        }
        let now = now.as_secs();
        let valid_from = claims.nbf.unwrap_or(claims.iat).max(claims.iat);
        let is_valid = claims.exp.saturating_add(MAX_CLOCK_SKEW_SECONDS) > now
            && valid_from.saturating_sub(MAX_CLOCK_SKEW_SECONDS) <= now
            && (0..=MAX_TOKEN_TTL_SECONDS).contains(&claims.exp.saturating_sub(claims.iat));
        if !is_valid {
            return Err(PushTokenError::OutsideValidity);
        }
        // What no tenant can have named is refused before the tenant is looked up.
        if claims.aud.is_empty() || claims.aud.len() > MAX_AUDIENCE_BYTES {
            return Err(PushTokenError::WrongAudience);
        }
        let account = claims.email.filter(|email| {
            claims.email_verified == Some(true)
                && email.len() <= MAX_ACCOUNT_BYTES
                && email.contains('@')
        });
        Ok(PushIdentity {
            audience: claims.aud,
            account,
        })
    }
}

/// The sender and the audience of a push, from verified claims.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PushIdentity {
    pub(super) audience: String,
    /// The service account's address, if Google has verified it.
    pub(super) account: Option<String>,
}

/// The pushes that a tenant accepts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PushSettings {
    /// The required audience. `None`: the URL of the tenant's webhook, which is Pub/Sub's default.
    pub audience: Option<String>,
    /// The required service account. `None`: every push is refused.
    pub account: Option<String>,
}

impl PushIdentity {
    /// Checks that `tenant` accepts pushes with this identity.
    pub(super) fn check_push_settings(
        &self,
        tenant: &TenantId,
        settings: &PushSettings,
    ) -> Result<(), PushTokenError> {
        let account = settings
            .account
            .as_ref()
            .ok_or(PushTokenError::NoServiceAccount)?;
        let is_audience = match &settings.audience {
            Some(audience) => self.audience == *audience,
            None => is_webhook_url_of(tenant, &self.audience),
        };
        if !is_audience {
            return Err(PushTokenError::WrongAudience);
        }
        let is_account = self
            .account
            .as_ref()
            .is_some_and(|found| found.eq_ignore_ascii_case(account));
        if is_account {
            Ok(())
        } else {
            Err(PushTokenError::WrongServiceAccount)
        }
    }
}

/// Whether an audience is the URL of this tenant's webhook. The public host name of this service is not known here, and
/// a proxy may add a path prefix. No other tenant's URL contains this tenant's id.
fn is_webhook_url_of(tenant: &TenantId, audience: &str) -> bool {
    let Ok(url) = Url::parse(audience) else {
        return false;
    };
    matches!(url.scheme(), "https" | "http")
        && url
            .path()
            .ends_with(&format!("/v1/webhooks/google/{tenant}"))
}

/// Google's public keys, cached in this process. Clones share the cache.
#[derive(Clone)]
pub(crate) struct GoogleKeys {
    upstream: Upstream,
    url: Url,
    clock: Clock,
    cache: Arc<Mutex<CachedKeys>>,
    /// Held during a fetch, so that concurrent callers share it.
    fetch_lock: Arc<tokio::sync::Mutex<()>>,
}

/// The cached keys. Times are measured by [`Clock::uptime`].
#[derive(Default)]
struct CachedKeys {
    keys: HashMap<String, Arc<DecodingKey>>,
    fresh_until: Duration,
    fetched_at: Option<Duration>,
    /// Whether the last fetch returned keys.
    is_answered: bool,
}

/// The result of a lookup in the cache.
enum KeyLookup {
    Found(Arc<DecodingKey>),
    /// The keys should be fetched. The cached key, if any, can be used if that fails.
    Fetch(Option<Arc<DecodingKey>>),
    NotFound(PushTokenError),
}

impl GoogleKeys {
    /// The keys that are published at `url`. They are fetched through the client of `upstream` when the first one is
    /// needed.
    pub(crate) fn new(upstream: &Upstream, url: Url, clock: Clock) -> Self {
        Self {
            upstream: upstream.with_timeout(FETCH_TIMEOUT),
            url,
            clock,
            cache: Arc::default(),
            fetch_lock: Arc::default(),
        }
    }

    /// The key with this id. Fails with [`PushTokenError::UnknownKey`] or [`PushTokenError::KeysUnavailable`].
    pub(super) async fn find_key(&self, id: &str) -> Result<Arc<DecodingKey>, PushTokenError> {
        match self.lookup_cached(id) {
            KeyLookup::Found(key) => return Ok(key),
            KeyLookup::Fetch(Some(key)) => {
                // One caller fetches; the others use the cached key.
                let Ok(_lock) = self.fetch_lock.try_lock() else {
                    return Ok(key);
                };
                self.fetch_keys().await;
            }
            KeyLookup::Fetch(None) | KeyLookup::NotFound(_) => {
                // The caller that holds the lock may be fetching this key.
                let _lock = self.fetch_lock.lock().await;
                if matches!(self.lookup_cached(id), KeyLookup::Fetch(_)) {
                    self.fetch_keys().await;
                }
            }
        }
        match self.lookup_cached(id) {
            KeyLookup::Found(key) | KeyLookup::Fetch(Some(key)) => Ok(key),
            KeyLookup::NotFound(error) => Err(error),
            KeyLookup::Fetch(None) => Err(PushTokenError::KeysUnavailable),
        }
    }

    fn lookup_cached(&self, id: &str) -> KeyLookup {
        let now = self.clock.uptime();
        let cached = self.cache.lock();
        let may_fetch = cached
            .fetched_at
            .is_none_or(|fetched| now.saturating_sub(fetched) >= FETCH_INTERVAL);
        let is_fresh = now < cached.fresh_until;
        let key = cached
            .keys
            .get(id)
            .filter(|_| now < cached.fresh_until + STALE_KEY_TTL)
            .cloned();
        match key {
            Some(key) if is_fresh || !may_fetch => KeyLookup::Found(key),
            key if may_fetch => KeyLookup::Fetch(key),
            // The last fetch was successful and did not return this key.
            _ if cached.is_answered => KeyLookup::NotFound(PushTokenError::UnknownKey),
            _ => KeyLookup::NotFound(PushTokenError::KeysUnavailable),
        }
    }

    /// Fetches the keys. The time of the fetch is stored first, so that a cancelled fetch counts too.
    async fn fetch_keys(&self) {
        {
            let mut cached = self.cache.lock();
            cached.fetched_at = Some(self.clock.uptime());
            cached.is_answered = false;
        }
        let response = self
            .upstream
            .send_with_retries(
                |client| client.get(self.url.clone()),
                |_| RetryDecision::Final,
            )
            .await;
        let error = match response {
            Ok(response) if response.status.as_u16() == 200 => {
                let keys = parse_key_set(&response.body);
                if !keys.is_empty() {
                    let mut cached = self.cache.lock();
                    cached.keys = keys;
                    cached.fresh_until = self.clock.uptime() + cache_ttl(&response.headers);
                    cached.is_answered = true;
                    return;
                }
                "no key in the answer".to_owned()
            }
            Ok(response) => format!("status {}", response.status.as_u16()),
            Err(error) => error.to_string(),
        };
        tracing::warn!(
            error,
            hint = "Pushes that are signed with a cached key are still accepted. Google sends the others again.",
            "google_keys_unavailable"
        );
    }
}

fn parse_key_set(body: &[u8]) -> HashMap<String, Arc<DecodingKey>> {
    #[derive(Deserialize)]
    struct KeySet {
        keys: Vec<Value>,
    }
    let set: Option<KeySet> = serde_json::from_slice(body).ok();
    set.into_iter()
        .flat_map(|set| set.keys)
        .filter_map(|key| rs256_key(&serde_json::from_value(key).ok()?))
        .collect()
}

/// The id and the key, if it can verify RS256. A key set may contain other keys.
fn rs256_key(jwk: &Jwk) -> Option<(String, Arc<DecodingKey>)> {
    let is_rs256 = matches!(jwk.algorithm, AlgorithmParameters::RSA(_))
        && matches!(jwk.common.key_algorithm, None | Some(KeyAlgorithm::RS256))
        && matches!(
            jwk.common.public_key_use,
            None | Some(PublicKeyUse::Signature)
        );
    let key = DecodingKey::from_jwk(jwk).ok().filter(|_| is_rs256)?;
    Some((jwk.common.key_id.clone()?, Arc::new(key)))
}

/// How long a response is fresh (RFC 9111: `max-age` minus `Age`), within our limits.
fn cache_ttl(headers: &HeaderMap) -> Duration {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let max_age = text(CACHE_CONTROL).and_then(|value| {
        value.split(',').find_map(|directive| {
            let (name, seconds) = directive.trim().split_once('=')?;
            let seconds = seconds.trim_matches('"').parse().ok()?;
            name.eq_ignore_ascii_case("max-age")
                .then(|| Duration::from_secs(seconds))
        })
    });
    let age = text(AGE).and_then(|value| value.parse().ok());
    max_age
        .map_or(DEFAULT_KEY_TTL, |max_age| {
            max_age.saturating_sub(Duration::from_secs(age.unwrap_or(0)))
        })
        .clamp(MIN_KEY_TTL, MAX_KEY_TTL)
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::rsa::{KeyPair, KeySize};
    use aws_lc_rs::signature::{KeyPair as _, RSA_PKCS1_SHA256};
    use proptest::prelude::*;
    use reqwest::header::HeaderValue;
    use serde_json::json;

    use super::PushTokenError::*;
    use super::*;

    const NOW: i64 = 1_775_830_930;
    const TENANT: &str = "tenant_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E";
    static KEY: LazyLock<KeyPair> =
        LazyLock::new(|| KeyPair::generate(KeySize::Rsa2048).expect("a key can be made"));

    fn public_key(pair: &KeyPair) -> DecodingKey {
        let public = pair.public_key();
        DecodingKey::from_rsa_raw_components(
            public.modulus().big_endian_without_leading_zero(),
            public.exponent().big_endian_without_leading_zero(),
        )
    }

    fn sign(header: &str, claims: &str) -> String {
        let signed = format!(
            "{}.{}",
            URL_SAFE_NO_PAD.encode(header),
            URL_SAFE_NO_PAD.encode(claims)
        );
        let mut signature = vec![0; KEY.public_modulus_len()];
        KEY.sign(
            &RSA_PKCS1_SHA256,
            &SystemRandom::new(),
            signed.as_bytes(),
            &mut signature,
        )
        .expect("it signs");
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    fn claims() -> Value {
        json!({
            "iss": "https://accounts.google.com", "aud": "https://here.example/push",
            "email": "push@project.iam.example", "email_verified": true,
            "iat": NOW - 100, "exp": NOW + 3500, "azp": "1", "sub": "1",
        })
    }

    fn claims_with(name: &str, value: impl Into<Value>) -> Value {
        let mut claims = claims();
        claims[name] = value.into();
        claims
    }

    fn verify(token: &str) -> Result<PushIdentity, PushTokenError> {
        PushToken::parse(token)?.verify_token(&public_key(&KEY), Timestamp::from_millis(NOW * 1000))
    }

    const HEADER: &str = r#"{"alg":"RS256","kid":"k","typ":"JWT"}"#;

    #[test]
    fn every_claim_is_checked() {
        let identity = PushIdentity {
            audience: "https://here.example/push".to_owned(),
            account: Some("push@project.iam.example".to_owned()),
        };
        let without_account = PushIdentity {
            account: None,
            ..identity.clone()
        };
        let without = |name: &str| {
            let mut claims = claims();
            claims.as_object_mut().expect("an object").remove(name);
            claims
        };
        for (claims, expected) in [
            (claims(), Ok(identity.clone())),
            (
                claims_with("iss", "accounts.google.com"),
                Ok(identity.clone()),
            ),
            (
                claims_with("iss", "https://accounts.google.com/"),
                Err(WrongIssuer),
            ),
            (claims_with("iss", "https://example.com"), Err(WrongIssuer)),
            (claims_with("exp", NOW - 59), Ok(identity.clone())),
            (claims_with("exp", NOW - 60), Err(OutsideValidity)),
            (claims_with("iat", NOW + 60), Ok(identity.clone())),
            (claims_with("iat", NOW + 61), Err(OutsideValidity)),
            (claims_with("nbf", NOW + 61), Err(OutsideValidity)),
            (claims_with("exp", NOW - 100 + 86_400), Ok(identity.clone())),
            (claims_with("exp", NOW - 100 + 86_401), Err(OutsideValidity)),
            (claims_with("exp", i64::MAX), Err(OutsideValidity)),
            (claims_with("iat", i64::MIN), Err(OutsideValidity)),
            (
                claims_with("email_verified", false),
                Ok(without_account.clone()),
            ),
            // Only the JSON value `true` means verified.
            (claims_with("email_verified", "true"), Err(Malformed)),
            (without("email_verified"), Ok(without_account.clone())),
            (without("email"), Ok(without_account)),
            (without("aud"), Err(Malformed)),
            (without("exp"), Err(Malformed)),
            (without("iat"), Err(Malformed)),
            (
                claims_with("aud", json!(["https://here.example/push"])),
                Err(Malformed),
            ),
            (claims_with("exp", "soon"), Err(Malformed)),
        ] {
            let found = verify(&sign(HEADER, &claims.to_string()));
            assert_eq!(found, expected, "{claims}");
        }
        let twice = claims()
            .to_string()
            .replacen('{', "{\"aud\":\"https://other.example\",", 1);
        assert_eq!(verify(&sign(HEADER, &twice)), Err(Malformed));
    }

    #[test]
    fn only_rs256_by_the_right_key_is_accepted() {
        let claims = claims().to_string();
        for (header, expected) in [
            (r#"{"alg":"none","kid":"k"}"#, WrongAlgorithm),
            (r#"{"alg":"HS256","kid":"k"}"#, WrongAlgorithm),
            (r#"{"alg":"RS512","kid":"k"}"#, WrongAlgorithm),
            (r#"{"alg":"rs256","kid":"k"}"#, WrongAlgorithm),
            (r#"{"kid":"k"}"#, Malformed),
            (r#"{"alg":"RS256"}"#, UnknownKey),
            (r#"{"alg":"RS256","kid":"k","crit":["b64"]}"#, Malformed),
            (r#"{"alg":"RS256","alg":"none","kid":"k"}"#, Malformed),
        ] {
            assert_eq!(verify(&sign(header, &claims)), Err(expected), "{header}");
        }
        let good = sign(HEADER, &claims);
        let (signed, signature) = good.rsplit_once('.').expect("three parts");
        for (bad, expected) in [
            (String::new(), Malformed),
            (signed.to_owned(), Malformed),
            (format!("{signed}."), BadSignature),
            (format!("{good}."), Malformed),
            (format!("{good}="), Malformed),
            (
                format!("{signed}.{}", &signature[..signature.len() - 2]),
                BadSignature,
            ),
            ("x".repeat(MAX_TOKEN_BYTES + 1), Malformed),
        ] {
            assert_eq!(verify(&bad), Err(expected), "{bad}");
        }
        let other = KeyPair::generate(KeySize::Rsa2048).expect("a key can be made");
        let found = PushToken::parse(&good)
            .expect("a token")
            .verify_token(&public_key(&other), Timestamp::from_millis(NOW * 1000));
        assert_eq!(found, Err(BadSignature));
    }

    #[test]
    fn a_push_must_come_from_the_account_that_the_tenant_named() {
        let tenant: TenantId = TENANT.parse().expect("an id");
        let check = |found: (&str, Option<&str>), named: (Option<&str>, Option<&str>)| {
            let identity = PushIdentity {
                audience: found.0.to_owned(),
                account: found.1.map(str::to_owned),
            };
            let settings = PushSettings {
                audience: named.0.map(str::to_owned),
                account: named.1.map(str::to_owned),
            };
            identity.check_push_settings(&tenant, &settings)
        };
        let push = Some("push@project.iam.example");
        let named = (Some("a"), push);
        assert_eq!(check(("a", push), named), Ok(()));
        assert_eq!(
            check(("a", Some("Push@Project.iam.example")), named),
            Ok(())
        );
        assert_eq!(check(("A", push), named), Err(WrongAudience));
        assert_eq!(check(("a", None), named), Err(WrongServiceAccount));
        let other = Some("other@project.iam.example");
        assert_eq!(check(("a", other), named), Err(WrongServiceAccount));
        // Without a named account every push is refused, also one without an address.
        assert_eq!(check(("a", push), (Some("a"), None)), Err(NoServiceAccount));
        assert_eq!(check(("a", None), (Some("a"), None)), Err(NoServiceAccount));
        // Without a named audience it must be the address, with any host.
        let here = format!("https://attesto.example/v1/webhooks/google/{TENANT}");
        let below = here.replace("/v1", ":8080/below/v1") + "?x=1";
        for good in [&here, &below] {
            assert_eq!(check((good, push), (None, push)), Ok(()), "{good}");
        }
        for bad in [
            &here.to_lowercase(),
            &format!("{here}0"),
            &format!("{here}/"),
            &here.replace("3E", "3F"),
            &here.replace("/v1", "/?/v1"),
            &here.replace("/v1", "/#/v1"),
            &here.replace("https", "ftp"),
            TENANT,
            "",
        ] {
            assert_eq!(
                check((bad, push), (None, push)),
                Err(WrongAudience),
                "{bad}"
            );
        }
    }

    #[test]
    fn keys_are_fresh_as_long_as_google_says_within_bounds() {
        for (cache_control, age, seconds) in [
            (
                Some("public, max-age=21600, must-revalidate, no-transform"),
                None,
                21_600,
            ),
            (Some("public, Max-Age=\"21600\""), Some("600"), 21_000),
            (Some("max-age=30"), None, 60),
            (Some("max-age=300"), Some("9999"), 60),
            (Some("max-age=99999999"), None, 86_400),
            (Some("no-store"), None, 3600),
            (Some("max-age=soon"), Some("old"), 3600),
            (None, None, 3600),
        ] {
            let mut headers = HeaderMap::new();
            if let Some(text) = cache_control {
                headers.insert(CACHE_CONTROL, HeaderValue::from_static(text));
            }
            if let Some(text) = age {
                headers.insert(AGE, HeaderValue::from_static(text));
            }
            assert_eq!(
                cache_ttl(&headers).as_secs(),
                seconds,
                "{cache_control:?} {age:?}"
            );
        }
    }

    #[test]
    fn only_keys_for_rs256_are_kept() {
        let key = |changes: Value| {
            let mut key = json!({ "kty": "RSA", "alg": "RS256", "use": "sig", "kid": "k", "n": "AQAB", "e": "AQAB" });
            for (name, value) in changes.as_object().expect("an object") {
                key[name] = value.clone();
            }
            let set = json!({ "keys": [key] }).to_string();
            parse_key_set(set.as_bytes()).len()
        };
        assert_eq!(key(json!({})), 1);
        assert_eq!(key(json!({ "alg": null, "use": null })), 1);
        for (name, value) in [
            ("kty", json!("EC")),
            ("alg", json!("ES256")),
            ("use", json!("enc")),
            ("kid", Value::Null),
            ("n", Value::Null),
            ("e", json!("!")),
        ] {
            assert_eq!(key(json!({ name: value })), 0, "{name}");
        }
        for body in ["", "{}", "[]", "{\"keys\":7}", "<html>"] {
            assert!(parse_key_set(body.as_bytes()).is_empty());
        }
    }

    proptest! {
        #[test]
        fn random_text_is_not_accepted(text in "[A-Za-z0-9_.=-]{0,200}") {
            prop_assert!(verify(&text).is_err());
        }
    }
}
