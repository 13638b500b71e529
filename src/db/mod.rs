//! Postgres: the connection pool, the migrations, and what the queries of every room need.
//!
//! Guarantees: a connection is never handed out inside another caller's transaction; a connection that hangs is closed
//! within seconds; after a failover nothing goes on using the server before; the schema is exactly the one this binary was
//! built with, or start-up reports the difference.
//!
//! - [`connect_settings`]: [`ConnectSettings`], the address of the database and the size of the pool
//! - [`database`]: [`Database`], the pool of this process and its connectivity check
//! - [`pool`]: [`DbPool`], [`DbTransaction`], [`DbSession`], which also work through `PgBouncer` in transaction mode
//! - `server_watch`: which of several servers is used, and when all connections must be given up
//! - [`write_watch`]: whether writes complete
//! - [`migrations`]: bring the tables to this release
//! - [`migration_header`]: what each migration states about tables and older releases
//! - [`errors`]: classes of database errors
//! - [`connect_error`]: why the database cannot be used, in a few words for `/ready`
//! - `connection_limit`: whether the role may have as many connections as a process takes
//! - `tls_failure`: why a connection cannot be encrypted
//! - `tls_files`: the files that the URL names for TLS
//! - `error_text`: why something failed, in one sentence
//! - [`change_listener`]: notifications of changes, for caches
//! - [`distribution`]: which tables Citus spreads over servers, and whether this database has them so
//! - [`distribute`]: distributes them
//! - `row_changes`: logs and announces changes where triggers cannot
//! - [`health`]: clock difference, long transactions, dead rows, table sizes
//! - `clock_offset`: how far the database's clock is ahead of this process'
//! - `catalog`: the columns of our tables
//! - `timestamp`: reads times from columns
//! - `libpq`: environment variables for `pg_dump` and `pg_restore`

mod catalog;
pub mod change_listener;
mod clock_offset;
pub mod connect_error;
pub mod connect_settings;
mod connection_limit;
pub mod database;
pub mod distribute;
pub mod distribution;
mod error_text;
pub mod errors;
pub mod health;
mod libpq;
pub mod migration_header;
pub mod migrations;
pub mod pool;
pub(crate) mod row_changes;
mod server_watch;
mod timestamp;
mod tls_failure;
mod tls_files;
pub mod write_watch;

pub use connect_error::DatabaseConnectError;
pub use connect_settings::{ConnectSettings, DatabaseUrlError};
pub(crate) use connection_limit::ConnectionLimit;
pub use database::{Database, Operator};
pub(crate) use error_text::{
    describe_cause, describe_chain, describe_command_error, describe_error,
};
use errors::is_serialization_failure;
pub(crate) use errors::violates_constraint;
pub use errors::{
    Error, error_class, is_lock_timeout, is_missing_table, is_unavailable, is_unsupported,
    map_constraint_error,
};
pub use health::DatabaseHealth;
pub use migrations::{MIGRATOR, MigrationError, MigrationReport, PlannedMigration, SchemaState};
pub use pool::{DbPool, DbSession, DbTransaction};

/// The oldest major version of Postgres that the queries and migrations work on.
pub const MIN_POSTGRES_MAJOR: u32 = 14;
