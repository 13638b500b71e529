//! What the tests live in.
//!
//! - [`postgres`]: a throw-away Postgres for the whole run, and a database of its own for every test

pub(crate) mod postgres;
