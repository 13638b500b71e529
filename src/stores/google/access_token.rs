//! Access tokens for the Play Developer API, exchanged for a service account's assertions.
//!
//! Guarantees: a token is requested once for all calls that need it at the same time, and renewed a minute before it
//! expires; a token that Google refused is replaced, unless Google says of a new one too that the account lacks the
//! permission: then no further token is requested for some minutes.

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;
use url::Url;

use super::account::GoogleServiceAccount;
use super::api_error::{DEFAULT_RETRY_AFTER, GoogleApiError, is_error_code};
use super::payload::GoogleErrorBody;
use crate::base::cache::Cache;
use crate::base::clock::{Clock, Timestamp};
use crate::base::id::TenantId;
use crate::base::single_flight::SingleFlight;
use crate::credentials::token_cache::{AccessToken, TokenCache, TokenCacheKey};
use crate::crypto::ExposeSecret as _;
use crate::outbound::{RetryDecision, Upstream, UpstreamResponse, parse_retry_after};
use crate::stores::shared::client::BearerTokens;

/// What an access token is requested for.
const PUBLISHER_SCOPE: &str = "https://www.googleapis.com/auth/androidpublisher";
/// A token that expires within this time is not used any more.
const TOKEN_RENEWAL_MARGIN: Duration = Duration::from_mins(1);
/// How long a token is used when Google does not say how long it lasts.
const DEFAULT_TOKEN_TTL_SECONDS: u64 = 300;
/// The longest that a token is used, whatever Google says.
const MAX_TOKEN_TTL_SECONDS: u64 = 3600;
/// How long a token is kept that was refused when it was new, for its account.
const REFUSED_TOKEN_TTL: Duration = Duration::from_mins(10);
/// Far more than there are tenants whose account is refused at the same time.
const MAX_REFUSED_TOKENS: usize = 10_000;

/// Requests access tokens and keeps them until they expire. Clones share them.
#[derive(Clone)]
pub(super) struct AccessTokenSource {
    upstream: Upstream,
    token_url: Url,
    clock: Clock,
    token_cache: TokenCache,
    /// Tokens that were refused when they were new, for their accounts.
    refused_tokens: Cache<TokenCacheKey, AccessToken>,
    in_flight: SingleFlight<TokenCacheKey, Result<AccessToken, GoogleApiError>>,
}

#[derive(Deserialize)]
struct TokenResponse {
    access_token: Option<String>,
    /// Seconds. Google's is a whole number; anything else must not cost a token that works.
    #[serde(default)]
    expires_in: Value,
}

#[derive(Deserialize)]
struct TokenErrorResponse {
    error: Option<String>,
    error_description: Option<String>,
}

impl AccessTokenSource {
    pub(super) fn new(upstream: Upstream, token_url: Url, clock: Clock) -> Self {
        Self {
            upstream,
            token_url,
            token_cache: TokenCache::new(clock.clone(), TOKEN_RENEWAL_MARGIN),
            refused_tokens: Cache::new(clock.clone(), MAX_REFUSED_TOKENS),
            clock,
            in_flight: SingleFlight::default(),
        }
    }

    async fn request_token(
        &self,
        account: &GoogleServiceAccount,
    ) -> Result<AccessToken, GoogleApiError> {
        let assertion = account.sign_assertion(PUBLISHER_SCOPE, &self.token_url, self.clock.now());
        let form = [
            ("grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer"),
            ("assertion", assertion.expose_secret()),
        ];
        let response = self
            .upstream
            .send_with_retries(
                |client| client.post(self.token_url.clone()).form(&form),
                classify_response,
            )
            .await?;
        parse_token_response(&response, self.clock.now())
    }
}

impl BearerTokens for AccessTokenSource {
    type Credentials = Arc<GoogleServiceAccount>;
    type Error = GoogleApiError;

    async fn get_token(
        &self,
        tenant: &TenantId,
        account: &Arc<GoogleServiceAccount>,
    ) -> Result<AccessToken, GoogleApiError> {
        let owner = (tenant.clone(), account.identity_digest());
        if let Some(token) = self.token_cache.get(&owner) {
            return Ok(token);
        }
        let (source, account) = (self.clone(), account.clone());
        self.in_flight
            .share_call(owner.clone(), move || async move {
                // Another request may have ended between the look above and this one.
                if let Some(token) = source.token_cache.get(&owner) {
                    return Ok(token);
                }
                let token = source.request_token(&account).await?;
                source.token_cache.insert(owner, &token);
                Ok(token)
            })
            .await
    }

    fn evict_token(
        &self,
        tenant: &TenantId,
        account: &Arc<GoogleServiceAccount>,
        token: &AccessToken,
    ) {
        let owner = (tenant.clone(), account.identity_digest());
        self.token_cache.remove_refused(&owner, token);
    }

    fn keeps_refused_token(
        &self,
        tenant: &TenantId,
        account: &Arc<GoogleServiceAccount>,
        token: &AccessToken,
        response: &UpstreamResponse,
        is_replacement: bool,
    ) -> bool {
        if !is_account_refused(&response.body) {
            return false;
        }
        let owner = (tenant.clone(), account.identity_digest());
        if is_replacement {
            self.refused_tokens
                .insert(owner, token.clone(), REFUSED_TOKEN_TTL);
            return true;
        }
        let refused = self.refused_tokens.get(&owner);
        refused.is_some_and(|refused| refused.secret() == token.secret())
    }
}

