//! Which processes serve on this database, and with which encryption keys.
//!
//! Promises: a process that serves is known within seconds and forgotten when it stops, or within [`LIVE`] when it was
//! killed; whoever is about to seal with a key finds out first whether everybody who serves can open it.
//!
//! - [`presence`]: a process says that it is there
//! - [`Replica`]: a process that serves
//! - [`company`]: who is there, and who could not open what
//! - [`upgrade`]: whom a migration would stop

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
