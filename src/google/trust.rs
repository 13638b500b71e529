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

use crate::clock::{Clock, Timestamp};
use crate::id::TenantId;
use crate::outbound::{Upstream, Verdict};

/// A token is about 900 bytes.
const LONGEST_TOKEN: usize = 8 * 1024;
/// How far Google's clock and ours may be apart, in seconds.
const SKEW: i64 = 60;
/// Google's tokens live an hour; what claims to live longer than a day is none.
const LONGEST_LIFE: i64 = 86_400;
/// Who Google says it is, in both spellings it uses.
const ISSUERS: [&str; 2] = ["https://accounts.google.com", "accounts.google.com"];

/// Google is asked for its keys at most this often, whatever the tokens say.
const ASK_EVERY: Duration = Duration::from_mins(1);
/// A push must be answered within ten seconds, and other things have to be asked too.
const ASK_DEADLINE: Duration = Duration::from_secs(3);
/// How long keys are fresh when Google does not say, and the least and the most that is believed.
const USUAL_LIFE: Duration = Duration::from_hours(1);
const SHORTEST_LIFE: Duration = Duration::from_mins(1);
const LONGEST_KEY_LIFE: Duration = Duration::from_hours(24);
/// How long keys that are no longer fresh are used while Google's endpoint is away.
const STALE_FOR: Duration = Duration::from_hours(24);

/// Why a push is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Untrusted {
    /// There is no token, or more than one.
    #[error("no bearer token")]
    Missing,
    /// It is no token.
    #[error("not a token")]
    Malformed,
    /// It is signed in another way than RS256.
    #[error("not signed with RS256")]
    Algorithm,
    /// Google has no such key.
    #[error("signed with a key that is not Google's")]
    UnknownKey,
    /// The signature is wrong.
    #[error("the signature is wrong")]
    Signature,
    /// It was not issued by Google's accounts.
    #[error("not issued by accounts.google.com")]
    Issuer,
    /// It has expired, is of the future, or claims to live for days.
    #[error("expired, or not yet good: are the clocks right?")]
    Time,
    /// The tenant does not exist or has no Google credentials.
    #[error("the tenant has no Google credentials")]
    NoCredentials,
    /// The tenant has not said who pushes.
    #[error(
        "the tenant has named no account that pushes: set it with `attesto google set-credentials --pubsub-service-account`"
    )]
    NoAccount,
    /// It is meant for somebody else.
    #[error("the audience is another one")]
    Audience,
    /// It is another account's, or Google does not vouch for the address.
    #[error("the account is another one, or not verified")]
    Account,
}

/// A token, read and not yet believed.
#[derive(Debug)]
pub struct Token<'a> {
    key_id: String,
    signed: &'a [u8],
    signature: Vec<u8>,
    claims: &'a str,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    #[serde(default)]
    crit: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
struct Claims {
    iss: String,
    aud: String,
    exp: i64,
    iat: i64,
    nbf: Option<i64>,
    email: Option<String>,
    email_verified: Option<bool>,
}

impl<'a> Token<'a> {
    /// Reads the three parts of a compact JWS; looks at no claim.
    pub fn parse(text: &'a str) -> Result<Self, Untrusted> {
        if text.len() > LONGEST_TOKEN {
            return Err(Untrusted::Malformed);
        }
        let (signed, signature) = text.rsplit_once('.').ok_or(Untrusted::Malformed)?;
        let (header, claims) = signed.split_once('.').ok_or(Untrusted::Malformed)?;
        if claims.contains('.') {
            return Err(Untrusted::Malformed);
        }
        let Header { alg, kid, crit } = part(header)?;
        if alg != "RS256" {
            return Err(Untrusted::Algorithm);
        }
        // What must be understood and is not: RFC 7515, 4.1.11.
        if crit.is_some() {
            return Err(Untrusted::Malformed);
        }
        Ok(Self {
            key_id: kid.ok_or(Untrusted::UnknownKey)?,
            signed: signed.as_bytes(),
            signature: decode(signature)?,
            claims,
        })
    }

    /// The name of the key that is said to have signed it.
    pub fn key_id(&self) -> &str {
        &self.key_id
    }

    /// Who pushes, if `key` signed this, Google issued it, and it is good at `now`.
    pub fn verify(&self, key: &PublicKey, now: Timestamp) -> Result<Pusher, Untrusted> {
        key.0
            .verify(&RSA_PKCS1_2048_8192_SHA256, self.signed, &self.signature)
            .map_err(|_| Untrusted::Signature)?;
        let claims: Claims = part(self.claims)?;
        if !ISSUERS.contains(&claims.iss.as_str()) {
            return Err(Untrusted::Issuer);
        }
        let now = now.seconds();
        let begins = claims.nbf.unwrap_or(claims.iat).max(claims.iat);
        let is_good = claims.exp.saturating_add(SKEW) > now
            && begins.saturating_sub(SKEW) <= now
            && (0..=LONGEST_LIFE).contains(&claims.exp.saturating_sub(claims.iat));
        if !is_good {
            return Err(Untrusted::Time);
        }
        Ok(Pusher {
            audience: claims.aud,
            account: claims.email.filter(|_| claims.email_verified == Some(true)),
        })
    }
}

