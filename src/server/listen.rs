//! Accepts connections, up to a limit, until the server stops.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::connection;
use super::connection_table::{Admission, ConnectionSlot, ConnectionTable};
use super::held_connections::HeldConnections;
use super::shared::{ConnectionLimits, ServerState};
use super::socket::DiscardLimiter;
use super::tls::ReloadableTls;
use crate::http::connection_info::ConnectionInfo;
use crate::http::request_layer::RequestLayer;

/// How long to wait when the system has no room for another connection.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);
/// What the system holds of a connection that is not read from, because its body waits for room. Every connection gets it from
/// the listener; without it the system holds up to some megabytes, which count towards the memory of a container.
const RECEIVE_BUFFER_BYTES: u32 = 64 * 1024;
/// Connections that wait to be taken.
const BACKLOG: u32 = 1024;
/// File descriptors that are kept for the database, the stores and the log.
const RESERVED_DESCRIPTORS: u64 = 256;
/// More connections than this are not useful to one process, and each may hold a request's head of 32 KiB.
const MAX_CONNECTIONS: u64 = 4 * 1024;
/// Those that are only held have a few KiB, all of them in the system.
const MAX_HELD_CONNECTIONS: u64 = 8 * 1024;

/// Reasons in metrics: lost its place to another one; not taken because its peer has as many as it may.
const SILENT_CONNECTION: &str = "silent_connection";
const CONNECTIONS_OF_PEER: &str = "connections_of_peer";

/// The limits for as many connections as this process can have file descriptors for, which are first made as many as it may have.
pub fn raise_connection_limits() -> ConnectionLimits {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    let current = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    };
    let room = current.map_or(u64::MAX, |most| most.saturating_sub(RESERVED_DESCRIPTORS));
    let open = room.clamp(64, MAX_CONNECTIONS);
    let held = room.saturating_sub(open).min(MAX_HELD_CONNECTIONS);
    ConnectionLimits {
        max_connections: usize::try_from(open).unwrap_or(64),
        max_held_connections: usize::try_from(held).unwrap_or(0),
        ..ConnectionLimits::default()
    }
}

/// Where to listen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenSettings {
    /// `BIND_ADDRESS`; `None` when it is not set: every address, of IPv4 only where there is no IPv6.
    pub address: Option<IpAddr>,
    /// `PORT`; 0 takes a free one.
    pub port: u16,
}

impl ListenSettings {
    /// The address and port to try first.
    pub fn bind_addr(&self) -> SocketAddr {
        let everywhere = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
        SocketAddr::new(self.address.unwrap_or(everywhere), self.port)
    }

    /// The address for a client on this machine: loopback when the server listens on every address.
    pub fn connect_addr(&self) -> SocketAddr {
        let listening = self.address.filter(|address| !address.is_unspecified());
        let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
        SocketAddr::new(listening.unwrap_or(loopback), self.port)
    }
}

/// Why nothing can be listened to.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another process listens there.
    #[error(
        "port {0} is already in use: stop what uses it, or choose another with --port (or PORT); 0 takes a free one"
    )]
    PortInUse(u16),
    /// The system does not let this user.
    #[error("port {0} may not be used by this user: choose one from 1024 up with --port (or PORT)")]
    PermissionDenied(u16),
    /// The machine has no such address.
    #[error(
        "{0} is not an address of this machine: choose another with --bind-address (or BIND_ADDRESS)"
    )]
    AddressNotAvailable(SocketAddr),
    /// The metrics' address cannot be had.
    #[error(
        "cannot serve metrics at {0}: {1}. Choose another address with --metrics-address (or METRICS_ADDRESS)"
    )]
    Metrics(SocketAddr, io::Error),
    /// Any other error of the system.
    #[error("cannot listen on {0}: {1}")]
    Other(SocketAddr, io::Error),
}

/// Starts to listen: connections are taken by the system from now on, and served after [`start_server`].
pub async fn bind_listener(listen: ListenSettings) -> Result<TcpListener, BindError> {
    let address = listen.bind_addr();
    match listen_at(address) {
        Ok(listener) => Ok(listener),
        // No address was chosen, and this machine has no IPv6.
        Err(problem) if listen.address.is_none() && is_ipv6_unavailable(&problem) => {
            let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, listen.port));
            listen_at(address).map_err(|problem| to_bind_error(address, problem))
        }
        Err(problem) => Err(to_bind_error(address, problem)),
    }
}

fn listen_at(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    socket.set_reuseaddr(true)?;
    socket.set_recv_buffer_size(RECEIVE_BUFFER_BYTES)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

fn is_ipv6_unavailable(problem: &io::Error) -> bool {
    problem.kind() == ErrorKind::AddrNotAvailable
        || problem.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error())
}

