//! Several clients, so that slow calls to a server do not use up all streams of the one connection that a client has to it.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use super::http_client::{HttpClientError, StoreClient};
use crate::egress::EgressProxy;

/// How many connections there are to one server at most.
const MAX_CLIENTS: usize = 8;
/// How many calls one client makes at once, unless all have so many: half of the streams that the stores' servers allow
/// on one connection.
const MAX_CALLS_PER_CLIENT: usize = 50;
/// How many calls are made at once before connections are shared beyond that.
pub(crate) const MAX_CONCURRENT_CALLS: usize = MAX_CLIENTS * MAX_CALLS_PER_CLIENT;

type BuildClient = dyn Fn() -> Result<StoreClient, HttpClientError> + Send + Sync;

/// Clients of one kind. Further ones are made when those before have their share of calls in hand. Clones share them.
#[derive(Clone)]
pub struct StoreClients {
    build: Arc<BuildClient>,
    clients: Arc<[SharedClient; MAX_CLIENTS]>,
    first: StoreClient,
}

#[derive(Default)]
struct SharedClient {
    client: OnceLock<StoreClient>,
    calls: AtomicUsize,
}

/// A client for one call, until it is dropped.
pub(super) struct ClientLease {
    pub(super) client: StoreClient,
    clients: Arc<[SharedClient; MAX_CLIENTS]>,
    position: usize,
}

impl StoreClients {
    /// Clients for calls to stores, through the proxy if there is one.
    pub fn new(proxy: Option<&EgressProxy>) -> Result<Self, HttpClientError> {
        let proxy = proxy.cloned();
        Self::with_builder(move || StoreClient::new(proxy.as_ref()))
    }

    fn with_builder(
        build: impl Fn() -> Result<StoreClient, HttpClientError> + Send + Sync + 'static,
    ) -> Result<Self, HttpClientError> {
        let first = build()?;
        Ok(Self {
            build: Arc::new(build),
            clients: Arc::default(),
            first,
        })
    }

    /// The first that has room for a call, or the one with the fewest.
    pub(super) fn lease(&self) -> ClientLease {
        let counts = self
            .clients
            .each_ref()
            .map(|client| client.calls.load(Ordering::Relaxed));
        let roomy = counts
            .iter()
            .position(|calls| *calls < MAX_CALLS_PER_CLIENT);
        let least = || (0..MAX_CLIENTS).min_by_key(|position| counts[*position]);
        let position = roomy.or_else(least).unwrap_or(0);
        let shared = &self.clients[position];
        shared.calls.fetch_add(1, Ordering::Relaxed);
        let client = match position {
            0 => self.first.clone(),
            // The first could be made, and so can this one.
            _ => shared
                .client
                .get_or_init(|| (self.build)().unwrap_or_else(|_| self.first.clone()))
                .clone(),
        };
        ClientLease {
            client,
            clients: self.clients.clone(),
            position,
        }
    }
}

impl From<reqwest::Client> for StoreClients {
    /// Only this one.
    fn from(client: reqwest::Client) -> Self {
        let client = StoreClient::from(client);
        let first = client.clone();
        Self {
            build: Arc::new(move || Ok(client.clone())),
            clients: Arc::default(),
            first,
        }
    }
}

impl fmt::Debug for StoreClients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreClients").finish_non_exhaustive()
    }
}

impl Drop for ClientLease {
    fn drop(&mut self) {
        self.clients[self.position]
            .calls
            .fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::time::Duration;

    use futures_util::future::join_all;
    use http_body_util::Empty;
    use hyper::body::{Bytes, Incoming};
    use hyper::service::service_fn;
    use hyper::{Request, Response};
    use hyper_util::rt::{TokioExecutor, TokioIo};
    use tokio::net::TcpListener;
    use tokio::sync::watch;
    use tokio_util::task::AbortOnDropHandle;

    use super::*;
    use crate::outbound::{RetryDecision, Upstream};

    /// As many as two tenants may make at once.
    const SLOW_CALLS: usize = 128;
    /// Longer than the test takes on the slowest machine.
    const CALL_TIMEOUT: Duration = Duration::from_mins(10);

    /// Clients that speak HTTP/2 without TLS.
    fn clients() -> StoreClients {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let build = || {
            let builder = reqwest::Client::builder().http2_prior_knowledge();
            Ok(builder.build().unwrap().into())
        };
        StoreClients::with_builder(build).unwrap()
    }

    #[test]
    fn a_client_has_its_share_of_calls_before_the_next_is_made() {
        let clients = clients();
        let mut held = Vec::new();
        for number in 0..MAX_CONCURRENT_CALLS {
            let lease = clients.lease();
            assert_eq!(lease.position, number / MAX_CALLS_PER_CLIENT);
            held.push(lease);
        }
        // Then the load is spread.
        let beyond: Vec<_> = (0..MAX_CLIENTS).map(|_| clients.lease()).collect();
        let mut positions: Vec<_> = beyond.iter().map(|lease| lease.position).collect();
        positions.sort_unstable();
        assert_eq!(positions, (0..MAX_CLIENTS).collect::<Vec<_>>());
        drop((held, beyond));
        assert_eq!(clients.lease().position, 0);
    }

    /// A server like the stores': HTTP/2, and a hundred streams on a connection. What is asked for at `/slow` is answered when
    /// `is_over`, and counted before.
    async fn serve(
        is_over: watch::Receiver<bool>,
        slow_calls: Arc<AtomicUsize>,
    ) -> (String, AbortOnDropHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let answer = move |request: Request<Incoming>| {
            let (mut is_over, slow_calls) = (is_over.clone(), slow_calls.clone());
            async move {
                if request.uri().path() == "/slow" {
                    slow_calls.fetch_add(1, Ordering::Relaxed);
                    let _ = is_over.wait_for(|is_over| *is_over).await;
                }
                Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
            }
        };
        let serving = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .max_concurrent_streams(100)
                    .serve_connection(TokioIo::new(stream), service_fn(answer.clone()));
                tokio::spawn(connection);
            }
        });
        (url, AbortOnDropHandle::new(serving))
    }

    #[tokio::test]
    async fn slow_calls_of_two_tenants_do_not_delay_a_third() {
        let (end, is_over) = watch::channel(false);
        let slow_calls = Arc::<AtomicUsize>::default();
        let (url, _serving) = serve(is_over, slow_calls.clone()).await;
        let upstream = Upstream::new(clients(), CALL_TIMEOUT);
        let ask = async |path: &str| {
            let url = format!("{url}{path}");
            let build = |client: &reqwest::Client| client.get(&url);
            let asked = upstream.send_with_retries(build, |_| RetryDecision::Final);
            asked.await.map(|answer| answer.status)
        };
        let slow = join_all((0..SLOW_CALLS).map(|_| ask("/slow")));
        let third = async {
            while slow_calls.load(Ordering::Relaxed) < 100 {
                tokio::task::yield_now().await;
            }
            let answered = ask("/fast").await;
            end.send_replace(true);
            answered
        };
        let (slow, third) = tokio::join!(slow, third);
        assert!(slow.iter().all(Result::is_ok));
        assert_eq!(third, Ok(reqwest::StatusCode::OK));
    }
}
