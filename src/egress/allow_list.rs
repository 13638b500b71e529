//! The private networks that an operator has allowed for a tenant.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Serialize, Serializer};

use super::AddressClass;

/// The shortest prefixes that can be allowed. A wider network contains more than an operator can have checked.
const MIN_PREFIX_V4: u8 = 8;
const MIN_PREFIX_V6: u8 = 16;

/// One network and port: `10.1.0.0/16:443`, `10.1.2.3:8443`, `[fd12:3456::/48]:443`. Callbacks there are called by https, and by
/// http if the operator allows that too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AllowedNetwork {
    network: IpNet,
    port: u16,
    is_http_allowed: bool,
}

/// Why a network cannot be allowed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AllowedNetworkError {
    /// It is not a network and a port.
    #[error("a network and a port, like 10.1.0.0/16:443 or [fd12:3456::/48]:443")]
    Malformed,
    /// Bits after the prefix are set. Holds the network that was probably meant.
    #[error("the address has more bits than the prefix: did you mean {0}?")]
    HostBits(AllowedNetwork),
    /// The prefix is too short.
    #[error(
        "the network is too wide: at most /{MIN_PREFIX_V4} of IPv4, or /{MIN_PREFIX_V6} of IPv6"
    )]
    TooWide,
    /// Its addresses are never called. Holds the reason.
    #[error("it is {0}, which is never called")]
    Forbidden(&'static str),
    /// Its addresses may be called anyway.
    #[error("it is public: callbacks may be there in any case, and this list restricts nothing")]
    Public,
}

impl AllowedNetwork {
    /// In the format of the Postgres type `cidr`.
    pub fn network(&self) -> String {
        self.network.to_string()
    }

    /// The port, from 1 to 65535.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Whether callbacks in the network may be called by http.
    pub fn is_http_allowed(&self) -> bool {
        self.is_http_allowed
    }

    /// The same network; callbacks there may be called by http too, or may not.
    #[must_use]
    pub fn with_http(self, is_http_allowed: bool) -> Self {
        Self {
            is_http_allowed,
            ..self
        }
    }

    /// From the SQL expression `concat_ws(' ', network, port, case when allow_http then 'http' end)`. The value was validated before
    /// it was stored.
    pub(crate) fn from_column(text: &str) -> Option<Self> {
        let (network, rest) = text.split_once(' ')?;
        let (port, http) = rest.split_once(' ').unwrap_or((rest, ""));
        Some(Self {
            network: network.parse().ok()?,
            port: port.parse().ok()?,
            is_http_allowed: http == "http",
        })
    }

    fn contains(&self, address: SocketAddr) -> bool {
        address.port() == self.port && self.network.contains(&address.ip().to_canonical())
    }
}

impl FromStr for AllowedNetwork {
    type Err = AllowedNetworkError;

    fn from_str(text: &str) -> Result<Self, AllowedNetworkError> {
        let (network, port) = text
            .rsplit_once(':')
            .ok_or(AllowedNetworkError::Malformed)?;
        let is_v6 = network.contains(':');
        let network = match network
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
        {
            Some(inside) => inside,
            // Without brackets, the port could be a part of the address.
            None if is_v6 => return Err(AllowedNetworkError::Malformed),
            None => network,
        };
        let network: IpNet = network
            .parse()
            .or_else(|_| network.parse::<IpAddr>().map(IpNet::from))
            .map_err(|_| AllowedNetworkError::Malformed)?;
        let port = port.parse().ok().filter(|port| *port > 0);
        let port = port.ok_or(AllowedNetworkError::Malformed)?;
        if network != network.trunc() {
            let network = network.trunc();
            let is_http_allowed = false;
            return Err(AllowedNetworkError::HostBits(Self {
                network,
                port,
                is_http_allowed,
            }));
        }
        let widest = if network.addr().is_ipv4() {
            MIN_PREFIX_V4
        } else {
            MIN_PREFIX_V6
        };
        if network.prefix_len() < widest {
            return Err(AllowedNetworkError::TooWide);
        }
        // A wide network may contain addresses of several classes. Each address is checked again when it is called.
        match (
            AddressClass::from_ip(network.addr()),
            AddressClass::from_ip(network.broadcast()),
        ) {
            (AddressClass::Forbidden(what), AddressClass::Forbidden(_)) => {
                Err(AllowedNetworkError::Forbidden(what))
            }
            (AddressClass::Public, AddressClass::Public) => Err(AllowedNetworkError::Public),
            _ => Ok(Self {
                network,
                port,
                is_http_allowed: false,
            }),
        }
    }
}

