//! Is a push from Google, and from the account that the tenant named?
//!
//! Promises: only a token that Google's own key signed (RS256 and nothing else) is looked at further; being Google's is
//! not enough, because anybody with a Google Cloud project can have Google sign a token for any audience: it must be
//! meant for this tenant and carry the one address that the tenant named, verified; bad tokens cannot be turned into
//! calls to Google; an outage of Google's key endpoint is survived with the keys at hand, and where they do not
//! suffice, nothing is called false.
//!
//! - [`Token`]: a token, read; [`Token::verify`] makes a [`Pusher`] of it
//! - [`Pusher`]: who pushes, and for whom; [`Pusher::is`] compares with what the tenant named
//! - [`Keys`]: Google's keys, remembered

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aws_lc_rs::rsa::PublicKeyComponents;
use aws_lc_rs::signature::RSA_PKCS1_2048_8192_SHA256;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use reqwest::header::HeaderMap;
use reqwest::header::{AGE, CACHE_CONTROL};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use url::Url;

use crate::base::clock::{Clock, Timestamp};
use crate::base::id::TenantId;
use crate::outbound::{RetryDecision, Upstream};

/// A token is about 900 bytes.
const MAX_TOKEN_BYTES: usize = 8 * 1024;
/// How far Google's clock and ours may be apart, in seconds.
const MAX_CLOCK_SKEW_SECONDS: i64 = 60;
/// Google's tokens live an hour; what claims to live longer than a day is none.
const MAX_TOKEN_TTL_SECONDS: i64 = 86_400;
/// Who Google says it is, in both spellings it uses.
const ISSUERS: [&str; 2] = ["https://accounts.google.com", "accounts.google.com"];

/// Google is asked for its keys at most this often, whatever the tokens say.
const FETCH_INTERVAL: Duration = Duration::from_mins(1);
/// A push must be answered within ten seconds, and other things have to be asked too.
const FETCH_TIMEOUT: Duration = Duration::from_secs(3);
/// How long keys are fresh when Google does not say, and the least and the most that is believed.
const DEFAULT_KEY_TTL: Duration = Duration::from_hours(1);
const MIN_KEY_TTL: Duration = Duration::from_mins(1);
const MAX_KEY_TTL: Duration = Duration::from_hours(24);
/// How long keys that are no longer fresh are used while Google's endpoint is away.
const STALE_KEY_TTL: Duration = Duration::from_hours(24);

/// Why a push is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PushTokenError {
    /// There is no token, or more than one.
    #[error("no bearer token")]
    Missing,
    /// It is no token.
    #[error("not a token")]
    Malformed,
    /// It is signed in another way than RS256.
    #[error("not signed with RS256")]
    WrongAlgorithm,
    /// Google has no such key.
    #[error("signed with a key that is not Google's")]
    UnknownKey,
    /// The signature is wrong.
    #[error("the signature is wrong")]
    BadSignature,
    /// It was not issued by Google's accounts.
    #[error("not issued by accounts.google.com")]
    WrongIssuer,
    /// It has expired, is of the future, or claims to live for days.
    #[error("expired, or not yet good: are the clocks right?")]
    OutsideValidity,
    /// The tenant does not exist or has no Google credentials.
    #[error("the tenant has no Google credentials")]
    NoCredentials,
    /// The tenant has not said who pushes.
    #[error(
        "the tenant has named no account that pushes: set it with `attesto google set-credentials --pubsub-service-account`"
    )]
    NoServiceAccount,
    /// It is meant for somebody else.
    #[error("the audience is another one")]
    WrongAudience,
    /// It is another account's, or Google does not vouch for the address.
    #[error("the account is another one, or not verified")]
    WrongServiceAccount,
}

/// A token, read and not yet believed.
#[derive(Debug)]
pub struct PushToken<'a> {
    key_id: String,
    signed: &'a [u8],
    signature: Vec<u8>,
    claims: &'a str,
}

