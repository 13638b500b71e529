//! The webhook endpoints of a tenant: for each of its callbacks the URL, which events it is sent, its signing secrets and the client
//! certificate that it is shown; and the private networks that an operator has allowed for the tenant.
//!
//! Guarantees: a secret signs until the end of its overlap, however often newer secrets are set; a retired or expired secret
//! signs nothing, by the database's clock at each attempt; no secret is printed, except a generated one, once, and no
//! key of a client certificate.
//!
//! - [`callback`]: the kind and the filter of a callback
//! - [`callbacks`]: further callbacks of a tenant
//! - [`client_certificate`]: [`ClientCertificate`], for receivers that ask for one
//! - [`secret`]: [`SigningSecret`], and [`SigningSecrets`] in the order in which they sign
//! - [`store`]: endpoints in the database

mod callback;
pub mod callbacks;
mod client_certificate;
mod secret;
pub mod store;

pub use callback::{CallbackFilter, CallbackFilterChange, CallbackKind, MAX_CALLBACKS};
pub use client_certificate::{ClientCertificate, ClientCertificateError, ClientCertificateSummary};
pub use secret::{SigningSecret, SigningSecretError, SigningSecrets};
pub use store::{
    ClientCertificateChange, EndpointChange, EndpointSummary, NewEndpoint, SecretChange,
    WebhookEndpoint,
};
