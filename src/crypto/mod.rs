//! Secrets: how they are held, sealed, minted and compared. One backend, AWS-LC.
//!
//! Promises: a secret never prints (its types have no `Display`, and a `Debug` that says nothing), is wiped when
//! dropped, and opens only in the place it was sealed for.
//!
//! - [`keyring`]: seal and open, bound to a table, a column and a tenant
//! - [`sealed_file`]: a file for whoever has a passphrase or an identity
//! - [`pasted`]: secrets that were put where something else belongs
//! - [`token`]: random secrets, and the digests they are recognised by

pub mod keyring;
pub mod redact;
pub mod sealed_file;
pub mod token;

pub use secrecy::{ExposeSecret, SecretSlice, SecretString};
