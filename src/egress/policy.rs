//! Decides which addresses may be called.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use super::resolver::{LookupError, Resolver};
use super::target::{CallbackHost, CallbackTarget};
use super::{AddressClass, AllowList};

/// If a host has more addresses, only this many are tried. All of them are checked.
const MAX_DIALLED_ADDRESSES: usize = 16;

/// Decides which addresses may be called. Clones are cheap.
#[derive(Clone, Debug)]
pub struct EgressPolicy {
    allow_private: bool,
    denied_addresses: Arc<[SocketAddr]>,
}

/// Addresses that were just checked and may be called now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllowedAddresses {
    /// At least one, in the order in which they are tried.
    pub addresses: Vec<SocketAddr>,
    /// Whether one of the addresses is private and allowed by an operator for the tenant. The content of responses from
    /// such addresses is not stored: otherwise a tenant could read a private network through its deliveries.
    pub is_allow_listed: bool,
}

/// An address that must not be called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{address} is {what}")]
pub struct AddressRejection {
    /// The address as it was resolved or given.
    pub address: IpAddr,
    /// What the address is, as a text that completes "this is …".
    pub what: &'static str,
    /// What an operator can do about it.
    pub remedy: RejectionRemedy,
}

/// What an operator can do where an address must not be called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RejectionRemedy {
    /// Allow its network for the tenant.
    AllowNetwork,
    /// Allow http for the tenant in the network, which is open to https.
    AllowHttp,
    /// Nothing: the address is never called, whatever is allowed.
    Nothing,
}

