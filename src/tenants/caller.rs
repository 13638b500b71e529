//! Who is calling: from the `Authorization` header to a [`Caller`], or to the one refusal there is.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{FromRef, FromRequestParts};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use tokio_util::sync::CancellationToken;

use super::tenant::RateLimit;
use crate::clock::Clock;
use crate::db::changes::Changes;
use crate::db::{Database, Error};
use crate::http::described::Described;
use crate::http::envelope::LogFields;
use crate::http::{Code, Problem};
use crate::id::{KeyId, TenantId};

use super::api_key::{KeyEnvironment, KeyHash};
use super::directory::Directory;
use super::limiter::Limiter;
use super::usage::{Due, Usage};

/// Who is calling. As an argument of a handler it demands an API key: the request is refused without a good one, and
/// when the tenant asks too often.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The tenant.
    pub tenant: TenantId,
    /// The key it used.
    pub key: KeyId,
    /// What that key is for.
    pub environment: KeyEnvironment,
}

/// Tells who is calling. Clones share everything.
#[derive(Clone)]
pub struct Callers {
    inner: Arc<Inner>,
}

struct Inner {
    clock: Clock,
    limit: RateLimit,
    usage: Arc<Usage>,
    directory: Directory,
    limiter: Limiter,
}

/// Why a request is not let in.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// No key, no good key, or not a key at all.
    #[error("no good API key")]
    Unauthenticated,
    /// The tenant asks too often; it may ask again after this time.
    #[error("asked too often, by {tenant}; again in {wait:?}")]
    TooOften {
        /// Who.
        tenant: TenantId,
        /// How long to wait.
        wait: Duration,
    },
    /// Whether the key is good could not be found out.
    #[error(transparent)]
    Unknown(#[from] Error),
}

impl Callers {
    /// `limit` is for tenants without limits of their own.
    pub fn new(database: &Database, changes: &Changes, clock: &Clock, limit: RateLimit) -> Self {
        let usage = Arc::new(Usage::new(database.clone(), clock.clone()));
        Self {
            inner: Arc::new(Inner {
                clock: clock.clone(),
                limit,
                directory: Directory::new(
                    database.clone(),
                    changes.clone(),
                    clock.clone(),
                    usage.clone(),
                ),
                limiter: Limiter::new(clock.clone()),
                usage,
            }),
        }
    }

    /// Who sends these headers.
    pub async fn identify(&self, headers: &HeaderMap) -> Result<Caller, Refused> {
        let inner = &self.inner;
        let hash = bearer(headers)
            .and_then(KeyHash::of)
            .ok_or(Refused::Unauthenticated)?;
        let facts = inner
            .directory
            .find(&hash)
            .await?
            .ok_or(Refused::Unauthenticated)?;
        facts.used.touch(inner.clock.now());
        inner
            .limiter
            .take(&facts.tenant, facts.limits.or(inner.limit))
            .map_err(|wait| Refused::TooOften {
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
    pub async fn run(&self, stop: CancellationToken) {
        self.inner.usage.run(stop).await;
    }

    /// Writes down when keys were last used, now: for keys not written within the last minute.
    pub async fn write_usage(&self) -> Result<(), Error> {
        self.inner.usage.flush(Due::AfterAMinute).await
    }
}

/// The token of the one `Authorization: Bearer …` header. The scheme is written in any case (RFC 9110, 11.1).
pub fn bearer(headers: &HeaderMap) -> Option<&str> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return None;
    };
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    scheme
        .eq_ignore_ascii_case("bearer")
        .then(|| token.trim_matches(' '))
}

impl From<Refused> for Problem {
    fn from(refused: Refused) -> Self {
        match refused {
            // One text whatever the reason: a caller without a good key learns nothing about keys.
            Refused::Unauthenticated => Self::new(
                Code::Unauthenticated,
                "Send a valid API key as `Authorization: Bearer attesto_live_…`.",
            ),
            Refused::TooOften { wait, .. } => too_often(wait),
            Refused::Unknown(error) => error.into(),
        }
    }
}

fn too_often(wait: Duration) -> Problem {
    Problem::new(
        Code::RateLimited,
        "Too many requests from this tenant. Wait as long as Retry-After says.",
    )
    .retry_after(wait)
}

/// What can go wrong with every route that demands an API key, for its description.
pub fn described() -> [Described; 3] {
    [
        Described::new(
            "there is no good API key: none, or one that is malformed, unknown, revoked, or of an inactive tenant",
            Refused::Unauthenticated,
        ),
        Described::new(
            "this tenant asks more often than its limit allows",
            too_often(Duration::from_secs(1)),
        ),
        Described::without_database(),
    ]
}

impl<S: Sync> FromRequestParts<S> for Caller
where
    Callers: FromRef<S>,
{
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let caller = Callers::from_ref(state).identify(&parts.headers).await;
        // Whose request it was is worth knowing above all when it was refused for asking too often.
        let tenant = match &caller {
            Ok(Caller { tenant, .. }) | Err(Refused::TooOften { tenant, .. }) => Some(tenant),
            Err(_) => None,
        };
        if let (Some(tenant), Some(fields)) = (tenant, parts.extensions.get::<LogFields>()) {
            fields.tenant(tenant.as_str());
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
            bearer(&headers).map(str::to_owned)
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
