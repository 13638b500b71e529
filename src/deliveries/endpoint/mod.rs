//! The webhook endpoint of a tenant: its callback URL, its signing secrets, and the private networks that an operator has
//! allowed for it.
//!
//! Guarantees: a secret signs until the end of its overlap, however often newer secrets are set; a retired or expired secret
//! signs nothing, by the database's clock at each attempt; no secret is printed, except a generated one, once.
//!
//! - [`secret`]: [`SigningSecret`], and [`SigningSecrets`] in the order in which they sign
//! - [`store`]: endpoints in the database

mod secret;
pub mod store;

pub use secret::{SigningSecret, SigningSecretError, SigningSecrets};
pub use store::{EndpointChange, EndpointSummary, SecretChange, WebhookEndpoint};
