//! Checks with Apple's OCSP responders whether certificates were revoked. Used with `APPLE_OCSP=on` (RFC 6960).
//!
//! Guarantees: a certificate is only treated as good or revoked because of a signed response. Any other response, or
//! none, means "try again later" and never "not valid", because requests are plain HTTP and any host in the path can
//! answer. A certificate that was good stays good during an outage of its responder, until a day after the validity of
//! the last response. At most one request about a certificate is sent at a time, and concurrent verifications share it.
//!
//! The responder's URL is the one in the certificate, which the issuer signed. It is only called after the chain was
//! verified up to a trusted root. With Apple's own roots, it must also be a host of apple.com. With an operator's
//! roots, which production refuses, it may be any host: a simulated responder is at a loopback address.
//!
//! - [`wire`]: requests and responses in DER, without interpretation
//! - [`certificate`]: a certificate of a chain, with the request about it
//! - [`response`]: verifies a response
//! - [`revocation_checker`]: calls responders and caches their responses

pub mod certificate;
pub mod response;
pub mod revocation_checker;
mod wire;

pub use certificate::ChainCertificate;
pub use revocation_checker::{ResponderPolicy, RevocationChecker, RevocationError};
