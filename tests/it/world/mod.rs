//! Helpers shared by the tests.
//!
//! - [`attesto`]: a complete Attesto server in the test process
//! - [`connect_proxy`]: an HTTP proxy that makes tunnels
//! - [`database_proxy`]: a connection to the database that can stall or drop notifications
//! - [`doc_runner`]: runs the shell blocks of a documentation page
//! - [`event`]: a sample event
//! - [`folder`]: a temporary folder
//! - [`log`]: captures what is logged while a test runs
//! - [`pgbouncer`]: a real `PgBouncer` in front of the test Postgres
//! - [`postgres`]: one temporary Postgres for the whole run, and one database for each test
//! - [`receiver`]: a webhook receiver whose answers the test chooses
//! - [`secret_search`]: searches output for secrets, in many encodings
//! - [`shell`]: runs the `attesto` binary
//! - [`wait`]: waits for what happens elsewhere

pub(crate) mod attesto;
pub(crate) mod citus;
pub(crate) mod connect_proxy;
pub(crate) mod database_proxy;
pub(crate) mod doc_runner;
pub(crate) mod event;
pub(crate) mod folder;
pub(crate) mod log;
pub(crate) mod pgbouncer;
pub(crate) mod postgres;
pub(crate) mod receiver;
pub(crate) mod secret_search;
pub(crate) mod shell;
pub(crate) mod wait;
