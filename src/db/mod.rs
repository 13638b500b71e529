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

mod catalogue;
pub mod changes;
mod client;
pub mod database;
pub mod embedded;
pub mod errors;
pub mod migrations;
pub mod pool;
pub mod settings;
pub mod upgrade;
pub mod vitals;

pub use database::{Database, Operator, Unreachable};
pub use errors::{Error, error_class, is_busy, is_missing_table, is_unavailable, on_constraint};
pub use migrations::{MIGRATOR, MigrationProblem, MigrationReport, Planned, SchemaState};
pub use pool::{Pool, Session, Transaction};
pub use settings::{ConnectSettings, MalformedUrl};
pub use vitals::Vitals;

/// The oldest major version of Postgres that the queries and migrations work on.
pub const OLDEST_MAJOR: u32 = 14;