impl fmt::Display for AllowedNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.network.addr().is_ipv4() {
            write!(f, "{}:{}", self.network, self.port)
        } else {
            write!(f, "[{}]:{}", self.network, self.port)
        }
    }
}

impl Serialize for AllowedNetwork {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The networks that an operator has allowed for one tenant. They apply to [`AddressClass::Private`] addresses only.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AllowList(Vec<AllowedNetwork>);

impl AllowList {
    /// A list of these networks.
    pub fn new(networks: Vec<AllowedNetwork>) -> Self {
        Self(networks)
    }

    /// From an array of values as in [`AllowedNetwork::from_column`].
    pub(crate) fn from_column(texts: &[String]) -> Self {
        let networks = texts
            .iter()
            .filter_map(|text| AllowedNetwork::from_column(text));
        Self(networks.collect())
    }

    /// Whether no network is allowed.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether callbacks in one of the networks may be called by http.
    pub(super) fn has_http(&self) -> bool {
        self.0.iter().any(|opening| opening.is_http_allowed)
    }

    /// Whether this address and port may be called by http.
    pub(super) fn is_http_allowed(&self, address: SocketAddr) -> bool {
        let mut openings = self.0.iter();
        openings.any(|opening| opening.is_http_allowed && opening.contains(address))
    }

    /// Whether this address and port are allowed.
    pub fn is_allowed(&self, address: SocketAddr) -> bool {
        self.0.iter().any(|opening| opening.contains(address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allowed_networks_are_parsed_and_displayed() {
        for (text, written) in [
            ("10.1.0.0/16:443", "10.1.0.0/16:443"),
            ("10.1.2.3:8443", "10.1.2.3/32:8443"),
            ("127.0.0.1/32:9000", "127.0.0.1/32:9000"),
            ("[fd12:3456::/48]:443", "[fd12:3456::/48]:443"),
            ("[fd12:3456::1]:443", "[fd12:3456::1/128]:443"),
            ("10.0.0.0/8:1", "10.0.0.0/8:1"),
        ] {
            let opening: AllowedNetwork = text.parse().expect(text);
            assert_eq!(opening.to_string(), written);
            assert_eq!(opening.to_string().parse(), Ok(opening));
            let column = format!("{} {}", opening.network(), opening.port());
            assert_eq!(AllowedNetwork::from_column(&column), Some(opening));
            let column = format!("{column} http");
            let with_http = opening.with_http(true);
            assert_eq!(AllowedNetwork::from_column(&column), Some(with_http));
        }
        for (text, problem) in [
            ("", AllowedNetworkError::Malformed),
            ("10.1.0.0/16", AllowedNetworkError::Malformed),
            ("10.1.0.0/16:0", AllowedNetworkError::Malformed),
            ("10.1.0.0/16:65536", AllowedNetworkError::Malformed),
            ("10.1.0.0/33:443", AllowedNetworkError::Malformed),
            ("fd12::/48:443", AllowedNetworkError::Malformed),
            ("example.com:443", AllowedNetworkError::Malformed),
            ("0.0.0.0/0:443", AllowedNetworkError::TooWide),
            ("[::/0]:443", AllowedNetworkError::TooWide),
            ("8.8.8.0/24:443", AllowedNetworkError::Public),
            ("[2600::/32]:443", AllowedNetworkError::Public),
        ] {
            assert_eq!(text.parse::<AllowedNetwork>(), Err(problem), "{text}");
        }
        for text in [
            "169.254.169.254:80",
            "169.254.0.0/16:80",
            "100.100.100.200:80",
            "[fd00:ec2::254]:80",
            "[fe80::/64]:80",
            "224.0.0.0/8:443",
        ] {
            let problem = text.parse::<AllowedNetwork>();
            assert!(
                matches!(problem, Err(AllowedNetworkError::Forbidden(_))),
                "{text}"
            );
        }
        let suggested = "10.1.2.3/16:443"
            .parse::<AllowedNetwork>()
            .expect_err("host bits");
        assert!(suggested.to_string().contains("10.1.0.0/16:443"));
    }
}