fn part<T: DeserializeOwned>(text: &str) -> Result<T, Untrusted> {
    serde_json::from_slice(&decode(text)?).map_err(|_| Untrusted::Malformed)
}

fn decode(text: &str) -> Result<Vec<u8>, Untrusted> {
    URL_SAFE_NO_PAD
        .decode(text)
        .map_err(|_| Untrusted::Malformed)
}

/// Who pushes and for whom, in Google's own words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pusher {
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

impl Pusher {
    /// Whether this is who `tenant` says it is.
    pub fn is(&self, tenant: &TenantId, settings: &PushSettings) -> Result<(), Untrusted> {
        let account = settings.account.as_ref().ok_or(Untrusted::NoAccount)?;
        let is_meant = match &settings.audience {
            Some(audience) => self.audience == *audience,
            None => is_address_of(tenant, &self.audience),
        };
        if !is_meant {
            return Err(Untrusted::Audience);
        }
        let is_account = self
            .account
            .as_ref()
            .is_some_and(|found| found.eq_ignore_ascii_case(account));
        if is_account {
            Ok(())
        } else {
            Err(Untrusted::Account)
        }
    }
}

/// Whether an audience is the address that this tenant's pushes go to. Under which name this service is reached from
/// outside is not known here, and a proxy may put a path in front; the tenant's id stands in no other tenant's address.
fn is_address_of(tenant: &TenantId, audience: &str) -> bool {
    let Ok(url) = Url::parse(audience) else {
        return false;
    };
    matches!(url.scheme(), "https" | "http")
        && url
            .path()
            .ends_with(&format!("/v1/webhooks/google/{tenant}"))
}

/// One of Google's keys.
pub struct PublicKey(PublicKeyComponents<Vec<u8>>);

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PublicKey")
    }
}

/// Why a key cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoKey {
    /// Google has no such key.
    #[error("Google has no such key")]
    Unknown,
    /// Nobody knows: Google's key endpoint does not answer.
    #[error("Google's keys cannot be had right now")]
    Unreachable,
}

/// Google's keys, as one process remembers them. Clones share what is remembered.
#[derive(Clone)]
pub struct Keys {
    upstream: Upstream,
    url: Url,
    clock: Clock,
    known: Arc<Mutex<Known>>,
    /// Held by whoever asks Google.
    turn: Arc<tokio::sync::Mutex<()>>,
}

/// All times by [`Clock::uptime`].
#[derive(Default)]
struct Known {
    keys: HashMap<String, Arc<PublicKey>>,
    fresh_until: Duration,
    asked: Option<Duration>,
    /// Whether Google answered when it was last asked.
    answered: bool,
}

/// What is known of a key.
enum Look {
    Key(Arc<PublicKey>),
    /// Google should be asked; until it has answered there is this one, or none.
    Ask(Option<Arc<PublicKey>>),
    Absent(NoKey),
}

#[derive(Deserialize)]
struct KeySet {
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
    fn read(self) -> Option<(String, Arc<PublicKey>)> {
        let is = |field: Option<String>, wanted: &str| field.is_none_or(|found| found == wanted);
        let fits =
            self.kty.as_deref() == Some("RSA") && is(self.alg, "RS256") && is(self.r#use, "sig");
        let number = |text: Option<String>| URL_SAFE_NO_PAD.decode(text?).ok();
        let (n, e) = (number(self.n)?, number(self.e)?);
        fits.then_some((self.kid?, Arc::new(PublicKey(PublicKeyComponents { n, e }))))
    }
}

impl Keys {
    /// The keys that are published at `url`; asked for through the client of `upstream` when the first is needed.
    pub fn new(upstream: &Upstream, url: Url, clock: Clock) -> Self {
        Self {
            upstream: Upstream::new(upstream.client().clone(), ASK_DEADLINE),
            url,
            clock,
            known: Arc::default(),
            turn: Arc::default(),
        }
    }

