//! The way out: which addresses callbacks may be at, and the proxy that calls go through, if there is one.
//!
//! A tenant chooses the URL, and Attesto calls it from inside the operator's network. Guarantees: every address is checked
//! before anything is sent to it, in whatever form it was written; if one address of a host must not be called, none of its
//! addresses is; the addresses of cloud metadata services are never called, even if an operator allowed their network.
//!
//! - [`policy`]: [`EgressPolicy`], which puts the other files together
//! - [`target`]: parses and checks the URL of a callback
//! - [`resolver`]: resolves host names, in bounded time
//! - [`address`]: classifies addresses
//! - [`allow_list`]: the private networks that an operator has allowed for a tenant
//! - [`proxy`]: [`EgressProxy`], a tunnel through the operator's proxy

mod address;
mod allow_list;
mod policy;
mod proxy;
mod resolver;
mod target;

use address::AddressClass;
pub use allow_list::{AllowList, AllowedNetwork, AllowedNetworkError};
pub use policy::{AddressRejection, AllowedAddresses, EgressError, EgressPolicy, RejectionRemedy};
pub use proxy::{EgressProxy, EgressProxyUrlError, ProxyError};
pub use resolver::{LookupError, Resolver};
pub use target::{CallbackHost, CallbackTarget, CallbackUrlError};
