//! Google Play: is this purchase real, and what is it now.
//!
//! Promises: an answer comes from Google and from nowhere else; "no" is said only when Google said so, and an error,
//! a refusal of the credentials or a quota is never mistaken for one; a purchase of another app is never called this
//! tenant's.
//!
//! - [`payload`]: Google's JSON, with no meaning added
//! - [`translate`]: from Google's words to ours, as tables
//! - [`account`]: the service account, and the access tokens bought with it
//! - [`api`]: calls to the Play Developer API, and what each answer means
//! - [`store`]: the tenant's credentials, sealed
//! - [`verify`]: the use case
//! - [`mod@routes`]: the use case in HTTP

pub mod account;
pub mod api;
pub mod payload;
pub mod routes;
pub mod store;
pub mod translate;
pub mod verify;

pub use routes::routes;
pub use verify::{Google, Settings};
