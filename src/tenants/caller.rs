//! Authentication: from the `Authorization` header to a [`Caller`], or to a refusal.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{FromRef, FromRequestParts};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use tokio_util::sync::CancellationToken;

use super::tenant::{RateLimit, RateLimitScope};
use crate::base::clock::Clock;
use crate::base::id::{KeyId, TenantId};
use crate::db::change_listener::ChangeListener;
use crate::db::{Database, Error};
use crate::http::api_docs::DocumentedError;
use crate::http::body_budget::RefusalMetrics;
use crate::http::connection_info::ConnectionInfo;
use crate::http::request_layer::RequestLogFields;
use crate::http::{ErrorCode, Problem};
use crate::replicas::{LiveReplicaCount, ReplicaHeartbeat};

use super::api_key::{ApiKeyEnvironment, ApiKeyHash};
use super::api_key_cache::{ApiKeyCache, KeyLookupError};
use super::api_key_usage::{ApiKeyUsage, FlushScope};
use super::rate_limiter::TenantRateLimiter;

/// The reason of a refusal, in metrics and in the log.
const KEY_LOOKUPS_BUSY: &str = "key_lookups";

/// The authenticated sender of a request. A handler with this argument refuses requests without an active API key, and
/// requests beyond the tenant's rate limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// An active tenant.
    pub tenant: TenantId,
    /// The API key of the request.
    pub key: KeyId,
    /// The environment of that key.
    pub environment: ApiKeyEnvironment,
    /// The sealed key of the tenant's hashes of first verifications. `None`: the tenant has not asked for them.
    pub first_seen_key: Option<Arc<[u8]>>,
}

/// Authenticates requests. Clones share the cache, the rate limiter and the record of usage.
#[derive(Clone)]
pub struct Authenticator {
    inner: Arc<AuthenticatorInner>,
    refusals: RefusalMetrics,
    /// `None` if limits are for one process.
    replicas_sharing_limits: Option<LiveReplicaCount>,
}

struct AuthenticatorInner {
    clock: Clock,
    default_limit: RateLimit,
    usage: Arc<ApiKeyUsage>,
    key_cache: ApiKeyCache,
    limiter: TenantRateLimiter,
}

/// Why a request is refused.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// There is no API key, or not an active one.
    #[error("no active API key")]
    Unauthenticated,
    /// The tenant is beyond its rate limit.
    #[error("rate limit of {tenant} exceeded; next request in {wait:?}")]
    RateLimited {
        /// Whose limit it is.
        tenant: TenantId,
        /// The time until the next request is accepted.
        wait: Duration,
    },
    /// Too many other keys are being looked up.
    #[error("too many API keys wait to be looked up")]
    LookupsBusy,
    /// The key could not be looked up.
    #[error("{}", crate::db::describe_cause(.0))]
    Database(#[from] Error),
}

impl From<KeyLookupError> for AuthError {
    fn from(error: KeyLookupError) -> Self {
        match error {
            KeyLookupError::QueueFull(_) => Self::LookupsBusy,
            KeyLookupError::Database(error) => Self::Database(error),
        }
    }
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
            refusals: RefusalMetrics::default(),
            replicas_sharing_limits: None,
        }
    }

    /// The same, and each tenant's limit is divided by the number of processes that serve, if it is for all of them.
    #[must_use]
    pub(crate) fn with_rate_limit_scope(
        self,
        scope: RateLimitScope,
        heartbeat: &ReplicaHeartbeat,
    ) -> Self {
        let replicas_sharing_limits = match scope {
            RateLimitScope::Process => None,
            RateLimitScope::Installation => Some(heartbeat.live_replica_count()),
        };
        Self {
            replicas_sharing_limits,
            ..self
        }
    }

    /// The same, and requests are counted that were refused because too many keys were looked up.
    #[must_use]
    pub(crate) fn with_refusal_metrics(self, refusals: &RefusalMetrics) -> Self {
        refusals.declare_reason(KEY_LOOKUPS_BUSY);
        Self {
            refusals: refusals.clone(),
            ..self
        }
    }

    /// Also records the use of the key, and takes a token of the tenant's rate limit.
    pub async fn authenticate_headers(&self, headers: &HeaderMap) -> Result<Caller, AuthError> {
        let inner = &self.inner;
        let hash = bearer_token(headers)
            .and_then(ApiKeyHash::from_raw_key)
            .ok_or(AuthError::Unauthenticated)?;
        let record = inner
            .key_cache
            .find_key(&hash)
            .await
            .inspect_err(|error| {
                if matches!(error, KeyLookupError::QueueFull(_)) {
                    self.refusals.count_refusal(KEY_LOOKUPS_BUSY);
                }
            })?
            .ok_or(AuthError::Unauthenticated)?;
        record.last_used.record_use(inner.clock.now());
        let limit = record.limits.or_default(inner.default_limit);
        let limit = match &self.replicas_sharing_limits {
            Some(replicas) => limit.divide_by(replicas.get()),
            None => limit,
        };
        inner
            .limiter
            .take_token(&record.tenant, limit)
            .map_err(|wait| AuthError::RateLimited {
                tenant: record.tenant.clone(),
                wait,
            })?;
        Ok(Caller {
            tenant: record.tenant.clone(),
            key: record.key.clone(),
            environment: record.environment,
            first_seen_key: record.first_seen_key.clone(),
        })
    }

    /// Writes `api_keys.last_used_at` every few seconds until `stop`, and once more then.
    pub async fn run_usage_writer(&self, stop: CancellationToken) {
        self.inner.usage.run_writer(stop).await;
    }

    /// Writes `api_keys.last_used_at` now, for keys that were not written within the last minute.
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
            // One text whatever the reason: a caller without an active key learns nothing about keys.
            AuthError::Unauthenticated => Self::new(
                ErrorCode::Unauthenticated,
                "Send a valid API key as `Authorization: Bearer attesto_live_…`.",
            ),
            AuthError::RateLimited { wait, .. } => rate_limited_problem(wait),
            AuthError::LookupsBusy => lookups_busy_problem(),
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

fn lookups_busy_problem() -> Problem {
    Problem::new(
        ErrorCode::Unavailable,
        "Attesto is looking up too many API keys right now. Send this request again after Retry-After.",
    )
    .with_retry_after(Duration::from_secs(1))
    .with_cause(AuthError::LookupsBusy)
    .with_cause_class(KEY_LOOKUPS_BUSY)
}

/// The errors of every route that requires an API key, for the OpenAPI document.
pub fn describe_auth_errors() -> [DocumentedError; 4] {
    [
        DocumentedError::new(
            "there is no good API key: none, or one that is malformed, unknown, revoked, or of an inactive tenant",
            AuthError::Unauthenticated,
        ),
        DocumentedError::new(
            "this tenant asks more often than its limit allows",
            rate_limited_problem(Duration::from_secs(1)),
        ),
        DocumentedError::new(
            "too many API keys that were not used before are being looked up",
            lookups_busy_problem(),
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
        // The log names the tenant also when the request is refused by its rate limit.
        let tenant = match &caller {
            Ok(Caller { tenant, .. }) | Err(AuthError::RateLimited { tenant, .. }) => Some(tenant),
            Err(_) => None,
        };
        if let (Some(tenant), Some(fields)) = (tenant, parts.extensions.get::<RequestLogFields>()) {
            fields.set_tenant(tenant.as_str());
        }
        if let (Ok(_), Some(connection)) = (&caller, parts.extensions.get::<ConnectionInfo>()) {
            connection.mark_authenticated();
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
