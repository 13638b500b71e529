//! Which connections are open, and which of them are closed when there are too many.
//!
//! A new connection is worth more than one that has been silent for long: its sender is about to ask something. So when a
//! peer has as many connections as it may, or all peers together have, those are closed that have waited longest without a
//! request in hand; those that never had an active API key first. A request whose body is still arriving counts as none. A
//! crowd of silent connections therefore keeps no other client out.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::activity::ConnectionActivity;
use super::shared::ConnectionLimits;
use crate::http::connection_info::{ConnectionInfo, PeerNetwork};

/// One in this many connections is closed at once, so that a flood of new ones does not search the table for each.
const EVICTED_FRACTION: usize = 16;

/// The open connections of a server.
pub(super) struct ConnectionTable {
    max_connections: usize,
    max_connections_per_peer: usize,
    state: Mutex<TableState>,
    released: Notify,
}

#[derive(Default)]
struct TableState {
    count: usize,
    by_peer: HashMap<Peer, Vec<Arc<OpenConnection>>>,
}

/// Whose connections are counted together. A trusted proxy's are never counted with those of others in its network.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Peer {
    network: PeerNetwork,
    is_trusted_proxy: bool,
}

impl From<&ConnectionInfo> for Peer {
    fn from(info: &ConnectionInfo) -> Self {
        Self {
            network: info.network(),
            is_trusted_proxy: info.is_trusted_proxy(),
        }
    }
}

/// An open connection.
pub(super) struct OpenConnection {
    pub(super) info: ConnectionInfo,
    pub(super) activity: ConnectionActivity,
    /// Cancelled when another connection needs the place.
    pub(super) evicted: CancellationToken,
}

/// In which order connections are closed: the least first.
type EvictionRank = (bool, bool, Instant);

impl OpenConnection {
    fn new(info: ConnectionInfo) -> Self {
        Self {
            info,
            activity: ConnectionActivity::new(),
            evicted: CancellationToken::new(),
        }
    }

    /// Whether no whole request is in hand.
    pub(super) fn is_silent(&self) -> bool {
        self.eviction_rank().is_some()
    }

    /// `None` while a whole request is in hand.
    fn eviction_rank(&self) -> Option<EvictionRank> {
        let receiving = self.info.receiving_requests();
        let (active, since) = self.activity.active_requests_and_last_change();
        (active <= receiving).then_some((self.info.is_authenticated(), active > 0, since))
    }
}

/// What becomes of a new connection.
pub(super) enum Admission {
    Admitted(ConnectionSlot),
    /// The peer has as many as it may, each with a request in hand.
    PeerFull,
    /// All places are taken, each with a request in hand.
    Full,
}

/// The place of a connection, until it is dropped.
pub(super) struct ConnectionSlot {
    table: Arc<ConnectionTable>,
    pub(super) connection: Arc<OpenConnection>,
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        let peer = Peer::from(&self.connection.info);
        let mut state = self.table.state.lock();
        if let Some(connections) = state.by_peer.get_mut(&peer) {
            let before = connections.len();
            connections.retain(|connection| !Arc::ptr_eq(connection, &self.connection));
            let removed = before - connections.len();
            if connections.is_empty() {
                state.by_peer.remove(&peer);
            }
            state.count -= removed;
        }
        drop(state);
        self.table.released.notify_one();
    }
}

impl ConnectionTable {
    pub(super) fn new(limits: &ConnectionLimits) -> Arc<Self> {
        Arc::new(Self {
            max_connections: limits.max_connections.max(1),
            max_connections_per_peer: limits.max_connections_per_peer.max(1),
            state: Mutex::default(),
            released: Notify::new(),
        })
    }

    /// A place for a connection, and how many others were closed for it. A trusted proxy may have as many as there are, because
    /// they are those of many clients.
    pub(super) fn admit(self: &Arc<Self>, info: &ConnectionInfo) -> (Admission, usize) {
        let peer = Peer::from(info);
        let mut state = self.state.lock();
        let mut evicted = 0;
        let of_peer = state.by_peer.get(&peer).map_or(0, Vec::len);
        if of_peer >= self.max_connections_per_peer && !peer.is_trusted_proxy {
            evicted += state.evict_of_peer(peer);
            if evicted == 0 {
                return (Admission::PeerFull, 0);
            }
        }
        if state.count >= self.max_connections {
            let more = state.evict_of_largest_peer();
            if more == 0 {
                return (Admission::Full, evicted);
            }
            evicted += more;
        }
        let connection = Arc::new(OpenConnection::new(info.clone()));
        let of_peer = state.by_peer.entry(peer).or_default();
        of_peer.push(connection.clone());
        state.count += 1;
        let slot = ConnectionSlot {
            table: self.clone(),
            connection,
        };
        (Admission::Admitted(slot), evicted)
    }

    /// Waits until a place was given back since the last call.
    pub(super) async fn wait_for_release(&self) {
        self.released.notified().await;
    }
}

