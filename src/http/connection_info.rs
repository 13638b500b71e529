//! What a request carries of its connection: where it comes from, and what the connection was used for so far.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use axum::http::HeaderMap;

use super::client_address::ClientAddress;
use super::trusted_proxies::TrustedProxies;

/// The part of a peer's address that one party holds: a whole IPv4 address, and the first 64 bits of an IPv6 address, because
/// every subscriber has at least that many.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PeerNetwork(IpAddr);

impl PeerNetwork {
    /// The network of this address. An IPv4 address in IPv6 form is taken as IPv4.
    pub fn from_address(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V6(address) => {
                let [a, b, c, d, ..] = address.segments();
                Self(IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0)))
            }
            // Every address of this block is this machine.
            IpAddr::V4(address) if address.is_loopback() => Self(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            address @ IpAddr::V4(_) => Self(address),
        }
    }
}

/// The connection of a request. A request extension, set by the server. Clones share the counts.
#[derive(Clone, Debug)]
pub struct ConnectionInfo {
    client: ClientAddress,
    is_trusted_proxy: bool,
    usage: Arc<ConnectionUsage>,
}

#[derive(Debug, Default)]
struct ConnectionUsage {
    is_authenticated: AtomicBool,
    receiving_requests: AtomicUsize,
}

impl ConnectionInfo {
    /// A connection from this address that was not used yet.
    pub fn new(peer: IpAddr, proxies: &TrustedProxies) -> Self {
        let client = ClientAddress::of_peer(peer);
        Self {
            client,
            is_trusted_proxy: proxies.contains(client.address),
            usage: Arc::default(),
        }
    }

    /// For a request with these headers: where it comes from is its client, if the connection is one of a trusted proxy.
    #[must_use]
    pub fn for_request(&self, headers: &HeaderMap, proxies: &TrustedProxies) -> Self {
        let mut info = self.clone();
        if self.is_trusted_proxy {
            info.client = self.client.find_client(headers, proxies);
        }
        info
    }

    /// Where the request comes from; without a request, the other end of the connection.
    pub fn client(&self) -> ClientAddress {
        self.client
    }

    /// The party that holds this address.
    pub fn network(&self) -> PeerNetwork {
        PeerNetwork::from_address(self.client.address)
    }

    /// Whether the connection is one of a trusted proxy, which has the requests of many clients.
    pub fn is_trusted_proxy(&self) -> bool {
        self.is_trusted_proxy
    }

    /// Notes that a request of this connection had an active API key.
    pub fn mark_authenticated(&self) {
        self.usage.is_authenticated.store(true, Ordering::Relaxed);
    }

    /// Whether a request of this connection had an active API key.
    pub fn is_authenticated(&self) -> bool {
        self.usage.is_authenticated.load(Ordering::Relaxed)
    }

    /// How many requests wait for more of their bodies.
    pub fn receiving_requests(&self) -> usize {
        self.usage.receiving_requests.load(Ordering::Relaxed)
    }

    /// Counts a request as one that waits for its body, until the result is dropped.
    pub(super) fn start_receiving(&self) -> ReceivingRequest {
        self.usage
            .receiving_requests
            .fetch_add(1, Ordering::Relaxed);
        ReceivingRequest(self.usage.clone())
    }
}

/// A request that waits for its body.
pub(super) struct ReceivingRequest(Arc<ConnectionUsage>);

impl Drop for ReceivingRequest {
    fn drop(&mut self) {
        self.0.receiving_requests.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_one_address_of_ipv4_and_64_bits_of_ipv6() {
        let network = |text: &str| PeerNetwork::from_address(text.parse().expect("an address"));
        for (one, other, is_same) in [
            ("192.0.2.1", "192.0.2.1", true),
            ("192.0.2.1", "192.0.2.2", false),
            ("192.0.2.1", "::ffff:192.0.2.1", true),
            ("127.0.0.1", "127.9.9.9", true),
            ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", true),
            ("2001:db8:1:2::1", "2001:db8:1:3::1", false),
            ("::1", "127.0.0.1", false),
        ] {
            assert_eq!(network(one) == network(other), is_same, "{one} {other}");
        }
    }
}
