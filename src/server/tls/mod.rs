//! The listener's own certificate, for who runs without a proxy in front: read from two files, and read again when they
//! change.
//!
//! Guarantees: a pair is used only when the key belongs to the certificate and the certificate is within its time; whatever
//! is wrong with what came later, the pair that was good goes on being used, the log says why and a number grows;
//! connections that exist keep the pair they began with.
//!
//! - [`certificate`]: two files, read and judged
//! - [`reload`]: the pair in use, and how another takes its place

pub mod certificate;
pub mod reload;

pub(crate) use certificate::is_renewal_due;
pub use certificate::{TlsCertificate, TlsCertificateError, TlsFiles};
pub use reload::{ReloadIntervals, ReloadableTls, TlsMetrics};
