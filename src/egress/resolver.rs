//! Resolves host names, in bounded time.

use std::fmt;
use std::io;
use std::net::{IpAddr, ToSocketAddrs as _};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::base::cache::Cache;
use crate::base::clock::Clock;

/// The system's resolver does not report the TTL of a record. With this TTL, a callback that moves is found again soon,
/// and many deliveries at the same time need only one lookup.
const DNS_CACHE_TTL: Duration = Duration::from_secs(5);
const MAX_CACHED_NAMES: usize = 10_000;
/// A lookup occupies a thread until it ends, even after its timeout. A tenant with slow name servers can occupy as many
/// threads as it has deliveries in flight.
const MAX_LOOKUP_THREADS: usize = 256;
/// If another name was resolved within this time, the name servers of the name itself are the cause of a lookup that
/// times out.
const RESOLVER_ALIVE_WINDOW: Duration = Duration::from_mins(1);

/// Why a name has no addresses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    /// The name does not exist or has no address.
    #[error("the name has no address")]
    NoAddress,
    /// Its name servers do not answer, while those of other names do.
    #[error("the name's own servers do not answer")]
    NameServerUnresponsive,
    /// No lookup is answered, so the cause is on our side.
    #[error("no answer from our own resolver")]
    ResolverUnavailable,
}

type LookupFn = dyn Fn(String) -> BoxFuture<'static, LookupResult> + Send + Sync;
type LookupResult = Result<Vec<IpAddr>, LookupError>;

/// Resolves host names. Clones share the cache.
#[derive(Clone)]
pub struct Resolver {
    lookup_fn: Arc<LookupFn>,
    /// When a lookup last succeeded.
    last_answered_at: Arc<Mutex<Option<Instant>>>,
}

impl Resolver {
    /// The resolver of the operating system, with a cache of a few seconds.
    pub fn from_system() -> Self {
        let system = Arc::new(SystemResolver::default());
        Self::from_fn(move |name| system.clone().resolve_cached(name).boxed())
    }

    /// A resolver that calls a function and does not cache. For tests.
    pub fn from_fn(
        lookup: impl Fn(String) -> BoxFuture<'static, LookupResult> + Send + Sync + 'static,
    ) -> Self {
        Self {
            lookup_fn: Arc::new(lookup),
            last_answered_at: Arc::default(),
        }
    }

    /// The addresses of `name`. Fails after `timeout`.
    pub async fn resolve_name(&self, name: String, timeout: Duration) -> LookupResult {
        let answer = tokio::time::timeout(timeout, (self.lookup_fn)(name)).await;
        let mut answered = self.last_answered_at.lock();
        match answer.unwrap_or(Err(LookupError::ResolverUnavailable)) {
            Ok(addresses) if addresses.is_empty() => Err(LookupError::NoAddress),
            Ok(addresses) => {
                *answered = Some(Instant::now());
                Ok(addresses)
            }
            Err(LookupError::ResolverUnavailable)
                if answered.is_some_and(|moment| moment.elapsed() < RESOLVER_ALIVE_WINDOW) =>
            {
                Err(LookupError::NameServerUnresponsive)
            }
            Err(problem) => Err(problem),
        }
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Resolver")
    }
}

struct SystemResolver {
    threads: Arc<Semaphore>,
    cache: Cache<String, Vec<IpAddr>, LookupError>,
}

impl Default for SystemResolver {
    fn default() -> Self {
        Self {
            threads: Arc::new(Semaphore::new(MAX_LOOKUP_THREADS)),
            cache: Cache::new(Clock::system(), MAX_CACHED_NAMES),
        }
    }
}

impl SystemResolver {
    async fn resolve_cached(self: Arc<Self>, name: String) -> LookupResult {
        let lookup = query_system_resolver(name.clone(), self.threads.clone());
        self.cache
            .get_or_load(name, |_| DNS_CACHE_TTL, lookup)
            .await
    }
}

async fn query_system_resolver(name: String, threads: Arc<Semaphore>) -> LookupResult {
    let permit = threads.acquire_owned().await;
    let lookup = tokio::task::spawn_blocking(move || {
        // Held until the lookup ends, also after its timeout.
        let _permit = permit;
        (name.as_str(), 0).to_socket_addrs()
    });
    match lookup.await {
        Ok(Ok(addresses)) => Ok(addresses.map(|socket| socket.ip()).collect()),
        Ok(Err(problem)) if is_temporary(&problem) => Err(LookupError::ResolverUnavailable),
        Ok(Err(_)) => Err(LookupError::NoAddress),
        Err(_) => Err(LookupError::ResolverUnavailable),
    }
}

/// The standard library keeps only the message of an error from `getaddrinfo`. These are the messages of glibc and musl
/// for `EAI_AGAIN`.
fn is_temporary(problem: &io::Error) -> bool {
    let words = problem.to_string();
    words.contains("Temporary failure") || words.contains("Try again")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_systems_resolver_is_asked() {
        let resolver = Resolver::from_system();
        let timeout = Duration::from_secs(3);
        let found = resolver
            .resolve_name("localhost".into(), timeout)
            .await
            .unwrap();
        assert!(found.iter().all(IpAddr::is_loopback), "{found:?}");
        let found = resolver.resolve_name("127.0.0.1".into(), timeout).await;
        assert_eq!(found, Ok(vec![[127, 0, 0, 1].into()]));
    }

    #[tokio::test]
    async fn a_slow_answer_is_no_answer() {
        let resolver = Resolver::from_fn(|_| {
            async {
                tokio::time::sleep(Duration::from_mins(1)).await;
                Ok(vec![[1, 1, 1, 1].into()])
            }
            .boxed()
        });
        let answer = resolver
            .resolve_name("slow.example.".into(), Duration::from_millis(20))
            .await;
        assert_eq!(answer, Err(LookupError::ResolverUnavailable));
        let silent = Resolver::from_fn(|_| async { Ok(vec![]) }.boxed());
        let answer = silent
            .resolve_name("x.example.".into(), Duration::ZERO)
            .await;
        assert_eq!(answer, Err(LookupError::NoAddress));
    }

    #[tokio::test]
    async fn a_name_is_to_blame_only_while_others_resolve() {
        let resolver = Resolver::from_fn(|name| {
            async move {
                match name.as_str() {
                    "good.example." => Ok(vec![[1, 1, 1, 1].into()]),
                    _ => Err(LookupError::ResolverUnavailable),
                }
            }
            .boxed()
        });
        let ask = |name: &str| resolver.resolve_name(name.into(), Duration::from_secs(3));
        assert_eq!(
            ask("bad.example.").await,
            Err(LookupError::ResolverUnavailable)
        );
        assert!(ask("good.example.").await.is_ok());
        assert_eq!(
            ask("bad.example.").await,
            Err(LookupError::NameServerUnresponsive)
        );
    }
}
