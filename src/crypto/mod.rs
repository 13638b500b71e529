//! Secrets: how they are held, sealed, made and compared.
//!
//! Promises: a secret never prints (its types have no `Display`, and a `Debug` without content), is wiped when
//! dropped, and opens only in the place it was sealed for. RustCrypto seals, signs deliveries and hashes; AWS-LC makes
//! random bytes and does TLS, ECDSA, RSA and X.509, where it is several times faster.
//!
//! - [`keyring`]: seal and open, bound to a table, a column and a tenant
//! - [`sealed_file`]: a file that opens with a passphrase or an identity
//! - [`redact`]: removes secrets that were entered where something else belongs
//! - [`token`]: random secrets, and the digests they are recognised by

pub mod keyring;
pub mod redact;
pub mod sealed_file;
pub mod token;

pub use secrecy::{ExposeSecret, SecretSlice, SecretString};
