//! Secrets: how they are held in memory, sealed, generated and compared.
//!
//! Guarantees: a secret is never printed, because its types have no `Display` and their `Debug` has no content. It is
//! wiped from memory when dropped. It can only be unsealed in the context it was sealed for. RustCrypto seals, signs
//! deliveries and hashes; AWS-LC generates random bytes and is used for TLS, ECDSA, RSA and X.509, where it is several
//! times faster.
//!
//! - [`keyring`]: seals and unseals values, bound to a table, a column and a row
//! - [`sealed_file`]: files sealed with a passphrase or for a recipient
//! - [`redact`]: keeps secrets that were entered in the wrong place out of messages
//! - [`token`]: random secrets, and digests to recognise them by

pub mod keyring;
pub mod redact;
pub mod sealed_file;
pub mod token;

pub use secrecy::{ExposeSecret, SecretSlice, SecretString};