impl TableState {
    /// Closes some connections of the peer with the most, as far as it has any without a request in hand; returns how many. Trusted
    /// proxies come last: theirs are many because their clients are.
    fn evict_of_largest_peer(&mut self) -> usize {
        let mut peers: Vec<_> = self
            .by_peer
            .iter()
            .map(|(peer, connections)| (*peer, connections.len()))
            .collect();
        peers.sort_unstable_by_key(|(peer, count)| (peer.is_trusted_proxy, Reverse(*count)));
        peers
            .into_iter()
            .map(|(peer, _)| self.evict_of_peer(peer))
            .find(|evicted| *evicted > 0)
            .unwrap_or(0)
    }

    /// Closes some connections of a peer; returns how many.
    fn evict_of_peer(&mut self, peer: Peer) -> usize {
        let Some(connections) = self.by_peer.get_mut(&peer) else {
            return 0;
        };
        let mut ranked: Vec<_> = connections
            .iter()
            .filter_map(|connection| Some((connection.eviction_rank()?, connection.clone())))
            .collect();
        ranked.sort_by_key(|(rank, _)| *rank);
        ranked.truncate((connections.len() / EVICTED_FRACTION).max(1));
        for (_, connection) in &ranked {
            connection.evicted.cancel();
        }
        connections.retain(|connection| !connection.evicted.is_cancelled());
        if connections.is_empty() {
            self.by_peer.remove(&peer);
        }
        self.count -= ranked.len();
        ranked.len()
    }
}

#[cfg(test)]
mod tests {
    use super::super::activity::ActiveRequest;
    use super::*;
    use crate::http::trusted_proxies::TrustedProxies;

    fn table(max_connections: usize, max_connections_per_peer: usize) -> Arc<ConnectionTable> {
        ConnectionTable::new(&ConnectionLimits {
            max_connections,
            max_connections_per_peer,
            ..ConnectionLimits::default()
        })
    }

    /// Of the addresses `192.0.2.x`, the last half are trusted proxies.
    fn connect(number: u8) -> ConnectionInfo {
        let proxies = TrustedProxies::parse("192.0.2.128/25").expect("it is good");
        ConnectionInfo::new([192, 0, 2, number].into(), &proxies)
    }

    fn admit(table: &Arc<ConnectionTable>, number: u8) -> ConnectionSlot {
        match table.admit(&connect(number)) {
            (Admission::Admitted(slot), _) => slot,
            _ => panic!("there is a place"),
        }
    }

    fn is_open(slot: &ConnectionSlot) -> bool {
        !slot.connection.evicted.is_cancelled()
    }

    #[test]
    fn the_longest_silent_stranger_makes_room() {
        let table = table(100, 3);
        let caller = admit(&table, 1);
        caller.connection.info.mark_authenticated();
        let older = admit(&table, 1);
        let newer = admit(&table, 1);
        let _elsewhere = admit(&table, 2);
        let _fourth = admit(&table, 1);
        assert!(is_open(&caller) && !is_open(&older) && is_open(&newer));
        drop(older);
        assert_eq!(table.state.lock().count, 4);
    }

    #[test]
    fn a_connection_with_a_request_in_hand_is_kept() {
        let table = table(2, 100);
        let (one, other) = (admit(&table, 1), admit(&table, 2));
        let request = ActiveRequest::new(&one.connection);
        let _other_request = ActiveRequest::new(&other.connection);
        assert!(matches!(table.admit(&connect(3)), (Admission::Full, 0)));
        drop(request);
        let _third = admit(&table, 3);
        assert!(!is_open(&one) && is_open(&other));
    }

    #[test]
    fn a_peer_with_requests_in_all_its_connections_gets_no_further_one() {
        let table = table(100, 1);
        let busy = admit(&table, 1);
        let _request = ActiveRequest::new(&busy.connection);
        assert!(matches!(table.admit(&connect(1)), (Admission::PeerFull, 0)));
        let _other = admit(&table, 2);
        drop(busy);
        assert_eq!(table.state.lock().count, 1);
    }

    #[test]
    fn a_trusted_proxy_has_no_bound_of_its_own_and_gives_way_last() {
        let table = table(5, 1);
        let of_proxy = [(); 4].map(|()| admit(&table, 200));
        let stranger = admit(&table, 1);
        assert!(of_proxy.iter().all(is_open));
        let other = admit(&table, 2);
        assert!(of_proxy.iter().all(is_open) && !is_open(&stranger));
        let _request = ActiveRequest::new(&other.connection);
        let _third = admit(&table, 3);
        assert_eq!(of_proxy.iter().filter(|slot| is_open(slot)).count(), 3);
    }

    #[test]
    fn neighbours_of_a_trusted_proxy_are_no_proxies() {
        let proxies = TrustedProxies::parse("2001:db8::1").expect("it is good");
        let connect = |last: u16| {
            let address = std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last);
            ConnectionInfo::new(address.into(), &proxies)
        };
        let table = table(100, 2);
        let slots = [1, 1, 1, 2, 2, 2].map(|last| match table.admit(&connect(last)) {
            (Admission::Admitted(slot), _) => slot,
            _ => panic!("there is a place"),
        });
        let open: Vec<_> = slots.iter().map(is_open).collect();
        assert_eq!(open, [true, true, true, false, true, true]);
    }
}