fn to_bind_error(address: SocketAddr, problem: io::Error) -> BindError {
    match problem.kind() {
        ErrorKind::AddrInUse => BindError::PortInUse(address.port()),
        ErrorKind::PermissionDenied => BindError::PermissionDenied(address.port()),
        ErrorKind::AddrNotAvailable => BindError::AddressNotAvailable(address),
        _ => BindError::Other(address, problem),
    }
}

/// A server that serves. Dropping it lets it go on; [`RunningServer::stop`] ends it.
#[must_use = "a running server is stopped through this"]
pub struct RunningServer {
    address: SocketAddr,
    server: Arc<ServerState>,
}

/// Serves what arrives at `listener`, with TLS when there is a certificate.
pub fn start_server(
    envelope: RequestLayer,
    listener: TcpListener,
    limits: ConnectionLimits,
    tls: Option<ReloadableTls>,
) -> io::Result<RunningServer> {
    let address = listener.local_addr()?;
    let (tasks, graceful_shutdown) = (TaskTracker::new(), CancellationToken::new());
    let discards = DiscardLimiter::new(envelope.clock().clone());
    let server = Arc::new(ServerState {
        request_layer: envelope,
        limits,
        tls,
        connections: ConnectionTable::new(&limits),
        held: HeldConnections::new(&limits, tasks.clone(), graceful_shutdown.clone()),
        discards,
        protocol: connection::build_protocol(&limits),
        keep_alive: connection::keep_alive_header(&limits),
        tasks,
        graceful_shutdown,
        abort: CancellationToken::new(),
    });
    let refusals = server.request_layer.body_budget().refusal_metrics();
    for reason in [SILENT_CONNECTION, CONNECTIONS_OF_PEER] {
        refusals.declare_reason(reason);
    }
    server
        .tasks
        .spawn(accept_connections(listener, server.clone()));
    Ok(RunningServer { address, server })
}

impl RunningServer {
    /// Where it listens, with the port that was taken.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes nothing new, closes what is idle, and waits up to `grace` for what is in hand; what is still in hand
    /// then is given up. Whether everything was finished.
    pub async fn stop(self, grace: Duration) -> bool {
        let server = self.server;
        server.tasks.close();
        server.graceful_shutdown.cancel();
        let finished = tokio::time::timeout(grace, server.tasks.wait())
            .await
            .is_ok();
        server.abort.cancel();
        server.tasks.wait().await;
        finished
    }
}

async fn accept_connections(listener: TcpListener, server: Arc<ServerState>) {
    let stopping = server.graceful_shutdown.clone();
    // When this ends the listener is closed: from then on the system refuses connections.
    while let Some(accepted) = stopping.run_until_cancelled(listener.accept()).await {
        match accepted {
            Ok((stream, address)) => {
                let proxies = server.request_layer.trusted_proxies();
                let info = ConnectionInfo::new(address.ip(), proxies);
                let slot = find_slot(&info, &server);
                let slot = match stopping.run_until_cancelled(slot).await {
                    Some(Some(slot)) => slot,
                    Some(None) => {
                        server.held.hold(stream);
                        continue;
                    }
                    None => continue,
                };
                let talk =
                    connection::serve_connection(stream, slot.connection.clone(), server.clone());
                server.tasks.spawn(async move {
                    talk.await;
                    drop(slot);
                });
            }
            // The caller gave up before it was taken.
            Err(problem) if is_client_abort(&problem) => {}
            // Out of file descriptors or memory. Open connections will end; pending ones wait in the backlog.
            Err(problem) => {
                let class = problem
                    .raw_os_error()
                    .map(|code| format!("os error {code}"));
                tracing::error!(cause = %problem, causeClass = class, "accept_failed");
                tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
            }
        }
    }
}

/// A place for a connection; `None` when its peer has as many as it may. While all places are taken by requests in
/// hand, this waits, and further connections wait in the system's backlog.
async fn find_slot(info: &ConnectionInfo, server: &ServerState) -> Option<ConnectionSlot> {
    let refusals = server.request_layer.body_budget().refusal_metrics();
    loop {
        let (admission, evicted) = server.connections.admit(info);
        for _ in 0..evicted {
            refusals.count_refusal(SILENT_CONNECTION);
        }
        match admission {
            Admission::Admitted(slot) => return Some(slot),
            Admission::PeerFull => {
                refusals.count_refusal(CONNECTIONS_OF_PEER);
                return None;
            }
            Admission::Full => server.connections.wait_for_release().await,
        }
    }
}

fn is_client_abort(problem: &io::Error) -> bool {
    matches!(
        problem.kind(),
        ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset | ErrorKind::ConnectionRefused
    )
}
