//! Calls to a store's API with a bearer token.

use std::time::Duration;

use reqwest::{Client, RequestBuilder};
use url::Url;

use crate::base::id::TenantId;
use crate::credentials::token_cache::AccessToken;
use crate::crypto::token;
use crate::outbound::{
    Bulkhead, MAX_CONCURRENT_CALLS, RetryDecision, Upstream, UpstreamError, UpstreamResponse,
};

/// How many calls of one tenant may run at once, and fewer while many other calls do.
pub(crate) const MAX_CALLS_PER_TENANT: usize = 64;
/// How long a call waits until another one of the same tenant has ended.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(2);

/// Where the bearer tokens for a store's API come from.
pub(crate) trait BearerTokens {
    /// What a token is made with.
    type Credentials;
    /// Why a call has no answer.
    type Error: From<UpstreamError> + From<TooManyCallsError>;

    /// A token that is valid for some time, cached or new.
    fn get_token(
        &self,
        tenant: &TenantId,
        credentials: &Self::Credentials,
    ) -> impl Future<Output = Result<AccessToken, Self::Error>> + Send;

    /// Removes `token` from the cache, because the store refused it. A newer one of the same tenant stays.
    fn evict_token(&self, tenant: &TenantId, credentials: &Self::Credentials, token: &AccessToken);

    /// Whether to keep a token that the store has just refused with `_response`, because another one would be refused too.
    /// `is_replacement`: it was requested because the one before it was refused.
    fn keeps_refused_token(
        &self,
        _tenant: &TenantId,
        _credentials: &Self::Credentials,
        _token: &AccessToken,
        _response: &UpstreamResponse,
        _is_replacement: bool,
    ) -> bool {
        false
    }
}

/// [`MAX_CALLS_PER_TENANT`] calls of the tenant are running, and none of them ended in time.
pub(crate) struct TooManyCallsError;

/// The key under which identical calls share one answer: the tenant, a digest of its credentials, and a digest of the
/// URL, so that no purchase token is kept in a second place.
pub(crate) type CallKey = (TenantId, [u8; 32], [u8; 32]);

pub(crate) fn call_key(tenant: &TenantId, identity_digest: [u8; 32], url: &Url) -> CallKey {
    let url_digest = token::sha256(url.as_str().as_bytes());
    (tenant.clone(), identity_digest, url_digest)
}

/// One store's API. Clones share the tokens and the limit.
#[derive(Clone)]
pub(crate) struct StoreApi<T> {
    pub(crate) upstream: Upstream,
    tokens: T,
    bulkhead: Bulkhead<TenantId>,
}

impl<T: BearerTokens> StoreApi<T> {
    pub(crate) fn new(upstream: Upstream, tokens: T) -> Self {
        Self {
            upstream,
            tokens,
            bulkhead: Bulkhead::new(MAX_CALLS_PER_TENANT, MAX_CONCURRENT_CALLS),
        }
    }

    /// Sends the request that `build` makes, with a token. An answer of status 401 removes the token, and the request
    /// is sent once more with a new one, unless that would be refused too.
    pub(crate) async fn send_request(
        &self,
        tenant: &TenantId,
        credentials: &T::Credentials,
        build: impl Fn(&Client) -> RequestBuilder,
        classify: impl Fn(&UpstreamResponse) -> RetryDecision,
    ) -> Result<UpstreamResponse, T::Error> {
        let _permit = self
            .bulkhead
            .acquire_permit(tenant, QUEUE_TIMEOUT)
            .await
            .ok_or(TooManyCallsError)?;
        let mut tries_left = 2;
        loop {
            tries_left -= 1;
            let token = self.tokens.get_token(tenant, credentials).await?;
            let response = self
                .upstream
                .send_with_retries(
                    |client| build(client).bearer_auth(token.secret()),
                    &classify,
                )
                .await?;
            if response.status.as_u16() == 401 {
                let is_replacement = tries_left == 0;
                let tokens = &self.tokens;
                let is_kept = tokens.keeps_refused_token(
                    tenant,
                    credentials,
                    &token,
                    &response,
                    is_replacement,
                );
                if !is_kept {
                    tokens.evict_token(tenant, credentials, &token);
                    if tries_left > 0 {
                        continue;
                    }
                }
            }
            return Ok(response);
        }
    }
}
