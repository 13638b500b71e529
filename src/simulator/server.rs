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

/// How to start.
pub struct SimulatorOptions {
    /// Where to listen; port 0 is any free one.
    pub bind: SocketAddr,
    /// What time it is in the stores.
    pub clock: Clock,
    /// Keys and purchases are kept here, and found again at the next start.
    pub folder: Option<PathBuf>,
    /// Whose keys; the folder's, or new ones, when left out. Give the same to many simulators to start them faster.
    pub identity: Option<SimulatorIdentity>,
    /// Makes ids and tokens come out the same each time.
    pub seed: Option<u64>,
}

impl SimulatorOptions {
    /// A free port of this machine only; nothing is kept.
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

/// The simulated stores, running. Dropping this stops them.
pub struct Simulator {
    context: Arc<SimulatorContext>,
    address: SocketAddr,
    stop: CancellationToken,
    server_task: AbortOnDropHandle<io::Result<()>>,
}

impl Simulator {
    /// Listens and answers from now on.
    pub async fn start(options: SimulatorOptions) -> io::Result<Self> {
        let listener = TcpListener::bind(options.bind).await?;
        let address = listener.local_addr()?;
        let now = options.clock.now();
        let identity = match (options.identity, &options.folder) {
            (Some(identity), _) => identity,
            (None, Some(folder)) => SimulatorIdentity::load_or_create(folder, now)?,
            (None, None) => SimulatorIdentity::new(now),
        };
        let shared = Arc::new(SimulatorContext::open(
            options.clock,
            identity,
            options.seed,
            options.folder.as_deref(),
        )?);
        let stop = CancellationToken::new();
        let serving = axum::serve(
            listener.tap_io(|stream| {
                // An answer is one small write; waiting to fill a packet would only make it late.
                let _ = stream.set_nodelay(true);
            }),
            build_router(shared.clone()),
        )
        .with_graceful_shutdown(stop.clone().cancelled_owned());
        Ok(Self {
            context: shared,
            address,
            stop,
            server_task: AbortOnDropHandle::new(tokio::spawn(serving.into_future())),
        })
    }

    /// Takes no more calls, gives those in hand two seconds, and stops.
    pub async fn stop(self) {
        self.stop.cancel();
        // A call that was asked to be slow is not worth waiting for.
        let _ = tokio::time::timeout(Duration::from_secs(2), self.server_task).await;
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `http://127.0.0.1:<port>/`: where this machine reaches it.
    pub fn url(&self) -> Url {
        let host = match self.address.ip() {
            IpAddr::V4(Ipv4Addr::UNSPECIFIED) => IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(Ipv6Addr::UNSPECIFIED) => IpAddr::V6(Ipv6Addr::LOCALHOST),
            other => other,
        };
        let address = SocketAddr::new(host, self.address.port());
        Url::parse(&format!("http://{address}/")).expect("an address makes a URL")
    }

    /// For `APPLE_PRODUCTION_URL`.
    pub fn apple_production_url(&self) -> Url {
        self.join_path("apple/production")
    }

    /// For `APPLE_SANDBOX_URL`.
    pub fn apple_sandbox_url(&self) -> Url {
        self.join_path("apple/sandbox")
    }

    /// For `GOOGLE_PLAY_URL`.
    pub fn google_play_url(&self) -> Url {
        self.join_path("google/play")
    }

    /// For `GOOGLE_TOKEN_URL`.
    pub fn google_token_url(&self) -> Url {
        self.join_path("google/token")
    }

    /// For `GOOGLE_JWKS_URL`.
    pub fn google_jwks_url(&self) -> Url {
        self.join_path("google/certs")
    }

    /// The environment variables that point Attesto here. `APPLE_ROOT_CERTIFICATES` names a file, `simulator-root.pem`,
    /// which somebody has yet to write.
    pub fn environment_variables(&self) -> Vec<(&'static str, String)> {
        super::control::environment_variables(self.url().as_str().trim_end_matches('/'))
    }

    /// Where the control API is.
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

    /// The root certificate to trust, for `APPLE_ROOT_CERTIFICATES`.
    pub fn apple_root_pem(&self) -> String {
        self.identity().certificate_authority().root_pem()
    }

    /// The same as DER.
    pub fn apple_root_der(&self) -> Vec<u8> {
        self.identity().certificate_authority().root_der().to_vec()
    }

    /// The default service account's file, naming this simulator's token endpoint.
    pub fn google_service_account(&self) -> serde_json::Value {
        self.identity()
            .service_account()
            .to_key_file(self.google_token_url().as_str())
    }

    /// Lets purchases of the App Store happen.
    pub fn apple(&self) -> AppleScenario {
        AppleScenario::new(self.context.clone())
    }

    /// Lets purchases of Play happen.
    pub fn google(&self) -> GoogleScenario {
        GoogleScenario::new(self.context.clone())
    }

    /// Lets calls go wrong.
    pub fn add_fault(&self, fault: Fault) -> Result<(), SimulatorError> {
        self.context.lock_state().faults.add(fault)
    }

    /// Lets no more calls go wrong.
    pub fn clear_faults(&self) {
        self.context.lock_state().faults.clear();
    }

    /// The calls that the stores received, oldest first; the last thousand.
    pub fn recorded_requests(&self) -> Vec<RecordedRequest> {
        self.context.recorded_requests()
    }

    /// How many calls a place received: one of [`Fault::PLACES`], or the beginning of one.
    pub fn count_requests_at(&self, place: &str) -> usize {
        self.recorded_requests()
            .iter()
            .filter(|seen| seen.place.starts_with(place))
            .count()
    }

    /// Forgets the calls received so far.
    pub fn clear_requests(&self) {
        self.context.clear_requests();
    }
}