#[derive(Deserialize)]
struct GoogleJwsHeader {
    alg: String,
    kid: Option<String>,
    #[serde(default)]
    crit: Option<serde::de::IgnoredAny>,
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
    /// Reads the three parts of a compact JWS; looks at no claim.
    pub fn parse(text: &'a str) -> Result<Self, PushTokenError> {
        if text.len() > MAX_TOKEN_BYTES {
            return Err(PushTokenError::Malformed);
        }
        let (signed, signature) = text.rsplit_once('.').ok_or(PushTokenError::Malformed)?;
        let (header, claims) = signed.split_once('.').ok_or(PushTokenError::Malformed)?;
        if claims.contains('.') {
            return Err(PushTokenError::Malformed);
        }
        let GoogleJwsHeader { alg, kid, crit } = decode_json(header)?;
        if alg != "RS256" {
            return Err(PushTokenError::WrongAlgorithm);
        }
        // What must be understood and is not: RFC 7515, 4.1.11.
        if crit.is_some() {
            return Err(PushTokenError::Malformed);
        }
        Ok(Self {
            key_id: kid.ok_or(PushTokenError::UnknownKey)?,
            signed: signed.as_bytes(),
            signature: decode_base64url(signature)?,
            claims,
        })
    }

    /// The name of the key that is said to have signed it.
    pub fn key_id(&self) -> &str {
        &self.key_id
    }

    /// Who pushes, if `key` signed this, Google issued it, and it is good at `now`.
    pub fn verify_token(
        &self,
        key: &GooglePublicKey,
        now: Timestamp,
    ) -> Result<PushIdentity, PushTokenError> {
        key.0
            .verify(&RSA_PKCS1_2048_8192_SHA256, self.signed, &self.signature)
            .map_err(|_| PushTokenError::BadSignature)?;
        let claims: PushTokenClaims = decode_json(self.claims)?;
        if !ISSUERS.contains(&claims.iss.as_str()) {
            return Err(PushTokenError::WrongIssuer);
        }
        let now = now.as_secs();
        let begins = claims.nbf.unwrap_or(claims.iat).max(claims.iat);
        let is_good = claims.exp.saturating_add(MAX_CLOCK_SKEW_SECONDS) > now
            && begins.saturating_sub(MAX_CLOCK_SKEW_SECONDS) <= now
            && (0..=MAX_TOKEN_TTL_SECONDS).contains(&claims.exp.saturating_sub(claims.iat));
        if !is_good {
            return Err(PushTokenError::OutsideValidity);
        }
        Ok(PushIdentity {
            audience: claims.aud,
            account: claims.email.filter(|_| claims.email_verified == Some(true)),
        })
    }
}

fn decode_json<T: DeserializeOwned>(text: &str) -> Result<T, PushTokenError> {
    serde_json::from_slice(&decode_base64url(text)?).map_err(|_| PushTokenError::Malformed)
}

fn decode_base64url(text: &str) -> Result<Vec<u8>, PushTokenError> {
    URL_SAFE_NO_PAD
        .decode(text)
        .map_err(|_| PushTokenError::Malformed)
}

/// Who pushes and for whom, in Google's own words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PushIdentity {
    /// What the push is meant for.
    pub audience: String,
    /// The service account's address, if Google vouches for it.
    pub account: Option<String>,
}

/// What a tenant says about its pushes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PushSettings {
    /// What they must be meant for. `None`: the address they are pushed to, which is what Pub/Sub puts there when it is
    /// not told otherwise.
    pub audience: Option<String>,
    /// Who must push them. `None`: nobody may.
    pub account: Option<String>,
}

