//! Postgres: the pool, the migrations, and the few things every room's queries need.
//!
//! Promises: a connection is never handed out inside somebody else's transaction; a connection that hangs is given up
//! within seconds; the schema is exactly the one this binary was built with, or start-up says why not.
//!
//! - [`settings`]: [`ConnectSettings`], where the database is
//! - [`database`]: [`Database`], the pool: opened, guarded, asked whether it is there
//! - [`pool`]: [`Pool`], its connections, also where a pooler shares them out
//! - [`migrations`]: the tables, brought to this release
//! - [`upgrade`]: what a migration does to tables that are there, and promises to older releases
//! - [`errors`]: what an error means to a caller
//! - [`changes`]: hear of changes to what is remembered
//! - [`vitals`]: how the database is
//! - `catalogue`: what the database says of its own tables
//! - `client`: the same server, for Postgres' own programs
//! - [`embedded`]: a private Postgres as a child process

mod catalog;
pub mod change_listener;
pub mod connect_settings;
pub mod database;
pub mod errors;
pub mod health;
mod libpq;
pub mod migration_analysis;
pub mod migrations;
pub mod pool;

pub use connect_settings::{ConnectSettings, DatabaseUrlError};
pub use database::{Database, DatabaseConnectError, Operator};
pub use errors::{
    Error, error_class, is_lock_timeout, is_missing_table, is_unavailable, map_constraint_error,
};
pub use health::DatabaseHealth;
pub use migrations::{MIGRATOR, MigrationError, MigrationReport, PlannedMigration, SchemaState};
pub use pool::{DbPool, DbSession, DbTransaction};

/// The oldest major version of Postgres that the queries and migrations work on.
pub const MIN_POSTGRES_MAJOR: u32 = 14;
