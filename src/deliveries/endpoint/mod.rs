//! A tenant's callback: where it is, what signs what is sent there, and what an operator opened for it.
//!
//! Promises: while a secret was promised to sign, it signs, however often newer ones are set; a secret that was retired
//! signs nothing any more, judged by the database's clock at every attempt; no secret is printed, except one that was
//! made here, once.
//!
//! - [`secret`]: [`SigningSecret`], and [`Secrets`] in the order in which they sign
//! - [`store`]: all of it in the database, the secrets sealed

pub mod secret;
pub mod store;

pub use secret::{SigningSecret, SigningSecretError, SigningSecrets};
pub use store::{EndpointChange, EndpointSummary, SecretChange, WebhookEndpoint};