impl PushIdentity {
    /// Whether this is who `tenant` says it is.
    pub fn check_push_settings(
        &self,
        tenant: &TenantId,
        settings: &PushSettings,
    ) -> Result<(), PushTokenError> {
        let account = settings
            .account
            .as_ref()
            .ok_or(PushTokenError::NoServiceAccount)?;
        let is_meant = match &settings.audience {
            Some(audience) => self.audience == *audience,
            None => is_webhook_url_of(tenant, &self.audience),
        };
        if !is_meant {
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

/// Whether an audience is the address that this tenant's pushes go to. Under which name this service is reached from
/// outside is not known here, and a proxy may put a path in front; the tenant's id stands in no other tenant's address.
fn is_webhook_url_of(tenant: &TenantId, audience: &str) -> bool {
    let Ok(url) = Url::parse(audience) else {
        return false;
    };
    matches!(url.scheme(), "https" | "http")
        && url
            .path()
            .ends_with(&format!("/v1/webhooks/google/{tenant}"))
}

/// One of Google's keys.
pub struct GooglePublicKey(PublicKeyComponents<Vec<u8>>);

impl fmt::Debug for GooglePublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PublicKey")
    }
}

/// Why a key cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyLookupError {
    /// Google has no such key.
    #[error("Google has no such key")]
    Unknown,
    /// Nobody knows: Google's key endpoint does not answer.
    #[error("Google's keys cannot be had right now")]
    Unreachable,
}

/// Google's keys, as one process remembers them. Clones share what is remembered.
#[derive(Clone)]
pub struct GoogleKeys {
    upstream: Upstream,
    url: Url,
    clock: Clock,
    cache: Arc<Mutex<CachedKeys>>,
    /// Held by whoever asks Google.
    fetch_lock: Arc<tokio::sync::Mutex<()>>,
}

/// All times by [`Clock::uptime`].
#[derive(Default)]
struct CachedKeys {
    keys: HashMap<String, Arc<GooglePublicKey>>,
    fresh_until: Duration,
    requested_at: Option<Duration>,
    /// Whether Google answered when it was last asked.
    is_answered: bool,
}

/// What is known of a key.
enum KeyLookup {
    Found(Arc<GooglePublicKey>),
    /// Google should be asked; until it has answered there is this one, or none.
    Fetch(Option<Arc<GooglePublicKey>>),
    NotFound(KeyLookupError),
}

#[derive(Deserialize)]
struct JwkSet {
    keys: Vec<Jwk>,
}

#[derive(Deserialize)]
struct Jwk {
    kty: Option<String>,
    alg: Option<String>,
    r#use: Option<String>,
    kid: Option<String>,
    n: Option<String>,
    e: Option<String>,
}

impl Jwk {
    /// A key that can have signed with RS256; others may stand in a set too.
    fn into_rs256_key(self) -> Option<(String, Arc<GooglePublicKey>)> {
        let is = |field: Option<String>, wanted: &str| field.is_none_or(|found| found == wanted);
        let fits =
            self.kty.as_deref() == Some("RSA") && is(self.alg, "RS256") && is(self.r#use, "sig");
        let number = |text: Option<String>| URL_SAFE_NO_PAD.decode(text?).ok();
        let (n, e) = (number(self.n)?, number(self.e)?);
        fits.then_some((
            self.kid?,
            Arc::new(GooglePublicKey(PublicKeyComponents { n, e })),
        ))
    }
}

impl GoogleKeys {
    /// The keys that are published at `url`; asked for through the client of `upstream` when the first is needed.
    pub fn new(upstream: &Upstream, url: Url, clock: Clock) -> Self {
        Self {
            upstream: Upstream::new(upstream.client().clone(), FETCH_TIMEOUT),
            url,
            clock,
            cache: Arc::default(),
            fetch_lock: Arc::default(),
        }
    }