    /// The key that Google calls `id`.
    pub async fn find(&self, id: &str) -> Result<Arc<PublicKey>, NoKey> {
        match self.look(id) {
            Look::Key(key) => return Ok(key),
            Look::Ask(Some(key)) => {
                // One refreshes; the others go on with what there is.
                let Ok(_turn) = self.turn.try_lock() else {
                    return Ok(key);
                };
                self.ask().await;
            }
            Look::Ask(None) | Look::Absent(_) => {
                // Whoever has the turn may be bringing it.
                let _turn = self.turn.lock().await;
                if matches!(self.look(id), Look::Ask(_)) {
                    self.ask().await;
                }
            }
        }
        match self.look(id) {
            Look::Key(key) | Look::Ask(Some(key)) => Ok(key),
            Look::Absent(why) => Err(why),
            Look::Ask(None) => Err(NoKey::Unreachable),
        }
    }

    fn look(&self, id: &str) -> Look {
        let now = self.clock.uptime();
        let known = self.known();
        let may_ask = known
            .asked
            .is_none_or(|asked| now.saturating_sub(asked) >= ASK_EVERY);
        let is_fresh = now < known.fresh_until;
        let key = known
            .keys
            .get(id)
            .filter(|_| now < known.fresh_until + STALE_FOR)
            .cloned();
        match key {
            Some(key) if is_fresh || !may_ask => Look::Key(key),
            key if may_ask => Look::Ask(key),
            // The last question was answered, and this key was not in the answer.
            _ if known.answered => Look::Absent(NoKey::Unknown),
            _ => Look::Absent(NoKey::Unreachable),
        }
    }

