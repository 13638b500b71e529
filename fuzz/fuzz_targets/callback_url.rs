//! A callback URL: no spelling of a non-public address is accepted.

#![no_main]

use std::net::{IpAddr, Ipv4Addr};

use attesto::egress::{AllowList, CallbackHost, EgressPolicy};
use libfuzzer_sys::fuzz_target;

fn is_inside(v4: Ipv4Addr) -> bool {
    let [first, second, ..] = v4.octets();
    v4.is_loopback()
        || v4.is_private()
        || v4.is_link_local()
        || v4.is_broadcast()
        || v4.is_multicast()
        || first == 0
        || (first == 100 && (64..128).contains(&second))
}

fuzz_target!(|url: &str| {
    let (policy, nothing) = (EgressPolicy::new(false), AllowList::default());
    let Ok(target) = policy.parse_target(url, &nothing) else {
        return;
    };
    assert!(
        url.trim().to_ascii_lowercase().starts_with("https:"),
        "{url}"
    );
    let CallbackHost::Address(address) = target.host else {
        return;
    };
    if policy
        .check_addresses(&[address], target.port, &nothing)
        .is_ok()
    {
        // A second implementation, independent of the policy under test.
        let is_inside = match address.to_canonical() {
            IpAddr::V4(v4) => is_inside(v4),
            IpAddr::V6(v6) => {
                let [a, b, _, _, _, _, high, low] = v6.segments();
                let [_, _, _, _, _, _, _, _, _, _, _, _, last @ ..] = v6.octets();
                let is_translated = (a, b) == (0x64, 0xff9b);
                let is_compatible = v6.segments()[..6] == [0; 6] && (high, low) != (0, 0);
                v6.is_loopback()
                    || v6.is_unspecified()
                    || v6.is_multicast()
                    || v6.is_unique_local()
                    || v6.is_unicast_link_local()
                    || ((is_translated || is_compatible) && is_inside(Ipv4Addr::from(last)))
            }
        };
        assert!(!is_inside, "{url} leads to {address}");
    }
});