    /// The key that Google calls `id`.
    pub async fn find_key(&self, id: &str) -> Result<Arc<GooglePublicKey>, KeyLookupError> {
        match self.lookup_cached(id) {
            KeyLookup::Found(key) => return Ok(key),
            KeyLookup::Fetch(Some(key)) => {
                // One refreshes; the others go on with what there is.
                let Ok(_turn) = self.fetch_lock.try_lock() else {
                    return Ok(key);
                };
                self.fetch_keys().await;
            }
            KeyLookup::Fetch(None) | KeyLookup::NotFound(_) => {
                // Whoever has the turn may be bringing it.
                let _turn = self.fetch_lock.lock().await;
                if matches!(self.lookup_cached(id), KeyLookup::Fetch(_)) {
                    self.fetch_keys().await;
                }
            }
        }
        match self.lookup_cached(id) {
            KeyLookup::Found(key) | KeyLookup::Fetch(Some(key)) => Ok(key),
            KeyLookup::NotFound(why) => Err(why),
            KeyLookup::Fetch(None) => Err(KeyLookupError::Unreachable),
        }
    }

    fn lookup_cached(&self, id: &str) -> KeyLookup {
        let now = self.clock.uptime();
        let known = self.lock_cache();
        let may_ask = known
            .requested_at
            .is_none_or(|asked| now.saturating_sub(asked) >= FETCH_INTERVAL);
        let is_fresh = now < known.fresh_until;
        let key = known
            .keys
            .get(id)
            .filter(|_| now < known.fresh_until + STALE_KEY_TTL)
            .cloned();
        match key {
            Some(key) if is_fresh || !may_ask => KeyLookup::Found(key),
            key if may_ask => KeyLookup::Fetch(key),
            // The last question was answered, and this key was not in the answer.
            _ if known.is_answered => KeyLookup::NotFound(KeyLookupError::Unknown),
            _ => KeyLookup::NotFound(KeyLookupError::Unreachable),
        }
    }

    /// Asks Google, and remembers that it did before it does: a caller who leaves meanwhile must not make it not count.
    async fn fetch_keys(&self) {
        {
            let mut known = self.lock_cache();
            known.requested_at = Some(self.clock.uptime());
            known.is_answered = false;
        }
        let answer = self
            .upstream
            .send_with_retries(
                |client| client.get(self.url.clone()),
                |_| RetryDecision::Final,
            )
            .await;
        let problem = match answer {
            Ok(answer) if answer.status.as_u16() == 200 => {
                let keys = parse_key_set(&answer.body);
                if !keys.is_empty() {
                    let mut known = self.lock_cache();
                    known.keys = keys;
                    known.fresh_until = self.clock.uptime() + cache_ttl(&answer.headers);
                    known.is_answered = true;
                    return;
                }
                "no key in the answer".to_owned()
            }
            Ok(answer) => format!("status {}", answer.status.as_u16()),
            Err(error) => error.to_string(),
        };
        tracing::warn!(
            error = problem,
            "google_keys_unavailable: pushes signed with keys at hand are still believed; others are sent again by Google"
        );
    }

