//! Who is calling: from the `Authorization` header to a [`Caller`], or to the one refusal there is.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{FromRef, FromRequestParts};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use tokio_util::sync::CancellationToken;

use super::tenant::RateLimit;
use crate::base::clock::Clock;
use crate::base::id::{KeyId, TenantId};
use crate::db::change_listener::ChangeListener;
use crate::db::{Database, Error};
use crate::http::api_docs::DocumentedError;
use crate::http::request_layer::RequestLogFields;
use crate::http::{ErrorCode, Problem};

use super::api_key::{ApiKeyEnvironment, ApiKeyHash};
use super::api_key_cache::ApiKeyCache;
use super::api_key_usage::{ApiKeyUsage, FlushScope};
use super::rate_limiter::TenantRateLimiter;

/// Who is calling. As an argument of a handler it demands an API key: the request is refused without a good one, and
/// when the tenant asks too often.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The tenant.
    pub tenant: TenantId,
    /// The key it used.
    pub key: KeyId,
    /// What that key is for.
    pub environment: ApiKeyEnvironment,
}

/// Tells who is calling. Clones share everything.
#[derive(Clone)]
pub struct Authenticator {
    inner: Arc<AuthenticatorInner>,
}

struct AuthenticatorInner {
    clock: Clock,
    default_limit: RateLimit,
    usage: Arc<ApiKeyUsage>,
    key_cache: ApiKeyCache,
    limiter: TenantRateLimiter,
}

/// Why a request is not let in.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// No key, no good key, or not a key at all.
    #[error("no good API key")]
    Unauthenticated,
    /// The tenant asks too often; it may ask again after this time.
    #[error("asked too often, by {tenant}; again in {wait:?}")]
    RateLimited {
        /// Who.
        tenant: TenantId,
        /// How long to wait.
        wait: Duration,
    },
    /// Whether the key is good could not be found out.
    #[error(transparent)]
    Database(#[from] Error),
}

impl Authenticator {
    /// `limit` is for tenants without limits of their own.
    pub fn new(
        database: &Database,
        changes: &ChangeListener,
        clock: &Clock,
        limit: RateLimit,
    ) -> Self {
        let usage = Arc::new(ApiKeyUsage::new(database.clone(), clock.clone()));
        Self {
            inner: Arc::new(AuthenticatorInner {
                clock: clock.clone(),
                default_limit: limit,
                key_cache: ApiKeyCache::new(
                    database.clone(),
                    changes.clone(),
                    clock.clone(),
                    usage.clone(),
                ),
                limiter: TenantRateLimiter::new(clock.clone()),
                usage,
            }),
        }
    }

    /// Who sends these headers.
    pub async fn authenticate_headers(&self, headers: &HeaderMap) -> Result<Caller, AuthError> {
        let inner = &self.inner;
        let hash = bearer_token(headers)
            .and_then(ApiKeyHash::from_raw_key)
            .ok_or(AuthError::Unauthenticated)?;
        let facts = inner
            .key_cache
            .find_key(&hash)
            .await?
            .ok_or(AuthError::Unauthenticated)?;
        facts.last_used.record_use(inner.clock.now());
        inner
            .limiter
            .take_token(&facts.tenant, facts.limits.or_default(inner.default_limit))
            .map_err(|wait| AuthError::RateLimited {
                tenant: facts.tenant.clone(),
                wait,
            })?;
        Ok(Caller {
            tenant: facts.tenant.clone(),
            key: facts.key.clone(),
            environment: facts.environment,
        })
    }

    /// Writes down when keys were last used, until `stop`, and once more then.
    pub async fn run_usage_writer(&self, stop: CancellationToken) {
        self.inner.usage.run_writer(stop).await;
    }

    /// Writes down when keys were last used, now: for keys not written within the last minute.
    pub async fn flush_usage(&self) -> Result<(), Error> {
        self.inner
            .usage
            .flush_due(FlushScope::NotWrittenRecently)
            .await
    }
}

/// The token of the one `Authorization: Bearer …` header. The scheme is written in any case (RFC 9110, 11.1).
pub fn bearer_token(headers: &HeaderMap) -> Option<&str> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return None;
    };
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    scheme
        .eq_ignore_ascii_case("bearer")
        .then(|| token.trim_matches(' '))
}

impl From<AuthError> for Problem {
    fn from(refused: AuthError) -> Self {
        match refused {
            // One text whatever the reason: a caller without a good key learns nothing about keys.
            AuthError::Unauthenticated => Self::new(
                ErrorCode::Unauthenticated,
                "Send a valid API key as `Authorization: Bearer attesto_live_…`.",
            ),
            AuthError::RateLimited { wait, .. } => rate_limited_problem(wait),
            AuthError::Database(error) => error.into(),
        }
    }
}

fn rate_limited_problem(wait: Duration) -> Problem {
    Problem::new(
        ErrorCode::RateLimited,
        "Too many requests from this tenant. Wait as long as Retry-After says.",
    )
    .with_retry_after(wait)
}

/// What can go wrong with every route that demands an API key, for its description.
pub fn describe_auth_errors() -> [DocumentedError; 3] {
    [
        DocumentedError::new(
            "there is no good API key: none, or one that is malformed, unknown, revoked, or of an inactive tenant",
            AuthError::Unauthenticated,
        ),
        DocumentedError::new(
            "this tenant asks more often than its limit allows",
            rate_limited_problem(Duration::from_secs(1)),
        ),
        DocumentedError::database_unavailable(),
    ]
}

impl<S: Sync> FromRequestParts<S> for Caller
where
    Authenticator: FromRef<S>,
{
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let caller = Authenticator::from_ref(state)
            .authenticate_headers(&parts.headers)
            .await;
        // Whose request it was is worth knowing above all when it was refused for asking too often.
        let tenant = match &caller {
            Ok(Caller { tenant, .. }) | Err(AuthError::RateLimited { tenant, .. }) => Some(tenant),
            Err(_) => None,
        };
        if let (Some(tenant), Some(fields)) = (tenant, parts.extensions.get::<RequestLogFields>()) {
            fields.set_tenant(tenant.as_str());
        }
        Ok(caller?)
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn one_bearer_token_and_nothing_else() {
        let token = |values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(header::AUTHORIZATION, HeaderValue::from_static(value));
            }
            bearer_token(&headers).map(str::to_owned)
        };
        for good in ["Bearer abc", "bearer abc", "BEARER  abc ", "Bearer abc "] {
            assert_eq!(token(&[good]).as_deref(), Some("abc"), "{good}");
        }
        for bad in [
            &[][..],
            &[""],
            &["abc"],
            &["Bearer"],
            &["Basic abc"],
            &["Bearerabc"],
            &["Bearer\tabc"],
            &["Bearer abc", "Bearer abc"],
        ] {
            assert_eq!(token(bad), None, "{bad:?}");
        }
    }
}