/// Why a host cannot be called.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EgressError {
    /// One of its addresses must not be called.
    #[error(transparent)]
    Rejected(#[from] AddressRejection),
    /// The name could not be resolved.
    #[error(transparent)]
    Lookup(#[from] LookupError),
}

impl EgressPolicy {
    /// Allows public addresses only. With `allow_private`, for development, also allows http, the addresses of this machine
    /// and those of private networks, but never metadata services.
    pub fn new(allow_private: bool) -> Self {
        Self {
            allow_private,
            denied_addresses: Arc::default(),
        }
    }

    /// Denies these addresses, such as Attesto's own listeners and the database, in any case. An unspecified address
    /// stands for the loopback addresses. Other addresses of this machine are checked like any other address.
    #[must_use]
    pub fn with_denied_addresses(
        mut self,
        addresses: impl IntoIterator<Item = SocketAddr>,
    ) -> Self {
        let known = self.denied_addresses.iter().copied();
        self.denied_addresses = known.chain(addresses).collect();
        self
    }

    /// Whether private addresses and http are allowed.
    pub fn is_private_allowed(&self) -> bool {
        self.allow_private
    }

    /// Checks every address. If one must not be called, none may.
    pub fn check_addresses(
        &self,
        addresses: &[IpAddr],
        port: u16,
        allowed: &AllowList,
    ) -> Result<AllowedAddresses, EgressError> {
        let mut opened = false;
        let mut vetted = Vec::with_capacity(addresses.len().min(MAX_DIALLED_ADDRESSES));
        for &address in addresses {
            let socket = SocketAddr::new(address, port);
            opened |= self.check_address(socket, allowed)? == AddressAccess::AllowListed;
            if vetted.len() < MAX_DIALLED_ADDRESSES {
                vetted.push(socket);
            }
        }
        if vetted.is_empty() {
            return Err(LookupError::NoAddress.into());
        }
        Ok(AllowedAddresses {
            addresses: vetted,
            is_allow_listed: opened,
        })
    }

    /// Resolves the host of `target` within `timeout`, and checks every address.
    pub async fn resolve_and_check(
        &self,
        target: &CallbackTarget,
        allowed: &AllowList,
        resolver: &Resolver,
        timeout: Duration,
    ) -> Result<AllowedAddresses, EgressError> {
        match &target.host {
            CallbackHost::Address(address) => self.check_target(target, &[*address], allowed),
            CallbackHost::Name(name) => {
                // A trailing dot keeps the resolver from trying its search domains first. If private networks are
                // allowed, the search domains may be meant.
                let is_inner = self.allow_private || !allowed.is_empty();
                let name = if is_inner || name.ends_with('.') {
                    name.clone()
                } else {
                    format!("{name}.")
                };
                let addresses = resolver.resolve_name(name, timeout).await?;
                self.check_target(target, &addresses, allowed)
            }
        }
    }

    fn check_target(
        &self,
        target: &CallbackTarget,
        addresses: &[IpAddr],
        allowed: &AllowList,
    ) -> Result<AllowedAddresses, EgressError> {
        let vetted = self.check_addresses(addresses, target.port, allowed)?;
        if !target.is_https && !self.allow_private {
            let is_closed = |address: &&IpAddr| {
                !allowed.is_http_allowed(SocketAddr::new(**address, target.port))
            };
            if let Some(address) = addresses.iter().find(is_closed) {
                return Err(AddressRejection {
                    address: *address,
                    what: "outside of the networks in which this tenant's callback may use http",
                    remedy: RejectionRemedy::AllowHttp,
                }
                .into());
            }
        }
        Ok(vetted)
    }

    fn check_address(
        &self,
        socket: SocketAddr,
        allowed: &AllowList,
    ) -> Result<AddressAccess, AddressRejection> {
        let address = socket.ip();
        let refused = |what, remedy| {
            Err(AddressRejection {
                address,
                what,
                remedy,
            })
        };
        let kind = AddressClass::from_ip(address);
        let own = |never: &SocketAddr| {
            let everywhere = never.ip().is_unspecified() && is_loopback(address);
            never.port() == socket.port()
                && (never.ip().to_canonical() == address.to_canonical() || everywhere)
        };
        if self.denied_addresses.iter().any(own) {
            return refused("an address of Attesto's own", RejectionRemedy::Nothing);
        }
        match kind {
            AddressClass::Public => Ok(AddressAccess::Unrestricted),
            AddressClass::Private(_) if self.allow_private => Ok(AddressAccess::Unrestricted),
            AddressClass::Private(_) if allowed.is_allowed(socket) => {
                Ok(AddressAccess::AllowListed)
            }
            AddressClass::Private(what) => refused(what, RejectionRemedy::AllowNetwork),
            AddressClass::Forbidden(what) => refused(what, RejectionRemedy::Nothing),
        }
    }
}

#[derive(PartialEq, Eq)]
enum AddressAccess {
    Unrestricted,
    AllowListed,
}

fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vet(guard: &EgressPolicy, addresses: &[&str], port: u16, allowed: &AllowList) -> bool {
        let addresses: Vec<IpAddr> = addresses.iter().map(|text| text.parse().unwrap()).collect();
        guard.check_addresses(&addresses, port, allowed).is_ok()
    }

    #[test]
    fn one_bad_address_refuses_all() {
        let (guard, none) = (EgressPolicy::new(false), AllowList::default());
        assert!(vet(&guard, &["1.1.1.1", "2606:4700::1"], 443, &none));
        assert!(!vet(&guard, &["1.1.1.1", "10.0.0.1"], 443, &none));
        assert!(!vet(&guard, &["fd00::1", "1.1.1.1"], 443, &none));
        assert!(!vet(&guard, &[], 443, &none));
        let mut many = vec!["1.1.1.1"; 1000];
        assert!(vet(&guard, &many, 443, &none));
        many.push("127.0.0.1");
        assert!(!vet(&guard, &many, 443, &none), "also behind the sixteenth");
    }

    #[test]
    fn what_was_opened_is_open_at_its_port_and_metadata_never_is() {
        let guard = EgressPolicy::new(false);
        let allowed = AllowList::new(vec![
            "10.1.0.0/16:443".parse().unwrap(),
            "[fc00::/16]:443".parse().unwrap(),
            "100.64.0.0/10:80".parse().unwrap(),
        ]);
        let none = AllowList::default();
        assert!(vet(&guard, &["10.1.2.3"], 443, &allowed));
        assert!(vet(&guard, &["::ffff:10.1.2.3"], 443, &allowed));
        for (address, port) in [("10.1.2.3", 80), ("10.2.0.1", 443), ("127.0.0.1", 443)] {
            assert!(!vet(&guard, &[address], port, &allowed), "{address}:{port}");
        }
        assert!(!vet(&guard, &["10.1.2.3"], 443, &none), "of another tenant");
        for (address, port) in [
            ("169.254.169.254", 443),
            ("100.100.100.200", 80),
            ("::ffff:100.100.100.200", 80),
            ("fd00:ec2::254", 443),
        ] {
            assert!(!vet(&guard, &[address], port, &allowed), "{address}");
            assert!(!vet(&EgressPolicy::new(true), &[address], port, &allowed));
        }
        let vetted = guard.check_addresses(&["10.1.2.3".parse().unwrap()], 443, &allowed);
        assert!(vetted.unwrap().is_allow_listed);
    }

    #[test]
    fn a_developer_reaches_his_own_network_but_not_attesto() {
        let none = AllowList::default();
        let guard = EgressPolicy::new(true).with_denied_addresses([
            "0.0.0.0:8080".parse().unwrap(),
            "10.0.0.5:5432".parse().unwrap(),
        ]);
        for address in [
            "127.0.0.1",
            "::1",
            "10.0.0.5",
            "192.168.1.1",
            "fd00::1",
            "1.1.1.1",
        ] {
            assert!(vet(&guard, &[address], 9000, &none), "{address}");
        }
        for address in ["0.0.0.0", "::", "224.0.0.1", "169.254.169.254", "fe80::1"] {
            assert!(!vet(&guard, &[address], 9000, &none), "{address}");
        }
        for (address, port) in [
            ("127.0.0.1", 8080),
            ("::1", 8080),
            ("10.0.0.5", 5432),
            ("::ffff:10.0.0.5", 5432),
        ] {
            assert!(!vet(&guard, &[address], port, &none), "{address}:{port}");
        }
    }
}
