//! Which addresses a callback may be at.
//!
//! A tenant chooses the URL and we call it from inside the operator's network. Promises: every address is judged before
//! anything is sent to it, however it was spelt; when one address of a name must not be called, none of them is; the
//! addresses of cloud metadata services are never called, whatever anybody opened.
//!
//! - [`address`]: what an address is for, as tables
//! - [`allow_list`]: what an operator opened for one tenant
//! - [`target`]: what a callback's URL says, and whether it may be said
//! - [`resolver`]: names to addresses, in bounded time
//! - [`judge`]: [`Guard`], which puts these together

pub mod address;
pub mod allow_list;
pub mod policy;
pub mod resolver;
pub mod target;

pub use address::AddressClass;
pub use allow_list::{AllowList, AllowedNetwork, AllowedNetworkError};
pub use policy::{AddressRejection, AllowedAddresses, EgressError, EgressPolicy};
pub use resolver::{LookupError, Resolver};
pub use target::{CallbackTarget, CallbackUrlError};
