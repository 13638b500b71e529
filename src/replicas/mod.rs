//! Which processes serve on this database, and with which encryption keys.
//!
//! Promises: a process that serves is known to the others within seconds and forgotten when it stops, or 45 seconds after it was
//! killed; before a process seals with a new key, it can be found out whether every other process can open it.
//!
//! - [`heartbeat`]: each process writes its row in `replicas` regularly
//! - [`Replica`]: a process that serves
//! - [`live_replicas`]: the processes that serve now, and which of them lack a key
//! - [`migration_check`]: whether a migration would stop a process that serves
//! - `store`: the SQL

pub mod heartbeat;
pub mod live_replicas;
pub mod migration_check;
mod replica;
mod store;

pub use heartbeat::{CertificateExpiries, ReplicaHeartbeat, host_name};
pub use live_replicas::LiveReplicas;
pub use migration_check::MigrationBlockedError;
pub(crate) use replica::HEARTBEAT_TIMEOUT;
pub use replica::{CertificateValidity, Replica};
