//! Further callbacks of a tenant: adds and removes them, and changes which events a callback is sent.
//!
//! Guarantees: a tenant has at most [`MAX_CALLBACKS`](super::MAX_CALLBACKS); a number is not given twice; when a callback is
//! removed, no delivery to it stays unfinished, and none is given up unless the caller says so.
//!
//! - [`store`]: the queries

pub mod store;