    fn lock_cache(&self) -> MutexGuard<'_, CachedKeys> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn parse_key_set(body: &[u8]) -> HashMap<String, Arc<GooglePublicKey>> {
    let set: Option<JwkSet> = serde_json::from_slice(body).ok();
    let keys = set.into_iter().flat_map(|set| set.keys);
    keys.filter_map(Jwk::into_rs256_key).collect()
}

/// How long an answer is fresh (RFC 9111: `max-age` less `Age`), within our own bounds.
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
        .map_or(DEFAULT_KEY_TTL, |life| {
            life.saturating_sub(Duration::from_secs(age.unwrap_or(0)))
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
    use serde_json::{Value, json};

    use super::*;

    const NOW: i64 = 1_775_830_930;
    const TENANT: &str = "tenant_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E";
    static KEY: LazyLock<KeyPair> =
        LazyLock::new(|| KeyPair::generate(KeySize::Rsa2048).expect("a key can be made"));

    fn public_key() -> GooglePublicKey {
        let public = KEY.public_key();
        GooglePublicKey(PublicKeyComponents {
            n: public.modulus().big_endian_without_leading_zero().to_vec(),
            e: public.exponent().big_endian_without_leading_zero().to_vec(),
        })
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
        PushToken::parse(token)?.verify_token(&public_key(), Timestamp::from_millis(NOW * 1000))
    }

    const HEADER: &str = r#"{"alg":"RS256","kid":"k","typ":"JWT"}"#;

    #[test]
    fn every_claim_is_looked_at() {
        let pusher = PushIdentity {
            audience: "https://here.example/push".to_owned(),
            account: Some("push@project.iam.example".to_owned()),
        };
        let nobody = PushIdentity {
            account: None,
            ..pusher.clone()
        };
        let without = |name: &str| {
            let mut claims = claims();
            claims.as_object_mut().expect("an object").remove(name);
            claims
        };
        for (claims, expected) in [
            (claims(), Ok(pusher.clone())),
            (
                claims_with("iss", "accounts.google.com"),
                Ok(pusher.clone()),
            ),
            (
                claims_with("iss", "https://accounts.google.com/"),
                Err(PushTokenError::WrongIssuer),
            ),
            (
                claims_with("iss", "https://example.com"),
                Err(PushTokenError::WrongIssuer),
            ),
            (claims_with("exp", NOW - 59), Ok(pusher.clone())),
            (
                claims_with("exp", NOW - 60),
                Err(PushTokenError::OutsideValidity),
            ),
            (claims_with("iat", NOW + 60), Ok(pusher.clone())),
            (
                claims_with("iat", NOW + 61),
                Err(PushTokenError::OutsideValidity),
            ),
            (
                claims_with("nbf", NOW + 61),
                Err(PushTokenError::OutsideValidity),
            ),
            (claims_with("exp", NOW - 100 + 86_400), Ok(pusher.clone())),
            (
                claims_with("exp", NOW - 100 + 86_401),
                Err(PushTokenError::OutsideValidity),
            ),
            (
                claims_with("exp", i64::MAX),
                Err(PushTokenError::OutsideValidity),
            ),
            (
                claims_with("iat", i64::MIN),
                Err(PushTokenError::OutsideValidity),
            ),
            (claims_with("email_verified", false), Ok(nobody.clone())),
            // Only the truth is true.
            (
                claims_with("email_verified", "true"),
                Err(PushTokenError::Malformed),
            ),
            (without("email_verified"), Ok(nobody.clone())),
            (without("email"), Ok(nobody)),
            (without("aud"), Err(PushTokenError::Malformed)),
            (without("exp"), Err(PushTokenError::Malformed)),
            (without("iat"), Err(PushTokenError::Malformed)),
            (
                claims_with("aud", json!(["https://here.example/push"])),
                Err(PushTokenError::Malformed),
            ),
            (claims_with("exp", "soon"), Err(PushTokenError::Malformed)),
        ] {
            let found = verify(&sign(HEADER, &claims.to_string()));
            assert_eq!(found, expected, "{claims}");
        }
        let twice = claims()
            .to_string()
            .replacen('{', "{\"aud\":\"https://other.example\",", 1);
        assert_eq!(
            verify(&sign(HEADER, &twice)),
            Err(PushTokenError::Malformed)
        );
    }

    #[test]
    fn only_rs256_by_the_right_key() {
        let claims = claims().to_string();
        for (header, expected) in [
            (
                r#"{"alg":"none","kid":"k"}"#,
                PushTokenError::WrongAlgorithm,
            ),
            (
                r#"{"alg":"HS256","kid":"k"}"#,
                PushTokenError::WrongAlgorithm,
            ),
            (
                r#"{"alg":"RS512","kid":"k"}"#,
                PushTokenError::WrongAlgorithm,
            ),
            (
                r#"{"alg":"rs256","kid":"k"}"#,
                PushTokenError::WrongAlgorithm,
            ),
            (r#"{"kid":"k"}"#, PushTokenError::Malformed),
            (r#"{"alg":"RS256"}"#, PushTokenError::UnknownKey),
            (
                r#"{"alg":"RS256","kid":"k","crit":["b64"]}"#,
                PushTokenError::Malformed,
            ),
            (
                r#"{"alg":"RS256","alg":"none","kid":"k"}"#,
                PushTokenError::Malformed,
            ),
        ] {
            assert_eq!(verify(&sign(header, &claims)), Err(expected), "{header}");
        }
        let good = sign(HEADER, &claims);
        let (signed, signature) = good.rsplit_once('.').expect("three parts");
        for (bad, expected) in [
            (String::new(), PushTokenError::Malformed),
            (signed.to_owned(), PushTokenError::Malformed),
            (format!("{signed}."), PushTokenError::BadSignature),
            (format!("{good}."), PushTokenError::Malformed),
            (format!("{good}="), PushTokenError::Malformed),
            (
                format!("{signed}.{}", &signature[..signature.len() - 2]),
                PushTokenError::BadSignature,
            ),
            ("x".repeat(MAX_TOKEN_BYTES + 1), PushTokenError::Malformed),
        ] {
            assert_eq!(verify(&bad), Err(expected), "{bad}");
        }
        let other = KeyPair::generate(KeySize::Rsa2048).expect("a key can be made");
        let public = other.public_key();
        let key = GooglePublicKey(PublicKeyComponents {
            n: public.modulus().big_endian_without_leading_zero().to_vec(),
            e: public.exponent().big_endian_without_leading_zero().to_vec(),
        });
        let found = PushToken::parse(&good)
            .expect("a token")
            .verify_token(&key, Timestamp::from_millis(NOW * 1000));
        assert_eq!(found, Err(PushTokenError::BadSignature));
    }

    #[test]
    fn a_pusher_is_who_the_tenant_named() {
        let tenant: TenantId = TENANT.parse().expect("an id");
        let is = |found: (&str, Option<&str>), named: (Option<&str>, Option<&str>)| {
            let pusher = PushIdentity {
                audience: found.0.to_owned(),
                account: found.1.map(str::to_owned),
            };
            let settings = PushSettings {
                audience: named.0.map(str::to_owned),
                account: named.1.map(str::to_owned),
            };
            pusher.check_push_settings(&tenant, &settings)
        };
        let push = Some("push@project.iam.example");
        let named = (Some("a"), push);
        assert_eq!(is(("a", push), named), Ok(()));
        assert_eq!(is(("a", Some("Push@Project.iam.example")), named), Ok(()));
        assert_eq!(is(("A", push), named), Err(PushTokenError::WrongAudience));
        assert_eq!(
            is(("a", None), named),
            Err(PushTokenError::WrongServiceAccount)
        );
        let other = Some("other@project.iam.example");
        assert_eq!(
            is(("a", other), named),
            Err(PushTokenError::WrongServiceAccount)
        );
        // Where nobody is named, nobody is right, and nobody's missing address least of all.
        assert_eq!(
            is(("a", push), (Some("a"), None)),
            Err(PushTokenError::NoServiceAccount)
        );
        assert_eq!(
            is(("a", None), (Some("a"), None)),
            Err(PushTokenError::NoServiceAccount)
        );
        // Where no audience is set, it is the address, whatever the host is called.
        let here = format!("https://attesto.example/v1/webhooks/google/{TENANT}");
        let below = here.replace("/v1", ":8080/below/v1") + "?x=1";
        for good in [&here, &below] {
            assert_eq!(is((good, push), (None, push)), Ok(()), "{good}");
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
                is((bad, push), (None, push)),
                Err(PushTokenError::WrongAudience),
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
    fn only_keys_that_can_have_signed_are_kept() {
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
        fn no_text_is_taken_for_a_token(text in "[A-Za-z0-9_.=-]{0,200}") {
            prop_assert!(verify(&text).is_err());
        }
    }
}
