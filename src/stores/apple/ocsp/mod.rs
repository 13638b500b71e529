//! Was a certificate of the chain revoked? Asked of Apple's responders with `APPLE_OCSP=on` (RFC 6960).
//!
//! Promises: only a responder's signed word makes a certificate good or bad; whatever else comes back, or nothing, means
//! "ask again later" and never "false", because any host on the way can answer plain HTTP with anything. A certificate
//! that was said to be good stays good through an outage of its responder, for a day longer than the responder
//! vouched for. A responder is asked about one certificate once at a time, however many verifications wait for it.
//!
//! Which addresses are asked: the one in the certificate, which is signed by the issuer of the certificate, and only
//! after the chain was found to lead to a trusted root. With Apple's own roots it must be a host of apple.com as well.
//! With roots of an operator's own, which production refuses, it may be any: a simulated responder is at loopback.
//!
//! - [`wire`]: requests and responses in DER, no meaning
//! - [`certificate`]: a certificate that can be asked about
//! - [`response`]: what a response says about it, and why it is refused
//! - [`revocation_checker`]: asks the responder, and caches its answers

pub mod certificate;
pub mod response;
pub mod revocation_checker;
mod wire;

pub use certificate::ChainCertificate;
pub use revocation_checker::{ResponderPolicy, RevocationChecker, RevocationError};
