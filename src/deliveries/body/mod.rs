//! The body of an event: compressed for the database, and restored to exactly the same text.
//!
//! Most of an Apple notification is the same in all notifications: the certificate chain, which it contains at least four
//! times, in base64 within base64. So every base64 string in the body is decoded first, and the result is compressed with a
//! dictionary that contains the certificates.
//!
//! - [`segments`]: decodes the base64 strings of a text, reversibly
//! - [`dictionary`]: compression dictionaries and their content
//! - [`codec`]: the formats of stored bodies
//! - [`store`]: the queries, and a cache of dictionaries

mod codec;
mod dictionary;
mod segments;
mod store;

pub use codec::{BodyError, BodyParts, decode_body, encode_body};
pub use dictionary::{BodyDictionary, SharedContent};
pub(crate) use store::{BodyStore, EncodedBody};
pub use store::{EventBodyError, load_event_body, raw_message};