/// Whether an answer of status 401 refuses the account, and not the token: `authError` is said of one that expired or was
/// revoked, and a new one may be good.
fn is_account_refused(body: &[u8]) -> bool {
    let error = serde_json::from_slice::<GoogleErrorBody>(body)
        .ok()
        .and_then(|body| body.error)
        .unwrap_or_default();
    let codes = error.errors.into_iter().filter_map(|error| error.reason);
    codes
        .chain(error.status)
        .any(|code| matches!(&*code, "permissionDenied" | "PERMISSION_DENIED"))
        || error
            .message
            .is_some_and(|message| message.contains("Package not found"))
}

fn classify_response(response: &UpstreamResponse) -> RetryDecision {
    if response.status.is_server_error() {
        RetryDecision::Transient
    } else {
        RetryDecision::Final
    }
}

fn parse_token_response(
    response: &UpstreamResponse,
    now: Timestamp,
) -> Result<AccessToken, GoogleApiError> {
    let status = response.status.as_u16();
    let no_token = || GoogleApiError::Unexpected {
        status,
        reason: None,
        message: Some("the token endpoint gave no token".to_owned()),
        retry_after: None,
    };
    match status {
        200 => {
            let response: TokenResponse =
                serde_json::from_slice(&response.body).map_err(|_| no_token())?;
            // Anything else could not be written into a header.
            let is_header_value = |token: &String| {
                !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic())
            };
            let secret = response
                .access_token
                .filter(is_header_value)
                .ok_or_else(no_token)?;
            let ttl = parse_seconds(&response.expires_in)
                .unwrap_or(DEFAULT_TOKEN_TTL_SECONDS)
                .min(MAX_TOKEN_TTL_SECONDS);
            Ok(AccessToken::new(
                secret.into(),
                now.plus(Duration::from_secs(ttl)),
            ))
        }
        400 | 401 | 403 => {
            let response: TokenErrorResponse =
                serde_json::from_slice(&response.body).map_err(|_| no_token())?;
            Err(GoogleApiError::Unauthorized {
                status,
                reason: response.error.filter(|code| is_error_code(code)),
                message: response.error_description,
            })
        }
        429 => Err(GoogleApiError::RateLimited {
            status,
            retry_after: parse_retry_after(&response.headers, now).unwrap_or(DEFAULT_RETRY_AFTER),
        }),
        _ => Err(no_token()),
    }
}

/// A number of seconds, as a JSON number or string; a fraction is cut off.
fn parse_seconds(value: &Value) -> Option<u64> {
    let text = match value {
        Value::Number(number) => number.to_string(),
        Value::String(text) => text.clone(),
        _ => return None,
    };
    text.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use reqwest::StatusCode;
    use reqwest::header::HeaderMap;

    use super::*;

    fn response(status: u16, body: &str) -> UpstreamResponse {
        UpstreamResponse {
            status: StatusCode::from_u16(status).expect("a status"),
            headers: HeaderMap::new(),
            body: body.as_bytes().to_vec(),
        }
    }

    #[test]
    fn a_token_lasts_as_long_as_google_says_within_bounds() {
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
            let token = parse_token_response(&response(200, body), now).expect("a token");
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
    fn only_a_missing_permission_refuses_the_account() {
        for (body, expected) in [
            (
                r#"{"error":{"errors":[{"reason":"permissionDenied"}]}}"#,
                true,
            ),
            (r#"{"error":{"status":"PERMISSION_DENIED"}}"#, true),
            (
                r#"{"error":{"message":"Package not found: com.example.app."}}"#,
                true,
            ),
            (
                r#"{"error":{"status":"UNAUTHENTICATED","errors":[{"reason":"authError"}]}}"#,
                false,
            ),
            (r#"{"error":{}}"#, false),
            ("<html>", false),
        ] {
            assert_eq!(is_account_refused(body.as_bytes()), expected, "{body}");
        }
    }

    #[test]
    fn an_answer_without_a_token_is_classed() {
        let text = |text: Option<&str>| text.map(str::to_owned);
        let refused = |status, reason, message| GoogleApiError::Unauthorized {
            status,
            reason: text(reason),
            message: text(message),
        };
        let unexpected = |status| GoogleApiError::Unexpected {
            status,
            reason: None,
            message: text(Some("the token endpoint gave no token")),
            retry_after: None,
        };
        let quota = GoogleApiError::RateLimited {
            status: 429,
            retry_after: DEFAULT_RETRY_AFTER,
        };
        let invalid_grant =
            r#"{"error":"invalid_grant","error_description":"Invalid JWT Signature."}"#;
        let invalid_jwt = refused(400, Some("invalid_grant"), Some("Invalid JWT Signature."));
        let invalid_client = refused(401, Some("invalid_client"), None);
        for (status, body, expected) in [
            (400, invalid_grant, invalid_jwt),
            (401, r#"{"error":"invalid_client"}"#, invalid_client),
            (403, "{}", refused(403, None, None)),
            (403, "<html>", unexpected(403)),
            (200, "{}", unexpected(200)),
            (200, "<html>", unexpected(200)),
            (200, r#"{"access_token":""}"#, unexpected(200)),
            (200, r#"{"access_token":"a\nb"}"#, unexpected(200)),
            (302, "", unexpected(302)),
            (429, "{}", quota),
            (503, "{}", unexpected(503)),
        ] {
            let found = parse_token_response(&response(status, body), Timestamp::from_millis(0));
            assert_eq!(found.map(|_| ()), Err(expected), "{status} {body}");
        }
    }
}
