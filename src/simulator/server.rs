//! Starting and stopping the simulated stores.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::serve::ListenerExt as _;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use url::Url;

use super::context::{RecordedRequest, SimulatorContext};
use super::control::{AppleScenario, GoogleScenario};
use super::identity::SimulatorIdentity;
use super::routes::build_router;
use super::state::SimulatorError;
use super::state::fault::Fault;
use crate::base::clock::Clock;

/// The options of [`Simulator::start`].
pub struct SimulatorOptions {
    /// The address to listen on; port 0 takes any free port.
    pub bind: SocketAddr,
    /// The time of the stores.
    pub clock: Clock,
    /// Keys and purchases are saved here and loaded at the next start.
    pub folder: Option<PathBuf>,
    /// The keys; when `None`, the folder's or new ones. Simulators that share an identity start faster.
    pub identity: Option<SimulatorIdentity>,
    /// Makes the ids of purchases the same in each run.
    pub seed: Option<u64>,
}

impl SimulatorOptions {
    /// Any free port of the loopback address; nothing is saved.
    pub fn new(clock: Clock) -> Self {
        Self {
            bind: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            clock,
            folder: None,
            identity: None,
            seed: None,
        }
    }
}

/// The running simulated stores. Dropping this stops them.
pub struct Simulator {
    context: Arc<SimulatorContext>,
    address: SocketAddr,
    stop: CancellationToken,
    server_task: AbortOnDropHandle<io::Result<()>>,
}

impl Simulator {
    /// Loads or creates the keys, listens, and serves in a task of its own.
    pub async fn start(options: SimulatorOptions) -> io::Result<Self> {
        let listener = TcpListener::bind(options.bind).await?;
        let address = listener.local_addr()?;
        let now = options.clock.now();
        let identity = match (options.identity, &options.folder) {
            (Some(identity), _) => identity,
            (None, Some(folder)) => SimulatorIdentity::load_or_create(folder, now)?,
            (None, None) => SimulatorIdentity::new(now),
        };
        let context = Arc::new(SimulatorContext::open(
            options.clock,
            identity,
            options.seed,
            options.folder.as_deref(),
        )?);
        let stop = CancellationToken::new();
        let serving = axum::serve(
            listener.tap_io(|stream| {
                // An answer is one small write; to wait for a full packet would only delay it.
                let _ = stream.set_nodelay(true);
            }),
            build_router(context.clone()),
        )
        .with_graceful_shutdown(stop.clone().cancelled_owned());
        Ok(Self {
            context,
            address,
            stop,
            server_task: AbortOnDropHandle::new(tokio::spawn(serving.into_future())),
        })
    }

    /// Accepts no more requests, waits up to two seconds for those in progress, and stops.
    pub async fn stop(self) {
        self.stop.cancel();
        // A request that a fault delays is not worth waiting for.
        let _ = tokio::time::timeout(Duration::from_secs(2), self.server_task).await;
    }

    /// The address it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URL for callers on this machine: `http://127.0.0.1:<port>/`.
    pub fn url(&self) -> Url {
        let host = match self.address.ip() {
            IpAddr::V4(Ipv4Addr::UNSPECIFIED) => IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(Ipv6Addr::UNSPECIFIED) => IpAddr::V6(Ipv6Addr::LOCALHOST),
            other => other,
        };
        let address = SocketAddr::new(host, self.address.port());
        Url::parse(&format!("http://{address}/")).expect("an address makes a URL")
    }

    /// The value of `APPLE_PRODUCTION_URL`.
    pub fn apple_production_url(&self) -> Url {
        self.join_path("apple/production")
    }

    /// The value of `APPLE_SANDBOX_URL`.
    pub fn apple_sandbox_url(&self) -> Url {
        self.join_path("apple/sandbox")
    }

    /// The value of `GOOGLE_PLAY_URL`.
    pub fn google_play_url(&self) -> Url {
        self.join_path("google/play")
    }

    /// The value of `GOOGLE_TOKEN_URL`.
    pub fn google_token_url(&self) -> Url {
        self.join_path("google/token")
    }

    /// The value of `GOOGLE_JWKS_URL`.
    pub fn google_jwks_url(&self) -> Url {
        self.join_path("google/certs")
    }

    /// The environment variables that point Attesto here. `APPLE_ROOT_CERTIFICATES` names a file, `simulator-root.pem`,
    /// which the caller has to write.
    pub fn environment_variables(&self) -> Vec<(&'static str, String)> {
        super::control::environment_variables(self.url().as_str().trim_end_matches('/'))
    }

    /// The URL that lists the operations of the control API.
    pub fn control_url(&self) -> Url {
        self.join_path("control")
    }

    fn join_path(&self, path: &str) -> Url {
        self.url().join(path).expect("a plain path")
    }

    /// The keys and certificates.
    pub fn identity(&self) -> &SimulatorIdentity {
        &self.context.identity
    }

    /// The root certificate to trust as PEM, for the file that `APPLE_ROOT_CERTIFICATES` names.
    pub fn apple_root_pem(&self) -> String {
        self.identity().certificate_authority().root_pem()
    }

    /// The key file of the default service account, with this simulator's token endpoint.
    pub fn google_service_account(&self) -> serde_json::Value {
        self.identity()
            .service_account()
            .to_key_file(self.google_token_url().as_str())
    }

    /// Makes and changes purchases of the App Store.
    pub fn apple(&self) -> AppleScenario {
        AppleScenario::new(self.context.clone())
    }

    /// Makes and changes purchases of Play.
    pub fn google(&self) -> GoogleScenario {
        GoogleScenario::new(self.context.clone())
    }

    /// Makes answers go wrong; see [`Fault`].
    pub fn add_fault(&self, fault: Fault) -> Result<(), SimulatorError> {
        self.context.lock_state().faults.add(fault)
    }

    /// Removes all faults.
    pub fn clear_faults(&self) {
        self.context.lock_state().faults.clear();
    }

    /// The last thousand requests to the stores, oldest first.
    pub fn recorded_requests(&self) -> Vec<RecordedRequest> {
        self.context.recorded_requests()
    }

    /// The number of recorded requests to a place: one of [`Fault::PLACES`], or the beginning of one.
    pub fn count_requests_at(&self, place: &str) -> usize {
        self.recorded_requests()
            .iter()
            .filter(|seen| seen.place.starts_with(place))
            .count()
    }

    /// Deletes the recorded requests.
    pub fn clear_requests(&self) {
        self.context.clear_requests();
    }
}
