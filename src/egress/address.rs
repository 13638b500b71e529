//! Classifies IP addresses.
//!
//! The networks are those of the IANA special-purpose registries, applied strictly: an IPv6 address outside the range
//! that is assigned for the Internet is refused. IPv6 addresses can contain an IPv4 address in many forms, and a
//! translator in the network may accept any of them. Each form is classified by the contained IPv4 address, or refused.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Whether a callback may be at an address. The text completes "this is …" in messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AddressClass {
    /// An address of the Internet.
    Public,
    /// This machine or a private network: an operator may allow it for a tenant, or for development for all tenants.
    Private(&'static str),
    /// An address that is never called, even if an operator allowed its network.
    Forbidden(&'static str),
}

const METADATA: AddressClass = AddressClass::Forbidden("an address of a cloud's metadata service");
const LINK_LOCAL: AddressClass =
    AddressClass::Forbidden("a link-local address, where clouds keep their metadata services");
const RESERVED: AddressClass = AddressClass::Forbidden("a reserved address");
const DOCUMENTATION: AddressClass = AddressClass::Forbidden("an address of an example");
const MULTICAST: AddressClass = AddressClass::Forbidden("a multicast address");
const UNSPECIFIED: AddressClass = AddressClass::Forbidden("the unspecified address");
const BENCHMARK: AddressClass = AddressClass::Forbidden("an address for benchmarks");
const EMBEDDED_IPV4: AddressClass = AddressClass::Forbidden("an IPv4 address inside an IPv6 one");
const LOOPBACK: AddressClass = AddressClass::Private("an address of this machine");
const PRIVATE: AddressClass = AddressClass::Private("a private address");
const CARRIER_NAT: AddressClass =
    AddressClass::Private("an address shared behind a carrier's translator");

/// The first network that contains an address decides, so single addresses come before the networks that contain them.
const IPV4_NETWORKS: &[([u8; 4], u32, AddressClass)] = &[
    // The metadata services of Alibaba and Oracle, and of Azure, whose address is in a public network.
    ([100, 100, 100, 200], 32, METADATA),
    ([192, 0, 0, 192], 32, METADATA),
    ([168, 63, 129, 16], 32, METADATA),
    ([169, 254, 0, 0], 16, LINK_LOCAL),
    ([127, 0, 0, 0], 8, LOOPBACK),
    ([10, 0, 0, 0], 8, PRIVATE),
    ([172, 16, 0, 0], 12, PRIVATE),
    ([192, 168, 0, 0], 16, PRIVATE),
    ([100, 64, 0, 0], 10, CARRIER_NAT),
    ([0, 0, 0, 0], 8, UNSPECIFIED),
    ([192, 0, 0, 0], 24, RESERVED),
    ([192, 0, 2, 0], 24, DOCUMENTATION),
    // Formerly the relays for 6to4.
    ([192, 88, 99, 0], 24, RESERVED),
    ([198, 18, 0, 0], 15, BENCHMARK),
    ([198, 51, 100, 0], 24, DOCUMENTATION),
    ([203, 0, 113, 0], 24, DOCUMENTATION),
    ([224, 0, 0, 0], 4, MULTICAST),
    ([240, 0, 0, 0], 4, RESERVED),
];

/// The same for IPv6. An address in none of these networks is public inside `2000::/3` and refused outside.
const IPV6_NETWORKS: &[([u16; 8], u32, AddressClass)] = &[
    // The metadata services of Amazon, which has several in this network, and Google.
    ([0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0], 32, METADATA),
    ([0xfd20, 0x00ce, 0, 0, 0, 0, 0, 0], 32, METADATA),
    ([0, 0, 0, 0, 0, 0, 0, 1], 128, LOOPBACK),
    ([0, 0, 0, 0, 0, 0, 0, 0], 128, UNSPECIFIED),
    ([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10, LINK_LOCAL),
    ([0xfc00, 0, 0, 0, 0, 0, 0, 0], 7, PRIVATE),
    ([0xff00, 0, 0, 0, 0, 0, 0, 0], 8, MULTICAST),
    ([0x2001, 0x0db8, 0, 0, 0, 0, 0, 0], 32, DOCUMENTATION),
    // Teredo, benchmarks, and identifiers that are not addresses.
    ([0x2001, 0, 0, 0, 0, 0, 0, 0], 23, RESERVED),
    // 6to4
    ([0x2002, 0, 0, 0, 0, 0, 0, 0], 16, EMBEDDED_IPV4),
    ([0x3fff, 0, 0, 0, 0, 0, 0, 0], 20, DOCUMENTATION),
];

impl AddressClass {
    pub(crate) fn from_ip(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => classify_v4(address),
            IpAddr::V6(address) => classify_v6(address),
        }
    }
}

fn classify_v4(address: Ipv4Addr) -> AddressClass {
    let found = IPV4_NETWORKS.iter().find(|(network, length, _)| {
        let distance = u32::from_be_bytes(*network) ^ address.to_bits();
        distance.leading_zeros() >= *length
    });
    found.map_or(AddressClass::Public, |(_, _, kind)| *kind)
}

fn classify_v6(address: Ipv6Addr) -> AddressClass {
    // Operating systems show an IPv4 address on an IPv6 socket as ::ffff:a.b.c.d. The only reason to use this form in a
    // URL is to get around this check, so a public address in it is refused. A private one can be allowed like the IPv4
    // address.
    if let Some(inner) = address.to_ipv4_mapped() {
        return match classify_v4(inner) {
            AddressClass::Public => EMBEDDED_IPV4,
            kind => kind,
        };
    }
    let segments = address.segments();
    let last = Ipv4Addr::from_bits((u32::from(segments[6]) << 16) | u32::from(segments[7]));
    // NAT64, with which a machine without IPv4 reaches IPv4 addresses. A private address behind it is refused.
    if segments[..6] == [0x64, 0xff9b, 0, 0, 0, 0] {
        return match classify_v4(last) {
            AddressClass::Private(what) => AddressClass::Forbidden(what),
            kind => kind,
        };
    }
    // ISATAP, a tunnel inside a site: the last 32 bits are the IPv4 address.
    let is_isatap = matches!(segments[4], 0 | 0x0200) && segments[5] == 0x5efe;
    if is_isatap && classify_v4(last) != AddressClass::Public {
        return EMBEDDED_IPV4;
    }
    let found = IPV6_NETWORKS.iter().find(|(network, length, _)| {
        let distance = Ipv6Addr::from(*network).to_bits() ^ address.to_bits();
        distance.leading_zeros() >= *length
    });
    match found {
        Some((_, _, kind)) => *kind,
        None if segments[0] >> 13 == 1 => AddressClass::Public,
        None => RESERVED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> AddressClass {
        AddressClass::from_ip(text.parse().expect("an address"))
    }

    /// The first and last address of each network, and the addresses beside it if they are public.
    const EDGES: &str = "
        0.0.0.0 0.255.255.255 - 1.0.0.0
        10.0.0.0 10.255.255.255 9.255.255.255 11.0.0.0
        100.64.0.0 100.127.255.255 100.63.255.255 100.128.0.0
        127.0.0.0 127.255.255.255 126.255.255.255 128.0.0.0
        169.254.0.0 169.254.255.255 169.253.255.255 169.255.0.0
        172.16.0.0 172.31.255.255 172.15.255.255 172.32.0.0
        192.0.0.0 192.0.0.255 191.255.255.255 192.0.1.0
        192.0.2.0 192.0.2.255 192.0.1.255 192.0.3.0
        192.88.99.0 192.88.99.255 192.88.98.255 192.88.100.0
        192.168.0.0 192.168.255.255 192.167.255.255 192.169.0.0
        198.18.0.0 198.19.255.255 198.17.255.255 198.20.0.0
        198.51.100.0 198.51.100.255 198.51.99.255 198.51.101.0
        203.0.113.0 203.0.113.255 203.0.112.255 203.0.114.0
        224.0.0.0 255.255.255.255 223.255.255.255 -
        168.63.129.16 168.63.129.16 168.63.129.15 168.63.129.17
        :: 1fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff - 2000::1
        2001:: 2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff 2000:ffff:ffff:ffff:ffff:ffff:ffff:ffff 2001:200::
        2001:db8:: 2001:db8:ffff:ffff:ffff:ffff:ffff:ffff 2001:db7::1 2001:db9::
        2002:: 2002:ffff:ffff:ffff:ffff:ffff:ffff:ffff 2001:ffff::1 2003::
        3fff:: 3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff 3ffe::1 3fff:1000::
        4000:: ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 3fff:ffff::1 -";

    #[test]
    fn every_network_is_judged_to_its_edges() {
        for line in EDGES.lines().skip(1) {
            let mut words = line.split_whitespace();
            for refused in words.by_ref().take(2) {
                assert_ne!(of(refused), AddressClass::Public, "{refused}");
            }
            for public in words.filter(|word| *word != "-") {
                assert_eq!(of(public), AddressClass::Public, "{public}");
            }
        }
    }

    /// Addresses that the tests of other projects refuse: Smokescreen, Svix and hook0.
    #[test]
    fn what_others_refuse_is_refused() {
        for refused in [
            "0.0.0.0",
            "10.0.0.1",
            "127.0.0.1",
            "127.255.255.254",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.254",
            "192.168.1.1",
            "100.64.0.1",
            "224.0.0.1",
            "239.255.255.255",
            "255.255.255.255",
            "198.18.0.1",
            "192.0.0.1",
            "240.0.0.1",
            "::",
            "::1",
            "fc00::1",
            "fd00::1",
            "fd12:3456:789a:1::1",
            "fe80::1",
            "febf::1",
            "fec0::1",
            "ff00::1",
            "ff02::1",
            "100::1",
            "2001::1",
            "2001:10::1",
            "2001:20::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "2002:0808:0808::",
            "3fff::1",
            "5f00::1",
            "::127.0.0.1",
            "::ffff:127.0.0.1",
            "::ffff:8.8.8.8",
            "::ffff:0:127.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b::10.0.0.1",
            "64:ff9b:1::8.8.8.8",
            "64:ff9b:1::7f00:1",
            "fe80::5efe:127.0.0.1",
            "2600::5efe:127.0.0.1",
            "2600::200:5efe:169.254.169.254",
            "2001:0:7f00:1::",
            "fd00:ec2::254",
            "fd00:ec2::23",
            "fd20:ce::254",
        ] {
            assert_ne!(of(refused), AddressClass::Public, "{refused}");
        }
        for public in [
            "1.1.1.1",
            "8.8.8.8",
            "93.184.216.34",
            "172.15.0.1",
            "192.167.0.1",
            "2606:4700:4700::1111",
            "2a00:1450:4001:81b::200e",
            "64:ff9b::8.8.8.8",
            "2600::5efe:8.8.8.8",
        ] {
            assert_eq!(of(public), AddressClass::Public, "{public}");
        }
    }

    #[test]
    fn metadata_is_closed_in_every_spelling() {
        for closed in [
            "169.254.169.254",
            "169.254.170.2",
            "169.254.0.23",
            "100.100.100.200",
            "192.0.0.192",
            "168.63.129.16",
            "fd00:ec2::254",
            "fd00:ec2::23",
            "fd20:ce::254",
            "fe80::a9fe:a9fe",
            "::ffff:169.254.169.254",
            "::169.254.169.254",
            "::ffff:0:169.254.169.254",
            "64:ff9b::169.254.169.254",
            "64:ff9b:1::169.254.169.254",
            "2002:a9fe:a9fe::",
            "fd12::5efe:169.254.169.254",
            "::ffff:100.100.100.200",
            "64:ff9b::100.100.100.200",
        ] {
            assert!(matches!(of(closed), AddressClass::Forbidden(_)), "{closed}");
        }
    }

    /// Calls `property` with random addresses. Prints the address for which it fails.
    fn for_random(property: impl Fn(u128)) {
        let mut random = fastrand::Rng::new();
        for _ in 0..1_000_000 {
            property(random.u128(..));
        }
    }

    fn is_nat64(address: Ipv6Addr) -> bool {
        address.segments()[..6] == [0x64, 0xff9b, 0, 0, 0, 0]
    }

    #[test]
    fn nothing_below_100_is_public_but_nat64() {
        for_random(|random| {
            let address = Ipv6Addr::from_bits(random >> 8);
            assert!(
                is_nat64(address) || classify_v6(address) != AddressClass::Public,
                "{address}"
            );
        });
    }

    #[test]
    fn nothing_of_6to4_is_public() {
        for_random(|random| {
            let address = Ipv6Addr::from_bits((0x2002_u128 << 112) | (random >> 16));
            assert_ne!(classify_v6(address), AddressClass::Public, "{address}");
        });
    }

    #[test]
    fn what_is_public_in_ipv6_is_assigned() {
        for_random(|random| {
            let address = Ipv6Addr::from_bits(random);
            let is_assigned = address.segments()[0] >> 13 == 1;
            assert!(
                classify_v6(address) != AddressClass::Public || is_assigned || is_nat64(address),
                "{address}"
            );
        });
    }

    #[test]
    fn the_standard_library_agrees_where_it_has_an_opinion() {
        for_random(|random| {
            #[expect(
                clippy::cast_possible_truncation,
                reason = "any 32 of the bits will do"
            )]
            let address = Ipv4Addr::from_bits(random as u32);
            let special = address.is_private()
                || address.is_loopback()
                || address.is_link_local()
                || address.is_multicast()
                || address.is_broadcast()
                || address.is_documentation()
                || address.is_unspecified();
            assert!(
                !special || classify_v4(address) != AddressClass::Public,
                "{address}"
            );
        });
    }

    #[test]
    fn no_spelling_of_an_address_is_more_open_than_it_is() {
        for_random(|random| {
            #[expect(
                clippy::cast_possible_truncation,
                reason = "any 32 of the bits will do"
            )]
            let inner = Ipv4Addr::from_bits(random as u32);
            let kind = classify_v4(inner);
            let bits = u128::from(inner.to_bits());
            for outer in [
                bits,
                (0xffff_u128 << 32) | bits,
                (0xffff_u128 << 48) | bits,
                (0x64_ff9b_u128 << 96) | bits,
                (0x64_ff9b_0001_u128 << 80) | bits,
                (0x2002_u128 << 112) | (bits << 80),
                (0x2001_u128 << 112) | (bits ^ 0xffff_ffff),
                (0x2600_u128 << 112) | (0x5efe_u128 << 32) | bits,
                (0xfd00_u128 << 112) | (0x0200_5efe_u128 << 32) | bits,
            ] {
                let outer = Ipv6Addr::from_bits(outer);
                // ::1 is an address of its own.
                if matches!(kind, AddressClass::Forbidden(_)) && outer != Ipv6Addr::LOCALHOST {
                    assert!(
                        matches!(classify_v6(outer), AddressClass::Forbidden(_)),
                        "{outer}"
                    );
                }
                if classify_v6(outer) == AddressClass::Public {
                    assert_eq!(kind, AddressClass::Public, "{outer}");
                }
            }
            let nat64 = Ipv6Addr::from_bits((0x64_ff9b_u128 << 96) | bits);
            assert_eq!(
                classify_v6(nat64) == AddressClass::Public,
                kind == AddressClass::Public,
                "{nat64}"
            );
        });
    }
}
