//! The address of a callback: however it is spelled, none that is not public can be dialled.

#![no_main]

use std::net::IpAddr;

use attesto::deliveries::guard::target::TargetHost;
use attesto::deliveries::guard::{AllowList, Guard};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|url: &str| {
    let (guard, nothing) = (Guard::new(false), AllowList::default());
    let Ok(target) = guard.target(url, &nothing) else {
        return;
    };
    assert!(
        url.trim().to_ascii_lowercase().starts_with("https:"),
        "{url}"
    );
    let TargetHost::Address(address) = target.host else {
        return;
    };
    if guard.vet(&[address], target.port, &nothing).is_ok() {
        // Another opinion than the guard's own.
        let is_inside = match address {
            IpAddr::V4(v4) => {
                v4.is_loopback()
                    || v4.is_private()
                    || v4.is_link_local()
                    || v4.is_broadcast()
                    || v4.is_multicast()
                    || v4.octets()[0] == 0
            }
            IpAddr::V6(v6) => {
                v6.is_loopback()
                    || v6.is_unspecified()
                    || v6.is_multicast()
                    || v6.is_unique_local()
                    || v6.is_unicast_link_local()
                    || v6
                        .to_ipv4_mapped()
                        .is_some_and(|v4| v4.is_loopback() || v4.is_private())
            }
        };
        assert!(!is_inside, "{url} leads to {address}");
    }
});
