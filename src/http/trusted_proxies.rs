//! The proxies in front of the service, whose statements about a client's address count.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net};

/// The first 96 bits of an IPv6 address that stands for an IPv4 address.
const MAPPED_PREFIX_LEN: u8 = 96;

/// Addresses and networks of proxies: `10.0.0.5`, `10.0.0.0/8`, `fd00::/8`. Clones share them. `None`: there are none, and a clone
/// for each request costs nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustedProxies(Option<Arc<[IpNet]>>);

/// Why an entry of the list is refused. Entries are counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TrustedProxyError {
    /// It is no address and no network.
    #[error(
        "entry {0} must be an IP address or a network, such as 10.0.0.5, 10.0.0.0/8 or fd00::/8; entries are separated by commas"
    )]
    Malformed(usize),
    /// Bits after the prefix are set.
    #[error(
        "entry {0} is a network whose address has more bits than its prefix: write 10.0.0.0/8, or 10.0.0.5 for one address"
    )]
    HostBits(usize),
    /// The network is the whole Internet.
    #[error(
        "entry {0} contains every address, so that each client could choose the address that counts as its own: name only the proxies"
    )]
    EveryAddress(usize),
}

impl TrustedProxies {
    /// From a list separated by commas. Empty entries are ignored: the list may be composed of variables, and one of them may
    /// have no value.
    pub fn parse(list: &str) -> Result<Self, Vec<TrustedProxyError>> {
        let (mut networks, mut problems) = (Vec::new(), Vec::new());
        for (index, entry) in list.split(',').map(str::trim).enumerate() {
            if entry.is_empty() {
                continue;
            }
            match parse_network(entry, index + 1) {
                Ok(network) => networks.push(network),
                Err(problem) => problems.push(problem),
            }
        }
        if problems.is_empty() {
            Ok(Self((!networks.is_empty()).then(|| networks.into())))
        } else {
            Err(problems)
        }
    }

    /// Whether a proxy has this address, which must not be an IPv4 address in IPv6 form.
    pub(super) fn contains(&self, address: IpAddr) -> bool {
        let networks = self.0.as_deref().unwrap_or_default();
        networks.iter().any(|network| network.contains(&address))
    }
}

fn parse_network(entry: &str, number: usize) -> Result<IpNet, TrustedProxyError> {
    let network: IpNet = match entry.parse::<IpAddr>() {
        Ok(address) => address.into(),
        Err(_) => entry
            .parse()
            .map_err(|_| TrustedProxyError::Malformed(number))?,
    };
    if network != network.trunc() {
        return Err(TrustedProxyError::HostBits(number));
    }
    let network = to_canonical(network);
    if network.prefix_len() == 0 {
        return Err(TrustedProxyError::EveryAddress(number));
    }
    Ok(network)
}

/// A network of IPv4 addresses in IPv6 form becomes one of IPv4 addresses.
fn to_canonical(network: IpNet) -> IpNet {
    let IpNet::V6(v6) = network else {
        return network;
    };
    let prefix_len = v6.prefix_len().checked_sub(MAPPED_PREFIX_LEN);
    let mapped = v6.addr().to_ipv4_mapped().zip(prefix_len);
    match mapped.map(|(address, prefix_len)| Ipv4Net::new(address, prefix_len)) {
        Some(Ok(v4)) => v4.into(),
        _ => network,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_has_addresses_and_networks_of_both_kinds() {
        let list = " 10.0.0.0/8, 192.0.2.7,,fd00::/8,2001:db8::1, ::ffff:198.51.100.0/120 ,::ffff:203.0.113.9,";
        let proxies = TrustedProxies::parse(list).expect("these are good");
        for (address, is_trusted) in [
            ("10.255.0.1", true),
            ("11.0.0.1", false),
            ("192.0.2.7", true),
            ("192.0.2.8", false),
            ("fdff::1", true),
            ("2001:db8::1", true),
            ("2001:db8::2", false),
            ("198.51.100.200", true),
            ("198.51.101.1", false),
            ("203.0.113.9", true),
            ("203.0.113.8", false),
            ("::1", false),
        ] {
            let found = proxies.contains(address.parse().expect("an address"));
            assert_eq!(found, is_trusted, "{address}");
        }
        let none = TrustedProxies::parse(" , ").expect("it is empty");
        assert_eq!(none, TrustedProxies::default());
        assert!(!none.contains(IpAddr::from([127, 0, 0, 1])));
    }

    #[test]
    fn every_bad_entry_is_named_by_its_number() {
        use TrustedProxyError::{EveryAddress, HostBits, Malformed};

        for (list, problems) in [
            ("proxy.internal", vec![Malformed(1)]),
            (
                "10.0.0.1,10.0.0.0/33, 10.0.0.1:80",
                vec![Malformed(2), Malformed(3)],
            ),
            ("[::1]", vec![Malformed(1)]),
            ("fe80::1%eth0", vec![Malformed(1)]),
            ("10.0.0.1 10.0.0.2", vec![Malformed(1)]),
            ("010.0.0.1", vec![Malformed(1)]),
            ("10.1.2.3/8,,fd00::1/8", vec![HostBits(1), HostBits(3)]),
            (
                "0.0.0.0/0,::/0,::ffff:0:0/96",
                vec![EveryAddress(1), EveryAddress(2), EveryAddress(3)],
            ),
        ] {
            assert_eq!(TrustedProxies::parse(list), Err(problems), "{list}");
        }
    }
}
