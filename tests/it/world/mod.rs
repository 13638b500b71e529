//! What the tests live in.
//!
//! - [`attesto`]: a whole Attesto in this process
//! - [`desk`]: somebody who types what a page says
//! - [`folder`]: a folder that is gone when its test is
//! - [`log`]: what is logged while a test runs
//! - [`needles`]: looks for secrets where they do not belong
//! - [`pooler`]: a real `PgBouncer` before it
//! - [`postgres`]: a throw-away Postgres for the whole run, and a database of its own for every test
//! - [`receiver`]: a callback, good or bad
//! - [`shell`]: the binary, run as an administrator runs it
//! - [`wire`]: a connection to the database that goes silent

pub(crate) mod attesto;
pub(crate) mod doc_runner;
pub(crate) mod event;
pub(crate) mod folder;
pub(crate) mod log;
pub(crate) mod needles;
pub(crate) mod pooler;
pub(crate) mod postgres;
pub(crate) mod receiver;
pub(crate) mod shell;
pub(crate) mod wire;