    /// Asks Google, and remembers that it did before it does: a caller who leaves meanwhile must not make it not count.
    async fn ask(&self) {
        {
            let mut known = self.known();
            known.asked = Some(self.clock.uptime());
            known.answered = false;
        }
        let answer = self
            .upstream
            .send(|client| client.get(self.url.clone()), |_| Verdict::Final)
            .await;
        let problem = match answer {
            Ok(answer) if answer.status.as_u16() == 200 => {
                let keys = read_keys(&answer.body);
                if !keys.is_empty() {
                    let mut known = self.known();
                    known.keys = keys;
                    known.fresh_until = self.clock.uptime() + lifetime(&answer.headers);
                    known.answered = true;
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

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read_keys(body: &[u8]) -> HashMap<String, Arc<PublicKey>> {
    let set: Option<KeySet> = serde_json::from_slice(body).ok();
    let keys = set.into_iter().flat_map(|set| set.keys);
    keys.filter_map(Jwk::read).collect()
}

/// How long an answer is fresh (RFC 9111: `max-age` less `Age`), within our own bounds.
fn lifetime(headers: &HeaderMap) -> Duration {
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
        .map_or(USUAL_LIFE, |life| {
            life.saturating_sub(Duration::from_secs(age.unwrap_or(0)))
        })
        .clamp(SHORTEST_LIFE, LONGEST_KEY_LIFE)
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

    fn public_key() -> PublicKey {
        let public = KEY.public_key();
        PublicKey(PublicKeyComponents {
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

    fn with(name: &str, value: impl Into<Value>) -> Value {
        let mut claims = claims();
        claims[name] = value.into();
        claims
    }

    fn verify(token: &str) -> Result<Pusher, Untrusted> {
        Token::parse(token)?.verify(&public_key(), Timestamp::from_millis(NOW * 1000))
    }

    const HEADER: &str = r#"{"alg":"RS256","kid":"k","typ":"JWT"}"#;

    #[test]
    fn every_claim_is_looked_at() {
        let pusher = Pusher {
            audience: "https://here.example/push".to_owned(),
            account: Some("push@project.iam.example".to_owned()),
        };
        let nobody = Pusher {
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
            (with("iss", "accounts.google.com"), Ok(pusher.clone())),
            (
                with("iss", "https://accounts.google.com/"),
                Err(Untrusted::Issuer),
            ),
            (with("iss", "https://example.com"), Err(Untrusted::Issuer)),
            (with("exp", NOW - 59), Ok(pusher.clone())),
            (with("exp", NOW - 60), Err(Untrusted::Time)),
            (with("iat", NOW + 60), Ok(pusher.clone())),
            (with("iat", NOW + 61), Err(Untrusted::Time)),
            (with("nbf", NOW + 61), Err(Untrusted::Time)),
            (with("exp", NOW - 100 + 86_400), Ok(pusher.clone())),
            (with("exp", NOW - 100 + 86_401), Err(Untrusted::Time)),
            (with("exp", i64::MAX), Err(Untrusted::Time)),
            (with("iat", i64::MIN), Err(Untrusted::Time)),
            (with("email_verified", false), Ok(nobody.clone())),
            // Only the truth is true.
            (with("email_verified", "true"), Err(Untrusted::Malformed)),
            (without("email_verified"), Ok(nobody.clone())),
            (without("email"), Ok(nobody)),
            (without("aud"), Err(Untrusted::Malformed)),
            (without("exp"), Err(Untrusted::Malformed)),
            (without("iat"), Err(Untrusted::Malformed)),
            (
                with("aud", json!(["https://here.example/push"])),
                Err(Untrusted::Malformed),
            ),
            (with("exp", "soon"), Err(Untrusted::Malformed)),
        ] {
            let found = verify(&sign(HEADER, &claims.to_string()));
            assert_eq!(found, expected, "{claims}");
        }
        let twice = claims()
            .to_string()
            .replacen('{', "{\"aud\":\"https://other.example\",", 1);
        assert_eq!(verify(&sign(HEADER, &twice)), Err(Untrusted::Malformed));
    }

    #[test]
    fn only_rs256_by_the_right_key() {
        let claims = claims().to_string();
        for (header, expected) in [
            (r#"{"alg":"none","kid":"k"}"#, Untrusted::Algorithm),
            (r#"{"alg":"HS256","kid":"k"}"#, Untrusted::Algorithm),
            (r#"{"alg":"RS512","kid":"k"}"#, Untrusted::Algorithm),
            (r#"{"alg":"rs256","kid":"k"}"#, Untrusted::Algorithm),
            (r#"{"kid":"k"}"#, Untrusted::Malformed),
            (r#"{"alg":"RS256"}"#, Untrusted::UnknownKey),
            (
                r#"{"alg":"RS256","kid":"k","crit":["b64"]}"#,
                Untrusted::Malformed,
            ),
            (
                r#"{"alg":"RS256","alg":"none","kid":"k"}"#,
                Untrusted::Malformed,
            ),
        ] {
            assert_eq!(verify(&sign(header, &claims)), Err(expected), "{header}");
        }
        let good = sign(HEADER, &claims);
        let (signed, signature) = good.rsplit_once('.').expect("three parts");
        for (bad, expected) in [
            (String::new(), Untrusted::Malformed),
            (signed.to_owned(), Untrusted::Malformed),
            (format!("{signed}."), Untrusted::Signature),
            (format!("{good}."), Untrusted::Malformed),
            (format!("{good}="), Untrusted::Malformed),
            (
                format!("{signed}.{}", &signature[..signature.len() - 2]),
                Untrusted::Signature,
            ),
            ("x".repeat(LONGEST_TOKEN + 1), Untrusted::Malformed),
        ] {
            assert_eq!(verify(&bad), Err(expected), "{bad}");
        }
        let other = KeyPair::generate(KeySize::Rsa2048).expect("a key can be made");
        let public = other.public_key();
        let key = PublicKey(PublicKeyComponents {
            n: public.modulus().big_endian_without_leading_zero().to_vec(),
            e: public.exponent().big_endian_without_leading_zero().to_vec(),
        });
        let found = Token::parse(&good)
            .expect("a token")
            .verify(&key, Timestamp::from_millis(NOW * 1000));
        assert_eq!(found, Err(Untrusted::Signature));
    }

    #[test]
    fn a_pusher_is_who_the_tenant_named() {
        let tenant: TenantId = TENANT.parse().expect("an id");
        let is = |found: (&str, Option<&str>), named: (Option<&str>, Option<&str>)| {
            let pusher = Pusher {
                audience: found.0.to_owned(),
                account: found.1.map(str::to_owned),
            };
            let settings = PushSettings {
                audience: named.0.map(str::to_owned),
                account: named.1.map(str::to_owned),
            };
            pusher.is(&tenant, &settings)
        };
        let push = Some("push@project.iam.example");
        let named = (Some("a"), push);
        assert_eq!(is(("a", push), named), Ok(()));
        assert_eq!(is(("a", Some("Push@Project.iam.example")), named), Ok(()));
        assert_eq!(is(("A", push), named), Err(Untrusted::Audience));
        assert_eq!(is(("a", None), named), Err(Untrusted::Account));
        let other = Some("other@project.iam.example");
        assert_eq!(is(("a", other), named), Err(Untrusted::Account));
        // Where nobody is named, nobody is right, and nobody's missing address least of all.
        assert_eq!(
            is(("a", push), (Some("a"), None)),
            Err(Untrusted::NoAccount)
        );
        assert_eq!(
            is(("a", None), (Some("a"), None)),
            Err(Untrusted::NoAccount)
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
                Err(Untrusted::Audience),
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
                lifetime(&headers).as_secs(),
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
            read_keys(set.as_bytes()).len()
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
            assert!(read_keys(body.as_bytes()).is_empty());
        }
    }

    proptest! {
        #[test]
        fn no_text_is_taken_for_a_token(text in "[A-Za-z0-9_.=-]{0,200}") {
            prop_assert!(verify(&text).is_err());
        }
    }
}
